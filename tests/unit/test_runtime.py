"""The owner of threads and time: the end of a process that does not end by itself."""

from __future__ import annotations

import subprocess
import sys

HANGS = """
import threading
from common.runtime import end_within
end_within(1)
threading.Thread(target=threading.Event().wait).start()
"""


def test_a_stop_that_hangs_ends_nevertheless_and_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert done.stderr == "still running 1 s after it was to stop: ended\n"


ENDS = """
import signal, sys, threading
from common.runtime import end_now
threading.Thread(target=threading.Event().wait).start()
print("done", end="")
end_now(3)
"""


def test_what_has_done_its_work_ends_at_once_and_loses_no_output() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "done", "")

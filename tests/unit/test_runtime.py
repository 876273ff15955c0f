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

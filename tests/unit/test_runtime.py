"""The owner of threads and time: loops that fail, and processes that do not end by themselves."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading

import pytest

from common.runtime import Runtime

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


def test_an_outage_is_logged_when_it_begins_for_what_is_new_in_it_and_when_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    runtime, wake = Runtime("manager"), threading.Event()
    turns = iter([OSError("away"), OSError("away"), ValueError("a bug"), OSError("away"), None])
    done = threading.Event()

    def turn() -> None:
        error = next(turns, None)
        if error is not None:
            raise error
        done.set()

    runtime.sleep = lambda _s: None  # type: ignore[method-assign]
    with caplog.at_level(logging.INFO, logger="common.runtime"):
        runtime.every("beat", 60.0, turn, wake=wake)
        assert done.wait(30)
        runtime.stop(5.0)
    assert [record.getMessage() for record in caplog.records] == [
        "manager: beat failed, tried again until it works: away",
        "manager: beat failed, tried again until it works: a bug",
        "manager: beat works again, at try 5",
    ]

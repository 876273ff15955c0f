"""The owner of threads and time: loops that fail, and processes that do not end by themselves."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from common.errors import CallTimeout
from common.logs import about
from common.runtime import Call, Runtime, Steps, Stopped
from tests.steps import outcome
from tests.wait import wait_until

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


def test_steps_are_sent_what_their_calls_return_and_have_thrown_in_what_they_raise() -> None:
    def no() -> None:
        raise ValueError("no")

    def steps() -> Steps[list[object]]:
        said = [(yield Call(60.0, "one", lambda: 1))]
        try:
            yield Call(60.0, "no", no)
        except ValueError as exc:
            said.append(exc.args[0])
        return said

    assert outcome(Runtime(), steps()) == [1, "no"]


def test_steps_go_on_without_a_call_that_takes_too_long_and_what_it_comes_to_is_dropped() -> None:
    runtime, gate, told = Runtime(), threading.Event(), list[object]()

    def steps() -> Steps[None]:
        with about(command="c-1"):
            threads = {threading.get_ident()}
            try:
                told.append((yield Call(0.01, "slow", lambda: gate.wait(30.0))))
            except CallTimeout as exc:
                told.append(exc.message)
            threads.add(threading.get_ident())
            told.append((yield Call(60.0, "quick", lambda: len(threads))))

    task = runtime.spawn("steps", runtime.carry_on, steps())
    wait_until(lambda: len(told) == 2)
    assert task.alive
    gate.set()
    assert task.join(30.0)
    assert told == ["slow gave no answer within 0.01 s", 2]


def test_steps_end_with_their_runtime_after_the_call_that_was_under_way() -> None:
    runtime, begun, gate, ended = Runtime(), threading.Event(), threading.Event(), list[str]()

    def call() -> None:
        begun.set()
        gate.wait(30.0)

    def steps() -> Steps[None]:
        try:
            yield Call(60.0, "call", call)
            ended.append("not reached")
        except Stopped:
            ended.append("stopped")
            raise

    task = runtime.spawn("steps", runtime.carry_on, steps())
    assert begun.wait(30.0)
    runtime.kill()
    gate.set()
    assert task.join(30.0)
    assert ended == ["stopped"]


@pytest.mark.parametrize("end", [Runtime.stop, Runtime.kill])
def test_a_wait_ends_with_the_runtime_at_once(end: Callable[[Runtime], object]) -> None:
    runtime, bell = Runtime(), threading.Event()
    waits = [runtime.spawn("waits", runtime.wait, bell, 3600.0) for _ in range(3)]
    wait_until(lambda: len(runtime.stopping._beside) == 3)
    end(runtime)
    assert all(wait.join(30.0) for wait in waits)
    assert not bell.is_set()

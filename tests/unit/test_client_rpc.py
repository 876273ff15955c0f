"""Answers that were lost are asked for again, under the same job, within the time limit."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from client import rpc
from common.bus.base import Address
from common.conf import Settings
from common.conf.client import Client as Limits
from common.errors import BrokerUnavailable, NoManager, NotFound
from common.runtime import Runtime


class Clock(Runtime):
    """Time that passes when it is waited for."""

    passed = 0.0

    def monotonic(self) -> float:
        return self.passed

    def sleep(self, seconds: float) -> None:
        self.passed += seconds


class Line:
    """A bus whose calls take all their time and then end as `outcomes` says, in turn."""

    def __init__(self, clock: Clock, *outcomes: Any, hangs: bool = True) -> None:
        self.clock, self.outcomes, self.hangs = clock, list(outcomes), hangs
        self.calls: list[tuple[str, dict[str, Any], float]] = []

    def call(self, to: Address, method: str, kwargs: Mapping[str, Any], timeout_s: float) -> Any:
        self.calls.append((method, dict(kwargs), timeout_s))
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            if self.hangs:
                self.clock.passed += timeout_s
            raise outcome
        return outcome


def client(line: Line) -> rpc.Client:
    settings = Settings(client=Limits(rpc_timeout=8.0))
    connect: Callable[[], Any] = lambda: line  # noqa: E731 - the annotation is the point
    return rpc.Client(connect, settings, line.clock)


def test_an_answer_ends_the_asking() -> None:
    line = Line(Clock(), {"vms": []})
    assert client(line).ask("vm_list") == {"vms": []}
    assert [call[2] for call in line.calls] == [4.0]


def test_a_lost_answer_is_asked_for_again_with_the_same_words() -> None:
    line = Line(Clock(), NoManager("silence"), {"uuid": "j"})
    assert client(line).change("vm_start", "j", vm="web-1") == {"uuid": "j"}
    first, second = line.calls
    assert first[:2] == second[:2]
    assert first[1]["job"] == "j"


def test_the_tries_fill_the_time_limit_and_no_more() -> None:
    line = Line(Clock(), *[NoManager("silence")] * 3)
    with pytest.raises(NoManager):
        client(line).ask("vm_list")
    assert [call[2] for call in line.calls] == [4.0, 2.0, 2.0]
    assert line.clock.passed == 8.0


def test_a_quick_no_is_not_asked_again_in_the_same_breath() -> None:
    line = Line(Clock(), *[BrokerUnavailable("refused")] * 3, hangs=False)
    with pytest.raises(BrokerUnavailable):
        client(line).ask("vm_list")
    assert line.clock.passed == 2 * rpc.PAUSE_S


@pytest.mark.parametrize("kind", [NoManager, BrokerUnavailable])
def test_a_wish_without_an_answer_names_its_job(kind: type[NoManager]) -> None:
    line = Line(Clock(), *[kind("silence", "start a manager")] * 3)
    with pytest.raises(kind) as caught:
        client(line).change("vm_start", "j-1", vm="web-1")
    assert caught.value.remedy == "repeat with --job j-1"
    assert caught.value.exit_code == 5


def test_a_manager_that_says_no_is_not_asked_again() -> None:
    line = Line(Clock(), NotFound("no VM web-1"))
    with pytest.raises(NotFound):
        client(line).change("vm_start", "j", vm="web-1")
    assert len(line.calls) == 1


def test_the_operator_is_the_user_at_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    assert rpc.operator() == f"ada@{socket.gethostname()}"


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError(os.getuid())

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert rpc.operator().startswith(f"{os.getuid()}@")

"""The phases of a command are told as they begin, and none begins when its time is over."""

from __future__ import annotations

import pytest

from agent.phases import Phases
from common.errors import CallTimeout
from common.runtime import Runtime


class Clock(Runtime):
    at = 100.0

    def monotonic(self) -> float:
        return self.at


def test_a_command_without_phases_tells_none() -> None:
    assert Phases(Clock(), 200.0).told() == ()


def test_each_phase_lasts_until_the_next_one_and_the_last_one_until_now() -> None:
    clock = Clock()
    phases = Phases(clock, 200.0)
    for name, seconds in (("template", 1.5), ("template", 0.5), ("define", 0.25), ("start", 4.0)):
        phases.begin(name)
        clock.at += seconds
    assert [(phase.name, phase.seconds) for phase in phases.told()] == [
        ("template", 2.0),
        ("define", 0.25),
        ("start", 4.0),
    ]


def test_nothing_begins_or_goes_on_after_the_deadline() -> None:
    clock = Clock()
    phases = Phases(clock, 101.0)
    phases.begin("root disk")
    clock.at = 101.0
    with pytest.raises(CallTimeout, match="root disk"):
        phases.begin("root disk")
    assert [phase.name for phase in phases.told()] == ["root disk"]

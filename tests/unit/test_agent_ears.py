"""An agent that is deaf finds out, connects again, and gives up only when managers live."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from agent.ears import Ears
from agent.session import Session
from simulation.runtime import SimRuntime
from simulation.world import World

CANARY_S = 30.0


class Rig:
    """An agent's ears; `helps`: connecting again makes canaries heard, `managers`: they answer."""

    def __init__(self, interval_s: float = CANARY_S) -> None:
        self.world = World(1)
        self.runtime = SimRuntime(self.world, "agent")
        self.session = Session(self.runtime)
        self.interval_s = interval_s
        self.hears = self.managers = True
        self.helps = False
        self.reconnects: list[float] = []
        self.greets: list[float] = []
        self.ears = Ears(self.runtime, self.session, self._reconnect, self._greet)
        self.runtime.spawn("ears", self.ears.loop)
        self._greet("start")
        self._canary()

    def _canary(self) -> None:
        """What managers cast: to a host that has a session."""
        if self.hears and self.managers and self.session.current is not None:
            self.ears.heard()
        self.world.after(CANARY_S, self._canary)

    def _reconnect(self) -> None:
        self.reconnects.append(round(self.world.now_s))
        self.hears = self.hears or self.helps

    def _greet(self, why: str) -> None:
        assert why
        self.session.end()
        self.greets.append(round(self.world.now_s))
        self._welcome()

    def _welcome(self) -> None:
        """A hello is tried again until it is answered."""
        if self.managers:
            self.session.begin(len(self.greets))
            self.ears.welcomed(self.interval_s)
        else:
            self.world.after(10.0, self._welcome)

    def at(self, when_s: float, fn: Callable[[], object]) -> None:
        self.world.after(when_s - self.world.now_s, lambda: (fn(), None)[1])

    def set(self, name: str, value: bool) -> Callable[[], None]:
        return lambda: setattr(self, name, value)


def test_who_hears_canaries_stays_as_it_is() -> None:
    rig = Rig()
    rig.world.run(10_000.0)
    assert (rig.reconnects, rig.greets, rig.ears.failure) == ([], [0], None)


def test_after_two_intervals_of_silence_it_listens_on_a_new_connection() -> None:
    rig = Rig()
    rig.helps = True
    rig.at(95.0, rig.set("hears", False))
    rig.world.run(10_000.0)
    assert (rig.reconnects, rig.greets) == ([150], [0, 150])
    assert rig.ears.failure is None


def test_two_connections_in_vain_while_managers_answer_end_it() -> None:
    rig = Rig()
    rig.at(95.0, rig.set("hears", False))
    rig.world.run(269.0)
    assert (rig.reconnects, rig.ears.failure) == ([150, 210], None)
    rig.world.run(271.0)
    assert rig.greets == [0, 150, 210, 270]
    assert rig.ears.failure is not None
    assert str(rig.ears.failure).startswith("DEAF: nothing has been heard from managers for 60 s")
    assert rig.ears.failure.exit_code != 0


def test_one_word_from_managers_and_it_counts_from_the_beginning() -> None:
    rig = Rig()
    rig.at(95.0, rig.set("hears", False))
    rig.at(265.0, rig.ears.heard)
    rig.world.run(500.0)
    assert rig.reconnects == [150, 210, 325, 385]
    assert rig.ears.failure is not None
    assert rig.greets[-1] == 445


@pytest.mark.parametrize("from_s", [35.0, 95.0, 145.0])
@pytest.mark.parametrize("for_s", [20.0, 70.0, 200.0, 5000.0])
def test_an_outage_of_the_managers_never_ends_it(from_s: float, for_s: float) -> None:
    rig = Rig()
    rig.at(from_s, rig.set("managers", False))
    rig.at(from_s + for_s, rig.set("managers", True))
    rig.world.run(10_000.0)
    assert rig.ears.failure is None
    assert len(rig.reconnects) <= 1
    assert rig.session.current is not None


@pytest.mark.parametrize("from_s", [155.0, 215.0, 265.0])
def test_an_outage_in_the_middle_of_its_deafness_takes_back_what_was_counted(from_s: float) -> None:
    rig = Rig()
    rig.at(95.0, rig.set("hears", False))
    rig.at(from_s, rig.set("managers", False))
    rig.at(from_s + 100.0, rig.set("managers", True))
    rig.world.run(from_s + 100.0 + 3 * 60.0 - 10.0)
    assert rig.ears.failure is None
    rig.world.run(from_s + 100.0 + 4 * 60.0 + 30.0)
    assert rig.ears.failure is not None


def test_managers_that_send_no_canaries_are_not_waited_for() -> None:
    rig = Rig(interval_s=0.0)
    rig.at(5.0, rig.set("hears", False))
    rig.world.run(10_000.0)
    assert (rig.reconnects, rig.greets) == ([], [0])


def test_who_stood_still_itself_has_not_been_deaf() -> None:
    rig = Rig()
    rig.at(50.0, rig.runtime.freeze)
    rig.at(50.0, rig.set("hears", False))
    rig.at(500.0, rig.runtime.thaw)
    rig.at(500.0, rig.set("hears", True))
    rig.world.run(1000.0)
    assert (rig.reconnects, rig.greets) == ([], [0])

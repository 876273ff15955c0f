"""What a host tells of its commands: when, in how many messages, and again until it is heard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.answers import BATCH, GATHER_S, RECEIPT_S, Answers, Identity
from agent.journal import Journal, not_run
from agent.session import Session
from common import messages as m
from common.bus.base import Bus
from common.errors import BrokerUnavailable
from simulation.runtime import SimRuntime
from simulation.world import World

INTERVAL_S = 10.0
QUICK_S = 0.01


class Ear:
    """The managers' end: each message with its time."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.heard: list[tuple[float, m.Answers]] = []
        self.away = False

    def publish(self, key: str, body: bytes, ttl_s: float | None = None) -> None:
        assert (key, ttl_s) == ("result.h", None)
        if self.away:
            raise BrokerUnavailable("no broker", "wait")
        self.heard.append((round(self._world.now_s, 3), m.decode(body, m.Answers)))

    def told(self) -> list[tuple[float, list[str], list[str]]]:
        """(when, receipts, results) of each message."""
        return [
            (at, [f"{r.command} {r.step}" for r in a.receipts], [r.id for r in a.results])
            for at, a in self.heard
        ]


class Rig:
    def __init__(self, folder: Path) -> None:
        self.world = World(1)
        self.runtime = SimRuntime(self.world, "agent")
        self.journal = Journal(str(folder), self.runtime)
        self.ear = Ear(self.world)
        self.looks: list[tuple[str, m.Look]] = []
        bus: Bus = self.ear  # type: ignore[assignment]
        self.answers = Answers(
            self.runtime,
            bus,
            self.journal,
            Session(self.runtime),
            Identity(fleet="f", host="h", agent_run="r"),
            INTERVAL_S,
            told=lambda instance, look: self.looks.append((instance, look)),
        )
        self.runtime.spawn("answers", self.answers.loop)
        self.run(1.0)

    def run(self, until_s: float) -> None:
        self.world.run(until_s)

    def at(self, when_s: float, fn: Callable[[], object]) -> None:
        self.world.after(when_s - self.world.now_s, lambda: (fn(), None)[1])

    def step(self, command: str, step: m.Step) -> None:
        self.answers.receipt(command, step, self.runtime.monotonic())

    def end(self, command: str, *, more: bool = False) -> None:
        given = m.Command(
            id=command,
            kind=m.CommandKind.STOP_VM,
            fleet="f",
            host="h",
            session=1,
            instance=command,
            generation=1,
            timeout_s=1,
        )
        self.journal.answer(not_run(given, "X", ""))
        self.answers.wake(more=more)

    def command(self, command: str, begin_s: float, took_s: float, *, more: bool = False) -> None:
        """One that comes at `begin_s`, is started a moment later and ends after `took_s`."""
        self.at(begin_s, lambda: self.step(command, m.Step.RECEIVED))
        self.at(begin_s + 0.001, lambda: self.step(command, m.Step.STARTED))
        self.at(begin_s + took_s, lambda: self.end(command, more=more))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.runtime.kill()
    rig.journal.close()


def test_a_quick_command_is_one_message_that_is_sent_at_once(rig: Rig) -> None:
    rig.command("a", 2.0, QUICK_S)
    rig.run(3.0)
    assert rig.ear.told() == [(2.01, ["a received", "a started"], ["a"])]
    received, started = rig.ear.heard[0][1].receipts
    assert received.age_s == pytest.approx(0.010)
    assert started.age_s == pytest.approx(0.009)


def test_a_command_that_takes_longer_shows_its_receipts_meanwhile(rig: Rig) -> None:
    rig.command("a", 2.0, 5.0)
    rig.run(9.0)
    assert rig.ear.told() == [
        (2.0 + RECEIPT_S, ["a received", "a started"], []),
        (7.0, [], ["a"]),
    ]
    received, started = rig.ear.heard[0][1].receipts
    assert received.age_s == pytest.approx(RECEIPT_S)
    assert started.age_s == pytest.approx(RECEIPT_S - 0.001)


def test_receipts_do_not_wait_longer_because_others_follow(rig: Rig) -> None:
    for n in range(8):
        rig.command(f"slow-{n}", 2.0 + n * 0.1, 5.0)
    rig.run(3.0)
    shown = {r: at for at, receipts, _ in rig.ear.told() for r in receipts}
    assert all(shown[f"slow-{n} received"] <= 2.0 + n * 0.1 + RECEIPT_S + 0.001 for n in range(8))
    assert len(rig.ear.heard) <= 4


def test_a_result_takes_along_whatever_waits(rig: Rig) -> None:
    rig.command("slow", 2.0, 5.0)
    rig.command("quick", 2.1, QUICK_S)
    rig.run(3.0)
    assert rig.ear.told() == [
        (2.11, ["slow received", "slow started", "quick received", "quick started"], ["quick"])
    ]


def test_results_that_end_together_share_a_message(rig: Rig) -> None:
    for n in range(3):
        rig.command(f"c-{n}", 2.0, QUICK_S + n * 0.001, more=n < 2)
    rig.run(3.0)
    assert [results for _, _, results in rig.ear.told()] == [["c-0", "c-1", "c-2"]]


def test_a_result_does_not_wait_for_one_that_is_long_in_coming(rig: Rig) -> None:
    rig.command("a", 2.0, QUICK_S, more=True)
    rig.run(3.0)
    ((at, _, results),) = rig.ear.told()
    assert results == ["a"]
    assert at <= 2.0 + QUICK_S + GATHER_S + 0.001


def test_a_receipt_that_is_asked_for_again_is_told_once_with_its_true_age(rig: Rig) -> None:
    rig.at(2.0, lambda: rig.answers.receipt("a", m.Step.STARTED, 1.5))
    rig.at(2.1, lambda: rig.answers.receipt("a", m.Step.STARTED, 1.5))
    rig.run(3.0)
    assert rig.ear.told() == [(2.25, ["a started"], [])]
    assert rig.ear.heard[0][1].receipts[0].age_s == pytest.approx(0.75)


def test_a_long_journal_goes_out_in_batches_without_a_pause(rig: Rig) -> None:
    def many() -> None:
        for n in range(BATCH + 1):
            rig.end(f"c-{n}")

    rig.at(2.0, many)
    rig.run(3.0)
    assert [(at, len(results)) for at, _, results in rig.ear.told()] == [(2.0, BATCH), (2.0, 1)]


def test_a_result_is_repeated_each_interval_until_it_is_confirmed(rig: Rig) -> None:
    rig.at(2.0, lambda: rig.end("a"))
    rig.at(25.0, lambda: rig.journal.confirm(["a"]))
    rig.run(60.0)
    assert rig.ear.told() == [(2.0, [], ["a"]), (10.0, [], ["a"]), (20.0, [], ["a"])]


def test_what_a_broker_did_not_take_is_told_when_it_is_back_receipts_and_all(rig: Rig) -> None:
    rig.ear.away = True
    rig.command("a", 2.0, QUICK_S)
    rig.at(4.5, lambda: setattr(rig.ear, "away", False))
    rig.run(6.0)
    ((at, receipts, results),) = rig.ear.told()
    assert (receipts, results) == (["a received", "a started"], ["a"])
    assert 4.5 <= at <= 5.6
    assert rig.ear.heard[0][1].receipts[0].age_s == pytest.approx(at - 2.0, abs=0.001)


def test_an_idle_host_tells_nothing(rig: Rig) -> None:
    steps = rig.world.steps
    rig.run(1000.0)
    assert rig.ear.heard == []
    assert rig.world.steps - steps < 300

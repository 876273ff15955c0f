"""The queue of a host: once, in turn, bounded, and never forgotten."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from agent import commands as module
from agent.commands import Commands
from agent.effects import Mode, Work
from agent.journal import Journal, State
from agent.service import load_driver
from agent.session import Session
from common import messages as m
from common.conf import Settings
from common.errors import BadConfig, IdReused
from common.runtime import Call, Runtime, Steps
from tests.wait import wait_until


class Told:
    """What would go to the managers."""

    def __init__(self) -> None:
        self.receipts: list[tuple[str, str]] = []
        self.rings: list[bool] = []

    def receipt(self, command: str, step: m.Step, _at: float) -> None:
        self.receipts.append((command, step.value))

    def wake(self, *, more: bool = False) -> None:
        self.rings.append(more)


class Rig:
    """Commands over a real journal, with effects that wait at a gate."""

    def __init__(self, folder: Path, max_parallel: int = 4) -> None:
        self.runtime = Runtime()
        self.journal = Journal(str(folder), self.runtime)
        self.session = Session(self.runtime)
        self.told = Told()
        self.gate = threading.Event()
        self.gate.set()
        self.slow: dict[str, threading.Event] = {}
        self.began: list[Work] = []
        self.commands = Commands(
            self.runtime,
            self.journal,
            self.session,
            self.told,  # type: ignore[arg-type]
            self._carry_out,
            max_parallel,
        )
        self.runtime.spawn("results", self.commands.loop)

    def _carry_out(self, work: Work) -> Steps[m.Result]:
        self.began.append(work)
        gate = self.slow.get(work.command.id, self.gate)
        assert (yield Call(60.0, "effect", lambda: gate.wait(30.0)))
        given = work.command
        return m.Result(
            id=given.id,
            command=given.id,
            kind=given.kind,
            instance=given.instance,
            generation=given.generation,
            outcome=m.Outcome.SUCCEEDED,
        )

    def take(self, command_id: str, instance: str, generation: int, **changes: Any) -> None:
        plain: dict[str, Any] = {"kind": m.CommandKind.STOP_VM, "session": 1, "timeout_s": 10}
        self.commands.take(
            m.Command(
                id=command_id,
                fleet="f",
                host="h",
                instance=instance,
                generation=generation,
                **plain | changes,
            )
        )

    def order(self) -> list[str]:
        return [work.command.id for work in self.began]

    def ended(self) -> dict[str, m.Result]:
        return {r.command: r for r in self.journal.pending(0, 1000).results}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    rig.session.begin(1)
    yield rig
    rig.gate.set()
    rig.runtime.kill()
    rig.journal.close()


def test_one_at_a_time_for_an_instance_in_the_order_of_generations(rig: Rig) -> None:
    rig.gate.clear()
    for generation in (1, 2, 3):
        rig.take(f"c-{generation}", "i-1", generation)
    wait_until(lambda: rig.began)
    assert rig.order() == ["c-1"]
    rig.gate.set()
    wait_until(lambda: len(rig.ended()) == 3)
    assert rig.order() == ["c-1", "c-2", "c-3"]


def test_a_command_that_comes_again_before_its_end_gets_its_receipt_again(rig: Rig) -> None:
    rig.gate.clear()
    rig.take("c-1", "i-1", 1)
    wait_until(lambda: ("c-1", "started") in rig.told.receipts)
    rig.take("c-1", "i-1", 1)
    assert rig.told.receipts == [("c-1", "received"), ("c-1", "started"), ("c-1", "started")]
    rig.gate.set()
    wait_until(rig.ended)
    assert rig.order() == ["c-1"]


def test_a_result_that_can_not_be_written_keeps_no_other_from_being_told(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = rig.journal.finish

    def finish(*results: m.Result) -> None:
        if any(r.command == "bad" and r.error_code is None for r in results):
            raise UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed")
        good(*results)

    monkeypatch.setattr(rig.journal, "finish", finish)
    rig.gate.clear()
    for n, command in enumerate(("one", "bad", "two")):
        rig.take(command, f"i-{n}", 1)
    rig.gate.set()
    wait_until(lambda: len(rig.ended()) == 3)
    assert rig.ended()["bad"].error_code == "INTERNAL_ERROR"
    assert {rig.ended()[c].outcome for c in ("one", "two")} == {m.Outcome.SUCCEEDED}
    rig.take("next", "i-1", 2)
    wait_until(lambda: "next" in rig.ended())


def test_what_is_received_rings_only_when_it_brings_an_answer(rig: Rig) -> None:
    rig.gate.clear()
    rig.take("c-1", "i-1", 1)
    rig.take("c-1", "i-1", 1)
    rig.take("c-2", "i-1", 2)
    assert rig.told.rings == []
    rig.take("stale", "i-1", 2)
    assert rig.told.rings == [False]
    rig.take("c-3", "i-1", 3, kind=m.CommandKind.TERMINATE_INSTANCE)
    assert rig.told.rings == [False, False]
    rig.gate.set()
    wait_until(lambda: len(rig.told.rings) == 4)


def test_a_result_waits_a_moment_only_while_another_command_runs(rig: Rig) -> None:
    rig.slow["c-2"] = threading.Event()
    rig.take("c-2", "i-2", 1)
    rig.take("c-1", "i-1", 1)
    wait_until(lambda: rig.told.rings == [True])
    rig.slow["c-2"].set()
    wait_until(lambda: rig.told.rings == [True, False])


def test_what_ends_together_and_what_follows_is_one_write(rig: Rig) -> None:
    rig.slow |= {f"c-{n}": threading.Event() for n in (1, 2, 3)}
    rig.take("c-1", "i-1", 1)
    rig.take("c-2", "i-2", 1)
    rig.take("c-3", "i-1", 2)
    wait_until(lambda: len(rig.began) == 2)
    before = rig.journal.meta().journal_seq
    with rig.commands._lock:
        rig.slow["c-1"].set()
        rig.slow["c-2"].set()
        wait_until(lambda: len(rig.commands._ended) == 2)
    wait_until(lambda: len(rig.began) == 3)
    assert rig.journal.meta().journal_seq == before + 1
    states = {e.command.id: e.state for e in rig.journal.unfinished()}
    assert states == {"c-3": State.STARTED}
    rig.slow["c-3"].set()
    wait_until(lambda: len(rig.ended()) == 3)


def test_no_more_than_max_parallel_run_and_the_rest_follow(tmp_path: Path) -> None:
    rig = Rig(tmp_path, max_parallel=2)
    rig.session.begin(1)
    rig.gate.clear()
    for n in range(5):
        rig.take(f"c-{n}", f"i-{n}", 1)
    wait_until(lambda: len(rig.began) == 2)
    assert len([r for r in rig.commands.receipts() if r.step is m.Step.RECEIVED]) == 3
    rig.gate.set()
    wait_until(lambda: len(rig.ended()) == 5)
    assert rig.commands.receipts() == ()
    rig.journal.close()


def test_what_can_start_at_once_is_received_and_started_in_one_write(rig: Rig) -> None:
    rig.gate.clear()
    before = rig.journal.meta().journal_seq
    rig.take("c-1", "i-1", 1)
    wait_until(lambda: rig.began)
    assert rig.journal.meta().journal_seq == before + 1
    rig.take("c-2", "i-1", 2)
    states = {e.command.id: e.state for e in rig.journal.unfinished()}
    assert states == {"c-1": State.STARTED, "c-2": State.RECEIVED}
    rig.gate.set()
    wait_until(lambda: len(rig.ended()) == 2)
    assert [work.mode for work in rig.began] == [Mode.BEGUN, Mode.BEGUN]


def test_what_is_started_is_on_disk_before_its_effect(rig: Rig, tmp_path: Path) -> None:
    rig.gate.clear()
    rig.take("c-1", "i-1", 1)
    wait_until(lambda: rig.began)
    with sqlite3.connect(tmp_path / "journal.db") as db:
        assert db.execute("SELECT id, state FROM commands").fetchall() == [("c-1", "STARTED")]


@pytest.mark.parametrize("why", ["no session", "draining", "no slot"])
def test_what_has_to_wait_is_not_written_down_as_started(tmp_path: Path, why: str) -> None:
    rig = Rig(tmp_path, max_parallel=1)
    rig.session.begin(1)
    rig.gate.clear()
    if why == "no slot":
        rig.take("first", "i-0", 1)
    elif why == "draining":
        rig.commands.drain(0.0)
    else:
        rig.session.end()
    rig.take("c-1", "i-1", 1)
    states = {e.command.id: e.state for e in rig.journal.unfinished()}
    assert states["c-1"] is State.RECEIVED
    rig.gate.set()
    rig.journal.close()


def test_an_id_that_is_refused_leaves_no_trace(rig: Rig) -> None:
    rig.gate.clear()
    rig.take("c-1", "i-1", 1)
    with pytest.raises(IdReused):
        rig.take("c-1", "i-2", 1)
    rig.take("c-2", "i-2", 1)
    wait_until(lambda: len(rig.began) == 2)
    assert [r.command for r in rig.commands.receipts()] == ["c-1", "c-2"]


def test_what_is_voided_in_the_queue_leaves_it(rig: Rig) -> None:
    rig.gate.clear()
    rig.take("c-1", "i-1", 1)
    rig.take("c-2", "i-1", 2)
    wait_until(lambda: rig.began)
    rig.commands.void("i-1", 2)
    rig.gate.set()
    wait_until(lambda: len(rig.ended()) == 2)
    assert rig.order() == ["c-1"]
    assert rig.ended()["c-2"].error_code == "VOIDED"


def test_nothing_starts_after_drain_and_drain_waits_for_what_runs(rig: Rig) -> None:
    rig.gate.clear()
    rig.take("c-1", "i-1", 1)
    rig.take("c-2", "i-1", 2)
    wait_until(lambda: rig.began)
    assert not rig.commands.drain(0.05)
    rig.gate.set()
    assert rig.commands.drain(5.0)
    assert rig.order() == ["c-1"]
    assert [e.command.id for e in rig.journal.unfinished()] == ["c-2"]


def test_a_hello_in_the_middle_leaves_alone_what_runs(rig: Rig) -> None:
    rig.gate.clear()
    rig.take("c-1", "i-1", 1)
    rig.take("c-2", "i-2", 1)
    rig.take("c-3", "i-2", 2)
    wait_until(lambda: len(rig.began) == 2)
    rig.commands.settle(unfinished=["c-1", "c-2", "c-3"], wanted=["c-2"])
    rig.gate.set()
    wait_until(lambda: len(rig.ended()) == 3)
    assert sorted(rig.order()) == ["c-1", "c-2"]
    assert {work.mode for work in rig.began} == {Mode.BEGUN}
    assert rig.ended()["c-3"].error_code == "NOT_WANTED"


def test_a_hello_says_nothing_of_what_it_did_not_name(rig: Rig) -> None:
    rig.session.end()
    rig.take("c-1", "i-1", 1)
    rig.commands.settle(unfinished=[], wanted=[])
    rig.session.begin(2)
    rig.commands.go()
    wait_until(rig.ended)
    assert rig.order() == ["c-1"]


def test_a_result_that_can_not_be_written_is_kept_until_it_can(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "JOURNAL_PAUSE_S", 0.01)
    finish, left = rig.journal._finish, [2]

    def full(db: sqlite3.Connection, result: m.Result) -> None:
        if left[0] > 0:
            left[0] -= 1
            raise sqlite3.OperationalError("database or disk is full")
        finish(db, result)

    monkeypatch.setattr(rig.journal, "_finish", full)
    rig.take("c-1", "i-1", 1)
    wait_until(rig.ended)
    assert rig.order() == ["c-1"]
    assert caplog.text.count("JOURNAL_UNAVAILABLE") == 2


def test_a_driver_that_can_not_be_loaded_is_a_matter_of_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    point = metadata.EntryPoint("simulated", "no_such_package.driver:create", "muster.drivers")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point])
    with pytest.raises(BadConfig, match="no_such_package"):
        load_driver(Settings(), Runtime())

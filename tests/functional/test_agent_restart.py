"""kill -9 of an agent at any instant: the next one on the same host goes on from its journal."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.drivers.base import OwnedGuest
from agent.drivers.simulated.driver import SimulatedDriver
from agent.journal import Journal
from common import messages as m
from common.errors import DbRolledBack, HypervisorUnavailable, NoManager
from common.ownership import Mark
from common.runtime import Runtime
from tests.functional.agent_rig import DEADLINE_S, Rig, eventually


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


def _killed_in(rig: Rig, op: str, mode: str, command: str) -> None:
    """Kill the agent while `command` hangs in `op`, before or after its effect."""
    eventually(lambda: "started" in rig.manager.receipts(command), "started")
    if mode == "hang_after":
        eventually(lambda: _happened(rig, op), f"the effect of {op}")
    rig.kill()
    rig.fault()


def _happened(rig: Rig, op: str) -> bool:
    state = rig.state_of("i-1")
    return {
        "create": state == "SHUTOFF",
        "start": state == "RUNNING",
        "stop": state == "SHUTOFF",
        "pause": state == "PAUSED",
        "suspend": state == "SUSPENDED",
        "destroy": state == "absent",
    }[op]


@pytest.mark.parametrize("mode", ["hang", "hang_after"])
@pytest.mark.parametrize("op", ["create", "start"])
def test_killed_in_a_start_that_is_still_wanted_it_is_finished(
    rig: Rig, op: str, mode: str
) -> None:
    rig.up()
    rig.fault(**{op: mode})
    start = rig.create("i-1")
    _killed_in(rig, op, mode, start)
    assert rig.manager.results(start) == []
    rig.up()
    assert rig.manager.hellos[-1].unfinished == (start,)
    result = rig.manager.result(start)
    assert (result.outcome, result.error_code) == ("succeeded", None)
    assert rig.state_of("i-1") == "RUNNING"
    assert len(rig.guests()) == 1


SHELF = {
    "guest": {"name": "web-1", "vcpus": 1, "memory_mib": 128},
    "snapshot": {"instance": "i-1", "snapshot": "s-1"},
}
# What each kind does when its agent was killed after "started" was written down and before anything
# was done: wanted, it happens now, once; not wanted, never.
KINDS = [
    ("start_vm", {}, ["start"]),
    ("stop_vm", {}, ["stop"]),
    ("reboot_vm", {"force": False}, ["reboot"]),
    ("reboot_vm", {"force": True}, ["reboot"]),
    ("pause_vm", {}, ["pause"]),
    ("unpause_vm", {}, ["unpause"]),
    ("suspend_vm", {}, ["suspend"]),
    ("resume_vm", {}, ["resume"]),
    ("shelve_vm", SHELF, ["stop", "snapshot"]),
    ("terminate_instance", {}, ["destroy"]),
]
# What has to come first.
BEFORE = {"start_vm": "stop_vm", "unpause_vm": "pause_vm", "resume_vm": "suspend_vm"}


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize(("kind", "spec", "acts"), KINDS)
def test_killed_between_started_and_the_first_effect(
    rig: Rig, kind: str, spec: dict[str, Any], acts: list[str], wanted: bool
) -> None:
    rig.up()
    guest = rig.running("i-1")
    if kind in BEFORE:
        rig.manager.result(rig.manager.send(BEFORE[kind], "i-1", 2))
    rig.kill()
    journal = Journal(str(rig.folder / "agent"), Runtime())
    given = m.convert(rig.manager.command(kind, "i-1", 3, spec=spec), m.Command)
    with journal.together():
        journal.receive(given)
        journal.start(given.id)
    journal.close()
    before = len(rig.store.account())
    rig.manager.wanted = lambda _id: wanted
    rig.up()
    result = rig.manager.result(given.id)
    done = [act.verb for act in rig.store.account()[before:]]
    if wanted or kind == "terminate_instance":
        assert (result.outcome, done) == ("succeeded", acts)
    else:
        assert (result.error_code, done) == ("OUTCOME_UNKNOWN", [])
        assert result.look is not None
        assert result.look.guest is not None
        assert result.look.guest.hypervisor_uuid == guest.uuid


@pytest.mark.parametrize("wanted", [True, False])
def test_killed_between_started_and_the_making_of_a_guest(rig: Rig, wanted: bool) -> None:
    rig.up()
    rig.kill()
    journal = Journal(str(rig.folder / "agent"), Runtime())
    spec = {"guest": {"name": "web-1", "vcpus": 1, "memory_mib": 128}, "create": True}
    given = m.convert(rig.manager.command("start_vm", "i-1", 1, spec=spec), m.Command)
    with journal.together():
        journal.receive(given)
        journal.start(given.id)
    journal.close()
    rig.manager.wanted = lambda _id: wanted
    rig.up()
    result = rig.manager.result(given.id)
    assert result.outcome == ("succeeded" if wanted else "failed")
    assert rig.state_of("i-1") == ("RUNNING" if wanted else "absent")


@pytest.mark.parametrize(("op", "left"), [("create", "SHUTOFF"), ("start", "RUNNING")])
def test_killed_in_a_start_that_is_not_wanted_any_more_it_is_reported_as_found(
    rig: Rig, op: str, left: str
) -> None:
    rig.up()
    rig.fault(**{op: "hang_after"})
    start = rig.create("i-1")
    _killed_in(rig, op, "hang_after", start)
    rig.manager.wanted = lambda _id: False
    rig.up()
    result = rig.manager.result(start)
    assert (result.outcome, result.error_code) == ("failed", "OUTCOME_UNKNOWN")
    assert result.look is not None
    assert rig.state_of("i-1") == left
    assert (result.look.guest is None) == (left == "absent")


def test_a_start_of_an_older_journal_undoes_no_guest_that_later_commands_have_used(
    rig: Rig,
) -> None:
    rig.up()
    rig.fault(start="hang_after")
    start = rig.create("i-1")
    eventually(lambda: _happened(rig, "start"), "the effect of start")
    journal, older = rig.folder / "agent" / "journal.db", rig.folder / "older.db"
    with (
        contextlib.closing(sqlite3.connect(journal)) as now,
        contextlib.closing(sqlite3.connect(older)) as copy,
    ):
        now.backup(copy)
    rig.kill()
    rig.fault()
    rig.up()
    assert rig.manager.result(start).outcome == "succeeded"
    assert rig.manager.result(rig.manager.send("stop_vm", "i-1", 2)).outcome == "succeeded"
    rig.kill()
    for file in journal.parent.iterdir():
        file.unlink()
    older.rename(journal)
    rig.manager.answers.clear()
    rig.manager.wanted = lambda _id: False
    rig.up()
    result = rig.manager.result(start)
    assert (result.outcome, result.error_code) == ("failed", "OUTCOME_UNKNOWN")
    assert rig.state_of("i-1") == "SHUTOFF"


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("mode", ["hang", "hang_after"])
def test_killed_in_a_terminate_it_is_finished_wanted_or_not(
    rig: Rig, mode: str, wanted: bool
) -> None:
    rig.up()
    rig.running("i-1")
    rig.fault(destroy=mode)
    end = rig.manager.send("terminate_instance", "i-1", 2)
    _killed_in(rig, "destroy", mode, end)
    rig.manager.wanted = lambda _id: wanted
    rig.up()
    result = rig.manager.result(end)
    assert result.outcome == "succeeded"
    assert result.look is not None
    assert result.look.guest is None
    assert rig.guests() == []


@pytest.mark.parametrize("mode", ["hang", "hang_after"])
@pytest.mark.parametrize(("verb", "after"), [("pause", "PAUSED"), ("suspend", "SUSPENDED")])
def test_killed_while_it_holds_a_guest_the_next_one_looks_and_finishes(
    rig: Rig, verb: str, after: str, mode: str
) -> None:
    rig.up()
    rig.running("i-1")
    rig.fault(**{verb: mode})
    command = rig.manager.send(f"{verb}_vm", "i-1", 2)
    _killed_in(rig, verb, mode, command)
    rig.up()
    assert rig.manager.result(command).outcome == "succeeded"
    assert rig.state_of("i-1") == after
    assert [act.verb for act in rig.store.account()].count(verb) == 1


@pytest.mark.parametrize(("mode", "reboots"), [("hang", 1), ("hang_after", 1)])
def test_killed_in_a_hard_reboot_the_domain_id_tells_and_it_happens_once(
    rig: Rig, mode: str, reboots: int
) -> None:
    rig.up()
    before = rig.running("i-1").domain_id or 0
    rig.fault(reboot=mode)
    reboot = rig.manager.send("reboot_vm", "i-1", 2, spec={"force": True})
    eventually(lambda: "started" in rig.manager.receipts(reboot))

    def reached() -> bool:
        guest = rig.guest_of("i-1")
        assert guest is not None
        assert guest.mark is not None
        remarked = guest.mark.generation == 2
        return remarked if mode == "hang" else (guest.domain_id or 0) > before

    eventually(reached)
    rig.kill()
    rig.fault()
    rig.up()
    assert rig.manager.result(reboot).outcome == "succeeded"
    after = rig.guest_of("i-1")
    assert after is not None
    assert after.domain_id == before + reboots


def test_killed_between_the_two_halves_of_a_hard_reboot_the_guest_is_powered_on(rig: Rig) -> None:
    rig.up()
    rig.running("i-1")
    rig.fault(reboot="hang")
    reboot = rig.manager.send("reboot_vm", "i-1", 2, spec={"force": True})

    def remarked() -> bool:
        guest = rig.guest_of("i-1")
        return guest is not None and guest.mark is not None and guest.mark.generation == 2

    eventually(remarked)
    rig.kill()
    guest = rig.guest_of("i-1")
    assert guest is not None
    guest.power_state, guest.domain_id = "SHUTOFF", None
    rig.store.write(guest)
    rig.fault()
    rig.up()
    assert rig.manager.result(reboot).outcome == "succeeded"
    assert rig.state_of("i-1") == "RUNNING"


def test_killed_in_a_soft_reboot_the_outcome_is_unknown_and_says_so(rig: Rig) -> None:
    rig.up()
    rig.running("i-1")
    rig.fault(reboot="hang")
    reboot = rig.manager.send("reboot_vm", "i-1", 2, spec={"force": False})

    def remarked() -> bool:
        guest = rig.guest_of("i-1")
        return guest is not None and guest.mark is not None and guest.mark.generation == 2

    eventually(remarked)
    rig.kill()
    rig.fault()
    rig.up()
    result = rig.manager.result(reboot)
    assert (result.outcome, result.error_code) == ("failed", "OUTCOME_UNKNOWN")
    assert result.look is not None
    assert result.look.guest is not None


def test_what_had_not_started_runs_after_the_restart_only_if_it_is_wanted(rig: Rig) -> None:
    rig.up(max_parallel=1)
    rig.fault(create="hang")
    first = rig.create("i-1")
    eventually(lambda: "started" in rig.manager.receipts(first))
    second, third = rig.create("i-2"), rig.create("i-3")
    eventually(lambda: rig.manager.receipts(second) and rig.manager.receipts(third))
    rig.kill()
    rig.fault()
    rig.manager.wanted = lambda command: command != third
    rig.up()
    assert rig.manager.result(second).outcome == "succeeded"
    dropped = rig.manager.result(third)
    assert (dropped.outcome, dropped.error_code) == ("not_run", "NOT_WANTED")
    assert rig.state_of("i-3") == "absent"


def test_a_result_that_nobody_confirmed_is_told_by_the_next_agent(rig: Rig) -> None:
    rig.up()
    start = rig.create("i-1")
    told = rig.manager.result(start)
    rig.kill()
    rig.manager.answers.clear()
    rig.up()
    assert rig.manager.result(start) == told


def test_floors_outlive_the_agent(rig: Rig) -> None:
    rig.up()
    rig.manager.result(rig.manager.send("terminate_instance", "i-1", 5))
    rig.kill()
    rig.up()
    late = rig.manager.result(rig.create("i-1", 5))
    assert (late.outcome, late.error_code, late.floor) == ("not_run", "STALE_COMMAND", 5)


def test_without_a_session_an_agent_reports_but_changes_nothing(rig: Rig) -> None:
    rig.manager.refuse = NoManager("nobody is there", "wait")
    rig.start()
    eventually(lambda: len(rig.manager.heartbeats) >= 3, "heartbeats")
    assert {h.session for h in rig.manager.heartbeats} == {None}
    rig.create("i-1", session=1)
    rig.manager.cast("void", instance="i-1", generation=9, session=1)
    seen = len(rig.manager.heartbeats)
    eventually(lambda: len(rig.manager.heartbeats) >= seen + 3, "more of them")
    assert rig.guests() == []
    assert rig.manager.answers == []


def test_the_hello_keeps_its_id_until_it_is_answered(rig: Rig) -> None:
    rig.broker.up = False
    agent = rig.start()
    rig.broker.up = True
    eventually(lambda: agent.session.current == 1)
    eventually(lambda: len(rig.manager.sessions) == 1)
    assert len({h.hello_id for h in rig.manager.hellos}) == 1


def test_hello_wanted_brings_a_new_session_and_nothing_runs_in_between(rig: Rig) -> None:
    agent = rig.up(max_parallel=1)
    rig.fault(create="hang")
    first = rig.create("i-1")
    eventually(lambda: "started" in rig.manager.receipts(first))
    queued = rig.create("i-2")
    eventually(lambda: rig.manager.receipts(queued))
    rig.manager.refuse = NoManager("no session yet", "wait")

    def ended() -> bool:
        rig.manager.cast("hello_wanted")
        return agent.session.current is None

    eventually(ended)
    rig.fault()
    assert rig.manager.result(first).outcome == "succeeded"
    assert rig.manager.results(queued) == []
    rig.manager.refuse = None
    eventually(lambda: agent.session.current == 2)
    assert rig.manager.result(queued).outcome == "succeeded"


def test_a_hello_wanted_that_speaks_of_an_older_session_is_ignored(rig: Rig) -> None:
    agent = rig.up()
    rig.manager.cast("hello_wanted", session=None)
    rig.manager.cast("hello_wanted", session=7)
    seen = len(rig.manager.heartbeats)
    eventually(lambda: len(rig.manager.heartbeats) > seen + 3)
    assert agent.session.current == 1
    assert len(rig.manager.hellos) == 1


def test_voids_and_floors_of_the_welcome_hold_before_anything_runs(rig: Rig) -> None:
    rig.up(max_parallel=1)
    rig.fault(create="hang")
    first = rig.create("i-1")
    eventually(lambda: "started" in rig.manager.receipts(first))
    second = rig.create("i-2", 3)
    eventually(lambda: rig.manager.receipts(second))
    rig.kill()
    rig.fault()
    rig.manager.voids = (m.FloorEntry("i-2", 3),)
    rig.manager.floors = (m.FloorEntry("i-3", 8),)
    rig.up()
    dropped = rig.manager.result(second)
    assert (dropped.outcome, dropped.error_code) == ("not_run", "VOIDED")
    eventually(lambda: [v.answer for v in rig.manager.void_answers()] and True)
    assert {(v.instance, v.answer) for v in rig.manager.void_answers()} == {("i-2", "not_run")}
    late = rig.manager.result(rig.create("i-3", 8))
    assert (late.error_code, late.floor) == ("STALE_COMMAND", 8)


def test_what_is_told_of_the_store_comes_back_in_the_next_hello(rig: Rig) -> None:
    rig.up()
    first = rig.manager.hellos[-1]
    assert (first.store_timeline, first.store_mark) == (None, 0)
    rig.kill()
    rig.up()
    second = rig.manager.hellos[-1]
    assert (second.store_timeline, second.store_mark) == ("t1", 1)
    assert second.journal_id == first.journal_id
    assert second.journal_seq > first.journal_seq
    assert second.agent_run != first.agent_run


def test_a_stop_lets_what_runs_end_and_leaves_the_rest_to_the_next_agent(rig: Rig) -> None:
    agent = rig.up()
    rig.fault(create="hang")
    start = rig.create("i-1")
    eventually(lambda: "started" in rig.manager.receipts(start))
    agent.stop(1.0)
    assert rig.manager.results(start) == []
    rig.fault()
    rig.up()
    assert rig.manager.result(start).outcome == "succeeded"
    assert len(rig.guests()) == 1


def test_what_fails_because_the_agent_stops_is_no_failure(rig: Rig) -> None:
    closed, undone = threading.Event(), threading.Event()

    class Cut(SimulatedDriver):
        """Its calls fail when it is closed, as libvirt's do, though they had their effect."""

        def create(
            self, spec: m.GuestSpec, mark: Mark, doing: Callable[[str], None]
        ) -> m.GuestReport:
            super().create(spec, mark, doing)
            closed.wait(DEADLINE_S)
            raise HypervisorUnavailable("the connection is closed", "")

        def destroy(self, guest: OwnedGuest) -> None:
            undone.set()
            super().destroy(guest)

        def close(self) -> None:
            super().close()
            closed.set()
            undone.wait(0.5)

    agent = rig.up(driver=Cut)
    start = rig.create("i-1")
    eventually(lambda: rig.state_of("i-1") == "SHUTOFF", "it is made")
    agent.stop(1.0)
    assert rig.manager.results(start) == []
    rig.up()
    assert rig.manager.hellos[-1].unfinished == (start,)
    assert rig.manager.result(start).outcome == "succeeded"
    assert len(rig.guests()) == 1


def test_the_broker_goes_and_comes_back_and_nothing_is_lost(rig: Rig) -> None:
    rig.up()
    rig.fault(create="hang")
    start = rig.create("i-1")
    eventually(lambda: "started" in rig.manager.receipts(start))
    rig.broker.up = False
    rig.fault()
    eventually(lambda: rig.state_of("i-1") == "RUNNING")
    assert rig.manager.results(start) == []
    rig.broker.up = True
    assert rig.manager.result(start).outcome == "succeeded"


def test_a_command_that_overtakes_the_welcome_is_held_and_not_lost(rig: Rig) -> None:
    sent: list[str] = []
    rig.manager.before_welcome = lambda: sent.append(rig.create("i-1"))
    agent = rig.start()
    eventually(lambda: sent)
    assert rig.manager.result(sent[0]).outcome == "succeeded"
    assert agent.session.current == 1
    beats = len(rig.manager.heartbeats)
    eventually(lambda: len(rig.manager.heartbeats) > beats)
    assert rig.manager.heartbeats[-1].dropped_casts == 0


def test_managers_whose_database_went_back_are_told_every_floor_and_not_obeyed(rig: Rig) -> None:
    agent = rig.up()
    rig.running("i-1")
    rig.manager.send("noop", "", 1, store_timeline="t1", store_mark=50)
    eventually(lambda: agent._journal.meta().store_mark == 50, "the mark is kept")
    stop = rig.manager.send("stop_vm", "i-1", 2, store_timeline="t1", store_mark=48)
    eventually(lambda: rig.manager.heartbeats[-1].dropped_casts == 1, "it is dropped")
    rig.manager.refuse = DbRolledBack("the database is older", "accept it", floors=0)
    rig.manager.send("noop", "", 1, store_timeline="t1", store_mark=48)

    def told() -> dict[str, int]:
        return {f.instance: f.generation for a in list(rig.manager.answers) for f in a.floors}

    eventually(lambda: told() == {"i-1": 1}, "the floors are told")
    assert agent.session.current is None
    rig.manager.send("stop_vm", "i-1", 2)
    assert rig.state_of("i-1") == "RUNNING"
    assert not rig.manager.results(stop)
    rig.manager.refuse = None
    eventually(lambda: agent.session.current is not None, "accepted")


def test_a_canary_of_another_database_asks_for_a_hello(rig: Rig) -> None:
    agent = rig.up()
    rig.manager.send("noop", "", 1, store_timeline="another", store_mark=10**6)
    eventually(lambda: len(rig.manager.hellos) == 2, "hello")
    assert rig.manager.hellos[-1].store_timeline == "t1"
    eventually(lambda: agent.session.current is not None, "a session")

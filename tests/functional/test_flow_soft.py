"""Soft delete (section 3, row 5), restore (section 6) and reclaim, to the rows that they leave."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from common import messages as m
from common.errors import (
    AlreadyDeleted,
    BadRequest,
    NotFound,
    QuotaExceeded,
    TaskUnderWay,
    VmProtected,
    WrongState,
)
from common.states import CommandState, HostState, JobState, PowerState, TaskState, VmState
from manager.flows import limits
from manager.store.commands import Void
from manager.store.instances import Instance
from manager.store.jobs import Job
from manager.store.rollbacks import AgentFloor, Rollback
from manager.store.tombstones import Tombstone
from manager.store.volumes import Volume
from tests.functional.fleet import DOWN_S, INTERVAL_S, Fleet, ScriptedAgent, fall_silent

SOFT, OFF, ON = VmState.SOFT_DELETED, PowerState.SHUTOFF, PowerState.RUNNING
WEEK_S = 7 * 86400.0
MISSING = {"error_code": "GUEST_MISSING", "error": "there is none"}
VERBS = ("start", "stop", "reboot", "pause", "unpause", "suspend", "resume")


def soft(fleet: Fleet, vm: str = "web-1", **kwargs: Any) -> dict[str, Any]:
    return fleet.delete(vm, soft=True, **kwargs)


def restore(fleet: Fleet, vm: str = "web-1", **kwargs: Any) -> dict[str, Any]:
    return fleet.ask("vm_restore", vm=vm, **kwargs)


def cast(fleet: Fleet) -> m.Command:
    """The one command that has left since the last look."""
    (sent,) = fleet.publish()
    return sent.command


def soft_deleted(fleet: Fleet, h1: ScriptedAgent, name: str = "web-1") -> Instance:
    fleet.deploy(h1, name)
    soft(fleet, name)
    h1.carry_out(cast(fleet))
    found = fleet.vm(name)
    assert (found.vm_state, found.task_state) == (SOFT, TaskState.NONE)
    return found


def on_a_dead_host(fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]) -> Instance:
    """Marked, and its guest still runs."""
    fleet.deploy(h1)
    h1.beat(full=True)
    fall_silent(fleet, h1, others)
    assert soft(fleet)["state"] == "SUCCEEDED"
    return fleet.vm()


def told(fleet: Fleet) -> list[str]:
    return [notice.event.removeprefix("instance.") for notice in fleet.notices]


def used(fleet: Fleet, project: str = "default") -> dict[str, int]:
    return fleet.store.run(lambda tx: limits.usage(tx, project))


# soft delete


def test_section3_row_5_the_guest_is_stopped_and_the_vm_kept(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    job = soft(fleet, reason="who needs it")
    assert (fleet.vm().vm_state, fleet.vm().task_state) == (
        VmState.ACTIVE,
        TaskState.SOFT_DELETING,
    )
    command = cast(fleet)
    assert (command.kind, command.spec["force"]) == (m.CommandKind.STOP_VM, False)
    assert told(fleet) == ["soft_delete.start"]
    h1.carry_out(command)
    vm = fleet.vm()
    assert (vm.vm_state, vm.task_state, vm.power_state) == (SOFT, TaskState.NONE, OFF)
    assert (vm.host, vm.job) == ("h1", None)
    assert vm.reclaim_at == fleet.clock.now() + dt.timedelta(seconds=WEEK_S)
    assert fleet.ask("vm_show", vm="web-1")["reclaim_at"] is not None
    assert (fleet.shown(job)["kind"], fleet.shown(job)["state"]) == ("delete", "SUCCEEDED")
    assert fleet.stones() == []
    assert told(fleet) == ["soft_delete.start", "soft_delete.end"]
    end = fleet.notices[-1].payload
    assert (end["proven"], end["reason"], end["job"]) == (True, "who needs it", job["uuid"])


def test_section3_row_5_deletes_are_soft_by_themselves_with_a_reclaim_interval(
    fleet_of: Callable[..., Fleet],
) -> None:
    fleet = fleet_of(reclaim_interval=3600.0)
    h1 = ScriptedAgent(fleet).up()
    fleet.deploy(h1)
    fleet.delete()
    h1.carry_out(cast(fleet))
    assert fleet.vm().vm_state is SOFT
    assert fleet.vm().reclaim_at == fleet.clock.now() + dt.timedelta(hours=1)
    fleet.delete()  # once more is for good
    command = cast(fleet)
    assert command.kind is m.CommandKind.TERMINATE_INSTANCE
    h1.carry_out(command)
    assert fleet.vm().vm_state is VmState.DELETED
    assert fleet.ask("vm_show", vm="web-1")["reclaim_at"] is None
    assert told(fleet)[2:] == ["delete.start", "delete.end"]


def test_section3_row_5_a_forced_delete_is_for_good(fleet_of: Callable[..., Fleet]) -> None:
    fleet = fleet_of(reclaim_interval=3600.0)
    fleet.deploy(ScriptedAgent(fleet).up())
    fleet.delete(force=True, reason="I know")
    assert fleet.vm().vm_state is VmState.DELETED
    with pytest.raises(BadRequest, match="soft"):
        soft(fleet, force=True, reason="which of the two?")


def test_section3_row_5_softly_once_more_changes_nothing(fleet: Fleet, h1: ScriptedAgent) -> None:
    before = soft_deleted(fleet, h1)
    fleet.pass_(INTERVAL_S, h1)
    job = soft(fleet)
    assert (job["state"], fleet.publish()) == ("SUCCEEDED", [])
    assert (fleet.vm().vm_state, fleet.vm().reclaim_at) == (SOFT, before.reclaim_at)


def test_section3_row_5_a_dry_run_says_what_would_happen(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    fleet.deploy(h1)
    fleet.create("later", start=False)
    before = fleet.everything()

    def foreseen(vm: str) -> tuple[int, str, str]:
        (found,) = soft(fleet, vm, dry_run=True)["decisions"]
        return found["row"], found["decision"], found["reason"]

    assert foreseen("web-1")[:2] == (5, "soft, remote")
    assert foreseen("later") == (5, "soft, DB-only", "it is on no host")
    assert fleet.everything() == before
    fall_silent(fleet, h1, others)
    row, decision, reason = foreseen("web-1")
    assert (row, decision) == (5, "soft, DB-only")
    assert "stopped when the host is back" in reason
    soft(fleet)
    assert foreseen("web-1")[:2] == (5, "soft-deleted already")


def test_section3_row_2_a_protected_vm_is_not_deleted_softly_either(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    fleet.ask("vm_set", vm="web-1", protected=True, reason="payroll")
    with pytest.raises(VmProtected):
        soft(fleet)


def test_section3_row_5_on_a_host_that_is_down_it_is_marked_and_stopped_on_its_return(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    vm = on_a_dead_host(fleet, h1, others)
    assert (vm.vm_state, vm.host, vm.power_state) == (SOFT, "h1", ON)
    assert (fleet.stones(), fleet.notices[-1].payload["proven"]) == ([], False)
    fleet.wire.take()
    h1.restart().hello()
    h1.beat(full=True)
    (event,) = fleet.events("instance.stop_again")
    assert "although it is SOFT_DELETED" in event.text
    h1.carry_out(cast(fleet))
    vm = fleet.vm()
    assert (vm.vm_state, vm.task_state, vm.power_state) == (SOFT, TaskState.NONE, OFF)


@pytest.mark.parametrize("how", ["fails", "unknown", "expires"])
def test_section4_row_9_it_stays_soft_deleted_however_its_stop_ends(
    fleet: Fleet, h1: ScriptedAgent, how: str
) -> None:
    vm = soft_deleted(fleet, h1)
    h1.power(vm.uuid, ON)
    h1.beat()
    command = cast(fleet)
    if how == "fails":
        h1.fail(command)
    elif how == "unknown":
        h1.receipt(command.id, m.Step.STARTED)
        fleet.pass_(12 * fleet.cfg.manager.command_timeout, h1, step=130.0)
    else:
        fleet.pass_(fleet.cfg.manager.command_timeout + DOWN_S, step=30.0)
        h1.restart().hello()
    found = fleet.vm()
    assert (found.vm_state, found.task_state) == (SOFT, TaskState.NONE)
    assert found.reclaim_at == vm.reclaim_at
    h1.beat(full=True)
    assert h1.commands("stop_vm")[-1].generation > command.generation


def test_section4_row_9_waits_for_the_end_of_a_freeze(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    on_a_dead_host(fleet, h1, others)
    fleet.ask("freeze", operator="ann", reason="odd")
    h1.restart().hello()
    h1.beat(full=True)
    assert h1.commands("stop_vm") == []
    fleet.ask("unfreeze", operator="ann")
    h1.beat(full=True)
    assert len(h1.commands("stop_vm")) == 1


def test_a_soft_delete_is_no_destruction_and_not_held_by_a_freeze(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    fleet.deploy(h1)
    fall_silent(fleet, h1, others)
    fleet.ask("freeze", operator="ann", reason="odd")
    assert soft(fleet)["state"] == "SUCCEEDED"


def test_section3_row_5_in_a_mass_silence_it_is_marked(fleet: Fleet) -> None:
    agents = [ScriptedAgent(fleet, f"h{n}").up() for n in (1, 2, 3)]
    fleet.deploy(agents[0])
    fleet.pass_(DOWN_S + 2 * INTERVAL_S)
    assert agents[0].row.mass_silent
    assert soft(fleet)["state"] == "SUCCEEDED"
    assert fleet.vm().vm_state is SOFT


def test_section3_row_5_an_agent_that_lives_on_a_host_set_down_is_asked_what_runs(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    h1.beat(full=True)
    fleet.ask("host_set_down", host="h1", reason="it smells")
    h1.hello()
    fleet.wire.take()
    assert soft(fleet)["state"] == "SUCCEEDED"
    assert "report_inventory" in {c.method for c in fleet.wire.take()}
    h1.beat(full=True)
    h1.carry_out(cast(fleet))
    assert (fleet.vm().vm_state, fleet.vm().power_state) == (SOFT, OFF)


def test_section3_row_5_the_host_goes_down_in_the_middle(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    fleet.deploy(h1)
    job = soft(fleet)
    stop = cast(fleet)
    fall_silent(fleet, h1, others)
    fleet.tick()
    assert (fleet.shown(job)["state"], fleet.vm().vm_state) == ("SUCCEEDED", SOFT)
    # Its stop may have been received: what comes of it changes nothing any more.
    h1.restart().hello()
    h1.carry_out(stop)
    assert (fleet.vm().vm_state, fleet.vm().power_state) == (SOFT, ON)
    h1.beat(full=True)
    assert fleet.vm().power_state is OFF
    assert fleet.rows(Void) == []


def test_section3_row_5_a_stop_that_fails_is_asked_for_again_with_back_off(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    job = soft(fleet)
    first = cast(fleet)
    h1.fail(first)
    assert fleet.publish() == []
    fleet.pass_(INTERVAL_S, h1)
    second = cast(fleet)
    assert second.generation > first.generation
    h1.fail(second, error_code="STALE_COMMAND", floor=40)
    fleet.tick()
    third = cast(fleet)
    assert third.generation == 41
    h1.carry_out(third)
    assert (fleet.vm().vm_state, fleet.shown(job)["state"]) == (SOFT, "SUCCEEDED")


def test_section3_row_5_what_can_not_be_stopped_is_not_deleted(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    job = soft(fleet)
    for _ in range(6):
        for sent in fleet.publish():
            h1.fail(sent.command)
        fleet.pass_(120.0, h1, step=120.0)
    shown = fleet.shown(job)
    assert (shown["state"], shown["error_code"]) == ("FAILED", "DELETE_TIMEOUT")
    vm = fleet.vm()
    assert (vm.vm_state, vm.task_state, vm.reclaim_at) == (VmState.ACTIVE, TaskState.NONE, None)
    assert not vm.deletion_owed
    assert told(fleet) == ["soft_delete.start", "soft_delete.error"]


def test_section3_row_5_a_guest_that_is_gone_has_stopped(fleet: Fleet, h1: ScriptedAgent) -> None:
    vm = fleet.deploy(h1)
    soft(fleet)
    h1.lose(vm.uuid)
    h1.fail(cast(fleet), **MISSING, look=h1.look(vm.uuid))
    assert fleet.vm().vm_state is SOFT


def test_section3_row_5_a_vm_that_was_not_started_yet_is_kept_too(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.create(start=False)
    assert soft(fleet)["state"] == "SUCCEEDED"
    assert (fleet.vm().vm_state, fleet.publish()) == (SOFT, [])
    restore(fleet)
    fleet.ask("vm_start", vm="web-1")
    h1.carry_out(cast(fleet))
    assert fleet.vm().vm_state is VmState.ACTIVE


def test_section4_row_9_a_guest_that_a_restored_database_has_forgotten_is_no_way_back(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.create(start=False)
    soft(fleet)
    h1.ours(fleet.vm().uuid, generation=5)
    h1.beat(full=True)
    assert (fleet.vm().vm_state, fleet.vm().host) == (SOFT, "h1")
    h1.beat(full=True)
    h1.carry_out(cast(fleet))
    assert (fleet.vm().vm_state, fleet.vm().power_state) == (SOFT, OFF)


def test_section3_row_4_a_vm_whose_creation_failed_is_not_kept(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.create(host="h1")
    h1.fail(cast(fleet), look=m.Look(session=h1.session or 0, seq=h1.draw(), guest=None))
    assert not fleet.vm().reserved
    soft(fleet)
    for sent in fleet.publish():
        h1.carry_out(sent.command)
    assert fleet.vm().vm_state is VmState.DELETED


# beside other tasks


def test_section3_row_5_it_waits_for_a_start_that_runs_and_then_stops(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    vm = fleet.deploy(h1)
    h1.power(vm.uuid, OFF)
    h1.beat()
    begun = fleet.ask("vm_start", vm="web-1")
    start = cast(fleet)
    h1.receipt(start.id, m.Step.STARTED)
    job = soft(fleet)
    stop = cast(fleet)
    assert stop.generation > start.generation  # its agent has one after the other
    h1.carry_out(start)
    assert (fleet.vm().power_state, fleet.vm().task_state) == (ON, TaskState.SOFT_DELETING)
    assert fleet.shown(begun)["state"] == "SUCCEEDED"
    h1.carry_out(stop)
    assert (fleet.vm().vm_state, fleet.vm().power_state) == (SOFT, OFF)
    assert fleet.shown(job)["state"] == "SUCCEEDED"


def test_section3_row_5_a_start_that_was_not_published_is_withdrawn(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    vm = fleet.deploy(h1)
    h1.power(vm.uuid, OFF)
    h1.beat()
    h1.end_session()
    begun = fleet.ask("vm_start", vm="web-1")
    soft(fleet)
    assert fleet.shown(begun)["error_code"] == "SUPERSEDED"
    h1.hello()
    command = cast(fleet)
    assert command.kind is m.CommandKind.STOP_VM
    h1.carry_out(command)
    assert fleet.vm().vm_state is SOFT


@pytest.mark.parametrize("stop_first", [False, True])
def test_section3_row_5_a_create_that_ends_well_is_stopped_and_kept(
    fleet: Fleet, h1: ScriptedAgent, stop_first: bool
) -> None:
    created = fleet.create(host="h1")
    start = cast(fleet)
    soft(fleet)
    stop = cast(fleet)
    h1.ours(start.instance, generation=stop.generation, power_state=OFF)
    if stop_first:  # the answer to the start is late
        h1.succeed(stop)
        assert fleet.vm().vm_state is VmState.BUILDING
        h1.succeed(start)
        fleet.pass_(INTERVAL_S, h1)
        stop = cast(fleet)
    else:
        h1.succeed(start)
    h1.succeed(stop)
    assert (fleet.vm().vm_state, fleet.vm().task_state) == (SOFT, TaskState.NONE)
    assert fleet.shown(created)["state"] == "SUCCEEDED"


def made_and_not_stopped(fleet: Fleet, h1: ScriptedAgent) -> dict[str, Any]:
    """A soft delete amid a create, which has ended well; its stop is still to be answered."""
    fleet.create(host="h1")
    start = cast(fleet)
    job = soft(fleet)
    h1.ours(start.instance, generation=start.generation, power_state=ON)
    h1.succeed(start)
    return job


def test_section3_row_5_a_vm_that_was_made_is_kept_though_its_stop_fails_for_ever(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    job = made_and_not_stopped(fleet, h1)
    for _ in range(80):
        for sent in fleet.publish():
            if sent.method == "stop_vm":
                h1.fail(sent.command, error="it hangs")
        fleet.pass_(INTERVAL_S, h1)
    assert (fleet.shown(job)["state"], fleet.shown(job)["error_code"]) == (
        "FAILED",
        "DELETE_TIMEOUT",
    )
    assert h1.terminates() == []
    vm = fleet.vm()
    assert (vm.vm_state, vm.task_state, vm.deletion_owed) == (
        VmState.ACTIVE,
        TaskState.NONE,
        False,
    )


def test_section3_row_5_a_vm_that_was_made_is_kept_though_its_host_dies_before_the_stop(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    job = made_and_not_stopped(fleet, h1)
    fall_silent(fleet, h1, others)
    fleet.pass_(INTERVAL_S, *others)
    assert (fleet.vm().vm_state, fleet.stones()) == (SOFT, [])
    assert fleet.shown(job)["state"] == "SUCCEEDED"


def test_section3_row_5_a_create_that_takes_longer_than_the_delete_may_is_waited_for(
    fleet_of: Callable[..., Fleet],
) -> None:
    fleet = fleet_of(delete_timeout=60.0)
    h1 = ScriptedAgent(fleet).up()
    fleet.create(host="h1")
    start = cast(fleet)
    h1.receipt(start.id, m.Step.STARTED)
    soft(fleet)
    fleet.publish()
    fleet.pass_(90.0, h1)
    assert h1.terminates() == []
    assert fleet.vm().task_state is TaskState.SOFT_DELETING
    h1.ours(start.instance, generation=start.generation, power_state=ON)
    h1.succeed(start)
    fleet.pass_(INTERVAL_S, h1)
    assert (fleet.vm().vm_state, h1.terminates()) == (VmState.ACTIVE, [])


def test_section3_row_4_a_create_that_has_failed_leaves_nothing_to_keep(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    created = fleet.create(host="h1")
    start = cast(fleet)
    job = soft(fleet)
    stop = cast(fleet)
    h1.fail(start, look=h1.look(start.instance))
    h1.fail(stop, **MISSING, look=h1.look(start.instance))
    fleet.tick()
    terminate = cast(fleet)
    assert terminate.kind is m.CommandKind.TERMINATE_INSTANCE
    h1.succeed(terminate)
    assert fleet.vm().vm_state is VmState.DELETED
    assert (fleet.shown(job)["state"], fleet.shown(created)["state"]) == ("SUCCEEDED", "FAILED")
    assert told(fleet) == ["soft_delete.start", "delete.start", "delete.end"]


def test_section3_row_4_a_create_on_a_host_that_dies_is_not_kept(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    fleet.create(host="h1")
    soft(fleet)
    fall_silent(fleet, h1, others)
    fleet.pass_(INTERVAL_S, *others)
    assert fleet.vm().vm_state is VmState.DELETED
    assert fleet.stone().host == "h1"


def test_section3_row_3_two_soft_deletes_are_one_job(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1)
    first, second = soft(fleet), soft(fleet)
    assert first["uuid"] == second["uuid"]
    h1.carry_out(cast(fleet))
    assert fleet.publish() == []
    assert fleet.vm().vm_state is SOFT


@pytest.mark.parametrize("sent", [True, False])
def test_section3_row_3_a_hard_delete_takes_a_soft_one_over(
    fleet: Fleet, h1: ScriptedAgent, sent: bool
) -> None:
    vm = fleet.deploy(h1)
    if not sent:
        h1.end_session()
    job = soft(fleet)
    hard = fleet.delete(reason="for good")
    assert hard["uuid"] == job["uuid"]
    assert fleet.vm().task_state is TaskState.DELETING
    h1.hello() if not sent else None
    casts = {c.method: c.command for c in fleet.publish()}
    assert list(casts) == (["stop_vm"] if sent else []) + ["terminate_instance"]
    if sent:  # it had begun before
        h1.carry_out(casts["stop_vm"])
        assert fleet.vm().vm_state is VmState.ACTIVE
    h1.carry_out(casts["terminate_instance"])
    assert fleet.vm().vm_state is VmState.DELETED
    assert fleet.shown(job)["state"] == "SUCCEEDED"
    assert told(fleet) == ["soft_delete.start", "delete.start", "delete.end"]
    assert fleet.row(Instance, vm.uuid).reclaim_at is None


def test_section3_row_3_a_forced_delete_takes_a_soft_one_over_from_the_database_alone(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    soft(fleet)
    stop = cast(fleet)
    assert fleet.delete(force=True, reason="I know")["state"] == "SUCCEEDED"
    assert fleet.vm().vm_state is VmState.DELETED
    assert next(c for c in h1.commands() if c.id == stop.id).state is CommandState.UNKNOWN


def test_section3_row_3_a_soft_delete_of_what_is_being_deleted_is_the_same_job(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    hard = fleet.delete()
    assert soft(fleet)["uuid"] == hard["uuid"]
    h1.carry_out(cast(fleet))
    assert fleet.vm().vm_state is VmState.DELETED


def test_a_soft_delete_that_was_not_sent_can_be_cancelled(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1)
    h1.end_session()
    job = soft(fleet)
    fleet.ask("job_cancel", job=job["uuid"], operator="ann")
    assert fleet.shown(job)["state"] == "CANCELLED"
    assert (fleet.vm().vm_state, fleet.vm().task_state) == (VmState.ACTIVE, TaskState.NONE)


# restore


def test_section6_restore_makes_it_shutoff_again_without_its_host(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    before = soft_deleted(fleet, h1)
    fall_silent(fleet, h1, others)
    job = restore(fleet, reason="a mistake")
    assert (job["kind"], job["state"], fleet.publish()) == ("restore", "SUCCEEDED", [])
    vm = fleet.vm()
    assert (vm.vm_state, vm.task_state, vm.reclaim_at) == (VmState.SHUTOFF, TaskState.NONE, None)
    assert (vm.host, vm.address, vm.mac) == (before.host, before.address, before.mac)
    assert told(fleet)[2:] == ["restore.start", "restore.end"]
    (event,) = fleet.events("instance.restore")
    assert (event.source, event.text) == ("ann", "web-1: a mistake")
    h1.restart().hello()
    fleet.ask("vm_start", vm="web-1")
    h1.carry_out(cast(fleet))
    assert fleet.vm().vm_state is VmState.ACTIVE


def test_section6_a_restore_that_is_repeated_is_done_once(fleet: Fleet, h1: ScriptedAgent) -> None:
    soft_deleted(fleet, h1)
    job = str(uuid.uuid4())
    first = restore(fleet, job=job)
    fleet.ask("vm_start", vm="web-1")
    h1.carry_out(cast(fleet))
    assert restore(fleet, job=job)["uuid"] == first["uuid"]
    assert len(fleet.events("instance.restore")) == 1
    with pytest.raises(WrongState, match="ACTIVE"):
        restore(fleet)


def test_section6_what_is_shutoff_is_restored_already(fleet: Fleet, h1: ScriptedAgent) -> None:
    soft_deleted(fleet, h1)
    restore(fleet)
    assert restore(fleet)["state"] == "SUCCEEDED"
    assert len(fleet.events("instance.restore")) == 1


@pytest.mark.parametrize("verb", VERBS)
def test_section6_no_other_verb_is_for_a_soft_deleted_vm(
    fleet: Fleet, h1: ScriptedAgent, verb: str
) -> None:
    soft_deleted(fleet, h1)
    with pytest.raises(WrongState, match="SOFT_DELETED") as caught:
        fleet.ask(f"vm_{verb}", vm="web-1")
    assert "muster vm restore web-1" in caught.value.remedy


def test_section6_its_state_is_not_set_around_its_limits(fleet: Fleet, h1: ScriptedAgent) -> None:
    soft_deleted(fleet, h1)
    before = fleet.everything()
    with pytest.raises(WrongState) as caught:
        fleet.ask("vm_set_state", vm="web-1", vm_state="SHUTOFF", reason="it is mine")
    assert caught.value.remedy == "muster vm restore web-1"
    assert fleet.everything() == before


def test_section6_restore_is_refused_while_a_delete_is_under_way_and_after_it(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    job = soft(fleet)
    with pytest.raises(TaskUnderWay, match=job["uuid"]):
        restore(fleet)
    h1.carry_out(cast(fleet))
    hard = fleet.delete()
    with pytest.raises(TaskUnderWay, match=hard["uuid"]):
        restore(fleet)
    h1.carry_out(cast(fleet))
    with pytest.raises(WrongState, match="DELETED"):
        restore(fleet)
    with pytest.raises(NotFound):
        restore(fleet, "nobody")
    with pytest.raises(AlreadyDeleted):
        soft(fleet)


# limits


@pytest.fixture
def shop(fleet: Fleet, h1: ScriptedAgent) -> Fleet:
    """A project for one VM, with a disk and an address in its network."""
    fleet.ask(
        "model_apply",
        objects={
            "projects": [{"name": "shop", "instances": 1, "vcpus": 1, "memory_mib": 256}],
            "zones": [{"name": "z1"}],
            "pods": [{"name": "p1", "zone": "z1"}],
            "clusters": [{"name": "c1", "pod": "p1"}],
            "hosts": [{"name": "h1", "cluster": "c1"}],
            "networks": [
                {
                    "name": "n1",
                    "zone": "z1",
                    "backend": "bridge",
                    "source": "br0",
                    "cidr": "10.1.0.0/24",
                    "gateway": "10.1.0.1",
                }
            ],
        },
    )
    return fleet


def in_shop(fleet: Fleet, h1: ScriptedAgent, name: str) -> Instance:
    asked = {"project": "shop", "networks": [{"network": "n1"}], "disks": [{"size_gib": 1}]}
    instance = fleet.create(name, **asked)["instance"]
    h1.carry_out(cast(fleet))
    return fleet.row(Instance, instance)


def test_section3_quota_a_soft_delete_releases_what_runs_and_the_last_delete_the_rest(
    shop: Fleet, h1: ScriptedAgent
) -> None:
    vm = in_shop(shop, h1, "web-1")
    runs = {"instances": 1, "vcpus": 1, "memory_mib": 256}
    holds = {"volumes": 1, "storage_gib": 1, "addresses": 1}
    soft(shop)
    assert used(shop, "shop") == runs | holds
    h1.carry_out(cast(shop))
    assert used(shop, "shop") == dict.fromkeys(runs, 0) | holds
    assert (shop.vm().address, len(shop.rows(Volume))) == (vm.address, 1)
    assert (h1.row.vcpus_claimed, h1.row.memory_mib_claimed) == (1, 256)  # it can be started again
    shop.delete()
    assert used(shop, "shop") == dict.fromkeys(runs, 0) | holds
    h1.carry_out(cast(shop))
    assert used(shop, "shop") == dict.fromkeys(runs | holds, 0)
    assert (h1.row.vcpus_claimed, h1.row.memory_mib_claimed) == (0, 0)


def test_section3_quota_restore_reserves_again_or_is_refused(
    shop: Fleet, h1: ScriptedAgent
) -> None:
    in_shop(shop, h1, "web-1")
    soft(shop)
    h1.carry_out(cast(shop))
    in_shop(shop, h1, "web-2")  # which takes what was released
    before = shop.everything()
    with pytest.raises(QuotaExceeded, match="instances: 1 of 1") as caught:
        restore(shop)
    assert "muster quota set shop" in caught.value.remedy
    assert shop.everything() == before
    soft(shop, "web-2")
    h1.carry_out(cast(shop))
    restore(shop)
    assert used(shop, "shop")["instances"] == 1
    with pytest.raises(QuotaExceeded):
        restore(shop, "web-2")


def test_section3_quota_a_deletion_that_is_owed_takes_nothing_again(
    shop: Fleet, h1: ScriptedAgent
) -> None:
    in_shop(shop, h1, "web-1")
    soft(shop)
    h1.carry_out(cast(shop))
    shop.delete()
    shop.publish()
    shop.pass_(shop.cfg.manager.delete_timeout + 20, h1, step=310.0)
    assert (shop.vm().vm_state, shop.vm().deletion_owed) == (VmState.ERROR, True)
    assert used(shop, "shop")["instances"] == 0
    with pytest.raises(WrongState, match="owed a deletion"):
        restore(shop)


# reclaim


@pytest.fixture
def brief(fleet_of: Callable[..., Fleet]) -> Fleet:
    """Deletes are soft, for two minutes."""
    return fleet_of(reclaim_interval=120.0)


@pytest.fixture
def kept(brief: Fleet) -> ScriptedAgent:
    """A host with a VM that was deleted softly."""
    h1 = ScriptedAgent(brief).up()
    soft_deleted(brief, h1)
    return h1


def pass_over(fleet: Fleet, h1: ScriptedAgent) -> None:
    """The time in which it could be restored."""
    fleet.pass_(140.0, h1, step=20.0)


def test_reclaim_deletes_in_its_time_what_nobody_has_restored(
    brief: Fleet, kept: ScriptedAgent
) -> None:
    brief.pass_(100.0, kept, step=20.0)
    assert brief.vm().task_state is TaskState.NONE
    brief.pass_(20.0, kept)
    sent = brief.publish()[-1]
    job = brief.row(Job, brief.vm().job or "")
    assert (job.kind, job.trail[-1].source) == ("delete", "manager")
    assert "could be restored until 2026-11-20T12:02" in job.trail[-1].text
    kept.carry_out(sent.command)
    assert brief.vm().vm_state is VmState.DELETED
    assert brief.job({"uuid": job.uuid}).state is JobState.SUCCEEDED
    assert told(brief)[2:] == ["delete.start", "delete.end"]


def test_reclaim_of_a_vm_on_a_dead_host_is_db_only(brief: Fleet, kept: ScriptedAgent) -> None:
    others = [ScriptedAgent(brief, f"other-{n}").up() for n in range(2)]
    brief.pass_(140.0, *others, step=20.0)
    assert kept.row.state is HostState.DOWN
    assert brief.vm().vm_state is VmState.DELETED
    assert brief.one(Tombstone).holds


def test_reclaim_waits_after_the_mark_stood_still_until_agents_can_have_compared(
    brief: Fleet, kept: ScriptedAgent
) -> None:
    """As after a backup was put back, in which the VM may have been restored since."""
    brief.pass_(200.0, kept, step=200.0)
    brief.pass_(DOWN_S - INTERVAL_S, kept)
    assert (brief.vm().vm_state, kept.terminates()) == (SOFT, [])
    brief.pass_(2 * INTERVAL_S, kept)
    assert len(kept.terminates()) == 1


def test_reclaim_of_a_fleet_that_looks_at_its_clock_seldom(
    fleet_of: Callable[..., Fleet],
) -> None:
    fleet = fleet_of(reclaim_interval=120.0, tick_interval=60.0)
    h1 = ScriptedAgent(fleet).up()
    soft_deleted(fleet, h1)
    fleet.pass_(180.0, h1, step=60.0)
    assert len(h1.terminates()) == 1


def test_reclaim_leaves_a_vm_that_was_restored_alone(brief: Fleet, kept: ScriptedAgent) -> None:
    restore(brief)
    pass_over(brief, kept)
    assert (brief.vm().vm_state, kept.terminates()) == (VmState.SHUTOFF, [])


def test_reclaim_is_held_by_a_freeze(brief: Fleet, kept: ScriptedAgent) -> None:
    brief.ask("freeze", operator="ann", reason="odd")
    pass_over(brief, kept)
    assert (brief.vm().vm_state, kept.terminates()) == (SOFT, [])
    brief.ask("unfreeze", operator="ann")
    brief.tick()
    assert len(kept.terminates()) == 1


def test_reclaim_that_has_begun_is_held_by_a_freeze_as_long_as_it_was_not_sent(
    brief: Fleet, kept: ScriptedAgent
) -> None:
    brief.pass_(110.0, kept, step=22.0)
    kept.end_session()
    brief.clock.move(20.0)
    brief.tick()
    assert brief.vm().task_state is TaskState.DELETING
    brief.ask("freeze", operator="ann", reason="odd")
    kept.hello()
    brief.pass_(brief.cfg.manager.delete_timeout + 60.0, kept, step=220.0)
    assert [c for c in brief.publish() if c.method == "terminate_instance"] == []
    assert (brief.vm().vm_state, brief.vm().deletion_owed) == (SOFT, False)
    brief.ask("unfreeze", operator="ann")
    brief.pass_(INTERVAL_S, kept)
    (sent,) = [c for c in brief.publish() if c.method == "terminate_instance"]
    kept.carry_out(sent.command)
    assert brief.vm().vm_state is VmState.DELETED


def test_reclaim_is_held_by_a_protection_that_was_set_later(
    brief: Fleet, kept: ScriptedAgent
) -> None:
    brief.ask("vm_set", vm="web-1", protected=True, reason="wait")
    pass_over(brief, kept)
    assert (brief.vm().vm_state, kept.terminates()) == (SOFT, [])
    brief.ask("vm_set", vm="web-1", protected=False, reason="go")
    brief.tick()
    assert len(kept.terminates()) == 1


def begun_without_its_host(fleet: Fleet, kept: ScriptedAgent) -> dict[str, Any]:
    """A reclaim that nobody has been told of."""
    fleet.pass_(110.0, kept, step=22.0)
    kept.end_session()
    fleet.clock.move(20.0)
    fleet.tick()
    (job,) = [j for j in fleet.rows(Job) if j.state is JobState.RUNNING]
    return {"uuid": job.uuid}


def test_reclaim_that_an_operator_joins_is_somebodys_wish_which_no_freeze_holds_up(
    brief: Fleet, kept: ScriptedAgent
) -> None:
    job = begun_without_its_host(brief, kept)
    brief.ask("freeze", operator="ann", reason="odd")
    brief.pass_(INTERVAL_S)
    assert "FROZEN" in brief.shown(job)["waiting_for"]
    joined = brief.delete(operator="bob", reason="it is not needed")
    assert joined["uuid"] == job["uuid"]
    assert [line[:2] for line in brief.shown(job)["reason"]][-1] == ["bob", "it is not needed"]
    kept.hello()
    brief.tick()
    (sent,) = [c for c in brief.publish() if c.method == "terminate_instance"]
    kept.carry_out(sent.command)
    assert brief.vm().vm_state is VmState.DELETED


def test_reclaim_that_is_cancelled_keeps_the_vm_as_if_it_had_been_deleted_now(
    brief: Fleet, kept: ScriptedAgent
) -> None:
    job = begun_without_its_host(brief, kept)
    assert brief.ask("job_cancel", job=job["uuid"], operator="ann")["state"] == "CANCELLED"
    kept.hello()
    brief.pass_(80.0, kept, step=20.0)
    assert (brief.vm().vm_state, brief.vm().task_state) == (SOFT, TaskState.NONE)
    assert [c for c in brief.publish() if c.method == "terminate_instance"] == []
    assert restore(brief)["state"] == "SUCCEEDED"


def test_reclaim_is_not_kept_from_others_by_vms_whose_host_belongs_to_another_database(
    brief: Fleet, kept: ScriptedAgent
) -> None:
    h2 = ScriptedAgent(brief, "h2").up()
    brief.pass_(INTERVAL_S, kept, h2)
    brief.create("web-2", host="h2")
    start = cast(brief)
    h2.carry_out(start)
    soft(brief, "web-2")
    h2.carry_out(brief.publish()[-1].command)
    first = brief.vm()
    for _ in range(20):  # as many as are looked at in one round
        more = msgspec.structs.replace(first, uuid=str(uuid.uuid4()), name="more")
        brief.store.run(lambda tx, row=more: tx.insert(row))
    kept.end_session()
    other = Rollback(host="h1", timeline="another", mark=9, since=brief.clock.now())
    brief.store.run(lambda tx: tx.insert(other))
    pass_over(brief, h2)
    assert len(h2.terminates()) == 1
    assert brief.vm().task_state is TaskState.NONE


def test_an_accepted_restore_takes_reclaims_back_and_believes_agents_that_know_of_later_commands(
    brief: Fleet, kept: ScriptedAgent
) -> None:
    job = begun_without_its_host(brief, kept)
    vm = brief.vm()
    ahead = Rollback(host="h1", timeline=kept.timeline, mark=10**6, since=brief.clock.now())
    floor = AgentFloor(host="h1", instance=vm.uuid, generation=vm.generation + 5)
    brief.store.run(lambda tx: (tx.insert(ahead), tx.insert(floor)))
    brief.ask("db_accept_restore", operator="ann", reason="the disk died")
    assert brief.shown(job)["state"] == "CANCELLED"
    assert (brief.vm().vm_state, brief.vm().task_state) == (VmState.SHUTOFF, TaskState.NONE)
    kept.power(vm.uuid, ON)
    kept.up()
    kept.beat(full=True)
    assert brief.vm().vm_state is VmState.ACTIVE
    assert [c.method for c in brief.publish() if c.method != "noop"] == []

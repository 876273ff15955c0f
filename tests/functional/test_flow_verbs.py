"""Verbs about a VM that is there: what is cast, what its end makes of the VM (section 6)."""

from __future__ import annotations

import pytest

from common import messages as m
from common.errors import BadRequest, TaskUnderWay, WrongState
from common.states import JobState, PowerState, TaskState, VmState
from manager.store.commands import CommandRow
from tests.functional.fleet import INTERVAL_S, Fleet, ScriptedAgent

P = PowerState
# verb, from, task, command, success, and what the guest is then
TURNS = [
    ("pause", VmState.ACTIVE, TaskState.PAUSING, "pause_vm", VmState.PAUSED, P.PAUSED),
    ("unpause", VmState.PAUSED, TaskState.UNPAUSING, "unpause_vm", VmState.ACTIVE, P.RUNNING),
    ("suspend", VmState.ACTIVE, TaskState.SUSPENDING, "suspend_vm", VmState.SUSPENDED, P.SUSPENDED),
    ("resume", VmState.SUSPENDED, TaskState.RESUMING, "resume_vm", VmState.ACTIVE, P.RUNNING),
]
INTO = {VmState.PAUSED: "vm_pause", VmState.SUSPENDED: "vm_suspend"}


def brought_into(fleet: Fleet, h1: ScriptedAgent, state: VmState) -> None:
    """A VM web-1 in this state, brought there by its own verb."""
    fleet.deploy(h1)
    if state in INTO:
        fleet.ask(INTO[state], vm="web-1")
        (cast,) = fleet.publish()
        h1.carry_out(cast.command)
    assert fleet.vm().vm_state is state
    fleet.wire.take()


@pytest.mark.parametrize(("verb", "source", "task", "kind", "success", "power"), TURNS)
def test_a_verb_is_cast_once_and_its_success_is_the_state_it_promised(
    fleet: Fleet,
    h1: ScriptedAgent,
    verb: str,
    source: VmState,
    task: TaskState,
    kind: str,
    success: VmState,
    power: PowerState,
) -> None:
    brought_into(fleet, h1, source)
    job = fleet.ask(f"vm_{verb}", vm="web-1")
    assert (fleet.vm().task_state, fleet.vm().job) == (task, job["uuid"])
    (cast,) = fleet.publish()
    assert (cast.method, cast.command.kind, cast.command.spec) == (kind, kind, {})
    with pytest.raises(TaskUnderWay, match=job["uuid"]):
        fleet.ask(f"vm_{verb}", vm="web-1")
    h1.carry_out(cast.command)
    vm = fleet.vm()
    assert (vm.vm_state, vm.task_state, vm.power_state) == (success, TaskState.NONE, power)
    assert fleet.job(job).state is JobState.SUCCEEDED
    again = fleet.ask(f"vm_{verb}", vm="web-1")
    assert (again["state"], fleet.publish()) == ("SUCCEEDED", []), "already there: no cast"


@pytest.mark.parametrize(("verb", "source"), [turn[:2] for turn in TURNS])
@pytest.mark.parametrize("seen", [P.RUNNING, P.PAUSED, P.SUSPENDED, P.SHUTOFF])
def test_a_verb_that_fails_leaves_the_vm_as_its_host_reports_it(
    fleet: Fleet, h1: ScriptedAgent, seen: PowerState, verb: str, source: VmState
) -> None:
    brought_into(fleet, h1, source)
    job = fleet.ask(f"vm_{verb}", vm="web-1")
    (cast,) = fleet.publish()
    h1.power(fleet.vm().uuid, seen)
    h1.fail(cast.command, look=h1.look(fleet.vm().uuid), error_code="HYPERVISOR_ERROR", error="no")
    fleet.pass_(INTERVAL_S + 1, h1)
    vm = fleet.vm()
    as_reported = {
        P.RUNNING: VmState.ACTIVE,
        P.SHUTOFF: VmState.SHUTOFF,
        P.PAUSED: VmState.PAUSED,
        P.SUSPENDED: VmState.SUSPENDED,
    }[seen]
    assert (vm.vm_state, vm.task_state, vm.power_state) == (as_reported, TaskState.NONE, seen)
    assert fleet.job(job).error_code == "HYPERVISOR_ERROR"


def test_a_suspended_vm_is_not_started_and_the_remedy_names_resume(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    brought_into(fleet, h1, VmState.SUSPENDED)
    before = fleet.everything()
    with pytest.raises(WrongState) as caught:
        fleet.ask("vm_start", vm="web-1")
    assert caught.value.remedy == "possible in: ERROR, SHUTOFF; here: muster vm resume web-1"
    assert fleet.everything() == before


@pytest.mark.parametrize(("verb", "slow"), [("pause", False), ("suspend", True)])
def test_what_moves_memory_has_the_time_of_a_create(
    fleet: Fleet, h1: ScriptedAgent, verb: str, slow: bool
) -> None:
    fleet.deploy(h1)
    job = fleet.ask(f"vm_{verb}", vm="web-1")
    cfg = fleet.cfg.manager
    timeout_s = cfg.create_timeout if slow else cfg.command_timeout
    assert fleet.one(CommandRow, job=job["uuid"]).timeout_s == timeout_s


def test_a_suspended_vm_is_deleted_by_its_agent(fleet: Fleet, h1: ScriptedAgent) -> None:
    brought_into(fleet, h1, VmState.SUSPENDED)
    fleet.delete()
    (cast,) = fleet.publish()
    assert cast.command.kind is m.CommandKind.TERMINATE_INSTANCE
    h1.carry_out(cast.command)
    assert fleet.vm().vm_state is VmState.DELETED


def test_only_what_asks_the_guest_first_can_be_forced(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1)
    with pytest.raises(BadRequest, match="force"):
        fleet.ask("vm_pause", vm="web-1", force=True)

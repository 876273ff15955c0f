"""Corners where two stories meet: a repeated delete and an owed one, a cancel and a fence."""

from __future__ import annotations

from collections.abc import Callable

from common import messages as m
from common.states import JobState, PowerState, TaskState, VmState
from manager.store.addresses import Mac
from manager.store.jobs import Job
from tests.functional.fleet import Fleet, ScriptedAgent


def of_kind(fleet: Fleet, kind: m.CommandKind, host: str = "h1") -> m.Command:
    """The last such command that is cast now."""
    found = [c.command for c in fleet.publish() if c.method == kind and c.host == host]
    return found[-1]


def test_3_8_a_delete_repeated_while_one_is_owed_ends_with_it(
    fleet_of: Callable[..., Fleet],
) -> None:
    fleet = fleet_of(delete_timeout=60.0)
    h1 = ScriptedAgent(fleet, "h1").up()
    vm = fleet.deploy(h1)
    fleet.deploy(h1, "web-2")
    h1.beat(full=True)
    first = fleet.delete()
    terminate = of_kind(fleet, m.CommandKind.TERMINATE_INSTANCE)
    fleet.pass_(70.0, h1)
    assert fleet.shown(first)["state"] == "FAILED"
    fleet.wire.take()
    again = fleet.delete()
    second = of_kind(fleet, m.CommandKind.TERMINATE_INSTANCE)
    stop = fleet.ask("vm_stop", vm="web-2")
    other = of_kind(fleet, m.CommandKind.STOP_VM)

    h1.carry_out(terminate)
    fleet.tick()
    assert fleet.row(type(vm), vm.uuid).vm_state is VmState.DELETED
    assert fleet.shown(again)["state"] == "SUCCEEDED"
    # What comes in one message with a late answer is not lost.
    h1.say(results=(h1.result(second), h1.result(other)))
    assert fleet.shown(stop)["state"] == "SUCCEEDED"
    fleet.pass_(100.0, h1)
    gone = fleet.row(type(vm), vm.uuid)
    assert (gone.vm_state, gone.deletion_owed) == (VmState.DELETED, False)
    assert not fleet.rows(Mac, mac=vm.mac)


def test_8_6_a_cancelled_create_is_not_tried_elsewhere_when_its_host_is_fenced(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    create = fleet.create("web-1")
    assert of_kind(fleet, m.CommandKind.START_VM)
    others = [ScriptedAgent(fleet, f"o-{n}").up() for n in range(2)]
    fleet.ask("job_cancel", job=create["uuid"])
    fleet.ask("host_fence", host="h1", reason="it burns")
    fleet.pass_(800.0, *others)
    assert fleet.shown(create)["state"] == "CANCELLED"
    assert fleet.vm().host is None
    assert not [c for c in fleet.publish() if c.method == m.CommandKind.START_VM]


def test_a_freeze_holds_back_a_stop_that_nobody_asked_for(fleet_of: Callable[..., Fleet]) -> None:
    fleet = fleet_of(on_unexpected_running="stop")
    h1 = ScriptedAgent(fleet, "h1").up()
    vm = fleet.deploy(h1)
    fleet.ask("vm_stop", vm="web-1")
    h1.carry_out(of_kind(fleet, m.CommandKind.STOP_VM))
    h1.beat(full=True)
    h1.power(vm.uuid, PowerState.RUNNING)
    h1.beat()
    assert of_kind(fleet, m.CommandKind.STOP_VM)  # lost with its agent
    h1.restart()
    fleet.ask("freeze", reason="what is this?")
    h1.hello()
    assert not [c for c in fleet.publish() if c.method == m.CommandKind.STOP_VM]


def test_3_a_delete_that_was_frozen_has_its_time_when_it_goes_on(
    fleet_of: Callable[..., Fleet],
) -> None:
    fleet = fleet_of(delete_timeout=60.0)
    h1, *others = (ScriptedAgent(fleet, name).up() for name in ("h1", "h2", "h3"))
    fleet.deploy(h1)
    h1.beat(full=True)
    fleet.pass_(100.0, *others)
    fleet.ask("freeze", reason="what is this?")
    delete = fleet.delete()
    assert "FROZEN" in delete["waiting_for"]
    fleet.pass_(300.0, *others)
    h1.hello()
    h1.beat(full=True)
    fleet.tick()
    assert fleet.shown(delete)["state"] == "RUNNING"
    h1.carry_out(of_kind(fleet, m.CommandKind.TERMINATE_INSTANCE))
    assert fleet.shown(delete)["state"] == "SUCCEEDED"


def test_2_1_a_host_is_fenced_anew_when_its_agent_has_spoken_since(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.ask("host_fence", host="h1", reason="it burns")
    h1.hello()
    assert h1.row.session_open
    fleet.ask("host_fence", host="h1", reason="now it does")
    assert not h1.row.session_open
    assert len(fleet.events("host.fenced")) == 2
    fleet.ask("host_fence", host="h1", reason="said already")
    assert len(fleet.events("host.fenced")) == 2


def test_8_6_a_late_look_does_not_place_a_vm_on_the_host_that_has_refused_it(
    fleet: Fleet, h2: ScriptedAgent
) -> None:
    create = fleet.create("web-1")
    start = of_kind(fleet, m.CommandKind.START_VM, "h2")
    late = h2.draw()  # of a look at the half-made guest, which is told after the result
    h2.fail(start, error_code="HYPERVISOR_ERROR", error="no", look=h2.look(start.instance))
    half = h2.ours(start.instance, generation=start.generation, power_state=PowerState.SHUTOFF)
    h2.beat(full=True, seq=late)
    del h2.guests[half]
    assert fleet.vm().host is None
    h1 = ScriptedAgent(fleet, "h1").up()
    fleet.tick()
    h1.carry_out(of_kind(fleet, m.CommandKind.START_VM))
    assert fleet.shown(create)["state"] == "SUCCEEDED"
    assert fleet.vm().task_state is TaskState.NONE
    assert not fleet.events("instance.taken_over")


def test_a_state_that_an_operator_sets_holds_until_the_host_reports(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    vm = fleet.deploy(h1)
    h1.power(vm.uuid, PowerState.PAUSED)
    h1.beat()
    fleet.pass_(40.0, h1)
    assert fleet.vm().vm_state is VmState.PAUSED
    fleet.ask("vm_set_state", vm="web-1", vm_state="ACTIVE", reason="it is looked at")
    fleet.pass_(40.0)
    assert fleet.vm().vm_state is VmState.ACTIVE
    assert all(job.state is not JobState.RUNNING for job in fleet.rows(Job))

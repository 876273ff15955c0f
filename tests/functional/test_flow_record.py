"""What an operator says of a VM's record: its state (section 6) and its protection (section 3)."""

from __future__ import annotations

import uuid

import pytest

from common.errors import BadRequest, NotFound, TaskUnderWay, VmProtected, WrongState
from common.states import PowerState, SettableState, TaskState, VmState
from manager.store.commands import CommandRow
from manager.store.events import Event
from tests.functional.fleet import Fleet, ScriptedAgent

STATES = list(SettableState)


def protect(fleet: Fleet, protected: bool = True, **kwargs: str) -> dict[str, object]:
    return fleet.ask("vm_set", vm="web-1", protected=protected, reason="payroll", **kwargs)


def set_state(fleet: Fleet, state: str, vm: str = "web-1", **kwargs: str) -> dict[str, object]:
    return fleet.ask("vm_set_state", vm=vm, vm_state=state, reason="I looked", **kwargs)


@pytest.mark.parametrize("state", STATES)
def test_a_vm_is_what_an_operator_says_and_nobody_is_asked(
    fleet: Fleet, h1: ScriptedAgent, state: SettableState
) -> None:
    vm = fleet.deploy(h1)
    before = len(fleet.rows(CommandRow))
    job = set_state(fleet, state)
    assert (job["kind"], job["state"]) == ("set-state", "SUCCEEDED")
    assert (fleet.publish(), len(fleet.rows(CommandRow))) == ([], before)
    now = fleet.vm()
    assert (now.vm_state, now.task_state, now.generation) == (state, TaskState.NONE, vm.generation)
    assert now.error == ("set by ann: I looked" if state is SettableState.ERROR else "")
    assert fleet.shown(job)["reason"][0][:2] == ["ann", "I looked"]


def test_an_event_tells_who_set_it_and_why(fleet: Fleet, h1: ScriptedAgent) -> None:
    vm = fleet.deploy(h1)
    job = set_state(fleet, "ERROR")
    event = fleet.one(Event, kind="instance.state")
    assert (event.object, event.source, event.data) == (vm.uuid, "ann", {"job": job["uuid"]})
    assert event.text == "web-1: ACTIVE -> ERROR; h1 last said RUNNING (I looked)"


def test_the_next_report_of_its_host_is_believed_again(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1)
    set_state(fleet, "SHUTOFF")
    h1.beat(full=True)
    assert fleet.vm().vm_state is VmState.ACTIVE


def test_a_request_that_comes_again_sets_nothing_again(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1)
    once = str(uuid.uuid4())
    set_state(fleet, "ERROR", job=once)
    set_state(fleet, "ACTIVE")
    assert set_state(fleet, "ERROR", job=once)["uuid"] == once
    assert fleet.vm().vm_state is VmState.ACTIVE


def test_nothing_is_set_while_a_task_is_under_way(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1)
    stop = fleet.ask("vm_stop", vm="web-1")
    before = fleet.everything()
    with pytest.raises(TaskUnderWay, match=stop["uuid"]):
        set_state(fleet, "ERROR")
    assert fleet.everything() == before


def test_a_vm_that_is_deleted_stays_deleted(fleet: Fleet, h1: ScriptedAgent) -> None:
    vm = fleet.deploy(h1)
    fleet.delete()
    (cast,) = fleet.publish()
    h1.carry_out(cast.command)
    for name in ("web-1", vm.uuid):
        with pytest.raises(WrongState, match="DELETED"):
            set_state(fleet, "ACTIVE", name)


def test_a_deletion_that_is_owed_stays_owed_and_is_done(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1)
    fleet.delete()
    fleet.publish()
    fleet.pass_(fleet.cfg.manager.delete_timeout + 20, h1)
    owed = fleet.vm()
    assert (owed.vm_state, owed.deletion_owed) == (VmState.ERROR, True)
    set_state(fleet, "ACTIVE")
    said = fleet.vm()
    assert (said.vm_state, said.deletion_owed, said.error) == (VmState.ACTIVE, True, owed.error)
    for verb in ("vm_stop", "vm_reboot", "vm_pause"):
        with pytest.raises(WrongState, match="owed a deletion"):
            fleet.ask(verb, vm="web-1")
    assert "DELETION_OWED" in {f["code"] for f in fleet.ask("doctor")["findings"]}
    h1.carry_out(fleet.publish()[-1].command)
    fleet.tick()
    assert fleet.vm().vm_state is VmState.DELETED


@pytest.mark.parametrize("state", ["SHUTOFF", "ERROR"])
def test_a_vm_whose_creation_has_failed_is_nothing_but_deleted(
    fleet: Fleet, h1: ScriptedAgent, state: str
) -> None:
    fleet.create(host="h1")
    (cast,) = fleet.publish()
    h1.fail(cast.command, look=h1.look(cast.command.instance))
    before = fleet.everything()
    with pytest.raises(WrongState, match="creation of web-1 has failed") as caught:
        set_state(fleet, state)
    assert "muster vm delete web-1" in caught.value.remedy
    assert fleet.everything() == before


@pytest.mark.parametrize("power", [PowerState.SUSPENDED, PowerState.PAUSED])
def test_a_vm_whose_guest_can_not_be_let_go_can_be_stopped_or_started_after_all(
    fleet: Fleet, h1: ScriptedAgent, power: PowerState
) -> None:
    vm = fleet.deploy(h1)
    fleet.ask("vm_suspend" if power is PowerState.SUSPENDED else "vm_pause", vm="web-1")
    (cast,) = fleet.publish()
    h1.carry_out(cast.command)
    set_state(fleet, "ERROR")
    h1.beat(full=True)
    assert (fleet.vm().vm_state, fleet.vm().power_state) == (VmState.ERROR, power)
    assert fleet.ask("vm_stop", vm=vm.uuid)["state"] == "RUNNING"


@pytest.mark.parametrize("state", ["DELETED", "BUILDING", "active", ""])
def test_only_some_states_can_be_set(fleet: Fleet, h1: ScriptedAgent, state: str) -> None:
    fleet.deploy(h1)
    with pytest.raises(BadRequest, match="vm_state") as caught:
        set_state(fleet, state)
    assert caught.value.remedy == "one of ACTIVE, SHUTOFF, PAUSED, SUSPENDED, ERROR"


@pytest.mark.parametrize("reason", [None, "", {}])
def test_a_reason_is_needed(fleet: Fleet, h1: ScriptedAgent, reason: object) -> None:
    fleet.deploy(h1)
    given = {} if reason == {} else {"reason": reason}
    with pytest.raises(BadRequest, match="reason"):
        fleet.ask("vm_set_state", vm="web-1", vm_state="ERROR", **given)
    assert fleet.vm().vm_state is VmState.ACTIVE


def test_a_vm_that_is_not_there_is_not_found(fleet: Fleet, h1: ScriptedAgent) -> None:
    with pytest.raises(NotFound):
        set_state(fleet, "ERROR")
    with pytest.raises(NotFound):
        protect(fleet)


# protection


@pytest.mark.parametrize("force", [False, True])
def test_a_protected_vm_is_not_deleted_until_it_is_not_protected_any_more(
    fleet: Fleet, h1: ScriptedAgent, force: bool
) -> None:
    fleet.deploy(h1)
    job = protect(fleet)
    assert (job["kind"], job["state"]) == ("set", "SUCCEEDED")
    assert fleet.ask("vm_show", vm="web-1")["protected"] is True
    (foreseen,) = fleet.delete(dry_run=True)["decisions"]
    assert (foreseen["decision"], foreseen["row"]) == ("refused", 2)
    before = fleet.everything()
    with pytest.raises(VmProtected) as caught:
        fleet.delete(force=force, reason="tidying up")
    assert caught.value.remedy.endswith("muster vm set web-1 --unprotected --reason TEXT")
    assert fleet.everything() == before
    protect(fleet, False)
    assert fleet.delete(force=force, reason="tidying up")["kind"] == "delete"


def test_who_protected_it_and_why_is_told(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1)
    protect(fleet)
    protect(fleet)
    assert {(e.source, e.text) for e in fleet.events("instance.protection")} == {
        ("ann", "web-1: protected from deletion (payroll)"),
        ("ann", "web-1: protected from deletion already (payroll)"),
    }
    assert fleet.publish() == []


def test_a_vm_is_protected_whatever_else_is_under_way(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1)
    fleet.ask("vm_stop", vm="web-1")
    (cast,) = fleet.publish()
    protect(fleet)
    h1.carry_out(cast.command)
    assert (fleet.vm().protected, fleet.vm().vm_state) == (True, VmState.SHUTOFF)


def test_once_its_delete_has_begun_it_is_too_late(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1)
    delete = fleet.delete()
    with pytest.raises(TaskUnderWay, match=delete["uuid"]):
        protect(fleet)
    fleet.publish()
    fleet.pass_(fleet.cfg.manager.delete_timeout + 20, h1)
    with pytest.raises(WrongState, match="owed a deletion"):
        protect(fleet)
    h1.carry_out(fleet.publish()[-1].command)
    fleet.tick()
    with pytest.raises(WrongState, match="DELETED"):
        protect(fleet)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"protected": "yes", "reason": "r"}, "protected"),
        ({"reason": "r"}, "protected"),
        ({"protected": True}, "reason"),
        ({"protected": True, "reason": ""}, "reason"),
    ],
)
def test_a_protection_without_its_fields_names_them(
    fleet: Fleet, h1: ScriptedAgent, asked: dict[str, object], field: str
) -> None:
    fleet.deploy(h1)
    with pytest.raises(BadRequest, match=field):
        fleet.ask("vm_set", vm="web-1", **asked)
    assert not fleet.vm().protected

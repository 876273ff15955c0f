"""Section 3 end to end: deletion converges, whatever its host does meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from common import messages as m
from common.errors import AlreadyDeleted, BadRequest, NotFound, VmProtected
from common.states import CommandState as C
from common.states import HostState, JobState, PowerState, TaskState, TombstoneState, VmState
from manager import ticks
from manager.store.addresses import Mac
from manager.store.commands import CommandRow
from manager.store.hosts import Host
from manager.store.instances import Instance
from manager.store.jobs import Job
from tests.functional.fleet import DOWN_S, INTERVAL_S, Fleet, ScriptedAgent, db_only, fall_silent

OPEN, CLOSED = TombstoneState.OPEN, TombstoneState.CLOSED
DELETE_TIMEOUT_S = 600.0


def terminate(fleet: Fleet, host: str = "h1") -> m.Command:
    (cast,) = [c for c in fleet.publish() if c.host == host]
    assert cast.method == "terminate_instance"
    return cast.command


def resent_terminate(fleet: Fleet, host: str = "h1") -> m.Command:
    """The one that went out again and again while nobody answered it."""
    casts = [c for c in fleet.publish() if c.host == host]
    assert {c.method for c in casts} == {"terminate_instance"}
    return casts[-1].command


# rows 1 to 4


def test_section3_row_1_an_unknown_vm_is_not_found(fleet: Fleet, h1: ScriptedAgent) -> None:
    for name in ("nobody", "11111111-0000-4000-8000-000000000001"):
        with pytest.raises(NotFound):
            fleet.delete(name)
    assert fleet.rows(Job) == []


def test_section3_row_1_a_deleted_vm_is_already_deleted_or_done_before(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    vm = fleet.deploy(h1)
    done = fleet.delete(force=True, reason="test")
    for name in ("web-1", vm.uuid):
        with pytest.raises(AlreadyDeleted):
            fleet.delete(name)
        assert fleet.delete(name, idempotent=True)["uuid"] == done["uuid"]


def test_section3_row_2_protection_refuses_and_changes_nothing(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.put(fleet.deploy(h1), protected=True)
    before = fleet.everything()
    for kwargs in ({}, {"force": True, "reason": "really"}):
        with pytest.raises(VmProtected):
            fleet.delete(**kwargs)
    assert fleet.everything() == before


def test_section3_row_3_two_deletes_are_one_job_with_two_watchers(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    fleet.clock.move(0.001)  # jobs are listed by their age
    uuids = [f"11111111-0000-4000-8000-00000000000{n}" for n in range(3)]
    first, second = (fleet.delete(job=u) for u in uuids[:2])
    assert first["uuid"] == second["uuid"] == uuids[0]
    assert len(h1.terminates()) == 1
    for uuid_ in uuids[:2]:
        assert fleet.shown({"uuid": uuid_})["state"] == "RUNNING"
    h1.carry_out(terminate(fleet))
    for uuid_ in uuids[:2]:
        assert fleet.shown({"uuid": uuid_})["state"] == "SUCCEEDED"
    assert [j["uuid"] for j in fleet.ask("job_list", all=True)["jobs"]][1:] == [uuids[0]]
    with pytest.raises(NotFound):
        fleet.shown({"uuid": uuids[2]})


def test_section3_row_3_a_repeat_when_the_host_is_down_goes_on_to_row_9(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    fleet.deploy(h1)
    job = fleet.delete()
    fleet.clock.move(DOWN_S + 1)
    for agent in others:
        agent.beat()
    fleet.put(h1.row, state=HostState.DOWN, session_open=False)
    assert fleet.delete()["uuid"] == job["uuid"]
    assert fleet.shown(job)["state"] == "SUCCEEDED"
    assert fleet.stone().state is OPEN


def test_section3_row_3_force_takes_a_delete_over(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1)
    job = fleet.delete(reason="first")
    over = fleet.delete(force=True, reason="now!")
    assert over["uuid"] == job["uuid"]
    shown = fleet.shown(job)
    assert shown["state"] == "SUCCEEDED"
    assert [entry[1] for entry in shown["reason"]] == ["first", "now!"]
    assert fleet.stone().state is OPEN


def test_section3_row_4_a_vm_on_no_host_is_deleted_at_once(fleet: Fleet, h1: ScriptedAgent) -> None:
    vm = fleet.deploy(h1)
    fleet.store.run(lambda tx: tx.delete_where(CommandRow))
    h1.lose(vm.uuid)
    h1.beat(full=True)
    fleet.put(fleet.vm(), host=None)
    assert fleet.delete()["state"] == "SUCCEEDED"
    assert fleet.row(Instance, vm.uuid).vm_state is VmState.DELETED
    assert fleet.stones() == []
    assert fleet.rows(Mac) == []


def test_force_needs_a_reason(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1)
    with pytest.raises(BadRequest, match="reason"):
        fleet.delete(force=True)


# row 6


def test_section3_row_6_a_host_whose_record_is_gone_is_db_only(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    vm = fleet.deploy(h1)
    fleet.store.run(lambda tx: tx.delete_where(Host))
    assert fleet.delete()["state"] == "SUCCEEDED"
    stone = fleet.stone()
    assert (stone.host, stone.instance, stone.state) == ("h1", vm.uuid, OPEN)
    assert fleet.one(Mac, mac=vm.mac).instance == vm.uuid


# row 7


def test_section3_row_7_blind_managers_do_not_go_on_to_db_only_and_say_why(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    fleet.hearing = False
    fleet.pass_(2 * DOWN_S)
    assert h1.row.blind
    job = fleet.delete()
    assert job["state"] == "RUNNING"
    assert "blind" in job["waiting_for"]
    fleet.pass_(3 * DOWN_S)
    assert fleet.shown(job)["state"] == "RUNNING"
    assert fleet.stones() == []
    assert any("blind" in n for n in fleet.ask("vm_list")["notices"])


def test_section3_row_7_mass_silence_suspends_until_hosts_are_named(
    fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    fleet.pass_(DOWN_S + INTERVAL_S)
    assert (h1.row.state, h1.row.mass_silent) == (HostState.SUSPECT, True)
    job = fleet.delete()
    fleet.pass_(DOWN_S)
    shown = fleet.shown(job)
    assert shown["state"] == "RUNNING"
    assert "mass silence" in shown["waiting_for"]
    assert any("mass silence" in n for n in fleet.ask("host_list")["notices"])
    fleet.ask("host_set_down", host="h1", reason="its rack burns")
    fleet.pass_(1)
    assert fleet.shown(job)["state"] == "SUCCEEDED"
    assert fleet.stone().state is OPEN


def test_section3_row_7_a_host_that_was_down_before_is_suspended_too(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    fleet.deploy(h1)
    fall_silent(fleet, h1, others)
    fleet.pass_(DOWN_S)
    assert h1.row.state is HostState.SUSPECT
    job = fleet.delete()
    fleet.pass_(DOWN_S)
    assert fleet.shown(job)["state"] == "RUNNING"
    fleet.pass_(2 * INTERVAL_S, *others)
    assert h1.row.state is HostState.SUSPECT
    assert fleet.shown(job)["state"] == "RUNNING"
    fleet.ask("host_set_down", host="h1", reason="it was dead before")
    fleet.pass_(1)
    assert fleet.shown(job)["state"] == "SUCCEEDED"


def test_section3_row_7_force_with_a_reason_takes_row_9(
    fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    fleet.pass_(DOWN_S + INTERVAL_S)
    job = fleet.delete(force=True, reason="I have looked")
    assert job["state"] == "SUCCEEDED"
    assert fleet.stone().state is OPEN


# row 8


def test_section3_row_8_remote_the_agent_answers_and_everything_is_given_back(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    vm = fleet.deploy(h1)
    job = fleet.delete(reason="old")
    held = fleet.vm()
    assert (held.task_state, held.job, held.vm_state) == (
        TaskState.DELETING,
        job["uuid"],
        VmState.ACTIVE,
    )
    assert len(fleet.events("instance.delete.start")) == 1
    assert fleet.events("instance.delete.end") == []
    command = terminate(fleet)
    assert command.generation > vm.generation
    h1.carry_out(command)
    gone = fleet.vm()
    assert (gone.vm_state, gone.task_state, gone.host, gone.last_host) == (
        VmState.DELETED,
        TaskState.NONE,
        None,
        "h1",
    )
    assert gone.terminated_at is not None
    assert fleet.shown(job)["state"] == "SUCCEEDED"
    stone = fleet.stone()
    assert (stone.state, stone.holds, stone.generation) == (CLOSED, (), command.generation)
    assert fleet.rows(Mac) == []
    assert len(fleet.events("instance.delete.end")) == 1
    assert fleet.ask("vm_list")["vms"] == []


def test_section3_row_8_suspect_is_remote_too(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1)
    fleet.pass_(3 * INTERVAL_S, ScriptedAgent(fleet, "h2").up())
    assert h1.row.state is HostState.SUSPECT
    assert fleet.delete()["state"] == "RUNNING"
    assert terminate(fleet).kind == "terminate_instance"


def test_section3_row_8_the_host_goes_down_and_the_delete_goes_on_as_row_9(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    fleet.deploy(h1)
    job = fleet.delete()
    terminate(fleet)
    fall_silent(fleet, h1, others)
    fleet.tick()
    assert fleet.shown(job)["state"] == "SUCCEEDED"
    assert fleet.stone().state is OPEN


def test_section3_row_8_up_again_and_nothing_came_it_is_sent_again_under_the_same_id(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    fleet.delete()
    first = terminate(fleet)
    fleet.pass_(3 * INTERVAL_S, ScriptedAgent(fleet, "h2").up())
    assert resent_terminate(fleet).id == first.id
    h1.restart().hello()
    again = terminate(fleet)
    assert (again.id, again.generation) == (first.id, first.generation)


def test_section3_row_8_a_failing_terminate_is_issued_again_above_it_with_back_off(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    job = fleet.delete()
    waits, before = [], fleet.clock.now()
    command = terminate(fleet)
    for _ in range(4):
        h1.fail(command, error="qemu is stuck")
        while not (casts := fleet.publish()):
            fleet.clock.move(0.5)
            h1.beat()
            fleet.tick()
        assert casts[0].command.generation > command.generation
        assert casts[0].command.id != command.id
        command = casts[0].command
        waits.append((fleet.clock.now() - before).total_seconds())
        before = fleet.clock.now()
    assert waits == sorted(waits)
    assert waits[-1] > 2 * waits[0]
    assert "qemu is stuck" in fleet.shown(job)["receipts"][0]["error"]
    h1.carry_out(command)
    assert fleet.shown(job)["state"] == "SUCCEEDED"
    assert fleet.stone().generation == command.generation


def test_section3_row_8_stale_command_raises_the_generation_and_does_not_wait(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    job = fleet.delete()
    h1.fail(terminate(fleet), error_code="STALE_COMMAND", error="below", floor=40)
    command = terminate(fleet)
    assert command.generation > 40
    h1.carry_out(command)
    assert fleet.shown(job)["state"] == "SUCCEEDED"


def owed(fleet: Fleet, h1: ScriptedAgent) -> dict[str, object]:
    """A delete that was given up: the host is UP, and its terminate fails again and again."""
    fleet.deploy(h1)
    h1.beat(full=True)
    job = fleet.delete()
    h1.fail(terminate(fleet), error="qemu is stuck")
    fleet.pass_(DELETE_TIMEOUT_S + 1, h1, step=20.0)
    return job


def test_section3_row_8_after_delete_timeout_the_deletion_is_owed(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    job = owed(fleet, h1)
    shown = fleet.shown(job)
    assert (shown["state"], shown["error_code"]) == ("FAILED", "DELETE_TIMEOUT")
    held = fleet.vm()
    assert (held.vm_state, held.task_state, held.deletion_owed) == (
        VmState.ERROR,
        TaskState.NONE,
        True,
    )
    assert "deletion owed" in held.error
    assert fleet.stone().state is OPEN
    assert "DELETION_OWED" in {f["code"] for f in fleet.ask("doctor")["findings"]}
    assert fleet.events("instance.delete.end") == []
    assert len(fleet.events("instance.delete.error")) == 1


def test_section3_row_8_an_owed_deletion_goes_on_and_ends_when_the_agent_answers(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    owed(fleet, h1)
    h1.beat(full=True)
    assert fleet.vm().deletion_owed
    command = resent_terminate(fleet)
    assert command.generation == max(c.generation for c in h1.terminates())
    h1.carry_out(command)
    fleet.tick()
    gone = fleet.vm()
    assert (gone.vm_state, gone.deletion_owed) == (VmState.DELETED, False)
    assert gone.terminated_at is not None
    assert fleet.stone().state is CLOSED
    assert fleet.rows(Mac) == []
    assert len(fleet.events("instance.delete.end")) == 1


def test_section3_row_1_a_vm_whose_owed_deletion_is_done_is_already_deleted(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    """The job that had given up did not delete it, and does not answer for it."""
    owed(fleet, h1)
    h1.beat(full=True)
    h1.carry_out(resent_terminate(fleet))
    fleet.tick()
    for idempotent in (True, False):
        with pytest.raises(AlreadyDeleted):
            fleet.delete(idempotent=idempotent)


def test_section3_row_8_an_owed_deletion_is_tried_again_while_it_fails(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    h1.beat(full=True)
    job = fleet.delete()
    while fleet.shown(job)["state"] == "RUNNING":
        for cast in fleet.publish():
            h1.fail(cast.command, error="qemu is stuck")
        fleet.pass_(20.0, h1, step=20.0)
    tries = len(h1.terminates())
    for _ in range(40):  # the back-off is at most five minutes
        for cast in fleet.publish():
            h1.fail(cast.command, error="qemu is stuck")
        fleet.pass_(20.0, h1, step=20.0)
    assert len(h1.terminates()) >= tries + 2
    assert fleet.vm().deletion_owed


def test_section3_row_8_a_running_guest_does_not_end_an_owed_deletion(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    owed(fleet, h1)
    h1.change(fleet.vm().uuid, power_state=PowerState.PAUSED)
    h1.beat(full=True)
    h1.change(fleet.vm().uuid, power_state=PowerState.RUNNING)
    h1.beat(full=True)
    assert (fleet.vm().vm_state, fleet.vm().deletion_owed) == (VmState.ERROR, True)


def test_section3_row_8_an_owed_deletion_ends_db_only_when_its_host_goes_down(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    owed(fleet, h1)
    fleet.pass_(INTERVAL_S, h1, *others)
    fall_silent(fleet, h1, others)
    fleet.tick()
    assert fleet.vm().vm_state is VmState.DELETED
    assert fleet.vm().terminated_at is None
    assert fleet.stone().state is OPEN


def test_section3_row_8_an_owed_deletion_follows_the_vm_to_every_host_that_shows_it(
    fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent
) -> None:
    owed(fleet, h1)
    h2.restart().hello()
    h2.ours(fleet.vm().uuid, name="web-1")
    h2.beat(full=True)
    fleet.tick()
    casts = {c.host: c.command for c in fleet.publish()}
    assert set(casts) == {"h1", "h2"}
    h1.carry_out(casts["h1"])
    fleet.tick()
    assert fleet.vm().deletion_owed
    h2.carry_out(casts["h2"])
    fleet.tick()
    assert fleet.vm().vm_state is VmState.DELETED
    assert {s.state for s in fleet.stones()} == {CLOSED}


def test_an_owed_deletion_can_be_asked_for_again(fleet: Fleet, h1: ScriptedAgent) -> None:
    owed(fleet, h1)
    job = fleet.delete()
    while fleet.shown(job)["state"] == "RUNNING":
        for cast in fleet.publish():
            h1.carry_out(cast.command)
        fleet.pass_(5, h1)
    assert fleet.shown(job)["state"] == "SUCCEEDED"
    assert fleet.stone().state is CLOSED


def test_section3_row_8_force_takes_row_9(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1)
    assert fleet.delete(force=True, reason="now")["state"] == "SUCCEEDED"
    stone = fleet.stone()
    assert stone.state is OPEN
    assert "forced" in stone.reason


# row 9 and the tombstone


def test_section3_row_9_db_only_leaves_a_tombstone_and_quarantines(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    vm = db_only(fleet, h1, others)
    gone = fleet.vm()
    assert (gone.vm_state, gone.host, gone.last_host) == (VmState.DELETED, None, "h1")
    assert gone.terminated_at is None
    stone = fleet.stone()
    assert (stone.host, stone.instance, stone.state) == ("h1", vm.uuid, OPEN)
    assert stone.generation >= vm.generation
    assert set(stone.holds) == {"mac", "address", "disk"}
    assert "DOWN" in stone.reason
    assert fleet.one(Mac, mac=vm.mac).instance == vm.uuid
    (shown,) = fleet.ask("tombstone_list", state="open")["tombstones"]
    assert f"mac {vm.mac}" in shown["holds"]
    assert "TOMBSTONE_OPEN" in {f["code"] for f in fleet.ask("doctor")["findings"]}


def test_section3_row_9_its_address_is_given_to_nobody_until_the_guest_is_proven_gone(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    vm = db_only(fleet, h1, others)
    number = int(vm.mac.replace(":", "")[6:], 16)
    draws = iter([number, number, number + 1, number])
    fleet.clock.random_below = lambda _limit: next(draws)  # type: ignore[method-assign]
    other = fleet.row(Instance, fleet.create("other", host="other-0")["instance"])
    assert other.mac != vm.mac
    h1.restart().hello()
    reap = next(c for c in fleet.publish() if c.host == "h1")
    h1.carry_out(reap.command)
    assert fleet.rows(Mac, mac=vm.mac) == []
    reused = fleet.row(Instance, fleet.create("reused", host="other-0")["instance"])
    assert reused.mac == vm.mac


def test_the_return_reaps_at_hello_within_the_session_it_opens(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    vm = db_only(fleet, h1, others)
    before = fleet.stone().generation
    welcome = h1.restart().hello()
    command = terminate(fleet)
    assert (command.instance, command.session) == (vm.uuid, welcome.session)
    assert command.generation > before
    stone = fleet.stone()
    assert (stone.generation, stone.state) == (command.generation, OPEN)
    assert [stone.instance for stone in welcome.tombstones] == [vm.uuid]
    assert "said hello" in command.trail[-1].text
    h1.carry_out(command)
    closed = fleet.stone()
    assert (closed.state, closed.holds) == (CLOSED, ())
    assert fleet.vm().terminated_at == fleet.clock.now()
    assert fleet.rows(Mac) == []


@pytest.mark.parametrize("full", [True, False])
def test_a_doomed_vm_in_any_report_is_terminated_then_and_there(
    fleet: Fleet, h1: ScriptedAgent, full: bool
) -> None:
    vm = fleet.deploy(h1)
    h1.beat(full=True)
    fleet.delete(force=True, reason="test")
    assert fleet.publish() == []
    h1.change(vm.uuid, vcpus=2)
    h1.beat(full=full)
    command = terminate(fleet)
    assert command.instance == vm.uuid
    h1.beat(full=True)
    assert fleet.publish() == []  # one is on its way
    h1.carry_out(command)
    assert fleet.stone().state is CLOSED


def test_only_the_answer_closes_a_tombstone_absence_does_not(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    vm = db_only(fleet, h1, others)
    h1.restart().hello()
    terminate(fleet)
    h1.lose(vm.uuid)
    for _ in range(5):
        fleet.pass_(INTERVAL_S, h1, *others)
    h1.beat(full=True)
    assert fleet.stone().state is OPEN


def test_not_there_with_the_floor_raised_closes_it_too(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    vm = db_only(fleet, h1, others)
    h1.lose(vm.uuid)
    h1.restart().hello()
    h1.succeed(terminate(fleet))
    assert fleet.stone().state is CLOSED


def test_a_failing_reap_is_issued_again_above_it_with_back_off(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    db_only(fleet, h1, others)
    h1.restart().hello()
    command = terminate(fleet)
    h1.fail(command, error="qemu is stuck")
    assert "qemu is stuck" in fleet.stone().answer
    fleet.tick()
    assert fleet.publish() == []
    fleet.pass_(2, h1, *others)
    again = terminate(fleet)
    assert again.generation > command.generation
    assert fleet.stone().generation == again.generation
    h1.carry_out(again)
    assert fleet.stone().state is CLOSED


def test_stale_command_names_the_floor_and_the_reap_goes_above_it(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    db_only(fleet, h1, others)
    h1.restart().hello()
    h1.fail(terminate(fleet), error_code="STALE_COMMAND", error="below", floor=40)
    fleet.tick()
    again = terminate(fleet)
    assert again.generation > 40
    assert fleet.stone().generation == again.generation


def test_a_failing_reap_of_a_host_that_went_away_waits_for_its_next_hello(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    db_only(fleet, h1, others)
    h1.restart().hello()
    h1.fail(terminate(fleet))
    fall_silent(fleet, h1, others)
    fleet.wire.take()
    fleet.pass_(5 * DOWN_S, *others, step=20.0)
    assert fleet.publish() == []
    assert fleet.stone().state is OPEN
    h1.restart().hello()
    assert terminate(fleet).kind == "terminate_instance"


def reaped(fleet: Fleet, h1: ScriptedAgent) -> tuple[Instance, m.GuestReport]:
    """A VM whose tombstone is closed, and the guest that was destroyed."""
    vm = fleet.deploy(h1)
    h1.beat(full=True)
    guest = h1.of(vm.uuid)
    fleet.delete()
    h1.carry_out(terminate(fleet))
    h1.beat(full=True)
    assert fleet.stone().state is CLOSED
    return vm, guest


def test_a_newer_sighting_opens_it_again_and_terminates(fleet: Fleet, h1: ScriptedAgent) -> None:
    vm, guest = reaped(fleet, h1)
    h1.guests[guest.hypervisor_uuid] = guest
    h1.beat()
    stone = fleet.stone()
    assert (stone.state, set(stone.holds)) == (OPEN, {"mac", "address", "disk"})
    assert fleet.one(Mac, mac=vm.mac).instance == vm.uuid
    assert len(fleet.events("tombstone.reopened")) == 1
    h1.carry_out(terminate(fleet))
    assert fleet.stone().state is CLOSED
    assert fleet.rows(Mac) == []


def test_an_older_sighting_does_not_open_it_again(fleet: Fleet, h1: ScriptedAgent) -> None:
    vm = fleet.deploy(h1)
    late = h1.heartbeat(full=True)
    fleet.delete()
    h1.carry_out(terminate(fleet))
    h1.send(late)
    assert fleet.stone().state is CLOSED
    assert fleet.publish() == []
    assert fleet.row(Instance, vm.uuid).vm_state is VmState.DELETED


def test_an_address_that_was_given_away_meanwhile_is_an_alarm(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    vm, guest = reaped(fleet, h1)
    number = int(vm.mac.replace(":", "")[6:], 16)
    fleet.clock.random_below = lambda _limit: number  # type: ignore[method-assign]
    heir = fleet.row(Instance, fleet.create("heir")["instance"])
    assert heir.mac == vm.mac
    h1.guests[guest.hypervisor_uuid] = guest
    h1.beat()
    (alarm,) = fleet.events("ADDRESS_CONFLICT")
    assert vm.mac in alarm.text
    assert heir.uuid in alarm.text
    assert fleet.one(Mac, mac=vm.mac).instance == heir.uuid
    codes = {f["code"]: f["level"] for f in fleet.ask("doctor")["findings"]}
    assert codes["ADDRESS_CONFLICT"] == "ERROR"


def test_a_tombstone_outlives_the_record_and_still_reaps(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    vm = db_only(fleet, h1, others)
    fleet.clock.move(2 * 86400)
    ticks.tidy(fleet.store, fleet.cfg)
    assert fleet.rows(Instance) == []
    h1.restart().hello()
    command = terminate(fleet)
    assert command.generation > vm.generation
    h1.carry_out(command)
    assert fleet.stone().state is CLOSED
    assert fleet.rows(Mac) == []


def test_the_terminate_that_was_under_way_closes_the_tombstone_of_row_9(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    fleet.deploy(h1)
    job = fleet.delete()
    command = terminate(fleet)
    fall_silent(fleet, h1, others)
    fleet.tick()
    assert fleet.shown(job)["state"] == "SUCCEEDED"
    h1.session = None
    h1.carry_out(command)
    assert fleet.stone().state is CLOSED
    assert fleet.vm().terminated_at == fleet.clock.now()


# a delete while something else is under way


def test_a_delete_before_the_create_was_published_withdraws_it(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    h1.end_session()
    create = fleet.create(host="h1")
    job = fleet.delete()
    shown = fleet.shown(create)
    assert (shown["state"], shown["error_code"]) == ("CANCELLED", "SUPERSEDED")
    assert [c.state for c in h1.commands("start_vm")] == [C.NOT_RUN]
    assert fleet.publish() == []
    h1.hello()
    h1.succeed(terminate(fleet))
    assert fleet.shown(job)["state"] == "SUCCEEDED"
    assert fleet.rows(Mac) == []


def test_a_delete_after_the_create_was_published_goes_above_it(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    create = fleet.create(host="h1")
    (start,) = fleet.publish()
    job = fleet.delete()
    command = terminate(fleet)
    assert command.generation > start.command.generation
    h1.succeed(command)
    assert fleet.shown(job)["state"] == "SUCCEEDED"
    shown = fleet.shown(create)
    assert (shown["state"], shown["error_code"]) == ("CANCELLED", "SUPERSEDED")


@pytest.mark.parametrize("start_wins", [True, False])
def test_a_create_that_ends_while_its_vm_is_deleted_changes_nothing_of_the_delete(
    fleet: Fleet, h1: ScriptedAgent, start_wins: bool
) -> None:
    create = fleet.create(host="h1")
    (start,) = fleet.publish()
    job = fleet.delete()
    if start_wins:
        h1.carry_out(start.command)
    else:
        superseded = {"error_code": "STALE_COMMAND", "error": "a delete came first"}
        h1.say(results=(h1.result(start.command, m.Outcome.NOT_RUN, **superseded),))
    assert fleet.shown(create)["state"] == ("SUCCEEDED" if start_wins else "CANCELLED")
    assert fleet.vm().task_state is TaskState.DELETING
    h1.carry_out(terminate(fleet))
    assert fleet.shown(job)["state"] == "SUCCEEDED"
    assert fleet.vm().vm_state is VmState.DELETED


@pytest.mark.parametrize("sent", [True, False])
def test_a_delete_during_a_stop_takes_the_task_over(
    fleet: Fleet, h1: ScriptedAgent, sent: bool
) -> None:
    """A stop that was sent may have run: it is over when the terminate above it is answered."""
    fleet.deploy(h1)
    if not sent:
        h1.end_session()
    stop = fleet.ask("vm_stop", vm="web-1")
    assert [c.method for c in fleet.publish()] == (["stop_vm"] if sent else [])
    job = fleet.delete()
    assert fleet.vm().job == job["uuid"]
    assert fleet.shown(stop)["state"] == ("RUNNING" if sent else "CANCELLED")
    if not sent:
        h1.hello()
    h1.carry_out(terminate(fleet))
    assert fleet.shown(job)["state"] == "SUCCEEDED"
    shown = fleet.shown(stop)
    assert (shown["state"], shown["error_code"]) == ("CANCELLED", "SUPERSEDED")


def test_a_create_that_was_db_only_deleted_can_never_run_after_all(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    fleet.create(host="h1")
    (start,) = fleet.publish()
    h1.receipt(start.command.id)
    fall_silent(fleet, h1, others)
    fleet.delete()
    assert h1.restart().hello(unfinished=(start.command.id,)).wanted == ()
    command = terminate(fleet)
    assert command.generation > start.command.generation


# every host where it may be


def in_two_places(fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent) -> Instance:
    vm = fleet.deploy(h1)
    h2.ours(vm.uuid, name="web-1", generation=vm.generation)
    h2.beat(full=True)
    return vm


def test_a_vm_seen_on_two_hosts_is_terminated_on_both(
    fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent
) -> None:
    vm = in_two_places(fleet, h1, h2)
    job = fleet.delete()
    casts = {c.host: c.command for c in fleet.publish()}
    assert set(casts) == {"h1", "h2"}
    h1.carry_out(casts["h1"])
    assert fleet.shown(job)["state"] == "RUNNING"
    assert fleet.vm().vm_state is VmState.ACTIVE
    assert fleet.rows(Mac, mac=vm.mac) != []
    h2.carry_out(casts["h2"])
    assert fleet.shown(job)["state"] == "SUCCEEDED"
    assert {(s.host, s.state) for s in fleet.stones()} == {("h1", CLOSED), ("h2", CLOSED)}
    assert fleet.rows(Mac) == []


def test_one_host_up_and_one_down_each_gets_its_own_row(
    fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    vm = in_two_places(fleet, h1, h2)
    fall_silent(fleet, h2, [h1, *others])
    job = fleet.delete()
    h1.carry_out(terminate(fleet, "h1"))
    assert fleet.shown(job)["state"] == "SUCCEEDED"
    assert {(s.host, s.state) for s in fleet.stones()} == {("h1", CLOSED), ("h2", OPEN)}
    # The address is held by the one that is open.
    assert fleet.one(Mac, mac=vm.mac).instance == vm.uuid
    assert fleet.vm().terminated_at is None
    h2.restart().hello()
    h2.carry_out(terminate(fleet, "h2"))
    assert fleet.rows(Mac) == []
    assert fleet.vm().terminated_at is not None


# --dry-run


def test_a_dry_run_names_row_and_reason_and_changes_nothing(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    fleet.deploy(h1)

    def foreseen(**kwargs: object) -> tuple[int, str]:
        before = fleet.everything()
        (found,) = fleet.delete(dry_run=True, **kwargs)["decisions"]
        assert fleet.everything() == before
        return found["row"], found["decision"]

    assert foreseen() == (8, "remote")
    fleet.put(fleet.vm(), protected=True)
    assert foreseen() == (2, "refused")
    fleet.put(fleet.vm(), protected=False)
    assert foreseen(force=True, reason="x") == (9, "DB-only")
    fall_silent(fleet, h1, others)
    assert foreseen() == (9, "DB-only")


def test_set_down_lets_waiting_deletes_go_on_and_unset_down_does_not_bring_vms_back(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    fleet.deploy(h1)
    fleet.deploy(h1, "web-2")
    job = fleet.delete()
    (decision, _) = fleet.ask("host_set_down", host="h1", reason="smoke", dry_run=True)["decisions"]
    assert (decision["row"], decision["decision"]) == (9, "DB-only")
    assert h1.row.state is HostState.UP
    fleet.ask("host_set_down", host="h1", reason="smoke")
    fleet.tick()
    assert fleet.shown(job)["state"] == "SUCCEEDED"
    fleet.ask("host_unset_down", host="h1")
    assert fleet.vm().vm_state is VmState.DELETED
    assert fleet.vm("web-2").vm_state is VmState.ACTIVE


def test_no_job_is_ever_left_open_by_a_delete(
    fleet_of: Callable[..., Fleet],
) -> None:
    fleet = fleet_of(delete_timeout=60.0)
    h1 = ScriptedAgent(fleet).up()
    fleet.deploy(h1)
    fleet.ask("vm_stop", vm="web-1")
    fleet.delete()
    # The agent never says what became of the stop: it is asked for ten times its limit.
    fleet.pass_(11 * fleet.cfg.manager.command_timeout, h1, step=20.0)
    assert {j.state for j in fleet.rows(Job)} <= {
        JobState.SUCCEEDED,
        JobState.FAILED,
        JobState.CANCELLED,
    }

"""Another size for a VM, until it is confirmed or reverted (tables, sections 3, 6 and 8)."""

from __future__ import annotations

from typing import Any

import pytest

from common import messages as m
from common.errors import BadRequest, NoValidHost, QuotaExceeded, TaskUnderWay, WrongState
from common.states import JobState, PowerState, TaskState, VmState
from manager.flows import limits
from manager.store.engine import Tx
from manager.store.instances import Phase
from manager.store.model import Use
from manager.store.volumes import Volume
from tests.functional.fleet import DOWN_S, INTERVAL_S, Fleet, ScriptedAgent
from tests.functional.zone import ZONE, deploy, make, started

P = PowerState
POOL = {"name": "near", "scope": "host", "host": "h1", "path": "/near", "capacity_gib": 10}


def cast(fleet: Fleet) -> m.Command:
    """The one command that was cast since the last look."""
    (only,) = fleet.publish()
    return only.command


def resized(fleet: Fleet, h1: ScriptedAgent, **size: Any) -> None:
    """web-1 waits to be confirmed or reverted."""
    fleet.ask("vm_resize", vm="web-1", **(size or {"vcpus": 2, "memory_mib": 512}))
    h1.carry_out(cast(fleet))
    assert fleet.vm().vm_state is VmState.RESIZED
    fleet.wire.take()


def claims(fleet: Fleet, host: str = "h1") -> tuple[int, int]:
    row = fleet.host(host)
    return row.vcpus_claimed, row.memory_mib_claimed


def used(fleet: Fleet) -> dict[str, int]:
    def count(tx: Tx) -> dict[str, int]:
        return limits.usage(tx, "default")

    found: dict[str, int] = fleet.store.run(count)
    return {name: found[name] for name in ("vcpus", "memory_mib", "storage_gib")}


@pytest.fixture
def zoned(fleet: Fleet) -> ScriptedAgent:
    """A host of a zone, with a pool and web-1: of offering small, a root disk of 5 GiB."""
    make(fleet, **ZONE)
    make(fleet, pools=[POOL])
    h1 = ScriptedAgent(fleet, "h1").up()
    deploy(fleet)
    h1.carry_out(started(fleet))
    ScriptedAgent(fleet, "h2").up()
    return h1


# what is accepted


@pytest.mark.parametrize("power", [P.RUNNING, P.SHUTOFF])
def test_a_resize_holds_the_larger_of_both_sizes_until_it_is_confirmed(
    fleet: Fleet, h1: ScriptedAgent, power: PowerState
) -> None:
    fleet.deploy(h1)
    if power is P.SHUTOFF:
        fleet.ask("vm_stop", vm="web-1")
        h1.carry_out(cast(fleet))
    before = fleet.vm().vm_state
    job = fleet.ask("vm_resize", vm="web-1", vcpus=2, memory_mib=128)
    vm = fleet.vm()
    assert (vm.vm_state, vm.task_state, vm.job) == (before, TaskState.RESIZING, job["uuid"])
    assert claims(fleet) == (vm.vcpus, vm.memory_mib) == (2, 256)
    command = cast(fleet)
    assert command.kind is m.CommandKind.RESIZE_VM
    assert command.timeout_s == fleet.cfg.manager.create_timeout
    assert command.spec["on"] is (power is P.RUNNING)
    assert (command.spec["guest"]["vcpus"], command.spec["guest"]["memory_mib"]) == (2, 128)
    h1.carry_out(command)
    vm = fleet.vm()
    assert (vm.vm_state, vm.task_state, vm.power_state) == (VmState.RESIZED, TaskState.NONE, power)
    assert fleet.job(job).state is JobState.SUCCEEDED
    assert claims(fleet) == (2, 256)
    shown = fleet.ask("vm_show", vm="web-1")
    assert (shown["vcpus"], shown["memory_mib"], shown["resize"]["phase"]) == (2, 128, "resized")

    confirm = fleet.ask("vm_confirm_resize", vm="web-1")
    command = cast(fleet)
    assert command.kind is m.CommandKind.CONFIRM_RESIZE
    h1.carry_out(command)
    vm = fleet.vm()
    assert (vm.vm_state, vm.power_state, vm.resize) == (before, power, None)
    assert claims(fleet) == (vm.vcpus, vm.memory_mib) == (2, 128)
    assert used(fleet) == {"vcpus": 2, "memory_mib": 128, "storage_gib": 0}
    assert fleet.job(confirm).state is JobState.SUCCEEDED


@pytest.mark.parametrize("power", [P.RUNNING, P.SHUTOFF])
def test_a_revert_gives_back_what_the_new_size_had_claimed(
    fleet: Fleet, zoned: ScriptedAgent, power: PowerState
) -> None:
    if power is P.SHUTOFF:
        fleet.ask("vm_stop", vm="web-1")
        zoned.carry_out(cast(fleet))
    before, spec = fleet.vm().vm_state, fleet.vm().spec
    resized(fleet, zoned, offering="open", vcpus=4, memory_mib=1024, root_gib=8)
    assert claims(fleet) == (4, 1024)
    assert used(fleet) == {"vcpus": 4, "memory_mib": 1024, "storage_gib": 8}
    assert {use.name for use in fleet.rows(Use) if use.kind == "offering"} == {"small", "open"}
    fleet.ask("vm_revert_resize", vm="web-1")
    command = cast(fleet)
    assert (command.kind, command.spec["guest"]) == (m.CommandKind.REVERT_RESIZE, spec)
    zoned.carry_out(command)
    vm = fleet.vm()
    assert (vm.vm_state, vm.power_state, vm.spec, vm.resize) == (before, power, spec, None)
    assert claims(fleet) == (1, 256)
    assert used(fleet) == {"vcpus": 1, "memory_mib": 256, "storage_gib": 5}
    assert {use.name for use in fleet.rows(Use) if use.kind == "offering"} == {"small"}


def test_a_confirmed_vm_has_its_new_offering_and_disk(fleet: Fleet, zoned: ScriptedAgent) -> None:
    resized(fleet, zoned, offering="open", vcpus=2, memory_mib=512, root_gib=7)
    fleet.ask("vm_confirm_resize", vm="web-1")
    zoned.carry_out(cast(fleet))
    vm = fleet.vm()
    assert (vm.spec["disks"][0]["size_gib"], vm.wishes.disks[0].size_gib) == (7, 7)
    assert fleet.row(Volume, vm.uuid, 0).size_gib == 7
    assert {use.name for use in fleet.rows(Use) if use.kind == "offering"} == {"open"}


def test_what_is_not_asked_for_stays(fleet: Fleet, zoned: ScriptedAgent) -> None:
    resized(fleet, zoned, root_gib=6)
    spec = fleet.vm().spec
    assert (spec["vcpus"], spec["memory_mib"], spec["disks"][0]["size_gib"]) == (1, 256, 6)
    assert {use.name for use in fleet.rows(Use) if use.kind == "offering"} == {"small"}


def test_a_size_that_it_has_already_is_success_without_a_cast(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    again = fleet.ask("vm_resize", vm="web-1", vcpus=1)
    assert (again["state"], fleet.publish()) == ("SUCCEEDED", [])
    assert fleet.vm().vm_state is VmState.ACTIVE


# what is refused, with nothing held


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({}, "offering"),
        ({"offering": "none-such"}, "offering"),
        ({"offering": "small", "vcpus": 2}, "vcpus"),
        ({"offering": "open", "vcpus": 5, "memory_mib": 128}, "vcpus"),
        ({"offering": "open", "vcpus": 1}, "memory_mib"),
        ({"root_gib": 4}, "root_gib"),
        ({"offering": "tiny"}, "offering"),
        ({"vcpus": 0}, "vcpus"),
    ],
)
def test_a_wrong_field_is_named(
    fleet: Fleet, zoned: ScriptedAgent, asked: dict[str, Any], field: str
) -> None:
    make(fleet, offerings=[{"name": "tiny", "vcpus": 1, "memory_mib": 128, "root_gib": 3}])
    before = fleet.everything()
    with pytest.raises(BadRequest) as caught:
        fleet.ask("vm_resize", vm="web-1", **asked)
    assert caught.value.data["field"] == field
    assert fleet.everything() == before


def test_a_vm_without_a_disk_of_its_own_has_none_to_grow(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1)
    with pytest.raises(BadRequest, match="root_gib: it has no disk"):
        fleet.ask("vm_resize", vm="web-1", root_gib=4)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"memory_mib": 4097}, "has 4096 MiB free of 4097 wanted"),
        ({"vcpus": 512, "memory_mib": 300}, ""),
        ({"root_gib": 11}, "has 10 GiB free in pool near of 11 wanted"),
        ({"offering": "picky"}, "lacks tag fast"),
    ],
)
def test_what_its_host_can_not_hold_is_refused_with_the_reason(
    fleet: Fleet, zoned: ScriptedAgent, asked: dict[str, Any], words: str
) -> None:
    make(
        fleet,
        offerings=[{"name": "picky", "vcpus": 1, "memory_mib": 256, "host_tags": ["fast"]}],
    )
    if not words:
        fleet.ask("vm_resize", vm="web-1", **asked)  # 64 CPUs, overcommitted 16 times
        return
    before, held = fleet.everything(), claims(fleet)
    with pytest.raises(NoValidHost) as caught:
        fleet.ask("vm_resize", vm="web-1", **asked)
    assert words in caught.value.message
    assert words in caught.value.data["hosts"]["h1"]
    assert "what web-1 was is kept" in caught.value.data["hosts"]["h2"], "of its cluster"
    assert (fleet.everything(), claims(fleet)) == (before, held)


def test_a_vm_shrinks_on_a_host_that_is_full_or_closed(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1)
    fleet.put(fleet.host(), memory_mib_total=100, enabled=False)
    resized(fleet, h1, memory_mib=128)
    fleet.ask("vm_revert_resize", vm="web-1")
    h1.carry_out(cast(fleet))
    assert claims(fleet) == (1, 256)


def test_what_is_used_by_its_own_guest_is_not_counted_twice(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    h1.beat(capacity_mib=500)
    resized(fleet, h1, memory_mib=500)


def test_a_limit_counts_only_what_is_added(fleet: Fleet, zoned: ScriptedAgent) -> None:
    make(fleet, projects=[{"name": "default", "memory_mib": 300, "vcpus": 1}])
    before = fleet.everything()
    with pytest.raises(QuotaExceeded, match="memory_mib"):
        fleet.ask("vm_resize", vm="web-1", memory_mib=301)
    assert fleet.everything() == before
    make(fleet, projects=[{"name": "default", "memory_mib": 100, "vcpus": 1}])
    resized(fleet, zoned, root_gib=6)  # over the limit of memory already, and no more of it


@pytest.mark.parametrize("verb", ["vm_start", "vm_stop", "vm_reboot", "vm_pause", "vm_resize"])
def test_a_resized_vm_is_confirmed_or_reverted_before_anything_else(
    fleet: Fleet, h1: ScriptedAgent, verb: str
) -> None:
    fleet.deploy(h1)
    resized(fleet, h1)
    asked = {"vcpus": 3} if verb == "vm_resize" else {}
    with pytest.raises(WrongState) as caught:
        fleet.ask(verb, vm="web-1", **asked)
    assert "muster vm confirm-resize web-1, or revert-resize" in caught.value.remedy


def test_of_a_confirm_and_a_revert_at_once_the_first_is_carried_out(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    resized(fleet, h1)
    job = fleet.ask("vm_confirm_resize", vm="web-1")
    with pytest.raises(TaskUnderWay, match=job["uuid"]):
        fleet.ask("vm_revert_resize", vm="web-1")
    again = fleet.ask("vm_confirm_resize", vm="web-1", job=job["uuid"])
    assert again["uuid"] == job["uuid"]
    h1.carry_out(cast(fleet))
    with pytest.raises(WrongState, match="ACTIVE"):
        fleet.ask("vm_revert_resize", vm="web-1")


# how it fails


@pytest.mark.parametrize("seen", [P.RUNNING, P.SHUTOFF])
def test_a_resize_that_fails_is_undone_and_the_vm_is_as_its_host_reports_it(
    fleet: Fleet, zoned: ScriptedAgent, seen: PowerState
) -> None:
    job = fleet.ask("vm_resize", vm="web-1", memory_mib=512, root_gib=7)
    command = cast(fleet)
    uuid = fleet.vm().uuid
    zoned.power(uuid, seen)
    zoned.fail(command, look=zoned.look(uuid), error_code="HYPERVISOR_ERROR", error="no room")
    assert fleet.job(job).state is JobState.RUNNING
    assert fleet.vm().task_state is TaskState.RESIZING
    undo = cast(fleet)
    assert undo.kind is m.CommandKind.REVERT_RESIZE
    zoned.succeed(undo, look=zoned.look(uuid))
    done, vm = fleet.job(job), fleet.vm()
    assert (done.state, done.error_code, done.error) == (
        JobState.FAILED,
        "HYPERVISOR_ERROR",
        "no room",
    )
    state = VmState.ACTIVE if seen is P.RUNNING else VmState.SHUTOFF
    assert (vm.vm_state, vm.task_state, vm.resize) == (state, TaskState.NONE, None)
    assert claims(fleet) == (1, 256)
    assert used(fleet) == {"vcpus": 1, "memory_mib": 256, "storage_gib": 5}


def test_a_resize_that_was_never_sent_is_withdrawn(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1)
    h1.end_session()
    job = fleet.ask("vm_resize", vm="web-1", memory_mib=512)
    fleet.ask("job_cancel", job=job["uuid"], operator="ann", reason="no")
    vm = fleet.vm()
    assert (vm.vm_state, vm.resize, fleet.job(job).state) == (
        VmState.ACTIVE,
        None,
        JobState.CANCELLED,
    )
    assert claims(fleet) == (1, 256)


def test_a_resize_whose_host_is_lost_is_undone_by_the_managers_when_it_is_back(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    fleet.deploy(h1)
    job = fleet.ask("vm_resize", vm="web-1", memory_mib=512)
    cast(fleet)
    fleet.pass_(fleet.cfg.manager.create_timeout + DOWN_S, *others)
    done, vm = fleet.job(job), fleet.vm()
    assert (done.state, done.unconfirmed) == (JobState.EXPIRED, True)
    assert (vm.vm_state, vm.task_state) == (VmState.ERROR, TaskState.NONE)
    assert vm.resize is not None
    assert vm.resize.phase is Phase.REVERTING
    assert claims(fleet) == (1, 512), "nobody knows which of them it has"
    with pytest.raises(WrongState, match="h1 has still to answer"):
        fleet.ask("vm_start", vm="web-1")
    h1.restart().up()
    fleet.pass_(INTERVAL_S, h1, *others)
    undo = next(c.command for c in fleet.publish() if c.method == "revert_resize")
    assert (fleet.vm().vm_state, fleet.vm().task_state) == (VmState.ERROR, TaskState.RESIZING)
    h1.carry_out(undo)
    vm = fleet.vm()
    assert (vm.vm_state, vm.resize, vm.error) == (VmState.ACTIVE, None, "")
    assert claims(fleet) == (1, 256)


@pytest.mark.parametrize(
    ("verb", "phase"), [("confirm", Phase.CONFIRMING), ("revert", Phase.REVERTING)]
)
def test_a_confirm_or_revert_that_has_begun_goes_on_and_its_opposite_is_refused(
    fleet: Fleet, h1: ScriptedAgent, verb: str, phase: Phase
) -> None:
    fleet.deploy(h1)
    resized(fleet, h1)
    job = fleet.ask(f"vm_{verb}_resize", vm="web-1")
    h1.fail(cast(fleet), look=h1.look(fleet.vm().uuid), error_code="CALL_TIMEOUT", error="slow")
    vm = fleet.vm()
    assert (vm.vm_state, fleet.job(job).state) == (VmState.RESIZED, JobState.FAILED)
    assert vm.resize is not None
    assert vm.resize.phase is phase
    for other in ("confirm", "revert"):
        with pytest.raises(WrongState, match=phase):
            fleet.ask(f"vm_{other}_resize", vm="web-1")
    fleet.pass_(INTERVAL_S, h1)
    again = cast(fleet)
    assert again.kind == f"{verb}_resize"
    h1.carry_out(again)
    size = (2, 512) if verb == "confirm" else (1, 256)
    assert (fleet.vm().vm_state, fleet.vm().resize, claims(fleet)) == (VmState.ACTIVE, None, size)


@pytest.mark.parametrize(("verb", "size"), [("confirm", (1, 256)), ("revert", (2, 512))])
def test_a_host_that_knows_better_is_believed_after_a_restore(
    fleet: Fleet, h1: ScriptedAgent, verb: str, size: tuple[int, int]
) -> None:
    fleet.deploy(h1)
    resized(fleet, h1)
    job = fleet.ask(f"vm_{verb}_resize", vm="web-1")
    look = h1.look(fleet.vm().uuid)
    h1.fail(cast(fleet), look=look, error_code="RESIZE_OVER", error="nothing is kept")
    vm = fleet.vm()
    assert (fleet.job(job).error_code, vm.vm_state) == ("RESIZE_OVER", VmState.ACTIVE)
    assert (vm.vcpus, vm.memory_mib) == claims(fleet) == size
    assert (vm.spec["vcpus"], vm.spec["memory_mib"]) == size


def test_a_confirm_that_meets_a_half_done_revert_goes_on_as_that(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    resized(fleet, h1)
    fleet.ask("vm_confirm_resize", vm="web-1")
    look = h1.look(fleet.vm().uuid)
    h1.fail(cast(fleet), look=look, error_code="RESIZE_REVERTING", error="half reverted")
    fleet.pass_(INTERVAL_S, h1)
    again = cast(fleet)
    assert again.kind == "revert_resize"
    h1.carry_out(again)
    assert (fleet.vm().vm_state, fleet.vm().resize, claims(fleet)) == (
        VmState.ACTIVE,
        None,
        (1, 256),
    )


def test_an_agent_that_knows_of_no_resizes_leaves_the_vm_as_it_was(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    vm = fleet.deploy(h1)
    job = fleet.ask("vm_resize", vm="web-1", vcpus=2, memory_mib=512)
    unknown = {"error_code": "UNKNOWN_KIND", "error": "upgrade the older side"}
    command = cast(fleet)
    h1.say(results=(h1.result(command, m.Outcome.NOT_RUN, look=h1.look(vm.uuid), **unknown),))
    assert fleet.job(job).error_code == "UNKNOWN_KIND"
    assert (fleet.vm().vm_state, fleet.vm().resize) == (VmState.ACTIVE, None)
    assert (claims(fleet), fleet.publish()) == ((1, 256), [])


# what becomes of it by itself


def test_a_delete_of_a_resized_vm_gives_back_the_larger_size(
    fleet: Fleet, zoned: ScriptedAgent
) -> None:
    resized(fleet, zoned, memory_mib=512, root_gib=7)
    fleet.delete()
    zoned.carry_out(cast(fleet))
    vm = fleet.vm()
    assert (vm.vm_state, vm.resize, claims(fleet)) == (VmState.DELETED, None, (0, 0))
    assert fleet.rows(Volume) == fleet.rows(Use) == []


def test_a_delete_takes_a_resize_over(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1)
    fleet.ask("vm_resize", vm="web-1", memory_mib=512)
    resize = cast(fleet)
    fleet.delete()
    terminate = cast(fleet)
    h1.carry_out(resize)
    assert fleet.vm().task_state is TaskState.DELETING
    h1.carry_out(terminate)
    assert (fleet.vm().vm_state, claims(fleet)) == (VmState.DELETED, (0, 0))


def test_a_resize_is_confirmed_by_itself_after_the_window_and_not_while_frozen(
    fleet_of: Any,
) -> None:
    fleet: Fleet = fleet_of(resize_confirm_window=100.0)
    h1 = ScriptedAgent(fleet, "h1").up()
    fleet.deploy(h1)
    resized(fleet, h1)
    fleet.ask("freeze", operator="ann", reason="wait")
    fleet.pass_(150.0, h1)
    assert fleet.publish() == []
    fleet.ask("unfreeze", operator="ann", reason="go on")
    fleet.wire.take()
    fleet.pass_(INTERVAL_S, h1)
    command = next(c.command for c in fleet.publish())
    assert command.kind is m.CommandKind.CONFIRM_RESIZE
    assert command.trail[0].text == "nobody has confirmed it in 100 s"
    h1.carry_out(command)
    assert (fleet.vm().vm_state, claims(fleet)) == (VmState.ACTIVE, (2, 512))


def test_without_a_window_nothing_is_confirmed_by_itself(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1)
    resized(fleet, h1)
    fleet.pass_(3600.0, h1, step=600.0)
    assert (fleet.vm().vm_state, fleet.vm().resize_at) == (VmState.RESIZED, None)


def codes(fleet: Fleet) -> set[str]:
    return {finding["code"] for finding in fleet.ask("doctor")["findings"]}


def test_the_doctor_tells_of_resizes_that_wait_and_of_sizes_that_differ(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    assert not codes(fleet) & {"RESIZE_UNCONFIRMED", "RESIZE_OWED", "SIZE_DIFFERS"}
    resized(fleet, h1)
    assert "RESIZE_UNCONFIRMED" in codes(fleet)
    fleet.ask("vm_confirm_resize", vm="web-1")
    h1.fail(cast(fleet), look=h1.look(fleet.vm().uuid), error_code="CALL_TIMEOUT", error="slow")
    assert "RESIZE_OWED" in codes(fleet)
    fleet.pass_(INTERVAL_S, h1)
    h1.carry_out(cast(fleet))
    assert not codes(fleet) & {"RESIZE_UNCONFIRMED", "RESIZE_OWED", "SIZE_DIFFERS"}
    h1.change(fleet.vm().uuid, memory_mib=1024)
    h1.beat()
    assert "SIZE_DIFFERS" in codes(fleet)


def test_the_undo_of_a_vm_that_was_deleted_softly_meanwhile_starts_nothing(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    fleet.deploy(h1)
    fleet.ask("vm_resize", vm="web-1", memory_mib=512)
    cast(fleet)
    fleet.pass_(fleet.cfg.manager.create_timeout + DOWN_S, *others)
    fleet.delete(soft=True)
    assert fleet.vm().vm_state is VmState.SOFT_DELETED
    fleet.wire.take()
    h1.power(fleet.vm().uuid, P.SHUTOFF)
    h1.restart().up()
    fleet.pass_(INTERVAL_S, h1, *others)
    undo = next(c.command for c in fleet.publish() if c.method == "revert_resize")
    assert undo.spec["on"] is False
    h1.carry_out(undo)
    vm = fleet.vm()
    assert (vm.vm_state, vm.resize, vm.memory_mib) == (VmState.SOFT_DELETED, None, 256)


def test_who_says_that_it_is_something_else_has_confirmed_it(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    resized(fleet, h1)
    fleet.ask("vm_set_state", vm="web-1", vm_state="ACTIVE", reason="it works")
    fleet.pass_(INTERVAL_S, h1)
    command = cast(fleet)
    assert command.kind is m.CommandKind.CONFIRM_RESIZE
    h1.carry_out(command)
    vm = fleet.vm()
    assert (vm.vm_state, vm.resize, claims(fleet)) == (VmState.ACTIVE, None, (2, 512))

"""Any number of managers on one database: each piece of work is done by exactly one."""

from __future__ import annotations

import collections
import copy
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from common.errors import MusterError
from common.states import CommandState, TombstoneState, VmState
from manager.flows import delete, reap, resize, watchdog
from manager.store.addresses import Mac
from manager.store.commands import CommandRow
from manager.store.instances import Instance
from manager.store.jobs import Job
from tests.functional.fleet import Clock, Fleet, ScriptedAgent

MANAGERS = 4
ROUNDS = 3


@pytest.fixture
def managers(fleet: Fleet) -> list[Fleet]:
    """Several managers on one database; each of their threads has a connection of its own."""
    return [Fleet(copy.copy(fleet.store), fleet.clock, wire=fleet.wire) for _ in range(MANAGERS)]


def at_once(work: list[Callable[[], Any]]) -> list[Any]:
    """What each returned or raised, all of them begun at the same moment."""
    start = threading.Barrier(len(work))
    results: list[Any] = [None] * len(work)

    def run(n: int) -> None:
        start.wait(30.0)
        try:
            results[n] = work[n]()
        except MusterError as exc:
            results[n] = exc

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
        assert not thread.is_alive()
    return results


@pytest.mark.parametrize("before", [0, 1])
def test_a_due_command_is_cast_by_one_manager(
    fleet: Fleet, managers: list[Fleet], h1: ScriptedAgent, before: int
) -> None:
    """One that could not be sent yet, or that nobody has received."""
    if not before:
        h1.end_session()
    for n in range(30):
        fleet.create(f"web-{n}", memory_mib=16)
    assert len(fleet.wire.take("start_vm")) == 30 * before
    fleet.clock.move(fleet.cfg.manager.resend_after)
    h1.hello()

    assert sum(at_once([m.claim for m in managers])) == 30
    cast = collections.Counter(c.command.id for c in fleet.wire.take("start_vm"))
    assert len(cast) == 30
    assert set(cast.values()) == {1}
    assert {c.publishes for c in fleet.rows(CommandRow)} == {before + 1}


def test_commands_that_are_accepted_side_by_side_are_cast_once_each(
    fleet: Fleet, managers: list[Fleet], h1: ScriptedAgent
) -> None:
    vms = [fleet.deploy(h1, f"web-{n}") for n in range(3 * MANAGERS)]

    def stop(manager: Fleet, mine: list[Instance]) -> None:
        for vm in mine:
            manager.ask("vm_stop", vm=vm.uuid)
            manager.claim()

    at_once([partial(stop, m, vms[n::MANAGERS]) for n, m in enumerate(managers)])
    cast = collections.Counter(c.command.id for c in fleet.wire.take("stop_vm"))
    stops = fleet.rows(CommandRow, kind="stop_vm")
    assert cast == {row.id: 1 for row in stops}
    assert len(stops) == len(vms)
    assert {(row.state, row.publishes) for row in stops} == {(CommandState.PUBLISHED, 1)}


def test_the_last_memory_of_a_host_is_given_once(
    fleet: Fleet, managers: list[Fleet], h1: ScriptedAgent
) -> None:
    for round_ in range(ROUNDS):
        h1.beat(full=True, capacity_mib=1024 * (round_ + 1))
        results = at_once(
            [
                partial(m.create, f"web-{round_}-{n}", memory_mib=1024)
                for n, m in enumerate(managers)
            ]
        )
        accepted = [r for r in results if isinstance(r, dict)]
        refused = [r.code for r in results if isinstance(r, MusterError)]
        assert len(accepted) == 1
        assert refused == ["NO_VALID_HOST"] * (MANAGERS - 1)
    assert len(fleet.rows(Instance)) == len(fleet.rows(Mac)) == ROUNDS


def test_the_same_request_at_several_managers_is_one_job(
    fleet: Fleet, managers: list[Fleet], h1: ScriptedAgent
) -> None:
    uuid_ = "11111111-0000-4000-8000-000000000001"
    results = at_once([partial(m.create, job=uuid_) for m in managers])
    assert [r["uuid"] for r in results] == [uuid_] * MANAGERS
    assert len(fleet.rows(Instance)) == len(fleet.rows(CommandRow)) == 1


def test_one_address_is_never_given_twice(
    fleet: Fleet, managers: list[Fleet], h1: ScriptedAgent
) -> None:
    draws = iter([7] * MANAGERS + list(range(100, 200)))
    lock = threading.Lock()

    def draw(_limit: int) -> int:
        with lock:
            return next(draws)

    fleet.clock.random_below = draw  # type: ignore[method-assign]
    at_once([partial(m.create, f"web-{n}") for n, m in enumerate(managers)])
    macs = [vm.mac for vm in fleet.rows(Instance)]
    assert len(set(macs)) == MANAGERS


def test_deletes_at_several_managers_are_one_job_and_one_terminate(
    fleet: Fleet, managers: list[Fleet], h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    results = at_once([m.delete for m in managers])
    assert len({r["uuid"] for r in results}) == 1
    assert len(h1.terminates()) == 1
    assert len(fleet.rows(Job, kind="delete", same_as=None)) == 1


def test_start_and_delete_at_once_leave_one_in_charge(
    fleet: Fleet, managers: list[Fleet], h1: ScriptedAgent
) -> None:
    for n in range(ROUNDS):
        fleet.deploy(h1, f"web-{n}")
        one, two = managers[:2]
        stop, gone = at_once(
            [partial(one.ask, "vm_stop", vm=f"web-{n}"), partial(two.delete, f"web-{n}")]
        )
        assert fleet.vm(f"web-{n}").job == gone["uuid"]
        (terminate,) = [c for c in fleet.publish() if c.method == "terminate_instance"]
        h1.carry_out(terminate.command)
        assert fleet.shown(gone)["state"] == "SUCCEEDED"
        if isinstance(stop, MusterError):
            assert stop.code == "TASK_UNDER_WAY"
        else:
            shown = fleet.shown(stop)
            assert (shown["state"], shown["error_code"]) == ("CANCELLED", "SUPERSEDED")


def test_section3_row_4_a_host_that_is_assigned_in_the_same_instant_is_found(
    fleet: Fleet, managers: list[Fleet], h1: ScriptedAgent
) -> None:
    """Whoever comes second decides by what the first has written."""
    ends = set()
    for n in range(3 * ROUNDS):
        name = f"web-{n}"
        vm = fleet.create(name, start=False)["instance"]
        wishes = [partial(managers[0].ask, "vm_start", vm=vm), partial(managers[1].delete, vm)]
        if n == 0:  # which is not left to chance alone
            started, gone = wishes[0](), wishes[1]()
        else:
            started, gone = at_once(wishes)
        for cast in sorted(fleet.publish(), key=lambda c: c.command.generation):
            h1.carry_out(cast.command)
        assert fleet.shown(gone)["state"] == "SUCCEEDED"
        assert fleet.row(Instance, vm).vm_state is VmState.DELETED
        if isinstance(started, MusterError):
            assert started.code in ("TASK_UNDER_WAY", "ALREADY_DELETED", "NOT_FOUND", "WRONG_STATE")
        ends.add(isinstance(started, MusterError))
        assert h1.guests == {}
        assert fleet.rows(Mac) == []
        assert (h1.row.vcpus_claimed, h1.row.memory_mib_claimed) == (0, 0)
    assert False in ends


def test_a_failed_terminate_is_issued_again_by_one_manager(
    fleet: Fleet, managers: list[Fleet], h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    fleet.delete()
    (cast,) = fleet.publish()
    h1.fail(cast.command)
    fleet.clock.move(30)
    at_once([partial(m.run, delete.pursue_due) for m in managers])
    assert len(h1.terminates()) == 2


def test_a_tombstone_is_retried_by_one_manager(
    fleet: Fleet, managers: list[Fleet], h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    fleet.delete(force=True, reason="test")
    h1.hello()
    (cast,) = fleet.publish()
    h1.fail(cast.command)
    fleet.clock.move(30)
    beat = h1.heartbeat(full=True)
    at_once(
        [
            *(partial(m.run, reap.retry_due) for m in managers[:2]),
            partial(h1.send, beat),
            h1.lost_hello,
        ]
    )
    under_way = [c for c in h1.terminates() if c.state is not CommandState.FAILED]
    assert len(under_way) == 1
    assert fleet.stone().generation == under_way[0].generation
    assert fleet.stone().state is TombstoneState.OPEN


def test_a_deadline_and_the_result_at_once_end_the_job_once(
    fleet: Fleet, managers: list[Fleet], h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    job = fleet.ask("vm_stop", vm="web-1")
    (cast,) = fleet.publish()
    fleet.clock.move(120)
    h1.beat()
    fleet.tick()
    fleet.clock.move(120)
    answers = h1.result(cast.command)
    at_once(
        [
            *(partial(m.run, watchdog.deadlines) for m in managers[:2]),
            partial(h1.say, results=(answers,)),
            partial(h1.beat, results=(answers,), inventory=None),
        ]
    )
    assert fleet.shown(job)["state"] == "SUCCEEDED"
    assert len(fleet.events("job.succeeded")) == 2  # the create's and this one's


def test_heartbeats_that_are_consumed_side_by_side_leave_the_newest(
    fleet: Fleet, managers: list[Fleet], h1: ScriptedAgent, clock: Clock
) -> None:
    vms = [fleet.deploy(h1, f"web-{n}") for n in range(3)]
    for _ in range(ROUNDS):
        beats = []
        for n in range(MANAGERS):
            for vm in vms:
                h1.change(vm.uuid, vcpus=n + 1, domain_id=clock.random_below(10**6))
            beats.append(h1.heartbeat(full=True))
        at_once([partial(h1.send, b) for b in beats])
        seen = {s.hypervisor_uuid: s for s in h1.sightings()}
        assert {s.vcpus for s in seen.values()} == {MANAGERS}
        # What an older one says of any guest counts for nothing from here on.
        host = h1.row
        assert (host.inventory_session, host.inventory_seq) == (h1.session, beats[-1].seq)
        assert max(vm.power_seq for vm in fleet.rows(Instance)) <= beats[-1].seq


def test_of_confirms_and_reverts_at_once_exactly_one_is_accepted(
    fleet: Fleet, managers: list[Fleet], h1: ScriptedAgent
) -> None:
    for n in range(ROUNDS):
        vm = fleet.deploy(h1, f"web-{n}")
        fleet.ask("vm_resize", vm=vm.name, memory_mib=512)
        h1.carry_out(fleet.publish()[0].command)
        verbs = ("vm_confirm_resize", "vm_revert_resize") * (MANAGERS // 2)
        asked = [
            partial(manager.ask, verb, vm=vm.name)
            for manager, verb in zip(managers, verbs, strict=True)
        ]
        answers = at_once(asked)
        codes = sorted(each.code for each in answers if isinstance(each, MusterError))
        assert codes == ["TASK_UNDER_WAY"] * (MANAGERS - 1)
        (cast,) = fleet.publish()
        h1.carry_out(cast.command)
        kept = cast.command.kind == "confirm_resize"
        assert fleet.vm(vm.name).memory_mib == (512 if kept else 256)
    assert h1.row.memory_mib_claimed == sum(vm.memory_mib for vm in fleet.rows(Instance))


def test_resizes_at_once_do_not_overfill_a_host(
    fleet: Fleet, managers: list[Fleet], h1: ScriptedAgent
) -> None:
    vms = [fleet.deploy(h1, f"web-{n}") for n in range(MANAGERS)]
    fleet.put(h1.row, memory_mib_total=256 * (MANAGERS + 2))  # room for two of them to double
    answers = at_once(
        [
            partial(manager.ask, "vm_resize", vm=vm.name, memory_mib=512)
            for manager, vm in zip(managers, vms, strict=True)
        ]
    )
    codes = [each.code for each in answers if isinstance(each, MusterError)]
    assert codes == ["NO_VALID_HOST"] * (MANAGERS - 2)
    assert h1.row.memory_mib_claimed == 256 * (MANAGERS + 2)


def test_an_undo_that_is_owed_is_issued_by_one_manager(
    fleet: Fleet, managers: list[Fleet], h1: ScriptedAgent
) -> None:
    vm = fleet.deploy(h1)
    fleet.ask("vm_resize", vm=vm.name, memory_mib=512)
    h1.fail(fleet.publish()[0].command, error_code="CALL_TIMEOUT", error="slow")
    h1.fail(fleet.publish()[0].command, error_code="CALL_TIMEOUT", error="slow")
    fleet.clock.move(60.0)
    at_once([partial(manager.run, resize.pursue_due) for manager in managers])
    (cast,) = fleet.publish()
    assert cast.command.kind == "revert_resize"
    h1.carry_out(cast.command)
    assert (fleet.vm().resize, h1.row.memory_mib_claimed) == (None, 256)

"""Shelve and unshelve (sections 3, 4 and 6): a VM that is nothing but a snapshot for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from common import messages as m
from common.errors import DbRolledBack, MusterError, NotSupported
from common.states import CommandState, HostState, PowerState, TaskState, TombstoneState, VmState
from manager.flows import cleanup, restore, snapshots
from manager.store.cleanups import Cleanup, CleanupState
from manager.store.commands import CommandRow
from manager.store.engine import Tx
from manager.store.events import Meta
from manager.store.instances import Instance, Snapshot
from manager.store.volumes import SNAPSHOT, Volume
from tests.functional.fleet import DOWN_S, INTERVAL_S, Fleet, ScriptedAgent
from tests.functional.test_flow_restore import Backup, go_on, greet
from tests.functional.zone import ZONE, deploy, make

SHELVED, OFFLOADED = VmState.SHELVED, VmState.SHELVED_OFFLOADED
POOLS = [
    {
        "name": "kept",
        "scope": "zone",
        "zone": "z1",
        "path": "/kept",
        "capacity_gib": 12,
        "snapshots": True,
    },
    {"name": "wide", "scope": "zone", "zone": "z1", "path": "/wide", "capacity_gib": 30},
]
Agents = dict[str, ScriptedAgent]
FleetOf = Callable[..., Fleet]


def placed(fleet: Fleet, *, pools: bool = True, **asked: Any) -> Agents:
    """Three hosts of a zone and a VM with a disk that runs on one of them."""
    make(fleet, **ZONE, pools=POOLS if pools else POOLS[1:])
    agents = {name: ScriptedAgent(fleet, name).up() for name in ("h1", "h2", "h3")}
    deploy(fleet, **asked)
    do(fleet, agents, "start_vm")
    return agents


def do(fleet: Fleet, agents: Agents, kind: str) -> m.Command:
    """The one command of this kind that was cast since the last look is carried out."""
    command = cast(fleet, kind)
    agents[command.host].carry_out(command)
    agents[command.host].beat()
    return command


def cast(fleet: Fleet, kind: str) -> m.Command:
    """It may have been cast more than once."""
    (command,) = {c.command.id: c.command for c in fleet.publish() if c.method == kind}.values()
    return command


def shelve(fleet: Fleet, agents: Agents, **asked: Any) -> dict[str, Any]:
    """Shelved, and the snapshot taken; what follows is cast and not answered."""
    answer = fleet.ask("vm_shelve", vm="web-1", **asked)
    command = cast(fleet, "shelve_vm")
    agents[command.host].carry_out(command)
    return answer


def offload(fleet: Fleet, agents: Agents) -> dict[str, Any]:
    """Shelved, and gone from its host."""
    answer = shelve(fleet, agents)
    do(fleet, agents, "terminate_instance")
    assert fleet.vm().vm_state is OFFLOADED
    return answer


def kept(fleet: Fleet) -> Snapshot:
    found = fleet.vm().snapshot
    assert found is not None
    return found


def told_to_remove(fleet: Fleet) -> m.SnapshotFiles:
    """The snapshot that an agent is told to remove."""
    remains = m.convert(cast(fleet, "clean_up").spec, m.CleanUpSpec).remains
    assert isinstance(remains, m.SnapshotFiles)
    return remains


def refused(fleet: Fleet, method: str, **asked: Any) -> MusterError:
    with pytest.raises(MusterError) as caught:
        fleet.ask(method, vm="web-1", **asked)
    return caught.value


@pytest.fixture
def keeping(fleet_of: FleetOf) -> Fleet:
    """A fleet whose shelved VMs stay on their hosts."""
    return fleet_of(shelved_offload_time=-1.0)


@pytest.fixture
def later(fleet_of: FleetOf) -> Fleet:
    """A fleet whose shelved VMs leave their hosts after five minutes."""
    return fleet_of(shelved_offload_time=300.0)


# shelve


def test_section6_shelve_stops_the_guest_and_copies_its_disks_to_the_pool_for_snapshots(
    keeping: Fleet,
) -> None:
    agents = placed(keeping)
    host = keeping.vm().host
    answer = keeping.ask("vm_shelve", vm="web-1", reason="quiet season")
    assert keeping.vm().task_state is TaskState.SHELVING
    command = cast(keeping, "shelve_vm")
    assert command.host == host
    files = m.convert(command.spec["snapshot"], m.SnapshotFiles)
    assert (files.folder, files.instance) == ("/kept", keeping.vm().uuid)
    assert kept(keeping).taken_at is None
    agents[command.host].carry_out(command)
    vm = keeping.vm()
    assert (vm.vm_state, vm.task_state, vm.host) == (SHELVED, TaskState.NONE, host)
    assert vm.power_state is PowerState.SHUTOFF
    snapshot = kept(keeping)
    assert (snapshot.id, snapshot.pool, snapshot.size_gib) == (files.snapshot, "kept", 5)
    assert snapshot.taken_at is not None
    assert keeping.job(answer).state == "SUCCEEDED"


def test_a_snapshot_takes_its_space_in_its_pool_and_nothing_of_its_projects_limits(
    keeping: Fleet,
) -> None:
    agents = placed(keeping)
    before = keeping.ask("quota_show", project="default")
    shelve(keeping, agents)
    (volume,) = keeping.rows(Volume, kind=SNAPSHOT)
    assert (volume.pool, volume.size_gib) == ("kept", 5)
    assert keeping.ask("quota_show", project="default") == before


def test_pools_for_snapshots_without_room_refuse_the_shelve(keeping: Fleet) -> None:
    placed(keeping)
    make(keeping, pools=[{**POOLS[0], "capacity_gib": 4}])
    error = refused(keeping, "vm_shelve")
    assert error.code == "NO_SPACE"
    assert keeping.vm().task_state is TaskState.NONE


def test_without_a_pool_for_snapshots_the_host_keeps_it_and_show_says_where_it_can_run(
    fleet: Fleet,
) -> None:
    agents = placed(fleet, pools=False)
    host = fleet.vm().host
    offload(fleet, agents)
    assert (kept(fleet).host, kept(fleet).folder) == (host, None)
    shown = fleet.ask("vm_show", vm="web-1")["snapshot"]
    assert shown["where"] == f"on {host} alone"
    assert shown["unshelve_on"] == host
    assert shown["size_gib"] == 5


def test_section6_shelve_from_another_state_is_refused_and_names_what_would_do(
    keeping: Fleet,
) -> None:
    agents = placed(keeping)
    keeping.ask("vm_pause", vm="web-1")
    do(keeping, agents, "pause_vm")
    error = refused(keeping, "vm_shelve")
    assert (error.code, error.remedy) == ("WRONG_STATE", "possible in: ACTIVE, SHUTOFF")


def test_section6_shelving_what_is_shelved_succeeds_without_a_cast(keeping: Fleet) -> None:
    agents = placed(keeping)
    shelve(keeping, agents)
    assert keeping.ask("vm_shelve", vm="web-1")["state"] == "SUCCEEDED"
    assert keeping.publish() == []


def test_a_vm_that_was_never_started_has_nothing_to_keep(keeping: Fleet) -> None:
    make(keeping, **ZONE, pools=POOLS)
    deploy(keeping, start=False)
    assert "on no host" in refused(keeping, "vm_shelve").message


def test_disks_in_ceph_are_not_copied_yet(keeping: Fleet) -> None:
    placed(keeping)
    vm = keeping.vm()
    target = {"pool": "vms", "image": "a", "monitors": ["10.0.0.1:6789"]}
    spec = {**vm.spec, "disks": [{"size_gib": 5, "rbd": target}]}
    keeping.put(vm, spec=spec)
    assert refused(keeping, "vm_shelve").code == NotSupported.code


def test_section6_a_shelve_that_fails_leaves_the_vm_as_its_hypervisor_shows_it(
    keeping: Fleet,
) -> None:
    agents = placed(keeping)
    answer = keeping.ask("vm_shelve", vm="web-1")
    command = cast(keeping, "shelve_vm")
    agent = agents[command.host]
    agent.power(command.instance, PowerState.SHUTOFF)
    agent.fail(command, look=agent.look(command.instance))
    vm = keeping.vm()
    assert (vm.vm_state, vm.task_state, vm.snapshot) == (VmState.SHUTOFF, TaskState.NONE, None)
    assert keeping.job(answer).error_code == "HYPERVISOR_ERROR"


def test_section6_what_a_failed_shelve_has_copied_goes_by_its_own_host(keeping: Fleet) -> None:
    agents = placed(keeping)
    keeping.ask("vm_shelve", vm="web-1")
    command = cast(keeping, "shelve_vm")
    agent = agents[command.host]
    agent.fail(command, look=agent.look(command.instance))
    removed = cast(keeping, "clean_up")
    assert removed.host == command.host
    assert keeping.rows(Volume, kind=SNAPSHOT) != []  # until it is gone
    agent.succeed(removed, look=None)
    assert keeping.one(Cleanup).state is CleanupState.DONE
    assert keeping.rows(Volume, kind=SNAPSHOT) == []


def test_a_shelve_that_was_never_sent_leaves_nothing_to_remove(keeping: Fleet) -> None:
    agents = placed(keeping)
    agents[str(keeping.vm().host)].end_session()
    answer = keeping.ask("vm_shelve", vm="web-1")
    keeping.ask("job_cancel", job=answer["uuid"], operator="ann")
    assert keeping.vm().snapshot is None
    assert keeping.rows(Cleanup) == []
    assert keeping.rows(Volume, kind=SNAPSHOT) == []
    assert keeping.job(answer).state == "CANCELLED"


def test_section6_of_a_shelve_whose_host_dies_the_copies_go_once_the_guest_is_seen_again(
    keeping: Fleet,
) -> None:
    agents = placed(keeping)
    answer = keeping.ask("vm_shelve", vm="web-1")
    command = cast(keeping, "shelve_vm")
    agent = agents.pop(command.host)
    agent.receipt(command.id, m.Step.STARTED)
    keeping.pass_(keeping.cfg.manager.create_timeout + DOWN_S, *agents.values())
    assert keeping.job(answer).error_code == "OUTCOME_UNKNOWN"
    assert (keeping.vm().vm_state, keeping.vm().task_state) == (VmState.ACTIVE, TaskState.NONE)
    assert kept(keeping).taken_at is None  # it may be all that is left of the disks
    assert "has not shown it since" in refused(keeping, "vm_shelve").message
    agent.restart().hello()
    agent.beat(full=True)
    assert keeping.vm().snapshot is None
    assert told_to_remove(keeping).snapshot


def test_a_guest_that_somebody_started_while_it_was_copied_stays(fleet: Fleet) -> None:
    agents = placed(fleet)
    answer = fleet.ask("vm_shelve", vm="web-1")
    command = cast(fleet, "shelve_vm")
    agent = agents[command.host]
    late = agent.result(command)
    agent.power(command.instance, PowerState.SHUTOFF)
    seen = agent.look(command.instance)
    agent.power(command.instance, PowerState.RUNNING)
    agent.beat()
    agent.say(results=(m.Result(**{**_fields(late), "look": seen}),))
    assert fleet.vm().vm_state is SHELVED
    assert kept(fleet).overtaken
    assert fleet.stones() == []
    assert fleet.job(answer).state == "SUCCEEDED"


def _fields(result: m.Result) -> dict[str, Any]:
    return {name: getattr(result, name) for name in result.__struct_fields__}


# the guest leaves its host


def test_a_shelved_vm_leaves_its_host_at_once_and_its_host_is_free_of_it(fleet: Fleet) -> None:
    agents = placed(fleet)
    host = str(fleet.vm().host)
    answer = shelve(fleet, agents)
    assert (fleet.vm().vm_state, fleet.vm().task_state) == (SHELVED, TaskState.SHELVING)
    assert fleet.shown(answer)["waiting_for"] == f"{host} to remove its guest and disks"
    do(fleet, agents, "terminate_instance")
    vm = fleet.vm()
    assert (vm.vm_state, vm.task_state, vm.host, vm.last_host) == (
        OFFLOADED,
        TaskState.NONE,
        None,
        host,
    )
    assert fleet.host(host).memory_mib_claimed == 0
    assert fleet.job(answer).state == "SUCCEEDED"
    assert fleet.stone().state is TombstoneState.CLOSED


def test_what_has_left_its_host_keeps_addresses_and_limits_and_gives_its_pools_back(
    fleet: Fleet,
) -> None:
    agents = placed(fleet, networks=[{"network": "n1"}])
    before = fleet.ask("quota_show", project="default")
    address = fleet.vm().address
    offload(fleet, agents)
    assert fleet.ask("quota_show", project="default") == before
    (held,) = fleet.ask("address_list", network="n1")["addresses"]
    assert (held["ip"], held["why"]) == (address, "reserved")
    (disk,) = fleet.rows(Volume, kind="root")
    assert (disk.pool, disk.host) == (None, None)
    assert not fleet.ask("vm_show", vm="web-1")["stale"]


def test_a_shelved_vm_leaves_its_host_when_its_time_has_come(later: Fleet) -> None:
    agents = placed(later)
    shelve(later, agents)
    assert later.vm().task_state is TaskState.NONE
    later.pass_(290.0, *agents.values())
    assert later.publish() == []
    later.pass_(20.0, *agents.values())
    do(later, agents, "terminate_instance")
    assert later.vm().vm_state is OFFLOADED


def test_one_that_stays_leaves_when_an_operator_asks_for_it(keeping: Fleet) -> None:
    agents = placed(keeping)
    shelve(keeping, agents)
    answer = keeping.ask("vm_shelve", vm="web-1", offload=True)
    do(keeping, agents, "terminate_instance")
    assert keeping.vm().vm_state is OFFLOADED
    assert keeping.job(answer).state == "SUCCEEDED"


def test_nothing_leaves_its_host_by_itself_while_that_is_down(later: Fleet) -> None:
    agents = placed(later)
    shelve(later, agents)
    host = str(later.vm().host)
    agent = agents.pop(host)
    later.pass_(400.0, *agents.values())
    assert later.host(host).state is HostState.DOWN
    assert (later.vm().vm_state, later.vm().host) == (SHELVED, host)
    assert later.stones() == []
    agent.restart().hello()
    agent.beat(full=True)
    later.pass_(INTERVAL_S, agent, *agents.values())
    agents[host] = agent
    do(later, agents, "terminate_instance")
    assert later.vm().vm_state is OFFLOADED


def test_a_host_that_dies_before_its_guest_has_left_keeps_it_until_it_answers(
    fleet: Fleet,
) -> None:
    agents = placed(fleet)
    answer = shelve(fleet, agents)
    host = str(fleet.vm().host)
    agent = agents.pop(host)
    fleet.pass_(fleet.cfg.manager.command_timeout + DOWN_S, *agents.values())
    assert (fleet.vm().vm_state, fleet.vm().host) == (SHELVED, host)
    assert fleet.vm().task_state is TaskState.NONE
    assert fleet.job(answer).state == "SUCCEEDED"  # it is shelved
    error = refused(fleet, "vm_unshelve")
    assert error.message == f"{host} is removing the guest of web-1, and has not answered yet"
    fleet.wire.take()
    agent.restart().hello()
    agents[host] = agent
    do(fleet, agents, "terminate_instance")
    assert (fleet.vm().vm_state, fleet.vm().host) == (OFFLOADED, None)


def test_a_frozen_fleet_removes_no_guest_of_a_shelved_vm(later: Fleet) -> None:
    agents = placed(later)
    shelve(later, agents)
    later.ask("freeze", operator="ann", reason="storage is being moved")
    later.pass_(400.0, *agents.values())
    assert later.stones() == []
    later.ask("unfreeze", operator="ann")
    later.pass_(INTERVAL_S, *agents.values())
    do(later, agents, "terminate_instance")
    assert later.vm().vm_state is OFFLOADED


def test_a_shelved_guest_that_ran_by_hand_stays_with_what_it_wrote(later: Fleet) -> None:
    agents = placed(later)
    shelve(later, agents)
    agent = agents[str(later.vm().host)]
    agent.power(later.vm().uuid, PowerState.RUNNING)
    agent.beat()
    assert later.vm().vm_state is SHELVED  # section 4: power_state only
    assert later.vm().power_state is PowerState.RUNNING
    agent.power(later.vm().uuid, PowerState.SHUTOFF)
    agent.beat()
    later.pass_(400.0, *agents.values())
    assert later.stones() == []
    error = refused(later, "vm_shelve", offload=True)
    assert "has run since its snapshot was taken" in error.message
    shown = later.ask("vm_show", vm="web-1")["snapshot"]
    assert shown["unshelve_on"] == "its host, where it has run since"


# section 4


def test_section4_row9_a_leftover_of_an_offloaded_vm_that_runs_is_stopped_again(
    fleet: Fleet,
) -> None:
    agents = placed(fleet)
    generation = fleet.vm().generation
    offload(fleet, agents)
    vm, agent = fleet.vm(), agents["h3" if fleet.vm().last_host != "h3" else "h1"]
    agent.ours(vm.uuid, generation=generation, name=vm.name)
    agent.beat()
    command = cast(fleet, "stop_vm")
    assert command.host == agent.host
    agent.carry_out(command)
    assert (fleet.vm().vm_state, fleet.vm().host) == (OFFLOADED, None)
    assert len(fleet.events("instance.stop_again")) == 1
    agent.power(vm.uuid, PowerState.RUNNING)  # by hand, once more
    agent.beat()
    assert cast(fleet, "stop_vm").host == agent.host


def test_a_leftover_of_an_offloaded_vm_is_not_taken_for_it(fleet: Fleet) -> None:
    agents = placed(fleet)
    generation = fleet.vm().generation
    offload(fleet, agents)
    vm, agent = fleet.vm(), agents["h3" if fleet.vm().last_host != "h3" else "h1"]
    off = {"power_state": PowerState.SHUTOFF}
    agent.ours(vm.uuid, generation=generation, name=vm.name, **off)
    agent.beat()
    assert (fleet.vm().vm_state, fleet.vm().host) == (OFFLOADED, None)
    assert fleet.events("instance.taken_over") == []
    assert f"is on {agent.host}" in refused(fleet, "vm_unshelve").message


def test_a_guest_that_its_host_has_answered_for_as_gone_is_reaped_when_it_is_seen_again(
    fleet: Fleet,
) -> None:
    agents = placed(fleet)
    vm = fleet.vm()
    offload(fleet, agents)
    agent = agents[str(vm.host)]
    agent.ours(vm.uuid, generation=vm.generation, name=vm.name)
    agent.beat()
    do(fleet, agents, "terminate_instance")
    assert fleet.vm().vm_state is OFFLOADED


def test_a_guest_from_an_unshelve_that_the_database_has_forgotten_is_the_vm(fleet: Fleet) -> None:
    agents = placed(fleet)
    offload(fleet, agents)
    vm, agent = fleet.vm(), agents["h2"]
    agent.ours(vm.uuid, generation=vm.generation + 5, name=vm.name)
    agent.beat()
    assert (fleet.vm().vm_state, fleet.vm().host) == (VmState.ACTIVE, "h2")
    agent.beat(full=True)  # and the snapshot that it was made from is of no use any more
    assert told_to_remove(fleet).folder == "/kept"
    assert fleet.vm().snapshot is None


# unshelve


def test_section6_unshelve_starts_the_guest_where_it_is_and_removes_the_snapshot(
    keeping: Fleet,
) -> None:
    agents = placed(keeping)
    shelve(keeping, agents)
    host, snapshot = keeping.vm().host, kept(keeping)
    answer = keeping.ask("vm_unshelve", vm="web-1")
    assert keeping.vm().task_state is TaskState.UNSHELVING
    assert do(keeping, agents, "start_vm").host == host
    vm = keeping.vm()
    assert (vm.vm_state, vm.task_state, vm.snapshot) == (VmState.ACTIVE, TaskState.NONE, None)
    assert keeping.job(answer).state == "SUCCEEDED"
    (item,) = keeping.rows(Cleanup)
    assert (item.kind, item.pool) == ("snapshot", "kept")
    assert item.remains["snapshot"] == snapshot.id


def test_section6_what_has_left_its_host_is_made_from_its_snapshot_wherever_it_fits(
    fleet: Fleet,
) -> None:
    agents = placed(fleet)
    offload(fleet, agents)
    fleet.ask("host_disable", host=fleet.vm().last_host, operator="ann", reason="full")
    snapshot = kept(fleet)
    answer = fleet.ask("vm_unshelve", vm="web-1", reason="season begins")
    command = cast(fleet, "start_vm")
    assert command.host != fleet.vm().last_host
    spec = m.convert(command.spec["guest"], m.GuestSpec)
    assert spec.disks[0].snapshot == m.SnapshotDisk(
        instance=fleet.vm().uuid, snapshot=snapshot.id, n=0, folder="/kept"
    )
    assert spec.disks[0].folder == "/wide"
    assert (
        "snapshot" not in fleet.vm().spec["disks"][0] or not fleet.vm().spec["disks"][0]["snapshot"]
    )
    agents[command.host].carry_out(command)
    assert (fleet.vm().vm_state, fleet.vm().host) == (VmState.ACTIVE, command.host)
    assert fleet.host(command.host).memory_mib_claimed == fleet.vm().memory_mib
    assert fleet.job(answer).state == "SUCCEEDED"
    removed = told_to_remove(fleet)
    assert (removed.snapshot, removed.folder) == (snapshot.id, "/kept")


def test_a_snapshot_on_a_host_of_its_own_binds_the_vm_to_that_host(fleet: Fleet) -> None:
    agents = placed(fleet, pools=False)
    offload(fleet, agents)
    host = str(fleet.vm().last_host)
    fleet.ask("host_disable", host=host, operator="ann", reason="full")
    error = refused(fleet, "vm_unshelve")
    assert error.code == "NO_VALID_HOST"
    assert (fleet.vm().vm_state, fleet.vm().task_state) == (OFFLOADED, TaskState.NONE)
    fleet.ask("host_enable", host=host, operator="ann", reason="room again")
    fleet.ask("vm_unshelve", vm="web-1")
    assert do(fleet, agents, "start_vm").host == host
    assert fleet.vm().vm_state is VmState.ACTIVE
    assert told_to_remove(fleet).folder is None


def test_a_snapshot_in_a_pool_of_a_cluster_binds_the_vm_to_that_cluster(fleet: Fleet) -> None:
    make(
        fleet,
        **ZONE,
        pools=[
            {
                "name": "near",
                "scope": "cluster",
                "cluster": "c1",
                "path": "/near",
                "capacity_gib": 20,
                "snapshots": True,
            },
            POOLS[1],
        ],
    )
    agents = {name: ScriptedAgent(fleet, name).up() for name in ("h1", "h2", "h3")}
    for name in ("h2", "h3"):
        fleet.ask("host_disable", host=name, operator="ann", reason="later")
    deploy(fleet)
    do(fleet, agents, "start_vm")
    offload(fleet, agents)
    fleet.ask("host_disable", host="h1", operator="ann", reason="full")
    fleet.ask("host_enable", host="h3", operator="ann", reason="of the other cluster")
    assert refused(fleet, "vm_unshelve").code == "NO_VALID_HOST"
    fleet.ask("host_enable", host="h2", operator="ann", reason="room")
    fleet.ask("vm_unshelve", vm="web-1")
    assert do(fleet, agents, "start_vm").host == "h2"


def test_section8_6_a_host_that_refuses_an_unshelve_is_passed_over_for_the_next(
    fleet: Fleet,
) -> None:
    agents = placed(fleet)
    offload(fleet, agents)
    fleet.ask("vm_unshelve", vm="web-1")
    first = cast(fleet, "start_vm")
    agent = agents[first.host]
    agent.fail(first, look=agent.look(first.instance))
    fleet.tick()
    second = do(fleet, agents, "start_vm")
    assert second.host != first.host
    assert (fleet.vm().vm_state, fleet.vm().host) == (VmState.ACTIVE, second.host)


def test_an_unshelve_that_every_host_refuses_leaves_the_vm_shelved_with_all_that_it_holds(
    fleet: Fleet,
) -> None:
    agents = placed(fleet, networks=[{"network": "n1"}])
    offload(fleet, agents)
    address, snapshot = fleet.vm().address, kept(fleet)
    answer = fleet.ask("vm_unshelve", vm="web-1")
    for _ in agents:
        command = cast(fleet, "start_vm")
        agent = agents[command.host]
        agent.fail(command, look=agent.look(command.instance))
        fleet.tick()
    vm = fleet.vm()
    assert (vm.vm_state, vm.task_state, vm.host) == (OFFLOADED, TaskState.NONE, None)
    assert (vm.address, vm.reserved, vm.snapshot) == (address, True, snapshot)
    assert vm.error.startswith("NO_VALID_HOST")
    assert fleet.job(answer).error_code == "NO_VALID_HOST"
    assert all(fleet.host(name).memory_mib_claimed == 0 for name in agents)
    assert fleet.rows(Volume, kind="root")[0].pool is None
    fleet.ask("vm_unshelve", vm="web-1")  # and may be tried again
    do(fleet, agents, "start_vm")
    assert fleet.vm().vm_state is VmState.ACTIVE


def test_an_unshelve_of_unknown_outcome_is_repeated_only_once_its_host_has_answered(
    fleet: Fleet,
) -> None:
    agents = placed(fleet)
    offload(fleet, agents)
    answer = fleet.ask("vm_unshelve", vm="web-1")
    command = cast(fleet, "start_vm")
    agent = agents.pop(command.host)
    agent.receipt(command.id, m.Step.STARTED)
    fleet.pass_(fleet.cfg.manager.create_timeout + DOWN_S, *agents.values())
    assert fleet.job(answer).error_code == "OUTCOME_UNKNOWN"
    vm = fleet.vm()
    assert (vm.vm_state, vm.task_state, vm.host) == (OFFLOADED, TaskState.NONE, None)
    assert fleet.stone(host=command.host).state is TombstoneState.OPEN
    fleet.wire.take()
    again = fleet.ask("vm_unshelve", vm="web-1")
    fleet.tick()
    assert fleet.publish() == []
    waiting = f"{command.host} to answer that nothing of web-1 is left there"
    assert fleet.shown(again)["waiting_for"] == waiting
    agent.ours(command.instance, generation=command.generation)  # it ran there all along
    agent.restart().hello()
    agents[command.host] = agent
    do(fleet, agents, "terminate_instance")
    fleet.pass_(INTERVAL_S, *agents.values())
    do(fleet, agents, "start_vm")
    assert fleet.vm().vm_state is VmState.ACTIVE
    assert fleet.job(again).state == "SUCCEEDED"


def test_an_unshelve_that_waits_in_vain_fails_and_the_vm_is_as_shelved_as_before(
    fleet: Fleet,
) -> None:
    agents = placed(fleet)
    offload(fleet, agents)
    fleet.ask("vm_unshelve", vm="web-1")
    command = cast(fleet, "start_vm")
    agents.pop(command.host).receipt(command.id, m.Step.STARTED)
    fleet.pass_(fleet.cfg.manager.create_timeout + DOWN_S, *agents.values())
    again = fleet.ask("vm_unshelve", vm="web-1")
    fleet.pass_(fleet.cfg.manager.command_timeout + INTERVAL_S, *agents.values())
    assert fleet.job(again).error_code == "OUTCOME_UNKNOWN"
    assert (fleet.vm().vm_state, fleet.vm().snapshot) == (OFFLOADED, kept(fleet))


def test_section6_an_unshelve_on_its_host_that_fails_leaves_it_shelved(keeping: Fleet) -> None:
    agents = placed(keeping)
    shelve(keeping, agents)
    answer = keeping.ask("vm_unshelve", vm="web-1")
    command = cast(keeping, "start_vm")
    agent = agents[command.host]
    agent.fail(command, look=agent.look(command.instance))
    assert (keeping.vm().vm_state, keeping.vm().task_state) == (SHELVED, TaskState.NONE)
    assert not kept(keeping).overtaken
    assert keeping.job(answer).state == "FAILED"


def test_an_unshelve_on_its_host_of_unknown_outcome_makes_no_second_one_of_it(
    keeping: Fleet,
) -> None:
    agents = placed(keeping)
    shelve(keeping, agents)
    keeping.ask("vm_unshelve", vm="web-1")
    command = cast(keeping, "start_vm")
    agent = agents.pop(command.host)
    agent.receipt(command.id, m.Step.STARTED)
    keeping.pass_(keeping.cfg.manager.create_timeout + DOWN_S, *agents.values())
    assert (keeping.vm().vm_state, keeping.vm().host) == (SHELVED, command.host)
    assert kept(keeping).overtaken  # it may have run since: the disks there are the truth
    agent.power(command.instance, PowerState.RUNNING)
    agent.restart().hello()
    agent.beat(full=True)
    agents[command.host] = agent
    keeping.wire.take()
    keeping.ask("vm_unshelve", vm="web-1")
    again = do(keeping, agents, "start_vm")
    assert not again.spec.get("create")
    assert (keeping.vm().vm_state, keeping.vm().host) == (VmState.ACTIVE, command.host)


def test_a_shelved_vm_of_a_fenced_host_runs_elsewhere_from_its_shared_snapshot(
    keeping: Fleet,
) -> None:
    agents = placed(keeping)
    shelve(keeping, agents)
    host = str(keeping.vm().host)
    dead = agents.pop(host)
    keeping.pass_(DOWN_S + INTERVAL_S, *agents.values())
    keeping.ask("host_fence", host=host, operator="ann", reason="its power is cut")
    keeping.ask("vm_unshelve", vm="web-1")
    command = do(keeping, agents, "start_vm")
    assert command.host != host
    assert (keeping.vm().vm_state, keeping.vm().host) == (VmState.ACTIVE, command.host)
    assert keeping.host(host).memory_mib_claimed == 0
    keeping.ask("host_unfence", host=host, operator="ann", reason="mended")
    keeping.wire.take()
    dead.restart().hello()
    agents[host] = dead
    do(keeping, agents, "terminate_instance")
    assert keeping.vm().host == command.host


def test_an_unshelve_on_its_host_that_fails_once_it_was_switched_on_has_outrun_its_snapshot(
    keeping: Fleet,
) -> None:
    agents = placed(keeping)
    shelve(keeping, agents)
    keeping.ask("vm_unshelve", vm="web-1")
    command = cast(keeping, "start_vm")
    agent = agents[command.host]
    phases = (m.Phase("start", 3.0),)
    agent.fail(command, look=agent.look(command.instance), phases=phases)
    assert keeping.vm().power_state is PowerState.SHUTOFF
    assert kept(keeping).overtaken  # it may have run for a moment, and written
    assert "has run since" in refused(keeping, "vm_shelve", offload=True).message


def test_a_shelved_vm_of_a_host_that_was_fenced_and_forgotten_runs_elsewhere(
    keeping: Fleet,
) -> None:
    agents = placed(keeping)
    shelve(keeping, agents)
    host = str(keeping.vm().host)
    agents.pop(host)
    keeping.ask("host_fence", host=host, operator="ann", reason="burnt")
    keeping.pass_(DOWN_S + INTERVAL_S, *agents.values())
    keeping.ask("host_delete", host=host, operator="ann", reason="burnt")
    keeping.ask("vm_unshelve", vm="web-1")
    command = do(keeping, agents, "start_vm")
    assert (keeping.vm().vm_state, keeping.vm().host) == (VmState.ACTIVE, command.host)


def test_an_unknown_unshelve_on_a_host_that_was_fenced_and_forgotten_holds_up_no_other(
    fleet: Fleet,
) -> None:
    agents = placed(fleet)
    offload(fleet, agents)
    fleet.ask("vm_unshelve", vm="web-1")
    lost = cast(fleet, "start_vm")
    dead = agents.pop(lost.host)
    dead.receipt(lost.id, m.Step.STARTED)
    fleet.pass_(fleet.cfg.manager.create_timeout + DOWN_S, *agents.values())
    forget = {"host": lost.host, "operator": "ann", "reason": "burnt"}
    with pytest.raises(MusterError) as caught:
        fleet.ask("host_delete", **forget)
    assert caught.value.remedy == f"if nothing runs there: muster host fence {lost.host}"
    fleet.ask("host_fence", **forget)
    fleet.ask("host_delete", **forget)
    fleet.ask("vm_unshelve", vm="web-1")
    assert do(fleet, agents, "start_vm").host != lost.host
    # One of its name that speaks is not fenced, and what it may have made goes.
    fleet.wire.take()
    agents[dead.host] = dead.restart()
    dead.ours(lost.instance, generation=lost.generation)
    dead.hello()
    do(fleet, agents, "terminate_instance")
    assert dead.guests == {}
    assert fleet.stone(host=dead.host).state is TombstoneState.CLOSED
    assert [row.key for row in fleet.rows(Meta) if dead.host in row.key] == []


# delete


def test_a_delete_does_not_go_again_where_a_shelved_vm_has_left_nothing(fleet: Fleet) -> None:
    agents = placed(fleet)
    offload(fleet, agents)
    left = str(fleet.vm().last_host)
    fleet.ask("host_disable", host=left, operator="ann", reason="full")
    fleet.ask("vm_unshelve", vm="web-1")
    do(fleet, agents, "start_vm")
    do(fleet, agents, "clean_up")
    host = str(fleet.vm().host)
    assert [d["host"] for d in fleet.delete(dry_run=True)["decisions"]] == [host]
    fleet.delete()
    do(fleet, agents, "terminate_instance")
    assert fleet.one(Instance).vm_state is VmState.DELETED
    assert {s.host: s.state for s in fleet.stones()} == dict.fromkeys(
        (left, host), TombstoneState.CLOSED
    )


def test_a_delete_withdraws_no_terminate_that_a_tombstone_waits_for(keeping: Fleet) -> None:
    agents = placed(keeping)
    shelve(keeping, agents)
    agents[str(keeping.vm().host)].end_session()
    keeping.ask("vm_shelve", vm="web-1", offload=True)
    keeping.delete()
    (first, second) = keeping.rows(CommandRow, kind="terminate_instance")
    assert {first.state, second.state} == {CommandState.ACCEPTED}
    assert sorted(c.job is None for c in (first, second)) == [False, True]


def test_section3_a_delete_of_a_shelved_vm_removes_its_guest_and_its_snapshot(
    keeping: Fleet,
) -> None:
    agents = placed(keeping)
    shelve(keeping, agents)
    snapshot = kept(keeping)
    answer = keeping.delete()
    do(keeping, agents, "terminate_instance")
    assert keeping.job(answer).state == "SUCCEEDED"
    removed = cast(keeping, "clean_up")
    assert removed.spec["remains"]["snapshot"] == snapshot.id
    assert [v.kind for v in keeping.rows(Volume)] == [SNAPSHOT]  # as long as it takes its space
    agents[removed.host].fail(removed, look=None)
    assert keeping.one(Cleanup).state is CleanupState.OPEN  # a failure is a clean-up item
    keeping.pass_(INTERVAL_S, *agents.values())
    again = cast(keeping, "clean_up")
    agents[again.host].succeed(again, look=None)
    assert keeping.one(Cleanup).state is CleanupState.DONE
    assert keeping.rows(Volume) == []


def test_section3_row6_a_delete_of_what_is_on_no_host_is_db_only(fleet: Fleet) -> None:
    agents = placed(fleet)
    offload(fleet, agents)
    last = fleet.vm().last_host
    (decision,) = fleet.delete(dry_run=True)["decisions"]
    assert (decision["decision"], decision["row"]) == ("DB-only", 6)
    assert f"its network was released at {last}" in decision["reason"]
    answer = fleet.delete()
    assert answer["state"] == "SUCCEEDED"
    assert fleet.one(Instance).vm_state is VmState.DELETED
    assert told_to_remove(fleet).folder == "/kept"
    assert [s.state for s in fleet.stones()] == [TombstoneState.CLOSED]


def test_section3_a_snapshot_on_a_dead_host_is_removed_when_that_is_back(fleet: Fleet) -> None:
    agents = placed(fleet, pools=False)
    offload(fleet, agents)
    host = str(fleet.vm().last_host)
    dead = agents.pop(host)
    fleet.pass_(DOWN_S + INTERVAL_S, *agents.values())
    assert fleet.delete()["state"] == "SUCCEEDED"
    assert fleet.publish() == []
    item = fleet.one(Cleanup)
    assert (item.host, item.state, item.waits_for) == (
        host,
        CleanupState.OPEN,
        f"{host} to say hello",
    )
    dead.restart().hello()
    dead.beat(full=True)
    fleet.pass_(4 * INTERVAL_S, dead, *agents.values())
    dead.succeed(cast(fleet, "clean_up"), look=None)
    assert fleet.one(Cleanup).state is CleanupState.DONE


def test_a_delete_in_the_middle_of_a_shelve_removes_what_was_copied(fleet: Fleet) -> None:
    agents = placed(fleet)
    job = fleet.ask("vm_shelve", vm="web-1")
    command = cast(fleet, "shelve_vm")
    agent = agents[command.host]
    agent.receipt(command.id, m.Step.STARTED)
    fleet.delete()
    terminate = cast(fleet, "terminate_instance")
    agent.carry_out(command)
    agent.carry_out(terminate)
    assert fleet.one(Instance).vm_state is VmState.DELETED
    assert fleet.job(job).state in ("SUCCEEDED", "CANCELLED")
    removed = cast(fleet, "clean_up")
    assert removed.host == command.host  # who may have written to it last


def test_a_delete_while_the_guest_leaves_ends_the_shelve_too(fleet: Fleet) -> None:
    agents = placed(fleet)
    job = shelve(fleet, agents)
    terminate = cast(fleet, "terminate_instance")
    fleet.delete()
    second = cast(fleet, "terminate_instance")
    agents[terminate.host].carry_out(terminate)
    agents[second.host].carry_out(second)
    assert fleet.one(Instance).vm_state is VmState.DELETED
    assert fleet.job(job).state == "CANCELLED"
    assert told_to_remove(fleet).folder == "/kept"


def test_section3_row5_what_is_not_wholly_on_its_host_is_not_deleted_softly(fleet: Fleet) -> None:
    agents = placed(fleet)
    offload(fleet, agents)
    with pytest.raises(MusterError) as caught:
        fleet.delete(soft=True)
    assert caught.value.code == "WRONG_STATE"


# a database that was put back


@pytest.fixture
def told(fleet_of: FleetOf) -> Fleet:
    """As `later`, with agents that hear how far their database is."""
    return fleet_of(shelved_offload_time=300.0, canary_interval=30.0)


def accepted(fleet: Fleet, agents: Agents, *floors: m.Command) -> None:
    """All agents have said what they know, `floors` among it, and somebody goes on from there."""
    for agent in agents.values():
        with pytest.raises(DbRolledBack):
            greet(fleet, agent)
    for command in floors:
        entry = m.FloorEntry(command.instance, command.generation)
        fleet.store.run(restore.floors, command.host, (entry,))
    fleet.ask("db_accept_restore", operator="ann", reason="its disk died")
    for agent in agents.values():
        agent.session = greet(fleet, agent).session
        agent.beat(full=True)


def obeyed(fleet: Fleet, agents: Agents, seconds: float) -> list[str]:
    """Time passes and agents do what they are told; what that was."""
    done = []
    while seconds > 0:
        fleet.pass_(INTERVAL_S, *agents.values())
        seconds -= INTERVAL_S
        for cast in fleet.publish():
            if cast.command.kind is m.CommandKind.NOOP:
                agents[cast.host].succeed(cast.command, look=None)
            else:
                done.append(f"{cast.method} {cast.host}")
                agents[cast.host].carry_out(cast.command)
    return done


def test_a_guest_that_runs_again_is_not_removed_by_a_database_that_remembers_it_as_shelved(
    told: Fleet,
) -> None:
    agents = placed(told)
    host = str(told.vm().host)
    shelve(told, agents)
    go_on(told, 60.0, *agents.values())
    backup = Backup(told)
    told.ask("vm_unshelve", vm="web-1")
    start = do(told, agents, "start_vm")
    do(told, agents, "clean_up")  # the snapshot is gone
    go_on(told, 600.0, *agents.values())
    backup.put_back()
    told.clock.move(INTERVAL_S)
    agents[host].beat()  # its session is in the backup, and its guest no news
    told.tick()
    assert told.stones() == []
    accepted(told, agents, start)
    assert obeyed(told, agents, 400.0) == []
    assert agents[host].of(start.instance).power_state is PowerState.RUNNING
    assert (told.vm().vm_state, told.vm().host) == (SHELVED, host)
    assert kept(told).overtaken
    told.ask("vm_unshelve", vm="web-1")
    assert obeyed(told, agents, INTERVAL_S)[0] == f"start_vm {host}"
    assert told.vm().vm_state is VmState.ACTIVE


def test_a_guest_that_was_leaving_when_the_backup_was_made_stays(told: Fleet) -> None:
    agents = placed(told)
    go_on(told, 60.0, *agents.values())
    answer = shelve(told, agents, offload=True)
    backup = Backup(told)
    do(told, agents, "terminate_instance")
    told.ask("vm_unshelve", vm="web-1")
    (start,) = [c.command for c in told.publish() if c.method == "start_vm"]
    agents[start.host].carry_out(start)
    do(told, agents, "clean_up")
    go_on(told, 60.0, *agents.values())
    backup.put_back()
    accepted(told, agents, start)
    assert told.stones() == []
    assert (told.vm().vm_state, told.vm().task_state) == (SHELVED, TaskState.NONE)
    assert told.job(answer).state == "SUCCEEDED"
    done = obeyed(told, agents, 400.0)
    assert [kind for kind in done if kind.startswith("terminate")] == []
    assert agents[start.host].of(start.instance).power_state is PowerState.RUNNING


def test_a_guest_that_was_used_since_it_was_shelved_refuses_to_leave_and_stays(
    later: Fleet,
) -> None:
    agents = placed(later)
    shelve(later, agents)
    agent = agents[str(later.vm().host)]
    mark = agent.of(later.vm().uuid).mark
    assert mark is not None
    answer = later.ask("vm_shelve", vm="web-1", offload=True)
    newer = msgspec.structs.replace(mark, generation=mark.generation + 1)
    agent.change(later.vm().uuid, mark=newer, power_state=PowerState.RUNNING)
    do(later, agents, "terminate_instance")
    assert agent.of(later.vm().uuid).power_state is PowerState.RUNNING
    assert (later.vm().vm_state, later.vm().host) == (SHELVED, agent.host)
    assert (later.vm().task_state, later.stones()) == (TaskState.NONE, [])
    assert later.job(answer).state == "SUCCEEDED"
    assert "has run since its snapshot" in refused(later, "vm_shelve", offload=True).message


@pytest.fixture
def moved(told: Fleet) -> tuple[Agents, m.Command]:
    """Shelved in the database, which has forgotten that it has left, and runs on another host."""
    agents = placed(told)
    shelve(told, agents)
    go_on(told, 60.0, *agents.values())
    backup = Backup(told)
    told.ask("vm_shelve", vm="web-1", offload=True)
    do(told, agents, "terminate_instance")
    told.ask("host_disable", host=told.vm().last_host, operator="ann", reason="full")
    told.ask("vm_unshelve", vm="web-1")
    start = do(told, agents, "start_vm")
    do(told, agents, "clean_up")
    go_on(told, 60.0, *agents.values())
    backup.put_back()
    assert start.host != told.vm().host
    return agents, start


def test_a_vm_that_was_unshelved_elsewhere_is_there_once_its_old_host_has_nothing_of_it(
    told: Fleet, moved: tuple[Agents, m.Command]
) -> None:
    agents, start = moved
    accepted(told, agents, start)
    assert (told.vm().vm_state, len(told.events("instance.duplicate"))) == (SHELVED, 1)
    assert obeyed(told, agents, 400.0) == []
    told.ask("vm_shelve", vm="web-1", offload=True)
    done = obeyed(told, agents, 60.0)
    assert [kind for kind in done if kind.startswith("stop")] == []
    assert (told.vm().vm_state, told.vm().host) == (VmState.ACTIVE, start.host)
    assert agents[start.host].of(start.instance).power_state is PowerState.RUNNING
    assert told.host(start.host).memory_mib_claimed == told.vm().memory_mib


def test_a_vm_that_was_unshelved_elsewhere_is_there_also_when_that_host_comes_later(
    told: Fleet, moved: tuple[Agents, m.Command]
) -> None:
    agents, start = moved
    late = agents.pop(start.host)
    accepted(told, agents, m.convert({**m.builtins(start), "host": "h1"}, m.Command))
    told.ask("vm_shelve", vm="web-1", offload=True)
    obeyed(told, agents, 60.0)
    assert told.vm().vm_state is OFFLOADED
    late.mark = 0
    agents[late.host] = late
    late.hello()
    late.beat(full=True)
    assert (told.vm().vm_state, told.vm().host) == (VmState.ACTIVE, start.host)
    assert [d for d in obeyed(told, agents, 60.0) if "stop" in d or "terminate" in d] == []


def test_a_shelved_vm_is_not_started_while_a_later_guest_of_it_is_elsewhere(
    told: Fleet, moved: tuple[Agents, m.Command]
) -> None:
    agents, start = moved
    accepted(told, agents, start)
    error = refused(told, "vm_unshelve")
    assert f"made after its snapshot is on {start.host}" in error.message
    assert error.remedy.endswith("muster vm shelve web-1 --offload")
    assert obeyed(told, agents, INTERVAL_S) == []


def test_a_shelved_vm_of_a_fenced_host_that_runs_elsewhere_is_not_made_once_more(
    told: Fleet, moved: tuple[Agents, m.Command]
) -> None:
    agents, start = moved
    host = str(told.vm().host)
    accepted(told, agents, start)
    agents.pop(host)
    told.ask("host_fence", host=host, operator="ann", reason="its power is cut")
    assert told.ask("vm_unshelve", vm="web-1")["state"] == "SUCCEEDED"
    assert (told.vm().vm_state, told.vm().host) == (VmState.ACTIVE, start.host)
    assert "start_vm" not in " ".join(obeyed(told, agents, 60.0))


def test_what_was_shelved_is_not_made_anew_while_a_host_is_ahead_of_the_database(
    told: Fleet,
) -> None:
    agents = placed(told)
    shelve(told, agents, offload=True)
    do(told, agents, "terminate_instance")
    go_on(told, 60.0, *agents.values())
    backup = Backup(told)
    go_on(told, 60.0, *agents.values())
    backup.put_back()
    with pytest.raises(DbRolledBack):
        greet(told, agents["h2"])
    assert refused(told, "vm_unshelve").code == DbRolledBack.code


def test_a_snapshot_stays_until_a_guest_that_was_made_from_it_runs(fleet: Fleet) -> None:
    agents = placed(fleet)
    offload(fleet, agents)
    vm, agent = fleet.vm(), agents["h2"]
    off = {"power_state": PowerState.SHUTOFF}
    agent.ours(vm.uuid, generation=vm.generation + 5, name=vm.name, **off)  # half made
    agent.beat()
    agent.beat(full=True)
    assert (fleet.vm().vm_state, fleet.vm().host) == (VmState.SHUTOFF, "h2")
    assert kept(fleet).taken_at is not None
    assert refused(fleet, "vm_shelve").remedy == "muster vm start web-1"
    fleet.ask("vm_start", vm="web-1")
    do(fleet, agents, "start_vm")
    agent.beat(full=True)
    assert told_to_remove(fleet).folder == "/kept"
    assert fleet.vm().snapshot is None


# what else an operator may say


def test_set_state_of_what_is_only_a_snapshot_is_refused(fleet: Fleet) -> None:
    agents = placed(fleet)
    offload(fleet, agents)
    error = refused(fleet, "vm_set_state", vm_state="SHUTOFF", reason="I say so")
    assert (error.code, error.remedy) == ("WRONG_STATE", "muster vm unshelve web-1")
    assert "muster vm unshelve" in refused(fleet, "vm_start").remedy


def test_set_state_of_a_shelved_vm_makes_its_guest_the_vm_again(keeping: Fleet) -> None:
    agents = placed(keeping)
    shelve(keeping, agents)
    keeping.ask("vm_set_state", vm="web-1", vm_state="SHUTOFF", reason="its disks are there")
    agents[str(keeping.vm().host)].beat(full=True)
    assert keeping.vm().vm_state is VmState.SHUTOFF
    assert keeping.vm().snapshot is None
    assert told_to_remove(keeping).folder == "/kept"


def test_a_shelve_whose_guest_is_to_leave_can_not_be_cancelled(fleet: Fleet) -> None:
    agents = placed(fleet)
    answer = shelve(fleet, agents)
    with pytest.raises(MusterError) as caught:
        fleet.ask("job_cancel", job=answer["uuid"], operator="ann")
    assert "has copied all disks" in caught.value.message


def test_a_host_that_keeps_a_snapshot_of_its_own_is_not_forgotten(fleet: Fleet) -> None:
    agents = placed(fleet, pools=False)
    offload(fleet, agents)
    host = str(fleet.vm().last_host)
    agents.pop(host)
    fleet.pass_(DOWN_S + INTERVAL_S, *agents.values())
    with pytest.raises(MusterError) as caught:
        fleet.ask("host_delete", host=host, operator="ann", reason="scrapped")
    assert caught.value.message == f"{host} keeps the snapshot of 1 shelved VM: web-1"
    assert (
        "keeps the snapshot"
        in fleet.ask("host_delete", host=host, operator="ann", reason="scrapped", dry_run=True)[
            "decisions"
        ][0]["reason"]
    )
    fleet.delete()
    fleet.ask("host_delete", host=host, operator="ann", reason="scrapped")


def test_both_verbs_may_be_repeated_under_the_same_job(fleet: Fleet) -> None:
    agents = placed(fleet)
    job = "11111111-2222-3333-4444-555555555555"
    first = fleet.ask("vm_shelve", vm="web-1", job=job)
    assert fleet.ask("vm_shelve", vm="web-1", job=job)["uuid"] == first["uuid"]
    (row,) = [c for c in fleet.rows(CommandRow) if c.kind == "shelve_vm"]
    assert row.state is CommandState.PUBLISHED
    assert agents


def test_the_space_of_a_snapshot_goes_with_it_whatever_else_is_removed_from_its_pool(
    keeping: Fleet,
) -> None:
    agents = placed(keeping)
    shelve(keeping, agents)
    uuid = keeping.vm().uuid
    left = m.GuestFiles(instance=uuid, bearer=uuid, folders=("/kept",))

    def owe_both(tx: Tx) -> None:
        why = "not needed any more"
        vm = tx.get(Instance, uuid)
        cleanup.add(tx, keeping.cfg, vm, kind="files", remains=left, reason=why, pool="kept")
        snapshots.drop(tx, keeping.cfg, tx.get(Instance, uuid), why)

    keeping.store.run(owe_both)
    keeping.tick()
    for sent in keeping.publish():
        if sent.method == "clean_up" and "snapshot" in sent.command.spec["remains"]:
            agents[sent.host].succeed(sent.command, look=None)
    assert keeping.rows(Volume, kind=SNAPSHOT) == []
    (item,) = keeping.rows(Cleanup, state=CleanupState.OPEN)
    assert item.kind == "files"

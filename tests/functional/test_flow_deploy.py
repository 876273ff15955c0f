"""Deploying a VM, step by step (decision tables, section 8, from step 2 on)."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from common import messages as m
from common.errors import BadRequest, NoAddress, NoValidHost, QuotaExceeded, WrongState
from common.states import CommandState, PowerState, TaskState, TombstoneState, VmState
from manager.flows import limits
from manager.store.addresses import Address, Hostname, Mac
from manager.store.commands import CommandRow, Void
from manager.store.engine import Tx
from manager.store.hosts import Host
from manager.store.instances import Instance
from manager.store.volumes import Volume
from tests.functional.fleet import INTERVAL_S, Fleet, ScriptedAgent
from tests.functional.zone import MORE, ZONE, deploy, make, refuse, started

POOLS = [
    {"name": "wide", "scope": "zone", "zone": "z1", "path": "/wide", "capacity_gib": 20},
    {"name": "near", "scope": "host", "host": "h2", "path": "/near", "capacity_gib": 40},
]


@pytest.fixture
def agents(fleet: Fleet) -> list[ScriptedAgent]:
    """Three hosts of a zone: h3 has the most memory, then h2, then h1."""
    make(fleet, **ZONE)
    return [ScriptedAgent(fleet, f"h{n}").up(memory_mib=1024 * (n + 1)) for n in (1, 2, 3)]


@pytest.fixture
def zone(fleet: Fleet, agents: list[ScriptedAgent]) -> Fleet:
    return fleet


def vm_of(fleet: Fleet, answer: dict[str, Any]) -> Instance:
    return fleet.row(Instance, answer["instance"])


def patience_s(fleet: Fleet) -> float:
    """After so long a start is late."""
    return fleet.cfg.manager.create_timeout + 2 * INTERVAL_S


def used(fleet: Fleet, project: str = "default") -> dict[str, int]:
    def count(tx: Tx) -> dict[str, int]:
        return limits.usage(tx, project)

    found: dict[str, int] = fleet.store.run(count)
    return found


def holds_nothing(fleet: Fleet, project: str = "default") -> None:
    """Nobody has an address, a name, disk space or a share of a host or a limit."""
    for kind in (Mac, Address, Hostname, Volume, Void):
        assert fleet.rows(kind) == [], kind
    assert set(used(fleet, project).values()) == {0}
    claims = {(h.vcpus_claimed, h.memory_mib_claimed) for h in fleet.rows(Host)}
    assert claims == {(0, 0)}


def why(fleet: Fleet, **asked: Any) -> dict[str, str]:
    """What --dry-run says of each host."""
    answer = deploy(fleet, dry_run=True, **asked)
    return {each["host"]: each["reason"] for each in answer["decisions"]}


def chosen(fleet: Fleet, **asked: Any) -> str | None:
    host: str | None = deploy(fleet, dry_run=True, **asked)["host"]
    return host


def carried_out(fleet: Fleet, agents: list[ScriptedAgent]) -> m.Command:
    """The one start that was cast, done by its host."""
    command = started(fleet)
    next(agent for agent in agents if agent.host == command.host).carry_out(command)
    return command


# 2: limits

EACH_LIMIT = [
    ("instances", 1, "instances: 1 of 1 are in use, 1 more wanted"),
    ("vcpus", 1, "vcpus: 1 of 1 are in use, 1 more wanted"),
    ("memory_mib", 511, "memory_mib: 256 of 511 are in use, 256 more wanted"),
    ("volumes", 2, "volumes: 2 of 2 are in use, 2 more wanted"),
    ("storage_gib", 15, "storage_gib: 8 of 15 are in use, 8 more wanted"),
    ("addresses", 1, "addresses: 1 of 1 are in use, 1 more wanted"),
]


@pytest.mark.parametrize(("limit", "at", "said"), EACH_LIMIT)
def test_8_2_a_limit_that_is_reached_is_named(zone: Fleet, limit: str, at: int, said: str) -> None:
    make(zone, projects=[{"name": "shop", limit: at}])
    asked: dict[str, Any] = {"project": "shop", "data_disks": [{"size_gib": 3}]}
    deploy(zone, "web-1", **asked)
    before = zone.everything()
    for dry_run in (False, True):
        with pytest.raises(QuotaExceeded, match=said) as caught:
            deploy(zone, "web-2", dry_run=dry_run, **asked)
        assert "muster quota set shop" in caught.value.remedy
    assert zone.everything() == before
    deploy(zone, "web-2", **{**asked, "project": "other"})  # whose limits are its own


def test_8_2_every_limit_that_would_be_broken_is_named_at_once(zone: Fleet) -> None:
    make(zone, projects=[{"name": "shop", "instances": 0, "vcpus": 0, "addresses": 5}])
    with pytest.raises(QuotaExceeded) as caught:
        deploy(zone, project="shop")
    assert "instances: " in caught.value.message
    assert "vcpus: " in caught.value.message
    assert "addresses" not in caught.value.message


def test_8_2_limits_are_held_from_the_create_to_the_deletion(
    zone: Fleet, agents: list[ScriptedAgent]
) -> None:
    deploy(zone, project="shop", data_disks=[{"size_gib": 3}])
    held = {
        "instances": 1,
        "vcpus": 1,
        "memory_mib": 256,
        "volumes": 2,
        "storage_gib": 8,
        "addresses": 1,
    }
    assert used(zone, "shop") == held
    carried_out(zone, agents)
    assert used(zone, "shop") == held
    zone.delete()
    assert used(zone, "shop") == held
    (terminate,) = zone.publish()
    agents[2].carry_out(terminate.command)
    holds_nothing(zone, "shop")


def test_8_2_the_second_address_of_a_card_counts_for_nothing(zone: Fleet) -> None:
    """What is limited are IPv4 addresses: a card makes its IPv6 address itself."""
    make(zone, **MORE)
    deploy(zone, project="shop", networks=[{"network": "n2"}])
    assert len(zone.rows(Address)) == 2
    assert used(zone, "shop")["addresses"] == 1


def test_8_2_a_disabled_project_gets_no_vm(zone: Fleet) -> None:
    make(zone, projects=[{"name": "shop", "enabled": False}])
    with pytest.raises(BadRequest, match="project shop is disabled"):
        deploy(zone, project="shop")


# 3: cards and volumes


def test_8_3_a_card_gets_an_address_of_its_network_and_a_mac_of_the_fleet(zone: Fleet) -> None:
    vm = vm_of(zone, deploy(zone))
    (nic,) = vm.nics
    assert nic.mac.startswith(zone.cfg.manager.mac_prefix)
    assert nic.address is not None
    assert nic.address.startswith("10.1.0.")
    (card,) = started(zone).spec["guest"]["nics"]
    assert (card["mac"], card["address"]) == (nic.mac, f"{nic.address}/24")
    assert (card["gateway"], vm.address) == ("10.1.0.1", nic.address)


def test_8_3_an_address_that_serves_the_network_is_given_to_nobody(zone: Fleet) -> None:
    make(
        zone,
        networks=[
            {
                "name": "n1",
                "first": "10.1.0.1",
                "last": "10.1.0.4",
                "gateway": "10.1.0.2",
                "dns": ["10.1.0.3", "192.0.2.1"],
            }
        ],
    )
    given = {vm_of(zone, deploy(zone, f"web-{n}")).address for n in range(2)}
    assert given == {"10.1.0.1", "10.1.0.4"}
    with pytest.raises(NoAddress, match="none of its 4 addresses is free"):
        deploy(zone, "web-3")


def test_8_3_an_address_in_quarantine_is_skipped_until_its_guest_is_proven_gone(
    zone: Fleet, agents: list[ScriptedAgent]
) -> None:
    make(zone, networks=[{"name": "n1", "first": "10.1.0.10", "last": "10.1.0.11"}])
    deploy(zone, "web-1", host="h1")
    carried_out(zone, agents)
    was = zone.vm("web-1").address
    zone.delete("web-1", force=True, reason="a test")
    assert zone.stone().holds == ("mac", "address", "disk")
    other = vm_of(zone, deploy(zone, "web-2", host="h2")).address
    assert {was, other} == {"10.1.0.10", "10.1.0.11"}
    with pytest.raises(NoAddress):
        deploy(zone, "web-3", networks=[{"network": "n1", "address": was}])
    with pytest.raises(NoAddress, match="none of its 2"):
        deploy(zone, "web-3")
    zone.wire.take()
    zone.tick()
    (terminate,) = [c for c in zone.publish() if c.method == "terminate_instance"]
    agents[0].carry_out(terminate.command)
    assert vm_of(zone, deploy(zone, "web-3")).address == was


def test_8_3_each_disk_is_put_into_a_pool_and_its_space_is_held(
    zone: Fleet, agents: list[ScriptedAgent]
) -> None:
    make(zone, pools=POOLS)
    asked: dict[str, Any] = {"data_disks": [{"size_gib": 30}]}
    assert why(zone, **asked) == {
        "h1": "has 20 GiB free in pool wide of 30 wanted",
        "h2": "3072 MiB free, chosen (spread)",
        "h3": "has 20 GiB free in pool wide of 30 wanted",
    }
    vm = vm_of(zone, deploy(zone, **asked))
    placed = {v.n: (v.pool, v.host, v.size_gib) for v in zone.rows(Volume, instance=vm.uuid)}
    assert placed == {0: ("wide", "h2", 5), 1: ("near", "h2", 30)}
    folders = [disk["folder"] for disk in carried_out(zone, agents).spec["guest"]["disks"]]
    assert folders == ["/wide", "/near"]
    assert set(why(zone, **asked).values()) >= {"has 15 GiB free in pool wide of 30 wanted"}
    for n in range(3):
        deploy(zone, f"more-{n}", pool="wide")
    with pytest.raises(NoValidHost, match="has 0 GiB free in pool wide of 5 wanted"):
        deploy(zone, "web-2", pool="wide")


def test_8_3_a_pool_is_used_by_the_vms_whose_disks_it_holds(zone: Fleet) -> None:
    make(zone, pools=POOLS[:1])
    deploy(zone)
    with pytest.raises(Exception, match="VM web-1") as caught:
        zone.ask("model_delete", kind="pool", name="wide")
    assert getattr(caught.value, "code", "") == "IN_USE"


# 4: the plan


def test_8_4_dry_run_explains_every_host_and_reserves_nothing(
    zone: Fleet, agents: list[ScriptedAgent]
) -> None:
    zone.ask("host_disable", host="h3")
    before = zone.everything()
    assert why(zone) == {
        "h1": "2048 MiB free",
        "h2": "3072 MiB free, chosen (spread)",
        "h3": "is disabled (muster host enable)",
    }
    assert chosen(zone) == "h2"
    assert chosen(zone, memory_mib=None, offering="small", host="h3") is None
    assert zone.everything() == before
    holds_nothing(zone)


@pytest.mark.parametrize(
    ("order", "first", "second"),
    [
        ("first_fit", "h1", "h1"),
        ("spread", "h3", "h3"),
        ("pack", "h1", "h1"),
        ("spread_by_project", "h3", "h2"),
    ],
)
def test_8_4_orders(zone: Fleet, order: str, first: str, second: str) -> None:
    assert vm_of(zone, deploy(zone, "web-1", order=order)).host == first
    assert vm_of(zone, deploy(zone, "web-2", order=order)).host == second


def test_8_4_members_of_an_anti_affinity_group_are_kept_apart(
    zone: Fleet, agents: list[ScriptedAgent]
) -> None:
    make(zone, **MORE)
    asked: dict[str, Any] = {"networks": [{"network": "n1"}], "affinity_groups": ["apart"]}
    hosts = {vm_of(zone, deploy(zone, f"web-{n}", **asked)).host for n in range(3)}
    assert hosts == {"h1", "h2", "h3"}
    with pytest.raises(NoValidHost, match="has a VM of its anti-affinity group"):
        deploy(zone, "web-3", **asked)
    for command in [cast.command for cast in zone.wire.take("start_vm")]:
        next(a for a in agents if a.host == command.host).carry_out(command)
    zone.delete("web-1")
    (terminate,) = zone.publish()
    next(a for a in agents if a.host == terminate.host).carry_out(terminate.command)
    assert vm_of(zone, deploy(zone, "web-3", **asked)).host == terminate.host


def test_8_4_members_of_an_affinity_group_share_a_host(zone: Fleet) -> None:
    make(zone, **MORE)
    asked: dict[str, Any] = {"networks": [{"network": "n1"}], "affinity_groups": ["together"]}
    deploy(zone, "web-1", host="h2", **asked)
    assert vm_of(zone, deploy(zone, "web-2", **asked)).host == "h2"
    assert why(zone, **asked)["h3"] == "is not where its affinity group is (h2)"


@pytest.mark.parametrize(
    ("asked", "fitting"),
    [
        ({"pod": "p1"}, {"h1", "h2", "h3"}),
        ({"cluster": "c1"}, {"h1", "h2"}),
        ({"host": "h1"}, {"h1"}),
        ({"pool": "near"}, {"h2"}),
        ({"offering": "fast"}, {"h3"}),
    ],
)
def test_8_4_an_operator_names_where(zone: Fleet, asked: dict[str, Any], fitting: set[str]) -> None:
    make(
        zone,
        pools=POOLS,
        offerings=[{"name": "fast", "vcpus": 1, "memory_mib": 256, "host_tags": ["ssd"]}],
    )
    found = why(zone, **asked)
    assert {host for host, reason in found.items() if "MiB free" in reason} == fitting


def test_8_4_strangers_and_what_really_runs_count(zone: Fleet, agents: list[ScriptedAgent]) -> None:
    h1, h2, h3 = agents
    h1.guest(memory_mib=1900)
    h1.beat(full=True, capacity_mib=2048)
    h2.guest(memory_mib=3000, power_state=PowerState.SHUTOFF)
    h2.beat(full=True, capacity_mib=3072)
    zone.put(h3.row, memory_mib_used=4000)
    assert why(zone) == {
        "h1": "has 148 MiB free of 256 wanted",
        "h2": "3072 MiB free, chosen (spread)",
        "h3": "has 96 MiB free of 256 wanted",
    }


def test_8_4_a_claim_counts_the_strangers_that_run_and_what_we_run_only_once(
    zone: Fleet, agents: list[ScriptedAgent]
) -> None:
    """The hypervisor has not yet told what it uses."""
    h1 = agents[0]
    deploy(zone, "web-1", host="h1")
    carried_out(zone, agents)
    h1.guest(memory_mib=2048, power_state=PowerState.SHUTOFF)
    h1.guest(memory_mib=1400)
    h1.beat(full=True)
    deploy(zone, "web-2", host="h1")
    assert h1.row.memory_mib_claimed == 2 * 256
    with pytest.raises(NoValidHost, match="h1: has 136 MiB free of 256 wanted"):
        deploy(zone, "web-3", host="h1")


def test_8_4_what_was_promised_counts_before_it_runs(
    zone: Fleet, agents: list[ScriptedAgent]
) -> None:
    make(zone, offerings=[{"name": "half", "vcpus": 1, "memory_mib": 1024, "root_gib": 5}])
    for n in range(2):
        deploy(zone, f"web-{n}", offering="half", host="h1")
    with pytest.raises(NoValidHost, match="h1: has 0 MiB free of 1024 wanted"):
        deploy(zone, "web-2", offering="half", host="h1")
    # Also once it is stopped: it can be started again.
    for cast in zone.wire.take("start_vm"):
        agents[0].carry_out(cast.command)
    zone.ask("vm_stop", vm="web-1")
    agents[0].carry_out(zone.wire.take("stop_vm")[0].command)
    agents[0].beat(full=True, capacity_mib=2048)
    with pytest.raises(NoValidHost):
        deploy(zone, "web-2", offering="half", host="h1")


def test_8_4_ratios_are_the_clusters_then_the_offerings_then_the_vms_own(zone: Fleet) -> None:
    make(
        zone,
        clusters=[{"name": "c1", "memory_overcommit": 2.0, "cpu_overcommit": 0.1}],
        offerings=[{"name": "lean", "vcpus": 7, "memory_mib": 256, "cpu_overcommit": 0.2}],
    )
    assert why(zone, host="h1") == {"h1": "4096 MiB free, chosen (spread)"}
    assert why(zone, host="h1", memory_overcommit=0.1) == {"h1": "has 204 MiB free of 256 wanted"}
    seven: dict[str, Any] = {"host": "h1", "root_gib": 5}
    asked = {**seven, "offering": "open", "vcpus": 4, "memory_mib": 128}
    assert "4096 MiB free" in why(zone, **asked)["h1"]
    assert "4096 MiB free" in why(zone, **seven, offering="lean")["h1"]
    asked = {**seven, "offering": "lean", "cpu_overcommit": 0.1}
    assert why(zone, **asked) == {"h1": "has 6 vCPUs free of 7 wanted"}


def test_8_4_a_host_used_beyond_its_clusters_threshold_takes_no_more(
    zone: Fleet, agents: list[ScriptedAgent]
) -> None:
    make(zone, clusters=[{"name": "c1", "memory_threshold": 0.5, "cpu_threshold": 0.9}])
    zone.put(agents[0].row, memory_mib_used=1024)
    zone.put(agents[1].row, vcpus_used=922)
    assert why(zone) == {
        "h1": "has 50% of its memory used, and its cluster takes no more from 50% on",
        "h2": "has 90% of its vCPUs used, and its cluster takes no more from 90% on",
        "h3": "4096 MiB free, chosen (spread)",
    }


@pytest.mark.parametrize("kind", ["cluster", "pod"])
def test_8_4_a_closed_cluster_or_pod_takes_none(zone: Fleet, kind: str) -> None:
    name = {"cluster": "c2", "pod": "p1"}[kind]
    zone.ask("model_set", kind=kind, name=name, fields={"enabled": False})
    assert why(zone)["h3"] == f"is in {kind} {name}, which is disabled"


def test_8_4_vms_of_one_request_see_each_other(zone: Fleet) -> None:
    """One transaction: nothing of the first is written yet when the second is decided about."""
    make(zone, **MORE)
    make(zone, projects=[{"name": "shop", "instances": 5}], pools=POOLS[:1])
    base = {"zone": "z1", "offering": "small", "template": "img", "operator": "ann"}
    asked = {
        **base,
        "networks": [{"network": "n1"}],
        "project": "shop",
        "affinity_groups": ["apart"],
    }

    def at_once(first: int, last: int) -> list[dict[str, Any]]:
        wishes = [
            ["vm_create", {**asked, "job": str(uuid.uuid4()), "name": "web"}]
            for _ in range(first, last)
        ]
        found: list[dict[str, Any]] = zone.ask("wishes", wishes=wishes)["answers"]
        return found

    assert {each["answer"]["host"] for each in at_once(0, 3)} == {"h1", "h2", "h3"}
    assert len({vm.hostname for vm in zone.rows(Instance)}) == 3
    assert {each["error"]["code"] for each in at_once(3, 5)} == {"NO_VALID_HOST"}
    asked.pop("affinity_groups")
    codes = [each.get("error", {}).get("code") for each in at_once(3, 6)]
    assert codes == [None, "NO_VALID_HOST", "NO_VALID_HOST"], "4 x 5 GiB is all there is"
    make(zone, pools=[{"name": "wide", "capacity_gib": 90}])
    codes = [each.get("error", {}).get("code") for each in at_once(3, 6)]
    assert codes == [None, "QUOTA_EXCEEDED", "QUOTA_EXCEEDED"]
    assert sum(h.memory_mib_claimed for h in zone.rows(Host)) == 5 * 256


# 5 and 6: the start, and the next host


def test_8_5_a_create_that_stops_after_the_first_half_is_started_later(
    zone: Fleet, agents: list[ScriptedAgent]
) -> None:
    make(zone, pools=POOLS)
    job = deploy(zone, start=False)
    assert job["state"] == "SUCCEEDED"
    assert [s["name"] for s in zone.shown(job)["steps"]] == ["reserve"]
    vm = zone.vm()
    assert (vm.vm_state, vm.task_state, vm.host) == (VmState.SHUTOFF, TaskState.NONE, None)
    assert zone.wire.take("start_vm") == []
    assert used(zone)["storage_gib"] == 5
    assert [v.pool for v in zone.rows(Volume)] == [None]
    assert {f["code"] for f in zone.ask("doctor")["findings"]} <= {"MANAGERS_BLIND"}
    start = zone.ask("vm_start", vm="web-1")
    assert (start["kind"], start["state"]) == ("start", "RUNNING")
    carried_out(zone, agents)
    assert zone.shown(start)["state"] == "SUCCEEDED"
    vm = zone.vm()
    assert (vm.vm_state, vm.host, vm.address) == (VmState.ACTIVE, "h3", vm.nics[0].address)
    assert [v.pool for v in zone.rows(Volume)] == ["wide"]
    # From here on it is started where it is.
    zone.ask("vm_stop", vm="web-1")
    agents[2].carry_out(zone.wire.take("stop_vm")[0].command)
    zone.ask("vm_start", vm="web-1")
    assert started(zone).host == "h3"


def test_8_5_a_vm_that_was_never_started_is_deleted_at_once(zone: Fleet) -> None:
    deploy(zone, start=False)
    assert zone.delete()["state"] == "SUCCEEDED"
    holds_nothing(zone)


def test_8_5_a_start_that_finds_no_host_leaves_the_vm_as_it_was(zone: Fleet) -> None:
    deploy(zone, start=False, host="h1")
    zone.ask("host_disable", host="h1")
    before = zone.everything()
    with pytest.raises(NoValidHost, match="h1: is disabled"):
        zone.ask("vm_start", vm="web-1")
    assert zone.everything() == before


def test_8_6_a_host_that_refuses_is_left_out_and_the_job_tells_all_of_it(
    zone: Fleet, agents: list[ScriptedAgent]
) -> None:
    job = deploy(zone)
    assert [refuse(zone, *agents)] == ["h3"]
    assert zone.vm().host is None
    assert "no room in the stable" in zone.shown(job)["waiting_for"]
    zone.clock.move(1)
    zone.tick()
    assert refuse(zone, *agents) == "h2"
    zone.clock.move(1)
    zone.tick()
    carried_out(zone, agents)
    vm = zone.vm()
    assert (vm.vm_state, vm.host, vm.task_state) == (VmState.ACTIVE, "h1", TaskState.NONE)
    shown = zone.shown(job)
    assert shown["state"] == "SUCCEEDED"
    assert [(s["name"], s["state"]) for s in shown["steps"]] == [
        ("reserve", "SUCCEEDED"),
        ("place", "SUCCEEDED"),
        ("start_vm on h3", "FAILED"),
        ("place", "SUCCEEDED"),
        ("start_vm on h2", "FAILED"),
        ("place", "SUCCEEDED"),
        ("start_vm on h1", "SUCCEEDED"),
    ]
    assert all(s["started_at"] and s["ended_at"] for s in shown["steps"])
    assert "no room in the stable" in shown["steps"][2]["detail"]
    last = shown["steps"][5]["hosts"]
    assert "no room in the stable" in last["h3"]
    assert "no room in the stable" in last["h2"]
    assert last["h1"] == "2048 MiB free, chosen (spread)"
    assert [r["host"] for r in shown["receipts"]] == ["h3", "h2", "h1"]
    claims = {h.name: h.memory_mib_claimed for h in zone.rows(Host)}
    assert claims == {"h1": 256, "h2": 0, "h3": 0}
    assert zone.stones() == []


def test_8_6_the_next_host_gets_the_same_addresses_and_its_own_pools(
    zone: Fleet, agents: list[ScriptedAgent]
) -> None:
    local = [{**POOLS[1], "name": f"d{n}", "host": f"h{n}", "path": f"/d{n}"} for n in (1, 2, 3)]
    make(zone, pools=local)
    deploy(zone)
    vm = zone.vm()
    assert [(v.pool, v.host) for v in zone.rows(Volume)] == [("d3", "h3")]
    refuse(zone, *agents)
    zone.clock.move(1)
    zone.tick()
    command = carried_out(zone, agents)
    assert command.spec["guest"]["disks"][0]["folder"] == "/d2"
    assert command.spec["guest"]["nics"] == vm.spec["nics"]
    assert [(v.pool, v.host) for v in zone.rows(Volume)] == [("d2", "h2")]
    assert command.generation > 1


def test_8_6_so_many_hosts_are_tried(
    fleet_of: Callable[..., Fleet], agents: list[ScriptedAgent]
) -> None:
    fleet = fleet_of(start_retries=1)
    for agent in agents:
        agent.fleet = fleet
    job = deploy(fleet)
    for _ in range(2):
        refuse(fleet, *agents)
        fleet.clock.move(1)
        fleet.tick()
    assert fleet.wire.take("start_vm") == []
    shown = fleet.shown(job)
    assert shown["state"] == "FAILED"
    assert "no room in the stable" in shown["error"]
    holds_nothing(fleet)


def test_8_6_a_named_host_is_the_only_one(zone: Fleet, agents: list[ScriptedAgent]) -> None:
    job = deploy(zone, host="h2")
    refuse(zone, *agents)
    zone.clock.move(1)
    zone.tick()
    assert zone.wire.take("start_vm") == []
    assert zone.shown(job)["state"] == "FAILED"
    holds_nothing(zone)


def test_8_6_a_template_that_is_not_what_it_says_fails_at_once(
    zone: Fleet, agents: list[ScriptedAgent]
) -> None:
    job = deploy(zone)
    refuse(zone, *agents, code="TEMPLATE_INVALID")
    zone.clock.move(1)
    zone.tick()
    assert zone.wire.take("start_vm") == []
    shown = zone.shown(job)
    assert (shown["state"], shown["error_code"]) == ("FAILED", "TEMPLATE_INVALID")
    holds_nothing(zone)


def test_8_6_a_host_that_fell_silent_leaves_a_tombstone_and_quarantine_and_no_second_start(
    zone: Fleet, agents: list[ScriptedAgent]
) -> None:
    h1, h2, h3 = agents
    job = deploy(zone)
    vm, command = zone.vm(), started(zone)
    assert command.host == "h3"
    h3.receipt(command.id)
    zone.pass_(patience_s(zone), h1, h2)
    shown = zone.shown(job)
    assert (shown["state"], shown["error_code"]) == ("FAILED", "OUTCOME_UNKNOWN")
    assert shown["unconfirmed"]
    assert zone.wire.take("start_vm") == []
    stone = zone.stone(instance=vm.uuid)
    assert (stone.host, stone.state) == ("h3", TombstoneState.OPEN)
    assert stone.holds == ("mac", "address", "disk")
    left = zone.vm()
    assert (left.vm_state, left.host) == (VmState.ERROR, None)
    assert used(zone)["instances"] == 0
    assert [a.ip for a in zone.rows(Address)] == [vm.address]
    assert len(zone.rows(Mac)) == len(zone.rows(Hostname)) == len(zone.rows(Volume)) == 1
    with pytest.raises(WrongState, match="holds nothing any more"):
        zone.ask("vm_start", vm="web-1")
    # It was made after all: it is reaped at its host's return, and all of it is free.
    h3.ours(vm.uuid, generation=command.generation, name="web-1")
    h3.restart().hello()
    answer_void(zone, h3, m.VoidOutcome.DONE)
    (terminate,) = zone.publish()
    h3.carry_out(terminate.command)
    h3.beat(full=True)
    holds_nothing(zone)
    assert zone.stone(instance=vm.uuid).state is TombstoneState.CLOSED


def answer_void(zone: Fleet, agent: ScriptedAgent, answer: m.VoidOutcome) -> None:
    (owed,) = zone.rows(Void)
    said = m.VoidAnswer(
        id=str(uuid.uuid4()), instance=owed.instance, generation=owed.generation, answer=answer
    )
    agent.say(voids=(said,))


def voided(zone: Fleet, agents: list[ScriptedAgent]) -> dict[str, Any]:
    """A deploy whose first host has said, at its deadline, that the start did not run."""
    job = deploy(zone)
    command = started(zone)
    agents[2].receipt(command.id)
    zone.pass_(patience_s(zone), *agents)
    assert zone.wire.take("void")
    answer_void(zone, agents[2], m.VoidOutcome.NOT_RUN)
    assert zone.row(CommandRow, command.id).state is CommandState.NOT_RUN
    zone.wire.take()
    return job


def test_8_6_not_run_is_proven_by_a_terminate_before_the_next_host_is_tried(
    zone: Fleet, agents: list[ScriptedAgent]
) -> None:
    job = voided(zone, agents)
    zone.clock.move(1)
    zone.tick()
    (terminate,) = zone.publish()
    assert (terminate.method, terminate.host) == ("terminate_instance", "h3")
    assert "h3 to answer that nothing of web-1 is left there" in zone.shown(job)["waiting_for"]
    agents[2].carry_out(terminate.command)
    zone.clock.move(1)
    zone.tick()
    assert carried_out(zone, agents).host == "h2"
    assert zone.shown(job)["state"] == "SUCCEEDED"
    assert zone.stone().state is TombstoneState.CLOSED


def test_8_6_not_run_that_nobody_proves_is_an_unknown_outcome(
    zone: Fleet, agents: list[ScriptedAgent]
) -> None:
    job = voided(zone, agents)
    zone.pass_(patience_s(zone), *agents)
    shown = zone.shown(job)
    assert (shown["state"], shown["error_code"]) == ("FAILED", "OUTCOME_UNKNOWN")
    assert zone.wire.take("start_vm") == []
    assert len(zone.rows(Address)) == 1  # quarantined


def test_8_6_a_fenced_host_runs_nothing_and_the_next_is_tried(
    zone: Fleet, agents: list[ScriptedAgent]
) -> None:
    job = voided(zone, agents)
    zone.put(agents[2].row, fenced=True)
    zone.clock.move(1)
    zone.tick()
    assert carried_out(zone, agents).host == "h2"
    assert zone.shown(job)["state"] == "SUCCEEDED"


# 7: the end of it


def test_8_7_all_is_given_back_at_the_final_failure_and_doctor_finds_the_vm_alone(
    zone: Fleet, agents: list[ScriptedAgent]
) -> None:
    make(zone, pools=POOLS[:1])
    job = deploy(zone, data_disks=[{"size_gib": 3}])
    for _ in agents:
        refuse(zone, *agents)
        zone.clock.move(1)
        zone.tick()
    shown = zone.shown(job)
    assert (shown["state"], shown["error_code"]) == ("FAILED", "NO_VALID_HOST")
    assert shown["error"].count("no room in the stable") == 3
    assert shown["steps"][-1]["name"] == "give back"
    vm = zone.vm()
    assert (vm.vm_state, vm.task_state, vm.job) == (VmState.ERROR, TaskState.NONE, None)
    assert "no room in the stable" in vm.error
    holds_nothing(zone)
    for agent in agents:
        agent.beat(full=True)
    findings = [f for f in zone.ask("doctor")["findings"] if f["code"] != "MANAGERS_BLIND"]
    assert [(f["code"], vm.uuid in f["object"]) for f in findings] == [("VM_ERROR", True)]
    assert "delete" in findings[0]["remedy"]
    # What it held is there for another.
    address = vm.nics[0].address
    wanted = [{"network": "n1", "address": address}]
    assert vm_of(zone, deploy(zone, hostname="web-1", networks=wanted)).address == address
    assert zone.delete(vm.uuid)["state"] in ("SUCCEEDED", "RUNNING")


def test_8_7_a_delete_during_the_tries_ends_them(zone: Fleet, agents: list[ScriptedAgent]) -> None:
    job = deploy(zone)
    refuse(zone, *agents)
    gone = zone.delete()
    zone.clock.move(1)
    zone.tick()
    assert zone.wire.take("start_vm") == []
    for cast in zone.publish():
        next(a for a in agents if a.host == cast.host).carry_out(cast.command)
    assert zone.shown(gone)["state"] == "SUCCEEDED"
    shown = zone.shown(job)
    assert (shown["state"], shown["error_code"]) == ("CANCELLED", "SUPERSEDED")
    holds_nothing(zone)


def test_8_7_a_delete_while_a_host_makes_the_guest_leaves_nothing(
    zone: Fleet, agents: list[ScriptedAgent]
) -> None:
    job = deploy(zone)
    command = started(zone)
    gone = zone.delete()
    (terminate,) = [c for c in zone.publish() if c.method == "terminate_instance"]
    agents[2].carry_out(command)
    agents[2].carry_out(terminate.command)
    assert zone.shown(gone)["state"] == "SUCCEEDED"
    assert zone.shown(job)["state"] in ("SUCCEEDED", "CANCELLED")
    assert agents[2].guests == {}
    holds_nothing(zone)


def test_8_7_a_job_between_two_hosts_can_be_cancelled(
    zone: Fleet, agents: list[ScriptedAgent]
) -> None:
    job = deploy(zone)
    refuse(zone, *agents)
    said = zone.ask("job_cancel", job=job["uuid"], operator="ann")
    assert said["state"] == "CANCELLED"
    zone.clock.move(1)
    zone.tick()
    assert zone.wire.take("start_vm") == []
    vm = zone.vm()
    assert (vm.vm_state, vm.task_state) == (VmState.ERROR, TaskState.NONE)
    assert "cancelled by ann" in vm.error
    holds_nothing(zone)


def test_8_7_an_agent_that_knows_of_later_commands_is_asked_again_above_them(
    zone: Fleet, agents: list[ScriptedAgent]
) -> None:
    job = deploy(zone)
    command = started(zone)
    stale = agents[2].result(
        command, m.Outcome.NOT_RUN, error_code="STALE_COMMAND", error="older", floor=7
    )
    agents[2].say(results=(msgspec.structs.replace(stale, look=None),))
    again = carried_out(zone, agents)
    assert (again.host, again.generation) == ("h3", 8)
    assert zone.shown(job)["state"] == "SUCCEEDED"

"""Section 8 of the decision tables, step 4: which host takes a VM, and why the others do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.model import PoolScope
from common.states import HostState
from manager.rules.placement import (
    TOLD,
    Candidate,
    Demand,
    DiskDemand,
    Order,
    Pool,
    place,
    unfit,
)

HERE, CLUSTER, ZONE = PoolScope.HOST, PoolScope.CLUSTER, PoolScope.ZONE


def host(name: str = "h1", **changes: object) -> Candidate:
    found = Candidate(
        name=name,
        state=HostState.UP,
        enabled=True,
        maintenance=False,
        driver="libvirt",
        vcpus_total=4,
        vcpus_used=0,
        vcpus_claimed=0,
        memory_mib_total=1000,
        memory_mib_used=0,
        memory_mib_claimed=0,
    )
    return replace(found, **changes)  # type: ignore[arg-type]


def demand(memory_mib: int = 100, **changes: object) -> Demand:
    return replace(Demand(vcpus=1, memory_mib=memory_mib), **changes)  # type: ignore[arg-type]


def disks(*sizes: int, tags: str = "", local: bool | None = None) -> tuple[DiskDemand, ...]:
    return tuple(DiskDemand(size, frozenset(tags.split()), local) for size in sizes)


def test_section8_step_4_the_host_with_the_most_free_memory_is_taken() -> None:
    hosts = [host("h1", memory_mib_used=500), host("h2", memory_mib_used=100), host("h3")]
    assert place(hosts[:2], demand()).host == "h2"
    assert place(hosts, demand()).host == "h3"


@pytest.mark.parametrize(("used", "claimed"), [(900, 300), (300, 900)])
def test_section8_step_4_what_really_runs_and_what_was_promised_both_count(
    used: int, claimed: int
) -> None:
    busy = host(memory_mib_used=used, memory_mib_claimed=claimed)
    assert unfit(busy, demand(100)) == ""
    assert unfit(busy, demand(101)) == "has 100 MiB free of 101 wanted"
    busy = host(vcpus_used=used // 100, vcpus_claimed=claimed // 100, cpu_overcommit=2.5)
    assert unfit(busy, demand(vcpus=1)) == ""
    assert unfit(busy, demand(vcpus=2)) == "has 1 vCPUs free of 2 wanted"


@pytest.mark.parametrize(("wanted", "found"), [(400, "h1"), (401, None)])
def test_section8_step_4_exactly_enough_is_enough(wanted: int, found: str | None) -> None:
    assert place([host(memory_mib_used=600)], demand(wanted)).host == found


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"state": HostState.SUSPECT}, "is SUSPECT"),
        ({"state": HostState.DOWN}, "is DOWN"),
        ({"enabled": False}, "is disabled (muster host enable)"),
        ({"maintenance": True}, "is in maintenance"),
        ({"fenced": True}, "is fenced"),
        ({"clash": True}, "is reported by two agents of one name"),
        ({"closed": "its pod p1 is disabled"}, "its pod p1 is disabled"),
        ({"zone": "z2"}, "is in zone z2, not in zone z1"),
        ({"zone": None}, "is in no zone, not in zone z1"),
        ({"pod": "p2"}, "is in pod p2, not in p1"),
        ({"pod": None}, "is in no pod, not in p1"),
        ({"cluster": "c2"}, "is in cluster c2, not in c1"),
        ({"driver": "xapi"}, "runs xapi, not libvirt"),
        ({"tags": frozenset({"ssd"})}, "lacks tag gpu"),
        ({"memory_mib_used": 990}, "has 10 MiB free of 100 wanted"),
        ({"vcpus_used": 64}, "has 0 vCPUs free of 1 wanted"),
        (
            {"memory_mib_used": 800, "memory_threshold": 0.8},
            "has 80% of its memory used, and its cluster takes no more from 80% on",
        ),
        (
            {"vcpus_claimed": 32, "cpu_threshold": 0.5},
            "has 50% of its vCPUs used, and its cluster takes no more from 50% on",
        ),
    ],
)
@pytest.mark.parametrize("named", ["h1", None])
def test_section8_step_4_an_unfit_host_is_not_taken_and_the_reason_is_told(
    changes: dict[str, object], why: str, named: str | None
) -> None:
    fit = host(zone="z1", pod="p1", cluster="c1", tags=frozenset({"gpu", "ssd"}))
    wanted = demand(
        host=named,
        zone="z1",
        pod="p1",
        cluster="c1",
        hypervisors=frozenset({"libvirt"}),
        host_tags=frozenset({"gpu"}),
    )
    assert place([fit], wanted).host == "h1"
    found = place([replace(fit, **changes)], wanted)  # type: ignore[arg-type]
    assert found.host is None
    assert found.explain() == f"h1: {why}"


def test_section8_step_4_a_host_in_a_zone_takes_nothing_that_names_none() -> None:
    assert unfit(host(zone="z1"), demand()) == "is in zone z1, not in none"


@pytest.mark.parametrize(("used", "found"), [(799, ""), (800, "has 80%")])
def test_section8_step_4_a_host_below_its_threshold_is_filled_beyond_it(
    used: int, found: str
) -> None:
    busy = host(memory_mib_used=used, memory_threshold=0.8)
    assert unfit(busy, demand(200)).startswith(found)


@pytest.mark.parametrize(
    ("of_cluster", "of_vm", "found"),
    [(1.0, None, False), (2.0, None, True), (1.0, 2.0, True), (2.0, 1.0, False)],
)
def test_section8_step_4_overcommit_is_the_clusters_and_the_vms_own_ratio_wins(
    of_cluster: float, of_vm: float | None, found: bool
) -> None:
    memory = host(memory_overcommit=of_cluster)
    assert (unfit(memory, demand(1500, memory_overcommit=of_vm)) == "") is found
    cpu = host(cpu_overcommit=of_cluster)
    assert (unfit(cpu, demand(vcpus=6, cpu_overcommit=of_vm)) == "") is found


def test_section8_step_4_a_named_host_is_taken_however_free_the_others_are() -> None:
    hosts = [host("h1", memory_mib_used=800), host("h2")]
    assert place(hosts, demand(host="h1")).host == "h1"


def test_section8_step_4_a_named_host_that_can_not_take_it_is_not_replaced_by_another() -> None:
    hosts = [host("h1", enabled=False), host("h2")]
    found = place(hosts, demand(host="h1"))
    assert found.host is None
    assert "h2" not in found.explain()
    assert unfit(hosts[1], demand(host="h1")) == "is not h1"


def test_section8_step_4_hosts_of_the_avoid_set_are_passed_over() -> None:
    found = place([host("h1"), host("h2")], demand(avoid={"h2": "HYPERVISOR_ERROR: no space"}))
    assert found.host == "h1"
    assert dict(found.reasons)["h2"] == "refused it: HYPERVISOR_ERROR: no space"


def test_section8_step_4_anti_affinity_keeps_its_vms_apart() -> None:
    found = place([host("h1"), host("h2")], demand(apart=frozenset({"h2"})))
    assert found.host == "h1"
    assert dict(found.reasons)["h2"] == "has a VM of its anti-affinity group"


def test_section8_step_4_affinity_brings_its_vms_together() -> None:
    hosts = [host("h1", memory_mib_used=500), host("h2")]
    assert place(hosts, demand(beside=frozenset({"h1"}))).host == "h1"
    assert place(hosts, demand(beside=None)).host == "h2"
    found = place(hosts, demand(beside=frozenset({"h1"}), apart=frozenset({"h1"})))
    assert found.explain() == (
        "h1: has a VM of its anti-affinity group; h2: is not where its affinity group is (h1)"
    )


@pytest.mark.parametrize(
    ("order", "found"),
    [
        (Order.FIRST_FIT, "h4"),
        (Order.SPREAD, "h3"),
        (Order.SPREAD_BY_PROJECT, "h2"),
        (Order.PACK, "h1"),
    ],
)
def test_section8_step_4_orders(order: Order, found: str) -> None:
    hosts = [
        host("h0", memory_mib_used=950, of_project=0),
        host("h1", pod="p2", cluster="c1", memory_mib_used=900, of_project=2),
        host("h2", pod="p1", cluster="c2", memory_mib_used=300, of_project=1),
        host("h3", pod="p2", cluster="c1", memory_mib_used=100, of_project=3),
        host("h4", pod="p1", cluster="c1", memory_mib_used=400, of_project=1),
    ]
    assert place(hosts, demand(), order=order).host == found
    assert place(hosts[::-1], demand(), order=order).host == found


@pytest.mark.parametrize("order", Order)
def test_section8_step_4_two_managers_choose_alike_between_equals(order: Order) -> None:
    hosts = [host("h1"), host("h2"), host("h3")]
    assert (
        place(hosts, demand(), order=order).host == place(hosts[::-1], demand(), order=order).host
    )


def test_section8_step_4_a_fleet_without_hosts_says_so() -> None:
    assert place([], demand()).explain() == "no host is known"


def test_section8_step_4_the_chosen_host_and_the_others_that_fit_say_so() -> None:
    found = place([host("h1"), host("h2")], demand(), order=Order.FIRST_FIT)
    assert found.explain() == "h1: 1000 MiB free, chosen (first_fit); h2: 1000 MiB free"


def test_section8_step_4_a_sentence_names_some_hosts_and_counts_the_rest() -> None:
    found = place([host(f"h{n}", enabled=False) for n in range(TOLD + 3)], demand())
    assert found.explain().endswith("; and 3 more hosts")
    assert len(found.reasons) == TOLD + 3


def test_section8_step_4_without_pools_disks_need_nothing() -> None:
    found = place([host()], demand(disks=disks(10_000, 20_000)))
    assert (found.host, found.pools) == ("h1", (None, None))


@pytest.mark.parametrize(
    ("pool", "wanted", "why"),
    [
        (Pool("a", HERE, "h1", 10), disks(10), ""),
        (Pool("a", CLUSTER, "c1", 10), disks(10), ""),
        (Pool("a", ZONE, "z1", 10), disks(10), ""),
        (Pool("a", HERE, "h2", 10), disks(10), "reaches no storage pool"),
        (Pool("a", CLUSTER, "c2", 10), disks(10), "reaches no storage pool"),
        (Pool("a", ZONE, "z2", 10), disks(10), "reaches no storage pool"),
        (Pool("a", HERE, "h1", 9.9), disks(10), "has 9 GiB free in pool a of 10 wanted"),
        (Pool("a", HERE, "h1", -3), disks(1), "has 0 GiB free in pool a of 1 wanted"),
        (Pool("a", HERE, "h1", 15), disks(10, 6), "has 5 GiB free in pool a of 6 wanted"),
        (Pool("a", HERE, "h1", 10, enabled=False), disks(1), "reaches no pool for a disk"),
        (Pool("a", HERE, "h1", 10, frozenset({"ssd"})), disks(1, tags="ssd"), ""),
        (
            Pool("a", HERE, "h1", 10, frozenset({"ssd"})),
            disks(1, tags="ssd fast"),
            "reaches no pool for a disk with tag fast, ssd",
        ),
        (Pool("a", HERE, "h1", 10), disks(1, local=True), ""),
        (Pool("a", HERE, "h1", 10), disks(1, local=False), "reaches no pool for a shared disk"),
        (Pool("a", CLUSTER, "c1", 10), disks(1, local=False), ""),
        (Pool("a", ZONE, "z1", 10), disks(1, local=True), "reaches no pool for a local disk"),
    ],
)
def test_section8_step_4_a_host_must_reach_pools_for_all_disks_together(
    pool: Pool, wanted: tuple[DiskDemand, ...], why: str
) -> None:
    stands = host(zone="z1", cluster="c1")
    asked = demand(zone="z1", disks=wanted)
    assert unfit(stands, asked, [pool]) == why
    found = place([stands], asked, pools=[pool])
    assert found.host == (None if why else "h1")
    assert found.pools == ((None if why else "a"),) * len(wanted)


def test_section8_step_4_disks_go_where_most_is_free_and_the_choosy_ones_first() -> None:
    pools = [Pool("ssd", HERE, "h1", 6, frozenset({"ssd"})), Pool("hdd", CLUSTER, "c1", 5)]
    wanted = demand(disks=(*disks(5), *disks(4, tags="ssd")))
    found = place([host(cluster="c1")], wanted, pools=pools)
    assert found.pools == ("hdd", "ssd")


def test_section8_step_4_an_operator_may_name_the_pool() -> None:
    pools = [Pool("a", HERE, "h1", 10), Pool("b", HERE, "h1", 50), Pool("b", HERE, "h2", 9)]
    found = place([host("h1"), host("h2")], demand(pool="a", disks=disks(5)), pools=pools)
    assert (found.host, found.pools) == ("h1", ("a",))
    assert dict(found.reasons)["h2"] == "reaches no pool for a disk in pool a"


@given(
    st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=5),
)
def test_section8_step_4_no_pool_is_ever_overfilled(
    spaces: list[tuple[int, bool]], sizes: list[tuple[int, bool]]
) -> None:
    ssd = frozenset({"ssd"})
    pools = [
        Pool(f"p{n}", HERE, "h1", free, ssd if fast else frozenset())
        for n, (free, fast) in enumerate(spaces)
    ]
    wanted = tuple(DiskDemand(size, ssd if fast else frozenset()) for size, fast in sizes)
    found = place([host()], demand(disks=wanted), pools=pools)
    if found.host is None:
        return
    for pool in pools:
        here = [d for d, name in zip(wanted, found.pools, strict=True) if name == pool.name]
        assert sum(d.size_gib for d in here) <= pool.free_gib
        assert all(d.tags <= pool.tags for d in here)
    assert None not in found.pools


@given(
    st.lists(
        st.builds(
            Candidate,
            name=st.uuids().map(str),
            state=st.sampled_from(HostState),
            enabled=st.booleans(),
            maintenance=st.booleans(),
            vcpus_total=st.integers(0, 2),
            vcpus_used=st.integers(0, 20),
            vcpus_claimed=st.integers(0, 20),
            memory_mib_total=st.integers(0, 100),
            memory_mib_used=st.integers(0, 100),
            memory_mib_claimed=st.integers(0, 100),
        ),
        max_size=6,
    ),
    st.integers(1, 100),
    st.sampled_from(Order),
)
def test_section8_step_4_no_host_is_ever_overfilled_and_every_host_has_a_reason(
    hosts: list[Candidate], wanted: int, order: Order
) -> None:
    found = place(hosts, demand(wanted), order=order)
    assert [name for name, _ in found.reasons] == [h.name for h in hosts]
    fit = [
        h
        for h in hosts
        if h.state is HostState.UP
        and h.enabled
        and not h.maintenance
        and h.memory_mib_total - max(h.memory_mib_used, h.memory_mib_claimed) >= wanted
        and h.vcpus_total * 16 - max(h.vcpus_used, h.vcpus_claimed) >= 1
    ]
    assert (found.host is None) == (not fit)
    assert found.host is None or found.host in {h.name for h in fit}
    assert {h.name for h in hosts if not unfit(h, demand(wanted))} == {h.name for h in fit}

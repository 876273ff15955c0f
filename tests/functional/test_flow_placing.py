"""Of a large fleet only the best hosts are looked at, and the choice is that of a look at all."""

from __future__ import annotations

import random
from typing import Any

import pytest
import sqlalchemy as sa

from common.errors import NoValidHost
from common.model import Kind
from common.states import HostState
from manager.flows import looks, placing
from manager.rules import placement as rule
from manager.store.engine import Store, Tx
from manager.store.hosts import Host
from manager.store.instances import DiskWish, Wishes
from manager.store.model import Object
from manager.store.volumes import Volume
from tests.functional.fleet import START, Fleet
from tests.functional.zone import BRIDGE, deploy, make

HOSTS = 40
FLEETS = 6
ASKED = 40


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is a large fleet, and how few of its hosts are looked at."""
    monkeypatch.setattr(looks, "SMALL", 5)
    monkeypatch.setattr(placing, "TOLD", 5)
    monkeypatch.setattr(looks, "BEST", 3)
    monkeypatch.setattr(looks, "A_SMALL_ONE", looks.FLEET.limit(6))
    looks._ranked.cache_clear()


@pytest.fixture(autouse=True)
def forgotten() -> Any:
    yield
    looks._ranked.cache_clear()


def host(draw: random.Random, n: int) -> Host:
    half = draw.choice([0, 512, 1024, 2048])
    return Host(
        name=f"h{n:02}",
        fleet="fleet-1",
        driver=draw.choice(["libvirt", "libvirt", "xapi"]),
        agent_version="1",
        interval_s=10.0,
        state=draw.choice([HostState.UP] * 8 + [HostState.SUSPECT, HostState.DOWN]),
        reason="",
        state_since=START,
        heard_at=START,
        enabled=draw.random() < 0.9,
        maintenance=draw.random() < 0.1,
        clash=draw.random() < 0.1,
        fenced=draw.random() < 0.1,
        vcpus_total=draw.choice([1, 4, 8]),
        vcpus_used=draw.choice([0, 2, 8]),
        vcpus_claimed=draw.choice([0, 4]),
        memory_mib_total=draw.choice([1024, 2048, 4096]),
        memory_mib_used=half,
        memory_mib_claimed=draw.choice([0, half, 256]),
        cluster=draw.choice([None, "c1", "c2", "c3", "far"]),
        tags=tuple(sorted(draw.sample(["ssd", "ss", "s_d", "gpu"], draw.randint(0, 3)))),
    )


def world(fleet: Fleet, draw: random.Random) -> None:
    with fleet.store.engine.begin() as conn:
        for kind in (Host, Volume, Object):
            conn.execute(sa.delete(kind.__table__))
    ratio = {"memory_overcommit": 1.5, "cpu_overcommit": 2.0, "memory_threshold": 0.5}
    pools: list[dict[str, Any]] = [
        {"name": "wide", "scope": "zone", "zone": "z1", "path": "/w", "capacity_gib": 20},
        {"name": "mid", "scope": "cluster", "cluster": "c2", "path": "/m", "capacity_gib": 40},
        {"name": "away", "scope": "zone", "zone": "z2", "path": "/a", "capacity_gib": 900},
        {"name": "near", "scope": "host", "host": "h07", "path": "/n", "capacity_gib": 90},
        {"name": "none", "scope": "host", "host": "never", "path": "/n", "capacity_gib": 90},
    ]
    make(
        fleet,
        zones=[{"name": "z1"}, {"name": "z2"}],
        pods=[{"name": "p1", "zone": "z1"}, {"name": "p2", "zone": "z2"}],
        clusters=[
            {"name": "c1", "pod": "p1"},
            {"name": "c2", "pod": "p1", **ratio},
            {"name": "c3", "pod": "p1", "enabled": False},
            {"name": "far", "pod": "p2"},
        ],
        hosts=[{"name": "h07", "cluster": "c1"}, {"name": "never", "cluster": "c1"}],
        pools=draw.sample(pools, draw.randint(0, len(pools))),
    )
    fleet.store.run(lambda tx: [tx.insert(host(draw, n)) for n in range(HOSTS)] and None)


def wishes(draw: random.Random) -> dict[str, Any]:
    disks = tuple(
        DiskWish(n=n, size_gib=draw.choice([5, 30]), local=draw.choice([None, None, True, False]))
        for n in range(draw.randint(0, 2))
    )
    asked = Wishes(
        zone=draw.choice([None, "z1", "z1", "z2"]),
        pod=draw.choice([None, None, None, "p1"]),
        cluster=draw.choice([None, None, None, "c2"]),
        host=draw.choice([None] * 9 + ["h03", "h07"]),
        hypervisors=draw.choice([(), ("libvirt",), ("libvirt", "xapi")]),
        host_tags=draw.choice([(), (), ("ssd",), ("s_d", "gpu")]),
        memory_overcommit=draw.choice([None, None, 1.25]),
        cpu_overcommit=draw.choice([None, None, 1.0]),
        order=draw.choice(["spread", "spread", "pack", "first_fit", "spread_by_project"]),
        disks=disks,
    )
    avoid = {f"h{draw.randrange(HOSTS):02}": "no" for _ in range(draw.choice([0, 0, 5]))}
    return {
        "wishes": asked,
        "vcpus": draw.choice([1, 2, 4]),
        "memory_mib": draw.choice([64, 512, 1500]),
        "avoid": avoid,
    }


def chosen(tx: Tx, fleet: Fleet, asked: dict[str, Any], tell_all: bool) -> rule.Placement:
    return placing.foresee(
        tx, fleet.cfg, instance="", project="default", tell_all=tell_all, **asked
    )


@pytest.mark.parametrize("seed", range(FLEETS))
def test_8_4_the_best_of_a_large_fleet_is_the_best_of_all(fleet: Fleet, seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311 - no secret is drawn
    world(fleet, draw)
    placed = 0
    for _ in range(ASKED):
        asked = wishes(draw)
        quick, whole = (fleet.store.run(chosen, fleet, asked, every) for every in (False, True))
        assert (quick.host, quick.pools) == (whole.host, whole.pools), asked
        placed += whole.host is not None
    assert 0 < placed < ASKED, "both can be seen"


def test_8_4_a_group_that_is_together_is_found_in_a_large_fleet(fleet: Fleet) -> None:
    draw = random.Random(4)  # noqa: S311 - as above
    world(fleet, draw)
    make(fleet, affinity_groups=[{"name": "together", "kind": "affinity"}])
    for host in fleet.rows(Host):
        changes = {"state": HostState.UP, "enabled": True, "maintenance": False}
        changes |= {"clash": False, "fenced": False, "cluster": "c1", "memory_mib_used": 0}
        fleet.put(host, memory_mib_total=int(host.name[1:]) * 64 + 2048, vcpus_total=64, **changes)
    make(fleet, networks=[{"name": "n", "zone": "z1", **BRIDGE, "cidr": "10.9.0.0/24"}])
    asked: dict[str, Any] = {"offering": None, "template": None, "vcpus": 1, "memory_mib": 64}
    asked |= {"networks": [{"network": "n"}], "affinity_groups": ["together"]}
    assert deploy(fleet, "web-1", host="h05", **asked)["host"] == "h05"
    assert deploy(fleet, "web-2", **asked)["host"] == "h05"
    assert deploy(fleet, "web-3", **{**asked, "affinity_groups": []})["host"] == "h39"


def statements(store: Store, fleet: Fleet, asked: dict[str, Any]) -> int:
    seen = [0]

    def count(*_: Any) -> None:
        seen[0] += 1

    sa.event.listen(store.engine, "before_cursor_execute", count)
    try:
        store.run(chosen, fleet, asked, True)
        store.run(chosen, fleet, asked, False)
    finally:
        sa.event.remove(store.engine, "before_cursor_execute", count)
    return seen[0]


def test_8_4_a_vm_of_no_zone_stays_out_of_all_zones(fleet: Fleet) -> None:
    """It was made before there was one, and is started only now."""
    fleet.create(start=False)
    world(fleet, random.Random(3))  # noqa: S311 - as above
    fleet.ask("vm_start", vm="web-1")
    host = fleet.row(Host, fleet.vm().host)
    assert host.cluster is None


def test_8_4_a_decision_takes_as_many_queries_whatever_the_size_of_the_fleet(
    fleet: Fleet,
) -> None:
    draw = random.Random(1)  # noqa: S311 - as above
    world(fleet, draw)
    asked = {**wishes(draw), "wishes": Wishes(zone="z1", disks=(DiskWish(n=0, size_gib=1),))}
    before = statements(fleet.store, fleet, asked)

    def grow(tx: Tx) -> None:
        for n in range(HOSTS, 3 * HOSTS):
            tx.insert(host(draw, n))

    fleet.store.run(grow)
    make(fleet, hosts=[{"name": f"h{n}", "cluster": "c1"} for n in range(50, 90)])
    make(
        fleet,
        pools=[
            {"name": f"l{n}", "scope": "host", "host": f"h{n}", "path": "/l", "capacity_gib": 9}
            for n in range(50, 90)
        ],
    )
    assert len(fleet.rows(Object, kind=Kind.POOL)) > 40
    assert statements(fleet.store, fleet, asked) <= before


def test_8_4_a_large_fleet_without_room_is_told_of_in_a_few_words(fleet: Fleet) -> None:
    make(fleet, zones=[{"name": "z1"}], networks=[])
    world(fleet, random.Random(2))  # noqa: S311 - as above
    with pytest.raises(NoValidHost) as caught:
        deploy(fleet, offering=None, template=None, vcpus=512, memory_mib=64)
    assert "and 20 more hosts" in caught.value.message
    assert len(caught.value.data["hosts"]) == placing.TOLD

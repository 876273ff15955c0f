"""The planner before ten thousand hosts: the rule alone, and the whole decision on PostgreSQL."""

from __future__ import annotations

import datetime as dt
import statistics
import time
from collections.abc import Callable
from typing import Any

import msgspec
import sqlalchemy as sa

from common.conf import Settings, database
from common.fields import plain
from common.model import NOUNS, Kind, PoolScope
from common.runtime import Runtime
from common.states import HostState
from manager.flows import placing
from manager.rules import placement as rule
from manager.store import migrate
from manager.store.engine import Store, Tx
from manager.store.hosts import Host
from manager.store.instances import DiskWish, Wishes
from manager.store.model import Object

HOSTS, CLUSTERS, PODS = 10_000, 100, 10
TURNS = 10
THEN = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
WISHES = Wishes(zone="z", host_tags=("ssd",), disks=(DiskWish(n=0, size_gib=10),))


class Planner(msgspec.Struct, frozen=True, kw_only=True):
    """Decisions a second, and the queries that one takes."""

    hosts: int
    rule: float
    """The pure rule, on hosts that have been read."""
    whole: float
    """All of it: the fleet is read and a host is chosen, for a disk in a pool of each cluster."""
    local: float
    """As `whole`, with a pool on each host."""
    told: float
    """As `whole`, and it is told of every host why."""
    queries: int


def measure(url: str, *, hosts: int = HOSTS, turns: int = TURNS) -> Planner:
    """On an empty database of its own."""
    runtime = Runtime("bench")
    store = Store(database.Database(connection=url), runtime)
    try:
        migrate.upgrade(store)
        store.run(_fill, hosts)
        whole = _rate(turns, lambda: store.run(_foresee))
        told = _rate(turns, lambda: store.run(_foresee, tell_all=True).reasons)
        store.run(_fill_pools, hosts)
        local = _rate(turns, lambda: store.run(_foresee))
        queries = [_queries(store, tell_all=tell_all) for tell_all in (False, True)]
    finally:
        store.close()
        runtime.stop(1.0)
    return Planner(
        hosts=hosts,
        rule=_rate(turns, _rule_alone(hosts)),
        whole=whole,
        local=local,
        told=told,
        queries=max(queries),
    )


def _rate(turns: int, decide: Callable[[], Any]) -> float:
    """The median of some turns, after one that compiles what is to be compiled."""
    took = []
    for n in range(turns + 1):
        begun = time.perf_counter()
        decide()
        took += [time.perf_counter() - begun] if n else []
    return 1.0 / statistics.median(took)


def _rule_alone(hosts: int) -> Callable[[], Any]:
    candidates = [
        rule.Candidate(
            name=f"h{n:05}",
            state=HostState.UP,
            enabled=True,
            maintenance=False,
            driver="libvirt",
            zone="z",
            pod=f"p{n % PODS}",
            cluster=f"c{n % CLUSTERS}",
            tags=frozenset({"ssd"}),
            vcpus_total=64,
            vcpus_used=n % 60,
            vcpus_claimed=n % 60,
            memory_mib_total=262_144,
            memory_mib_used=n * 20,
            memory_mib_claimed=n * 20,
        )
        for n in range(hosts)
    ]
    pools = [
        rule.Pool(f"d{n}", PoolScope.CLUSTER, f"c{n}", 1000.0, frozenset()) for n in range(CLUSTERS)
    ]
    demand = rule.Demand(
        vcpus=2,
        memory_mib=4096,
        zone="z",
        host_tags=frozenset({"ssd"}),
        disks=(rule.DiskDemand(10),),
    )
    return lambda: rule.place(candidates, demand, pools=pools)


def _foresee(tx: Tx, *, tell_all: bool = False) -> rule.Placement:
    """As a create decides, or as a dry run does."""
    return placing.foresee(
        tx,
        Settings(),
        WISHES,
        instance="",
        project="default",
        vcpus=2,
        memory_mib=4096,
        avoid={},
        tell_all=tell_all,
    )


def _fill(tx: Tx, hosts: int) -> None:
    _make(tx, Kind.ZONE, "z", {})
    for n in range(PODS):
        _make(tx, Kind.POD, f"p{n}", {"zone": "z"})
    for n in range(CLUSTERS):
        _make(tx, Kind.CLUSTER, f"c{n}", {"pod": f"p{n % PODS}"})
        _make_pool(tx, f"d{n}", PoolScope.CLUSTER, f"c{n}")
    for n in range(hosts):
        tx.insert(
            Host(
                name=f"h{n:05}",
                fleet="default",
                driver="libvirt",
                agent_version="1",
                interval_s=10.0,
                state=HostState.UP,
                reason="heard",
                state_since=THEN,
                enabled=True,
                heard_at=THEN,
                vcpus_total=64,
                vcpus_used=n % 60,
                vcpus_claimed=n % 60,
                memory_mib_total=262_144,
                memory_mib_used=n * 20,
                memory_mib_claimed=n * 20,
                cluster=f"c{n % CLUSTERS}",
                tags=("ssd",),
            )
        )


def _fill_pools(tx: Tx, hosts: int) -> None:
    tx.delete_where(Object, Object.__table__.c.kind == Kind.POOL)
    for n in range(hosts):
        _make_pool(tx, f"l{n:05}", PoolScope.HOST, f"h{n:05}")


def _make_pool(tx: Tx, name: str, scope: PoolScope, at: str) -> None:
    fields = {"scope": scope, scope.value: at, "path": "/d", "capacity_gib": 1000}
    _make(tx, Kind.POOL, name, fields)


def _make(tx: Tx, kind: Kind, name: str, fields: dict[str, Any]) -> None:
    """One by one, unchecked: a file of twenty thousand would take longer than all the rest."""
    spec = plain(msgspec.convert(fields, type=NOUNS[kind]))
    tx.insert(Object(kind=kind, name=name, spec=spec, created_at=THEN, changed_at=THEN))


def _queries(store: Store, *, tell_all: bool) -> int:
    """The statements of one decision."""
    seen = [0]

    def count(*_: Any) -> None:
        seen[0] += 1

    sa.event.listen(store.engine, "before_cursor_execute", count)
    try:
        store.run(_foresee, tell_all=tell_all)
    finally:
        sa.event.remove(store.engine, "before_cursor_execute", count)
    return seen[0]

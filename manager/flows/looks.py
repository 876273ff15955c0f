"""Looks: the fleet as the planner sees it, all of it or, of a large one, its best hosts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from common import model
from common.conf import Settings
from common.model import PoolScope
from common.states import HostState, VmState
from manager.flows.topology import COLUMNS, NOWHERE, Topology
from manager.rules import placement as rule
from manager.store.engine import Tx
from manager.store.hosts import Host
from manager.store.instances import Instance, Wishes
from manager.store.statements import ask, ask_any
from manager.store.volumes import SNAPSHOT, Volume

SMALL = 200  # hosts of a fleet of which every one is looked at
BEST = 50  # hosts of a larger one that are looked at, for each way of counting what is free
WAYS = 8  # ways of counting, each a query; with more of them every host is looked at
H, I, V = Host.__table__.c, Instance.__table__.c, Volume.__table__.c  # noqa: E741 - columns

FLEET = sa.select(*[H[name] for name in COLUMNS]).order_by(H.name)
A_SMALL_ONE = FLEET.limit(SMALL + 1)
THESE_HOSTS = FLEET.where(H.name.in_(ask_any("names")))
EVERY_POOL = (
    sa.select(V.pool, sa.func.sum(V.size_gib))
    # Its own disks are put there anew; its snapshot is there already.
    .where(V.pool.is_not(None), sa.or_(V.instance != ask("instance"), V.kind == SNAPSHOT))
    .group_by(V.pool)
)
POOLED = EVERY_POOL.where(V.pool.in_(ask_any("pools")))
OF_PROJECT = (
    sa.select(I.host, sa.func.count())
    .where(I.project == ask("project"), I.host.is_not(None), I.vm_state != VmState.DELETED)
    .group_by(I.host)
)
_OUT_OF_REACH = rule.Pool("", PoolScope.HOST, "", 0.0, enabled=False)


@dataclasses.dataclass(frozen=True)
class Look:
    """The hosts and pools that a decision is made on."""

    hosts: Sequence[rule.Candidate]
    pools: Sequence[rule.Pool]
    order: rule.Order

    def place(self, demand: rule.Demand) -> rule.Placement:
        return rule.place(self.hosts, demand, order=self.order, pools=self.pools)


class Looks:
    """What is asked of the fleet for one VM, each time for what it demands by then."""

    def __init__(
        self, tx: Tx, cfg: Settings, topology: Topology, wishes: Wishes, project: str, instance: str
    ) -> None:
        self._tx, self._topology = tx, topology
        self._project, self._instance = project, instance
        self._order = rule.Order(wishes.order or cfg.manager.placement_order)

    def at_some(self, demand: rule.Demand) -> Look:
        """At the best hosts of a large fleet; at every host if it is small, or none fits."""
        tx = self._tx
        rows = tx.rows(A_SMALL_ONE, (Host,))
        if len(rows) <= SMALL:
            return self._look(demand, rows, self._counts())
        best: Sequence[Any] = ()
        only = {demand.host} if demand.host is not None else demand.beside
        if only:
            best = tx.rows(THESE_HOSTS, (Host,), names=sorted(only))
        elif self._order in (rule.Order.SPREAD, rule.Order.PACK):
            best = _best(tx, self._topology, demand, self._order)
        if best:
            look = self._look(demand, best, self._counts() if only else {})
            if look.place(demand).host is not None:
                return look
        return self.at_all(demand)

    def at_all(self, demand: rule.Demand) -> Look:
        return self._look(demand, self._tx.rows(FLEET, (Host,)), self._counts())

    def _counts(self) -> dict[str, int]:
        """How many VMs of the project are on each host, if that is asked for."""
        if self._order is not rule.Order.SPREAD_BY_PROJECT:
            return {}
        rows = self._tx.rows(OF_PROJECT, (Instance,), project=self._project)
        return {host: int(n) for host, n in rows}

    def _look(
        self, demand: rule.Demand, rows: Sequence[Any], of_project: Mapping[str, int]
    ) -> Look:
        hosts = [self._topology.candidate(tuple(row), of_project) for row in rows]
        pools: tuple[rule.Pool, ...] = ()
        if demand.disks:
            pools = _pools(self._tx, self._topology.pools(hosts), self._instance)
            if not pools and self._topology.has_pools():
                pools = (_OUT_OF_REACH,)
        return Look(hosts, pools, self._order)


def _pools(tx: Tx, pools: Mapping[str, model.Pool], instance: str) -> tuple[rule.Pool, ...]:
    if not pools:
        return ()
    if len(pools) > SMALL:
        rows = tx.rows(EVERY_POOL, (Volume,), instance=instance)
    else:
        rows = tx.rows(POOLED, (Volume,), pools=list(pools), instance=instance)
    return stores(pools, {name: int(gib) for name, gib in rows})


def stores(pools: Mapping[str, model.Pool], taken: Mapping[str, int]) -> tuple[rule.Pool, ...]:
    """Pools as the planner sees them, with what is taken of each."""
    return tuple(
        rule.Pool(
            name=name,
            scope=pool.scope,
            at=getattr(pool, pool.scope) or "",
            free_gib=pool.capacity_gib * pool.overprovisioning - taken.get(name, 0),
            tags=frozenset(pool.tags),
            enabled=pool.enabled,
        )
        for name, pool in pools.items()
    )


def _best(tx: Tx, topology: Topology, demand: rule.Demand, order: rule.Order) -> list[Any]:
    """Hosts in the order of the planner's choice, of those that seem to have room.

    What can not be asked of the database - groups, pools, who has refused - the planner asks of
    these; the best that it finds is the best of all. None, or none of them: it has to ask all.
    """
    ways: dict[tuple[float, float, float, float], list[str]] = {}
    for name, site in topology.sites.items():
        named = demand.pod in (None, site.pod) and demand.cluster in (None, name)
        if site.zone == demand.zone and named and not site.closed:
            ways.setdefault(_ratios(site.cluster, demand), []).append(name)
    if demand.zone is None:
        ways = {_ratios(NOWHERE.cluster, demand): []}
    if len(ways) > WAYS:
        return []
    query = _ranked(order, demand.zone is not None, bool(demand.hypervisors), len(demand.host_tags))
    asked: dict[str, Any] = {"vcpus": demand.vcpus, "memory_mib": demand.memory_mib}
    if demand.hypervisors:
        asked["drivers"] = sorted(demand.hypervisors)
    for n, tag in enumerate(sorted(demand.host_tags)):
        asked[f"tag_{n}"] = f'"{tag}"'
    found: list[Any] = []
    for (memory, cpu, memory_share, cpu_share), clusters in ways.items():
        asked |= {"memory": memory, "cpu": cpu}
        asked |= {"memory_share": memory_share, "cpu_share": cpu_share}
        if demand.zone is not None:
            asked["clusters"] = clusters
        found += tx.rows(query, (Host,), **asked)
    return found


def _ratios(cluster: model.Cluster, demand: rule.Demand) -> tuple[float, float, float, float]:
    return (
        demand.memory_overcommit or cluster.memory_overcommit,
        demand.cpu_overcommit or cluster.cpu_overcommit,
        cluster.memory_threshold,
        cluster.cpu_threshold,
    )


@functools.cache
def _ranked(order: rule.Order, zoned: bool, driven: bool, tags: int) -> Any:
    """The rule's own conditions on what is free, and its order."""

    def taken(what: str) -> Any:
        used, claimed = H[f"{what}_used"], H[f"{what}_claimed"]
        return sa.case((claimed > used, claimed), else_=used)

    def number(name: str) -> Any:
        return sa.bindparam(name, type_=sa.Float)

    memory, cpu = H.memory_mib_total * number("memory"), H.vcpus_total * number("cpu")
    free = memory - taken("memory_mib")
    query = sa.select(*[H[name] for name in COLUMNS]).where(
        H.state == HostState.UP,
        H.enabled,
        sa.not_(sa.or_(H.maintenance, H.fenced, H.clash)),
        free >= ask("memory_mib"),
        taken("memory_mib") < memory * number("memory_share"),
        cpu - taken("vcpus") >= ask("vcpus"),
        taken("vcpus") < cpu * number("cpu_share"),
        H.cluster.in_(ask_any("clusters")) if zoned else H.cluster.is_(None),
    )
    if driven:
        query = query.where(H.driver.in_(ask_any("drivers")))
    for n in range(tags):
        written = sa.type_coerce(H.tags, sa.Text)
        query = query.where(written.contains(sa.bindparam(f"tag_{n}", type_=sa.Text)))
    ranked = (free, H.name) if order is rule.Order.PACK else (free.desc(), H.name.desc())
    return query.order_by(*ranked).limit(BEST)

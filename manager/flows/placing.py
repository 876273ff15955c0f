"""Placing: the fleet as the planner sees it, its decision, and the claim on what it chose.

The decision is made on one look at all hosts. The host that it chose is then held, counted anew and
asked once more, so that two managers can not overfill it; one that is full after all is left out
and the decision is made again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import msgspec
import sqlalchemy as sa

from common import model
from common.conf import Settings
from common.errors import NoValidHost
from common.model import AffinityKind, Kind, PoolScope
from common.states import GuestKind, PowerState, VmState
from manager.flows import model as nouns
from manager.rules import placement as rule
from manager.store.engine import Tx
from manager.store.hosts import Host
from manager.store.instances import Instance, Wishes
from manager.store.model import Use
from manager.store.sightings import Sighting
from manager.store.statements import ask, ask_any
from manager.store.volumes import Volume

RECOUNTS = 20  # hosts that may turn out to be full, one after the other, for one decision
H, I = Host.__table__.c, Instance.__table__.c  # noqa: E741 - the tables' columns
S, U, V = Sighting.__table__.c, Use.__table__.c, Volume.__table__.c
OFF = (PowerState.SHUTOFF, PowerState.CRASHED, PowerState.SUSPENDED)

# One narrow look at all hosts.
COLUMNS = (
    "name",
    "state",
    "enabled",
    "maintenance",
    "driver",
    "cluster",
    "tags",
    "vcpus_total",
    "vcpus_used",
    "vcpus_claimed",
    "memory_mib_total",
    "memory_mib_used",
    "memory_mib_claimed",
    "clash",
    "fenced",
)
FLEET = sa.select(*[H[name] for name in COLUMNS]).order_by(H.name)


def _sum(column: sa.ColumnElement[int], *where: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
    return sa.select(sa.func.coalesce(sa.func.sum(column), 0)).where(*where).scalar_subquery()


OURS = (I.host == ask("host"), I.vm_state != VmState.DELETED, I.uuid != ask("instance"))
STRANGERS = (
    S.host == ask("host"),
    S.present,
    S.kind != GuestKind.MANAGED,
    *[S.power_state != off for off in OFF],
)
CLAIMED = sa.select(
    _sum(I.vcpus, *OURS),
    _sum(I.memory_mib, *OURS),
    _sum(S.vcpus, *STRANGERS),
    _sum(S.memory_mib, *STRANGERS),
)
POOLED = (
    sa.select(V.pool, sa.func.sum(V.size_gib))
    .where(V.pool.in_(ask_any("pools")), V.instance != ask("instance"))
    .group_by(V.pool)
)
OF_PROJECT = (
    sa.select(I.host, sa.func.count())
    .where(I.project == ask("project"), I.host.is_not(None), I.vm_state != VmState.DELETED)
    .group_by(I.host)
)
GROUPED = (
    sa.select(U.name, I.host)
    .where(
        U.kind == Kind.AFFINITY_GROUP,
        U.name.in_(ask_any("groups")),
        U.instance == I.uuid,
        I.uuid != ask("instance"),
        I.host.is_not(None),
        I.vm_state != VmState.DELETED,
    )
    .distinct()
)
RELEASE = (
    sa.update(Host.__table__)
    .where(H.name == ask("at"))
    .values(
        vcpus_claimed=H.vcpus_claimed - ask("vcpus"),
        memory_mib_claimed=H.memory_mib_claimed - ask("memory_mib"),
    )
)


class Placed(msgspec.Struct, frozen=True):
    """Where a VM goes, with the pool of each of its disks, and what was said of every host."""

    host: str
    pools: tuple[str | None, ...]
    reasons: tuple[tuple[str, str], ...]


class Topology:
    """Zones, pods, clusters and pools, as far as a decision has to know them."""

    def __init__(self, tx: Tx, zone: str | None) -> None:
        self._tx, self.zone = tx, zone
        self._clusters: dict[str, model.Cluster] = {}
        self._pods: dict[str, model.Pod] = {}
        self._zones: dict[str, model.Zone] = {}
        self.pools: dict[str, model.Pool] = {}
        if zone is not None:
            self._clusters = nouns.all_of(tx, Kind.CLUSTER)
            self._pods = nouns.all_of(tx, Kind.POD)
            self._zones = nouns.all_of(tx, Kind.ZONE)
            every: dict[str, model.Pool] = nouns.all_of(tx, Kind.POOL)
            self.pools = {name: pool for name, pool in every.items() if self._zone_of(pool) == zone}

    def candidate(self, row: Sequence[object], of_project: Mapping[str, int]) -> rule.Candidate:
        """A host, with what its cluster makes of it."""
        (name, state, enabled, maintenance, driver, at, tags, *sizes, clash, fenced) = row
        cluster = self._clusters.get(str(at)) if at is not None else None
        pod = self._pods.get(cluster.pod) if cluster is not None else None
        zone = self._zones.get(pod.zone) if pod is not None else None
        closed = ""
        for word, there, what in (
            ("cluster", at, cluster),
            ("pod", cluster and cluster.pod, pod),
            ("zone", pod and pod.zone, zone),
        ):
            if what is not None and not what.enabled:
                closed = f"is in {word} {there}, which is disabled"
        vcpus_total, vcpus_used, vcpus_claimed, total, used, claimed = sizes
        ratios = cluster or _NO_CLUSTER
        return rule.Candidate(
            name=name,  # type: ignore[arg-type]
            state=state,  # type: ignore[arg-type]
            enabled=bool(enabled),
            maintenance=bool(maintenance),
            driver=driver,  # type: ignore[arg-type]
            zone=pod.zone if pod is not None else None,
            pod=cluster.pod if cluster is not None else None,
            cluster=at,  # type: ignore[arg-type]
            closed=closed,
            tags=frozenset(tags),  # type: ignore[call-overload]
            vcpus_total=vcpus_total,  # type: ignore[arg-type]
            vcpus_used=vcpus_used,  # type: ignore[arg-type]
            vcpus_claimed=vcpus_claimed,  # type: ignore[arg-type]
            memory_mib_total=total,  # type: ignore[arg-type]
            memory_mib_used=used,  # type: ignore[arg-type]
            memory_mib_claimed=claimed,  # type: ignore[arg-type]
            cpu_overcommit=ratios.cpu_overcommit,
            memory_overcommit=ratios.memory_overcommit,
            cpu_threshold=ratios.cpu_threshold,
            memory_threshold=ratios.memory_threshold,
            of_project=of_project.get(str(name), 0),
            clash=bool(clash),
            fenced=bool(fenced),
        )

    def _zone_of(self, pool: model.Pool) -> str | None:
        if pool.scope is PoolScope.ZONE:
            return pool.zone
        cluster = pool.cluster
        if pool.scope is PoolScope.HOST and pool.host is not None:
            place = nouns.find(self._tx, Kind.HOST, pool.host)
            cluster = place.cluster if isinstance(place, model.Place) else None
        found = self._clusters.get(cluster) if cluster is not None else None
        pod = self._pods.get(found.pod) if found is not None else None
        return pod.zone if pod is not None else None


_NO_CLUSTER = model.Cluster(pod="none")


def foresee(
    tx: Tx,
    cfg: Settings,
    wishes: Wishes,
    *,
    instance: str,
    project: str,
    vcpus: int,
    memory_mib: int,
    avoid: Mapping[str, str],
) -> rule.Placement:
    """The decision on what is known now, and nothing held."""
    topology = Topology(tx, wishes.zone)
    demand = _demand(tx, wishes, instance, vcpus, memory_mib, avoid, hold=False)
    return _decide(tx, cfg, topology, wishes, demand, project, instance)


def claim(tx: Tx, cfg: Settings, vm: Instance, avoid: Mapping[str, str]) -> Placed:
    """A host and pools for a VM, claimed until the record of the VM says otherwise.

    The caller writes the host into the VM's record in this transaction. Raises NoValidHost, which
    tells of every host why.
    """
    topology = Topology(tx, vm.wishes.zone)
    demand = _demand(tx, vm.wishes, vm.uuid, vm.vcpus, vm.memory_mib, avoid, hold=True)
    full: dict[str, str] = {}
    for _ in range(RECOUNTS):
        found = _decide(tx, cfg, topology, vm.wishes, demand, vm.project, vm.uuid)
        if found.host is None:
            break
        why = _hold(tx, topology, demand, found, vm)
        if not why:
            reasons = {**dict(found.reasons), **full}
            return Placed(found.host, found.pools, tuple(reasons.items()))
        full[found.host] = why
        demand = dataclasses.replace(demand, avoid={**demand.avoid, found.host: why})
    told = dict(found.reasons)
    told.update(full)
    raise NoValidHost(
        f"no host can take {vm.name} ({vm.memory_mib} MiB): {_explain(told)}",
        "free or add a host: muster host list",
        hosts=told,
    )


def release(tx: Tx, vm: Instance) -> None:
    """Give back the claim of a VM that leaves its host: its record is changed by the caller."""
    if vm.host is not None:
        tx.change(Host, RELEASE, at=vm.host, vcpus=vm.vcpus, memory_mib=vm.memory_mib)


def _hold(
    tx: Tx, topology: Topology, demand: rule.Demand, found: rule.Placement, vm: Instance
) -> str:
    """Hold the chosen host and its pools and count them again; why it does not fit after all."""
    if found.host is None:
        raise AssertionError("there is a host to hold")
    host = tx.lock(Host, found.host)
    if host is None:
        return "is gone"
    ((vcpus, memory_mib, strange_vcpus, strange_mib),) = tx.rows(
        CLAIMED, host=found.host, instance=vm.uuid
    )
    used = sorted({pool for pool in found.pools if pool is not None})
    locked = {name: nouns.lock(tx, Kind.POOL, name) for name in used}
    for name, pool in locked.items():
        if pool is None:
            return f"its pool {name} is gone"
    pools = _pools(tx, locked, vm.uuid)
    candidate = dataclasses.replace(
        topology.candidate(tuple(getattr(host, name) for name in COLUMNS), {}),
        vcpus_claimed=int(vcpus) + int(strange_vcpus),
        memory_mib_claimed=int(memory_mib) + int(strange_mib),
    )
    why = rule.unfit(candidate, demand, pools)
    if not why:
        tx.put(
            host,
            vcpus_claimed=int(vcpus) + vm.vcpus,
            memory_mib_claimed=int(memory_mib) + vm.memory_mib,
        )
    return why


def _decide(
    tx: Tx,
    cfg: Settings,
    topology: Topology,
    wishes: Wishes,
    demand: rule.Demand,
    project: str,
    instance: str,
) -> rule.Placement:
    order = rule.Order(wishes.order or cfg.manager.placement_order)
    of_project = {}
    if order is rule.Order.SPREAD_BY_PROJECT:
        of_project = {host: int(n) for host, n in tx.rows(OF_PROJECT, project=project)}
    hosts = [topology.candidate(tuple(row), of_project) for row in tx.rows(FLEET)]
    pools = _pools(tx, topology.pools, instance) if demand.disks else ()
    return rule.place(hosts, demand, order=order, pools=pools)


def _demand(
    tx: Tx,
    wishes: Wishes,
    instance: str,
    vcpus: int,
    memory_mib: int,
    avoid: Mapping[str, str],
    *,
    hold: bool,
) -> rule.Demand:
    beside, apart = _neighbours(tx, wishes.groups, instance, hold=hold)
    return rule.Demand(
        vcpus=vcpus,
        memory_mib=memory_mib,
        zone=wishes.zone,
        pod=wishes.pod,
        cluster=wishes.cluster,
        host=wishes.host,
        pool=wishes.pool,
        hypervisors=frozenset(wishes.hypervisors),
        host_tags=frozenset(wishes.host_tags),
        cpu_overcommit=wishes.cpu_overcommit,
        memory_overcommit=wishes.memory_overcommit,
        disks=tuple(
            rule.DiskDemand(disk.size_gib, frozenset(disk.tags), disk.local)
            for disk in wishes.disks
        ),
        avoid=avoid,
        beside=beside,
        apart=apart,
    )


def _neighbours(
    tx: Tx, groups: Sequence[str], instance: str, *, hold: bool
) -> tuple[frozenset[str] | None, frozenset[str]]:
    """The hosts that a VM must be beside (None: any), and those that it must keep off."""
    if not groups:
        return None, frozenset()
    if hold:
        # In one order, whoever else holds some: two members must not be placed at once.
        for name in sorted(groups):
            nouns.lock(tx, Kind.AFFINITY_GROUP, name)
    beside: frozenset[str] | None = None
    apart: set[str] = set()
    at: dict[str, set[str]] = {}
    for name, host in tx.rows(GROUPED, groups=list(groups), instance=instance):
        at.setdefault(name, set()).add(host)
    for name in groups:
        group = nouns.find(tx, Kind.AFFINITY_GROUP, name)
        hosts = at.get(name, set())
        if not isinstance(group, model.AffinityGroup) or not hosts:
            continue
        if group.kind is AffinityKind.AFFINITY:
            beside = frozenset(hosts) if beside is None else beside & hosts
        else:
            apart |= hosts
    return beside, frozenset(apart)


def _pools(tx: Tx, pools: Mapping[str, model.Pool], instance: str) -> tuple[rule.Pool, ...]:
    if not pools:
        return ()
    taken = {n: int(gib) for n, gib in tx.rows(POOLED, pools=list(pools), instance=instance)}
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


def _explain(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in reasons.items()) or "no host is known"

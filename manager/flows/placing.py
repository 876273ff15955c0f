"""Placing: the fleet as the planner sees it, its decision, and the claim on what it chose.

The decision is made on one look at all hosts; of a large fleet at the best of those that have room.
The host that it chose is then held, counted anew and asked once more, so that two managers can not
overfill it; one that is full after all is left out and the decision is made again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from common import model
from common.conf import Settings
from common.errors import NoValidHost
from common.model import NOUNS, AffinityKind, Kind, PoolScope
from common.states import GuestKind, HostState, PowerState, VmState
from manager.flows import model as nouns
from manager.rules import placement as rule
from manager.store.engine import Tx
from manager.store.hosts import Host
from manager.store.instances import Instance, Wishes
from manager.store.model import Object, Use
from manager.store.sightings import Sighting
from manager.store.statements import Query, among, ask, ask_any
from manager.store.volumes import Volume

BUSY = 3  # hosts that others are deciding about, before one waits for the best
RECOUNTS = 20  # hosts that may turn out to be full, one after the other, for one decision
SMALL = 200  # hosts of a fleet of which every one is looked at
BEST = 50  # hosts of a larger one that are looked at, for each way of counting what is free
WAYS = 8  # ways of counting, each a query; with more of them every host is looked at
H, I, O = Host.__table__.c, Instance.__table__.c, Object.__table__.c  # noqa: E741 - columns
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
A_SMALL_ONE = FLEET.limit(SMALL + 1)
THESE_HOSTS = FLEET.where(H.name.in_(ask_any("names")))
# As text: a Row of each would take longer than the decision.
STORES = sa.select(O.kind, O.name, sa.type_coerce(O.spec, sa.Text)).where(
    among(O.kind, (Kind.ZONE, Kind.POD, Kind.CLUSTER, Kind.POOL))
)


def _sum(column: sa.ColumnElement[int], *where: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
    return sa.select(sa.func.coalesce(sa.func.sum(column), 0)).where(*where).scalar_subquery()


OURS = (I.host == ask("host"), I.vm_state != VmState.DELETED, I.uuid != ask("instance"))
STRANGERS = (
    S.host == ask("host"),
    S.present,
    S.kind != GuestKind.MANAGED,
    *[S.power_state != off for off in OFF],
)
CLAIMED = (
    _sum(I.vcpus, *OURS),
    _sum(I.memory_mib, *OURS),
    _sum(S.vcpus, *STRANGERS),
    _sum(S.memory_mib, *STRANGERS),
)
PROMISED = sa.select(_sum(I.vcpus, *OURS), _sum(I.memory_mib, *OURS))
EVERY_POOL = (
    sa.select(V.pool, sa.func.sum(V.size_gib))
    .where(V.pool.is_not(None), V.instance != ask("instance"))
    .group_by(V.pool)
)
POOLED = EVERY_POOL.where(V.pool.in_(ask_any("pools")))
NOTHING = sa.literal(0, sa.BigInteger)
# The host itself, then the pools that are used, by one look.
RECOUNT = sa.union_all(
    sa.select(sa.literal("", sa.Text).label("pool"), *CLAIMED),
    POOLED.add_columns(NOTHING, NOTHING, NOTHING),
)
VOLUMES_OF = Query(Volume, V.instance == ask("instance"))
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


@dataclasses.dataclass(frozen=True)
class Look:
    """The hosts and pools that a decision is made on."""

    hosts: Sequence[rule.Candidate]
    pools: Sequence[rule.Pool]
    order: rule.Order

    def place(self, demand: rule.Demand) -> rule.Placement:
        return rule.place(self.hosts, demand, order=self.order, pools=self.pools)


class Placed(msgspec.Struct, frozen=True):
    """Where a VM goes, with the pool of each of its disks, and what was said of every host."""

    host: str
    pools: tuple[str | None, ...]
    reasons: tuple[tuple[str, str], ...]


class Site(msgspec.Struct, frozen=True):
    """Where the hosts of a cluster stand. `closed`: why they take no VMs."""

    zone: str | None
    pod: str | None
    closed: str
    cluster: model.Cluster


class Topology:
    """Zones, pods, clusters and pools, as far as a decision has to know them."""

    def __init__(self, tx: Tx, zone: str | None) -> None:
        self._tx, self.zone = tx, zone
        self.sites: dict[str, Site] = {}
        # Those that others reach as well, and those of each host.
        self.shared: dict[str, model.Pool] = {}
        self._local: dict[str, list[tuple[str, model.Pool]]] = {}
        if zone is not None:
            self._read()

    def _read(self) -> None:
        found: dict[Kind, dict[str, Any]] = {kind: {} for kind in Kind}
        for kind, name, spec in self._tx.rows(STORES, (Object,)):
            found[kind][name] = msgspec.json.decode(spec, type=NOUNS[kind])
        for name, cluster in found[Kind.CLUSTER].items():
            pod = found[Kind.POD].get(cluster.pod)
            zone = found[Kind.ZONE].get(pod.zone) if pod is not None else None
            closed = ""
            for word, there, what in (
                ("cluster", name, cluster),
                ("pod", cluster.pod, pod),
                ("zone", pod and pod.zone, zone),
            ):
                if what is not None and not what.enabled:
                    closed = f"is in {word} {there}, which is disabled"
            self.sites[name] = Site(pod.zone if pod else None, cluster.pod, closed, cluster)
        for name, pool in found[Kind.POOL].items():
            if pool.scope is PoolScope.HOST:
                self._local.setdefault(pool.host, []).append((name, pool))
            elif self.zone == (pool.zone or self._zone_at(pool.cluster)):
                self.shared[name] = pool

    def _zone_at(self, cluster: str | None) -> str | None:
        site = self.sites.get(cluster) if cluster is not None else None
        return site.zone if site is not None else None

    def candidate(self, row: Sequence[object], of_project: Mapping[str, int]) -> rule.Candidate:
        """A host, with what its cluster makes of it."""
        (name, state, enabled, maintenance, driver, at, tags, *sizes, clash, fenced) = row
        site = self.sites.get(str(at), _ELSEWHERE) if at is not None else _NOWHERE
        vcpus_total, vcpus_used, vcpus_claimed, total, used, claimed = sizes
        ratios = site.cluster
        return rule.Candidate(
            name=name,  # type: ignore[arg-type]
            state=state,  # type: ignore[arg-type]
            enabled=bool(enabled),
            maintenance=bool(maintenance),
            driver=driver,  # type: ignore[arg-type]
            zone=site.zone,
            pod=site.pod,
            cluster=at,  # type: ignore[arg-type]
            closed=site.closed,
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

    def pools(self, hosts: Iterable[rule.Candidate]) -> dict[str, model.Pool]:
        """What any of these hosts reaches in the zone."""
        found = dict(self.shared)
        if self._local:
            for host in hosts:
                if host.zone == self.zone:
                    found.update(self._local.get(host.name, ()))
        return found

    def has_pools(self) -> bool:
        """True when the disks of its VMs are kept in pools, be they of hosts never heard of."""
        if self.shared or not self._local:
            return bool(self.shared)
        places = self._tx.ask(nouns.THESE, kinds=[Kind.HOST], names=list(self._local))
        return any(self._zone_at(row.spec["cluster"]) == self.zone for row in places)


_NOWHERE = Site(None, None, "", model.Cluster(pod="none"))
_ELSEWHERE = msgspec.structs.replace(_NOWHERE, zone="elsewhere")


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
    tell_all: bool = True,
) -> rule.Placement:
    """The decision on what is known now, and nothing held. `tell_all`: of every host, why not."""
    topology = Topology(tx, wishes.zone)
    demand = _demand(tx, wishes, instance, vcpus, memory_mib, avoid, hold=False)
    decide = _at_all if tell_all else _at_some
    return decide(tx, cfg, topology, wishes, demand, project, instance).place(demand)


def claim(tx: Tx, cfg: Settings, vm: Instance, avoid: Mapping[str, str]) -> Placed:
    """A host and pools for a VM, claimed until the record of the VM says otherwise.

    The caller writes the host into the VM's record in this transaction; the record need not be
    there yet. Raises NoValidHost, which tells of every host why, up to SMALL.
    """
    topology = Topology(tx, vm.wishes.zone)
    demand = _demand(tx, vm.wishes, vm.uuid, vm.vcpus, vm.memory_mib, avoid, hold=True)
    full: dict[str, str] = {}
    again: set[str] = set()
    for _ in range(RECOUNTS):
        look = _at_some(tx, cfg, topology, vm.wishes, demand, vm.project, vm.uuid)
        found, busy = _free(tx, look, demand)
        if found.host is None:
            break
        why = _hold(tx, topology, demand, found, vm)
        if not why:
            reasons = {**dict(found.reasons), **busy, **full}
            return Placed(found.host, found.pools, tuple(reasons.items()))
        if found.host not in again:
            # What has filled up since may be one of its pools, and another of them may do.
            again.add(found.host)
            continue
        full[found.host] = why
        demand = dataclasses.replace(demand, avoid={**demand.avoid, found.host: why})
    told = dict(found.reasons)
    told.update(full)
    raise NoValidHost(
        f"no host can take {vm.name} ({vm.memory_mib} MiB): {_explain(told)}",
        "free or add a host: muster host list",
        hosts=dict(list(told.items())[:SMALL]),
    )


def grow(
    tx: Tx, vm: Instance, wishes: Wishes, vcpus: int, memory_mib: int, root_gib: int | None
) -> str:
    """Claim what a VM needs more on the host where it is; why there is not that much, or "".

    What does not grow is not looked at, and neither is what an operator has said of the host: the
    VM is there. The caller writes the larger of both sizes into its record, and `root_gib`, if its
    first disk grows, into that of the disk.
    """
    host = tx.lock(Host, vm.host) if vm.host is not None else None
    if host is None:
        return "is gone"
    volumes = tx.ask(VOLUMES_OF, instance=vm.uuid) if root_gib is not None else []
    pool = next((volume.pool for volume in volumes if volume.n == 0), None)
    store = nouns.lock(tx, Kind.POOL, pool) if pool is not None else None
    counted = {
        name: [int(n) for n in sums]
        for name, *sums in tx.rows(
            RECOUNT,
            (Instance, Sighting, Volume),
            host=host.name,
            pools=[pool] if pool is not None else [],
            instance=vm.uuid,
        )
    }
    other_vcpus, other_mib, strange_vcpus, strange_mib = counted.pop("")
    runs = vm.power_state not in OFF
    more_vcpus, more_mib = vcpus > vm.vcpus, memory_mib > vm.memory_mib
    candidate = dataclasses.replace(
        Topology(tx, vm.wishes.zone).candidate(tuple(getattr(host, n) for n in COLUMNS), {}),
        state=HostState.UP,
        enabled=True,
        maintenance=False,
        fenced=False,
        clash=False,
        closed="",
        vcpus_claimed=other_vcpus + strange_vcpus if more_vcpus else 0,
        memory_mib_claimed=other_mib + strange_mib if more_mib else 0,
        vcpus_used=max(0, host.vcpus_used - vm.vcpus * runs) if more_vcpus else 0,
        memory_mib_used=max(0, host.memory_mib_used - vm.memory_mib * runs) if more_mib else 0,
    )
    demand = rule.Demand(
        vcpus=vcpus if more_vcpus else 0,
        memory_mib=memory_mib if more_mib else 0,
        zone=candidate.zone,
        host_tags=frozenset(wishes.host_tags),
        cpu_overcommit=wishes.cpu_overcommit,
        memory_overcommit=wishes.memory_overcommit,
    )
    why = rule.unfit(candidate, demand)
    if not why and pool is not None and root_gib is not None:
        beside = sum(volume.size_gib for volume in volumes if volume.pool == pool and volume.n)
        taken = beside + counted.get(pool, [0])[0]
        free = _stores({pool: store}, {pool: taken})[0].free_gib if store is not None else 0
        if free < root_gib:
            why = f"has {max(0, int(free))} GiB free in pool {pool} of {root_gib} wanted"
    if not why:
        tx.put(
            host,
            vcpus_claimed=other_vcpus + max(vcpus, vm.vcpus),
            memory_mib_claimed=other_mib + max(memory_mib, vm.memory_mib),
        )
    return why


def shrink(tx: Tx, vm: Instance, vcpus: int, memory_mib: int) -> None:
    """Give back what a VM does not need any more where it stays; the caller changes its record."""
    if vm.host is not None:
        less = {"vcpus": vm.vcpus - vcpus, "memory_mib": vm.memory_mib - memory_mib}
        tx.change(Host, RELEASE, at=vm.host, **less)


def move_claim(tx: Tx, vm: Instance, host: str) -> None:
    """Claim a host for a VM whose guest is there already, whether or not it has room for it.

    The caller writes the host into the VM's record.
    """
    release(tx, vm)
    tx.change(Host, RELEASE, at=host, vcpus=-vm.vcpus, memory_mib=-vm.memory_mib)


def release(tx: Tx, vm: Instance) -> None:
    """Give back the claim of a VM that leaves its host: its record is changed by the caller."""
    if vm.host is not None:
        tx.change(Host, RELEASE, at=vm.host, vcpus=vm.vcpus, memory_mib=vm.memory_mib)


def promised(tx: Tx, host: str) -> tuple[int, int]:
    """The vCPUs and MiB of all VMs that are placed on a host, counted anew."""
    vcpus, memory_mib = tx.rows(PROMISED, (Instance,), host=host, instance="")[0]
    return int(vcpus), int(memory_mib)


def _free(tx: Tx, look: Look, demand: rule.Demand) -> tuple[rule.Placement, dict[str, str]]:
    """The best host, held; where VMs are spread, the best that nobody else is deciding about.

    All managers find the same one the best, and would stand in line for it.
    """
    best = found = look.place(demand)
    busy: dict[str, str] = {}
    spread = look.order in (rule.Order.SPREAD, rule.Order.SPREAD_BY_PROJECT)
    while spread and found.host is not None and len(busy) < BUSY:
        if tx.lock_if_free(Host, found.host) is not None:
            return found, busy
        busy[found.host] = "is being decided about for another VM"
        found = look.place(dataclasses.replace(demand, avoid={**demand.avoid, **busy}))
    return best, {}


def _hold(
    tx: Tx, topology: Topology, demand: rule.Demand, found: rule.Placement, vm: Instance
) -> str:
    """Hold the chosen host and its pools and count them again; why it does not fit after all."""
    if found.host is None:
        raise AssertionError("there is a host to hold")
    host = tx.lock(Host, found.host)
    if host is None:
        return "is gone"
    used = sorted({pool for pool in found.pools if pool is not None})
    locked = {name: nouns.lock(tx, Kind.POOL, name) for name in used}
    for name, pool in locked.items():
        if pool is None:
            return f"its pool {name} is gone"
    counted = {
        name: [int(n) for n in sums]
        for name, *sums in tx.rows(
            RECOUNT, (Instance, Sighting, Volume), host=host.name, pools=used, instance=vm.uuid
        )
    }
    vcpus, memory_mib, strange_vcpus, strange_mib = counted.pop("")
    pools = _stores(locked, {name: gib for name, (gib, *_) in counted.items()})
    candidate = dataclasses.replace(
        topology.candidate(tuple(getattr(host, name) for name in COLUMNS), {}),
        vcpus_claimed=vcpus + strange_vcpus,
        memory_mib_claimed=memory_mib + strange_mib,
    )
    why = rule.unfit(candidate, demand, pools)
    if not why:
        tx.put(
            host,
            vcpus_claimed=vcpus + vm.vcpus,
            memory_mib_claimed=memory_mib + vm.memory_mib,
        )
    return why


def _at_some(
    tx: Tx,
    cfg: Settings,
    topology: Topology,
    wishes: Wishes,
    demand: rule.Demand,
    project: str,
    instance: str,
) -> Look:
    """At the best hosts of a large fleet; at every host if it is small, or none of them fits."""
    order = _order(cfg, wishes)
    rows = tx.rows(A_SMALL_ONE, (Host,))
    if len(rows) <= SMALL:
        counts = _counts(tx, order, project)
        return _look(tx, topology, demand, order, rows, counts, instance)
    best: Sequence[Any] = ()
    only = {demand.host} if demand.host is not None else demand.beside
    if only:
        best = tx.rows(THESE_HOSTS, (Host,), names=sorted(only))
    elif order in (rule.Order.SPREAD, rule.Order.PACK):
        best = _best(tx, topology, demand, order)
    if best:
        counts = _counts(tx, order, project) if only else {}
        look = _look(tx, topology, demand, order, best, counts, instance)
        if look.place(demand).host is not None:
            return look
    return _at_all(tx, cfg, topology, wishes, demand, project, instance)


def _order(cfg: Settings, wishes: Wishes) -> rule.Order:
    return rule.Order(wishes.order or cfg.manager.placement_order)


def _at_all(
    tx: Tx,
    cfg: Settings,
    topology: Topology,
    wishes: Wishes,
    demand: rule.Demand,
    project: str,
    instance: str,
) -> Look:
    order = _order(cfg, wishes)
    counts = _counts(tx, order, project)
    return _look(tx, topology, demand, order, tx.rows(FLEET, (Host,)), counts, instance)


def _counts(tx: Tx, order: rule.Order, project: str) -> dict[str, int]:
    """How many VMs of a project are on each host, if that is asked for."""
    if order is not rule.Order.SPREAD_BY_PROJECT:
        return {}
    rows = tx.rows(OF_PROJECT, (Instance,), project=project)
    return {host: int(n) for host, n in rows}


def _look(
    tx: Tx,
    topology: Topology,
    demand: rule.Demand,
    order: rule.Order,
    rows: Sequence[Any],
    of_project: Mapping[str, int],
    instance: str,
) -> Look:
    hosts = [topology.candidate(tuple(row), of_project) for row in rows]
    pools: tuple[rule.Pool, ...] = ()
    if demand.disks:
        pools = _pools(tx, topology.pools(hosts), instance)
        if not pools and topology.has_pools():
            pools = (_OUT_OF_REACH,)
    return Look(hosts, pools, order)


_OUT_OF_REACH = rule.Pool("", PoolScope.HOST, "", 0.0, enabled=False)


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
        ways = {_ratios(_NOWHERE.cluster, demand): []}
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
    rows = tx.rows(GROUPED, (Use, Instance), groups=list(groups), instance=instance)
    for name, host in rows:
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
    if len(pools) > SMALL:
        rows = tx.rows(EVERY_POOL, (Volume,), instance=instance)
    else:
        rows = tx.rows(POOLED, (Volume,), pools=list(pools), instance=instance)
    return _stores(pools, {name: int(gib) for name, gib in rows})


def _stores(pools: Mapping[str, model.Pool], taken: Mapping[str, int]) -> tuple[rule.Pool, ...]:
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


def _explain(reasons: Mapping[str, str]) -> str:
    told = [f"{name}: {why}" for name, why in list(reasons.items())[: rule.TOLD]]
    if len(reasons) > rule.TOLD:
        told.append(f"and {len(reasons) - rule.TOLD} more hosts")
    return "; ".join(told) or "no host is known"

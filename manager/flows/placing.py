"""Placing: the planner's decision about a VM, and the claim on what it chose.

The decision is made on one look at all hosts; of a large fleet at the best of those that have room.
The host that it chose is then held, counted anew and asked once more, so that two managers can not
overfill it; one that is full after all is left out and the decision is made again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import msgspec
import sqlalchemy as sa

from common import model
from common.conf import Settings
from common.errors import NoValidHost
from common.model import AffinityKind, Kind
from common.states import GuestKind, PowerState, VmState
from manager.flows import model as nouns
from manager.flows.looks import POOLED, Look, Looks, stores
from manager.flows.topology import COLUMNS, Topology
from manager.rules import placement as rule
from manager.store.engine import Tx
from manager.store.hosts import Host
from manager.store.instances import Instance, Wishes
from manager.store.model import Use
from manager.store.sightings import Sighting
from manager.store.statements import ask, ask_any
from manager.store.volumes import Volume

BUSY = 3  # hosts that others are deciding about, before one waits for the best
TOLD = 200  # hosts whose reasons are told when none fits
RECOUNTS = 20  # hosts that may turn out to be full, one after the other, for one decision
H, I = Host.__table__.c, Instance.__table__.c  # noqa: E741 - columns
S, U = Sighting.__table__.c, Use.__table__.c
OFF = (PowerState.SHUTOFF, PowerState.CRASHED, PowerState.SUSPENDED)


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
NOTHING = sa.literal(0, sa.BigInteger)
# The host itself, then the pools that are used, by one look.
RECOUNT = sa.union_all(
    sa.select(sa.literal("", sa.Text).label("pool"), *CLAIMED),
    POOLED.add_columns(NOTHING, NOTHING, NOTHING),
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
    looks = Looks(tx, cfg, Topology(tx, wishes.zone), wishes, project, instance)
    demand = _demand(tx, wishes, instance, vcpus, memory_mib, avoid, hold=False)
    return (looks.at_all if tell_all else looks.at_some)(demand).place(demand)


def claim(tx: Tx, cfg: Settings, vm: Instance, avoid: Mapping[str, str]) -> Placed:
    """A host and pools for a VM, claimed until the record of the VM says otherwise.

    The caller writes the host into the VM's record in this transaction; the record need not be
    there yet. Raises NoValidHost, which tells of every host why, up to TOLD.
    """
    topology = Topology(tx, vm.wishes.zone)
    looks = Looks(tx, cfg, topology, vm.wishes, vm.project, vm.uuid)
    demand = _demand(tx, vm.wishes, vm.uuid, vm.vcpus, vm.memory_mib, avoid, hold=True)
    full: dict[str, str] = {}
    again: set[str] = set()
    for _ in range(RECOUNTS):
        look = looks.at_some(demand)
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
        hosts=dict(list(told.items())[:TOLD]),
    )


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
    pools = stores(locked, {name: gib for name, (gib, *_) in counted.items()})
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


def _explain(reasons: Mapping[str, str]) -> str:
    told = [f"{name}: {why}" for name, why in list(reasons.items())[: rule.TOLD]]
    if len(reasons) > rule.TOLD:
        told.append(f"and {len(reasons) - rule.TOLD} more hosts")
    return "; ".join(told) or "no host is known"

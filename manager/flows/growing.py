"""Growing: another claim on the host where a VM stays."""

from __future__ import annotations

import dataclasses

from common.model import Kind
from common.states import HostState
from manager.flows import model as nouns
from manager.flows import placing
from manager.flows.looks import stores
from manager.flows.topology import COLUMNS, Topology
from manager.rules import placement as rule
from manager.store.engine import Tx
from manager.store.hosts import Host
from manager.store.instances import Instance, Wishes
from manager.store.sightings import Sighting
from manager.store.statements import Query, ask
from manager.store.volumes import Volume

VOLUMES_OF = Query(Volume, Volume.__table__.c.instance == ask("instance"))


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
            placing.RECOUNT,
            (Instance, Sighting, Volume),
            host=host.name,
            pools=[pool] if pool is not None else [],
            instance=vm.uuid,
        )
    }
    other_vcpus, other_mib, strange_vcpus, strange_mib = counted.pop("")
    runs = vm.power_state not in placing.OFF
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
        free = stores({pool: store}, {pool: taken})[0].free_gib if store is not None else 0
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
        tx.change(Host, placing.RELEASE, at=vm.host, **less)

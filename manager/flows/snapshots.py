"""Snapshots: what a shelved VM's disks are copied to, from before the first byte to after the last.

A snapshot may be all that is left of a VM's disks. It goes only when its VM is deleted, or when a
guest of the VM has been seen since: that one has the disks.
"""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa

from common.conf import Settings
from common.errors import NotSupported
from common.messages import GuestReport, GuestSpec, SnapshotDisk, SnapshotFiles
from common.model import Kind, Pool, PoolScope, TemplateFormat
from common.states import PowerState, TaskState, VmState
from manager.flows import cleanup
from manager.flows import model as nouns
from manager.rules import shelving as rule
from manager.store.engine import Tx
from manager.store.hosts import Host
from manager.store.instances import Instance, Snapshot
from manager.store.statements import Query, ask
from manager.store.volumes import SNAPSHOT, Volume

KIND = SNAPSHOT  # of a clean-up item too
FIRST_N = 1000  # of a snapshot's volume, above those of disks
SHELVED = (VmState.SHELVED, VmState.SHELVED_OFFLOADED)
_ON = (PowerState.RUNNING, PowerState.BLOCKED)
V = Volume.__table__.c
TAKEN = sa.select(sa.func.coalesce(sa.func.sum(V.size_gib), 0)).where(V.pool == ask("pool"))
DISKS = Query(Volume, V.instance == ask("instance"), V.kind != KIND)


def begin(tx: Tx, vm: Instance) -> Snapshot:
    """Choose where the disks of a VM on a host are copied to, and take the space for it.

    Raises NoSpace, and NotSupported for disks in Ceph.
    """
    disks = _new_disks(vm)
    if any(disk.rbd is not None for disk in _guest(vm).disks):
        raise NotSupported(
            f"{vm.name} has disks in Ceph, which are not copied yet", "stop it instead"
        )
    size_gib = sum(disk.size_gib for disk in vm.wishes.disks)
    kept = Snapshot(id=tx.new_id(), size_gib=size_gib, generation=vm.generation + 1)
    if any(disk.path is not None for disk in _guest(vm).disks):
        return msgspec.structs.replace(kept, host=vm.host)  # no other one has that image
    if not disks:
        return kept
    pool = _choose(tx, vm, size_gib)
    if pool is None:
        return msgspec.structs.replace(kept, host=vm.host)
    n = FIRST_N + kept.generation
    tx.insert(Volume(instance=vm.uuid, n=n, kind=KIND, size_gib=size_gib, pool=pool))
    folder = nouns.find(tx, Kind.POOL, pool).path
    return msgspec.structs.replace(kept, pool=pool, folder=folder, volume=n)


def files(vm: Instance, kept: Snapshot) -> SnapshotFiles:
    """The snapshot as agents know it."""
    return SnapshotFiles(instance=vm.uuid, snapshot=kept.id, folder=kept.folder)


def where(kept: Snapshot) -> str:
    """Where it lies, in words."""
    if kept.pool is not None:
        return f"in pool {kept.pool}"
    return f"on {kept.host} alone" if kept.host is not None else "nowhere: it has none of its own"


def shown(vm: Instance) -> dict[str, Any] | None:
    """What an operator is shown of it."""
    kept = vm.snapshot
    if kept is None:
        return None
    bound_to = kept.host if kept.host is not None else "any host that reaches it"
    return {
        "id": kept.id,
        "where": where(kept),
        "unshelve_on": "its host, where it has run since" if kept.overtaken else bound_to,
        "taken_at": kept.taken_at,
        "size_gib": kept.size_gib,
    }


def spec_from(vm: Instance) -> dict[str, Any]:
    """What its guest is made from: where it has a snapshot, each new disk is a copy of that."""
    kept = vm.snapshot
    if kept is None or vm.vm_state not in SHELVED:
        return vm.spec
    guest = _guest(vm)
    new = _new_disks(vm)
    disks = [
        msgspec.structs.replace(disk, snapshot=_disk(vm, kept, n)) if n in new else disk
        for n, disk in enumerate(guest.disks)
    ]
    made: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(guest, disks=tuple(disks)))
    return made


def bound(tx: Tx, vm: Instance) -> Instance:
    """The VM with what its snapshot asks of a host: that it can be read there."""
    kept = vm.snapshot
    if kept is None or vm.vm_state not in SHELVED:
        return vm
    changes: dict[str, Any] = {}
    if kept.host is not None:
        changes["host"] = kept.host
    pool = nouns.find(tx, Kind.POOL, kept.pool) if kept.pool is not None else None
    if pool is not None and pool.scope is PoolScope.CLUSTER:
        changes["cluster"] = pool.cluster
    return msgspec.structs.replace(vm, wishes=msgspec.structs.replace(vm.wishes, **changes))


def drop(tx: Tx, cfg: Settings, vm: Instance, why: str) -> Instance:
    """The snapshot is not needed any more: somebody is to remove it, also if it is half made."""
    kept = vm.snapshot
    if kept is None:
        return vm
    # One that may still be written to goes by the agent that writes it: one thing after the other.
    writer = vm.host or vm.last_host
    host = kept.host if kept.pool is None or kept.taken_at is not None else writer
    vm = tx.swap(vm, snapshot=None, offload_at=None)
    if kept.pool is not None or kept.host is not None:
        cleanup.add(
            tx,
            cfg,
            vm,
            kind=KIND,
            remains=files(vm, kept),
            reason=why,
            host=host,
            pool=kept.pool,
            volumes=[n for n in (kept.volume,) if n and tx.find(Volume, vm.uuid, n)],
        )
    return tx.get(Instance, vm.uuid)


def never_begun(tx: Tx, vm: Instance) -> Instance:
    """No agent was ever told of the snapshot: there is nothing to remove."""
    if vm.snapshot is not None and vm.snapshot.volume is not None:
        tx.delete(tx.get(Volume, vm.uuid, vm.snapshot.volume))
    return tx.swap(vm, snapshot=None)


def seen(tx: Tx, cfg: Settings, vm: Instance, guest: GuestReport, host: str) -> None:
    """A guest of an idle VM with a snapshot is on its host."""
    kept = vm.snapshot
    if kept is None or vm.task_state is not TaskState.NONE:
        return
    runs = guest.power_state in _ON
    newer = guest.mark is not None and guest.mark.generation > kept.generation
    if kept.taken_at is None or vm.vm_state not in SHELVED:
        if kept.taken_at is not None and newer and not runs:
            return  # it was made from the snapshot, by halves perhaps: once it runs it is whole
        drop(tx, cfg, vm, f"{host} shows the guest of {vm.name}, which has its disks")
    elif runs or newer:
        overtaken(tx, vm, f"host {host}")


def overtaken(tx: Tx, vm: Instance, source: str) -> Instance:
    """Its guest runs, or may have: what it writes is not in the snapshot, and it must stay."""
    if vm.snapshot is None or vm.snapshot.overtaken:
        return vm
    text = f"{vm.name} is SHELVED and has run since its snapshot was taken: it stays on {vm.host}"
    tx.event("instance.snapshot_overtaken", vm.uuid, source, text)
    kept = msgspec.structs.replace(vm.snapshot, overtaken=True)
    return tx.swap(vm, snapshot=kept, offload_at=None)


def renewed(tx: Tx, vm: Instance) -> None:
    """A later command has marked its guest, which did not run: it is still as it was copied."""
    if vm.snapshot is not None and not vm.snapshot.overtaken:
        tx.swap(vm, snapshot=msgspec.structs.replace(vm.snapshot, generation=vm.generation))


def forget(tx: Tx, cfg: Settings, vm: Instance) -> None:
    """The VM is deleted: so is its snapshot."""
    drop(tx, cfg, vm, f"{vm.name} was deleted")


def unplace(tx: Tx, vm: Instance) -> None:
    """No disk of the VM is anywhere: its pools have their space back."""
    for volume in tx.ask(DISKS, instance=vm.uuid):
        if volume.pool is not None or volume.host is not None:
            tx.put(volume, pool=None, host=None)


def _guest(vm: Instance) -> GuestSpec:
    return msgspec.convert(vm.spec, type=GuestSpec)


def _new_disks(vm: Instance) -> set[int]:
    """Which of its disks are made for it, and go with its guest."""
    return {
        n
        for n, disk in enumerate(_guest(vm).disks)
        if disk.path is None
        and (disk.source is None or disk.source.format is not TemplateFormat.ISO)
    }


def _disk(vm: Instance, kept: Snapshot, n: int) -> SnapshotDisk:
    return SnapshotDisk(instance=vm.uuid, snapshot=kept.id, n=n, folder=kept.folder)


def _choose(tx: Tx, vm: Instance, size_gib: int) -> str | None:
    """The pool that takes it, held; None: the host keeps it itself."""
    pools = _within_reach(tx, vm)
    held = {name: nouns.lock(tx, Kind.POOL, name) for name in sorted(pools)}
    stores = []
    for name, pool in held.items():
        if pool is not None and pool.snapshots:
            ((taken,),) = tx.rows(TAKEN, (Volume,), pool=name)
            free = pool.capacity_gib * pool.overprovisioning - int(taken)
            stores.append(rule.Store(name, free, pool.scope is PoolScope.ZONE))
    chosen = rule.choose(stores, size_gib)
    return chosen.name if chosen is not None else None


def _within_reach(tx: Tx, vm: Instance) -> dict[str, Pool]:
    """The pools for snapshots that the VM's host reaches, if the VM was made in a zone."""
    host = tx.find(Host, vm.host) if vm.host is not None else None
    if vm.wishes.zone is None or host is None:
        return {}
    return {
        name: pool
        for name, pool in nouns.all_of(tx, Kind.POOL).items()
        if pool.snapshots
        and pool.enabled
        and (
            pool.zone == vm.wishes.zone
            if pool.scope is PoolScope.ZONE
            else pool.scope is PoolScope.CLUSTER and pool.cluster == host.cluster
        )
    }

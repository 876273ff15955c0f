"""Disks of guests in storage that several hosts reach: removed by one of them when theirs can not.

What is in a folder of the host alone goes with the host: nobody else can reach it. A folder can
shut nobody out, so its files wait until their guest is known not to run. Ceph can: the image of a
guest that may be alive goes at once, after whoever has it open was shut out.
"""

from __future__ import annotations

import msgspec

from common.conf import Settings
from common.messages import GuestFiles, RbdImage, Result
from common.model import Kind, PoolScope
from common.states import TaskState, TombstoneState
from manager.flows import cleanup, made, reap
from manager.flows import model as nouns
from manager.store.commands import CommandRow
from manager.store.engine import Tx
from manager.store.hosts import Host
from manager.store.instances import Instance, Made
from manager.store.statements import Query, ask
from manager.store.tombstones import Tombstone
from manager.store.volumes import SNAPSHOT, Volume

KIND = "files"
IMAGE = "rbd_image"
# Nobody renews it: who is shut out would have to be silent for a year to be let in again, and the
# image that it had open is gone by then.
SHUT_OUT_S = 365 * 86400
V = Volume.__table__.c
FREE = Query(Volume, V.instance == ask("instance"), V.cleanup.is_(None), V.kind != SNAPSHOT)


def owe(tx: Tx, cfg: Settings, stone: Tombstone, why: str) -> None:
    """Have what a doomed guest has in shared pools removed without its host."""
    _owe_images(tx, cfg, stone, why)
    told = f"{why}; what is in folders of {stone.host} alone goes with it"
    for each in stone.made:
        for pool, files in _in_pools(stone.instance, each, images=False).items():
            if _is_shared(tx, pool):
                _owe_files(tx, cfg, stone, stone.host, files, told, pool)


def left_behind(tx: Tx, cfg: Settings, command: CommandRow, result: Result) -> None:
    """A host has answered that a guest is gone, but could not remove what was made for it.

    Any host of a shared pool removes it there; this one goes on with the rest.
    """
    vm, stone = tx.find(Instance, command.instance), reap.at(tx, command.host, command.instance)
    owner = vm or stone
    if owner is None:
        return
    recorded = (*(made.on(vm, command.host) if vm else ()), *(stone.made if stone else ()))
    for left in result.left:
        told = f"{command.host} could not remove it: {left.why}"
        known = next((each for each in recorded if each.bearer == left.files.bearer), None)
        in_pools = _in_pools(command.instance, known, images=True) if known is not None else {}
        rest = left.files
        own: list[int] = []
        for pool, files in in_pools.items():
            if not _is_shared(tx, pool):
                own += _volumes(tx, command.instance, pool)
                continue
            _owe_files(tx, cfg, owner, command.host, files, told, pool)
            rest = msgspec.structs.replace(
                rest,
                folders=tuple(folder for folder in rest.folders if folder not in files.folders),
                images=tuple(image for image in rest.images if image not in files.images),
            )
        cleanup.add(
            tx,
            cfg,
            owner,
            kind=KIND,
            remains=rest,
            reason=told,
            host=command.host,
            volumes=own,
        )


def forgotten(tx: Tx, cfg: Settings, vm: Instance) -> None:
    """A VM is deleted: its images in Ceph go at once, also where its host has not answered.

    On a host without a record nobody is left to remove its files.
    """
    if not any(each.folders or each.images for each in vm.made):
        return
    for stone in reap.of(tx, vm.uuid):
        if stone.state is not TombstoneState.OPEN:
            continue
        if tx.find(Host, stone.host) is None:
            owe(tx, cfg, stone, f"there is no host {stone.host} any more")
        else:
            _owe_images(tx, cfg, stone, f"deleted without an answer of {stone.host}")


def _owe_images(tx: Tx, cfg: Settings, stone: Tombstone, why: str) -> None:
    vm = tx.find(Instance, stone.instance)
    if vm is not None and vm.live and vm.host == stone.host:
        return  # it lives there, by one of these images
    disks = vm.spec.get("disks", ()) if vm is not None and vm.live else ()
    in_use = {disk["rbd"]["image"] for disk in disks if disk.get("rbd") is not None}
    for each in stone.made:
        for image in each.images:
            if image.target.image in in_use:
                continue  # it lives elsewhere by this one
            volume = tx.find(Volume, stone.instance, image.n)
            known = (volume.connector if volume is not None else None) or {}
            same = known.get("image") == image.target.image
            cleanup.add(
                tx,
                cfg,
                stone,
                kind=IMAGE,
                remains=RbdImage(
                    target=image.target,
                    addresses=tuple(known["addresses"]) if same else (),
                    expiry_s=SHUT_OUT_S,
                ),
                reason=why,
                pool=image.pool,
                volumes=[n for n in _volumes(tx, stone.instance, image.pool) if n == image.n],
            )


def _owe_files(
    tx: Tx,
    cfg: Settings,
    vm: Instance | Tombstone,
    host: str,
    files: GuestFiles,
    why: str,
    pool: str,
) -> None:
    """Have the files of a guest that was on `host` removed from a pool, by whoever reaches it."""
    cleanup.add(
        tx,
        cfg,
        vm,
        kind=KIND,
        remains=files,
        reason=why,
        pool=pool,
        guest_host=host,
        volumes=_volumes(tx, files.instance, pool),
    )


def _in_pools(instance: str, of: Made, *, images: bool) -> dict[str, GuestFiles]:
    """What was made for a guest, by the pool that it is in."""
    bearer = of.bearer
    found = {
        pool: GuestFiles(instance=instance, bearer=bearer, folders=(folder,))
        for pool, folder in of.folders.items()
    }
    for pool in sorted({image.pool for image in of.images}) if images else ():
        targets = tuple(image.target for image in of.images if image.pool == pool)
        found[pool] = GuestFiles(instance=instance, bearer=bearer, images=targets)
    return found


def _is_shared(tx: Tx, pool: str) -> bool:
    noun = nouns.find(tx, Kind.POOL, pool)
    return noun is not None and noun.scope is not PoolScope.HOST


def _volumes(tx: Tx, instance: str, pool: str) -> list[int]:
    """Its disks in a pool, unless they are those of a VM that lives on."""
    vm = tx.find(Instance, instance)
    doomed = vm is not None and (vm.task_state is TaskState.DELETING or vm.deletion_owed)
    if vm is not None and vm.live and not doomed:
        return []
    return [volume.n for volume in tx.ask(FREE, instance=instance) if volume.pool == pool]

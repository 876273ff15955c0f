"""Disks of guests in storage that several hosts reach: removed by one of them when theirs can not.

What is in a folder of the host alone goes with the host: nobody else can reach it. A folder can
shut nobody out, so its files wait until their guest is known not to run. Ceph can: the image of a
guest that may be alive goes at once, after whoever has it open was shut out.
"""

from __future__ import annotations

from common.conf import Settings
from common.messages import GuestFiles, RbdImage
from common.model import Kind, PoolScope
from common.states import TombstoneState
from manager.flows import cleanup, reap
from manager.flows import model as nouns
from manager.store.engine import Tx
from manager.store.hosts import Host
from manager.store.instances import Instance
from manager.store.statements import Query, ask
from manager.store.tombstones import Tombstone
from manager.store.volumes import Volume

KIND = "files"
IMAGE = "rbd_image"
# Nobody renews it: who is shut out would have to be silent for a year to be let in again, and the
# image that it had open is gone by then.
SHUT_OUT_S = 365 * 86400
V = Volume.__table__.c
FREE = Query(Volume, V.instance == ask("instance"), V.cleanup.is_(None))


def owe(tx: Tx, cfg: Settings, stone: Tombstone, why: str) -> None:
    """Have what a doomed guest has in shared pools removed without its host."""
    _owe_images(tx, cfg, stone, why)
    for made in stone.made:
        for pool, folder in made.folders.items():
            noun = nouns.find(tx, Kind.POOL, pool)
            if noun is None or noun.scope is PoolScope.HOST:
                continue
            cleanup.add(
                tx,
                cfg,
                stone,
                kind=KIND,
                remains=GuestFiles(instance=stone.instance, bearer=made.bearer, folders=(folder,)),
                reason=f"{why}; what is in folders of {stone.host} alone goes with it",
                pool=pool,
                guest_host=stone.host,
                volumes=_volumes(tx, stone.instance, pool),
            )


def forgotten(tx: Tx, cfg: Settings, vm: Instance) -> None:
    """A VM is deleted: its images in Ceph go at once, also where its host has not answered.

    On a host without a record nobody is left to remove its files.
    """
    if not any(made.folders or made.images for made in vm.made):
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
    for made in stone.made:
        for image in made.images:
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


def _volumes(tx: Tx, instance: str, pool: str) -> list[int]:
    """Its disks in a pool, unless they are those of a VM that lives elsewhere."""
    vm = tx.find(Instance, instance)
    if vm is not None and vm.live:
        return []
    return [volume.n for volume in tx.ask(FREE, instance=instance) if volume.pool == pool]

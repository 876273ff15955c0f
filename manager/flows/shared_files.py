"""Files of guests in folders that several hosts reach: removed by one of them when theirs can not.

What is in a folder of the host alone goes with the host: nobody else can reach it.
"""

from __future__ import annotations

from common.conf import Settings
from common.messages import GuestFiles
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
V = Volume.__table__.c
FREE = Query(Volume, V.instance == ask("instance"), V.cleanup.is_(None))


def owe(tx: Tx, cfg: Settings, stone: Tombstone, why: str) -> None:
    """Have what a doomed guest has in shared pools removed without its host."""
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
    """A VM is deleted: on a host without a record nobody is left to remove its files."""
    if not any(made.folders for made in vm.made):
        return
    for stone in reap.of(tx, vm.uuid):
        if stone.state is TombstoneState.OPEN and tx.find(Host, stone.host) is None:
            owe(tx, cfg, stone, f"there is no host {stone.host} any more")


def _volumes(tx: Tx, instance: str, pool: str) -> list[int]:
    """Its disks in a pool, unless they are those of a VM that lives elsewhere."""
    vm = tx.find(Instance, instance)
    if vm is not None and vm.live:
        return []
    return [volume.n for volume in tx.ask(FREE, instance=instance) if volume.pool == pool]

"""What an instance holds, its addresses and its disks' space, until nothing of it needs them."""

from __future__ import annotations

from common.states import TombstoneState
from manager.flows import addresses
from manager.rules import quarantine
from manager.store.engine import Tx
from manager.store.instances import Instance
from manager.store.statements import Query, Removal, ask
from manager.store.tombstones import Tombstone
from manager.store.volumes import Volume

OF_INSTANCE = Query(Tombstone, Tombstone.__table__.c.instance == ask("instance"))
V = Volume.__table__.c
VOLUMES = Removal(Volume, V.instance == ask("instance"), V.cleanup.is_(None))


def release(tx: Tx, instance: str, stones: list[Tombstone] | None = None) -> None:
    """Give back what neither the live record of an instance nor an open tombstone holds.

    Space that a clean-up item stands for waits for that. `stones`: all that it has, where they are
    known.
    """
    vm = tx.find(Instance, instance)
    if vm is not None and vm.live and vm.reserved:
        return
    stones = tx.ask(OF_INSTANCE, instance=instance) if stones is None else stones
    held = {what for s in stones if s.state is TombstoneState.OPEN for what in s.holds}
    if not held & set(quarantine.IDENTITY):
        addresses.release(tx, instance, vm)
    if not held & set(quarantine.DISK) and (vm is None or vm.wishes.disks):
        tx.remove(VOLUMES, instance=instance)

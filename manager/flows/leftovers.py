"""What a VM has beyond its host: told to a delete by the stories that leave something elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from common.conf import Settings
from manager.flows import shared_files, snapshots
from manager.store.engine import Tx
from manager.store.instances import Instance

# Each story's own question and its own last step, in this order.
PLACES: tuple[Callable[[Tx, Instance], Iterable[str]], ...] = ()
FORGOTTEN: tuple[Callable[[Tx, Settings, Instance], object], ...] = (
    snapshots.forget,
    shared_files.forgotten,
)


def places(tx: Tx, vm: Instance) -> set[str]:
    """Further hosts where something of the VM may be; its delete goes to each of them."""
    return {host for story in PLACES for host in story(tx, vm)}


def forget(tx: Tx, cfg: Settings, vm: Instance) -> None:
    """The record goes: what must still be removed elsewhere becomes clean-up items."""
    for story in FORGOTTEN:
        story(tx, cfg, vm)

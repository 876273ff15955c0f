"""What a VM has beyond its host: removed after its delete, by the stories that have left it."""

from __future__ import annotations

from collections.abc import Callable

from common.conf import Settings
from manager.flows import shared_files, snapshots
from manager.store.engine import Tx
from manager.store.instances import Instance

# Each story's own last step, in this order.
FORGOTTEN: tuple[Callable[[Tx, Settings, Instance], object], ...] = (
    snapshots.forget,
    shared_files.forgotten,
)


def forget(tx: Tx, cfg: Settings, vm: Instance) -> None:
    """The record goes: what must still be removed elsewhere becomes clean-up items."""
    for story in FORGOTTEN:
        story(tx, cfg, vm)

"""volumes: the disks that were made for VMs, and the pools whose space they take."""

from __future__ import annotations

from typing import Any

from manager.store.mapping import Row, table

SNAPSHOT = "snapshot"  # the kind of one that is no disk: copies of all of them


@table("volumes", "instance", "n", index=(("pool",),))
class Volume(Row, frozen=True, kw_only=True):
    """Disk `n` of a VM. `pool` None: not placed yet, or kept where its host's agent keeps disks.

    `connector`: its image in Ceph, and from which addresses that was open when its guest was
    started last. It takes its space until its guest is proven gone; with a `cleanup`, until that
    item has ended.
    """

    instance: str
    n: int
    kind: str
    size_gib: int
    pool: str | None = None
    host: str | None = None
    cleanup: str | None = None
    connector: dict[str, Any] | None = None

"""volumes: the disks that were made for VMs, and the pools whose space they take."""

from __future__ import annotations

from manager.store.mapping import Row, table


@table("volumes", "instance", "n", index=(("pool",),))
class Volume(Row, frozen=True, kw_only=True):
    """Disk `n` of a VM. `pool` None: not placed yet, or kept where its host's agent keeps disks.

    It takes its space until its guest is proven gone; with a `cleanup`, until that item has ended.
    """

    instance: str
    n: int
    kind: str
    size_gib: int
    pool: str | None = None
    host: str | None = None
    cleanup: str | None = None

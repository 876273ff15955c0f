"""Where a shelved VM's disks are copied to, and when its guest may leave its host."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import NoSpace
from common.states import PowerState

AT_ONCE, NEVER = 0.0, -1.0  # of [manager] shelved_offload_time
_MAY_WRITE = (PowerState.RUNNING, PowerState.BLOCKED, PowerState.PAUSED)


@dataclass(frozen=True)
class Store:
    """A pool that keeps snapshots; `zone_wide`: reached by every host of its zone."""

    name: str
    free_gib: float
    zone_wide: bool


def choose(stores: Sequence[Store], size_gib: int) -> Store | None:
    """The pool for a snapshot of this size, None where there are no pools for it at all.

    Those that the whole zone reaches come first, then the one with the most space. NoSpace where
    there are pools, all of them too full.
    """
    if not stores:
        return None
    fit = [store for store in stores if store.free_gib >= size_gib]
    if not fit:
        told = ", ".join(f"{s.name} has {max(0, int(s.free_gib))} GiB left" for s in stores)
        raise NoSpace(
            f"no pool has room for a snapshot of {size_gib} GiB: {told}",
            "remove VMs that are not needed, or enlarge a pool: muster pool set",
        )
    return min(fit, key=lambda store: (not store.zone_wide, -store.free_gib, store.name))


def stays(taken: bool, overtaken: bool, power: PowerState) -> str:
    """Why a shelved VM's guest must stay on its host; "" when it may leave."""
    if not taken:
        return "its snapshot is not whole"
    if overtaken:
        return "it has run since its snapshot was taken"
    if power in _MAY_WRITE:
        return f"its guest is {power.name}"
    return ""


def offload_at(now: dt.datetime, after_s: float) -> dt.datetime | None:
    """When a guest leaves its host by itself; None: never."""
    return None if after_s < 0 else now + dt.timedelta(seconds=after_s)

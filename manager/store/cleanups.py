"""cleanups: what was left behind by VMs, each until somebody has removed it or let it be."""

from __future__ import annotations

import datetime as dt
import enum
from typing import Any

from manager.store.mapping import Row, table


class CleanupState(enum.StrEnum):
    """An item is open until an agent has answered that it is gone, or an operator gives it up."""

    OPEN = "OPEN"
    DONE = "DONE"
    FORGOTTEN = "FORGOTTEN"


@table("cleanups", "uuid", index=(("state", "next_try_at"), ("instance",)))
class Cleanup(Row, frozen=True, kw_only=True):
    """One thing that is to go; `remains` is what an agent is told, a messages.Remains.

    `host`: it must be done there; None: by any that is UP and reaches `pool`. `guest_host`: where
    a guest may be using it still, so that its tombstone there is looked at first. `next_try_at`
    is set as long as it is open: whatever else is forgotten, the clock finds it.
    """

    uuid: str
    kind: str
    instance: str
    name: str
    host: str | None = None
    pool: str | None = None
    guest_host: str | None = None
    remains: dict[str, Any]
    state: CleanupState = CleanupState.OPEN
    reason: str
    waits_for: str = ""
    tries: int = 0
    answer: str = ""
    next_try_at: dt.datetime | None = None
    command: str | None = None
    generation: int = 0
    created_at: dt.datetime
    ended_at: dt.datetime | None = None
    version: int = 0

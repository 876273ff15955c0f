"""events: what happened, for people; dead_letters: what could not be understood, and why."""

from __future__ import annotations

import datetime as dt
from typing import Any

from manager.store.mapping import Row, table


@table("events", "id", index=(("object",), ("at",)))
class Event(Row, frozen=True, kw_only=True):
    """One thing that happened to `object` (instance, host or tombstone), told by `source`.

    `n`: its place among those of its transaction, which all have the same `at`.
    """

    id: str
    at: dt.datetime
    kind: str
    object: str
    source: str
    text: str
    data: dict[str, Any] = {}
    n: int = 0


@table("dead_letters", "id", index=(("at",),))
class DeadLetter(Row, frozen=True, kw_only=True):
    """A message that was refused, with its reason and the start of its body."""

    id: str
    at: dt.datetime
    source: str
    sender: str | None
    code: str
    reason: str
    body: str


@table("meta", "key")
class Meta(Row, frozen=True, kw_only=True):
    """Single values: the store's timeline id and its rising mark."""

    key: str
    value: str

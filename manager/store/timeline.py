"""The store's timeline id and rising mark: how agents notice a database older than themselves."""

from __future__ import annotations

from dataclasses import dataclass

from manager.store.engine import Tx
from manager.store.events import Meta

TIMELINE, MARK = "timeline", "mark"


@dataclass(frozen=True)
class Mark:
    """Which history this database belongs to, and how far in it we are."""

    timeline: str
    mark: int


def advance(tx: Tx) -> Mark:
    """The timeline, its mark raised by one."""
    row = tx.lock(Meta, TIMELINE)
    if row is None:
        tx.insert_if_new(Meta(key=TIMELINE, value=tx.new_id()))
        tx.insert_if_new(Meta(key=MARK, value="0"))
        row = tx.get(Meta, TIMELINE)
    mark = tx.lock(Meta, MARK) or Meta(key=MARK, value="0")
    mark = tx.put(mark, value=str(int(mark.value) + 1))
    return Mark(row.value, int(mark.value))

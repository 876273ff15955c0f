"""The switch that stops what managers destroy by themselves: one value, there or not."""

from __future__ import annotations

import datetime as dt

import msgspec

from manager.store.engine import Tx
from manager.store.events import Meta

FROZEN = "frozen"


class Freeze(msgspec.Struct, frozen=True):
    """Since when, by whom, and why."""

    since: dt.datetime
    operator: str
    reason: str


def current(tx: Tx) -> Freeze | None:
    """What is in force, or None."""
    row = tx.find(Meta, FROZEN)
    return None if row is None else msgspec.json.decode(row.value, type=Freeze)


def begin(tx: Tx, operator: str, reason: str) -> bool:
    """False when it was in force already, and stays as it is."""
    value = msgspec.json.encode(Freeze(tx.now, operator, reason)).decode()
    return tx.insert_if_new(Meta(key=FROZEN, value=value))


def end(tx: Tx) -> bool:
    """False when there was nothing to end."""
    row = tx.lock(Meta, FROZEN)
    if row is not None:
        tx.delete(row)
    return row is not None

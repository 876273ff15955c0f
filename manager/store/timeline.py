"""The store's timeline id and rising mark: how agents notice a database older than themselves."""

from __future__ import annotations

import datetime as dt

import msgspec

from manager.store.engine import Tx
from manager.store.events import Meta
from manager.store.statements import MARK, TIMELINE, Query

RISEN_AT = "mark_risen_at"
ACCEPTED = "accepted:"
DOUBTED_UNTIL = "doubted_until"
ACCEPTED_AT = "restore_accepted_at"
ALL = Query(Meta)


class Mark(msgspec.Struct, frozen=True):
    """Which history this database belongs to, and how far in it we are."""

    timeline: str
    mark: int


def current(tx: Tx) -> Mark:
    """The timeline and its mark; both begin when they are first asked for."""
    row, mark = _value(tx, TIMELINE), _value(tx, MARK)
    if row is None or mark is None:
        return advance(tx)
    return Mark(row.value, int(mark.value))


def seen(tx: Tx) -> Mark:
    """As it was when this transaction began to read: what is cast by it carries that."""
    if tx.stamp is not None:
        return Mark(tx.stamp[0], int(tx.stamp[1]))
    return current(tx)


def advance(tx: Tx, above: int = 0) -> Mark:
    """The timeline, its mark raised by one, and above `above`."""
    row = tx.lock(Meta, TIMELINE)
    if row is None:
        tx.insert_if_new(Meta(key=TIMELINE, value=tx.new_id()))
        tx.insert_if_new(Meta(key=MARK, value="0"))
        tx.insert_if_new(Meta(key=RISEN_AT, value=""))
        row = tx.get(Meta, TIMELINE)
    mark = tx.lock(Meta, MARK) or Meta(key=MARK, value="0")
    mark = tx.put(mark, value=str(max(int(mark.value), above) + 1))
    tx.put(Meta(key=RISEN_AT, value=""), value=tx.now.isoformat())
    return Mark(row.value, int(mark.value))


def age_s(tx: Tx) -> float:
    """Seconds since the mark has risen, by the database's clock."""
    risen = _value(tx, RISEN_AT)
    if risen is None or not risen.value:
        return float("inf")
    return abs((tx.now - dt.datetime.fromisoformat(risen.value)).total_seconds())


def doubt(tx: Tx, seconds: float) -> None:
    """This database may just have been put back; agents that know better have not said so yet."""
    _set(tx, DOUBTED_UNTIL, tx.now + dt.timedelta(seconds=seconds))


def is_doubted(tx: Tx) -> bool:
    """True while agents may still have to compare what they know with this database."""
    until = _time(tx, DOUBTED_UNTIL)
    return until is not None and tx.now < until


def went_on(tx: Tx) -> None:
    """An operator has accepted that this database was put back."""
    _set(tx, ACCEPTED_AT, tx.now)


def went_on_at(tx: Tx) -> dt.datetime | None:
    """When an operator has done so last, if one has."""
    return _time(tx, ACCEPTED_AT)


def _set(tx: Tx, key: str, when: dt.datetime) -> None:
    if not tx.insert_if_new(Meta(key=key, value=when.isoformat())):
        tx.put(Meta(key=key, value=""), value=when.isoformat())


def _time(tx: Tx, key: str) -> dt.datetime | None:
    row = _value(tx, key)
    return None if row is None else dt.datetime.fromisoformat(row.value)


def _value(tx: Tx, key: str) -> Meta | None:
    """One of the few single values; who asks for one mostly asks for the others as well."""
    if not tx.has_looked_for(Meta, key):
        tx.ask(ALL)
    return tx.find(Meta, key)


def accept(tx: Tx, timeline: str, mark: int) -> None:
    """Agents that come from another timeline may go on with this one, up to a mark of theirs."""
    key = f"{ACCEPTED}{timeline}"
    if not tx.insert_if_new(Meta(key=key, value=str(mark))):
        tx.put(Meta(key=key, value=""), value=str(mark))


def accepted(tx: Tx, timeline: str) -> int | None:
    """The mark up to which agents of another timeline were accepted, if they were."""
    row = tx.find(Meta, f"{ACCEPTED}{timeline}")
    return None if row is None else int(row.value)

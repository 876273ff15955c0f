"""A transaction's own view of the rows it touches: each is read once and written once.

A handler that follows one story through several flows looks at the same few rows again and again.
Rows found by their key are kept, also that there is none; new rows and changes are kept with them
and written together, at the latest before the commit, and before any query that might have to see
them. Whether somebody else has changed a versioned row meanwhile is decided by that one write.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec

from common.errors import Conflict
from manager.store.mapping import Row

R = TypeVar("R", bound=Row)
Key = tuple[type[Row], tuple[Any, ...]]


class Change(msgspec.Struct):
    """What is to be written of a row; `version` is the one it must still have, if any."""

    values: dict[str, Any]
    version: int | None = None


class Unit:
    """Rows by their key, as this transaction sees them."""

    def __init__(self) -> None:
        self._rows: dict[Key, Row] = {}
        self._held: set[Key] = set()
        self._absent: set[Key] = set()
        self._new: dict[Key, Row] = {}
        self._changes: dict[Key, Change] = {}

    # what is known

    def get(self, kind: type[R], key: tuple[Any, ...], *, held: bool = False) -> R | None:
        """The row as it is known here; with `held`, only if it was read under its lock."""
        at: Key = (kind, key)
        if held and at not in self._held:
            return None
        return self._rows.get(at)  # type: ignore[return-value]

    def keep(self, row: R, *, held: bool = False) -> R:
        """A row that was read; what is known of it already and not written yet prevails."""
        at = key_of(row)
        self._absent.discard(at)
        if held:
            self._held.add(at)
        if at in self._changes:
            return self._rows[at]  # type: ignore[return-value]
        self._rows[at] = row
        return row

    def is_absent(self, kind: type[Row], key: tuple[Any, ...]) -> bool:
        """True when it was looked for and is not there."""
        return (kind, key) in self._absent

    def keep_absent(self, kind: type[Row], key: tuple[Any, ...]) -> None:
        """There is no such row."""
        at: Key = (kind, key)
        if at not in self._rows:
            self._absent.add(at)

    def may_be_there(self, row: Row) -> None:
        """Somebody else may have written a row of this key meanwhile."""
        self._absent.discard(key_of(row))

    # what is to be written

    def add(self, row: Row) -> None:
        """A new row; Conflict when one of its key is known here."""
        at = key_of(row)
        if at in self._rows:
            raise Conflict(f"{type(row).__name__} is there already")
        self._absent.discard(at)
        self._new[at] = self._rows[at] = row
        self._held.add(at)

    def swap(self, row: R, changes: dict[str, Any]) -> R:
        """Change a versioned row; Conflict when `row` is not what is known of it here."""
        at = key_of(row)
        version: int = row.version  # type: ignore[attr-defined]
        known: Any = self._rows.get(at)
        if known is not None and known.version != version:
            raise Conflict(f"{type(row).__name__} was changed since it was read")
        changed = msgspec.structs.replace(row, **changes, version=version + 1)
        self._rows[at] = changed
        if at in self._new:
            self._new[at] = changed
            return changed
        change = self._changes.setdefault(at, Change({}))
        if change.version is None:
            change.version = version
        change.values.update(changes, version=version + 1)
        return changed

    def put(self, row: R, changes: dict[str, Any]) -> R:
        """Change an unversioned or held row."""
        at = key_of(row)
        known: Any = self._rows.get(at, row)
        changed: R = msgspec.structs.replace(known, **changes)
        self._rows[at] = changed
        if at in self._new:
            self._new[at] = changed
        else:
            self._changes.setdefault(at, Change({})).values.update(changes)
        return changed

    @property
    def is_written(self) -> bool:
        """True when nothing waits to be written."""
        return not (self._new or self._changes)

    def take_new(self, kinds: Iterable[type[Row]] | None) -> dict[type[Row], list[Row]]:
        """The new rows that have to be written now, by kind; None for all kinds."""
        wanted = None if kinds is None else set(kinds)
        found: dict[type[Row], list[Row]] = {}
        for at in [at for at in self._new if wanted is None or at[0] in wanted]:
            found.setdefault(at[0], []).append(self._new.pop(at))
        return found

    def take_changes(self, kinds: Iterable[type[Row]] | None) -> dict[Key, Change]:
        """The changes that have to be written now; None for those of all kinds."""
        if kinds is None:
            changes, self._changes = self._changes, {}
            return changes
        wanted = set(kinds)
        return {at: self._changes.pop(at) for at in list(self._changes) if at[0] in wanted}

    def forget(self, row: Row) -> bool:
        """A row that is to be deleted; False when it was never written."""
        at = key_of(row)
        self._rows.pop(at, None)
        self._changes.pop(at, None)
        self._absent.add(at)
        return self._new.pop(at, None) is None

    def forget_kind(self, kind: type[Row]) -> None:
        """Rows of a kind that were changed or deleted by a statement of their own."""
        for at in [at for at in self._rows if at[0] is kind]:
            del self._rows[at]


def key_of(row: Row) -> Key:
    """Where a row is kept."""
    kind = type(row)
    return kind, _reader(kind)(row)


@functools.cache
def _reader(kind: type[Row]) -> Callable[[Row], tuple[Any, ...]]:
    """How to read the key of a row."""
    if len(kind.__key__) > 1:
        return operator.attrgetter(*kind.__key__)
    read = operator.attrgetter(*kind.__key__)
    return lambda row: (read(row),)

"""A transaction's own view of the rows it touches: each is read once and written once.

A handler that follows one story through several flows looks at the same few rows again and again.
Rows found by their key are kept; changes are kept with them and written together, at the latest
before the commit, and before any query that might have to see them. Whether somebody else has
changed a versioned row meanwhile is decided by that one write.
"""

from __future__ import annotations

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
        self._changes: dict[Key, Change] = {}

    def get(self, kind: type[R], key: tuple[Any, ...], *, held: bool = False) -> R | None:
        """The row as it is known here; with `held`, only if it was read under its lock."""
        at: Key = (kind, key)
        if held and at not in self._held:
            return None
        return self._rows.get(at)  # type: ignore[return-value]

    def keep(self, row: R, *, held: bool = False) -> R:
        """A row that was read; what is known of it already and not written yet prevails."""
        at = key_of(row)
        if held:
            self._held.add(at)
        if at in self._changes:
            return self._rows[at]  # type: ignore[return-value]
        self._rows[at] = row
        return row

    def swap(self, row: R, changes: dict[str, Any]) -> R:
        """Change a versioned row; Conflict when `row` is not what is known of it here."""
        at = key_of(row)
        version: int = row.version  # type: ignore[attr-defined]
        known: Any = self._rows.get(at)
        if known is not None and known.version != version:
            raise Conflict(f"{type(row).__name__} was changed since it was read")
        changed = msgspec.structs.replace(row, **changes, version=version + 1)
        change = self._changes.setdefault(at, Change({}))
        if change.version is None:
            change.version = version
        change.values.update(changes, version=version + 1)
        self._rows[at] = changed
        return changed

    def put(self, row: R, changes: dict[str, Any]) -> R:
        """Change an unversioned or held row."""
        at = key_of(row)
        known: Any = self._rows.get(at, row)
        changed: R = msgspec.structs.replace(known, **changes)
        self._changes.setdefault(at, Change({})).values.update(changes)
        self._rows[at] = changed
        return changed

    def take_changes(self) -> dict[Key, Change]:
        """What has to be written now."""
        changes, self._changes = self._changes, {}
        return changes

    def forget(self, row: Row) -> None:
        """A row that was deleted."""
        at = key_of(row)
        self._rows.pop(at, None)
        self._changes.pop(at, None)

    def forget_kind(self, kind: type[Row]) -> None:
        """Rows of a kind that were changed or deleted by a statement of their own."""
        for at in [at for at in self._rows if at[0] is kind]:
            del self._rows[at]


def key_of(row: Row) -> Key:
    """Where a row is kept."""
    return type(row), tuple(getattr(row, k) for k in row.__key__)

"""The statements that every handler needs, built once: building one costs more than running it."""

from __future__ import annotations

import functools
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from manager.store.mapping import Row

KEY = "key_"  # a key's parameter must not be mistaken for a column that is set


@functools.cache
def by_key(kind: type[Row], *, held: bool) -> Any:
    """The row with a primary key; `held` until the end of the transaction."""
    query = sa.select(kind.__table__).where(*_key(kind))
    return query.with_for_update() if held else query


@functools.cache
def insert(kind: type[Row]) -> Any:
    """A new row, of all columns."""
    return sa.insert(kind.__table__).values({c: sa.bindparam(c.name) for c in kind.__table__.c})


@functools.cache
def insert_if_new(kind: type[Row], dialect: str) -> Any:
    """A new row, or nothing when its key is taken."""
    make = postgresql.insert if dialect == "postgresql" else sqlite.insert
    values: dict[Any, Any] = {c: sa.bindparam(c.name) for c in kind.__table__.c}
    # Without the option an insert's count is not kept on every driver.
    return (
        make(kind.__table__)
        .values(values)
        .on_conflict_do_nothing()
        .execution_options(preserve_rowcount=True)
    )


@functools.cache
def update(kind: type[Row], names: frozenset[str], *, versioned: bool) -> Any:
    """New values for some columns of the row with a primary key, if its version is still that."""
    where = _key(kind)
    if versioned:
        where.append(kind.__table__.c.version == sa.bindparam(f"{KEY}version"))
    values: dict[Any, Any] = {kind.__table__.c[name]: sa.bindparam(name) for name in sorted(names)}
    return sa.update(kind.__table__).where(*where).values(values)


@functools.cache
def delete(kind: type[Row]) -> Any:
    """Remove the row with a primary key."""
    return sa.delete(kind.__table__).where(*_key(kind))


def _key(kind: type[Row]) -> list[Any]:
    return [kind.__table__.c[k] == sa.bindparam(KEY + k) for k in kind.__key__]

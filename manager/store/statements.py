"""The statements that handlers need, built once: building one costs more than running it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from manager.store.events import Meta
from manager.store.mapping import Row

R = TypeVar("R", bound=Row)
KEY = "key_"  # a key's parameter must not be mistaken for a column that is set
# An option of a statement: planned for tables as large as they are now. A plan that was made for
# small ones, and kept, would read all of a large one.
PLANNED_ANEW = {"planned_anew": True}


TIMELINE, MARK = "timeline", "mark"


def _stored(key: str) -> Any:
    return sa.select(Meta.__table__.c.value).where(Meta.__table__.c.key == key).scalar_subquery()


STAMP = (sa.func.clock_timestamp(), _stored(TIMELINE), _stored(MARK))
"""The database's clock, which history it belongs to, and how far in it it is."""


class Asked:
    """A select; `timed` has the STAMP in its last columns."""

    def __init__(self, select: Any) -> None:
        self.plain = select
        self.timed = select.add_columns(*STAMP)


class Query(Generic[R]):
    """A question about the rows of one table, to be asked with values for its parameters.

    In order of the primary key unless told otherwise. `reads`: other tables that its conditions
    look at.
    """

    def __init__(
        self,
        kind: type[R],
        *where: Any,
        order: Sequence[Any] = (),
        limit: int | None = None,
        reads: Sequence[type[Row]] = (),
    ) -> None:
        self.kind = kind
        self.reads: tuple[type[Row], ...] = (kind, *reads)
        select = sa.select(kind.__table__).where(*where)
        select = select.order_by(*(order or [kind.__table__.c[k] for k in kind.__key__]))
        if limit is not None:
            select = select.limit(limit)
        self.all = Asked(select)
        self.free = Asked(select.with_for_update(skip_locked=True))
        self.held = Asked(select.with_for_update())
        self.shared = Asked(select.with_for_update(read=True))


class Removal:
    """Rows of one table that are to go, chosen by parameters."""

    def __init__(self, kind: type[Row], *where: Any) -> None:
        self.kind = kind
        self.statement = sa.delete(kind.__table__).where(*where)


class Joined:
    """Rows of several tables that belong together, found by one statement."""

    def __init__(self, kinds: Sequence[type[Row]], source: Any, *where: Any) -> None:
        self.kinds = tuple(kinds)
        tables = [kind.__table__ for kind in kinds]
        self.asked = Asked(sa.select(*tables).select_from(source).where(*where))


def ask(name: str) -> Any:
    """A parameter of a query."""
    return sa.bindparam(name)


def ask_any(name: str) -> Any:
    """A parameter that is a list of values, for `in_`."""
    return sa.bindparam(name, expanding=True)


def among(column: Any, values: Iterable[Any]) -> Any:
    """The column has one of a few values that are known now; cheaper to run than `in_`."""
    return sa.or_(*[column == value for value in values])


def soonest(column: Any) -> Any:
    """The least value that a column with an index has, to be compared; NULL where it has none.

    Whether there is a row before some time is asked by this: for all that PostgreSQL knows a third
    of the rows are, and it would read them all, one after the other, to find none.
    """
    return sa.select(sa.func.min(column)).scalar_subquery()


@functools.cache
def by_key(kind: type[Row], *, held: bool) -> Asked:
    """The row with a primary key; `held` until the end of the transaction."""
    select = sa.select(kind.__table__).where(*_key(kind))
    return Asked(select.with_for_update() if held else select)


@functools.cache
def by_key_if_free(kind: type[Row]) -> Asked:
    """As `by_key`, held, and nothing while somebody else holds it."""
    select = sa.select(kind.__table__).where(*_key(kind))
    return Asked(select.with_for_update(skip_locked=True))


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

"""The database of a simulated fleet: SQLite in memory, shared by all of its managers.

Statements are SQLAlchemy's, compiled by it for SQLite and with its types' conversions, and run
straight on the driver: its connections, contexts and cursors cost several times what SQLite does.
"""

from __future__ import annotations

import functools
import operator
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from manager.store.mapping import EnumText, PlainText, UtcDateTime, metadata
from simulation import watch

_DIALECT = SQLiteDialect_pysqlite(paramstyle="qmark")
_STATEMENTS_KEPT = 1000
_VALUES_KEPT = 5000  # of a type and direction
_NOTHING: Mapping[str, Any] = {}
_SPARE: list[tuple[sqlite3.Connection, watch.Watches]] = []

Row = tuple[Any, ...]
# A parameter's name, its place within a list (None: it is no list) and how it is converted.
Place = tuple[str, int | None, Callable[[Any], Any] | None]


class Answer:
    """What is used of a sqlalchemy.CursorResult."""

    def __init__(self, rows: Sequence[Row], rowcount: int) -> None:
        self._rows, self.rowcount = rows, rowcount

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def all(self) -> Sequence[Row]:
        return self._rows

    def first(self) -> Row | None:
        return self._rows[0] if self._rows else None

    def scalar(self) -> Any:
        return self._rows[0][0] if self._rows else None

    def scalar_one(self) -> Any:
        ((value,),) = self._rows
        return value


class _Prepared:
    """A compiled statement."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self.sql: str = compiled.string
        convert = compiled._bind_processors
        self._take = _taker(compiled.positiontup)
        self._bind = [
            (at, fn)
            for at, name in enumerate(compiled.positiontup)
            if (fn := _kept(compiled.binds[name].type, convert.get(name), "bind")) is not None
        ]
        literal = compiled.literal_execute_params
        self._written = [
            (name, parameter in literal)
            for parameter, name in compiled.bind_names.items()
            if parameter in literal or parameter in compiled.post_compile_params
        ]
        self._expanded: dict[tuple[Any, ...], tuple[str, list[Place]]] = {}
        self._convert = [
            (at, fn)
            for at, column in enumerate(compiled._result_columns or ())
            if (fn := _read_by(column.type)) is not None
        ]

    def bind(self, values: Mapping[str, Any]) -> tuple[str, list[Any]]:
        """The statement as text, and what goes with it."""
        if not self._written:
            taken = self._take(values)
            for n, change in self._bind:
                taken[n] = change(taken[n])
            return self.sql, taken
        # Lists and literals are written into the text: it is another one for other lengths.
        shape = tuple(
            values[name] if literal else len(values[name]) for name, literal in self._written
        )
        known = self._expanded.get(shape)
        if known is None:
            known = self._expanded[shape] = self._expand(values)
        sql, places = known
        bound = []
        for name, at, fn in places:
            value = values[name] if at is None else values[name][at]
            bound.append(value if fn is None else fn(value))
        return sql, bound

    def _expand(self, values: Mapping[str, Any]) -> tuple[str, list[Place]]:
        state = self.compiled._process_parameters_for_postcompile(dict(values))
        origin: dict[str, tuple[str, int | None]] = {
            each: (name, at)
            for name, made in state.parameter_expansion.items()
            for at, each in enumerate(made)
        }
        convert = {**self.compiled._bind_processors, **state.processors}
        return state.statement, [
            (*origin.get(name, (name, None)), convert.get(name)) for name in state.positiontup
        ]

    def read(self, rows: list[Row]) -> list[Row]:
        """Rows as the columns' types have them."""
        convert = self._convert
        if not convert:
            return rows
        found = []
        for row in rows:
            values = list(row)
            for at, fn in convert:
                values[at] = fn(values[at])
            found.append(tuple(values))
        return found


def _taker(names: Sequence[str]) -> Callable[[Mapping[str, Any]], list[Any]]:
    """Takes the values of these names out of a mapping, in their order."""
    if len(names) < 2:
        return lambda values: [values[name] for name in names]
    take = operator.itemgetter(*names)
    return lambda values: list(take(values))


_BY_KEY: dict[Any, _Prepared] = {}
_KEPT: dict[Any, Callable[[Any], Any]] = {}


def _kept(kind: Any, fn: Callable[[Any], Any] | None, way: str) -> Callable[[Any], Any] | None:
    """A conversion that remembers its results, where looking them up is safe and cheaper."""
    if fn is None or not isinstance(kind, EnumText | PlainText | UtcDateTime):
        return fn
    if isinstance(kind, EnumText) and way == "bind":
        return _value_of  # an enum's hash takes longer than that
    key = (type(kind), getattr(kind, "kind", None), way)
    return _KEPT.setdefault(key, functools.lru_cache(_VALUES_KEPT)(fn))


def _read_by(kind: Any) -> Callable[[Any], Any] | None:
    return _kept(kind, kind._cached_result_processor(_DIALECT, None), "read")


def _value_of(value: Any) -> Any:
    return None if value is None else value._value_


class Straight:
    """`execute` of a sqlalchemy.Connection."""

    def __init__(self, raw: sqlite3.Connection) -> None:
        self._cursor = raw.cursor()

    def execute(
        self,
        statement: Any,
        parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> Answer:
        if isinstance(parameters, list):
            count = 0
            for each in parameters:
                count += self._run(statement, each)[1]
            return Answer((), count)
        return Answer(*self._run(statement, parameters or _NOTHING))  # type: ignore[arg-type]

    def _run(self, statement: Any, values: Mapping[str, Any]) -> tuple[Sequence[Row], int]:
        """The rows that were found, and how many were changed."""
        keys = tuple(values)
        # A statement made from this one has its attributes too: whose is it?
        known = statement.__dict__.get("_straight")
        if known is not None and known[0] is statement and known[1] == keys:
            prepared = known[2]
            if known[3]:
                values = {**known[3], **values}
        else:
            prepared, values = _prepare(statement, keys, values)
        sql, bound = prepared.bind(values)
        try:
            self._cursor.execute(sql, bound)
            rows = self._cursor.fetchall()
        except sqlite3.Error as exc:
            raise sa.exc.DBAPIError.instance(sql, bound, exc, sqlite3.Error) from exc
        return prepared.read(rows) if rows else rows, self._cursor.rowcount


def _prepare(
    statement: Any, keys: tuple[str, ...], values: Mapping[str, Any]
) -> tuple[_Prepared, Mapping[str, Any]]:
    """A statement compiled, at the latest now, and all the values that it takes.

    One that is run again is known by itself from then on, with the values that it has of its own.
    """
    key = statement._generate_cache_key()
    form, extracted, own = key
    prepared = _BY_KEY.get((form, keys))
    if prepared is None:
        compiled = statement._compiler(_DIALECT, cache_key=key, column_keys=sorted(keys))
        prepared = _BY_KEY[(form, keys)] = _Prepared(compiled)
    values = prepared.compiled.construct_params(
        values, escape_names=False, extracted_parameters=extracted, _collected_params=own
    )
    kept = statement.__dict__
    if "_run_before" in kept:
        constants = {name: value for name, value in values.items() if name not in keys}
        kept["_straight"] = (statement, keys, prepared, constants)
    kept["_run_before"] = True
    return prepared, values


class Database:
    """One fleet's database, with the schema ready and no row."""

    def __init__(self) -> None:
        self.raw, self.watches = _SPARE.pop() if _SPARE else _made()
        self.straight = Straight(self.raw)

    def copy(self) -> sqlite3.Connection:
        """A backup of it as it is now."""
        aside = sqlite3.connect(":memory:", check_same_thread=False)
        self.raw.backup(aside)
        return aside

    def restore(self, aside: sqlite3.Connection) -> None:
        """What came after the copy has never been."""
        aside.backup(self.raw)

    def give_back(self) -> None:
        """It serves another fleet, with all statements prepared: that takes longer than to
        delete the rows."""
        if self.raw.in_transaction:
            self.raw.rollback()
        self.watches.told = watch.nobody
        self.raw.execute("BEGIN")
        for table in metadata.tables:
            self.raw.execute(f"DELETE FROM {table}")  # noqa: S608 - ours
        self.raw.execute("COMMIT")
        _SPARE.append((self.raw, self.watches))


def _made() -> tuple[sqlite3.Connection, watch.Watches]:
    raw = sqlite3.connect(
        ":memory:",
        check_same_thread=False,
        isolation_level=None,  # we say BEGIN ourselves
        cached_statements=_STATEMENTS_KEPT,
    )
    engine = sa.create_engine("sqlite://", creator=lambda: raw, poolclass=sa.pool.StaticPool)
    metadata.create_all(engine)
    return raw, watch.Watches(raw)

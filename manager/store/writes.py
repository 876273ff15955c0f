"""Writing what a transaction has made: row by row, or on PostgreSQL all of it by one statement.

A statement for each row costs both sides more than the row itself. PostgreSQL takes the rows of a
whole transaction as JSON, in one statement with a part for each sort of write.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection

from common.errors import Conflict
from manager.store import statements
from manager.store.mapping import Row
from manager.store.statements import KEY, PLANNED_ANEW
from manager.store.unit import Change, Key

NUL = b"\\u0000"


class Sort(msgspec.Struct, frozen=True):
    """Rows that are written alike: of one kind, and which of its columns (none: new rows)."""

    kind: type[Row]
    names: frozenset[str] = frozenset()
    versioned: bool = False

    @property
    def found_by(self) -> dict[str, str]:
        """The columns that a changed row is found by; {parameter: column}."""
        return _found_by(self.kind, self.versioned)


@functools.cache
def _found_by(kind: type[Row], versioned: bool) -> dict[str, str]:
    return {f"{KEY}{name}": name for name in (*kind.__key__, *(["version"] if versioned else []))}


def write(
    conn: Connection,
    dialect: str,
    new: Mapping[type[Row], Sequence[Row]],
    changes: Mapping[Key, Change],
) -> None:
    """New and changed rows; Conflict when a key is taken, or a versioned row was changed since."""
    writes: dict[Sort, Sequence[Any]] = {Sort(kind): rows for kind, rows in new.items()}
    writes.update(_sorted(changes))
    if dialect == "postgresql" and sum(map(len, writes.values())) > 1:
        encoded = [msgspec.json.encode(rows) for rows in writes.values()]
        if not any(NUL in rows for rows in encoded):  # PostgreSQL's JSON can not have it
            _write_at_once(conn, writes, encoded)
            return
    for sort, rows in writes.items():
        _write_each(conn, sort, rows)


def _sorted(changes: Mapping[Key, Change]) -> dict[Sort, list[dict[str, Any]]]:
    sets: dict[Sort, list[dict[str, Any]]] = {}
    for (kind, key), change in changes.items():
        sort = Sort(kind, frozenset(change.values), change.version is not None)
        found_by = dict(zip(sort.found_by, (*key, change.version), strict=False))
        sets.setdefault(sort, []).append({**found_by, **change.values})
    return sets


def values_of(row: Row) -> dict[str, Any]:
    """A row as parameters."""
    return msgspec.structs.asdict(row)


def _write_each(conn: Connection, sort: Sort, rows: Sequence[Any]) -> None:
    kind, names = sort.kind, sort.names
    if names:
        done = conn.execute(statements.update(kind, names, versioned=sort.versioned), list(rows))
        _check(sort, rows, done.rowcount)
        return
    try:
        conn.execute(statements.insert(kind), [values_of(row) for row in rows])
    except sa.exc.IntegrityError as exc:
        raise Conflict(f"{kind.__name__} is there already: {exc.orig}") from exc


def _write_at_once(
    conn: Connection, writes: Mapping[Sort, Sequence[Any]], encoded: Iterable[bytes]
) -> None:
    parameters: dict[str, Any] = {}
    for n, ((sort, rows), text) in enumerate(zip(writes.items(), encoded, strict=True)):
        parameters[f"rows{n}"] = text.decode()
        if len(rows) > 1:
            parameters[f"count{n}"] = len(rows)
        elif sort.names:
            parameters.update({f"{name}{n}": rows[0][name] for name in sort.found_by})
    statement = _statement(tuple([(sort, len(rows) == 1) for sort, rows in writes.items()]))
    try:
        done = conn.execute(statement, parameters).one()
    except sa.exc.IntegrityError as exc:
        raise Conflict(f"a row is there already: {exc.orig}") from exc
    for (sort, rows), count in zip(writes.items(), done, strict=True):
        _check(sort, rows, count)


def _check(sort: Sort, rows: Sequence[Any], changed: int) -> None:
    if sort.versioned and changed != len(rows):
        raise Conflict(f"{sort.kind.__name__} was changed by another manager")


@functools.lru_cache(maxsize=500)
def _statement(parts: tuple[tuple[Sort, bool], ...]) -> Any:
    """One statement for rows of these sorts, each a single one or several.

    It tells how many rows of each sort it wrote.
    """
    made = [f"w{n} AS ({_part(n, *part)} RETURNING 1)" for n, part in enumerate(parts)]
    counts = [f"(SELECT count(*) FROM w{n})" for n in range(len(parts))]  # noqa: S608 - all ours
    statement = sa.text(f"WITH {', '.join(made)} SELECT {', '.join(counts)}").bindparams(
        *[
            sa.bindparam(f"{name}{n}", type_=sort.kind.__table__.c[column].type)
            for n, (sort, single) in enumerate(parts)
            for name, column in (sort.found_by.items() if single and sort.names else ())
        ]
    )
    if any(sort.names and not single for sort, single in parts):
        return statement.execution_options(**PLANNED_ANEW)
    return statement


def _part(n: int, sort: Sort, single: bool) -> str:
    types = _types(sort.kind)
    names = sorted(sort.names) or sort.kind.__struct_fields__
    told = {_quoted(name): types[name] for name in names}
    if sort.names and not single:
        told.update({name: types[column] for name, column in sort.found_by.items()})
    columns = ", ".join(f"{name} {type_}" for name, type_ in told.items())
    # The limit tells the planner how many there are.
    limit = 1 if single else f":count{n}"
    rows = f"json_to_recordset(CAST(:rows{n} AS json)) AS r({columns}) LIMIT {limit}"
    table = _quoted(sort.kind.__table__.name)
    if not sort.names:
        return f"INSERT INTO {table} ({', '.join(told)}) SELECT * FROM {rows}"  # noqa: S608
    sets = ", ".join(f"{_quoted(name)} = new.{_quoted(name)}" for name in names)
    where = " AND ".join(
        # One that is found by itself needs no plan that fits the size of the table.
        f"{table}.{_quoted(column)} = " + (f":{name}{n}" if single else f"new.{name}")
        for name, column in sort.found_by.items()
    )
    return f"UPDATE {table} SET {sets} FROM (SELECT * FROM {rows}) AS new WHERE {where}"  # noqa: S608


@functools.cache
def _types(kind: type[Row]) -> dict[str, str]:
    """The types of its columns."""
    return {column.name: column.type.compile(_DIALECT) for column in kind.__table__.c}


def _quoted(name: str) -> str:
    return str(_DIALECT.identifier_preparer.quote(name))


_DIALECT: Any = postgresql.dialect()  # type: ignore[no-untyped-call]

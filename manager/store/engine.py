"""Transactions: one handler, one transaction, and what is to be said after its commit."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
import psycopg
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from common import logs
from common.bus.base import Notice
from common.conf.database import Database
from common.errors import BadConfig, Conflict, DatabaseUnavailable, NotFound
from common.runtime import Runtime
from manager.store import (
    addresses,
    commands,
    events,
    hosts,
    instances,
    jobs,
    model,
    sightings,
    statements,
    tombstones,
    volumes,
    writes,
)
from manager.store.mapping import Row, metadata
from manager.store.statements import KEY, PLANNED_ANEW, STAMP, Asked, Joined, Query, Removal
from manager.store.unit import Unit

LOG = logging.getLogger(__name__)
R = TypeVar("R", bound=Row)
T = TypeVar("T")

NOUNS = (
    hosts,
    instances,
    addresses,
    volumes,
    jobs,
    commands,
    tombstones,
    sightings,
    events,
    model,
)
RETRIES = 20
IDLE_S = 5.0  # between two statements of a transaction; PostgreSQL ends it after that


_STAMP = sa.select(*STAMP)


class Cast(msgspec.Struct, frozen=True):
    """A cast to an agent that may be lost without harm: its cause is stored and will repeat it."""

    host: str
    method: str
    kwargs: dict[str, Any]


class Tx:
    """An open transaction. Everything read or written by a handler goes through here.

    `attempt` is how often its handler has been run before, after a lost compare-and-swap; `stamp`
    the store's timeline and mark, where they were told with the first rows that were read.
    """

    def __init__(self, store: Store, conn: Connection, attempt: int = 0) -> None:
        self.store = store
        self.conn = conn
        self.attempt = attempt
        self.casts: list[Cast] = []
        self.notices: list[Notice] = []
        self.events: list[events.Event] = []
        self.commands_due = False
        self.stamp: tuple[str, str] | None = None
        self._now: dt.datetime | None = None
        self._timed = store.dialect == "postgresql"
        self._unit = Unit()

    @property
    def now(self) -> dt.datetime:
        """The database's clock, read once a transaction: the only one that decides anything."""
        if self._now is None:
            if self._timed:
                return self._stamped(self.conn.execute(_STAMP).one())
            self._now = self.store.runtime.now()
        return self._now

    def _stamped(self, row: Any) -> dt.datetime:
        """What the last columns of a row tell."""
        self._now, timeline, mark = row[-len(STAMP) :]
        self.stamp = None if timeline is None or mark is None else (timeline, mark)
        return self._now

    def new_id(self) -> str:
        return self.store.runtime.new_id()

    # reading

    def find(self, kind: type[R], *key: Any) -> R | None:
        """The row with this primary key, or None."""
        known = self._unit.get(kind, key)
        if known is not None or self._unit.is_absent(kind, key):
            return known
        return self._at(kind, key, held=False)

    def known(self, kind: type[R], *key: Any) -> R | None:
        """The row, if this transaction has read it already."""
        return self._unit.get(kind, key)

    def has_looked_for(self, kind: type[Row], *key: Any) -> bool:
        """True when it is known here whether there is such a row."""
        return self._unit.get(kind, key) is not None or self._unit.is_absent(kind, key)

    def get(self, kind: type[R], *key: Any) -> R:
        """The row with this primary key, or NotFound."""
        row = self.find(kind, *key)
        if row is None:
            raise NotFound(f"no {kind.__name__.lower()} {'/'.join(map(str, key))}", "look it up")
        return row

    def lock(self, kind: type[R], *key: Any) -> R | None:
        """The row, held until the end of the transaction (SQLite holds the whole database)."""
        if not self._timed:
            return self.find(kind, *key)
        known = self._unit.get(kind, key, held=True)
        if known is not None:
            return known
        self._flush((kind,))
        return self._at(kind, key, held=True)

    def lock_if_free(self, kind: type[R], *key: Any) -> R | None:
        """As `lock`, but None at once while somebody else holds it."""
        known = self._unit.get(kind, key, held=True)
        if known is not None or not self._timed:
            return known or self.find(kind, *key)
        self._flush((kind,))
        rows = self._select(statements.by_key_if_free(kind), _key_values(kind, key))
        return self._keep(kind, rows[0], held=True) if rows else None

    def absent(self, kind: type[Row], *key: Any) -> None:
        """It was looked for in another way: there is no row with this key."""
        self._unit.keep_absent(kind, key)

    def ask(self, query: Query[R], **values: Any) -> list[R]:
        """Every row that answers a query."""
        self._flush(query.reads)
        return [self._keep(query.kind, row) for row in self._select(query.all, values)]

    def ask_first(self, query: Query[R], **values: Any) -> R | None:
        """The first row that answers a query, or None."""
        self._flush(query.reads)
        rows = self._select(query.all, values)
        return self._keep(query.kind, rows[0]) if rows else None

    def due(self, query: Query[R], **values: Any) -> list[R]:
        """Rows to work on, held; those that another manager holds right now are passed over."""
        self._flush(query.reads)
        rows = self._select(query.free, values)
        return [self._keep(query.kind, row, held=True) for row in rows]

    def steady(self, query: Query[R], *, alone: bool = False, **values: Any) -> list[R]:
        """Every row that answers a query; nobody changes or deletes one before this has ended.

        With `alone`, nobody else holds one meanwhile either.
        """
        self._flush(query.reads)
        rows = self._select(query.held if alone else query.shared, values)
        return [self._keep(query.kind, row, held=alone) for row in rows]

    def together(self, joined: Joined, **values: Any) -> list[list[Any]]:
        """Rows of several tables side by side; None where an outer join found nothing."""
        self._flush(joined.kinds)
        found = []
        for row in self._select(joined.asked, values):
            parts: list[Any] = []
            at = 0
            for kind in joined.kinds:
                cells = row[at : at + len(kind.__struct_fields__)]
                at += len(cells)
                # A column of a primary key is never null in a row that is there.
                there = cells[kind.__struct_fields__.index(kind.__key__[0])] is not None
                parts.append(self._keep(kind, cells) if there else None)
            found.append(parts)
        return found

    def first(self, kind: type[R], *where: Any) -> R | None:
        found = self.all(kind, *where, limit=1)
        return found[0] if found else None

    def all(
        self, kind: type[R], *where: Any, order: Sequence[Any] = (), limit: int | None = None
    ) -> list[R]:
        """Every row that matches what is put together only now, as an operator's filter is."""
        self._flush()
        query = Query(kind, *where, order=order, limit=limit)
        return [self._keep(kind, row) for row in self._select(query.all, {})]

    def count(self, kind: type[R], *where: Any) -> int:
        self._flush()
        query = sa.select(sa.func.count()).select_from(kind.__table__).where(*where)
        return int(self.conn.execute(query).scalar_one())

    def rows(
        self, query: Any, reads: Sequence[type[Row]] | None = None, /, **values: Any
    ) -> Sequence[Any]:
        """The rows of a query that is more than one table; `reads`: which ones, if that is said."""
        self._flush(reads)
        return self.conn.execute(query, values).all()

    def _at(self, kind: type[R], key: tuple[Any, ...], *, held: bool) -> R | None:
        rows = self._select(statements.by_key(kind, held=held), _key_values(kind, key))
        if not rows:
            self._unit.keep_absent(kind, key)
            return None
        return self._keep(kind, rows[0], held=held)

    def _select(self, asked: Asked, values: dict[str, Any]) -> Sequence[Any]:
        """Rows; the first that a transaction reads tell it the time and the mark as well."""
        if not self._timed:
            return self.conn.execute(asked.plain, values).all()
        several = any(isinstance(value, list) and len(value) > 1 for value in values.values())
        how = PLANNED_ANEW if several else None
        if self._now is not None:
            return self.conn.execute(asked.plain, values, execution_options=how).all()
        rows = self.conn.execute(asked.timed, values, execution_options=how).all()
        if rows:
            self._stamped(rows[0])
        return rows

    def _keep(self, kind: type[R], row: Any, *, held: bool = False) -> R:
        # The columns were made from the fields, in their order; the stamp may follow them.
        struct = kind(**dict(zip(kind.__struct_fields__, row, strict=False)))
        return self._unit.keep(struct, held=held)

    # writing

    def insert(self, row: Row) -> None:
        """A new row; if its key is taken that is a Conflict, and the handler runs again."""
        self._unit.add(row)

    def insert_if_new(self, row: Row) -> bool:
        """True when the row was not there yet."""
        statement = statements.insert_if_new(type(row), self.store.dialect)
        if self.conn.execute(statement, writes.values_of(row)).rowcount == 1:
            self._unit.keep(row)
            return True
        self._unit.may_be_there(row)
        return False

    def swap(self, row: R, **changes: Any) -> R:
        """Change a versioned row if nobody else has since it was read, else Conflict."""
        return self._unit.swap(row, changes)

    def put(self, row: R, **changes: Any) -> R:
        """Change an unversioned or held row."""
        return self._unit.put(row, changes)

    def delete(self, row: Row) -> None:
        if self._unit.forget(row):
            self.conn.execute(statements.delete(type(row)), _parameters(row))

    def remove(self, removal: Removal, **values: Any) -> int:
        """Delete every row that a removal chooses; how many that were."""
        self._flush()
        self._unit.forget_kind(removal.kind)
        return int(self.conn.execute(removal.statement, values).rowcount)

    def change(self, kind: type[Row], statement: Any, **values: Any) -> None:
        """Change rows relative to what they are; what is pending of their kind is written first."""
        self._flush((kind,))
        self.conn.execute(statement, values)

    def delete_where(self, kind: type[Row], *where: Any) -> int:
        self._flush()
        self._unit.forget_kind(kind)
        return int(self.conn.execute(sa.delete(kind.__table__).where(*where)).rowcount)

    def change_where(self, kind: type[Row], *where: Any, **changes: Any) -> int:
        """Change every row that matches, whoever else has; their versions rise."""
        self._flush()
        self._unit.forget_kind(kind)
        columns = kind.__table__.c
        if "version" in columns:
            changes["version"] = columns.version + 1
        done = self.conn.execute(sa.update(kind.__table__).where(*where).values(**changes))
        return int(done.rowcount)

    def _flush(self, kinds: Sequence[type[Row]] | None = None) -> None:
        """Write what is new or changed, of some kinds or all.

        Conflict when a key is taken or another manager has changed a versioned row.
        """
        if self._unit.is_written:
            return
        new, changes = self._unit.take_new(kinds), self._unit.take_changes(kinds)
        if new or changes:
            writes.write(self.conn, self.store.dialect, new, changes)

    # saying

    def cast(self, host: str, method: str, **kwargs: Any) -> None:
        """Cast to an agent after the commit. It may be lost: its cause is stored and repeats it."""
        self.casts.append(Cast(host, method, kwargs))

    def notify(self, event: str, payload: dict[str, Any], *, error: bool = False) -> None:
        """Tell whoever listens, after the commit and at most once."""
        self.notices.append(Notice(event, "ERROR" if error else "INFO", payload))

    def event(self, kind: str, object_: str, source: str, text: str, **data: Any) -> None:
        """Record what happened, for `history`, `doctor` and, once it is committed, the log."""
        event = events.Event(
            id=self.new_id(),
            at=self.now,
            kind=kind,
            object=object_,
            source=source,
            text=text,
            data=data,
            n=len(self.events),
        )
        self.events.append(event)
        self.insert(event)

    def log(self) -> None:
        """Tell the log of what has happened."""
        if self.events:
            with logs.together():
                for event in self.events:
                    LOG.info("%s %s: %s (%s)", event.kind, event.object, event.text, event.source)


def _key_values(kind: type[Row], key: tuple[Any, ...]) -> dict[str, Any]:
    return {f"{KEY}{k}": v for k, v in zip(kind.__key__, key, strict=True)}


def _parameters(row: Row) -> dict[str, Any]:
    return {f"{KEY}{k}": getattr(row, k) for k in row.__key__}


class Store:
    """A database, and the rule that a handler is exactly one transaction on it."""

    def __init__(self, settings: Database, runtime: Runtime) -> None:
        self.runtime = runtime
        self.engine = _engine(settings)
        self.dialect = self.engine.dialect.name
        self.after_commit: Callable[[Tx], None] = lambda _tx: None
        # One connection of SQLite serves one writer; waiting here beats polling its lock.
        self._gate: Any = runtime.lock() if self.dialect == "sqlite" else contextlib.nullcontext()

    def run(self, handler: Callable[..., T], *args: Any, attempt: int = 0, **kwargs: Any) -> T:
        """`handler(tx, ...)` in one transaction; a lost compare-and-swap runs it again.

        `attempt` 1 for one that is known to have met something already.
        """
        for tried in range(attempt, RETRIES):
            try:
                with self._gate, self._begin(tried) as tx:
                    result = handler(tx, *args, **kwargs)
                    tx._flush()
            except Conflict:
                if tried == RETRIES - 1:
                    raise
                self.runtime.sleep(self.runtime.jitter(0.0, 0.01 * (tried + 1)))
                continue
            self.after_commit(tx)
            tx.log()
            return result
        raise AssertionError("unreachable")

    @contextlib.contextmanager
    def _begin(self, attempt: int) -> Iterator[Tx]:
        try:
            with self.engine.begin() as conn:
                yield Tx(self, conn, attempt)
        except sa.exc.OperationalError as exc:
            text = str(exc.orig)
            if "deadlock" in text or "could not serialize" in text:
                raise Conflict("the database broke a deadlock") from exc
            raise DatabaseUnavailable(
                f"the database does not answer: {text.strip().splitlines()[0]}",
                "check [database] connection and the server",
            ) from exc
        except sa.exc.TimeoutError as exc:
            raise DatabaseUnavailable(
                "every connection to the database is in use",
                "raise [database] pool_size, and the connections that the server allows",
            ) from exc
        except (sa.exc.InterfaceError, sa.exc.InternalError) as exc:
            raise DatabaseUnavailable(
                f"the database connection broke: {exc.orig}", "check the server"
            ) from exc
        except sa.exc.ProgrammingError as exc:
            if "does not exist" not in str(exc.orig):
                raise
            raise DatabaseUnavailable(
                "the database has no schema yet", "run: muster db upgrade"
            ) from exc

    def close(self) -> None:
        self.engine.dispose()


def _engine(settings: Database) -> Engine:
    try:
        url = sa.make_url(settings.connection)
    except sa.exc.ArgumentError as exc:
        raise BadConfig(f"[database] connection: {exc}", "sqlite:///PATH or postgresql://") from exc
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() == "sqlite":
        in_memory = url.database in (None, "", ":memory:")
        engine = sa.create_engine(
            url,
            poolclass=sa.pool.StaticPool if in_memory else sa.pool.QueuePool,
            connect_args={"check_same_thread": False, "timeout": 30},
        )
        sa.event.listen(engine, "connect", _sqlite_connect)
        sa.event.listen(engine, "begin", _sqlite_begin)
        return engine
    if url.get_backend_name() != "postgresql":
        raise BadConfig(
            f"[database] connection: {url.get_backend_name()} is not supported",
            "use sqlite:///PATH or postgresql+psycopg://",
        )
    engine = sa.create_engine(
        url,
        # None is closed after its first use: opening one costs more than several transactions.
        pool_size=2 * settings.pool_size,
        max_overflow=0,
        pool_pre_ping=False,
        pool_recycle=300,
        paramstyle="numeric_dollar",  # as the cursor wants it
        connect_args={"connect_timeout": 5, "cursor_factory": _Cursor},
    )
    sa.event.listen(engine, "connect", _postgres_connect)
    sa.event.listen(engine, "do_execute", _postgres_execute)
    return engine


class _Cursor(psycopg.RawCursor[Any]):
    """Describes its columns by name and type alone, which is all that SQLAlchemy asks for.

    psycopg makes an object of each; for a wide row that costs more than the query itself. Raw: the
    statement has PostgreSQL's own parameters, and is not searched for others.
    """

    @property
    def description(self) -> Any:
        found = self.pgresult
        if found is None or not found.nfields:
            return None
        return [
            ((found.fname(n) or b"").decode(), found.ftype(n), None, None, None, None, None)
            for n in range(found.nfields)
        ]


def _postgres_connect(raw: Any, _record: Any) -> None:
    """A manager that freezes or vanishes inside a transaction must not keep its rows for ever."""
    with raw.cursor() as cursor:
        cursor.execute(f"SET idle_in_transaction_session_timeout = {int(IDLE_S * 1000)}")
        cursor.execute("SET timezone = 'UTC'")  # times are read as such
    raw.commit()


def _postgres_execute(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
    """True when it was run here: a statement of which no plan is to be kept."""
    anew = context is not None and bool(PLANNED_ANEW.keys() & context.execution_options)
    if anew:
        cursor.execute(statement, parameters, prepare=False)
    return anew


def _sqlite_connect(raw: Any, _record: Any) -> None:
    # The driver must not open transactions by itself: we say BEGIN IMMEDIATE.
    raw.isolation_level = None
    cursor = raw.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=30000")
    cursor.close()


def _sqlite_begin(conn: Connection) -> None:
    conn.exec_driver_sql("BEGIN IMMEDIATE")


def wait_ready(store: Store, stopping: Callable[[], bool]) -> bool:
    """Wait for the database to answer, saying so with a growing pause; False when stopped."""
    pause = 0.2
    while not stopping():
        try:
            with store.engine.connect() as conn:
                conn.execute(sa.select(1))
            return True
        except sa.exc.SQLAlchemyError as exc:
            reason = str(getattr(exc, "orig", exc)).strip().splitlines()[0]
            LOG.warning(
                "DATABASE_UNAVAILABLE: %s (check [database] connection; again in %.1f s)",
                reason,
                pause,
            )
        store.runtime.sleep(pause)
        pause = min(10.0, pause * 2)
    return False


def create_all(store: Store) -> None:
    """The schema without its history, for tests that start from nothing."""
    metadata.create_all(store.engine)

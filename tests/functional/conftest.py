"""A fleet whose clock the test moves, on SQLite in memory and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from common.conf.database import Database
from devstack.parts.postgres import Postgres
from manager.store import migrate
from manager.store.engine import Store, create_all
from manager.store.mapping import metadata
from tests.functional.fleet import CLOCK_SQL, Clock, Fleet, ScriptedAgent, obey


@pytest.fixture(scope="session")
def sqlite_store() -> Iterator[Store]:
    """One database in memory for all tests: its engine keeps the statements it has compiled."""
    store = Store(Database(connection="sqlite://"), Clock())
    create_all(store)
    yield store
    store.close()


@pytest.fixture(scope="session")
def postgres_store(postgres: Postgres) -> Iterator[Store]:
    """One database on the real server, made by the migrations, whose time the tests tell."""
    url = postgres.new_database()
    name = url.rpartition("/")[2]
    store = Store(Database(connection=url), Clock())
    migrate.upgrade(store)
    with store.engine.begin() as conn:
        for statement in CLOCK_SQL:
            conn.execute(sa.text(statement))
        conn.execute(sa.text(f"ALTER DATABASE {name} SET search_path = public, pg_catalog"))
    store.engine.dispose()  # the path counts for connections made from now on
    yield store
    store.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.real)])
def store(request: pytest.FixtureRequest, clock: Clock) -> Store:
    """An empty store on each of the two databases."""
    name = "sqlite_store" if request.param == "sqlite" else "postgres_store"
    store: Store = request.getfixturevalue(name)
    with store.engine.begin() as conn:
        for table in metadata.sorted_tables:
            conn.execute(sa.delete(table))
    store.runtime = clock
    store.after_commit = lambda _tx: None
    if store.dialect == "postgresql":
        obey(store, clock)
    return store


@pytest.fixture
def fleet(store: Store, clock: Clock) -> Fleet:
    return Fleet(store, clock)


@pytest.fixture
def fleet_of(store: Store, clock: Clock) -> Callable[..., Fleet]:
    """A fleet with settings of [manager] that the test chooses."""

    def make(**changes: Any) -> Fleet:
        return Fleet(store, clock, **changes)

    return make


@pytest.fixture
def h1(fleet: Fleet) -> ScriptedAgent:
    return ScriptedAgent(fleet, "h1").up()


@pytest.fixture
def h2(fleet: Fleet) -> ScriptedAgent:
    return ScriptedAgent(fleet, "h2").up()


@pytest.fixture
def others(fleet: Fleet) -> list[ScriptedAgent]:
    """Hosts that go on speaking, so that one silent host is no mass."""
    return [ScriptedAgent(fleet, f"other-{n}").up() for n in range(2)]

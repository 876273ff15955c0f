"""The store: rows there and back, compare-and-swap, one transaction a handler, migrations."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from common.conf.database import Database
from common.errors import BadConfig, Conflict, DatabaseUnavailable, NotFound
from common.ownership import Mark
from common.states import GuestKind, PowerState, TombstoneState
from manager.store import migrate, timeline
from manager.store.addresses import Mac
from manager.store.engine import RETRIES, Store, Tx, create_all, wait_ready
from manager.store.events import Event
from manager.store.mapping import metadata
from manager.store.sightings import Sighting
from manager.store.tombstones import Tombstone
from tests.functional.fleet import START, Clock


def empty(url: str = "sqlite://") -> Store:
    return Store(Database(connection=url), Clock())


@pytest.fixture
def store() -> Store:
    store = empty()
    create_all(store)
    return store


def stone(**fields: Any) -> Tombstone:
    base: dict[str, Any] = {
        "uuid": "t-1",
        "name": "web-1",
        "instance": "i-1",
        "host": "h1",
        "generation": 3,
        "state": TombstoneState.OPEN,
        "reason": "test",
        "mac": None,
        "holds": ("mac", "disk"),
        "created_at": START,
    }
    return Tombstone(**{**base, **fields})


def sighting(**fields: Any) -> Sighting:
    base: dict[str, Any] = {
        "host": "h1",
        "hypervisor_uuid": "u-1",
        "name": "web-1",
        "kind": GuestKind.ALIEN,
        "instance": None,
        "mark": Mark(fleet="f", instance="i", generation=1, bearer="u"),
        "template": False,
        "power_state": PowerState.CRASHED,
        "vcpus": 1,
        "memory_mib": 64,
        "macs": ("a", "b"),
        "fingerprint": "00",
        "present": True,
        "session": 1,
        "seq": 2**53,
        "first_seen": START,
        "last_seen": START,
    }
    return Sighting(**{**base, **fields})


# rows


@pytest.mark.parametrize("row", [stone(), stone(mac="m", closed_at=START), sighting()])
def test_a_row_comes_out_as_it_went_in(store: Store, row: Any) -> None:
    def there_and_back(tx: Tx) -> Any:
        tx.insert(row)
        return tx.get(type(row), *(getattr(row, k) for k in row.__key__))

    found = store.run(there_and_back)
    assert found == row
    assert {type(getattr(found, f)) for f in row.__struct_fields__} == {
        type(getattr(row, f)) for f in row.__struct_fields__
    }


def test_times_are_kept_in_utc_whatever_zone_they_came_in(store: Store) -> None:
    tokyo = dt.timezone(dt.timedelta(hours=9))
    row = stone(created_at=START.astimezone(tokyo))

    store.run(lambda tx: tx.insert(row))
    found = store.run(lambda tx: tx.get(Tombstone, "h1", "i-1"))
    assert found.created_at == START
    assert found.created_at.tzinfo is dt.UTC


def test_times_with_and_without_fractions_are_in_order(store: Store) -> None:
    whens = [START, START + dt.timedelta(microseconds=1), START + dt.timedelta(seconds=1)]

    def ordered(tx: Tx) -> list[dt.datetime]:
        for n, when in enumerate(reversed(whens)):
            tx.insert(Mac(mac=str(n), instance="i", since=when))
        c = Mac.__table__.c
        late = tx.all(Mac, c.since > START, order=[c.since])
        return [row.since for row in late]

    assert store.run(ordered) == whens[1:]


def test_a_nul_does_not_reach_the_database(store: Store) -> None:
    store.run(lambda tx: tx.insert(sighting(name="by\x00hand")))
    assert store.run(lambda tx: tx.get(Sighting, "h1", "u-1")).name == "by\ufffdhand"


def test_a_row_that_is_not_there(store: Store) -> None:
    assert store.run(lambda tx: tx.find(Tombstone, "h1", "t-9")) is None
    assert store.run(lambda tx: tx.lock(Tombstone, "h1", "t-9")) is None
    with pytest.raises(NotFound, match="t-9"):
        store.run(lambda tx: tx.get(Tombstone, "h1", "t-9"))


# compare-and-swap


def test_a_swap_changes_the_row_and_raises_its_version(store: Store) -> None:
    store.run(lambda tx: tx.insert(stone()))
    after = store.run(lambda tx: tx.swap(tx.get(Tombstone, "h1", "i-1"), generation=9))
    assert (after.generation, after.version) == (9, 1)
    assert store.run(lambda tx: tx.get(Tombstone, "h1", "i-1")) == after


def test_a_swap_of_what_has_changed_meanwhile_loses_and_changes_nothing(store: Store) -> None:
    store.run(lambda tx: tx.insert(stone()))
    old = store.run(lambda tx: tx.get(Tombstone, "h1", "i-1"))
    new = store.run(lambda tx: tx.swap(old, generation=9))
    with pytest.raises(Conflict, match="Tombstone"):
        store.run(lambda tx: tx.swap(old, generation=5))
    assert store.run(lambda tx: tx.get(Tombstone, "h1", "i-1")) == new


def test_a_key_that_is_taken_is_a_conflict_or_told(store: Store) -> None:
    store.run(lambda tx: tx.insert(stone()))
    with pytest.raises(Conflict):
        store.run(lambda tx: tx.insert(stone(uuid="t-2")))  # same host and instance
    assert store.run(lambda tx: tx.insert_if_new(Mac(mac="m", instance="a", since=START)))
    assert not store.run(lambda tx: tx.insert_if_new(Mac(mac="m", instance="b", since=START)))
    assert store.run(lambda tx: tx.get(Mac, "m").instance) == "a"


# one handler, one transaction


def test_a_handler_that_fails_leaves_nothing_and_says_nothing(store: Store) -> None:
    said: list[Tx] = []
    store.after_commit = said.append

    def broken(tx: Tx) -> None:
        tx.insert(stone())
        tx.cast("h1", "confirm", ids=["x"])
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        store.run(broken)
    assert store.run(lambda tx: tx.find(Tombstone, "h1", "i-1")) is None
    assert [tx.casts for tx in said] == [[]]


def test_a_lost_swap_runs_the_handler_again_from_the_start(store: Store) -> None:
    said: list[Tx] = []
    store.after_commit = said.append
    tries: list[int] = []

    def unlucky(tx: Tx) -> int:
        tries.append(len(tries))
        tx.insert(Mac(mac=f"m-{len(tries)}", instance="i", since=tx.now))
        tx.cast("h1", "confirm", ids=[str(len(tries))])
        if len(tries) < 3:
            raise Conflict("lost")
        return len(tries)

    assert store.run(unlucky) == 3
    assert [row.mac for row in store.run(lambda tx: tx.all(Mac))] == ["m-3"]
    assert [h.kwargs["ids"] for tx in said for h in tx.casts] == [["3"]]


def test_one_who_always_loses_gives_up_in_the_end(store: Store) -> None:
    tries: list[int] = []

    def unlucky(_tx: Tx) -> None:
        tries.append(1)
        raise Conflict("lost")

    with pytest.raises(Conflict):
        store.run(unlucky)
    assert len(tries) == RETRIES


def test_the_clock_is_read_once_a_transaction(store: Store) -> None:
    clock = store.runtime
    assert isinstance(clock, Clock)

    def twice(tx: Tx) -> tuple[dt.datetime, dt.datetime]:
        before = tx.now
        clock.move(5)
        return before, tx.now

    first, second = store.run(twice)
    assert first == second
    assert store.run(lambda tx: tx.now) == first + dt.timedelta(seconds=5)


def test_an_event_is_kept_with_its_numbers(store: Store) -> None:
    store.run(lambda tx: tx.event("host.state", "h1", "manager", "UP -> DOWN", row=4))
    (event,) = store.run(lambda tx: tx.all(Event))
    assert (event.kind, event.object, event.data) == ("host.state", "h1", {"row": 4})


def test_the_timeline_stays_and_its_mark_rises(store: Store) -> None:
    marks = [store.run(timeline.advance) for _ in range(3)]
    assert len({m.timeline for m in marks}) == 1
    assert [m.mark for m in marks] == [1, 2, 3]
    other = empty()
    create_all(other)
    assert other.run(timeline.advance).timeline != marks[0].timeline


# databases that are not ready, or not ours


@pytest.mark.parametrize("url", ["mysql://x/y", "not a url", "oracle://"])
def test_a_database_of_another_kind_is_refused_by_name(url: str) -> None:
    with pytest.raises(BadConfig, match="connection"):
        empty(url)


def test_a_database_file_that_can_not_be_opened_is_told_in_one_line(tmp_path: Path) -> None:
    store = empty(f"sqlite:///{tmp_path}/no/such/folder/m.db")
    with pytest.raises(DatabaseUnavailable) as caught:
        store.run(lambda tx: tx.all(Mac))
    assert "\n" not in str(caught.value)
    assert "[database] connection" in caught.value.remedy


def test_waiting_for_a_database_ends_when_it_answers_or_the_manager_stops(tmp_path: Path) -> None:
    assert wait_ready(empty(), lambda: False)
    away = empty(f"sqlite:///{tmp_path}/later/m.db")
    looks: list[int] = []

    def stopping() -> bool:
        looks.append(1)
        return len(looks) > 3

    assert not wait_ready(away, stopping)

    def made_meanwhile() -> bool:
        (tmp_path / "later").mkdir(exist_ok=True)
        return False

    assert wait_ready(away, made_meanwhile)


# migrations


def test_the_migrations_make_what_the_code_declares() -> None:
    store = empty()
    assert migrate.current(store) is None
    assert migrate.upgrade(store) == (None, migrate.head())
    with store.engine.connect() as conn:
        context = MigrationContext.configure(conn, opts={"compare_type": False})
        assert compare_metadata(context, metadata) == []


def test_an_upgrade_of_what_is_up_to_date_changes_nothing() -> None:
    store = empty()
    migrate.upgrade(store)
    store.run(lambda tx: tx.insert(stone()))
    assert migrate.upgrade(store) == (migrate.head(), migrate.head())
    assert store.run(lambda tx: tx.get(Tombstone, "h1", "i-1")) == stone()


@pytest.mark.parametrize(("wanted", "made"), [(None, True), (True, True), (False, False)])
def test_a_manager_makes_the_schema_by_itself_on_sqlite_unless_told_not_to(
    wanted: bool | None, made: bool
) -> None:
    store = empty()
    settings = Database(auto_upgrade=wanted)
    if made:
        migrate.at_start(store, settings)
        migrate.at_start(store, settings)
        assert migrate.current(store) == migrate.head()
        return
    with pytest.raises(DatabaseUnavailable, match="missing") as caught:
        migrate.at_start(store, settings)
    assert "muster db upgrade" in caught.value.remedy
    migrate.upgrade(store)
    migrate.at_start(store, settings)


def test_a_schema_of_another_version_is_named(tmp_path: Path) -> None:
    store = empty(f"sqlite:///{tmp_path}/m.db")
    migrate.upgrade(store)
    with store.engine.begin() as conn:
        conn.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseUnavailable, match="9999"):
        migrate.at_start(store, Database(auto_upgrade=False))
    store.close()


def test_a_row_is_read_once_and_written_once_in_a_transaction(store: Store) -> None:
    store.run(lambda tx: tx.insert(stone()))
    said: list[str] = []
    sa.event.listen(
        store.engine, "before_cursor_execute", lambda *a: said.append(a[2].split(" ")[0])
    )

    def twice(tx: Tx) -> Tombstone:
        row = tx.swap(tx.get(Tombstone, "h1", "i-1"), tries=1)
        assert tx.get(Tombstone, "h1", "i-1") == row
        return tx.swap(row, answer="no")

    row = store.run(twice)
    assert [s for s in said if s != "BEGIN"] == ["SELECT", "UPDATE"]
    assert store.run(lambda tx: tx.get(Tombstone, "h1", "i-1")) == row
    assert (row.tries, row.answer, row.version) == (1, "no", stone().version + 2)


def test_what_was_changed_is_seen_by_every_query_after_it(store: Store) -> None:
    c = Tombstone.__table__.c

    def change(tx: Tx) -> tuple[int, int, list[Tombstone]]:
        tx.insert(stone())
        tx.swap(tx.get(Tombstone, "h1", "i-1"), tries=7)
        counted = tx.count(Tombstone, c.tries == 7)
        moved = tx.change_where(Tombstone, c.tries == 7, tries=8)
        return counted, moved, tx.all(Tombstone, c.tries == 8)

    counted, moved, found = store.run(change)
    assert (counted, moved) == (1, 1)
    assert [(row.tries, row.version) for row in found] == [(8, stone().version + 2)]


def test_a_row_that_was_changed_since_it_was_read_is_not_changed_from_the_old_one(
    store: Store,
) -> None:
    store.run(lambda tx: tx.insert(stone()))

    def stale(tx: Tx) -> None:
        old = tx.get(Tombstone, "h1", "i-1")
        tx.swap(old, tries=1)
        tx.swap(old, tries=2)

    with pytest.raises(Conflict):
        store.run(stale)
    assert store.run(lambda tx: tx.get(Tombstone, "h1", "i-1")).tries == 0

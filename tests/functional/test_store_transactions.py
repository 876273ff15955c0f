"""A transaction's view of its rows on both databases: read once, written once, told the time."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from common.errors import Conflict, DatabaseUnavailable
from common.states import CommandState
from manager.store.addresses import Mac
from manager.store.commands import CommandRow, Void
from manager.store.engine import Store, Tx
from manager.store.statements import Joined, Query, ask
from tests.functional.fleet import START

C, V = CommandRow.__table__, Void.__table__
OF_HOST = Query(CommandRow, C.c.host == ask("host"))
FIRST_OF_HOST = Query(CommandRow, C.c.host == ask("host"), order=[C.c.generation], limit=1)
WITH_VOID = Joined(
    (CommandRow, Void),
    C.outerjoin(V, sa.and_(V.c.host == C.c.host, V.c.instance == C.c.instance)),
    C.c.host == ask("host"),
)


def command(id_: str = "c-1", **fields: Any) -> CommandRow:
    base: dict[str, Any] = {
        "id": id_,
        "job": None,
        "kind": "stop_vm",
        "host": "h1",
        "instance": f"vm of {id_}",
        "generation": 1,
        "spec": {},
        "timeout_s": 60.0,
        "trail": (),
        "state": CommandState.ACCEPTED,
        "publish_at": START,
        "accepted_at": START,
    }
    return CommandRow(**{**base, **fields})


def void(instance: str, **fields: Any) -> Void:
    base: dict[str, Any] = {"host": "h1", "generation": 1, "command": "c-1"}
    return Void(**{**base, "instance": instance, "next_at": START, "created_at": START, **fields})


@pytest.fixture
def said(store: Store) -> Iterator[list[str]]:
    """The first words of every statement that reaches the database."""
    heard: list[str] = []

    def hear(*args: Any) -> None:
        heard.append(args[2].split(" ")[0])

    sa.event.listen(store.engine, "before_cursor_execute", hear)
    yield heard
    sa.event.remove(store.engine, "before_cursor_execute", hear)


def wrote(said: list[str]) -> list[str]:
    return [word for word in said if word in ("INSERT", "UPDATE", "DELETE", "WITH")]


# new rows


def test_a_new_row_that_is_changed_before_it_is_written_is_inserted_once_as_it_is_at_last(
    store: Store, said: list[str]
) -> None:
    def claimed(tx: Tx) -> CommandRow:
        tx.insert(command())
        row = tx.swap(tx.get(CommandRow, "c-1"), state=CommandState.PUBLISHED, publishes=1)
        return tx.swap(row, session=7)

    row = store.run(claimed)
    assert wrote(said) == ["INSERT"]
    assert (row.state, row.publishes, row.session) == (CommandState.PUBLISHED, 1, 7)
    assert store.run(lambda tx: tx.get(CommandRow, "c-1")) == row
    # Its version has risen with its values: who has it from here can swap it.
    assert store.run(lambda tx: tx.swap(row, publishes=2)).version == row.version + 1


def test_an_unversioned_new_row_too(store: Store, said: list[str]) -> None:
    def put(tx: Tx) -> None:
        tx.insert(void("i-1"))
        tx.put(void("i-1"), generation=3)

    store.run(put)
    assert wrote(said) == ["INSERT"]
    assert store.run(lambda tx: tx.get(Void, "h1", "i-1")).generation == 3


def test_new_rows_are_written_by_one_statement_a_kind_or_for_all(
    store: Store, said: list[str]
) -> None:
    def several(tx: Tx) -> None:
        for n in range(4):
            tx.insert(command(f"c-{n}"))
        tx.insert(void("i-1"))

    store.run(several)
    assert wrote(said) == (["WITH"] if store.dialect == "postgresql" else ["INSERT", "INSERT"])
    assert len(store.run(lambda tx: tx.ask(OF_HOST, host="h1"))) == 4


@pytest.mark.parametrize(
    "look",
    [
        lambda tx: tx.ask(OF_HOST, host="h1"),
        lambda tx: [tx.ask_first(FIRST_OF_HOST, host="h1")],
        lambda tx: tx.due(OF_HOST, host="h1"),
        lambda tx: tx.all(CommandRow),
        lambda tx: [row for row, _ in tx.together(WITH_VOID, host="h1")],
        lambda tx: [tx.first(CommandRow)],
        lambda tx: [tx.find(CommandRow, "c-1")],
        lambda tx: [tx.lock(CommandRow, "c-1")],
    ],
)
def test_who_asks_for_rows_of_a_kind_sees_those_that_are_new_or_changed(
    store: Store, look: Callable[[Tx], list[CommandRow]]
) -> None:
    def inserted(tx: Tx) -> None:
        tx.insert(command())
        (found,) = look(tx)
        assert found == command()
        changed = tx.swap(found, host="h1", publishes=5)
        assert look(tx) == [changed]

    store.run(inserted)
    assert store.run(lambda tx: tx.get(CommandRow, "c-1")).publishes == 5


def test_what_is_asked_of_one_kind_leaves_new_rows_of_others_unwritten(
    store: Store, said: list[str]
) -> None:
    def asked(tx: Tx) -> None:
        tx.insert(void("i-1"))
        assert tx.ask(OF_HOST, host="h1") == []
        assert wrote(said) == []
        assert tx.count(Void) == 1
        assert wrote(said) == ["INSERT"]

    store.run(asked)


def test_two_new_rows_of_one_key_are_a_conflict(store: Store) -> None:
    def double(tx: Tx) -> None:
        tx.insert(command())
        tx.insert(command(generation=2))

    with pytest.raises(Conflict, match="CommandRow"):
        store.run(double)
    assert store.run(lambda tx: tx.count(CommandRow)) == 0


def test_a_key_that_is_taken_runs_the_handler_again_which_is_told_so(store: Store) -> None:
    store.run(lambda tx: tx.insert(command()))
    attempts: list[int] = []

    def late(tx: Tx) -> CommandRow | None:
        attempts.append(tx.attempt)
        if tx.attempt:
            return tx.find(CommandRow, "c-1")
        tx.insert(command(generation=2))
        tx.insert(void("i-1"))
        tx.cast("h1", "confirm", ids=[])
        return None

    assert store.run(late) == command()
    assert attempts == [0, 1]
    assert store.run(lambda tx: tx.count(Void)) == 0
    assert store.run(lambda tx: tx.attempt, attempt=1) == 1


def test_a_new_row_that_is_deleted_again_was_never_there(store: Store, said: list[str]) -> None:
    def undone(tx: Tx) -> None:
        row = void("i-1")
        tx.insert(row)
        tx.delete(row)
        assert tx.find(Void, "h1", "i-1") is None

    store.run(undone)
    assert wrote(said) == []
    assert store.run(lambda tx: tx.count(Void)) == 0


def test_a_row_that_is_deleted_can_be_inserted_anew(store: Store) -> None:
    store.run(lambda tx: tx.insert(void("i-1")))

    def again(tx: Tx) -> None:
        tx.delete(tx.get(Void, "h1", "i-1"))
        assert tx.find(Void, "h1", "i-1") is None
        tx.insert(void("i-1", generation=9))

    store.run(again)
    assert store.run(lambda tx: tx.get(Void, "h1", "i-1")).generation == 9


# what is not there


def test_that_there_is_no_row_is_remembered_until_one_is_inserted(
    store: Store, said: list[str]
) -> None:
    def look(tx: Tx) -> None:
        assert tx.find(Mac, "m") is None
        assert tx.find(Mac, "m") is None
        assert said.count("SELECT") == 1
        tx.insert(Mac(mac="m", instance="i", since=START))
        assert tx.find(Mac, "m") is not None

    store.run(look)


def test_it_is_forgotten_when_somebody_else_was_first(store: Store) -> None:
    store.run(lambda tx: tx.insert(Mac(mac="m", instance="first", since=START)))

    def late(tx: Tx) -> Mac | None:
        tx.absent(Mac, "m")  # as it was a moment ago
        assert tx.find(Mac, "m") is None
        assert not tx.insert_if_new(Mac(mac="m", instance="second", since=START))
        return tx.find(Mac, "m")

    assert store.run(late) == Mac(mac="m", instance="first", since=START)

    def first(tx: Tx) -> Mac | None:
        assert tx.find(Mac, "n") is None
        assert tx.insert_if_new(Mac(mac="n", instance="i", since=START))
        return tx.find(Mac, "n")

    assert store.run(first) == Mac(mac="n", instance="i", since=START)


# several tables in one look


def test_rows_come_together_and_none_where_there_is_no_other(store: Store, said: list[str]) -> None:
    def make(tx: Tx) -> None:
        tx.insert(command("c-1"))
        tx.insert(command("c-2", instance="i-2"))
        tx.insert(void("i-2"))

    store.run(make)
    del said[:]

    def look(tx: Tx) -> dict[str, Void | None]:
        found = {row.id: owed for row, owed in tx.together(WITH_VOID, host="h1")}
        # Both are known from here on.
        assert tx.find(CommandRow, "c-2") is not None
        assert tx.find(Void, "h1", "i-2") == found["c-2"]
        assert said.count("SELECT") == 1
        return found

    assert store.run(look) == {"c-1": None, "c-2": void("i-2")}


def test_what_was_changed_here_prevails_over_what_is_read_again(store: Store) -> None:
    store.run(lambda tx: tx.insert(command()))

    def change(tx: Tx) -> None:
        row = tx.swap(tx.get(CommandRow, "c-1"), publishes=4)
        assert tx.ask(OF_HOST, host="h1") == [row]
        assert tx.together(WITH_VOID, host="h1") == [[row, None]]
        with pytest.raises(Conflict):
            tx.swap(command(), publishes=5)  # as it was before

    store.run(change)
    assert store.run(lambda tx: tx.get(CommandRow, "c-1")).publishes == 4


def test_a_swap_that_somebody_else_has_made_too_is_a_conflict_at_the_commit(store: Store) -> None:
    store.run(lambda tx: tx.insert(command()))
    old = command()
    store.run(lambda tx: tx.swap(tx.get(CommandRow, "c-1"), publishes=1))
    tries: list[int] = []

    def late(tx: Tx) -> int:
        tries.append(tx.attempt)
        row = tx.swap(old if not tx.attempt else tx.get(CommandRow, "c-1"), session=2)
        return row.publishes

    assert store.run(late) == 1
    assert tries == [0, 1]
    row = store.run(lambda tx: tx.get(CommandRow, "c-1"))
    assert (row.publishes, row.session, row.version) == (1, 2, 2)


# the time


def test_the_first_rows_that_are_read_tell_the_time(store: Store, said: list[str]) -> None:
    store.run(lambda tx: tx.insert(command()))
    del said[:]

    def look(tx: Tx) -> tuple[CommandRow | None, dt.datetime]:
        return tx.find(CommandRow, "c-1"), tx.now

    row, now = store.run(look)
    assert (row, now) == (command(), store.runtime.now())
    assert said.count("SELECT") == 1


def test_the_time_is_asked_for_when_no_row_told_it(store: Store, said: list[str]) -> None:
    def look(tx: Tx) -> dt.datetime:
        assert tx.find(CommandRow, "c-9") is None
        return tx.now

    assert store.run(look) == store.runtime.now()
    assert said.count("SELECT") == (2 if store.dialect == "postgresql" else 1)


@pytest.mark.parametrize(
    "look",
    [
        lambda tx: tx.ask(OF_HOST, host="h1"),
        lambda tx: tx.due(OF_HOST, host="h1"),
        lambda tx: tx.lock(CommandRow, "c-1"),
        lambda tx: tx.together(WITH_VOID, host="h1"),
        lambda tx: tx.all(CommandRow),
    ],
)
def test_the_time_stands_still_within_a_transaction(
    store: Store, look: Callable[[Tx], Any]
) -> None:
    store.run(lambda tx: tx.insert(command()))
    before = store.runtime.now()

    def long(tx: Tx) -> tuple[dt.datetime, dt.datetime]:
        look(tx)
        first = tx.now
        store.runtime.move(5)  # type: ignore[attr-defined] # the tests' clock
        look(tx)
        return first, tx.now

    assert store.run(long) == (before, before)
    assert store.run(lambda tx: tx.now) == before + dt.timedelta(seconds=5)


# SQLite has one connection, and a gate before it.
@pytest.mark.parametrize(
    "store", [pytest.param("postgresql", marks=pytest.mark.real)], indirect=True
)
def test_one_who_gets_no_connection_in_time_is_told_so(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool: Any = store.engine.pool
    monkeypatch.setattr(pool, "_timeout", 0.01)
    with contextlib.ExitStack() as taken:
        for _ in range(pool.size() + pool._max_overflow):
            taken.enter_context(store.engine.connect())
        with pytest.raises(DatabaseUnavailable, match="every connection") as caught:
            store.run(lambda tx: tx.now)
    assert "pool_size" in caught.value.remedy

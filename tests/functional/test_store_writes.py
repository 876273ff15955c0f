"""What a transaction has made is written the same way by one or many, on both databases."""

from __future__ import annotations

import datetime as dt
import enum
import typing
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from common.errors import Conflict
from common.states import CommandState
from manager.store.addresses import Mac
from manager.store.commands import CommandRow, Void
from manager.store.engine import NOUNS, Store, Tx
from manager.store.mapping import Row
from tests.functional.fleet import START
from tests.functional.test_store_transactions import command, void

KINDS = [
    kind
    for noun in NOUNS
    for kind in vars(noun).values()
    if isinstance(kind, type) and issubclass(kind, Row) and kind is not Row
]
TEXT = 'b\\"ö\n\t\x01 \\u0000 {"a": [1]} 中 🐧 %s :a'
TOKYO = dt.timezone(dt.timedelta(hours=9))


def value_of(annotation: Any, n: int) -> Any:
    """One that is hard to keep, another for each `n`."""
    if typing.get_origin(annotation) is typing.Annotated:
        base, *metas = typing.get_args(annotation)
        if any(getattr(meta, "pattern", None) for meta in metas):
            return f"name-{n}"  # read back, it is checked as when it came
        return value_of(base, n)
    if typing.get_origin(annotation) in (dict, tuple) and annotation is not Any:
        return some_of(annotation, n)
    simple: dict[Any, Callable[[], Any]] = {
        str: lambda: f"{TEXT}{n}",
        int: lambda: 2**53 + n,
        float: lambda: n + 0.1,
        bool: lambda: n % 2 == 0,
        dt.datetime: lambda: START.astimezone(TOKYO) + dt.timedelta(days=n, microseconds=n),
        Any: lambda: [TEXT, None, 1.5, {"n": n}],
    }
    if annotation in simple:
        return simple[annotation]()
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return list(annotation)[n % len(annotation)]
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return row_of(annotation, n)
    if isinstance(annotation, type) and issubclass(annotation, tuple):
        return annotation(*[value_of(a, n) for a in typing.get_type_hints(annotation).values()])
    return value_of(next(a for a in typing.get_args(annotation) if a is not type(None)), n)


def some_of(annotation: Any, n: int) -> Any:
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is dict:
        return {TEXT: value_of(arguments[1], n)}
    if arguments[-1] is ...:
        return tuple([value_of(arguments[0], n + each) for each in range(n % 3)])
    return tuple([value_of(each, n) for each in arguments])


def row_of(kind: type[Any], n: int) -> Any:
    hints = typing.get_type_hints(kind, include_extras=True)
    return kind(**{name: value_of(hints[name], n) for name in kind.__struct_fields__})


def stored(store: Store, row: Row) -> Any:
    return store.run(lambda tx: tx.get(type(row), *[getattr(row, k) for k in row.__key__]))


def no_more_than_is_set(row: Any) -> Any:
    """Without what may be absent."""
    hints = typing.get_type_hints(type(row))
    absent = {f: None for f in row.__struct_fields__ if type(None) in typing.get_args(hints[f])}
    return msgspec.structs.replace(row, **absent)


def keyed(kind: type[Any], n: int) -> Any:
    """A row with another key than that of any other `n`."""
    row = row_of(kind, n)
    if "uuid" in row.__struct_fields__:
        row = msgspec.structs.replace(row, uuid=f"uuid {n}")
    return row


def changeable(kind: type[Row]) -> list[str]:
    fixed = {*kind.__key__, "version", "uuid"}
    return [name for name in kind.__struct_fields__ if name not in fixed]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_rows_come_out_as_they_went_in_by_however_many(
    store: Store, kind: type[Row], count: int
) -> None:
    rows = [keyed(kind, n) for n in range(count)]
    rows[-1] = no_more_than_is_set(rows[-1])
    store.run(lambda tx: [tx.insert(row) for row in rows])
    assert [stored(store, row) for row in rows] == rows


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if changeable(kind)], ids=lambda kind: kind.__name__
)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_changes_come_out_as_they_went_in_by_however_many(
    store: Store, kind: type[Row], count: int
) -> None:
    rows: list[Any] = [keyed(kind, n) for n in range(count)]
    values = [keyed(kind, n + count) for n in range(count)]
    values[-1] = no_more_than_is_set(values[-1])
    names = changeable(kind)
    store.run(lambda tx: [tx.insert(row) for row in rows])

    def change(tx: Tx) -> list[Any]:
        how = tx.swap if "version" in kind.__struct_fields__ else tx.put
        return [
            how(row, **{name: getattr(new, name) for name in names})
            for row, new in zip(rows, values, strict=True)
        ]

    changed = store.run(change)
    assert [stored(store, row) for row in rows] == changed
    assert changed != rows


@pytest.mark.parametrize("count", [1, 2])
def test_a_nul_becomes_the_sign_for_what_is_unreadable_in_text_and_is_kept_in_json(
    store: Store, count: int
) -> None:
    names = [f"c-{n}" for n in range(count)]
    for name in names:
        store.run(lambda tx, name=name: tx.insert(command(name)))
    said = {"error": "by\x00hand \\u0000", "spec": {"a": "by\x00hand"}}
    store.run(lambda tx: [tx.swap(tx.get(CommandRow, name), **said) for name in names])
    for name in names:
        row = stored(store, command(name))
        assert row.error == "by\ufffdhand \\u0000"
        assert row.spec == {"a": "by\x00hand"}


def test_of_several_one_that_somebody_else_has_changed_keeps_all_from_being_written(
    store: Store,
) -> None:
    rows = [command(f"c-{n}") for n in range(3)]
    store.run(lambda tx: [tx.insert(row) for row in rows])
    store.run(lambda tx: tx.swap(tx.get(CommandRow, "c-1"), publishes=9))

    def late(tx: Tx) -> None:
        for row in rows:
            tx.swap(row, state=CommandState.PUBLISHED)
        tx.insert(void("i-1"))

    with pytest.raises(Conflict, match="CommandRow was changed"):
        store.run(late)
    found = [stored(store, row) for row in rows]
    assert [row.state for row in found] == [CommandState.ACCEPTED] * 3
    assert [row.publishes for row in found] == [0, 9, 0]
    assert store.run(lambda tx: tx.count(Void)) == 0


def test_one_that_was_changed_or_is_gone_is_noticed_beside_rows_of_other_kinds(
    store: Store,
) -> None:
    for lost in (command("c-1", version=7), command("c-2")):
        store.run(lambda tx: tx.insert_if_new(command("c-1")))

        def late(tx: Tx, lost: CommandRow = lost) -> None:
            tx.swap(lost, publishes=1)
            tx.insert(void("i-1"))

        with pytest.raises(Conflict, match="CommandRow was changed"):
            store.run(late)
        assert store.run(lambda tx: tx.count(Void)) == 0
    assert stored(store, command("c-1")) == command("c-1")


def test_of_several_one_whose_key_is_taken_keeps_all_from_being_written(store: Store) -> None:
    store.run(lambda tx: tx.insert(Mac(mac="m-1", instance="first", since=START)))

    def late(tx: Tx) -> None:
        for n in range(3):
            tx.insert(Mac(mac=f"m-{n}", instance="second", since=START))
        tx.insert(command())

    with pytest.raises(Conflict, match="is there already"):
        store.run(late)
    assert [row.mac for row in store.run(lambda tx: tx.all(Mac))] == ["m-1"]
    assert store.run(lambda tx: tx.count(CommandRow)) == 0


def test_an_unversioned_row_that_is_gone_is_not_missed(store: Store) -> None:
    store.run(lambda tx: tx.insert(void("i-1")))
    store.run(lambda tx: [tx.put(void(f"i-{n}"), generation=n + 4) for n in range(3)])
    store.run(lambda tx: [tx.put(void("i-9"), generation=1), tx.insert(command())])
    (row,) = store.run(lambda tx: tx.all(Void))
    assert (row.instance, row.generation) == ("i-1", 5)


def test_a_row_that_was_changed_twice_is_found_by_the_version_that_it_was_read_with(
    store: Store,
) -> None:
    rows = [command(f"c-{n}") for n in range(2)]
    store.run(lambda tx: [tx.insert(row) for row in rows])

    def twice(tx: Tx) -> list[CommandRow]:
        return [
            tx.swap(tx.swap(row, publishes=1), publishes=2, session=n) for n, row in enumerate(rows)
        ]

    changed = store.run(twice)
    assert [row.version for row in changed] == [2, 2]
    assert [stored(store, row) for row in rows] == changed

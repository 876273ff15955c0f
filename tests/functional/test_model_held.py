"""What a noun is held against: on PostgreSQL others wait, on SQLite there is one writer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from common.errors import Conflict
from common.model import Kind, Pod, Project, Zone
from manager.flows import model
from manager.store.engine import RETRIES, Store, Tx
from manager.store.model import Object
from tests.functional.fleet import START


def stored(store: Store, kind: Kind, name: str, **spec: Any) -> None:
    row = Object(kind=kind, name=name, spec=spec, created_at=START, changed_at=START)
    store.run(lambda tx: tx.insert(row))


def test_a_noun_is_found_by_kind_and_name(store: Store) -> None:
    stored(store, Kind.ZONE, "one", domain="example.org")
    stored(store, Kind.POD, "one", zone="one")
    assert store.run(lambda tx: model.find(tx, Kind.ZONE, "one")) == Zone(domain="example.org")
    assert store.run(lambda tx: model.find(tx, Kind.POD, "one")) == Pod(zone="one")
    assert store.run(lambda tx: model.find(tx, Kind.POD, "two")) is None
    assert store.run(lambda tx: model.all_of(tx, Kind.POD)) == {"one": Pod(zone="one")}


def test_those_that_are_there_are_held_and_the_others_left_out(store: Store) -> None:
    stored(store, Kind.ZONE, "one")
    stored(store, Kind.POD, "one", zone="one")
    stored(store, Kind.POD, "two", zone="one")
    wanted = [(Kind.ZONE, "one"), (Kind.ZONE, "two"), (Kind.POD, "two")]

    def held(tx: Tx) -> dict[model.Key, Any]:
        return model.hold_all(tx, wanted)

    assert store.run(held) == {
        (Kind.ZONE, "one"): Zone(),
        (Kind.POD, "two"): Pod(zone="one"),
    }
    assert store.run(lambda tx: model.hold_all(tx, [])) == {}
    assert store.run(lambda tx: model.hold(tx, Kind.ZONE, "two")) is None


def test_the_default_project_is_there_and_unlimited_until_it_is_made(store: Store) -> None:
    assert store.run(lambda tx: model.find(tx, Kind.PROJECT, "default")) == Project()
    assert store.run(lambda tx: model.hold(tx, Kind.PROJECT, "default")) == Project()
    assert store.run(lambda tx: model.find(tx, Kind.PROJECT, "other")) is None
    stored(store, Kind.PROJECT, "default", instances=3)
    assert store.run(lambda tx: model.hold(tx, Kind.PROJECT, "default")).instances == 3


@pytest.mark.parametrize("hold", [model.hold, model.lock])
def test_what_has_changed_since_it_was_read_is_not_held_but_read_again(
    store: Store, hold: Callable[..., Any]
) -> None:
    stored(store, Kind.ZONE, "one")

    def checked(tx: Tx) -> None:
        model.find(tx, Kind.ZONE, "one")
        # As another manager does it after that look; on SQLite nobody else could.
        tx.conn.execute(sa.update(Object.__table__).values(version=1))
        hold(tx, Kind.ZONE, "one")

    if store.dialect == "sqlite" and hold is model.lock:
        store.run(checked)
        return
    with pytest.raises(Conflict, match="zone one was changed"):
        store.run(checked, attempt=RETRIES - 1)


def test_two_may_hold_a_noun_at_once_and_who_deletes_it_waits_for_both(store: Store) -> None:
    """Two holders need two connections, which SQLite does not give: there each comes in turn."""
    stored(store, Kind.ZONE, "one")
    together = threading.Barrier(2 if store.dialect == "postgresql" else 1)
    order: list[str] = []
    held, deleting = threading.Barrier(3), threading.Event()

    def holder() -> None:
        def hold(tx: Tx) -> None:
            model.hold(tx, Kind.ZONE, "one")
            together.wait(20.0)
            if store.dialect == "postgresql":
                held.wait(20.0)
                deleting.wait(20.0)
            order.append("held")

        store.run(hold)

    def delete(tx: Tx) -> None:
        deleting.set()
        row = tx.lock(Object, Kind.ZONE, "one")
        assert row is not None
        order.append("deleted")
        tx.delete(row)

    threads = [threading.Thread(target=holder) for _ in range(2)]
    for thread in threads:
        thread.start()
    if store.dialect == "postgresql":
        held.wait(20.0)
    else:
        for thread in threads:
            thread.join(20.0)
    store.run(delete)
    for thread in threads:
        thread.join(20.0)
    assert order == ["held", "held", "deleted"]

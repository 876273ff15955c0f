"""A manager that is told to stop finishes what it has begun, and leaves the rest to the others."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from typing import Any

from common.bus.base import Address
from common.bus.memory import Broker, MemoryBus
from common.errors import MusterError
from common.runtime import Runtime
from common.states import CommandState
from manager import ticks
from manager.flows import hello, publish
from manager.service import Manager
from manager.store.commands import CommandRow
from manager.store.engine import Store
from tests.functional.fleet import Clock, Fleet, ScriptedAgent


class Bus(MemoryBus):
    """Counts casts of commands, and tells of each before it is made."""

    def __init__(self, runtime: Runtime, told: Callable[[], None]) -> None:
        super().__init__(Broker(runtime), runtime, None)
        self.casts: list[str] = []
        self.told = told

    def cast(self, to: Address, method: str, kwargs: Mapping[str, Any]) -> None:
        self.told()
        commands = [kwargs["command"]] if "command" in kwargs else kwargs.get("commands", ())
        self.casts += [command["id"] for command in commands]


def test_its_batch_leaves_and_the_rest_is_due_for_any_other_manager(
    fleet: Fleet, h1: ScriptedAgent, store: Store
) -> None:
    h1.end_session()
    for n in range(2 * publish.BATCH + 5):
        fleet.create(f"web-{n}", host="h1", memory_mib=16)
    first = copy.copy(store)
    first.runtime = Clock()
    bus = Bus(first.runtime, first.runtime.stopping.set)  # told to stop amid its first cast
    manager = Manager(fleet.cfg, bus, first.runtime, first)
    first.run(hello.welcome, fleet.cfg, h1.greeting())
    manager._publisher.turn()
    assert len(set(bus.casts)) == len(bus.casts) == publish.BATCH
    left = [r for r in fleet.rows(CommandRow) if r.state is CommandState.ACCEPTED]
    assert len(left) == publish.BATCH + 5
    assert {r.publish_at for r in left} == {r.accepted_at for r in left} == {fleet.clock.now()}
    second = Bus(store.runtime, lambda: None)
    other = Manager(fleet.cfg, second, store.runtime, store)
    ticks.tick(store, fleet.cfg)
    other._publisher.turn()
    assert sorted(second.casts) == sorted(r.id for r in left)


def test_it_answers_what_it_was_asked_before_it_stops_and_stops_within_its_limit(
    fleet: Fleet, store: Store
) -> None:
    runtime, edge = Runtime("manager"), Runtime("edge")
    broker = Broker(edge)
    manager = Manager(fleet.cfg, broker.bus(runtime), runtime, store)
    asked, go_on = threading.Event(), threading.Event()
    answers: list[Any] = []

    def slow(method: str, kwargs: dict[str, Any]) -> Any:
        asked.set()
        assert go_on.wait(30.0)
        return {"done": method}

    manager._api = slow  # type: ignore[assignment]
    manager._serve()

    def ask() -> None:
        try:
            to = Address("muster-manager")
            answers.append(broker.bus(edge).call(to, "vm_list", {}, 30.0))
        except MusterError as exc:
            answers.append(exc)

    operator = threading.Thread(target=ask)
    operator.start()
    assert asked.wait(30.0)
    manager.store = Store(fleet.cfg.database, runtime)  # which it may close
    stopping = threading.Thread(target=manager.stop, args=(20.0,))
    stopping.start()
    assert runtime.stopping.wait(30.0)
    go_on.set()
    operator.join(30.0)
    stopping.join(30.0)
    assert answers == [{"done": "vm_list"}]
    assert not stopping.is_alive()


def test_what_it_has_committed_and_not_said_is_said_before_it_goes(
    fleet: Fleet, h1: ScriptedAgent, store: Store
) -> None:
    """Another manager would find it only after `resend_after`."""
    runtime = Runtime("manager")
    own = copy.copy(store)
    own.runtime = runtime
    bus = Bus(runtime, lambda: None)
    manager = Manager(fleet.cfg, bus, runtime, own)
    own.close = lambda: None  # type: ignore[method-assign] # the fleet goes on with it
    job = manager._rpc(
        "vm_create",
        {
            "name": "web-1",
            "vcpus": 1,
            "memory_mib": 64,
            "host": "h1",
            "job": runtime.new_id(),
            "operator": "ann",
        },
    )
    (row,) = [r for r in fleet.rows(CommandRow) if r.job == job["uuid"]]
    assert (row.state, bus.casts) == (CommandState.PUBLISHED, [])
    manager.stop()
    assert bus.casts == [row.id]

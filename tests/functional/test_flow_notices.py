"""Section 3: start and end notifications of deletes, the end only when it is true."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

from common.bus.base import Notice
from common.bus.memory import Broker
from common.bus.notifier import Notifier
from common.errors import VmProtected
from common.runtime import Runtime
from common.states import HostState
from manager.service import Manager
from manager.store.engine import Store
from tests.functional.fleet import DOWN_S, INTERVAL_S, Fleet, ScriptedAgent
from tests.wait import wait_until

START, END, ERROR = (f"instance.delete.{what}" for what in ("start", "end", "error"))


def told(fleet: Fleet) -> list[str]:
    return [notice.event for notice in fleet.notices]


def carry_out(fleet: Fleet, agent: ScriptedAgent) -> None:
    (cast,) = [c for c in fleet.publish() if c.method == "terminate_instance"]
    agent.carry_out(cast.command)


def test_a_delete_tells_its_start_at_once_and_its_end_when_the_agent_has_answered(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    vm = fleet.deploy(h1)
    job = fleet.delete(reason="old")
    assert told(fleet) == [START]
    carry_out(fleet, h1)
    assert told(fleet) == [START, END]
    start, end = fleet.notices
    assert start.payload["hosts"] == ["h1"]
    for notice in (start, end):
        assert notice.priority == "INFO"
        for key, value in (
            ("instance", vm.uuid),
            ("name", "web-1"),
            ("project", "default"),
            ("host", "h1"),
            ("job", job["uuid"]),
            ("operator", "ann"),
            ("reason", "old"),
        ):
            assert notice.payload[key] == value
    assert end.payload["proven"] is True


def test_a_repeated_answer_and_a_repeated_delete_tell_nothing_more(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    fleet.delete()
    fleet.delete()
    (cast,) = [c for c in fleet.publish() if c.method == "terminate_instance"]
    result = h1.carry_out(cast.command)
    h1.say(results=(result,))
    fleet.delete(idempotent=True)
    fleet.pass_(2 * INTERVAL_S, h1)
    assert told(fleet) == [START, END]


def test_an_end_from_the_database_alone_says_that_it_is_not_proven(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    others = [ScriptedAgent(fleet, f"other-{n}").up() for n in range(2)]
    fleet.pass_(DOWN_S + INTERVAL_S, *others)
    assert h1.row.state is HostState.DOWN
    fleet.delete()
    assert told(fleet) == [START, END]
    assert fleet.notices[-1].payload["proven"] is False
    assert "h1 is DOWN" in fleet.notices[-1].payload["text"]


def test_a_delete_that_times_out_tells_an_error_and_its_end_once_that_is_true(
    fleet_of: Callable[..., Fleet],
) -> None:
    fleet = fleet_of(delete_timeout=60.0)
    h1 = ScriptedAgent(fleet).up()
    fleet.deploy(h1)
    fleet.delete()
    fleet.wire.take()
    fleet.pass_(70.0, h1)
    assert told(fleet) == [START, ERROR]
    assert fleet.notices[-1].priority == "ERROR"
    casts = [c for c in fleet.publish() if c.method == "terminate_instance"]
    h1.carry_out(casts[-1].command)
    fleet.pass_(INTERVAL_S, h1)
    assert told(fleet) == [START, ERROR, END]


def test_a_delete_that_is_refused_or_only_foreseen_tells_nothing(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.put(fleet.deploy(h1), protected=True)
    fleet.delete(dry_run=True)
    with pytest.raises(VmProtected):
        fleet.delete()
    assert told(fleet) == []


def test_what_was_rolled_back_is_not_told(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1)

    def fails(tx: object) -> None:
        tx.notify("instance.delete.end", {})  # type: ignore[attr-defined]
        raise OSError("the process is about to die")

    with pytest.raises(OSError, match="about to die"):
        fleet.store.run(fails)
    assert told(fleet) == []


def test_a_manager_tells_what_it_has_committed_and_what_waits_when_it_stops(
    fleet: Fleet, store: Store
) -> None:
    runtime, sent = Runtime("manager"), list[Notice]()
    own = copy.copy(store)
    own.runtime = runtime
    bus = Broker(Runtime("edge")).bus(runtime)
    manager = Manager(fleet.cfg, bus, runtime, own, Notifier(sent.append))
    own.close = lambda: None  # type: ignore[method-assign] # the fleet goes on with it
    manager.start()
    own.run(lambda tx: tx.notify("first", {}))
    wait_until(lambda: len(sent) == 1, 20, "the first notice is sent")
    runtime.stopping.set()
    own.run(lambda tx: tx.notify("last", {}))
    manager.stop()
    assert [notice.event for notice in sent] == ["first", "last"]

"""Canaries: a host that speaks and is deaf to commands is SUSPECT within bounded time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from common import messages as m
from common.states import HostState
from manager.flows import canary, liveness
from manager.store.commands import CommandRow
from manager.store.events import Event
from tests.functional.fleet import DOWN_S, INTERVAL_S, Fleet, ScriptedAgent

EVERY_S = 30.0
NOOP = m.CommandKind.NOOP


@pytest.fixture
def fleet(fleet_of: Callable[..., Fleet]) -> Fleet:
    return fleet_of(canary_interval=EVERY_S, resend_after=5.0)


def sent(fleet: Fleet) -> list[m.Command]:
    return [c.command for c in fleet.publish() if c.command.kind is NOOP]


def test_every_host_with_a_session_gets_one_and_its_answer_leaves_no_trace(
    fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent
) -> None:
    first = sent(fleet)
    assert sorted(c.host for c in first) == ["h1", "h2"]
    events = len(fleet.rows(Event))
    for agent, command in zip((h1, h2), sorted(first, key=lambda c: c.host), strict=True):
        assert command.instance == ""
        agent.succeed(command, look=None)
    assert fleet.rows(CommandRow) == []
    assert len(fleet.rows(Event)) == events
    assert fleet.letters() == []
    fleet.pass_(7.0, h1, h2, step=7.0)
    assert fleet.ask("host_show", host="h1")["canary_age_s"] == 7.0
    assert sent(fleet) == []
    fleet.pass_(EVERY_S, h1, h2)
    assert sorted(c.host for c in sent(fleet)) == ["h1", "h2"]


def test_an_answer_that_comes_again_or_late_is_confirmed_and_says_nothing(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    (command,) = sent(fleet)
    result = h1.succeed(command, look=None)
    heard = h1.row.canary_heard_at
    fleet.pass_(EVERY_S, h1)
    fleet.wire.take()
    h1.say(results=(result,))
    assert fleet.wire.take("confirm")
    assert h1.row.canary_heard_at == heard
    assert h1.row.canary is not None
    assert fleet.letters() == []


def test_an_agent_that_does_not_know_canaries_yet_answers_one_all_the_same(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    (command,) = sent(fleet)
    refusal = h1.result(command, m.Outcome.NOT_RUN, error_code="UNKNOWN_KIND")
    h1.say(results=(refusal,))
    fleet.pass_(2 * EVERY_S - INTERVAL_S, h1)
    assert h1.row.canary_heard_at is not None


def test_a_deaf_agent_becomes_suspect_with_the_reason_and_up_again_with_its_answer(
    fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent
) -> None:
    waited = 0.0
    while h1.row.state is HostState.UP:
        waited += INTERVAL_S
        assert waited <= canary.limit_s(fleet.cfg) + INTERVAL_S
        for command in sent(fleet):
            if command.host == "h2":
                h2.succeed(command, look=None)
        fleet.pass_(INTERVAL_S, h1, h2)
    assert h1.row.state is HostState.SUSPECT
    assert "canary" in h1.row.reason
    assert h2.row.state is HostState.UP
    assert "HOST_SUSPECT" in {f["code"] for f in fleet.ask("doctor")["findings"]}
    # However long it stays deaf: one canary, cast again and again, and one event.
    fleet.pass_(5 * DOWN_S, h1, h2)
    (row,) = fleet.rows(CommandRow, host="h1")
    told = [e for e in fleet.events("host.state") if e.object == "h1" and "canary" in e.text]
    assert len(told) == 1
    casts = [c for c in sent(fleet) if c.host == "h1"]
    assert len(casts) > 1
    assert {c.id for c in casts} == {row.id}
    again = casts[-1]
    h1.succeed(again, look=None)
    fleet.tick()
    assert h1.row.state is HostState.UP


def test_managers_that_could_not_have_heard_the_answer_do_not_miss_it(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    sent(fleet)
    fleet.hearing = False
    fleet.clock.move(10 * EVERY_S)
    h1.beat()
    fleet.store.run(
        liveness.heard_own_beat, "m-1", "manager-1", fleet.clock.now(), INTERVAL_S, "started"
    )
    fleet.tick()
    assert h1.row.state is HostState.UP


def test_a_session_that_is_over_takes_its_canary_with_it(
    fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent
) -> None:
    assert fleet.rows(CommandRow, host="h1")
    fleet.pass_(DOWN_S + INTERVAL_S, h2)
    assert h1.row.state is HostState.DOWN
    assert fleet.rows(CommandRow, host="h1") == []
    fleet.wire.take()
    h1.hello()
    h1.beat(full=True)
    fleet.tick()
    assert h1.row.state is HostState.UP
    assert [c.host for c in sent(fleet) if c.host == "h1"] == ["h1"]


def test_none_are_sent_when_switched_off(fleet_of: Callable[..., Fleet]) -> None:
    fleet = fleet_of(canary_interval=0.0)
    h1 = ScriptedAgent(fleet, "h1").up()
    fleet.pass_(10 * EVERY_S, h1)
    assert fleet.rows(CommandRow) == []
    assert h1.row.state is HostState.UP

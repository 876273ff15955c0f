"""Hello and sessions; one host name, one agent."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from common import messages as m
from common.errors import BadMessage, BadRequest, WrongFleet
from common.model import Kind
from common.states import HostState, PowerState, VmState
from manager.flows import reports
from manager.flows.hello import HostNameClash
from manager.intake import hello as door
from manager.store.hosts import Host
from manager.store.model import Object
from tests.functional.fleet import DOWN_S, INTERVAL_S, Fleet, ScriptedAgent

LATE_S = 2.5 * INTERVAL_S


# hello


def test_an_unknown_host_is_created_disabled_and_its_strangers_are_listed(
    fleet_of: Callable[..., Fleet],
) -> None:
    fleet = fleet_of(auto_enable_hosts=False)
    agent = ScriptedAgent(fleet)
    agent.guest(name="byhand")
    agent.up()
    assert (agent.row.enabled, agent.row.state) == (False, HostState.UP)
    assert [a["name"] for a in fleet.ask("alien_list")["aliens"]] == ["byhand"]
    assert fleet.ask("host_enable", host="h1")["host"]["enabled"] is True


def test_devstack_may_have_hosts_enable_themselves(fleet: Fleet) -> None:
    assert ScriptedAgent(fleet).up().row.enabled


def test_a_known_host_is_not_enabled_by_another_hello(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.ask("host_disable", host="h1", reason="its fan is loud")
    h1.restart().hello()
    assert not h1.row.enabled
    assert h1.row.operator_reason == "its fan is loud"


def test_each_hello_opens_the_next_session(fleet: Fleet, h1: ScriptedAgent) -> None:
    first = h1.session
    assert first == 1
    assert h1.hello().session == 2
    assert h1.restart().hello().session == 3


def test_a_repeated_hello_gets_the_same_session(fleet: Fleet, h1: ScriptedAgent) -> None:
    greeting = h1.greeting()
    lost = h1.lost_hello(greeting)
    assert h1.hello(greeting).session == lost.session
    assert h1.hello().session == lost.session + 1


def test_a_repeated_hello_after_the_session_has_ended_gets_another(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    ScriptedAgent(fleet, "h2").up()
    greeting = h1.greeting()
    lost = h1.lost_hello(greeting)
    fleet.ask("host_set_down", host="h1", reason="smoke")
    fleet.ask("host_unset_down", host="h1")
    assert h1.hello(greeting).session > lost.session


def test_the_store_tells_its_timeline_and_a_mark_that_rises(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    first, second = h1.hello(), h1.hello()
    assert first.store_timeline == second.store_timeline
    assert second.store_mark == first.store_mark
    fleet.pass_(60.0)
    assert h1.lost_hello().store_mark > second.store_mark


def test_another_fleets_hello_is_refused_and_leaves_nothing(fleet: Fleet) -> None:
    with pytest.raises(WrongFleet, match="fleet-2"):
        ScriptedAgent(fleet).hello(fleet="fleet-2")
    assert fleet.rows(Host) == []


@pytest.mark.parametrize(("interval_s", "good"), [(23.9, True), (24.0, False), (60.0, False)])
def test_an_interval_too_long_for_service_down_time_is_refused_with_the_numbers(
    fleet: Fleet, interval_s: float, good: bool
) -> None:
    agent = ScriptedAgent(fleet, interval_s=interval_s)
    if good:
        assert agent.hello().session == 1
        return
    with pytest.raises(BadRequest, match=f"{interval_s:g} s") as caught:
        agent.hello()
    assert "60 s" in caught.value.message
    assert "below 24" in caught.value.remedy
    assert fleet.rows(Host) == []


def test_a_hello_that_can_not_be_read_is_refused(fleet: Fleet) -> None:
    for kwargs in ({}, {"hello": {}}, {"hello": None}, {"hello": {}, "more": 1}):
        with pytest.raises(BadMessage):
            door.hello(fleet.store, fleet.cfg, kwargs)
    assert fleet.rows(Host) == []


def test_a_hello_through_its_door_is_answered_with_plain_data(fleet: Fleet) -> None:
    greeting = m.builtins(ScriptedAgent(fleet).greeting())
    answer = door.hello(fleet.store, fleet.cfg, {"hello": greeting})
    assert m.convert(answer, m.Welcome).session == 1


def test_what_is_unfinished_and_still_wanted_is_named(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.create(host="h1")
    (cast,) = fleet.publish()
    welcome = h1.restart().hello(unfinished=(cast.command.id, "of-another-life"))
    assert welcome.wanted == (cast.command.id,)


def test_a_command_that_has_ended_is_not_wanted(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.create(host="h1")
    (cast,) = fleet.publish()
    h1.carry_out(cast.command)
    assert h1.restart().hello(unfinished=(cast.command.id,)).wanted == ()


def test_a_command_that_never_arrived_is_due_at_once_in_the_new_session(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.create(host="h1")
    (lost,) = fleet.publish()
    assert fleet.publish() == []
    session = h1.restart().hello().session
    (again,) = fleet.publish()
    assert again.command.id == lost.command.id
    assert (lost.command.session, again.command.session) == (session - 1, session)


def test_a_hello_casts_the_terminates_that_it_issues_once(
    fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent
) -> None:
    """One for each open tombstone; they are claimed with it, and none is cast a second time."""
    for name in ("one", "two"):
        fleet.deploy(h1, name)
    fleet.pass_(DOWN_S + INTERVAL_S, h2)
    assert h1.row.state is HostState.DOWN
    for name in ("one", "two"):
        assert fleet.delete(name)["state"] == "SUCCEEDED"
    assert h1.terminates() == []
    fleet.wire.take()
    session = h1.restart().hello().session
    casts = fleet.wire.take()
    assert {c.command.id for c in casts} == {row.id for row in h1.terminates()}
    assert {c.command.session for c in casts} == {session}
    assert len(casts) == 2
    assert {row.publishes for row in h1.terminates()} == {1}
    assert fleet.publish() == []


def test_what_a_repeated_hello_finds_under_way_is_cast_again_and_not_issued_anew(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    """Its answer was lost: the agent has dropped what came for a session it had not heard of."""
    fleet.deploy(h1)
    fleet.delete(force=True, reason="it has to be gone")
    fleet.wire.take()
    greeting = h1.restart().greeting()
    h1.lost_hello(greeting)
    fleet.publish()
    h1.hello(greeting)
    (cast,) = fleet.publish()
    (row,) = h1.terminates()
    assert (cast.command.id, cast.command.session) == (row.id, h1.session)


# a lost journal


def test_a_known_journal_needs_no_floors(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1)
    assert h1.restart().hello().floors == ()


def test_a_lost_journal_is_given_its_floors(fleet: Fleet, h1: ScriptedAgent) -> None:
    vm = fleet.deploy(h1)
    welcome = h1.restart().hello(journal_id="a-new-one", store_timeline=None)
    assert welcome.floors == (m.FloorEntry(vm.uuid, vm.generation),)


def test_the_floors_stay_below_what_is_still_wanted(fleet: Fleet, h1: ScriptedAgent) -> None:
    vm = fleet.deploy(h1)
    fleet.ask("vm_stop", vm="web-1")
    (cast,) = fleet.publish()
    welcome = h1.restart().hello(journal_id="a-new-one", store_timeline=None)
    assert welcome.floors == (m.FloorEntry(vm.uuid, cast.command.generation - 1),)


def test_the_floors_come_again_when_the_welcome_was_lost(fleet: Fleet, h1: ScriptedAgent) -> None:
    """The journal is known by now, but it has never heard what is forbidden."""
    vm = fleet.deploy(h1)
    greeting = h1.restart().greeting(journal_id="a-new-one", store_timeline=None)
    h1.lost_hello(greeting)
    floors = (m.FloorEntry(vm.uuid, vm.generation),)
    assert h1.lost_hello(greeting).floors == floors
    # And when the agent has been started again before it got an answer.
    other = h1.restart().greeting(journal_id="a-new-one", store_timeline=None)
    assert h1.hello(other).floors == floors


# reports outside of a session


def without_session(agent: ScriptedAgent) -> None:
    agent.session = None


def in_an_ended_one(agent: ScriptedAgent) -> None:
    agent.fleet.ask("host_set_down", host=agent.host, reason="to end it")
    agent.fleet.ask("host_unset_down", host=agent.host)


def in_an_unknown_one(agent: ScriptedAgent) -> None:
    agent.session = 99


@pytest.mark.parametrize("how", [without_session, in_an_ended_one, in_an_unknown_one])
def test_out_of_session_it_is_heard_receipts_and_results_count_its_inventory_does_not(
    fleet: Fleet, h1: ScriptedAgent, how: Callable[[ScriptedAgent], None]
) -> None:
    ScriptedAgent(fleet, "h2").up()
    first = fleet.deploy(h1, "first")
    fleet.ask("vm_stop", vm="first")
    (stop,) = fleet.publish()
    job = fleet.create("second", host="h1")
    (start,) = fleet.publish()
    how(h1)
    fleet.wire.take()
    fleet.clock.move(7)

    h1.guest(name="byhand")
    h1.change(first.uuid, vcpus=4)
    result = h1.result(start.command, look=None)
    receipts = (m.Receipt(command=stop.command.id, step=m.Step.STARTED),)
    h1.beat(full=True, receipts=receipts, results=(result,))

    assert (fleet.clock.now() - h1.row.heard_at).total_seconds() == 0
    assert fleet.shown(job)["state"] == "SUCCEEDED"
    assert fleet.shown({"uuid": fleet.vm("first").job})["receipts"][0]["state"] == "STARTED"
    assert [s.name for s in h1.sightings()] == ["first"]
    assert fleet.wire.take("hello_wanted", "h1")
    assert fleet.wire.take("confirm", "h1")[0].kwargs == {"ids": [result.id]}


def test_results_on_their_own_stream_out_of_session_count_and_ask_for_a_hello(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    job = fleet.create(host="h1")
    (start,) = fleet.publish()
    h1.session = None
    h1.succeed(start.command, look=None)
    assert fleet.shown(job)["state"] == "SUCCEEDED"
    assert fleet.wire.take("hello_wanted", "h1")


def test_a_report_of_a_host_nobody_knows_is_asked_for_a_hello(fleet: Fleet) -> None:
    ScriptedAgent(fleet, "stranger").beat(full=True)
    assert fleet.rows(Host) == []
    assert [c.host for c in fleet.wire.take("hello_wanted")] == ["stranger"]


def test_in_session_nobody_is_asked_for_a_hello(fleet: Fleet, h1: ScriptedAgent) -> None:
    h1.beat(full=True)
    h1.say()
    assert fleet.wire.take("hello_wanted") == []


def test_another_fleets_report_is_refused(fleet: Fleet, h1: ScriptedAgent) -> None:
    before = fleet.everything()
    for handler, message in (
        (reports.heartbeat, h1.heartbeat(full=True, fleet="fleet-2")),
        (reports.answers, h1.answers(fleet="fleet-2")),
    ):
        with pytest.raises(WrongFleet):
            fleet.run(handler, message)
    assert fleet.everything() == before


# HOST_NAME_CLASH


def rivals(fleet: Fleet, h1: ScriptedAgent) -> ScriptedAgent:
    """Another machine that calls itself h1 too; both have been heard for 2.5 intervals."""
    other = ScriptedAgent(fleet, "h1")
    other.hello()
    for _ in range(4):
        fleet.pass_(INTERVAL_S, h1, other)
    return other


def test_two_runs_under_one_name_over_two_and_a_half_intervals_are_a_clash(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    other = rivals(fleet, h1)
    assert h1.row.clash
    assert (h1.row.state, h1.row.session_open) == (HostState.SUSPECT, False)
    assert "HOST_NAME_CLASH" in h1.row.reason
    assert len(fleet.events("HOST_NAME_CLASH")) == 1
    for agent in (h1, other):
        with pytest.raises(HostNameClash):
            agent.lost_hello()
    assert "HOST_NAME_CLASH" in {f["code"] for f in fleet.ask("doctor")["findings"]}


def test_in_a_clash_neither_is_asked_for_a_hello_or_given_commands(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    other = rivals(fleet, h1)
    fleet.wire.take()
    fleet.ask("vm_stop", vm="web-1")
    fleet.pass_(2 * INTERVAL_S, h1, other)
    assert fleet.publish() == []
    assert fleet.wire.take("hello_wanted") == []


def test_in_a_clash_no_inventory_counts(fleet: Fleet, h1: ScriptedAgent) -> None:
    vm = fleet.deploy(h1)
    other = rivals(fleet, h1)
    other.beat(full=True)
    assert fleet.vm().power_state is PowerState.RUNNING
    assert fleet.vm().vm_state is VmState.ACTIVE
    assert [s.instance for s in h1.sightings()] == [vm.uuid]


def test_the_clash_is_over_when_one_has_been_silent_for_service_down_time(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    rivals(fleet, h1)
    fleet.pass_(DOWN_S, h1)
    assert h1.row.clash
    fleet.pass_(2 * INTERVAL_S, h1)
    assert not h1.row.clash
    assert fleet.wire.take("hello_wanted", "h1")
    h1.hello()
    h1.beat(full=True)
    fleet.tick()
    assert h1.row.state is HostState.UP


def test_an_agent_that_is_restarted_quickly_is_no_clash(fleet: Fleet, h1: ScriptedAgent) -> None:
    late = h1.heartbeat()
    h1.restart().hello()
    h1.send(late)  # was still in the queue
    for _ in range(8):
        fleet.pass_(INTERVAL_S, h1)
    assert not h1.row.clash
    assert h1.row.state is HostState.UP
    assert fleet.events("HOST_NAME_CLASH") == []


def test_a_late_sign_of_an_old_run_does_not_begin_a_clash(fleet: Fleet, h1: ScriptedAgent) -> None:
    """A gap of more than 2.5 intervals is no overlap: the count begins anew."""
    late = [h1.heartbeat() for _ in range(2)]
    h1.restart().hello()
    for heartbeat in late:
        fleet.pass_(3 * INTERVAL_S, h1)
        h1.send(heartbeat)
    fleet.pass_(INTERVAL_S, h1)
    assert not h1.row.clash


def test_an_agent_that_is_restarted_again_and_again_is_no_clash(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    for _ in range(12):
        fleet.pass_(INTERVAL_S / 2, h1, step=INTERVAL_S / 2)
        h1.restart().hello()
    assert fleet.events("HOST_NAME_CLASH") == []
    assert LATE_S < 12 * INTERVAL_S / 2  # long enough for a clash of two that both go on


def test_a_host_stands_where_the_model_says(fleet: Fleet) -> None:
    agent = ScriptedAgent(fleet, "h1")
    agent.hello()
    assert (agent.row.cluster, agent.row.tags) == (None, ())
    spec = {"cluster": "c1", "tags": ["ssd"]}
    now = fleet.clock.now()
    place = Object(kind=Kind.HOST, name="h1", spec=spec, created_at=now, changed_at=now)
    fleet.store.run(lambda tx: tx.insert(place))
    agent.restart().hello()
    assert (agent.row.cluster, agent.row.tags) == ("c1", ("ssd",))

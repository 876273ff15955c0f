"""Section 2 on its way to the database: what is heard, what is judged, what follows from it."""

from __future__ import annotations

from common import messages as m
from common.states import HostState
from manager.flows import liveness
from manager.store.hosts import ManagerRow
from tests.functional.fleet import DOWN_S, INTERVAL_S, Clock, Fleet, ScriptedAgent

UP, SUSPECT, DOWN = HostState.UP, HostState.SUSPECT, HostState.DOWN


def states(*agents: ScriptedAgent) -> list[HostState]:
    return [agent.row.state for agent in agents]


def test_silence_makes_suspect_then_down_and_each_change_is_told_with_its_numbers(
    fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent
) -> None:
    seen = []
    for _ in range(8):
        fleet.pass_(INTERVAL_S, h2)
        seen.append(h1.row.state)
    assert seen == [UP, UP, SUSPECT, SUSPECT, SUSPECT, SUSPECT, DOWN, DOWN]
    told = [e.text for e in fleet.events("host.state") if e.object == "h1"]
    assert sorted(t.partition(":")[0] for t in told) == [
        "SUSPECT -> DOWN",
        "SUSPECT -> UP",
        "UP -> SUSPECT",
    ]
    assert any("70.0 s" in t for t in told)
    assert not h1.row.session_open
    assert h1.row.state_since < fleet.clock.now()


def test_the_agents_own_clock_decides_nothing(fleet: Fleet, h1: ScriptedAgent) -> None:
    wrong = fleet.clock.now().replace(year=2031)
    for _ in range(10):
        fleet.clock.move(INTERVAL_S)
        h1.beat(sent_at=wrong)
        fleet.tick()
    assert h1.row.state is UP
    assert "CLOCK_SKEW" in {f["code"] for f in fleet.ask("doctor")["findings"]}


def test_a_host_that_returns_is_suspect_until_it_has_a_session_then_up(
    fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent
) -> None:
    fleet.pass_(DOWN_S + INTERVAL_S, h2)
    assert h1.row.state is DOWN
    fleet.wire.take()
    fleet.pass_(INTERVAL_S, h1, h2)
    assert h1.row.state is SUSPECT
    assert "session" in h1.row.reason
    assert fleet.wire.take("hello_wanted", "h1")
    h1.hello()
    fleet.tick()
    assert h1.row.state is SUSPECT
    assert "has not told its guests" in h1.row.reason
    h1.beat(full=True)
    fleet.tick()
    assert h1.row.state is UP


def test_no_manager_that_hears_keeps_every_silent_host_as_it_was(
    fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent
) -> None:
    fleet.hearing = False
    fleet.pass_(3 * DOWN_S)
    assert states(h1, h2) == [UP, UP]
    assert h1.row.blind
    assert h2.row.blind
    assert "MANAGERS_BLIND" in {f["code"] for f in fleet.ask("doctor")["findings"]}
    assert fleet.ask("host_show", host="h1")["blind"] is True


def test_a_cluster_that_has_just_started_does_not_judge_what_it_did_not_hear(
    fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent
) -> None:
    fleet.hearing = False
    fleet.clock.move(10 * DOWN_S)
    for gapless_s, expected in ((0.0, UP), (DOWN_S - 1, UP), (DOWN_S, DOWN)):
        h2.beat()
        fleet.store.run(
            liveness.heard_own_beat, "m-2", "manager-2", fleet.clock.now(), gapless_s, ""
        )
        fleet.tick()
        assert h1.row.state is expected


def test_the_best_hearing_manager_counts_and_a_silent_one_does_not(fleet: Fleet) -> None:
    run = fleet.store.run
    run(liveness.heard_own_beat, "old", "a", fleet.clock.now(), 500.0, "")
    fleet.clock.move(1)
    run(liveness.heard_own_beat, "new", "b", fleet.clock.now(), 20.0, "")
    assert run(liveness.hearing, fleet.cfg).gapless_s == 501.0
    fleet.clock.move(liveness.deaf_after_s(fleet.cfg))
    run(liveness.heard_own_beat, "new", "b", fleet.clock.now(), 23.0, "")
    assert run(liveness.hearing, fleet.cfg).gapless_s == 23.0
    fleet.clock.move(liveness.deaf_after_s(fleet.cfg) + 1)
    assert run(liveness.hearing, fleet.cfg).gapless_s is None


def test_managers_that_are_long_gone_are_forgotten(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.store.run(liveness.heard_own_beat, "old", "a", fleet.clock.now(), 1.0, "")
    fleet.clock.move(11 * DOWN_S)
    fleet.tick()
    assert [row.id for row in fleet.rows(ManagerRow)] == ["m-1"]


def test_mass_silence_is_stored_told_once_and_ends_when_they_speak(
    fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent
) -> None:
    h3 = ScriptedAgent(fleet, "h3").up()
    fleet.pass_(DOWN_S + INTERVAL_S)
    group = (h1, h2, h3)
    assert states(*group) == [SUSPECT] * 3
    assert all(a.row.mass_silent for a in group)
    assert {e.object for e in fleet.events("host.mass_silence")} == {"h1", "h2", "h3"}
    fleet.pass_(20 * DOWN_S, step=60.0)
    assert states(*group) == [SUSPECT] * 3
    assert len(fleet.events("host.mass_silence")) == 3
    assert "MASS_SILENCE" in {f["code"] for f in fleet.ask("doctor")["findings"]}
    fleet.pass_(INTERVAL_S, h1, h2)
    # What has not spoken is as doubtful as before, whoever else has come back.
    assert states(*group) == [UP, UP, SUSPECT]
    assert [a.row.mass_silent for a in group] == [False, False, True]
    fleet.pass_(INTERVAL_S, *group)
    assert states(*group) == [UP, UP, UP]
    assert not any(a.row.mass_silent for a in group)


def test_hosts_that_fall_silent_one_after_the_other_are_a_mass_in_the_end(
    fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent
) -> None:
    h3, h4 = ScriptedAgent(fleet, "h3").up(), ScriptedAgent(fleet, "h4").up()
    fleet.pass_(2 * DOWN_S, h2, h3, h4)
    assert states(h1) == [DOWN]
    fleet.pass_(2 * DOWN_S, h3, h4)
    assert states(h1, h2) == [DOWN, DOWN]
    fleet.pass_(3 * INTERVAL_S, h4)
    assert states(h1, h2, h3, h4) == [SUSPECT, SUSPECT, SUSPECT, UP]


def test_a_host_that_was_dead_long_before_does_not_keep_a_mass_alive(
    fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent
) -> None:
    rest = [ScriptedAgent(fleet, f"h{n}").up() for n in range(3, 8)]
    fleet.pass_(11 * DOWN_S, *rest, step=20.0)
    assert states(h1, h2) == [DOWN, DOWN]
    fleet.pass_(DOWN_S + INTERVAL_S, *rest[3:])
    assert states(h1, *rest[:3]) == [SUSPECT] * 4
    fleet.pass_(INTERVAL_S, *rest[1:])
    assert states(h1, h2, rest[0]) == [DOWN, DOWN, SUSPECT]
    assert states(*rest[1:]) == [UP] * 4


def test_what_an_operator_set_is_never_cleared_by_the_machine(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.ask("host_set_down", host="h1", reason="smoke")
    assert (h1.row.state, h1.row.judged) == (DOWN, "1")
    h1.restart().hello()
    fleet.pass_(5 * INTERVAL_S, h1)
    assert (h1.row.state, h1.row.forced_down, h1.row.operator_reason) == (DOWN, True, "smoke")
    fleet.ask("host_unset_down", host="h1")
    fleet.pass_(INTERVAL_S, h1)
    assert h1.row.state is UP


def test_setting_down_needs_a_reason_and_is_told(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.ask("host_set_down", host="h1", reason="smoke", operator="ann")
    (event,) = fleet.events("host.set_down")
    assert (event.source, event.text) == ("ann", "smoke")
    fleet.ask("host_set_down", host="h1", reason="smoke again")
    assert len(fleet.events("host.set_down")) == 1


def test_a_sick_driver_is_suspect_with_its_own_words(fleet: Fleet, h1: ScriptedAgent) -> None:
    sick = m.DriverReport(name="simulated", healthy=False, message="qemu is stuck")
    h1.beat(driver=sick, inventory=None)
    fleet.tick()
    assert h1.row.state is SUSPECT
    assert "qemu is stuck" in h1.row.reason
    h1.beat()
    fleet.tick()
    assert h1.row.state is UP


def test_a_steady_host_is_not_written_again_with_every_tick(
    fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent, clock: Clock
) -> None:
    fleet.pass_(DOWN_S + INTERVAL_S, h2)
    before = h1.row
    fleet.pass_(3 * INTERVAL_S, h2)
    assert h1.row == before
    assert clock is fleet.clock

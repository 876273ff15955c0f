"""Section 4 of the decision tables: what a reported power state changes, row by row."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.states import PowerState as P
from common.states import TaskState, VmState
from manager.rules.power import Act, Held, Policy, Reaction, Seen, react

POLICY = Policy(on_unexpected_running="accept", missing_grace_s=30.0)
STOP = Policy(on_unexpected_running="stop", missing_grace_s=30.0)
INTERVAL_S = 10.0
OFF = [P.SHUTOFF, P.SHUTDOWN, P.CRASHED]
ON = [P.RUNNING, P.BLOCKED]
TASKS = [t for t in TaskState if t is not TaskState.NONE]
LIVE = [s for s in VmState if s not in (VmState.DELETED, VmState.SHELVED_OFFLOADED)]


def held(state: VmState, task: TaskState = TaskState.NONE, **changes: object) -> Held:
    return replace(Held(state, task, INTERVAL_S), **changes)  # type: ignore[arg-type]


def see(state: VmState, power: P | None, policy: Policy = POLICY, **changes: object) -> Reaction:
    return react(held(state), replace(Seen(power), **changes), policy)  # type: ignore[arg-type]


def gone(state: VmState = VmState.ACTIVE, *, reports: int = 2, age_s: float = 30.0) -> Reaction:
    return see(state, None, absent_reports=reports, absent_s=age_s)


@pytest.mark.parametrize("state", list(VmState))
@pytest.mark.parametrize("here", [True, False])
def test_section4_row_1_a_doomed_guest_is_reaped_wherever_the_instance_lives(
    state: VmState, here: bool
) -> None:
    found = react(
        held(state, TaskState.MIGRATING), Seen(P.RUNNING, doomed=True, on_its_host=here), POLICY
    )
    assert (found.row, found.act, found.keep_power) == (1, Act.REAP, False)


def test_section4_row_2_seen_on_another_host_is_an_alarm_and_changes_nothing() -> None:
    found = see(VmState.ACTIVE, P.SHUTOFF, on_its_host=False)
    assert (found.row, found.act) == (2, Act.ALARM_DUPLICATE)
    assert (found.vm_state, found.keep_power) == (None, False)


@pytest.mark.parametrize("power", [P.RUNNING, P.PAUSED, P.SHUTOFF])
def test_section4_row_2_the_other_end_of_a_migration_says_nothing(power: P) -> None:
    found = see(VmState.MIGRATING, power, on_its_host=False)
    assert (found.row, found.act, found.keep_power) == (2, Act.IGNORE, False)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("power", [P.RUNNING, P.SHUTOFF, P.PAUSED, P.CRASHED])
def test_section4_row_3_while_a_task_is_under_way_only_the_power_state_is_kept(
    task: TaskState, power: P
) -> None:
    found = react(held(VmState.ACTIVE, task), Seen(power, held_s=99.0), STOP)
    assert (found.row, found.act, found.vm_state, found.keep_power) == (3, Act.NOTHING, None, True)


@pytest.mark.parametrize("task", TASKS)
def test_section4_row_3_nobody_is_missing_while_a_task_is_under_way(task: TaskState) -> None:
    seen = Seen(None, absent_reports=9, absent_s=999.0)
    found = react(held(VmState.ACTIVE, task), seen, POLICY)
    assert (found.row, found.act) == (3, Act.NOTHING)


def test_section4_row_4_a_migrating_vm_that_is_not_there_waits_for_a_later_report() -> None:
    found = gone(VmState.MIGRATING, reports=9, age_s=999.0)
    assert (found.row, found.act, found.keep_power) == (4, Act.IGNORE, False)


@pytest.mark.parametrize("power", OFF + ON + [P.PAUSED])
def test_section4_row_5_of_a_migrating_vm_only_the_power_state_is_kept(power: P) -> None:
    found = see(VmState.MIGRATING, power, STOP, held_s=99.0)
    assert (found.row, found.act, found.keep_power) == (5, Act.NOTHING, True)


@pytest.mark.parametrize("state", [VmState.ACTIVE, VmState.PAUSED, VmState.SUSPENDED])
@pytest.mark.parametrize("power", OFF)
def test_section4_row_6_a_guest_that_is_off_makes_the_vm_shutoff(state: VmState, power: P) -> None:
    found = see(state, power)
    assert (found.row, found.act, found.vm_state) == (6, Act.SET_STATE, VmState.SHUTOFF)
    assert ("crashed" if power is P.CRASHED else "shut down") in found.text


@pytest.mark.parametrize(
    "state", [VmState.SHUTOFF, VmState.PAUSED, VmState.SUSPENDED, VmState.ERROR]
)
@pytest.mark.parametrize("power", ON)
def test_section4_row_7_an_unexpected_runner_is_accepted_as_active(
    state: VmState, power: P
) -> None:
    found = see(state, power)
    assert (found.row, found.act, found.vm_state) == (7, Act.SET_STATE, VmState.ACTIVE)


@pytest.mark.parametrize("state", [VmState.SHUTOFF, VmState.PAUSED, VmState.SUSPENDED])
@pytest.mark.parametrize("power", ON)
def test_section4_row_7_or_is_stopped_again_where_that_is_the_policy(
    state: VmState, power: P
) -> None:
    found = see(state, power, STOP)
    assert (found.row, found.act, found.vm_state) == (7, Act.STOP_AGAIN, None)


def test_section4_row_7_an_error_that_no_host_caused_stays() -> None:
    found = react(held(VmState.ERROR, host_caused_error=False), Seen(P.RUNNING), POLICY)
    assert (found.row, found.act) == (12, Act.NOTHING)


@pytest.mark.parametrize(
    ("power", "state"), [(P.PAUSED, VmState.PAUSED), (P.SUSPENDED, VmState.SUSPENDED)]
)
def test_section4_row_8_a_long_pause_is_followed(power: P, state: VmState) -> None:
    found = see(VmState.ACTIVE, power, held_s=INTERVAL_S + 0.1)
    assert (found.row, found.act, found.vm_state) == (8, Act.SET_STATE, state)


@pytest.mark.parametrize(
    ("state", "power", "after"),
    [
        (VmState.PAUSED, P.SUSPENDED, VmState.SUSPENDED),
        (VmState.SUSPENDED, P.PAUSED, VmState.PAUSED),
    ],
)
def test_section4_row_8_a_vm_that_is_held_in_another_way_is_followed_too(
    state: VmState, power: P, after: VmState
) -> None:
    found = see(state, power, held_s=INTERVAL_S + 0.1)
    assert (found.row, found.act, found.vm_state) == (8, Act.SET_STATE, after)
    assert see(state, power, held_s=INTERVAL_S).act is Act.NOTHING


@pytest.mark.parametrize("power", [P.PAUSED, P.SUSPENDED])
def test_section4_row_8_a_moment_of_pause_is_not(power: P) -> None:
    found = see(VmState.ACTIVE, power, held_s=INTERVAL_S)
    assert (found.row, found.act, found.keep_power) == (8, Act.NOTHING, True)


@pytest.mark.parametrize("state", [VmState.SOFT_DELETED, VmState.SHELVED_OFFLOADED])
@pytest.mark.parametrize("power", ON)
@pytest.mark.parametrize("policy", [POLICY, STOP])
def test_section4_row_9_what_is_put_away_and_runs_is_stopped_again(
    state: VmState, power: P, policy: Policy
) -> None:
    found = see(state, power, policy)
    assert (found.row, found.act) == (9, Act.STOP_AGAIN)


@pytest.mark.parametrize("state", [s for s in LIVE if s is not VmState.MIGRATING])
def test_section4_row_10_absent_twice_and_for_the_grace_is_missing(state: VmState) -> None:
    found = gone(state)
    assert (found.row, found.act, found.vm_state) == (10, Act.FLAG_MISSING, None)
    assert "2 complete reports" in found.text


@pytest.mark.parametrize(("reports", "age_s"), [(1, 999.0), (2, 29.9), (9, 0.0)])
def test_section4_row_10_not_sooner(reports: int, age_s: float) -> None:
    found = gone(reports=reports, age_s=age_s)
    assert (found.row, found.act, found.keep_power) == (10, Act.IGNORE, False)


def test_section4_row_10_is_told_once() -> None:
    seen = Seen(None, absent_reports=9, absent_s=999.0)
    assert react(held(VmState.ACTIVE, missing=True), seen, POLICY).act is Act.IGNORE


@pytest.mark.parametrize("state", list(VmState))
def test_section4_row_11_a_listing_that_failed_says_nothing_of_whom_it_does_not_name(
    state: VmState,
) -> None:
    found = see(state, None, readable=False, absent_reports=9, absent_s=999.0)
    assert (found.row, found.act, found.keep_power) == (11, Act.IGNORE, False)


@pytest.mark.parametrize(
    ("state", "power"),
    [
        (VmState.ACTIVE, P.RUNNING),
        (VmState.SHUTOFF, P.SHUTOFF),
        (VmState.PAUSED, P.PAUSED),
        (VmState.BUILDING, P.RUNNING),
        (VmState.ERROR, P.SHUTOFF),
        (VmState.SOFT_DELETED, P.SHUTOFF),
        (VmState.RESIZED, P.RUNNING),
    ],
)
def test_section4_row_12_anything_else_is_only_written_down(state: VmState, power: P) -> None:
    found = see(state, power, STOP, held_s=99.0)
    assert (found.row, found.act, found.vm_state, found.keep_power) == (12, Act.NOTHING, None, True)


@given(
    state=st.sampled_from(VmState),
    task=st.sampled_from(TaskState),
    power=st.none() | st.sampled_from(P),
    readable=st.booleans(),
    doomed=st.booleans(),
    here=st.booleans(),
    held_s=st.floats(0, 1e6),
    reports=st.integers(0, 100),
    absent_s=st.floats(0, 1e6),
    policy=st.sampled_from([POLICY, STOP]),
)
def test_section4_every_report_of_every_vm_has_one_row_and_nothing_kills_in_silence(
    state: VmState,
    task: TaskState,
    power: P | None,
    readable: bool,
    doomed: bool,
    here: bool,
    held_s: float,
    reports: int,
    absent_s: float,
    policy: Policy,
) -> None:
    seen = Seen(power, readable, doomed, here, held_s, reports, absent_s)
    found = react(held(state, task), seen, policy)
    assert 1 <= found.row <= 12
    assert (found.act is Act.REAP) == (doomed and power is not None)
    assert (found.vm_state is not None) == (found.act is Act.SET_STATE)
    if task is not TaskState.NONE:
        assert found.vm_state is None
        assert found.act is not Act.STOP_AGAIN
    if power is None:
        # Absence is never evidence for more than a flag.
        assert found.act in (Act.IGNORE, Act.NOTHING, Act.FLAG_MISSING, Act.ALARM_DUPLICATE)
        assert found.vm_state is None

"""The state machines: every pair of state and event, known or not."""

from __future__ import annotations

import enum
from typing import Any

import pytest

from common.errors import InvalidTransition
from common.states import (
    COMMAND,
    HOST,
    JOB,
    CommandEffect,
    CommandEvent,
    CommandState,
    HostEffect,
    HostState,
    JobEffect,
    JobEvent,
    JobState,
    Machine,
    PowerState,
)

C, E = CommandState, CommandEvent
OPEN = [C.ACCEPTED, C.PUBLISHED, C.RECEIVED, C.STARTED]
ENDS = {
    E.SUCCEED: C.SUCCEEDED,
    E.FAIL: C.FAILED,
    E.NOT_RUN: C.NOT_RUN,
    E.GIVE_UP: C.UNKNOWN,
}

MACHINES: list[tuple[Machine[Any, Any, Any], type[enum.Enum], type[enum.Enum]]] = [
    (JOB, JobState, JobEvent),
    (COMMAND, CommandState, CommandEvent),
    (HOST, HostState, HostState),
]
PAIRS = [(m, s, e) for m, states, events in MACHINES for s in states for e in events]


def _name(value: object) -> str:
    return value.name if isinstance(value, enum.Enum | Machine) else str(value)


@pytest.mark.parametrize(("machine", "state", "event"), PAIRS, ids=_name)
def test_every_pair_is_a_transition_a_no_op_or_an_error_with_its_story(
    machine: Machine[Any, Any, Any], state: enum.Enum, event: enum.Enum
) -> None:
    if state in machine.terminal:
        step = machine.step(state, event)
        assert (step.state, step.effects, step.changed) == (state, (), False)
    elif (state, event) in machine.table:
        step = machine.step(state, event)
        assert step.changed == (step.state is not state)
        assert step.changed or not step.effects
    else:
        with pytest.raises(InvalidTransition) as caught:
            machine.step(state, event, story=["it was born", "it did this"])
        assert state.name in caught.value.message
        assert event.name in caught.value.message
        assert caught.value.data["story"] == ["it was born", "it did this"]


@pytest.mark.parametrize(("machine", "states", "_events"), MACHINES, ids=_name)
def test_no_terminal_state_has_a_way_out_and_every_other_has_one(
    machine: Machine[Any, Any, Any], states: type[enum.Enum], _events: type[enum.Enum]
) -> None:
    leaving = {state for (state, _), (to, _) in machine.table.items() if to is not state}
    assert leaving == set(states) - machine.terminal


@pytest.mark.parametrize("state", [JobState.PENDING, JobState.RUNNING])
@pytest.mark.parametrize(
    ("event", "end"),
    [
        (JobEvent.SUCCEED, JobState.SUCCEEDED),
        (JobEvent.FAIL, JobState.FAILED),
        (JobEvent.EXPIRE, JobState.EXPIRED),
        (JobEvent.CANCEL, JobState.CANCELLED),
    ],
)
def test_a_job_ends_from_any_open_state(state: JobState, event: JobEvent, end: JobState) -> None:
    step = JOB.step(state, event)
    assert step.state is end
    assert set(step.effects) == {JobEffect.STAMP_END, JobEffect.SETTLE_INSTANCE}


@pytest.mark.parametrize("state", OPEN)
@pytest.mark.parametrize(("event", "end"), ENDS.items())
def test_a_command_can_end_at_any_time_for_receipts_may_be_lost(
    state: CommandState, event: CommandEvent, end: CommandState
) -> None:
    step = COMMAND.step(state, event)
    assert step.state is end
    assert CommandEffect.STOP_PUBLISHING in step.effects
    assert CommandEffect.TELL_JOB in step.effects


@pytest.mark.parametrize(
    ("state", "event", "after"),
    [
        (C.ACCEPTED, E.PUBLISH, C.PUBLISHED),
        (C.PUBLISHED, E.RECEIVE, C.RECEIVED),
        (C.RECEIVED, E.START, C.STARTED),
        # A receipt that overtakes the one before it, or the commit of its own publish.
        (C.ACCEPTED, E.RECEIVE, C.RECEIVED),
        (C.ACCEPTED, E.START, C.STARTED),
        (C.PUBLISHED, E.START, C.STARTED),
        # Repeats and late ones take nothing back.
        (C.PUBLISHED, E.PUBLISH, C.PUBLISHED),
        (C.RECEIVED, E.PUBLISH, C.RECEIVED),
        (C.STARTED, E.PUBLISH, C.STARTED),
        (C.RECEIVED, E.RECEIVE, C.RECEIVED),
        (C.STARTED, E.RECEIVE, C.STARTED),
        (C.STARTED, E.START, C.STARTED),
    ],
)
def test_receipts_only_ever_lead_forward(
    state: CommandState, event: CommandEvent, after: CommandState
) -> None:
    assert COMMAND.step(state, event).state is after


@pytest.mark.parametrize("event", [E.RECEIVE, E.START])
def test_a_receipt_ends_the_casting(event: CommandEvent) -> None:
    assert CommandEffect.STOP_PUBLISHING in COMMAND.step(C.PUBLISHED, event).effects


@pytest.mark.parametrize("state", [HostState.UP, HostState.SUSPECT])
def test_a_host_that_goes_down_loses_its_session_and_lets_deletes_go_on(state: HostState) -> None:
    step = HOST.step(state, HostState.DOWN)
    assert set(step.effects) == {
        HostEffect.TELL,
        HostEffect.END_SESSION,
        HostEffect.RELEASE_WAITING,
    }


@pytest.mark.parametrize("state", list(HostState))
@pytest.mark.parametrize("after", list(HostState))
def test_every_change_of_a_host_is_told_and_no_steady_state_is(
    state: HostState, after: HostState
) -> None:
    step = HOST.step(state, after)
    assert step.state is after
    assert (HostEffect.TELL in step.effects) == (state is not after)


@pytest.mark.parametrize(
    ("number", "name", "shown"),
    [
        (0, "NOSTATE", "pending"),
        (1, "RUNNING", "running"),
        (2, "BLOCKED", "blocked"),
        (3, "PAUSED", "paused"),
        (4, "SHUTDOWN", "shutdown"),
        (5, "SHUTOFF", "shutdown"),
        (6, "CRASHED", "crashed"),
        (7, "SUSPENDED", "suspended"),
        (8, "FAILED", "failed to spawn"),
        (9, "BUILDING", "building"),
    ],
)
def test_section1_power_states_have_their_numbers_names_and_words(
    number: int, name: str, shown: str
) -> None:
    assert (PowerState[name], PowerState(number).shown) == (number, shown)

"""Section 3 of the decision tables: what a delete comes out as, row by row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.errors import TaskUnderWay, WrongState
from common.states import HostState, TaskState, VmState
from manager.rules.deletion import (
    FORCED,
    HARD,
    NOT_DURING,
    NOT_SOFTLY,
    SOFT,
    Decision,
    Outcome,
    Place,
    Wish,
    admit,
    admit_protection,
    admit_soft,
    at_host,
    soft_at_host,
    strength,
    unless_frozen,
)

LIVE = [s for s in VmState if s is not VmState.DELETED]


def place(state: HostState = HostState.UP, **changes: object) -> Place:
    found = Place("h1", known=True, state=state, reason="silent for 61 s")
    return replace(found, **changes)  # type: ignore[arg-type]


def outcome(decision: Decision) -> tuple[int, Outcome]:
    return decision.row, decision.outcome


def test_section3_row_1_no_such_vm_is_not_found() -> None:
    assert outcome(admit(Wish(None))) == (1, Outcome.NOT_FOUND)


def test_section3_row_1_a_deleted_vm_is_already_deleted() -> None:
    wish = Wish(VmState.DELETED, protected=True, in_flight=HARD, hosts=0)
    assert outcome(admit(wish)) == (1, Outcome.ALREADY_DELETED)


@pytest.mark.parametrize("strength", [SOFT, HARD, FORCED])
def test_section3_row_2_delete_protection_refuses_even_the_strongest_delete(strength: int) -> None:
    wish = Wish(VmState.ACTIVE, strength=strength, protected=True, hosts=0)
    assert outcome(admit(wish)) == (2, Outcome.PROTECTED)


@pytest.mark.parametrize(
    ("asked", "under_way", "expected"),
    [
        (SOFT, SOFT, Outcome.SAME_JOB),
        (SOFT, HARD, Outcome.SAME_JOB),
        (HARD, HARD, Outcome.SAME_JOB),
        (HARD, FORCED, Outcome.SAME_JOB),
        (FORCED, FORCED, Outcome.SAME_JOB),
        (HARD, SOFT, Outcome.TAKE_OVER),
        (FORCED, SOFT, Outcome.TAKE_OVER),
        (FORCED, HARD, Outcome.TAKE_OVER),
    ],
)
def test_section3_row_3_an_equal_or_stronger_delete_in_flight_is_the_same_job(
    asked: int, under_way: int, expected: Outcome
) -> None:
    wish = Wish(VmState.ACTIVE, strength=asked, in_flight=under_way)
    assert outcome(admit(wish)) == (3, expected)


def test_section3_row_3_does_not_fit_when_the_host_is_down() -> None:
    wish = Wish(VmState.ACTIVE, in_flight=HARD, any_host_down=True)
    assert admit(wish).outcome is Outcome.GO_ON


def test_section3_row_4_a_vm_without_a_host_is_cancelled() -> None:
    assert outcome(admit(Wish(VmState.BUILDING, hosts=0))) == (4, Outcome.CANCEL_DEPLOY)


@pytest.mark.parametrize(
    ("soft", "interval_s", "expected"), [(False, 0, HARD), (True, 0, SOFT), (False, 60, SOFT)]
)
def test_section3_row_5_a_delete_is_soft_where_it_is_asked_for_or_on_by_itself(
    soft: bool, interval_s: float, expected: int
) -> None:
    asked = strength(VmState.ACTIVE, force=False, soft=soft, interval_s=interval_s)
    assert asked == expected


def test_section3_row_5_a_plain_delete_of_a_soft_deleted_vm_is_hard() -> None:
    asked = strength(VmState.SOFT_DELETED, force=False, soft=False, interval_s=60)
    assert asked == HARD
    assert admit(Wish(VmState.SOFT_DELETED, strength=asked)).outcome is Outcome.GO_ON


@pytest.mark.parametrize("interval_s", [0, 60])
def test_section3_row_5_a_forced_delete_is_never_soft(interval_s: float) -> None:
    asked = strength(VmState.ACTIVE, force=True, soft=False, interval_s=interval_s)
    assert asked == FORCED


@pytest.mark.parametrize("hosts", [0, 1])
def test_section3_row_5_a_vm_is_kept_also_one_that_was_not_started_yet(hosts: int) -> None:
    wish = Wish(VmState.SHUTOFF, strength=SOFT, hosts=hosts)
    assert outcome(admit(wish)) == (5, Outcome.SOFT)


def test_section3_row_4_what_is_still_being_placed_is_not_kept() -> None:
    wish = Wish(VmState.BUILDING, strength=SOFT, hosts=0, keepable=False)
    assert outcome(admit(wish)) == (4, Outcome.CANCEL_DEPLOY)
    assert admit(replace(wish, hosts=1)).outcome is Outcome.GO_ON


def test_section3_row_5_softly_once_more_changes_nothing() -> None:
    assert outcome(admit(Wish(VmState.SOFT_DELETED, strength=SOFT))) == (5, Outcome.SOFT_ALREADY)


@pytest.mark.parametrize("state", [VmState.ACTIVE, VmState.SOFT_DELETED])
def test_section3_row_5_does_not_fit_where_a_stronger_delete_has_begun(state: VmState) -> None:
    wish = Wish(state, strength=SOFT, in_flight=HARD, any_host_down=True)
    assert admit(wish).outcome is Outcome.GO_ON


@pytest.mark.parametrize("state", NOT_SOFTLY)
def test_section3_row_5_a_vm_that_is_not_wholly_on_its_host_can_not_be_kept(
    state: VmState,
) -> None:
    with pytest.raises(WrongState, match=f"web-1 is {state}") as caught:
        admit_soft("web-1", state, TaskState.NONE, None)
    assert "--force --reason" in caught.value.remedy


@pytest.mark.parametrize("task", [task for task in TaskState if task in NOT_DURING])
def test_section3_row_5_nor_while_it_is_carried_about(task: TaskState) -> None:
    with pytest.raises(TaskUnderWay, match="job-7"):
        admit_soft("web-1", VmState.ACTIVE, task, "job-7")


@pytest.mark.parametrize("task", [task for task in TaskState if task not in NOT_DURING])
def test_section3_row_5_takes_every_other_task_over(task: TaskState) -> None:
    admit_soft("web-1", VmState.ACTIVE, task, "job-7")


@pytest.mark.parametrize("state", [HostState.UP, HostState.SUSPECT])
@pytest.mark.parametrize("blind", [True, False])
def test_section3_row_5_the_guest_is_stopped_by_its_agent(state: HostState, blind: bool) -> None:
    found = soft_at_host(place(state, blind=blind))
    assert outcome(found) == (5, Outcome.STOP)
    assert state in found.reason


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (None, "on no host"),
        (place(HostState.DOWN), "silent for 61 s"),
        (place(HostState.DOWN, known=False), "record of host h1 is gone"),
        (place(HostState.SUSPECT, mass_silence=True), "mass silence"),
        (place(HostState.DOWN, operator_down=True), "stopped when the host is back"),
    ],
)
def test_section3_row_5_where_nobody_can_be_asked_the_vm_is_marked(
    where: Place | None, words: str
) -> None:
    found = soft_at_host(where)
    assert outcome(found) == (5, Outcome.MARK)
    assert words in found.reason


@pytest.mark.parametrize("task", [TaskState.DELETING, TaskState.SOFT_DELETING])
def test_section3_row_2_protection_comes_too_late_for_a_delete_that_has_begun(
    task: TaskState,
) -> None:
    with pytest.raises(TaskUnderWay, match="job-7"):
        admit_protection("web-1", VmState.ACTIVE, task, "job-7")


def test_section3_row_2_a_soft_deleted_vm_can_be_protected() -> None:
    admit_protection("web-1", VmState.SOFT_DELETED, TaskState.NONE, None)


@pytest.mark.parametrize("state", LIVE)
def test_section3_everything_else_is_decided_by_the_hosts(state: VmState) -> None:
    assert admit(Wish(state)).outcome is Outcome.GO_ON


@pytest.mark.parametrize("blind", [True, False])
def test_section3_row_6_a_host_whose_record_is_gone_is_db_only(blind: bool) -> None:
    found = at_host(place(HostState.DOWN, known=False, blind=blind))
    assert outcome(found) == (6, Outcome.DB_ONLY)
    assert "h1" in found.reason


@pytest.mark.parametrize("state", list(HostState))
@pytest.mark.parametrize(("doubt", "word"), [("blind", "blind"), ("mass_silence", "mass silence")])
def test_section3_row_7_in_doubt_it_is_remote_and_never_goes_on_to_db_only(
    state: HostState, doubt: str, word: str
) -> None:
    found = at_host(place(state, **{doubt: True}))
    assert outcome(found) == (7, Outcome.WAIT)
    assert word in found.reason


@pytest.mark.parametrize("doubt", ["blind", "mass_silence"])
def test_section3_row_7_force_takes_row_9(doubt: str) -> None:
    assert outcome(at_host(place(HostState.SUSPECT, forced=True, **{doubt: True}))) == (
        9,
        Outcome.DB_ONLY,
    )


def test_section3_row_7_does_not_hold_for_a_host_that_the_operator_named() -> None:
    found = at_host(place(HostState.DOWN, mass_silence=True, operator_down=True))
    assert outcome(found) == (9, Outcome.DB_ONLY)


@pytest.mark.parametrize("state", [HostState.UP, HostState.SUSPECT])
def test_section3_row_8_up_or_suspect_is_remote(state: HostState) -> None:
    found = at_host(place(state))
    assert outcome(found) == (8, Outcome.REMOTE)
    assert state in found.reason


@pytest.mark.parametrize("state", [HostState.UP, HostState.SUSPECT])
def test_section3_row_8_force_takes_row_9(state: HostState) -> None:
    assert outcome(at_host(place(state, forced=True))) == (9, Outcome.DB_ONLY)


def test_section3_row_9_down_is_db_only_and_says_why() -> None:
    found = at_host(place(HostState.DOWN))
    assert outcome(found) == (9, Outcome.DB_ONLY)
    assert "silent for 61 s" in found.reason
    assert "tombstone" in found.reason


# a freeze


def test_a_freeze_turns_db_only_of_every_row_into_waiting_and_says_why() -> None:
    for place in (
        Place("h1", known=False, state=HostState.DOWN, reason=""),
        Place("h1", known=True, state=HostState.DOWN, reason="silent"),
    ):
        decision = at_host(place)
        assert unless_frozen(decision, "") == decision
        frozen = unless_frozen(decision, "FROZEN since noon by ann: odd")
        assert (frozen.row, frozen.outcome) == (decision.row, Outcome.FROZEN)
        assert frozen.reason.startswith("FROZEN since noon by ann: odd")
        assert decision.reason in frozen.reason


def test_a_freeze_leaves_remote_deletes_alone() -> None:
    remote = at_host(Place("h1", known=True, state=HostState.UP, reason=""))
    assert unless_frozen(remote, "FROZEN since noon") == remote

"""Section 8 of the decision tables, steps 6 and 7: what follows a start that did not succeed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.states import CommandState
from manager.rules.retry import FINAL, STALE_TRIES, Act, Ended, after

FAILED, NOT_RUN, UNKNOWN = CommandState.FAILED, CommandState.NOT_RUN, CommandState.UNKNOWN
REFUSED: dict[str, Any] = {"code": "HYPERVISOR_ERROR", "error": "no space left"}


def ending(state: CommandState = FAILED, **changes: Any) -> Ended:
    return Ended(host="h1", state=state, **changes)


@pytest.mark.parametrize(
    ("row", "end", "expected"),
    [
        (1, ending(superseded=True, guest=False), Act.CANCELLED),
        (1, ending(UNKNOWN, superseded=True), Act.CANCELLED),
        (2, ending(UNKNOWN), Act.FAIL_KEEPING_HOLD),
        (2, ending(UNKNOWN, cancelling=True), Act.FAIL_KEEPING_HOLD),
        (2, ending(guest=True, **REFUSED), Act.FAIL_KEEPING_HOLD),
        (2, ending(guest=None, **REFUSED), Act.FAIL_KEEPING_HOLD),
        (2, ending(guest=None, fenced=True, **REFUSED), Act.FAIL_KEEPING_HOLD),
        (2, ending(guest=None, code="TEMPLATE_INVALID"), Act.FAIL_KEEPING_HOLD),
        (3, ending(NOT_RUN, cancelling=True, code="VOIDED"), Act.CANCELLED),
        (3, ending(NOT_RUN, cancelling=True, code="STALE_COMMAND", again=1), Act.CANCELLED),
        (3, ending(guest=False, cancelling=True, **REFUSED), Act.CANCELLED),
        *[(4, ending(guest=False, code=code), Act.FAIL) for code in sorted(FINAL)],
        (4, ending(NOT_RUN, code="BAD_MESSAGE"), Act.FAIL),
        (5, ending(NOT_RUN, code="STALE_COMMAND", again=1), Act.SAME_HOST_AGAIN),
        (5, ending(NOT_RUN, code="STALE_COMMAND", again=STALE_TRIES), Act.SAME_HOST_AGAIN),
        (5, ending(NOT_RUN, code="STALE_COMMAND", again=1, named=True), Act.SAME_HOST_AGAIN),
        (6, ending(guest=False, named=True, **REFUSED), Act.FAIL),
        (6, ending(NOT_RUN, code="VOIDED", named=True), Act.FAIL),
        (7, ending(guest=False, tries=11, limit=10, **REFUSED), Act.FAIL),
        (7, ending(guest=False, tries=1, limit=0, **REFUSED), Act.FAIL),
        (8, ending(guest=False, tries=10, limit=10, **REFUSED), Act.NEXT_HOST),
        (8, ending(guest=False, **REFUSED), Act.NEXT_HOST),
        (8, ending(NOT_RUN, code="VOIDED"), Act.NEXT_HOST),
        (8, ending(NOT_RUN, code="EXPIRED"), Act.NEXT_HOST),
        (8, ending(NOT_RUN, code="STALE_COMMAND", again=STALE_TRIES + 1), Act.NEXT_HOST),
        (8, ending(UNKNOWN, fenced=True), Act.NEXT_HOST),
    ],
)
def test_section8_step_6_rows(row: int, end: Ended, expected: Act) -> None:
    found = after(end)
    assert (found.row, found.act) == (row, expected)
    assert "h1" in found.reason


def test_section8_step_6_an_unknown_outcome_is_named_so() -> None:
    found = after(ending(UNKNOWN, code="LOST"))
    assert (found.code, found.hold) == ("OUTCOME_UNKNOWN", True)
    assert "a guest may run on h1, so no other host is tried" in found.reason


def test_section8_step_6_the_next_host_after_a_fenced_one_leaves_a_tombstone_there() -> None:
    assert after(ending(UNKNOWN, fenced=True)).hold
    assert not after(ending(NOT_RUN, code="VOIDED", fenced=True)).hold


def test_section8_step_6_the_reason_carries_the_hosts_own_words() -> None:
    found = after(ending(guest=False, **REFUSED))
    assert found.reason == (
        "h1 refused it (HYPERVISOR_ERROR: no space left); the next host is tried"
    )


@pytest.mark.parametrize("state", [CommandState.SUCCEEDED, CommandState.STARTED])
def test_section8_step_6_is_about_starts_that_failed(state: CommandState) -> None:
    with pytest.raises(ValueError, match="needs no other host"):
        after(ending(state))


@given(
    st.builds(
        Ended,
        host=st.just("h1"),
        state=st.sampled_from([FAILED, NOT_RUN, UNKNOWN]),
        code=st.sampled_from([None, "VOIDED", "STALE_COMMAND", *sorted(FINAL)]),
        guest=st.sampled_from([True, False, None]),
        tries=st.integers(1, 12),
        again=st.integers(1, 4),
        named=st.booleans(),
        fenced=st.booleans(),
        cancelling=st.booleans(),
        superseded=st.booleans(),
    )
)
def test_section8_step_6_no_second_start_while_a_guest_may_be_left(end: Ended) -> None:
    found = after(end)
    certain = end.state is NOT_RUN or (end.state is FAILED and end.guest is False)
    if found.act in (Act.NEXT_HOST, Act.SAME_HOST_AGAIN):
        assert certain or (end.state is UNKNOWN and end.fenced)
        assert not end.cancelling
        assert not end.superseded
    if not certain and not end.superseded:
        assert found.hold

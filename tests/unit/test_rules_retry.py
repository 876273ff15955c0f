"""Section 8 of the decision tables, steps 6 and 7: what follows a start that did not succeed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.states import CommandState
from manager.rules.retry import DOUBTFUL, FINAL, STALE_TRIES, Ending, Next, Seen, after

FAILED, NOT_RUN, UNKNOWN = CommandState.FAILED, CommandState.NOT_RUN, CommandState.UNKNOWN
REFUSED: dict[str, Any] = {"code": "HYPERVISOR_ERROR", "error": "no space left"}


def ending(state: CommandState = FAILED, **changes: Any) -> Ending:
    return Ending(host="h1", state=state, **changes)


@pytest.mark.parametrize(
    ("row", "end", "expected"),
    [
        (1, ending(superseded=True, seen=Seen.ABSENT), Next.CANCELLED),
        (1, ending(UNKNOWN, superseded=True), Next.CANCELLED),
        (2, ending(UNKNOWN), Next.FAIL_KEEPING_HOLD),
        (2, ending(UNKNOWN, cancelling=True), Next.FAIL_KEEPING_HOLD),
        (2, ending(seen=Seen.PRESENT, **REFUSED), Next.FAIL_KEEPING_HOLD),
        (2, ending(seen=Seen.NOTHING, **REFUSED), Next.FAIL_KEEPING_HOLD),
        (2, ending(seen=Seen.NOTHING, code="TEMPLATE_INVALID"), Next.FAIL_KEEPING_HOLD),
        *[
            (2, ending(seen=Seen.ABSENT, code=code), Next.FAIL_KEEPING_HOLD)
            for code in sorted(DOUBTFUL)
        ],
        (3, ending(NOT_RUN, cancelling=True, code="VOIDED"), Next.CANCELLED),
        (3, ending(NOT_RUN, cancelling=True, code="STALE_COMMAND", stale=1), Next.CANCELLED),
        (3, ending(seen=Seen.ABSENT, cancelling=True, **REFUSED), Next.CANCELLED),
        *[(4, ending(seen=Seen.ABSENT, code=code), Next.FAIL) for code in sorted(FINAL)],
        (4, ending(NOT_RUN, code="BAD_MESSAGE"), Next.FAIL),
        (5, ending(NOT_RUN, code="STALE_COMMAND", stale=1), Next.SAME_HOST_AGAIN),
        (5, ending(NOT_RUN, code="STALE_COMMAND", stale=STALE_TRIES), Next.SAME_HOST_AGAIN),
        (5, ending(NOT_RUN, code="STALE_COMMAND", stale=1, named=True), Next.SAME_HOST_AGAIN),
        (6, ending(seen=Seen.ABSENT, named=True, **REFUSED), Next.FAIL),
        (6, ending(NOT_RUN, code="VOIDED", named=True), Next.FAIL),
        (7, ending(seen=Seen.ABSENT, tries=11, limit=10, **REFUSED), Next.FAIL),
        (7, ending(seen=Seen.ABSENT, tries=1, limit=0, **REFUSED), Next.FAIL),
        (8, ending(seen=Seen.ABSENT, tries=10, limit=10, **REFUSED), Next.NEXT_HOST),
        (8, ending(seen=Seen.ABSENT, **REFUSED), Next.NEXT_HOST),
        (8, ending(NOT_RUN, code="VOIDED"), Next.NEXT_HOST),
        (8, ending(NOT_RUN, code="EXPIRED"), Next.NEXT_HOST),
        (8, ending(NOT_RUN, code="STALE_COMMAND", stale=STALE_TRIES + 1), Next.NEXT_HOST),
        (8, ending(UNKNOWN, fenced=True), Next.NEXT_HOST),
        (8, ending(seen=Seen.PRESENT, fenced=True, **REFUSED), Next.NEXT_HOST),
    ],
)
def test_section8_step_6_rows(row: int, end: Ending, expected: Next) -> None:
    found = after(end)
    assert (found.row, found.next) == (row, expected)
    assert "h1" in found.reason


def test_section8_step_6_an_unknown_outcome_is_named_so() -> None:
    found = after(ending(UNKNOWN, code="LOST"))
    assert (found.code, found.hold) == ("OUTCOME_UNKNOWN", True)
    assert "a guest may run on h1, so no other host is tried" in found.reason


def test_section8_step_6_the_next_host_after_a_fenced_one_leaves_a_tombstone_there() -> None:
    assert after(ending(UNKNOWN, fenced=True)).hold
    assert not after(ending(NOT_RUN, code="VOIDED", fenced=True)).hold


def test_section8_step_6_the_reason_carries_the_hosts_own_words() -> None:
    found = after(ending(seen=Seen.ABSENT, **REFUSED))
    assert found.reason == (
        "h1 refused it (HYPERVISOR_ERROR: no space left); the next host is tried"
    )


@pytest.mark.parametrize("state", [CommandState.SUCCEEDED, CommandState.STARTED])
def test_section8_step_6_is_about_starts_that_failed(state: CommandState) -> None:
    with pytest.raises(ValueError, match="needs no other host"):
        after(ending(state))


@given(
    st.builds(
        Ending,
        host=st.just("h1"),
        state=st.sampled_from([FAILED, NOT_RUN, UNKNOWN]),
        code=st.sampled_from([None, "VOIDED", "STALE_COMMAND", *sorted(FINAL | DOUBTFUL)]),
        seen=st.sampled_from(Seen),
        tries=st.integers(1, 12),
        stale=st.integers(0, 4),
        named=st.booleans(),
        fenced=st.booleans(),
        cancelling=st.booleans(),
        superseded=st.booleans(),
    )
)
def test_section8_step_6_no_second_start_while_a_guest_may_be_left(end: Ending) -> None:
    found = after(end)
    absent = end.state is FAILED and end.seen is Seen.ABSENT
    certain = (end.state is NOT_RUN or absent) and end.code not in DOUBTFUL
    if found.next in (Next.NEXT_HOST, Next.SAME_HOST_AGAIN):
        assert certain or end.fenced
        assert not end.cancelling
        assert not end.superseded
    if not certain and not end.superseded:
        assert found.hold

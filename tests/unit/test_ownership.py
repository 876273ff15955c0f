"""The mark and what it proves; floors and what they refuse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.ownership import Mark, is_ours, is_stale, why_not_ours

BODY = "aaaaaaaa-0000-4000-8000-000000000001"
marks = st.none() | st.builds(
    Mark,
    fleet=st.sampled_from(["fleet-1", "fleet-2", ""]),
    instance=st.text(max_size=5),
    generation=st.integers(),
    bearer=st.sampled_from([BODY, BODY.upper(), "someone-else", ""]),
)


def mark(fleet: str = "fleet-1", bearer: str = BODY) -> Mark:
    return Mark(fleet=fleet, instance="i-1", generation=1, bearer=bearer)


@pytest.mark.parametrize("bearer", [BODY, BODY.upper()])
def test_our_own_mark_on_its_own_bearer_is_ours(bearer: str) -> None:
    assert is_ours(mark(bearer=bearer), fleet="fleet-1", hypervisor_uuid=BODY)


@pytest.mark.parametrize(
    ("carried", "template", "why"),
    [
        (None, False, "no mark"),
        (mark(), True, "template"),
        (mark(fleet="fleet-2"), False, "fleet fleet-2"),
        (mark(bearer="someone-else"), False, "copy of guest someone-else"),
        (mark(bearer=""), False, "copy"),
    ],
)
def test_what_is_not_ours_says_why(carried: Mark | None, template: bool, why: str) -> None:
    asked = {"fleet": "fleet-1", "hypervisor_uuid": BODY, "template": template}
    assert not is_ours(carried, **asked)  # type: ignore[arg-type]
    assert why in why_not_ours(carried, **asked)  # type: ignore[arg-type]


@given(marks, st.booleans())
def test_the_judgement_and_its_words_never_disagree(carried: Mark | None, template: bool) -> None:
    asked = {"fleet": "fleet-1", "hypervisor_uuid": BODY, "template": template}
    words = why_not_ours(carried, **asked)  # type: ignore[arg-type]
    assert is_ours(carried, **asked) == (words == "")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("generation", "floor", "stale"),
    [(5, None, False), (5, 4, False), (5, 5, True), (5, 6, True)],
)
def test_at_or_below_the_floor_is_stale(generation: int, floor: int | None, stale: bool) -> None:
    assert is_stale(generation, floor) is stale

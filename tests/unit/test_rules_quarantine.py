"""Section 3, quarantine: what a tombstone still holds back, and when a terminate comes again."""

from __future__ import annotations

import pytest

from common.states import TombstoneState
from manager.rules.quarantine import (
    after_fence,
    awaits_identity,
    back_off_s,
    held,
    holds_all_identity,
    holds_identity,
)


def test_an_open_tombstone_holds_addresses_and_disk() -> None:
    assert set(held(TombstoneState.OPEN, fenced=False)) == {"mac", "address", "disk"}


def test_fencing_releases_the_addresses_but_not_the_disk() -> None:
    assert held(TombstoneState.OPEN, fenced=True) == ("disk",)


def test_a_fence_takes_from_an_open_tombstone_what_it_would_not_have_held_behind_it() -> None:
    before = held(TombstoneState.OPEN, fenced=False)
    assert after_fence(before) == held(TombstoneState.OPEN, fenced=True)
    assert after_fence(("mac", "disk")) == ("disk",)
    assert after_fence(()) == ()


@pytest.mark.parametrize(
    ("holds", "awaits", "some", "all_of_it"),
    [
        (("mac", "address", "disk"), False, True, True),
        (("address", "disk"), False, True, False),
        (("disk",), True, False, False),
        ((), False, False, False),  # it was forgotten: only a guest that is seen changes that
    ],
)
def test_what_a_tombstone_holds_tells_how_it_came_to_that(
    holds: tuple[str, ...], awaits: bool, some: bool, all_of_it: bool
) -> None:
    found = awaits_identity(holds), holds_identity(holds), holds_all_identity(holds)
    assert found == (awaits, some, all_of_it)


@pytest.mark.parametrize("fenced", [True, False])
def test_a_closed_tombstone_holds_nothing(fenced: bool) -> None:
    assert held(TombstoneState.CLOSED, fenced=fenced) == ()


def test_a_failing_terminate_is_issued_ever_more_seldom_but_always_again() -> None:
    waits = [back_off_s(tries, 1.0) for tries in range(50)]
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0]
    assert waits == sorted(waits)
    assert waits[-1] == 300.0

"""Section 3, quarantine: what a tombstone still holds back, and when a terminate comes again."""

from __future__ import annotations

import pytest

from common.states import TombstoneState
from manager.rules.quarantine import back_off_s, held


def test_an_open_tombstone_holds_addresses_and_disk() -> None:
    assert set(held(TombstoneState.OPEN, fenced=False)) == {"mac", "address", "disk"}


def test_fencing_releases_the_addresses_but_not_the_disk() -> None:
    assert held(TombstoneState.OPEN, fenced=True) == ("disk",)


@pytest.mark.parametrize("fenced", [True, False])
def test_a_closed_tombstone_holds_nothing(fenced: bool) -> None:
    assert held(TombstoneState.CLOSED, fenced=fenced) == ()


def test_a_failing_terminate_is_issued_ever_more_seldom_but_always_again() -> None:
    waits = [back_off_s(tries, 1.0) for tries in range(50)]
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0]
    assert waits == sorted(waits)
    assert waits[-1] == 300.0

"""Where a snapshot may be kept, and when a shelved VM's guest may leave its host."""

from __future__ import annotations

import datetime as dt

import pytest

from common.errors import EXIT_REFUSED, NoSpace
from common.states import PowerState
from manager.rules.shelving import Store, choose, offload_at, stays

NOON = dt.datetime(2026, 11, 20, 12, 0, tzinfo=dt.UTC)


def test_without_pools_for_snapshots_a_host_keeps_them_itself() -> None:
    assert choose([], 5) is None


def test_a_pool_of_the_whole_zone_comes_before_a_larger_one_of_a_cluster() -> None:
    wide, near = Store("wide", 10.0, True), Store("near", 100.0, False)
    assert choose([near, wide], 5) == wide
    assert choose([near, wide], 50) == near


def test_of_pools_that_are_reached_alike_the_one_with_the_most_space_is_taken() -> None:
    assert choose([Store("a", 10.0, True), Store("b", 20.0, True)], 5) == Store("b", 20.0, True)


def test_pools_that_are_all_too_full_refuse_and_say_what_is_left() -> None:
    with pytest.raises(NoSpace) as caught:
        choose([Store("wide", 4.0, True), Store("near", -1.0, False)], 5)
    assert caught.value.exit_code == EXIT_REFUSED
    assert "wide has 4 GiB left, near has 0 GiB left" in caught.value.message
    assert "muster pool set" in caught.value.remedy


@pytest.mark.parametrize("power", [PowerState.SHUTOFF, PowerState.CRASHED, PowerState.NOSTATE])
def test_a_guest_that_is_off_as_its_snapshot_was_taken_may_leave(power: PowerState) -> None:
    assert stays(True, False, power) == ""


@pytest.mark.parametrize(
    ("taken", "overtaken", "power", "why"),
    [
        (False, False, PowerState.SHUTOFF, "not whole"),
        (True, True, PowerState.SHUTOFF, "has run since"),
        (True, False, PowerState.RUNNING, "RUNNING"),
        (True, False, PowerState.PAUSED, "PAUSED"),
    ],
)
def test_a_guest_that_has_more_than_its_snapshot_stays(
    taken: bool, overtaken: bool, power: PowerState, why: str
) -> None:
    assert why in stays(taken, overtaken, power)


def test_a_guest_leaves_after_a_time_or_never() -> None:
    assert offload_at(NOON, 60.0) == NOON + dt.timedelta(seconds=60)
    assert offload_at(NOON, -1.0) is None

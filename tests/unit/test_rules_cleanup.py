"""Section 3: files that a guest may be using wait until somebody vouches that it does not run."""

from __future__ import annotations

import pytest

from common.states import TombstoneState
from manager.rules.cleanup import Guest, in_use, no_access_s

OPEN, CLOSED = TombstoneState.OPEN, TombstoneState.CLOSED
ALL = ("mac", "address", "disk")


def guest(state: TombstoneState = OPEN, holds: tuple[str, ...] = ALL, **more: bool) -> Guest:
    return Guest("h1", state, **{"speaks": False, **more}, holds=holds)


@pytest.mark.parametrize("speaks", [True, False])
def test_files_of_a_guest_that_is_proven_gone_may_go(speaks: bool) -> None:
    assert in_use(guest(CLOSED, (), speaks=speaks)) == ""


def test_files_of_a_guest_whose_tombstone_was_forgotten_may_go() -> None:
    assert in_use(guest(OPEN, ())) == ""


@pytest.mark.parametrize("holds", [ALL, ("disk",), ()])
def test_a_host_that_speaks_removes_them_itself(holds: tuple[str, ...]) -> None:
    assert in_use(guest(OPEN, holds, speaks=True)).startswith("h1 to answer its terminate")


@pytest.mark.parametrize(
    "holds",
    [
        pytest.param(ALL, id="nobody-has-said-anything"),
        pytest.param(("disk",), id="fenced"),
        pytest.param(("mac", "address"), id="seen-running-after-it-was-forgotten"),
    ],
)
def test_otherwise_they_wait_for_somebody_to_vouch(holds: tuple[str, ...]) -> None:
    assert in_use(guest(OPEN, holds)).startswith("somebody to vouch")


def test_hosts_without_access_are_asked_one_after_the_other_and_waited_for_after_each_round() -> (
    None
):
    waits = [no_access_s(tries, hosts=3, base_s=1.0) for tries in range(9)]
    assert waits == [1, 1, 2, 1, 1, 4, 1, 1, 8]
    assert no_access_s(99, hosts=1, base_s=1.0) == 300
    assert no_access_s(0, hosts=0, base_s=1.0) == 2

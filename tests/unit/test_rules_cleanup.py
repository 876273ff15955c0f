"""Section 3: files that a guest may be using wait until somebody vouches that it does not run."""

from __future__ import annotations

import pytest

from common.states import TombstoneState
from manager.rules.cleanup import Guest, in_use

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

"""Section 1 of the decision tables: doomed, managed, orphan or alien; and section 3's reopening."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.messages import GuestReport
from common.ownership import Mark
from common.states import GuestKind, PowerState
from manager.rules.inventory import classify, reopens

FLEET = "fleet-1"
BODY = "aaaaaaaa-0000-4000-8000-000000000001"
OTHER_BODY = "aaaaaaaa-0000-4000-8000-000000000002"


def mark(*, fleet: str = FLEET, generation: int = 5, bearer: str = BODY) -> Mark:
    return Mark(fleet=fleet, instance="i-1", generation=generation, bearer=bearer)


def guest(carried: Mark | None, *, template: bool = False) -> GuestReport:
    return GuestReport(
        hypervisor_uuid=BODY,
        name="web-1",
        power_state=PowerState.RUNNING,
        vcpus=1,
        memory_mib=256,
        mark=carried,
        template=template,
    )


def kind(
    carried: Mark | None,
    *,
    tombstone: int | None = None,
    live: bool = True,
    template: bool = False,
) -> GuestKind:
    return classify(guest(carried, template=template), fleet=FLEET, tombstone=tombstone, live=live)


@pytest.mark.parametrize("tombstone", [5, 6, 99])
@pytest.mark.parametrize("live", [True, False])
def test_doomed_has_an_open_tombstone_that_is_not_older_than_its_mark(
    tombstone: int, live: bool
) -> None:
    assert kind(mark(), tombstone=tombstone, live=live) is GuestKind.DOOMED


def test_a_mark_newer_than_the_tombstone_is_not_doomed() -> None:
    assert kind(mark(generation=6), tombstone=5, live=True) is GuestKind.MANAGED
    assert kind(mark(generation=6), tombstone=5, live=False) is GuestKind.ORPHAN


def test_managed_has_our_mark_and_a_live_row() -> None:
    assert kind(mark(), live=True) is GuestKind.MANAGED


def test_orphan_has_our_mark_and_neither() -> None:
    assert kind(mark(), live=False) is GuestKind.ORPHAN


@dataclass(frozen=True)
class Stranger:
    why: str
    carried: Mark | None
    template: bool = False


STRANGERS = [
    Stranger("no mark", None),
    Stranger("another fleet's mark", mark(fleet="fleet-2")),
    Stranger("a copied mark", mark(bearer=OTHER_BODY)),
    Stranger("a template", mark(), template=True),
    Stranger("a damaged mark without a bearer", mark(bearer="")),
    Stranger("a damaged mark without a fleet", mark(fleet="")),
]


@pytest.mark.parametrize("stranger", STRANGERS, ids=lambda s: s.why)
@pytest.mark.parametrize("tombstone", [None, 99])
@pytest.mark.parametrize("live", [True, False])
def test_alien_is_anything_else_even_with_a_tombstone_of_the_instance_it_names(
    stranger: Stranger, tombstone: int | None, live: bool
) -> None:
    found = kind(stranger.carried, tombstone=tombstone, live=live, template=stranger.template)
    assert found is GuestKind.ALIEN


def test_the_case_of_a_uuid_does_not_make_a_mark_a_copy() -> None:
    assert kind(mark(bearer=BODY.upper())) is GuestKind.MANAGED


@given(
    fleet=st.sampled_from([FLEET, "fleet-2", ""]),
    bearer=st.sampled_from([BODY, OTHER_BODY, ""]),
    generation=st.integers(-1, 10),
    tombstone=st.none() | st.integers(0, 10),
    live=st.booleans(),
    template=st.booleans(),
)
def test_only_our_own_uncopied_mark_is_ever_acted_on(
    fleet: str, bearer: str, generation: int, tombstone: int | None, live: bool, template: bool
) -> None:
    carried = mark(fleet=fleet, generation=generation, bearer=bearer)
    found = kind(carried, tombstone=tombstone, live=live, template=template)
    ours = fleet == FLEET and bearer == BODY and not template
    assert (found is not GuestKind.ALIEN) == ours


@pytest.mark.parametrize(
    ("generation", "seen", "expected"),
    [
        (5, (2, 8), True),
        (5, (3, 0), True),  # any pair of a later session is newer
        (5, (2, 7), False),  # the answer itself
        (5, (2, 6), False),
        (5, (1, 99), False),
        (7, (2, 8), True),  # at the tombstone's generation
        (8, (9, 9), False),  # above it: another life, not this one
    ],
)
def test_only_a_newer_look_at_an_old_mark_reopens_a_tombstone(
    generation: int, seen: tuple[int, int], expected: bool
) -> None:
    assert reopens(generation, tombstone=7, closed=(2, 7), seen=seen) is expected

"""Section 8 of the decision tables, step 2: what a project may have."""

from __future__ import annotations

import pytest

from common.model import Project
from manager.rules.limits import COUNTED, over


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize(
    ("limit", "used", "wanted", "broken"),
    [
        (150, 149, 1, False),
        (150, 150, 1, True),
        (150, 0, 151, True),
        (150, 160, 0, False),
        (0, 0, 1, True),
        (0, 0, 0, False),
        (None, 10**9, 10**9, False),
    ],
)
def test_section8_step_2_a_limit_holds_to_the_last_one_and_is_named(
    name: str, limit: int | None, used: int, wanted: int, broken: bool
) -> None:
    found = over(Project(**{name: limit}), {name: used}, {name: wanted})
    said = f"{name}: {used} of {limit} are in use, {wanted} more wanted"
    assert found == ([said] if broken else [])


def test_section8_step_2_every_broken_limit_is_told_at_once() -> None:
    limits = Project(instances=1, vcpus=4, storage_gib=10)
    found = over(
        limits, {"instances": 1, "vcpus": 2}, {"instances": 1, "vcpus": 2, "memory_mib": 9}
    )
    assert found == ["instances: 1 of 1 are in use, 1 more wanted"]
    wanted = {"instances": 1, "vcpus": 8, "storage_gib": 11}
    assert len(over(limits, {"instances": 1}, wanted)) == 3

"""Section 8 of the decision tables, step 1: how large a VM becomes."""

from __future__ import annotations

from typing import Any

import pytest

from common.model import Offering, Template, TemplateFormat
from manager.rules.offering import Size, size

CUSTOM = Offering(vcpus_min=2, vcpus_max=4, memory_mib_min=512, memory_mib_max=2048)
FIXED = Offering(vcpus=2, memory_mib=1024)


def template(format_: TemplateFormat = TemplateFormat.QCOW2, **changes: Any) -> Template:
    return Template(format=format_, url="file:///t.img", sha256="0" * 64, **changes)


@pytest.mark.parametrize(
    ("offering", "asked", "expected"),
    [
        (FIXED, {}, Size(2, 1024, None)),
        (CUSTOM, {"vcpus": 2, "memory_mib": 2048}, Size(2, 2048, None)),
        (Offering(vcpus=2), {"memory_mib": 64}, Size(2, 64, None)),
        (None, {"vcpus": 1, "memory_mib": 64, "root_gib": 3}, Size(1, 64, 3)),
        (FIXED, {"template": template(min_disk_gib=5)}, Size(2, 1024, 5)),
        (FIXED, {"template": template(min_disk_gib=5), "root_gib": 7}, Size(2, 1024, 7)),
        (
            Offering(vcpus=2, memory_mib=1024, root_gib=20),
            {"template": template(min_disk_gib=5)},
            Size(2, 1024, 20),
        ),
        (
            Offering(vcpus=2, memory_mib=1024, root_gib=20),
            {"template": template(min_disk_gib=5), "root_gib": 5},
            Size(2, 1024, 5),
        ),
        (FIXED, {"template": template(TemplateFormat.KERNEL)}, Size(2, 1024, None)),
        (FIXED, {"template": template(min_memory_mib=1024), "root_gib": 1}, Size(2, 1024, 1)),
    ],
)
def test_section8_step_1_a_request_comes_to_a_size(
    offering: Offering | None, asked: dict[str, Any], expected: Size
) -> None:
    assert size(offering, **asked) == (expected, [])


@pytest.mark.parametrize(
    ("offering", "asked", "fields"),
    [
        (FIXED, {"vcpus": 2, "memory_mib": 1024}, ["vcpus", "memory_mib"]),
        (CUSTOM, {}, ["vcpus", "memory_mib"]),
        (CUSTOM, {"vcpus": 1, "memory_mib": 511}, ["vcpus", "memory_mib"]),
        (CUSTOM, {"vcpus": 5, "memory_mib": 2049}, ["vcpus", "memory_mib"]),
        (Offering(vcpus=2), {"vcpus": 2}, ["vcpus", "memory_mib"]),
        (None, {}, ["vcpus", "memory_mib"]),
        (FIXED, {"template": template(min_memory_mib=1025), "root_gib": 1}, ["offering"]),
        (
            CUSTOM,
            {
                "vcpus": 2,
                "memory_mib": 512,
                "template": template(min_memory_mib=513, min_disk_gib=1),
            },
            ["memory_mib"],
        ),
        (FIXED, {"template": template(min_disk_gib=5), "root_gib": 4}, ["root_gib"]),
        (
            Offering(vcpus=2, memory_mib=1024, root_gib=4),
            {"template": template(min_disk_gib=5)},
            ["offering"],
        ),
        *[
            (FIXED, {"template": template(kind)}, ["root_gib"])
            for kind in (TemplateFormat.QCOW2, TemplateFormat.RAW, TemplateFormat.ISO)
        ],
        (
            CUSTOM,
            {"vcpus": 9, "template": template(min_disk_gib=5), "root_gib": 1},
            ["vcpus", "memory_mib", "root_gib"],
        ),
    ],
)
def test_section8_step_1_every_problem_of_a_size_is_told_with_its_field_and_remedy(
    offering: Offering | None, asked: dict[str, Any], fields: list[str]
) -> None:
    found, problems = size(offering, **asked)
    assert found is None
    assert [field for field, _, _ in problems] == fields
    assert all(message and remedy for _, message, remedy in problems)

"""Section 8 of the decision tables, step 1: how large a VM becomes."""

from __future__ import annotations

from typing import Any

import pytest

from common.model import Offering, Template, TemplateFormat
from manager.rules.offering import Size, resized, size

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


@pytest.mark.parametrize(
    ("offering", "asked", "expected"),
    [
        (FIXED, {}, Size(2, 1024, 10)),
        (Offering(vcpus=2, memory_mib=1024, root_gib=20), {}, Size(2, 1024, 20)),
        (Offering(vcpus=2, memory_mib=1024, root_gib=20), {"root_gib": 15}, Size(2, 1024, 15)),
        (CUSTOM, {"vcpus": 4, "memory_mib": 512}, Size(4, 512, 10)),
        (None, {"vcpus": 4}, Size(4, 256, 10)),
        (None, {"memory_mib": 128}, Size(1, 128, 10)),
        (None, {"root_gib": 11}, Size(1, 256, 11)),
    ],
)
def test_a_resize_changes_what_is_asked_for_and_what_an_offering_fixes(
    offering: Offering | None, asked: dict[str, Any], expected: Size
) -> None:
    assert resized(Size(1, 256, 10), offering, **asked) == (expected, [])


@pytest.mark.parametrize(
    ("offering", "asked", "fields"),
    [
        (FIXED, {"vcpus": 3}, ["vcpus"]),
        (CUSTOM, {"vcpus": 5}, ["vcpus", "memory_mib"]),
        (Offering(vcpus=2, memory_mib=1024, root_gib=9), {}, ["offering"]),
        (None, {"root_gib": 9}, ["root_gib"]),
        (None, {"memory_mib": 64, "template": template(min_memory_mib=128)}, ["memory_mib"]),
    ],
)
def test_a_resize_is_held_to_offering_and_template_and_its_disk_only_grows(
    offering: Offering | None, asked: dict[str, Any], fields: list[str]
) -> None:
    found, problems = resized(Size(1, 256, 10), offering, **asked)
    assert (found, [field for field, _, _ in problems]) == (None, fields)


def test_a_vm_without_a_disk_gets_none_by_a_resize() -> None:
    large = Offering(vcpus=2, memory_mib=1024, root_gib=20)
    assert resized(Size(1, 256, None), large) == (Size(2, 1024, None), [])
    found, problems = resized(Size(1, 256, None), None, root_gib=5)
    assert (found, problems[0][0]) == (None, "root_gib")

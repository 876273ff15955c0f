"""People read titles and words; machines get keys and true values."""

from __future__ import annotations

from typing import Any

import pytest

from client.output import Worded, plain, readable, title


@pytest.mark.parametrize(
    ("column", "heading"),
    [
        ("uuid", "UUID"),
        ("vm_state", "VM state"),
        ("power_age_s", "Power age (s)"),
        ("hypervisor_uuid", "Hypervisor UUID"),
        ("memory_mib_used", "Memory MiB used"),
        ("vcpus_total", "vCPUs total"),
        ("first_seen", "First seen"),
        ("root_gib", "Root GiB"),
        ("cpu_mhz", "CPU MHz"),
        ("cidr6", "CIDR6"),
    ],
)
def test_headings_are_titles(column: str, heading: str) -> None:
    assert title(column) == heading


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, ""),
        (True, "yes"),
        (False, "no"),
        (7, 7),
        (1.26, 1.3),
        ("web-1", "web-1"),
        (["a", "b"], "a\nb"),
        ({"size_gib": 1, "path": None}, "size_gib=1"),
        ([{"size_gib": 1}, {"path": "/x"}], "size_gib=1\npath=/x"),
        (Worded([1, 2], lambda v: f"{len(v)} of them"), "2 of them"),
    ],
)
def test_cells_are_words(value: Any, words: Any) -> None:
    assert readable(value) == words


def test_a_strangers_name_can_not_steer_the_terminal() -> None:
    assert readable("web\x1b[2J\r") == "web\\x1b[2J\\r"
    assert readable(Worded("\x07", str)) == "\\x07"


def test_lines_of_text_carry_parts_as_json() -> None:
    assert plain(Worded([{"a": None}], str)) == '[{"a": null}]'
    assert plain({"a": 1}) == '{"a": 1}'
    assert plain(None) is None
    assert plain("x") == "x"

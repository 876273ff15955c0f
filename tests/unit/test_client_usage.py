"""The readers of a command line's values name the field and what would do."""

from __future__ import annotations

import pytest

from client import usage
from client.create import _disk
from common.errors import EXIT_USAGE, BadRequest
from common.messages import DiskSpec, GuestSpec
from common.states import TombstoneState, VmState


def test_the_ranges_are_those_of_the_messages() -> None:
    assert usage.bounds(GuestSpec, "vcpus") == (1, 512)
    assert usage.bounds(GuestSpec, "memory_mib") == (16, 16 * 1024 * 1024)
    assert usage.bounds(DiskSpec, "size_gib") == (1, 65536)


def test_a_field_that_is_no_whole_number_has_no_range() -> None:
    with pytest.raises(TypeError, match=r"GuestSpec\.kernel"):
        usage.bounds(GuestSpec, "kernel")


@pytest.mark.parametrize("text", ["1", "512", "+4", "007"])
def test_a_whole_number_in_its_range_is_taken(text: str) -> None:
    assert usage.whole("vcpus", 1, 512)(text) == int(text)


@pytest.mark.parametrize("text", ["", "0", "513", "-1", "1.0", "1e2", "four", "٣", "1_0", " 1"])
def test_any_other_number_is_refused_with_its_range(text: str) -> None:
    with pytest.raises(BadRequest, match="vcpus") as caught:
        usage.whole("vcpus", 1, 512)(text)
    assert caught.value.remedy == "give a whole number from 1 to 512"
    assert caught.value.data["field"] == "vcpus"
    assert caught.value.exit_code == EXIT_USAGE


def test_a_disk_is_a_size_or_a_path() -> None:
    assert _disk("10") == {"size_gib": 10}
    assert _disk("/images/10") == {"path": "/images/10"}


@pytest.mark.parametrize("text", ["0", "-1", "65537"])
def test_a_disk_of_an_impossible_size_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="size_gib") as caught:
        _disk(text)
    assert "1 to 65536" in caught.value.remedy


@pytest.mark.parametrize("text", ["10G", "1.5", "root.img", "./root.img", ""])
def test_a_disk_that_is_neither_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="neither a size nor an absolute path"):
        _disk(text)


def test_paths_are_absolute() -> None:
    assert usage.absolute("kernel")("/boot/vmlinuz") == "/boot/vmlinuz"
    with pytest.raises(BadRequest, match="kernel"):
        usage.absolute("kernel")("vmlinuz")


def test_states_are_taken_in_any_case() -> None:
    assert usage.one_of("state", VmState)("active") == "ACTIVE"
    with pytest.raises(BadRequest) as caught:
        usage.one_of("state", TombstoneState)("ajar")
    assert caught.value.remedy == "one of OPEN, CLOSED"


def test_blank_words_are_none() -> None:
    assert usage.said("reason")(" lost power ") == "lost power"
    with pytest.raises(BadRequest, match="reason"):
        usage.said("reason")("  ")


def test_a_job_is_named_by_a_uuid() -> None:
    assert usage.job_uuid("5F0C1B0E000040008000000000000001").startswith("5f0c1b0e-0000-4000")
    with pytest.raises(BadRequest, match="job"):
        usage.job_uuid("42")

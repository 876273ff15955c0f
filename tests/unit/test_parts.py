"""The parts' common ground: what is missing is named, and what fails shows its log."""

import sys

import pytest

from devstack.parts.base import Part, PartError, PartMissing, find_binary


def test_a_missing_program_names_its_package_and_the_way_to_get_it() -> None:
    with pytest.raises(PartMissing, match=r"package no-such-package.*make deps"):
        find_binary("no-such-program", "no-such-package")


class Broken(Part):
    name = "broken"
    start_timeout_s = 5.0

    def command(self) -> tuple[list[str], dict[str, str]]:
        return [sys.executable, "-c", "print('out of cheese'); raise SystemExit(1)"], {}

    def ready(self) -> bool:
        return False


def test_a_part_that_ends_at_its_start_shows_the_end_of_its_log() -> None:
    part = Broken()
    with pytest.raises(PartError, match="out of cheese"), part:
        pass
    assert not part.folder.exists()

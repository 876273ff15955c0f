"""Copies of disks that are kept until a resize is confirmed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.drivers.libvirt import kept
from common.errors import CallTimeout

MIB = 1 << 20


@pytest.fixture(autouse=True)
def no_shared_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that can not share them, wherever the tests run."""

    def refuse(*_: object) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(kept.fcntl, "ioctl", refuse)


@pytest.mark.parametrize("filled", [(), (0,), (7,), (3, 20), (31,)])
def test_a_copy_has_the_holes_of_its_disk(tmp_path: Path, filled: tuple[int, ...]) -> None:
    disk = tmp_path / "guest.disk0.qcow2"
    with disk.open("wb") as file:
        file.truncate(32 * MIB)
        for at in filled:
            file.seek(at * MIB)
            file.write(os.urandom(MIB))
    keeper = kept.Keeper(tmp_path, "guest")
    keeper.copy([str(disk)], lambda: None)
    copy = keeper.copy_of(str(disk))
    assert copy.read_bytes() == disk.read_bytes()
    assert copy.stat().st_blocks <= disk.stat().st_blocks


def test_a_copy_goes_on_only_as_long_as_somebody_waits(tmp_path: Path) -> None:
    disk = tmp_path / "guest.disk0.qcow2"
    disk.write_bytes(os.urandom(MIB))

    def nobody() -> None:
        raise CallTimeout("nobody waits any more", "")

    with pytest.raises(CallTimeout):
        kept.Keeper(tmp_path, "guest").copy([str(disk)], nobody)

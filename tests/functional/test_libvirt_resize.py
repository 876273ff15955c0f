"""Another size for a guest on libvirt: what it was is kept, whenever its agent is killed."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("libvirt")

from agent.drivers.base import OwnedGuest
from agent.drivers.libvirt import kept, qemu_img
from agent.drivers.libvirt.resizing import Resizer
from common.errors import GuestMissing, HypervisorError, ResizeOver, ResizeReverting
from common.messages import DiskSpec, GuestSpec
from common.states import PowerState
from devstack.fleet import image_folder
from devstack.image import Image, build
from devstack.parts.libvirtd import Libvirtd
from tests.functional.libvirt_rig import Rig, at_work
from tests.wait import wait_until

pytestmark = pytest.mark.real

BOOT_S = 120.0
KEY = "command-7"
GIB = 1 << 30
SMALL = GuestSpec(
    name="web-1", vcpus=1, memory_mib=128, disks=(DiskSpec(size_gib=1), DiskSpec(size_gib=1))
)
LARGE = msgspec.structs.replace(
    SMALL, vcpus=2, memory_mib=256, disks=(DiskSpec(size_gib=2), DiskSpec(size_gib=1))
)


class Killed(BaseException):
    """The agent is no more."""


@pytest.fixture
def rig(libvirt_mock: Libvirtd, tmp_path: Path) -> Iterator[Rig]:
    with at_work(libvirt_mock.mock_uri, tmp_path) as rig:
        rig.clear()
        yield rig


def made(rig: Rig, spec: GuestSpec = SMALL, **fields: Any) -> OwnedGuest:
    """A guest that is off, what is on its disks unlike anything else."""
    guest = rig.create(disks=spec.disks, **fields)
    for number, disk in enumerate(disks(rig, guest)):
        written(disk, 0x41 + number)
    return rig.driver.remark(guest, 2)


def disks(rig: Rig, guest: OwnedGuest) -> list[Path]:
    return sorted(rig.folder(guest).glob(f"{guest.hypervisor_uuid}.disk*.qcow2"))


def leftovers(rig: Rig, guest: OwnedGuest) -> list[str]:
    return sorted(path.name for path in rig.folder(guest).glob("*.before.*"))


def written(disk: Path, pattern: int) -> None:
    subprocess.run(["qemu-io", "-c", f"write -P {pattern} 0 64k", str(disk)], check=True)


def holds(disk: Path, pattern: int) -> bool:
    line = ["qemu-io", "-r", "-c", f"read -P {pattern} 0 64k", str(disk)]
    return subprocess.run(line, capture_output=True, check=False).returncode == 0


def size(rig: Rig, guest: OwnedGuest) -> tuple[int, int, int]:
    seen = rig.look(guest)
    first = qemu_img.info(str(disks(rig, guest)[0])).virtual_size
    return seen.vcpus, seen.memory_mib, first // GIB


def test_a_guest_is_resized_and_confirmed(rig: Rig) -> None:
    guest = made(rig)
    assert rig.driver.keeps(guest) is None
    for _ in range(2):  # the second time there is nothing to do
        rig.driver.resize(guest, LARGE, KEY, rig.doing)
        assert size(rig, guest) == (2, 256, 2)
        assert rig.driver.keeps(guest) == KEY
    bearer = guest.hypervisor_uuid
    assert leftovers(rig, guest) == [
        f"{bearer}.before.disk0.qcow2",
        f"{bearer}.before.disk1.qcow2",
        f"{bearer}.before.json",
    ]
    assert rig.look(guest).mark == guest.mark
    rig.driver.start(guest)
    for _ in range(2):
        rig.driver.confirm_resize(guest, LARGE, KEY)
        assert (leftovers(rig, guest), rig.driver.keeps(guest)) == ([], None)
    assert size(rig, guest) == (2, 256, 2)
    assert rig.look(guest).power_state is PowerState.RUNNING
    with pytest.raises(ResizeOver, match="it has 2 x 256 x 2 and not 1 x 128 x 1"):
        rig.driver.revert_resize(guest, SMALL, KEY)


def test_a_revert_gives_size_disks_and_what_was_on_them_back(rig: Rig) -> None:
    guest = made(rig)
    rig.driver.resize(guest, LARGE, KEY, rig.doing)
    for disk in disks(rig, guest):
        written(disk, 0x5A)
    for _ in range(2):
        rig.driver.revert_resize(guest, SMALL, KEY)
        assert size(rig, guest) == (1, 128, 1)
    assert [holds(disk, 0x41 + n) for n, disk in enumerate(disks(rig, guest))] == [True, True]
    assert (leftovers(rig, guest), rig.driver.keeps(guest)) == ([], None)
    with pytest.raises(ResizeOver):
        rig.driver.confirm_resize(guest, LARGE, KEY)


def test_a_guest_that_is_on_is_neither_resized_nor_reverted(rig: Rig) -> None:
    guest = made(rig)
    rig.driver.start(guest)
    with pytest.raises(HypervisorError, match="runs"):
        rig.driver.resize(guest, LARGE, KEY, rig.doing)
    assert leftovers(rig, guest) == []
    rig.driver.stop(guest, force=True, timeout_s=0)
    rig.driver.resize(guest, LARGE, KEY, rig.doing)
    rig.driver.start(guest)
    with pytest.raises(HypervisorError, match="runs"):
        rig.driver.revert_resize(guest, SMALL, KEY)
    assert size(rig, guest) == (2, 256, 2)


def test_what_it_was_goes_with_a_guest_that_is_destroyed(rig: Rig) -> None:
    guest = made(rig)
    rig.driver.resize(guest, LARGE, KEY, rig.doing)
    rig.driver.destroy(guest)
    assert not rig.folder(guest).exists()
    with pytest.raises(GuestMissing):
        rig.driver.resize(guest, LARGE, KEY, rig.doing)


def test_an_existing_image_is_neither_copied_nor_touched(rig: Rig, tmp_path: Path) -> None:
    library = tmp_path / "library.qcow2"
    qemu_img.create(str(library), size=GIB)
    before = library.read_bytes()
    guest = made(rig, msgspec.structs.replace(SMALL, disks=(DiskSpec(path=str(library)),)))
    rig.driver.resize(guest, msgspec.structs.replace(LARGE, disks=()), KEY, rig.doing)
    rig.driver.revert_resize(guest, None, KEY)
    assert library.read_bytes() == before


def test_without_room_for_the_copies_nothing_is_changed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = made(rig)
    none_left = kept.shutil.disk_usage("/")._replace(free=0)
    monkeypatch.setattr(kept.shutil, "disk_usage", lambda _path: none_left)
    with pytest.raises(HypervisorError, match="there are 0 left"):
        rig.driver.resize(guest, LARGE, KEY, rig.doing)
    rig.driver.revert_resize(guest, None, KEY)
    assert (size(rig, guest), leftovers(rig, guest)) == ((1, 128, 1), [])


def test_what_an_earlier_resize_has_kept_is_given_up_by_the_next_and_by_nobody_else(
    rig: Rig,
) -> None:
    guest = made(rig)
    rig.driver.resize(guest, LARGE, KEY, rig.doing)
    for disk in disks(rig, guest):
        written(disk, 0x5A)
    rig.driver.revert_resize(guest, None, "another")
    for verb in (rig.driver.revert_resize, rig.driver.confirm_resize):
        with pytest.raises(ResizeOver, match=KEY):
            verb(guest, LARGE, "another")
    assert (size(rig, guest), rig.driver.keeps(guest)) == ((2, 256, 2), KEY)
    rig.driver.resize(guest, msgspec.structs.replace(LARGE, vcpus=4), "another", rig.doing)
    assert (size(rig, guest), rig.driver.keeps(guest)) == ((4, 256, 2), "another")
    rig.driver.revert_resize(guest, LARGE, "another")
    assert size(rig, guest) == (2, 256, 2)
    assert all(holds(disk, 0x5A) for disk in disks(rig, guest))


# killed at every one of its writes


def killed_at(monkeypatch: pytest.MonkeyPatch, last: int) -> Callable[[], int]:
    """Die before write `last` of those that count; tells how many there have been."""
    count = itertools.count(1)
    seen = [0]

    def dying(fn: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            seen[0] = next(count)
            if seen[0] == last:
                raise Killed
            return fn(*args, **kwargs)

        return call

    for owner, name in (
        (kept.os, "fsync"),
        (kept.Path, "replace"),
        (kept.Path, "unlink"),
        (qemu_img, "resize"),
        (Resizer, "_define"),
    ):
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
    return lambda: seen[0]


def at_every_write(
    monkeypatch: pytest.MonkeyPatch, prepare: Callable[[], Any], act: Callable[[Any], None]
) -> Iterator[Any]:
    """What `prepare` made, each time with `act` killed one write later; ends when it is not."""
    for last in range(1, 60):
        subject = prepare()
        with monkeypatch.context() as patch:
            killed_at(patch, last)
            try:
                act(subject)
                return
            except Killed:
                pass
        yield subject
    raise AssertionError("it never comes to its end")


def test_a_resize_that_was_cut_short_anywhere_is_finished_or_undone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = 0
    for guest in at_every_write(
        monkeypatch, lambda: made(rig), lambda g: rig.driver.resize(g, LARGE, KEY, rig.doing)
    ):
        times += 1
        if times % 2:
            rig.driver.resize(guest, LARGE, KEY, rig.doing)
            assert size(rig, guest) == (2, 256, 2)
        later = rig.driver.remark(guest, 3)
        rig.driver.revert_resize(later, SMALL, KEY)
        assert (size(rig, later), leftovers(rig, later)) == ((1, 128, 1), [])
        assert all(holds(disk, 0x41 + n) for n, disk in enumerate(disks(rig, later)))
        rig.driver.destroy(later)
    assert times > 5


def test_a_revert_that_was_cut_short_anywhere_is_finished_and_never_confirmed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare() -> OwnedGuest:
        guest = made(rig)
        rig.driver.resize(guest, LARGE, KEY, rig.doing)
        for disk in disks(rig, guest):
            written(disk, 0x5A)
        return guest

    times = 0
    for guest in at_every_write(
        monkeypatch, prepare, lambda g: rig.driver.revert_resize(g, SMALL, KEY)
    ):
        times += 1
        half_back = any(holds(disk, 0x41 + n) for n, disk in enumerate(disks(rig, guest)))
        if half_back:
            with pytest.raises((HypervisorError, ResizeOver, ResizeReverting)):
                rig.driver.confirm_resize(guest, LARGE, KEY)
        rig.driver.revert_resize(guest, SMALL, KEY)
        assert (size(rig, guest), leftovers(rig, guest)) == ((1, 128, 1), [])
        assert all(holds(disk, 0x41 + n) for n, disk in enumerate(disks(rig, guest)))
        rig.driver.destroy(guest)
    assert times > 5


def test_a_confirm_that_was_cut_short_anywhere_is_finished_and_not_reverted_by_half(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare() -> OwnedGuest:
        guest = made(rig)
        rig.driver.resize(guest, LARGE, KEY, rig.doing)
        return guest

    times = 0
    for guest in at_every_write(
        monkeypatch, prepare, lambda g: rig.driver.confirm_resize(g, LARGE, KEY)
    ):
        times += 1
        if len(leftovers(rig, guest)) < 3:
            with pytest.raises(ResizeOver):
                rig.driver.revert_resize(guest, SMALL, KEY)
        rig.driver.confirm_resize(guest, LARGE, KEY)
        assert (size(rig, guest), leftovers(rig, guest)) == ((2, 256, 2), [])
        rig.driver.destroy(guest)
    assert times > 5


# QEMU


@pytest.mark.slow
def test_a_guest_sees_its_new_size_and_after_a_revert_its_old_one(
    libvirt_qemu: Libvirtd, tmp_path: Path
) -> None:
    image: Image = build(image_folder())
    with at_work(libvirt_qemu.qemu_uri, tmp_path) as rig:
        guest = made(
            rig,
            kernel=str(image.kernel),
            initrd=str(image.initrd),
            cmdline="console=ttyS0 muster.token=web-1",  # not quiet: the kernel tells its memory
        )

        def boots(times: int) -> str:
            rig.driver.start(guest)
            told = "MUSTER GUEST UP "
            wait_until(lambda: rig.serial(guest).count(told) >= times, BOOT_S, "it is up")
            last = rig.serial(guest).split("Linux version")[-1]
            rig.driver.stop(guest, force=True, timeout_s=0)
            return last

        rig.driver.resize(guest, LARGE, KEY, rig.doing)
        large = boots(1)
        for disk in disks(rig, guest):
            written(disk, 0x5A)
        rig.driver.revert_resize(guest, SMALL, KEY)
        small = boots(2)
        for log, gib, mib in ((large, 2, 256), (small, 1, 128)):
            assert f"MUSTER GUEST DISK vda {gib * 1024} MiB" in log
            assert "MUSTER GUEST DISK vdb 1024 MiB" in log
            total_kib = int(log.split("Memory: ")[1].split("K available")[0].split("/")[1])
            assert (mib - 16) * 1024 < total_kib <= mib * 1024
        assert [holds(disk, 0x41 + n) for n, disk in enumerate(disks(rig, guest))] == [True] * 2
        rig.driver.destroy(guest)
        assert not rig.folder(guest).exists()

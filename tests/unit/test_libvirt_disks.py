"""Images that we made go with their guest; everything else in the folder, or elsewhere, stays."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from agent.drivers.libvirt.disks import Disks
from agent.drivers.libvirt.templates import Templates
from common.errors import HypervisorError
from common.messages import DiskSpec
from common.runtime import Runtime

pytestmark = pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img (qemu-utils)")

INSTANCE = "11111111-1111-4111-8111-111111111111"
ONE = "aaaaaaaa-0000-4000-8000-000000000001"
OTHER = "aaaaaaaa-0000-4000-8000-000000000002"


def quietly(_phase: str) -> None:
    """Told the phases of a create."""


def at(folder: Path) -> Disks:
    return Disks(str(folder), Templates(Runtime()))


def make(disks: Disks, bearer: str, *specs: DiskSpec) -> list[Path]:
    plan = disks.plan(INSTANCE, bearer, specs)
    disks.make(INSTANCE, bearer, specs, plan, quietly)
    return [Path(disk.path) for disk in plan]


def test_a_new_disk_is_a_qcow2_of_the_size_asked_for(tmp_path: Path) -> None:
    [made] = make(at(tmp_path), ONE, DiskSpec(size_gib=3))
    head = made.read_bytes()[:32]
    assert head[:4] == b"QFI\xfb"
    assert int.from_bytes(head[24:32], "big") == 3 << 30
    assert made.parent == tmp_path / INSTANCE
    assert [f.name for f in made.parent.iterdir()] == [made.name], "no half-made file is left"


@pytest.mark.parametrize(("body", "found"), [(b"\0" * 4096, "raw"), (None, "qcow2")])
def test_an_existing_image_is_used_where_it_is_and_kept(
    tmp_path: Path, body: bytes | None, found: str
) -> None:
    disks = at(tmp_path / "instances")
    if body is None:
        [image] = make(at(tmp_path / "library"), OTHER, DiskSpec(size_gib=1))
    else:
        image = tmp_path / "image"
        image.write_bytes(body)
    spec = DiskSpec(path=str(image))
    [disk] = disks.plan(INSTANCE, ONE, [spec])
    assert (disk.path, disk.format) == (str(image), found)
    before = image.read_bytes()
    disks.make(INSTANCE, ONE, [spec], [disk], quietly)
    disks.remove(INSTANCE, ONE)
    assert image.read_bytes() == before


def test_the_disks_of_another_guest_of_the_same_instance_stay(tmp_path: Path) -> None:
    disks = at(tmp_path)
    [first] = make(disks, ONE, DiskSpec(size_gib=1))
    [second] = make(disks, OTHER, DiskSpec(size_gib=1))
    Path(disks.serial_log(INSTANCE)).write_text("hello")
    disks.remove(INSTANCE, ONE)
    assert not first.exists()
    assert second.exists()
    disks.remove(INSTANCE, OTHER)
    assert not (tmp_path / INSTANCE).exists()


def test_what_somebody_else_put_there_stays(tmp_path: Path) -> None:
    disks = at(tmp_path)
    make(disks, ONE, DiskSpec(size_gib=1))
    (tmp_path / INSTANCE / "notes.txt").write_text("mine")
    disks.remove(INSTANCE, ONE)
    assert [f.name for f in (tmp_path / INSTANCE).iterdir()] == ["notes.txt"]


def test_removing_twice_is_no_error(tmp_path: Path) -> None:
    disks = at(tmp_path)
    make(disks, ONE, DiskSpec(size_gib=1))
    disks.remove(INSTANCE, ONE)
    disks.remove(INSTANCE, ONE)


def test_an_existing_image_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(HypervisorError, match="no disk image /no/such"):
        at(tmp_path).plan(INSTANCE, ONE, [DiskSpec(path="/no/such")])


@pytest.mark.parametrize("instance", ["", ".", "..", "../../etc", "a/b", "/etc", "a\0b", "x" * 65])
def test_an_instance_can_not_lead_out_of_the_folder(tmp_path: Path, instance: str) -> None:
    disks = at(tmp_path)
    with pytest.raises(HypervisorError, match="name a folder"):
        disks.remove(instance, ONE)
    with pytest.raises(HypervisorError, match="name a folder"):
        disks.serial_log(instance)


def test_a_folder_that_can_not_be_made_is_told_with_its_option(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HypervisorError, match="instances_path"):
        make(at(tmp_path / "file"), ONE, DiskSpec(size_gib=1))

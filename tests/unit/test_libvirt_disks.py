"""Images that we made go with their guest; everything else in the folder, or elsewhere, stays."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agent.drivers.libvirt.disks import SIGN, Disks
from agent.drivers.libvirt.rbd import Images
from agent.drivers.libvirt.templates import Templates
from agent.drivers.libvirt.xml import Disk
from common.conf.rbd import Rbd
from common.errors import CallTimeout, HypervisorError
from common.messages import DiskSpec, ImageSource, RbdTarget, SnapshotDisk, SnapshotFiles
from common.model import TemplateFormat
from common.runtime import Runtime

pytestmark = pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img (qemu-utils)")

INSTANCE = "11111111-1111-4111-8111-111111111111"
ONE = "aaaaaaaa-0000-4000-8000-000000000001"
OTHER = "aaaaaaaa-0000-4000-8000-000000000002"


def quietly(_phase: str) -> None:
    """Told the phases of a create."""


def at(folder: Path) -> Disks:
    return Disks(str(folder), Templates(Runtime()), Images(Rbd(), Runtime()))


def make(disks: Disks, bearer: str, *specs: DiskSpec) -> list[Path]:
    plan = disks.plan(INSTANCE, bearer, specs)
    disks.sign(specs)
    disks.make(INSTANCE, bearer, specs, plan, quietly, set())
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
    disks.make(INSTANCE, ONE, [spec], [disk], quietly, set())
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


def test_the_log_of_another_guest_stays_also_where_it_has_no_disk(tmp_path: Path) -> None:
    pool, disks = pool_of(tmp_path), at(tmp_path / "instances")
    make(disks, OTHER, DiskSpec(size_gib=1, folder=str(pool)))
    log = Path(disks.serial_log(INSTANCE))
    log.write_text("hello")
    disks.remove(INSTANCE, ONE, [str(pool)], others=True)
    assert log.read_text() == "hello"
    disks.remove(INSTANCE, OTHER, [str(pool)])
    assert not log.parent.exists()


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


def template(tmp_path: Path, kind: str, size: str = "2G") -> ImageSource:
    path = tmp_path / f"template.{kind}"
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, str(path), size], check=True)
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    return ImageSource(url=f"file://{path}", sha256=checksum, format=TemplateFormat(kind))


def pool_of(tmp_path: Path) -> Path:
    pool = tmp_path / "pool"
    pool.mkdir(exist_ok=True)
    return pool


def from_template(disks: Disks, *specs: DiskSpec) -> list[Path]:
    disks.fetch(specs, (), lambda: None)
    return make(disks, ONE, *specs)


def info(path: Path) -> dict[str, Any]:
    said = subprocess.run(
        ["qemu-img", "info", "--output=json", str(path)], check=True, capture_output=True
    ).stdout
    found: dict[str, Any] = json.loads(said)
    return found


@pytest.mark.parametrize("kind", ["qcow2", "raw"])
@pytest.mark.parametrize("copy", [False, True])
def test_a_root_disk_begins_as_its_template_and_is_as_large_as_asked_for(
    tmp_path: Path, kind: str, copy: bool
) -> None:
    pool = pool_of(tmp_path)
    source = template(tmp_path, kind, "20M")
    [root] = from_template(
        at(tmp_path / "instances"),
        DiskSpec(source=source, size_gib=3, copy=copy, folder=str(pool)),
    )
    seen = info(root)
    assert (seen["format"], seen["virtual-size"]) == ("qcow2", 3 << 30)
    assert root.parent == pool / INSTANCE
    assert root.stat().st_mode & 0o777 == 0o600
    kept = str(pool / "templates" / f"{source.sha256}.{kind}")
    assert seen.get("backing-filename") == (None if copy else kept)
    if not copy:
        assert seen["backing-filename-format"] == kind


@pytest.mark.parametrize("copy", [False, True])
def test_without_a_size_it_is_as_large_as_the_template(tmp_path: Path, copy: bool) -> None:
    [root] = from_template(at(tmp_path), DiskSpec(source=template(tmp_path, "qcow2"), copy=copy))
    assert info(root)["virtual-size"] == 2 << 30


def test_a_disk_is_never_smaller_than_its_template(tmp_path: Path) -> None:
    source = template(tmp_path, "qcow2")
    with pytest.raises(HypervisorError, match=r"\(1 GiB\).*\(2 GiB\)"):
        from_template(at(tmp_path), DiskSpec(source=source, size_gib=1))


def test_a_copy_that_does_not_fit_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        free = 4096

    spec = DiskSpec(source=template(tmp_path, "qcow2"), copy=True)
    disks = at(tmp_path / "instances")
    disks.fetch([spec], (), lambda: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Full)
    with pytest.raises(HypervisorError, match=r"takes [0-9]+ bytes, and .* has 4096 left"):
        make(disks, ONE, spec)


def test_a_template_that_is_in_ceph_already_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = RbdTarget(pool="vms", image=f"muster-{ONE}-disk0", monitors=("127.0.0.1:1",))
    spec = DiskSpec(source=template(tmp_path, "qcow2"), rbd=target)
    instances = tmp_path / "instances"
    put: list[Path] = []

    def ensure(_images: Images, _target: RbdTarget, _sha: str, file: Path, *_more: Any) -> None:
        put.append(file)

    monkeypatch.setattr(Images, "ensure_template", ensure)
    monkeypatch.setattr(Images, "has_template", lambda *_: True)
    at(instances).fetch([spec], (), lambda: None)
    assert (put, instances.exists()) == ([], False)
    monkeypatch.setattr(Images, "has_template", lambda *_: False)
    at(instances).fetch([spec], (), lambda: None)
    assert [file.exists() for file in put] == [True]


def test_a_copy_ends_when_nobody_waits_for_it(tmp_path: Path) -> None:
    spec = DiskSpec(source=template(tmp_path, "qcow2"), copy=True)
    disks = at(tmp_path / "instances")
    disks.fetch([spec], (), lambda: None)
    told: list[str] = []

    def doing(phase: str) -> None:
        told.append(phase)
        if len(told) > 1:
            raise CallTimeout("no time was left")

    with pytest.raises(CallTimeout):
        disks.make(INSTANCE, ONE, [spec], disks.plan(INSTANCE, ONE, [spec]), doing, set())
    assert told == ["root disk", "root disk"]


def test_the_hypervisors_own_user_can_reach_disks_whatever_the_agents_umask_is(
    tmp_path: Path,
) -> None:
    source, instances = template(tmp_path, "qcow2"), tmp_path / "deep" / "instances"
    before = os.umask(0o077)
    try:
        [root] = from_template(at(instances), DiskSpec(source=source))
    finally:
        os.umask(before)
    [cached] = (instances / "templates").iterdir()
    assert cached.stat().st_mode & 0o777 == 0o444
    for folder in (root.parent, cached.parent, instances, tmp_path / "deep"):
        assert folder.stat().st_mode & 0o777 == 0o711


def test_disks_go_from_every_pool_and_templates_stay(tmp_path: Path) -> None:
    pool, disks = pool_of(tmp_path), at(tmp_path / "instances")
    source = template(tmp_path, "qcow2")
    made = from_template(
        disks,
        DiskSpec(source=source, folder=str(pool)),
        DiskSpec(size_gib=1),
        DiskSpec(size_gib=1, folder=str(pool)),
    )
    assert [path.parent.parent for path in made] == [pool, tmp_path / "instances", pool]
    disks.write_seed(INSTANCE, ONE, b"keys")
    seed = Path(disks.seed(INSTANCE, ONE))
    assert seed.stat().st_mode & 0o777 == 0o600
    (pool / INSTANCE / f"{ONE}.disk7.qcow2.part").touch()
    disks.remove(INSTANCE, ONE, [str(pool)])
    assert not any(path.exists() for path in (*made, seed))
    assert sorted(path.name for path in pool.iterdir()) == [SIGN, "templates"]
    assert len(list((pool / "templates").iterdir())) == 1


def test_an_iso_is_attached_from_the_cache(tmp_path: Path) -> None:
    source = ImageSource(url="file:///cd", sha256="0" * 64, format=TemplateFormat.ISO)
    [disc] = at(tmp_path).plan(INSTANCE, ONE, [DiskSpec(source=source)])
    assert disc == Disk(str(tmp_path / "templates" / f"{'0' * 64}.iso"), "raw", "cdrom")


def test_a_pool_that_is_not_mounted_is_neither_filled_nor_forgotten(tmp_path: Path) -> None:
    disks, away = at(tmp_path / "instances"), str(tmp_path / "away")
    with pytest.raises(HypervisorError, match=f"{away} is not on this host"):
        make(disks, ONE, DiskSpec(size_gib=1, folder=away))
    with pytest.raises(HypervisorError, match="mount it"):
        disks.remove(INSTANCE, ONE, [away])
    assert not Path(away).exists()


def test_an_empty_mount_point_is_not_taken_for_a_pool_that_was_cleaned(tmp_path: Path) -> None:
    pool, disks = pool_of(tmp_path), at(tmp_path / "instances")
    [made] = make(disks, ONE, DiskSpec(size_gib=1, folder=str(pool)))
    mounted = pool.rename(tmp_path / "server")
    pool_of(tmp_path)
    for _ in range(2):
        with pytest.raises(HypervisorError, match=r"pool is not mounted: it has no \.muster-pool"):
            disks.remove(INSTANCE, ONE, [str(pool)])
    pool.rmdir()
    mounted.rename(pool)
    for _ in range(2):
        disks.remove(INSTANCE, ONE, [str(pool)])
    assert not made.parent.exists()


KEPT = SnapshotFiles(instance=INSTANCE, snapshot="s-1")


def written(path: Path, byte: int) -> None:
    """64 KiB of this byte at the beginning of an image."""
    io("-c", f"write -q -P {byte} 0 64k", str(path))


def holds(path: Path, byte: int) -> bool:
    return "Pattern verification failed" not in io("-c", f"read -P {byte} 0 64k", str(path))


def io(*words: str) -> str:
    done = subprocess.run(["qemu-io", *words], check=True, capture_output=True, text=True)
    return done.stdout


def from_snapshot(n: int, files: SnapshotFiles = KEPT, **more: Any) -> DiskSpec:
    kept = SnapshotDisk(instance=files.instance, snapshot=files.snapshot, folder=files.folder, n=n)
    return DiskSpec(size_gib=2, snapshot=kept, **more)


@pytest.mark.parametrize("shared", [False, True])
def test_a_snapshot_holds_what_overlays_and_new_disks_held_and_leans_on_nothing(
    tmp_path: Path, shared: bool
) -> None:
    disks, store = at(tmp_path / "instances"), tmp_path / "store"
    store.mkdir()
    files = SnapshotFiles(instance=INSTANCE, snapshot="s-1", folder=str(store) if shared else None)
    image = template(tmp_path, "qcow2", "1G")
    specs = [DiskSpec(size_gib=2, source=image), DiskSpec(size_gib=2)]
    disks.fetch(specs, [], lambda: None)
    for n, path in enumerate(make(disks, ONE, *specs)):
        written(path, 0x50 + n)
    told: list[str] = []
    disks.keep(ONE, specs, files, told.append)
    assert set(told) == {"snapshot"}
    disks.remove(INSTANCE, ONE)
    folder = (store if shared else tmp_path / "instances") / "snapshots" / INSTANCE / "s-1"
    assert sorted(path.name for path in folder.iterdir()) == ["disk0.qcow2", "disk1.qcow2"]
    shutil.rmtree(tmp_path / "instances" / "templates")  # it leans on nothing
    made = make(disks, OTHER, *[from_snapshot(n, files) for n in range(2)])
    assert [holds(path, 0x50 + n) for n, path in enumerate(made)] == [True, True]
    disks.drop(files)
    disks.drop(files)  # already gone is success
    assert not folder.parent.exists()
    assert all(holds(path, 0x50 + n) for n, path in enumerate(made))


def test_images_of_others_and_isos_are_no_part_of_a_snapshot(tmp_path: Path) -> None:
    disks = at(tmp_path)
    image = tmp_path / "theirs"
    image.write_bytes(bytes(4096))
    iso = ImageSource(url="file:///cd.iso", sha256="0" * 64, format=TemplateFormat.ISO)
    disks.keep(ONE, [DiskSpec(path=str(image)), DiskSpec(source=iso)], KEPT, quietly)
    assert not (tmp_path / "snapshots").exists()


def test_a_snapshot_is_taken_over_what_an_earlier_try_has_left(tmp_path: Path) -> None:
    disks = at(tmp_path)
    spec = DiskSpec(size_gib=2)
    [path] = make(disks, ONE, spec)
    written(path, 1)
    disks.keep(ONE, [spec], KEPT, quietly)
    written(path, 2)
    (tmp_path / "snapshots" / INSTANCE / "s-1" / "disk0.qcow2.part").write_text("half")
    disks.keep(ONE, [spec], KEPT, quietly)
    [made] = make(disks, OTHER, from_snapshot(0))
    assert holds(made, 2)
    assert [f.name for f in (tmp_path / "snapshots" / INSTANCE / "s-1").iterdir()] == [
        "disk0.qcow2"
    ]


def test_a_copy_that_nobody_waits_for_any_more_is_given_up(tmp_path: Path) -> None:
    disks = at(tmp_path)
    spec = DiskSpec(size_gib=2)
    make(disks, ONE, spec)

    def over(_phase: str) -> None:
        raise CallTimeout("over", "")

    with pytest.raises(CallTimeout):
        disks.keep(ONE, [spec], KEPT, over)
    assert not list(tmp_path.glob("snapshots/*/*/*.qcow2"))


def test_a_snapshot_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(HypervisorError, match=r"no snapshot .*s-1/disk0\.qcow2 on this host"):
        make(at(tmp_path), OTHER, from_snapshot(0))


def test_a_store_that_is_not_mounted_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    files = SnapshotFiles(instance=INSTANCE, snapshot="s-1", folder=str(tmp_path / "away"))
    for call in (
        lambda: at(tmp_path).keep(ONE, [DiskSpec(size_gib=1)], files, quietly),
        lambda: at(tmp_path).drop(files),
    ):
        with pytest.raises(HypervisorError, match="is not on this host"):
            call()
    (tmp_path / "away").mkdir()
    with pytest.raises(HypervisorError, match="is not mounted"):
        at(tmp_path).drop(files)


def test_a_snapshot_without_room_for_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks = at(tmp_path)
    spec = DiskSpec(size_gib=2)
    make(disks, ONE, spec)
    usage = shutil.disk_usage(tmp_path)._replace(free=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(HypervisorError, match="has 1 left"):
        disks.keep(ONE, [spec], KEPT, quietly)

"""Disks in a real Ceph: made whole or not at all, removed with care, and fenced before they go."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from agent.drivers.libvirt import ceph as link
from agent.drivers.libvirt.rbd import Images
from common.conf.rbd import Rbd
from common.errors import BadConfig, CallTimeout, HypervisorError, MusterError
from common.messages import DiskSpec, ImageSource, RbdTarget
from common.model import TemplateFormat
from common.runtime import Runtime
from devstack.parts.ceph import Ceph
from tests.wait import wait_until

pytestmark = pytest.mark.real

HOUR_S = 3600


def alive() -> None:
    """Somebody waits for the disk."""


@pytest.fixture
def images(ceph: Ceph) -> Images:
    return at(ceph)


def at(ceph: Ceph, **changes: object) -> Images:
    plain = {"user": ceph.user, "keyring": str(ceph.keyring), "timeout": 10}
    return Images(Rbd(**{**plain, **changes}), Runtime("ceph-test"))  # type: ignore[arg-type]


@pytest.fixture
def target(ceph: Ceph) -> RbdTarget:
    return RbdTarget(pool=ceph.pool, image=f"muster-{uuid.uuid4()}-disk0", monitors=(ceph.monitor,))


@pytest.fixture
def source(tmp_path: Path) -> ImageSource:
    """A qcow2 of 8 MiB that begins with sevens."""
    file = tmp_path / f"{uuid.uuid4()}.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(file), "8M"], check=True)
    # Its number makes it another template each time.
    mark = f"write -P {file.name.encode()[0] % 200} 4M 64k"
    subprocess.run(["qemu-io", "-c", "write -P 7 0 1M", "-c", mark, str(file)], check=True)
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    return ImageSource(url=f"file://{file}", sha256=checksum, format=TemplateFormat.QCOW2)


def file_of(source: ImageSource) -> Path:
    return Path(source.url.removeprefix("file://"))


def listed(ceph: Ceph) -> list[str]:
    return ceph.rbd("ls", ceph.pool).split()


def blocklist(ceph: Ceph) -> list[str]:
    return [line.split()[0] for line in ceph.ceph("osd", "blocklist", "ls").splitlines() if line]


def begins(ceph: Ceph, target: RbdTarget, size: int = 2 << 20) -> bytes:
    """The first bytes of an image."""
    settings, libraries = Rbd(user=ceph.user, keyring=str(ceph.keyring)), link.libraries()
    with (
        link.Cluster(settings, libraries, target.monitors).pool(target.pool, "read") as (_, ioctx),
        libraries.rbd.Image(ioctx, target.image, read_only=True) as image,
    ):
        body: bytes = image.read(0, size)
        return body


class Writer:
    """A client that has an image open, as a guest's QEMU has, and writes when it is told."""

    def __init__(self, ceph: Ceph, target: RbdTarget, log: Path) -> None:
        settings = Rbd(user=ceph.user, keyring=str(ceph.keyring))
        place = link.qemu_path(settings, target.monitors, target.pool, target.image)
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                ["qemu-io", "-f", "raw", place],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def write(self) -> str:
        """What it says to one more write."""
        before = self.log.read_text()
        assert self.process.stdin is not None
        self.process.stdin.write(b"write -P 9 0 64k\n")
        self.process.stdin.flush()
        said = ("wrote", "failed")
        wait_until(
            lambda: any(word in self.log.read_text()[len(before) :] for word in said), 30, "a word"
        )
        return self.log.read_text()[len(before) :]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def writer(ceph: Ceph, target: RbdTarget, tmp_path: Path) -> Iterator[Callable[[], Writer]]:
    """Opens the target's image."""
    writers: list[Writer] = []

    def opened() -> Writer:
        writers.append(Writer(ceph, target, tmp_path / f"writer-{len(writers)}.log"))
        return writers[-1]

    yield opened
    for each in writers:
        each.close()


def test_a_disk_is_made_of_the_size_asked_for_and_gone_once_removed(
    ceph: Ceph, images: Images, target: RbdTarget
) -> None:
    images.make(target, DiskSpec(size_gib=3, rbd=target), alive)
    assert '"size":3221225472' in ceph.rbd(
        "info", f"{target.pool}/{target.image}", "--format", "json"
    )
    images.remove(target)
    assert target.image not in listed(ceph)
    images.remove(target)  # already gone is as good


def test_a_full_copy_that_nobody_waits_for_any_more_has_no_name(
    ceph: Ceph, images: Images, target: RbdTarget, source: ImageSource
) -> None:
    images.ensure_template(target, source.sha256, file_of(source), "qcow2", alive)

    def given_up() -> None:
        raise CallTimeout("nobody waits", "")

    with pytest.raises(CallTimeout):
        images.make(target, DiskSpec(rbd=target, source=source, copy=True), given_up)
    assert target.image not in listed(ceph)
    images.remove(target)


@pytest.mark.parametrize("copy", [False, True], ids=["clone", "copy"])
def test_a_disk_of_a_template_begins_as_it_and_is_as_large_as_asked_for(
    ceph: Ceph, images: Images, target: RbdTarget, source: ImageSource, copy: bool
) -> None:
    images.ensure_template(target, source.sha256, file_of(source), "qcow2", alive)
    images.make(target, DiskSpec(size_gib=1, rbd=target, source=source, copy=copy), alive)
    body = begins(ceph, target)
    assert (body[0], body[1 << 20]) == (7, 0)
    info = ceph.rbd("info", f"{target.pool}/{target.image}", "--format", "json")
    assert ('"parent":' in info) is not copy
    assert '"size":1073741824' in info
    images.remove(target)


def test_a_template_is_copied_into_a_pool_once_also_by_two_at_once(
    ceph: Ceph, target: RbdTarget, source: ImageSource
) -> None:
    failed: list[MusterError] = []

    def ensure() -> None:
        try:
            at(ceph).ensure_template(target, source.sha256, file_of(source), "qcow2", alive)
        except MusterError as exc:
            failed.append(exc)

    both = [threading.Thread(target=ensure) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(60)
    assert failed == []
    name = f"muster-template-{source.sha256}"
    assert listed(ceph).count(name) == 1
    assert f"{name}.part" not in listed(ceph)
    file_of(source).unlink()
    at(ceph).ensure_template(target, source.sha256, file_of(source), "qcow2", alive)


def test_an_import_that_was_cut_short_is_done_anew(
    ceph: Ceph, images: Images, target: RbdTarget, source: ImageSource
) -> None:
    part = f"{target.pool}/muster-template-{source.sha256}.part"
    ceph.rbd("create", part, "--size", "8")
    ceph.rbd("snap", "create", f"{part}@muster")
    ceph.rbd("snap", "protect", f"{part}@muster")
    assert not images.has_template(target, source.sha256)
    images.ensure_template(target, source.sha256, file_of(source), "qcow2", alive)
    assert images.has_template(target, source.sha256)
    images.make(target, DiskSpec(rbd=target, source=source), alive)
    assert begins(ceph, target)[0] == 7
    images.remove(target)


def test_a_disk_that_nobody_waits_for_any_more_has_no_name(
    ceph: Ceph, images: Images, target: RbdTarget
) -> None:
    def given_up() -> None:
        raise CallTimeout("nobody waits", "")

    with pytest.raises(CallTimeout):
        images.make(target, DiskSpec(size_gib=1, rbd=target), given_up)
    assert target.image not in listed(ceph)
    images.remove(target)
    assert f"{target.image}.part" not in listed(ceph)


def test_a_disk_below_its_templates_size_is_refused(
    images: Images, target: RbdTarget, tmp_path: Path
) -> None:
    file = tmp_path / "large.raw"
    with file.open("wb") as large:
        large.truncate(2 << 30)
    source = ImageSource(
        url=f"file://{file}", sha256=uuid.uuid4().hex * 2, format=TemplateFormat.RAW
    )
    images.ensure_template(target, source.sha256, file, "raw", alive)
    with pytest.raises(HypervisorError, match="smaller than its template"):
        images.make(target, DiskSpec(size_gib=1, rbd=target, source=source), alive)
    images.remove(target)


def test_an_image_that_another_agent_is_removing_is_said_to_be(
    images: Images, target: RbdTarget
) -> None:
    libraries = link.libraries()

    class Removing:
        def remove(self, _ioctx: object, _name: str) -> None:
            raise libraries.rbd.ImageBusy("it is in the trash")

    rbd = SimpleNamespace(**{**vars(libraries.rbd), "RBD": Removing})
    images._libraries = msgspec.structs.replace(libraries, rbd=rbd)
    with pytest.raises(link.Busy, match="another agent is removing"):
        images.remove(target)


def test_a_disk_that_is_open_is_not_removed_and_it_is_told_where(
    ceph: Ceph, images: Images, target: RbdTarget, writer: Callable[[], Writer]
) -> None:
    images.make(target, DiskSpec(size_gib=1, rbd=target), alive)
    assert "wrote" in writer().write()
    seen = images.attached(target)
    assert (seen.image, len(seen.addresses)) == (target.image, 1)
    with pytest.raises(HypervisorError, match=f"is open at {seen.addresses[0]}"):
        images.remove(target)
    assert seen.addresses[0] not in blocklist(ceph)


def test_who_has_a_disk_open_is_fenced_before_it_goes_and_nobody_else_of_its_host(
    ceph: Ceph, images: Images, target: RbdTarget, writer: Callable[[], Writer], tmp_path: Path
) -> None:
    images.make(target, DiskSpec(size_gib=1, rbd=target), alive)
    other = RbdTarget(
        pool=target.pool, image=f"muster-{uuid.uuid4()}-disk0", monitors=target.monitors
    )
    images.make(other, DiskSpec(size_gib=1, rbd=other), alive)
    neighbour = Writer(ceph, other, tmp_path / "neighbour.log")
    try:
        guest = writer()
        assert "wrote" in guest.write()
        assert "wrote" in neighbour.write()
        [address] = images.attached(target).addresses
        told: list[str] = []
        images.fence_and_remove(target, ("127.0.0.1:0/1234567",), HOUR_S, told.append)
        first = sorted([f"fenced {address}", "fenced 127.0.0.1:0/1234567"])
        assert told[:2] == first
        assert told[2].startswith("broke the lock of client.")
        assert told[3:] == ["removed"]
        assert address in blocklist(ceph)
        # The next guest of the same name, at once.
        images.make(target, DiskSpec(size_gib=1, rbd=target), alive)
        assert "failed" in guest.write()
        assert not any(begins(ceph, target))
        assert "wrote" in neighbour.write(), "of the same host, and alive"
    finally:
        neighbour.close()
    images.fence_and_remove(target, (), HOUR_S)
    images.fence_and_remove(target, (address,), HOUR_S)  # again, after it has gone


def test_a_lock_that_goes_before_it_is_broken_does_not_end_a_fencing(
    ceph: Ceph, images: Images, target: RbdTarget, writer: Callable[[], Writer]
) -> None:
    images.make(target, DiskSpec(size_gib=1, rbd=target), alive)
    assert "wrote" in writer().write()
    place = f"{target.pool}/{target.image}"

    def told(word: str) -> None:
        if word.startswith("fenced"):
            [lock] = json.loads(ceph.rbd("lock", "ls", place, "--format", "json"))
            ceph.rbd("lock", "rm", place, lock["id"], lock["locker"])

    images.fence_and_remove(target, (), HOUR_S, told)
    assert target.image not in listed(ceph)


def test_who_is_still_making_a_disk_is_fenced_as_well(
    ceph: Ceph, images: Images, target: RbdTarget, tmp_path: Path
) -> None:
    half = msgspec.structs.replace(target, image=f"{target.image}.part")
    ceph.rbd("create", f"{half.pool}/{half.image}", "--size", "64")
    maker = Writer(ceph, half, tmp_path / "maker.log")
    try:
        assert "wrote" in maker.write()
        images.fence_and_remove(target, (), HOUR_S)
        assert half.image not in listed(ceph)
        assert "failed" in maker.write()
    finally:
        maker.close()


def test_what_is_not_one_client_is_never_fenced(
    ceph: Ceph, images: Images, target: RbdTarget
) -> None:
    before = blocklist(ceph)
    images.make(target, DiskSpec(size_gib=1, rbd=target), alive)
    for address in ("127.0.0.1", "127.0.0.1:0/0", "127.0.0.1:0", "10.0.0.0/8"):
        with pytest.raises(HypervisorError, match="not the address of one client"):
            images.fence_and_remove(target, (address,), HOUR_S)
    assert blocklist(ceph) == before
    assert target.image in listed(ceph)
    images.remove(target)


def test_an_image_that_is_not_a_guests_is_neither_fenced_nor_removed(
    ceph: Ceph, images: Images, target: RbdTarget
) -> None:
    name = f"theirs-{uuid.uuid4()}"
    ceph.rbd("create", f"{ceph.pool}/{name}", "--size", "8")
    theirs = RbdTarget(pool=ceph.pool, image=name, monitors=target.monitors)
    for attempt in (lambda: images.remove(theirs), lambda: images.fence_and_remove(theirs, (), 60)):
        with pytest.raises(HypervisorError, match="no image of a guest of ours"):
            attempt()
    assert name in listed(ceph)


def test_a_cluster_that_does_not_answer_holds_nobody_up(ceph: Ceph, target: RbdTarget) -> None:
    images = at(ceph, timeout=1)
    images.make(target, DiskSpec(size_gib=1, rbd=target), alive)
    assert ceph.osd_pid
    began = time.monotonic()
    os.kill(ceph.osd_pid, signal.SIGSTOP)
    try:
        for attempt in (
            lambda: images.attached(target),
            lambda: images.remove(target),
            lambda: images.fence_and_remove(target, (), HOUR_S),
        ):
            with pytest.raises(HypervisorError, match="no answer in time"):
                attempt()
    finally:
        os.kill(ceph.osd_pid, signal.SIGCONT)
    assert time.monotonic() - began < 60.0, "each ends by its own limit, not by a test's"
    at(ceph).remove(target)


def test_what_is_missing_is_named(ceph: Ceph, images: Images, target: RbdTarget) -> None:
    nowhere = RbdTarget(pool="nowhere", image=target.image, monitors=target.monitors)
    with pytest.raises(HypervisorError, match="has no pool nowhere"):
        images.remove(nowhere)
    with pytest.raises(HypervisorError, match="keyring is not set"):
        at(ceph, keyring="").remove(target)
    with pytest.raises(HypervisorError, match="No such file"):
        at(ceph, keyring="/no/such/keyring").remove(target)
    with pytest.raises(HypervisorError, match=r"no key in \[client.nobody\]"):
        at(ceph, user="nobody").remove(target)
    with pytest.raises(HypervisorError, match="it is not there"):
        images.attached(target)


def test_libraries_of_another_python_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "rados_none.cpython-39-x86_64-linux-gnu.so").touch()
    with pytest.raises(BadConfig, match="no module rados_none for Python"):
        link.module("rados_none", tmp_path)


def test_an_image_made_from_a_snapshot_holds_what_was_copied_and_is_as_large_as_asked(
    ceph: Ceph, images: Images, target: RbdTarget, source: ImageSource
) -> None:
    images.make(target, DiskSpec(size_gib=1), alive, str(file_of(source)))
    assert begins(ceph, target)[: 1 << 20] == b"\x07" * (1 << 20)
    assert "1 GiB" in ceph.rbd("info", f"{ceph.pool}/{target.image}")
    images.remove(target)


def test_a_name_that_is_taken_is_refused_and_its_image_stays(
    ceph: Ceph, images: Images, target: RbdTarget
) -> None:
    images.reach(target)
    images.make(target, DiskSpec(size_gib=1, rbd=target), alive)
    for attempt in (
        lambda: images.reach(target),
        lambda: images.make(target, DiskSpec(size_gib=2, rbd=target), alive),
    ):
        with pytest.raises(link.Taken, match="is there already"):
            attempt()
    assert f"{target.image}.part" not in listed(ceph)
    assert "1 GiB" in ceph.rbd("info", f"{ceph.pool}/{target.image}")
    images.remove(target)


def test_a_cluster_that_is_waited_for_again_keeps_its_osd(ceph: Ceph) -> None:
    osd = ceph.osd_pid
    ceph.wait_ready()
    assert ceph.osd_pid == osd != 0

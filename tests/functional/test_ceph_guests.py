"""Guests of libvirt whose disks are in a real Ceph, and what they leave there: nothing."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("libvirt")

from agent.drivers.base import OwnedGuest
from agent.effects import Mode
from common import messages as m
from common.conf.rbd import Rbd
from common.errors import HypervisorError
from common.messages import DiskSpec, GuestSpec, RbdTarget
from common.model import TemplateFormat
from common.ownership import Mark, new_bearer
from common.states import PowerState
from devstack.image import Image, bootable
from devstack.parts.ceph import Ceph
from devstack.parts.libvirtd import Libvirtd
from tests.functional.dying_agent import Host
from tests.functional.libvirt_rig import FLEET, Rig, at_work
from tests.wait import wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow]

BOOT_S = 120.0  # three seconds on an idle machine


@pytest.fixture
def rig(libvirtd_near: Libvirtd, ceph: Ceph, tmp_path: Path) -> Iterator[Rig]:
    rbd = Rbd(user=ceph.user, keyring=str(ceph.keyring), timeout=10)
    with at_work(libvirtd_near.qemu_uri, tmp_path, rbd=rbd) as rig:
        yield rig


class Writing:
    """A guest that writes to its disk in Ceph for ever; `guest` is defined, and off."""

    def __init__(self, rig: Rig, ceph: Ceph, image: Image) -> None:
        self._rig = rig
        bearer = str(uuid.uuid4())
        self.mark = Mark(fleet=FLEET, instance=str(uuid.uuid4()), generation=1, bearer=bearer)
        self.target = RbdTarget(
            pool=ceph.pool, image=f"muster-{bearer}-disk0", monitors=(ceph.monitor,)
        )
        self.spec = GuestSpec(
            name="writer",
            vcpus=1,
            memory_mib=128,
            disks=(DiskSpec(size_gib=1, rbd=self.target),),
            kernel=str(image.kernel),
            initrd=str(image.initrd),
            cmdline="console=ttyS0 quiet muster.token=writer muster.write=vda",
        )

    def made(self) -> OwnedGuest:
        seen = self._rig.driver.create(self.spec, self.mark, self._rig.doing)
        return OwnedGuest(self.mark.bearer, self.mark, seen)

    def said(self, word: str) -> int:
        """How often its console says so."""
        guest = OwnedGuest(self.mark.bearer, self.mark, None)  # type: ignore[arg-type]
        return len(re.findall(rf"MUSTER GUEST {word}\b", self._rig.serial(guest)))

    def says(self, word: str, more: int = 1) -> None:
        before = self.said(word)
        wait_until(lambda: self.said(word) >= before + more, BOOT_S, f"the guest says {word}")


@pytest.fixture
def writing(rig: Rig, ceph: Ceph, image: Image) -> Writing:
    return Writing(rig, ceph, image)


def images(ceph: Ceph) -> list[str]:
    return [name for name in ceph.rbd("ls", ceph.pool).split() if "template" not in name]


def test_a_guest_writes_to_its_disk_in_ceph_and_takes_it_along(
    rig: Rig, ceph: Ceph, writing: Writing, libvirtd_near: Libvirtd, tmp_path: Path
) -> None:
    guest = writing.made()
    assert writing.target.image in images(ceph)
    rig.driver.start(guest)
    writing.says("WROTE")

    [attached] = rig.driver.attached(guest)
    assert (attached.pool, attached.image) == (ceph.pool, writing.target.image)
    [address] = attached.addresses
    assert re.fullmatch(r"127\.0\.0\.1:0/[1-9][0-9]+", address)

    [key] = re.findall(r"key = (\S+)", ceph.keyring.read_text())
    seen = libvirtd_near.virsh("dumpxml", "--security-info", "writer")
    arguments = Path(f"/proc/{libvirtd_near.qemu_pids()['writer']}/cmdline").read_text()
    assert "protocol='rbd'" in seen
    assert key not in seen + arguments
    assert key not in "".join(
        file.read_text(errors="replace")
        for folder in (libvirtd_near.folder, tmp_path)
        for file in folder.rglob("*")
        if file.is_file() and file.stat().st_size < 1 << 20
    ), "nor is it in any file of libvirt's or of ours"

    rig.driver.reboot(guest, force=True, timeout_s=1)
    [again] = rig.driver.attached(guest)
    assert again.addresses != attached.addresses, "another process, another client"
    writing.says("WROTE")
    rig.driver.destroy(guest)
    assert writing.target.image not in images(ceph)


def test_a_guest_boots_from_a_clone_of_its_template(
    rig: Rig, ceph: Ceph, writing: Writing, image: Image
) -> None:
    template = bootable(image)
    source = m.ImageSource(
        url=template.as_uri(),
        sha256=hashlib.sha256(template.read_bytes()).hexdigest(),
        format=TemplateFormat.QCOW2,
    )
    root = DiskSpec(size_gib=2, rbd=writing.target, source=source)
    writing.spec = GuestSpec(name="booter", vcpus=1, memory_mib=128, disks=(root,))
    guest = writing.made()
    assert rig.phases == ["template", "network", "define", "root disk"]
    info = ceph.rbd("info", f"{ceph.pool}/{writing.target.image}")
    assert f"parent: {ceph.pool}/muster-template-{source.sha256}@muster" in info
    rig.driver.start(guest)
    writing.says("DISK vda 2048 MiB")
    wait_until(lambda: writing.said("UP"), BOOT_S, "the guest is up")
    rig.driver.destroy(guest)
    assert writing.target.image not in images(ceph)


def test_a_guest_starts_again_after_libvirt_has_forgotten_the_key(
    rig: Rig, writing: Writing, libvirtd_near: Libvirtd
) -> None:
    guest = writing.made()
    rig.driver.start(guest)
    rig.driver.stop(guest, force=True, timeout_s=1)
    [secret] = re.findall(r"[0-9a-f]{8}-[0-9a-f-]{27}", libvirtd_near.virsh("secret-list"))
    libvirtd_near.virsh("secret-undefine", secret)
    rig.driver.start(guest)
    assert rig.look(guest).power_state is PowerState.RUNNING
    rig.driver.destroy(guest)


def test_a_guest_that_can_not_be_made_leaves_nothing_in_ceph(
    rig: Rig, ceph: Ceph, writing: Writing
) -> None:
    before = images(ceph)
    nowhere = RbdTarget(
        pool="nowhere", image=f"muster-{writing.mark.bearer}-disk1", monitors=(ceph.monitor,)
    )
    first = writing.spec.disks[0]
    both: dict[str, Any] = {"disks": (first, DiskSpec(size_gib=1, rbd=nowhere))}
    writing.spec = msgspec.structs.replace(writing.spec, **both)
    with pytest.raises(HypervisorError, match="has no pool nowhere"):
        writing.made()
    assert images(ceph) == before


def test_a_disk_that_is_named_by_another_guest_is_refused(rig: Rig, writing: Writing) -> None:
    writing.mark = Mark(fleet=FLEET, instance="i", generation=1, bearer=str(uuid.uuid4()))
    with pytest.raises(HypervisorError, match="not named by its guest"):
        writing.made()


@pytest.mark.parametrize(
    ("phase", "times", "wanted"),
    [("root disk", 2, True), ("start", 1, True), ("root disk", 2, False)],
)
def test_an_agent_that_dies_over_an_image_leaves_nothing_that_is_not_found(
    ceph: Ceph,
    writing: Writing,
    libvirtd_near: Libvirtd,
    tmp_path: Path,
    phase: str,
    times: int,
    wanted: bool,
) -> None:
    instance = str(uuid.uuid4())
    writing.target = msgspec.structs.replace(
        writing.target, image=f"muster-{new_bearer(FLEET, instance, 1)}-disk0"
    )
    spec = msgspec.structs.replace(writing.spec, disks=(DiskSpec(size_gib=1, rbd=writing.target),))
    start = command("start_vm", 1, instance, {"guest": m.builtins(spec), "create": True})
    program = [sys.executable, "-m", "tests.functional.dying_agent"]
    access = [str(times), ceph.user, str(ceph.keyring)]
    dying = subprocess.Popen(
        [*program, libvirtd_near.qemu_uri, str(tmp_path), phase, *access],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert dying.stdin is not None
        assert dying.stdout is not None
        dying.stdin.write(m.encode(start).decode())
        dying.stdin.close()
        assert dying.stdout.readline() == f"{phase}\n"
    finally:
        dying.kill()
        dying.wait()

    host = Host(libvirtd_near.qemu_uri, tmp_path, Rbd(user=ceph.user, keyring=str(ceph.keyring)))
    try:
        again = host.carry_out(start, Mode.RESUME if wanted else Mode.ABANDON)
        if wanted:
            assert again.outcome is m.Outcome.SUCCEEDED, again.error
            [attached] = again.attached
            assert (attached.image, len(attached.addresses)) == (writing.target.image, 1)
        gone = host.carry_out(command("terminate_instance", 2, instance, {}))
        assert gone.outcome is m.Outcome.SUCCEEDED, gone.error
    finally:
        host.close()
    assert writing.target.image not in images(ceph)
    assert f"{writing.target.image}.part" not in images(ceph)
    assert libvirtd_near.virsh("list", "--all", "--name").split() == []


def command(kind: str, generation: int, instance: str, spec: dict[str, Any]) -> m.Command:
    return m.Command(
        id=str(uuid.uuid4()),
        kind=m.CommandKind(kind),
        fleet=FLEET,
        host="host-1",
        session=1,
        instance=instance,
        generation=generation,
        timeout_s=120.0,
        spec=spec,
    )

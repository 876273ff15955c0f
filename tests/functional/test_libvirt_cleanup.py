"""What a guest has left goes, although its domain can not be asked for it any more."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("libvirt")

from common import messages as m
from common.errors import HypervisorError
from common.messages import DiskSpec, GuestFiles, NicSpec
from common.model import Direction, Protocol, Rule
from common.ownership import new_bearer
from devstack.parts.libvirtd import Libvirtd
from tests.functional.dying_agent import Host
from tests.functional.libvirt_rig import FLEET, Rig, at_work, filtering

pytestmark = pytest.mark.real

MAC = "52:54:00:12:34:56"


@pytest.fixture
def rig(libvirt_mock: Libvirtd, tmp_path: Path) -> Iterator[Rig]:
    with at_work(libvirt_mock.mock_uri, tmp_path) as rig:
        rig.clear()  # the mock begins with a guest of its own
        yield rig


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    folder = tmp_path / "pool"
    folder.mkdir()
    return folder


def files_of(folder: Path) -> list[str]:
    """All that is below a folder but for what says that it is mounted."""
    found = (str(path.relative_to(folder)) for path in folder.rglob("*"))
    return sorted(name for name in found if name != ".muster-pool")


def command(kind: str, generation: int, instance: str, spec: dict[str, Any]) -> m.Command:
    fields = {"id": str(uuid.uuid4()), "kind": kind, "fleet": FLEET, "host": "host-1", "session": 1}
    more = {"instance": instance, "generation": generation, "timeout_s": 60.0, "spec": spec}
    return m.convert({**fields, **more}, m.Command)


def undefine(rig: Rig, hypervisor_uuid: str) -> None:
    with rig.hand() as conn:
        domain = conn.lookupByUUIDString(hypervisor_uuid)
        if domain.isActive():
            domain.destroy()
        domain.undefine()


def test_disks_and_seed_of_a_guest_that_was_undefined_by_hand_go(rig: Rig, pool: Path) -> None:
    disks = (DiskSpec(size_gib=1, folder=str(pool)), DiskSpec(size_gib=1))
    guest = rig.create(disks=disks, hostname="web-1")
    other = rig.create("other", disks=disks, hostname="other")
    kept = files_of(rig.folder(other))
    undefine(rig, guest.hypervisor_uuid)
    assert len([name for name in files_of(pool) if name.endswith(".qcow2")]) == 2
    files = GuestFiles(instance=guest.mark.instance, bearer=guest.mark.bearer, folders=(str(pool),))
    for _ in range(2):  # what is gone already is no failure
        rig.driver.clean_up(files)
    assert not rig.folder(guest).exists()
    assert all(other.mark.instance in name for name in files_of(pool))
    assert files_of(rig.folder(other)) == kept


def test_files_of_a_guest_that_is_there_stay(rig: Rig) -> None:
    guest = rig.create(disks=(DiskSpec(size_gib=1),))
    before = files_of(rig.folder(guest))
    with pytest.raises(HypervisorError, match="is there"):
        rig.driver.clean_up(GuestFiles(instance=guest.mark.instance, bearer=guest.mark.bearer))
    assert files_of(rig.folder(guest)) == before


def test_what_is_in_a_folder_that_is_not_there_is_not_said_to_be_gone(
    rig: Rig, tmp_path: Path
) -> None:
    files = GuestFiles(
        instance=str(uuid.uuid4()), bearer=str(uuid.uuid4()), folders=(str(tmp_path / "nfs"),)
    )
    with pytest.raises(HypervisorError, match="is not there"):
        rig.driver.clean_up(files)


def test_a_terminate_removes_what_a_start_has_made_although_its_guest_was_undefined_by_hand(
    libvirt_mock: Libvirtd, rig: Rig, pool: Path, tmp_path: Path
) -> None:
    instance = str(uuid.uuid4())
    guest = m.GuestSpec(
        name="web-1",
        vcpus=1,
        memory_mib=128,
        disks=(DiskSpec(size_gib=1, folder=str(pool)),),
        hostname="web-1",
    )
    files = GuestFiles(
        instance=instance, bearer=new_bearer(FLEET, instance, 1), folders=(str(pool),)
    )
    host = Host(libvirt_mock.mock_uri, tmp_path)
    try:
        spec = {"create": True, "guest": m.builtins(guest)}
        made = host.carry_out(command("start_vm", 1, instance, spec))
        assert made.outcome is m.Outcome.SUCCEEDED, made.error
        undefine(rig, files.bearer)
        assert files_of(pool) != []
        told = {"made": [m.builtins(files)]}
        gone = host.carry_out(command("terminate_instance", 2, instance, told))
        assert gone.outcome is m.Outcome.SUCCEEDED, gone.error
    finally:
        host.close()
    assert files_of(pool) == files_of(tmp_path / "instances") == []


@filtering
@pytest.mark.slow
def test_the_filters_of_a_guest_that_was_undefined_by_hand_go_with_its_files(
    libvirt_qemu: Libvirtd, tmp_path: Path
) -> None:
    allow = Rule(direction=Direction.EGRESS, protocol=Protocol.UDP)
    card = NicSpec(mac=MAC, network="br-none", address="10.9.0.5/24", rules=(allow,))
    with at_work(libvirt_qemu.qemu_uri, tmp_path) as rig:
        guest, other = (rig.create(name, nics=(card,)) for name in ("web-1", "web-2"))
        undefine(rig, guest.hypervisor_uuid)
        rig.driver.clean_up(GuestFiles(instance=guest.mark.instance, bearer=guest.mark.bearer))
        left = [w for w in libvirt_qemu.virsh("nwfilter-list").split() if w.startswith("muster-")]
        assert [name for name in left if guest.mark.instance in name] == []
        assert [name for name in left if other.mark.instance in name] != []
        rig.driver.destroy(other)

"""The libvirt driver on QEMU: guests that really boot, and say so on their serial console."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("libvirt")

import libvirt

from agent.drivers.base import OwnedGuest
from agent.drivers.libvirt import probe
from common.errors import HypervisorError, HypervisorUnavailable
from common.messages import DiskSpec, NicSpec
from common.runtime import Runtime
from common.states import PowerState
from devstack.image import Image
from devstack.parts.libvirtd import Libvirtd
from tests.functional.libvirt_rig import Rig, at_work
from tests.wait import wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow]

BOOT_S = 120.0  # two seconds on an idle machine


@pytest.fixture
def rig(libvirt_qemu: Libvirtd, tmp_path: Path) -> Iterator[Rig]:
    with at_work(libvirt_qemu.qemu_uri, tmp_path) as rig:
        yield rig


class Booted:
    """A guest of the tiny image and how often its serial log says that it came up."""

    def __init__(self, rig: Rig, image: Image, name: str = "web-1", **spec: Any) -> None:
        self._rig = rig
        self.guest: OwnedGuest = rig.create(
            name,
            kernel=str(image.kernel),
            initrd=str(image.initrd),
            cmdline=f"console=ttyS0 quiet muster.token={name.replace(' ', '_')}",
            nics=(NicSpec(mac="52:54:00:12:34:56"),),
            **spec,
        )

    def said(self, word: str) -> int:
        return self._rig.serial(self.guest).count(f"MUSTER GUEST {word} ")

    def up(self, times: int = 1) -> None:
        wait_until(lambda: self.said("UP") >= times, BOOT_S, "the guest says that it is up")

    def start(self) -> OwnedGuest:
        self._rig.driver.start(self.guest)
        self.up()
        return self.guest


def test_a_guest_boots_hears_its_power_button_and_takes_its_disks_with_it(
    rig: Rig, image: Image, tmp_path: Path
) -> None:
    kept = tmp_path / "library.img"
    kept.write_bytes(b"\0" * (1 << 20))
    booted = Booted(rig, image, "гость ✓", disks=(DiskSpec(size_gib=1), DiskSpec(path=str(kept))))
    guest = booted.start()
    assert "MUSTER GUEST UP гость_✓" in rig.serial(guest)
    seen = rig.look(guest)
    assert (seen.power_state, seen.name) == (PowerState.RUNNING, "гость ✓")
    assert seen.macs == ("52:54:00:12:34:56",)
    assert rig.driver.capacity().memory_mib_used == 128
    assert len(list(rig.folder(guest).glob("*.qcow2"))) == 1

    rig.driver.stop(guest, force=False, timeout_s=BOOT_S)
    assert rig.look(guest).power_state is PowerState.SHUTOFF
    assert booted.said("DOWN") == 1, "it went down by itself"

    rig.driver.start(guest)
    booted.up(2)
    rig.driver.destroy(guest)
    assert rig.driver.look(guest.hypervisor_uuid) is None
    assert not rig.folder(guest).exists()
    assert kept.exists()


def test_a_soft_reboot_resets_the_guest_and_a_hard_one_makes_a_new_domain(
    rig: Rig, image: Image
) -> None:
    booted = Booted(rig, image)
    guest = booted.start()
    first = rig.look(guest).domain_id
    rig.driver.reboot(guest, force=False, timeout_s=BOOT_S)
    booted.up(2)
    assert booted.said("DOWN") == 1, "it was asked"
    assert rig.look(guest).domain_id == first
    rig.driver.reboot(guest, force=True, timeout_s=BOOT_S)
    assert rig.look(guest).domain_id != first
    booted.up(3)
    assert booted.said("DOWN") == 1, "it was not asked"


def test_a_guest_that_hears_nothing_is_rebooted_and_stopped_the_hard_way(
    rig: Rig, image: Image
) -> None:
    deaf = rig.create("deaf")  # it has nothing to boot from
    rig.driver.start(deaf)
    before = rig.look(deaf).domain_id
    rig.driver.reboot(deaf, force=False, timeout_s=1)
    assert rig.look(deaf).domain_id != before
    rig.driver.stop(deaf, force=False, timeout_s=1)
    assert rig.look(deaf).power_state is PowerState.SHUTOFF


def test_a_guest_killed_by_another_hand_is_told_of(
    rig: Rig,
    image: Image,
    libvirt_qemu: Libvirtd,
    record_property: Callable[[str, object], None],
) -> None:
    """Idle machines take a tenth of a second; how long it took is in the report of the run."""
    guest = Booted(rig, image).start()
    for end in ("virsh destroy", "kill -9"):
        rig.driver.start(guest)
        rig.all_told()
        if end == "kill -9":
            pid = libvirt_qemu.qemu_pids()["web-1"]
            os.kill(pid, signal.SIGKILL)
            # libvirt waits until the machine's init has buried it; some inits take seconds.
            wait_until(lambda p=pid: not os.path.exists(f"/proc/{p}"), 30, "QEMU is gone")
        else:
            libvirt_qemu.virsh("destroy", "web-1")
        gone = time.monotonic()
        wait_until(lambda: guest.hypervisor_uuid in rig.changes, 30, f"told of {end}")
        record_property(f"told of {end} after s", round(time.monotonic() - gone, 2))
        assert rig.look(guest).power_state is PowerState.SHUTOFF


def test_a_guest_outlives_its_daemon_and_is_found_again(
    rig: Rig, image: Image, libvirt_qemu: Libvirtd
) -> None:
    guest = Booted(rig, image).start()
    before, pids = rig.look(guest), libvirt_qemu.qemu_pids()
    rig.changes.clear()
    libvirt_qemu.kill()
    try:
        with pytest.raises(HypervisorUnavailable):
            rig.driver.list_guests()
    finally:
        libvirt_qemu.start()
    wait_until(lambda: None in rig.changes, 30, "asked for a look at everything")
    rig.connected()
    assert rig.look(guest) == before
    assert libvirt_qemu.qemu_pids() == pids
    rig.driver.stop(rig.driver.remark(guest, 2), force=False, timeout_s=BOOT_S)
    assert rig.look(guest).power_state is PowerState.SHUTOFF


def test_saved_memory_comes_back_and_the_mark_stays_new(
    rig: Rig, image: Image, libvirt_qemu: Libvirtd
) -> None:
    booted = Booted(rig, image)
    guest = booted.start()
    libvirt_qemu.virsh("managedsave", "web-1")
    assert rig.look(guest).power_state is PowerState.SUSPENDED
    marked = rig.driver.remark(guest, 4)
    rig.driver.start(marked)
    assert rig.look(guest).power_state is PowerState.RUNNING
    assert rig.look(guest).mark == marked.mark
    assert booted.said("UP") == 1, "it went on where it was"


def test_a_guest_is_held_in_memory_and_on_disk_and_goes_on_where_it_was(
    rig: Rig, image: Image, libvirt_qemu: Libvirtd
) -> None:
    booted = Booted(rig, image)
    guest = booted.start()
    pid = libvirt_qemu.qemu_pids()["web-1"]
    rig.driver.pause(guest)
    assert rig.look(guest).power_state is PowerState.PAUSED
    assert rig.driver.capacity().memory_mib_used == 128, "its memory is still there"
    rig.driver.unpause(guest)
    assert rig.look(guest).power_state is PowerState.RUNNING
    assert libvirt_qemu.qemu_pids()["web-1"] == pid

    rig.driver.pause(guest)
    rig.driver.suspend(guest)
    assert rig.look(guest).power_state is PowerState.SUSPENDED
    assert libvirt_qemu.qemu_pids() == {}
    assert rig.driver.capacity().memory_mib_used == 0
    marked = rig.driver.remark(guest, 4)
    rig.driver.resume(marked)
    assert rig.look(guest).power_state is PowerState.RUNNING, "also what was paused when saved"
    assert rig.look(guest).mark == marked.mark
    rig.driver.stop(marked, force=False, timeout_s=BOOT_S)
    assert booted.said("DOWN") == 1, "it hears its power button"
    assert booted.said("UP") == 1, "it never booted again"
    assert rig.look(guest).power_state is PowerState.SHUTOFF

    rig.driver.start(marked)
    booted.up(2)
    rig.driver.suspend(marked)
    rig.driver.stop(marked, force=False, timeout_s=BOOT_S)
    assert rig.look(guest).power_state is PowerState.SHUTOFF
    rig.driver.start(marked)
    booted.up(3)  # from the beginning: what was saved is gone
    rig.driver.suspend(marked)
    rig.driver.destroy(marked)
    assert rig.driver.look(guest.hypervisor_uuid) is None


def test_memory_that_was_not_saved_to_its_end_is_an_error_and_no_boot(
    rig: Rig, image: Image, libvirt_qemu: Libvirtd
) -> None:
    guest = Booted(rig, image).start()
    rig.driver.suspend(guest)
    (saved,) = libvirt_qemu.folder.rglob("*.save")
    with saved.open("r+b") as file:
        file.write(b"LibvirtQemudPart")  # as libvirtd leaves it when it is killed while it saves
    with pytest.raises(HypervisorError, match="incomplete"):
        rig.driver.resume(guest)
    assert rig.look(guest).power_state is PowerState.SUSPENDED
    assert libvirt_qemu.qemu_pids() == {}


def test_one_guest_that_hangs_holds_up_no_look_and_can_be_destroyed(
    rig: Rig, image: Image, libvirt_qemu: Libvirtd
) -> None:
    hung = Booted(rig, image, "hung", disks=(DiskSpec(size_gib=1),)).start()
    fine = rig.create("fine")
    pid = libvirt_qemu.qemu_pids()["hung"]
    os.kill(pid, signal.SIGSTOP)
    try:
        with rig.hand() as conn:
            # Somebody's question to the guest's monitor waits, and holds the guest's job lock.
            asked = threading.Thread(target=_ask, args=(conn, hung.hypervisor_uuid), daemon=True)
            asked.start()
            began = time.monotonic()
            for _ in range(20):
                assert len(rig.driver.list_guests().guests) == 2
                assert rig.look(hung).power_state is PowerState.RUNNING
                assert rig.driver.capacity().vcpus_used == 1
            rig.driver.start(fine)
            # libvirt waits 30 s for a job lock.
            assert time.monotonic() - began < 25.0
            rig.driver.destroy(hung)
            asked.join(30.0)
    finally:
        if pid in libvirt_qemu.qemu_pids().values():
            os.kill(pid, signal.SIGCONT)
    assert rig.driver.look(hung.hypervisor_uuid) is None
    assert not rig.folder(hung).exists()


def _ask(conn: Any, hypervisor_uuid: str) -> None:
    try:
        conn.lookupByUUIDString(hypervisor_uuid).blockStats("vda")
    except libvirt.libvirtError:
        return  # the guest was destroyed under the question


def test_a_guest_that_can_not_start_says_why(rig: Rig) -> None:
    guest = rig.create(kernel="/no/such/kernel")
    with pytest.raises(HypervisorError, match="/no/such/kernel"):
        rig.driver.start(guest)
    assert rig.look(guest).power_state is PowerState.SHUTOFF


def test_a_strangers_guest_of_the_same_name_runs_on(
    rig: Rig, image: Image, libvirt_qemu: Libvirtd
) -> None:
    theirs = rig.stranger("web-1")
    before, pid = rig.picture(theirs), libvirt_qemu.qemu_pids()["web-1"]
    booted = Booted(rig, image)
    guest = booted.start()
    assert guest.seen.name == f"web-1-{guest.mark.instance[:8]}"
    rig.driver.reboot(guest, force=True, timeout_s=1)
    rig.driver.destroy(guest)
    assert rig.picture(theirs) == before
    assert libvirt_qemu.qemu_pids() == {"web-1": pid}


def test_the_probe_runs_a_guest_and_believes_only_what_it_did() -> None:
    runtime = Runtime("probe")
    emulated_s = probe.boot_time(runtime, "tcg", BOOT_S)
    assert emulated_s is not None
    assert probe.boot_time(runtime, "no-such-accelerator", 30.0) is None
    if probe.best_virt_type(runtime) == "kvm":
        limit_s = max(probe.A_MOMENT_S, probe.SLOWER_THAN_EMULATED * emulated_s)
        assert probe.boot_time(runtime, "kvm", limit_s * 3) is not None

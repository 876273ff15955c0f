"""The libvirt driver on libvirt's mock driver, through a daemon: every verb, every stranger."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("libvirt")

from agent.drivers.base import Driver, OwnedGuest
from agent.drivers.libvirt import ceph, domains, xml
from agent.drivers.libvirt.rbd import Images
from common.errors import (
    GuestMissing,
    HypervisorError,
    HypervisorUnavailable,
    NotOurs,
    StaleCommand,
)
from common.messages import (
    DiskSpec,
    GuestFiles,
    GuestReport,
    GuestSpec,
    NicSpec,
    RbdTarget,
    SnapshotDisk,
    SnapshotFiles,
)
from common.model import Backend
from common.ownership import Mark
from common.states import PowerState
from devstack.parts.libvirtd import Libvirtd
from tests.functional.libvirt_rig import FLEET, Rig, at_work, mark_xml
from tests.wait import wait_until

pytestmark = pytest.mark.real

LARGE = GuestSpec(name="web-1", vcpus=8, memory_mib=512)
BARE = GuestSpec(name="web-1", vcpus=1, memory_mib=128)


def kept(guest: OwnedGuest) -> SnapshotFiles:
    return SnapshotFiles(instance=guest.mark.instance, snapshot="s-1")


def quietly(_phase: str) -> None:
    """Told the phases of a snapshot."""


VERBS: dict[str, Callable[[Driver, OwnedGuest], object]] = {
    "remark": lambda d, g: d.remark(g, 99),
    "start": lambda d, g: d.start(g),
    "stop": lambda d, g: d.stop(g, force=True, timeout_s=1),
    "stop softly": lambda d, g: d.stop(g, force=False, timeout_s=1),
    "reboot": lambda d, g: d.reboot(g, force=True, timeout_s=1),
    "reboot softly": lambda d, g: d.reboot(g, force=False, timeout_s=1),
    "pause": lambda d, g: d.pause(g),
    "unpause": lambda d, g: d.unpause(g),
    "suspend": lambda d, g: d.suspend(g),
    "resume": lambda d, g: d.resume(g),
    "resize": lambda d, g: d.resize(g, LARGE, "key", lambda _phase: None),
    "confirm resize": lambda d, g: d.confirm_resize(g, LARGE, "key"),
    "revert resize": lambda d, g: d.revert_resize(g, LARGE, "key"),
    "snapshot": lambda d, g: d.snapshot(g, BARE, kept(g), quietly),
    "destroy": lambda d, g: d.destroy(g),
}


@pytest.fixture
def rig(libvirt_mock: Libvirtd, tmp_path: Path) -> Iterator[Rig]:
    with at_work(libvirt_mock.mock_uri, tmp_path) as rig:
        rig.clear()  # the mock begins with a guest of its own
        yield rig


# verbs


def test_a_guest_lives_its_whole_life(rig: Rig) -> None:
    guest = rig.create(disks=(DiskSpec(size_gib=1),), nics=(NicSpec(mac="52:54:00:00:00:01"),))
    assert guest.seen == GuestReport(
        hypervisor_uuid=guest.mark.bearer,
        name="web-1",
        power_state=PowerState.SHUTOFF,
        vcpus=1,
        memory_mib=128,
        mark=guest.mark,
        macs=("52:54:00:00:00:01",),
    )
    rig.driver.start(guest)
    started = rig.look(guest)
    assert started.power_state is PowerState.RUNNING
    assert started.domain_id is not None

    rig.driver.start(guest)
    assert rig.look(guest) == started, "starting twice changes nothing"

    rig.driver.reboot(guest, force=True, timeout_s=1)
    rebooted = rig.look(guest)
    assert rebooted.power_state is PowerState.RUNNING
    assert rebooted.domain_id not in (None, started.domain_id)

    rig.driver.stop(guest, force=False, timeout_s=5)
    assert rig.look(guest).power_state is PowerState.SHUTOFF
    rig.driver.stop(guest, force=True, timeout_s=5)

    rig.driver.destroy(guest)
    assert rig.driver.look(guest.hypervisor_uuid) is None
    assert not rig.folder(guest).exists()
    rig.driver.destroy(guest)  # gone already: success


def test_a_guest_that_is_off_is_copied_and_made_again_from_the_copy(rig: Rig) -> None:
    disks = (DiskSpec(size_gib=1), DiskSpec(size_gib=2))
    guest = rig.create(disks=disks)
    files, spec = kept(guest), GuestSpec(name="web-1", vcpus=1, memory_mib=128, disks=disks)
    rig.driver.start(guest)
    with pytest.raises(HypervisorError, match="is not off"):
        rig.driver.snapshot(guest, spec, files, rig.doing)
    rig.driver.stop(guest, force=True, timeout_s=1)
    rig.phases.clear()
    rig.driver.snapshot(guest, spec, files, rig.doing)
    assert rig.phases == ["snapshot"]
    rig.driver.destroy(guest)
    store = rig.instances / "snapshots" / guest.mark.instance / "s-1"
    assert sorted(path.name for path in store.iterdir()) == ["disk0.qcow2", "disk1.qcow2"]
    again = rig.create(
        disks=tuple(
            DiskSpec(
                size_gib=n + 1,
                snapshot=SnapshotDisk(instance=files.instance, snapshot=files.snapshot, n=n),
            )
            for n in range(2)
        )
    )
    rig.driver.clean_up(files)
    assert not store.parent.exists()
    assert len(list(rig.folder(again).glob("*.disk*"))) == 2


@pytest.mark.parametrize("running", [True, False])
def test_a_new_generation_is_in_the_mark_at_once_and_after_a_stop(rig: Rig, running: bool) -> None:
    guest = rig.create()
    if running:
        rig.driver.start(guest)
    marked = rig.driver.remark(guest, 8)
    assert marked.mark == marked.seen.mark == rig.look(guest).mark
    assert marked.mark.generation == 8
    rig.driver.stop(marked, force=True, timeout_s=1)
    assert rig.look(guest).mark == marked.mark
    assert rig.driver.remark(marked, 9).mark.generation == 9


def test_a_paused_guest_runs_after_a_start_and_is_off_after_a_soft_stop(rig: Rig) -> None:
    guest = rig.create()
    rig.driver.start(guest)
    with rig.hand() as conn:
        conn.lookupByUUIDString(guest.hypervisor_uuid).suspend()
        assert rig.look(guest).power_state is PowerState.PAUSED
        rig.driver.start(guest)
        assert rig.look(guest).power_state is PowerState.RUNNING
        conn.lookupByUUIDString(guest.hypervisor_uuid).suspend()
    rig.driver.stop(guest, force=False, timeout_s=30)
    assert rig.look(guest).power_state is PowerState.SHUTOFF


def test_a_guest_is_paused_and_let_go(rig: Rig) -> None:
    guest = rig.create()
    rig.driver.start(guest)
    started = rig.look(guest)
    for verb, state in (("pause", PowerState.PAUSED), ("unpause", PowerState.RUNNING)):
        for _ in range(2):  # the second time there is nothing to do
            VERBS[verb](rig.driver, guest)
            assert rig.look(guest).power_state is state
    assert rig.look(guest) == started


@pytest.mark.parametrize("first", ["start", "pause"])
def test_a_suspended_guest_is_resumed_and_runs_and_its_mark_stays_new(rig: Rig, first: str) -> None:
    guest = rig.create()
    rig.driver.start(guest)
    VERBS[first](rig.driver, guest)
    for _ in range(2):
        rig.driver.suspend(guest)
        assert rig.look(guest).power_state is PowerState.SUSPENDED
    marked = rig.driver.remark(guest, 5)
    for _ in range(2):
        rig.driver.resume(marked)
        assert rig.look(guest).power_state is PowerState.RUNNING
    assert rig.look(guest).mark == marked.mark
    rig.driver.stop(marked, force=True, timeout_s=1)
    assert rig.look(guest).power_state is PowerState.SHUTOFF, "there is no saved memory left"


@pytest.mark.parametrize(
    ("before", "verb"),
    [
        *[("stop", verb) for verb in ("pause", "unpause", "suspend", "resume")],
        ("suspend", "pause"),
        ("suspend", "unpause"),
        ("pause", "resume"),
    ],
)
def test_a_guest_that_can_not_be_held_or_let_go_says_so_and_stays(
    rig: Rig, before: str, verb: str
) -> None:
    guest = rig.create()
    rig.driver.start(guest)
    VERBS[before](rig.driver, guest)
    seen = rig.look(guest)
    with pytest.raises(HypervisorError, match="web-1: it "):
        VERBS[verb](rig.driver, guest)
    assert rig.look(guest) == seen


def test_a_guest_with_saved_memory_is_suspended_and_a_start_brings_it_back(rig: Rig) -> None:
    guest = rig.create()
    rig.driver.start(guest)
    with rig.hand() as conn:
        conn.lookupByUUIDString(guest.hypervisor_uuid).managedSave()
    assert rig.look(guest).power_state is PowerState.SUSPENDED
    assert [g.power_state for g in rig.driver.list_guests().guests] == [PowerState.SUSPENDED]
    marked = rig.driver.remark(guest, 5)
    rig.driver.start(marked)
    assert rig.look(guest).power_state is PowerState.RUNNING
    assert rig.look(guest).mark == marked.mark, "the saved memory brought an old mark with it"


def test_stopping_or_destroying_gives_up_saved_memory(rig: Rig) -> None:
    for end in ("stop", "destroy"):
        guest = rig.create(f"saved-{end}")
        rig.driver.start(guest)
        with rig.hand() as conn:
            conn.lookupByUUIDString(guest.hypervisor_uuid).managedSave()
        VERBS[end](rig.driver, guest)
        seen = rig.driver.look(guest.hypervisor_uuid)
        assert seen is None or seen.power_state is PowerState.SHUTOFF


def test_a_guest_that_another_hand_undefined_while_it_ran_is_still_destroyed(rig: Rig) -> None:
    guest = rig.create(disks=(DiskSpec(size_gib=1),))
    rig.driver.start(guest)
    with rig.hand() as conn:
        conn.lookupByUUIDString(guest.hypervisor_uuid).undefine()
    marked = rig.driver.remark(guest, 2)
    rig.driver.destroy(marked)
    assert rig.driver.look(guest.hypervisor_uuid) is None
    assert not rig.folder(guest).exists()


@pytest.mark.parametrize("verb", VERBS)
def test_a_call_that_was_given_up_for_lost_does_nothing_after_a_later_command(
    rig: Rig, verb: str
) -> None:
    guest = rig.create(disks=(DiskSpec(size_gib=1),))
    rig.driver.start(guest)
    rig.driver.remark(guest, 2)
    before = rig.picture(guest.hypervisor_uuid)
    with pytest.raises(StaleCommand):
        VERBS[verb](rig.driver, guest)
    assert rig.picture(guest.hypervisor_uuid) == before
    assert list(rig.folder(guest).glob("*.qcow2"))


def test_a_closed_driver_says_so(rig: Rig) -> None:
    rig.driver.close()
    assert rig.driver.health()
    with pytest.raises(HypervisorUnavailable):
        rig.driver.list_guests()


@pytest.mark.parametrize("verb", [v for v in VERBS if v != "destroy"])
def test_a_verb_on_a_guest_that_is_gone_says_so(rig: Rig, verb: str) -> None:
    guest = rig.create()
    rig.driver.destroy(guest)
    with pytest.raises(GuestMissing):
        VERBS[verb](rig.driver, guest)


def test_capacity_counts_what_runs_whoever_it_belongs_to(rig: Rig) -> None:
    before = rig.driver.capacity()
    assert before.vcpus_total > 0
    assert before.memory_mib_total > 0
    assert (before.vcpus_used, before.memory_mib_used) == (0, 0)
    rig.stranger("theirs")
    rig.stranger("theirs, off", running=False)
    rig.driver.start(rig.create(vcpus=3, memory_mib=512))
    after = rig.driver.capacity()
    assert (after.vcpus_used, after.memory_mib_used) == (4, 576)


def test_a_change_by_another_hand_is_told(rig: Rig) -> None:
    guest = rig.create()
    rig.driver.start(guest)
    rig.all_told()
    with rig.hand() as conn:
        conn.lookupByUUIDString(guest.hypervisor_uuid).destroy()
    wait_until(lambda: guest.hypervisor_uuid in rig.changes, 30, "told of the change")


# listing


def test_one_guest_that_can_not_be_read_makes_the_listing_partial(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine, odd, going = (rig.create(name) for name in ("fine", "odd", "going"))
    read = domains.read

    def reading(domain: Any) -> GuestReport:
        if domain.UUIDString() == odd.hypervisor_uuid:
            domain.setMetadata(99, "", "", "", 0)  # an error of libvirt's own
        if domain.UUIDString() == going.hypervisor_uuid:
            with rig.hand() as conn:
                conn.lookupByUUIDString(going.hypervisor_uuid).undefine()
        return read(domain)

    monkeypatch.setattr(domains, "read", reading)
    listing = rig.driver.list_guests()
    assert [g.hypervisor_uuid for g in listing.guests] == [fine.hypervisor_uuid]
    assert set(listing.errors) == {odd.hypervisor_uuid}, "the one that went is no error"
    assert not listing.complete
    with pytest.raises(HypervisorError):
        rig.driver.look(odd.hypervisor_uuid)


# creating


def test_a_name_that_is_taken_between_the_question_and_the_definition_is_left(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs: list[str] = []
    define = xml.define

    def meanwhile(*args: Any, **kwargs: Any) -> str:
        if not theirs:
            theirs.append(rig.stranger("web-1"))
        return define(*args, **kwargs)

    monkeypatch.setattr(xml, "define", meanwhile)
    ours = rig.create("web-1")
    assert ours.seen.name == f"web-1-{ours.mark.instance[:8]}"
    seen = rig.driver.look(theirs[0])
    assert seen is not None
    assert (seen.name, seen.mark) == ("web-1", None)


def test_a_create_that_fails_leaves_nothing_behind(rig: Rig, tmp_path: Path) -> None:
    rig.instances.parent.mkdir(exist_ok=True)
    rig.instances.write_text("a file where the folder should be")
    with pytest.raises(HypervisorError, match="instances_path"):
        rig.create(disks=(DiskSpec(size_gib=1),))
    assert rig.driver.list_guests().guests == ()


def test_what_is_left_of_a_guest_goes_and_the_log_of_its_successor_stays(
    rig: Rig, tmp_path: Path
) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    guest = rig.create(disks=(DiskSpec(size_gib=1, folder=str(pool)),))
    (rig.folder(guest) / "serial.log").write_text("hello")
    former = GuestFiles(
        instance=guest.mark.instance, bearer=str(uuid.uuid4()), folders=(str(pool),)
    )
    left = pool / guest.mark.instance / f"{former.bearer}.disk0.qcow2"
    left.touch()
    rig.driver.clean_up(former)
    assert not left.exists()
    assert rig.serial(guest) == "hello"
    rig.driver.destroy(guest)
    assert not rig.folder(guest).exists()


def test_a_create_without_its_existing_image_leaves_nothing_behind(rig: Rig) -> None:
    with pytest.raises(HypervisorError, match="no disk image"):
        rig.create(disks=(DiskSpec(size_gib=1), DiskSpec(path="/no/such.qcow2")))
    assert rig.driver.list_guests().guests == ()
    assert not rig.instances.exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"backend": Backend.LIBVIRT, "rules": ()}, "no nwfilter no-mac-spoofing"),
        ({"backend": Backend.LIBVIRT, "network": "away"}, "no network away"),
        ({"backend": Backend.BRIDGE, "network": "away"}, "no bridge away"),
        ({"backend": Backend.OVS, "network": "away", "vlan": 7}, "no bridge away"),
    ],
)
def test_a_create_on_a_network_that_can_not_be_had_leaves_nothing_behind(
    rig: Rig, changes: dict[str, Any], reason: str
) -> None:
    plain = {"mac": "52:54:00:00:00:01", "network": "default", "address": "10.0.0.5/24"}
    with pytest.raises(HypervisorError, match=reason):
        rig.create(
            nics=(NicSpec(**{**plain, **changes}),), disks=(DiskSpec(size_gib=1),), hostname="web-1"
        )
    assert rig.driver.list_guests().guests == ()
    assert not rig.instances.exists() or list(rig.instances.iterdir()) == []


def test_a_third_guest_of_the_same_names_is_refused_and_the_others_stay(rig: Rig) -> None:
    instance = "12345678-0000-4000-8000-000000000000"
    strangers = [rig.stranger(name) for name in ("web-1", "web-1-12345678")]
    before = [rig.picture(uuid) for uuid in strangers]
    mark = Mark(fleet=FLEET, instance=instance, generation=1, bearer=str(uuid.uuid4()))
    with pytest.raises(HypervisorError, match="taken"):
        rig.driver.create(GuestSpec(name="web-1", vcpus=1, memory_mib=64), mark, rig.doing)
    assert [rig.picture(uuid) for uuid in strangers] == before


# strangers

OURS_INSTANCE = "11111111-1111-4111-8111-111111111111"
STRANGERS = {
    "no mark": "",
    "another fleet's mark": mark_xml(fleet="theirs", instance=OURS_INSTANCE, bearer="BEARER"),
    "a fleet that differs in case": mark_xml(fleet="OURS", instance=OURS_INSTANCE, bearer="BEARER"),
    "a copy of our mark": mark_xml(
        instance=OURS_INSTANCE, bearer="22222222-2222-4222-8222-222222222222"
    ),
    "a damaged mark": mark_xml(instance=OURS_INSTANCE, generation="x", bearer="BEARER"),
    "an empty mark": "<mark xmlns='https://muster.invalid/xmlns/domain/1'/>",
    "somebody else's metadata": "<nova:instance xmlns:nova='http://openstack.org/x'/>",
    "our mark of another instance": mark_xml(instance="elsewhere", bearer="BEARER"),
}
NAMES = ["web-1", "i-2-10-VM", "гость ✓", "a&b <c>", "web-1-11111111", OURS_INSTANCE]


@pytest.mark.parametrize("running", [True, False], ids=["running", "halted"])
@pytest.mark.parametrize("kind", STRANGERS)
def test_no_verb_touches_a_stranger(rig: Rig, kind: str, running: bool) -> None:
    names = {rig.stranger(n, metadata=STRANGERS[kind], running=running): n for n in NAMES}
    before = {uuid: rig.picture(uuid) for uuid in names}
    for bearer in names:
        # What an agent would hold that looked a moment too early.
        mark = Mark(fleet=FLEET, instance=OURS_INSTANCE, generation=1, bearer=bearer)
        seen = rig.driver.look(bearer)
        assert seen is not None
        for verb, act in VERBS.items():
            with pytest.raises(NotOurs, match="not touched"):
                act(rig.driver, OwnedGuest(bearer, mark, seen))
            assert rig.picture(bearer) == before[bearer], verb
    ours = rig.create("web-1")
    assert ours.seen.name == f"web-1-{ours.mark.instance[:8]}", "the name was taken"
    rig.driver.start(ours)
    rig.driver.destroy(ours)
    assert {uuid: rig.picture(uuid) for uuid in names} == before
    listed = {g.hypervisor_uuid: g.name for g in rig.driver.list_guests().guests}
    assert listed == names


@pytest.mark.parametrize("running", [True, False], ids=["running", "halted"])
def test_a_stranger_under_the_uuid_of_a_guest_of_ours_is_not_touched(
    rig: Rig, running: bool
) -> None:
    ours = rig.create(disks=(DiskSpec(size_gib=1),))
    with rig.hand() as conn:
        conn.lookupByUUIDString(ours.hypervisor_uuid).undefine()
    rig.stranger("theirs", running=running, bearer=ours.hypervisor_uuid)
    before = rig.picture(ours.hypervisor_uuid)
    for act in VERBS.values():
        with pytest.raises(NotOurs):
            act(rig.driver, ours)
    with pytest.raises(HypervisorError, match="exists already"):
        rig.driver.create(GuestSpec(name="new", vcpus=1, memory_mib=64), ours.mark, rig.doing)
    assert rig.picture(ours.hypervisor_uuid) == before
    assert list(rig.folder(ours).iterdir()), "its disks were not ours to remove any more"


# the daemon


def test_a_daemon_that_is_killed_is_no_host_without_guests(
    rig: Rig, libvirt_mock: Libvirtd
) -> None:
    guest = rig.create()
    libvirt_mock.kill()
    try:
        for ask in (
            rig.driver.list_guests,
            rig.driver.capacity,
            lambda: rig.driver.look(guest.hypervisor_uuid),
            lambda: rig.driver.start(guest),
            lambda: rig.driver.destroy(guest),
        ):
            with pytest.raises(HypervisorUnavailable):
                ask()
        wait_until(rig.driver.health, 30, "unhealthy")
        rig.changes.clear()
    finally:
        libvirt_mock.start()
    rig.connected()
    wait_until(lambda: None in rig.changes, 30, "asked for a look at everything")
    assert rig.driver.list_guests().complete


def test_a_restarted_daemon_is_connected_to_again(rig: Rig, libvirt_mock: Libvirtd) -> None:
    for _ in range(3):
        rig.changes.clear()
        libvirt_mock.restart()
        wait_until(lambda: None in rig.changes, 30, "connected again")
        rig.connected()
        guest = rig.create()
        rig.driver.start(guest)
        wait_until(lambda g=guest: g.hypervisor_uuid in rig.changes, 30, "events come again")


def test_a_daemon_that_hangs_is_noticed_and_connected_to_again(
    rig: Rig, libvirt_mock: Libvirtd
) -> None:
    rig.create()
    libvirt_mock.freeze()
    try:
        # Keepalive ends the call; an empty list would be a lie.
        with pytest.raises(HypervisorUnavailable):
            rig.driver.list_guests()
        wait_until(rig.driver.health, 30, "unhealthy")
        with pytest.raises(HypervisorUnavailable):
            rig.driver.list_guests()
    finally:
        libvirt_mock.thaw()
    rig.connected()
    assert rig.driver.list_guests().complete


def test_a_driver_opened_while_the_daemon_hangs_connects_once_it_answers(
    libvirt_mock: Libvirtd, tmp_path: Path
) -> None:
    libvirt_mock.freeze()
    try:
        with at_work(libvirt_mock.mock_uri, tmp_path, wait=False) as rig:
            assert rig.driver.health()
            with pytest.raises(HypervisorUnavailable):
                rig.driver.list_guests()
            libvirt_mock.thaw()
            rig.connected()
    finally:
        libvirt_mock.thaw()


def test_a_driver_opened_before_its_daemon_connects_once_it_is_there(
    libvirt_mock: Libvirtd, tmp_path: Path
) -> None:
    libvirt_mock.kill()
    try:
        with at_work(libvirt_mock.mock_uri, tmp_path, wait=False) as rig:
            wait_until(lambda: "libvirt" in rig.driver.health(), 30, "the reason is told")
            libvirt_mock.start()
            rig.connected()
    finally:
        libvirt_mock.start()


GREEN = """
import sys, uuid
from common import runtime
runtime.prepare("eventlet")
from eventlet import patcher
from agent.drivers.base import OwnedGuest
from agent.drivers.libvirt.driver import create
from common.conf import Settings
from common.conf.libvirt import Libvirt
from common.messages import GuestSpec
from common.ownership import Mark

uri, folder = sys.argv[1:]
green = runtime.make("eventlet", "green")
settings = Settings(libvirt=Libvirt(connection_uri=uri, instances_path=folder, virt_type="qemu"))
driver = create("host-1", settings, green)
changes, ticks, phases = [], [], []
driver.open(changes.append)
# What a real thread counts meanwhile: on a busy machine both are slow.
count, native = [0], patcher.original("time")
def watch():
    while True:
        native.sleep(0.05)
        count[0] += 1
green.native_thread("watch", watch)
green.every("tick", 0.05, lambda: ticks.append(count[0]))

def until(condition, what):
    deadline = green.monotonic() + 60
    while not condition():
        assert green.monotonic() < deadline, what
        green.sleep(0.02)

until(lambda: not driver.health(), "connected")
mark = Mark(fleet="ours", instance=str(uuid.uuid4()), generation=1, bearer=str(uuid.uuid4()))
spec = GuestSpec(name="green", vcpus=1, memory_mib=64)
guest = OwnedGuest(mark.bearer, mark, green.offload(driver.create, spec, mark, phases.append))
green.offload(driver.start, guest)
until(lambda: mark.bearer in changes, "the event came")
print("STARTED", flush=True)
sys.stdin.readline()
until(lambda: changes.count(None) >= 2, "connected again")
listing = green.offload(driver.list_guests)
assert listing.complete
gaps = [b - a for a, b in zip(ticks, ticks[1:])]
assert max(gaps) < 40, f"the hub stood still for {max(gaps)} turns of a real thread"
driver.close()
print("late:", green.stop(), flush=True)
"""


def test_it_works_on_green_threads_and_never_holds_the_hub_up(
    libvirt_mock: Libvirtd, tmp_path: Path
) -> None:
    script = tmp_path / "green.py"
    script.write_text(textwrap.dedent(GREEN))
    process = subprocess.Popen(
        [sys.executable, str(script), libvirt_mock.mock_uri, str(tmp_path / "instances")],
        env={"PYTHONPATH": str(Path.cwd()), "PATH": "/usr/bin:/bin"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "STARTED\n"
        libvirt_mock.restart()
        out, errors = process.communicate("go on\n", timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert out == "late: []\n"


# disks in Ceph, on a host that has none


def in_ceph() -> tuple[GuestSpec, Mark]:
    """A guest with two empty disks in Ceph."""
    bearer = str(uuid.uuid4())
    targets = [
        RbdTarget(pool="vms", image=f"muster-{bearer}-disk{n}", monitors=("127.0.0.1:1",))
        for n in range(2)
    ]
    disks = tuple(DiskSpec(size_gib=1, rbd=target) for target in targets)
    mark = Mark(fleet=FLEET, instance=str(uuid.uuid4()), generation=1, bearer=bearer)
    return GuestSpec(name="web-1", vcpus=1, memory_mib=128, disks=disks), mark


def test_a_host_without_access_to_ceph_refuses_a_guest_before_there_is_anything_of_it(
    rig: Rig,
) -> None:
    spec, mark = in_ceph()
    with pytest.raises(HypervisorError, match="no access to Ceph"):
        rig.driver.create(spec, mark, rig.doing)
    assert rig.driver.look(mark.bearer) is None


def test_a_create_that_meets_an_image_it_did_not_make_lets_it_be(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, mark = in_ceph()
    removed: list[str] = []

    def make(_images: Images, target: RbdTarget, *_more: Any) -> None:
        if target.image.endswith("-disk1"):
            raise ceph.Taken("it is there already", "")

    monkeypatch.setattr(Images, "reach", lambda *_: None)
    monkeypatch.setattr(Images, "make", make)
    monkeypatch.setattr(Images, "remove", lambda _images, target: removed.append(target.image))
    with pytest.raises(ceph.Taken):
        rig.driver.create(spec, mark, rig.doing)
    assert removed == [f"muster-{mark.bearer}-disk0"], "which it made itself"
    assert rig.driver.look(mark.bearer) is None

"""The simulated hypervisor: on disk, open to everybody, and as careful as a real one."""

from __future__ import annotations

import json
import multiprocessing
import queue
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.drivers.base import OwnedGuest
from agent.drivers.simulated import console
from agent.drivers.simulated.driver import SimulatedDriver, create
from agent.drivers.simulated.store import Faults, Guest, Store
from common.conf import Settings
from common.conf.simulated import Simulated
from common.errors import (
    BadRequest,
    GuestMissing,
    HypervisorError,
    HypervisorUnavailable,
    MusterError,
    NotOurs,
    ResizeOver,
)
from common.messages import DiskSpec, GuestSpec, ImageSource, NicSpec, SnapshotDisk, SnapshotFiles
from common.model import TemplateFormat
from common.ownership import Mark
from common.runtime import Runtime, Stopped

A = "aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa"
B = "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb"
SPEC = GuestSpec(name="web", vcpus=2, memory_mib=512, nics=(NicSpec(mac="0a:4d:75:00:00:01"),))
LARGE = GuestSpec(name="web", vcpus=4, memory_mib=1024)
IMAGE = ImageSource(url="file:///t.qcow2", sha256="0" * 64, format=TemplateFormat.QCOW2)
TURNS = ["pause", "unpause", "suspend", "resume"]
RESIZES = ["resize", "confirm_resize", "revert_resize"]
KEPT = SnapshotFiles(instance="i-1", snapshot="s-1")
CHANGES = ["remark", "start", "stop", "reboot", *TURNS, *RESIZES, "snapshot", "destroy"]


def mark(bearer: str = A, **changes: object) -> Mark:
    plain = Mark(fleet="f", instance="i-1", generation=1, bearer=bearer)
    return msgspec.structs.replace(plain, **changes)


def quietly(_phase: str) -> None:
    """Told the phases of a create by those who do not ask."""


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    runtime = Runtime()
    yield runtime
    runtime.kill()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path), "h")
    store.make()
    return store


@pytest.fixture
def driver(store: Store, runtime: Runtime) -> SimulatedDriver:
    return SimulatedDriver(store, Settings(), runtime)


def proof(driver: SimulatedDriver, guest_uuid: str = A) -> OwnedGuest:
    seen = driver.look(guest_uuid)
    assert seen is not None
    assert seen.mark is not None
    return OwnedGuest(guest_uuid, seen.mark, seen)


def change(driver: SimulatedDriver, verb: str, guest: OwnedGuest) -> None:
    {
        "remark": lambda: driver.remark(guest, 5),
        "start": lambda: driver.start(guest),
        "stop": lambda: driver.stop(guest, force=False, timeout_s=1),
        "reboot": lambda: driver.reboot(guest, force=True, timeout_s=1),
        "pause": lambda: driver.pause(guest),
        "unpause": lambda: driver.unpause(guest),
        "suspend": lambda: driver.suspend(guest),
        "resume": lambda: driver.resume(guest),
        "resize": lambda: driver.resize(guest, LARGE, "key", quietly),
        "confirm_resize": lambda: driver.confirm_resize(guest, LARGE, "key"),
        "revert_resize": lambda: driver.revert_resize(guest, SPEC, "key"),
        "snapshot": lambda: driver.snapshot(guest, SPEC, KEPT, quietly),
        "destroy": lambda: driver.destroy(guest),
    }[verb]()


def test_a_guest_keeps_what_it_was_made_from_and_the_console_shows_it(
    driver: SimulatedDriver, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []
    root = DiskSpec(size_gib=5, source=IMAGE, folder="/pool")
    spec = msgspec.structs.replace(SPEC, disks=(root,), hostname="web-1", cpu_mhz=2000)
    driver.create(spec, mark(), told.append)
    assert told == ["define"]
    kept = store.read(A)
    assert kept is not None
    assert kept.spec == spec
    console.main(["--state-dir", str(store.folder.parent), "--host", "h", "list", "-f", "json"])
    [shown] = json.loads(capsys.readouterr().out)
    assert shown["spec"]["disks"][0]["source"]["url"] == IMAGE.url


def test_a_guest_is_resized_and_is_again_what_it_was_or_keeps_its_size(
    driver: SimulatedDriver, store: Store
) -> None:
    driver.create(SPEC, mark(), quietly)
    driver.start(proof(driver))
    with pytest.raises(HypervisorError, match="RUNNING"):
        change(driver, "resize", proof(driver))
    driver.stop(proof(driver), force=True, timeout_s=0)
    for _ in range(2):  # the second time what it was is still what it was
        change(driver, "resize", proof(driver))
        assert (proof(driver).seen.vcpus, proof(driver).seen.memory_mib) == (4, 1024)
        assert driver.keeps(proof(driver))
    driver.start(proof(driver))
    with pytest.raises(HypervisorError, match="RUNNING"):
        change(driver, "revert_resize", proof(driver))
    driver.stop(proof(driver), force=True, timeout_s=0)
    for _ in range(2):
        change(driver, "revert_resize", proof(driver))
        kept = store.read(A)
        assert kept is not None
        assert (kept.vcpus, kept.memory_mib, kept.spec, kept.before) == (2, 512, SPEC, None)
    with pytest.raises(ResizeOver):
        change(driver, "confirm_resize", proof(driver))
    change(driver, "resize", proof(driver))
    for _ in range(2):
        change(driver, "confirm_resize", proof(driver))
        assert not driver.keeps(proof(driver))
    with pytest.raises(ResizeOver, match="it has 4 x 1024 and not 2 x 512"):
        change(driver, "revert_resize", proof(driver))


@pytest.mark.parametrize(
    "bad",
    [
        {"nics": (NicSpec(mac="0a:4d:75"),)},
        {"nics": (NicSpec(mac="0a:4d:75:00:00:01", address="10.0.0.300/24"),)},
        {"disks": (DiskSpec(path="not/absolute"),)},
        {"kernel_source": IMAGE},
        {"hostname": "web_1"},
    ],
)
def test_what_no_real_host_could_make_is_refused_here_too(
    driver: SimulatedDriver, bad: dict[str, Any]
) -> None:
    with pytest.raises(BadRequest):
        driver.create(msgspec.structs.replace(SPEC, **bad), mark(), quietly)
    assert driver.list_guests().guests == ()


def test_the_whole_life_of_a_guest(driver: SimulatedDriver, store: Store) -> None:
    made = driver.create(SPEC, mark(), quietly)
    assert (made.hypervisor_uuid, made.name, made.power_state.name) == (A, "web", "SHUTOFF")
    assert (made.mark, made.macs) == (mark(), ("0a:4d:75:00:00:01",))
    marked = driver.remark(proof(driver), 2)
    assert marked.mark.generation == 2
    driver.start(marked)
    first = proof(driver).seen
    assert (first.power_state.name, first.domain_id) == ("RUNNING", 1)
    driver.start(marked)
    assert proof(driver).seen == first
    driver.reboot(marked, force=False, timeout_s=1)
    assert proof(driver).seen.domain_id == 1
    driver.reboot(marked, force=True, timeout_s=1)
    assert proof(driver).seen.domain_id == 2
    driver.stop(marked, force=True, timeout_s=1)
    assert proof(driver).seen.domain_id is None
    driver.start(marked)
    assert proof(driver).seen.domain_id == 3
    driver.destroy(marked)
    assert driver.look(A) is None
    assert driver.list_guests().guests == ()
    assert store.uuids() == []
    # Its own account: each change that had an effect, with the generation it was made for.
    acts = [(act.by, act.verb, act.uuid, act.generation) for act in store.account()]
    assert acts == [
        ("agent", verb, A, 1 if verb == "create" else 2)
        for verb in ("create", "start", "reboot", "reboot", "stop", "start", "destroy")
    ]


def test_a_guest_is_held_and_let_go_in_memory_and_on_disk(
    driver: SimulatedDriver, store: Store
) -> None:
    driver.create(SPEC, mark(), quietly)
    guest = proof(driver)
    driver.start(guest)
    for verb, state, domain_id in (
        ("pause", "PAUSED", 1),
        ("unpause", "RUNNING", 1),
        ("suspend", "SUSPENDED", None),
        ("resume", "RUNNING", 2),
        ("pause", "PAUSED", 2),
        ("suspend", "SUSPENDED", None),
        ("stop", "SHUTOFF", None),
    ):
        for _ in range(2):  # the second time there is nothing to do
            change(driver, verb, guest)
            seen = proof(driver).seen
            assert (seen.power_state.name, seen.domain_id) == (state, domain_id), verb
    acts = [act.verb for act in store.account()]
    assert acts[2:] == ["pause", "unpause", "suspend", "resume", "pause", "suspend", "stop"]


@pytest.mark.parametrize(
    ("verb", "state"),
    [
        *[(verb, state) for verb in TURNS for state in ("SHUTOFF", "CRASHED")],
        ("pause", "SUSPENDED"),
        ("unpause", "SUSPENDED"),
        ("resume", "PAUSED"),
    ],
)
def test_a_guest_that_can_not_be_held_or_let_go_says_so_and_stays(
    driver: SimulatedDriver, store: Store, verb: str, state: str
) -> None:
    store.write(Guest(uuid=A, name="web", power_state=state, mark=mark()))
    before = store.read(A)
    with pytest.raises(HypervisorError, match=state):
        change(driver, verb, proof(driver))
    assert store.read(A) == before


def test_guests_outlive_the_driver_and_its_process(
    driver: SimulatedDriver, store: Store, runtime: Runtime
) -> None:
    driver.create(SPEC, mark(), quietly)
    other = create("h", _settings(store), runtime)
    assert [g.name for g in other.list_guests().guests] == ["web"]


def _settings(store: Store, **changes: float) -> Settings:
    simulated = Simulated(state_dir=str(store.folder.parent), watch_interval=0.01)
    return Settings(simulated=msgspec.structs.replace(simulated, **changes))


@pytest.mark.parametrize("verb", CHANGES)
@pytest.mark.parametrize(
    "now",
    [
        None,
        mark(fleet="g"),
        mark(bearer=B),
        mark(instance="i-2"),
    ],
)
def test_each_change_looks_at_the_mark_once_more(
    driver: SimulatedDriver, store: Store, verb: str, now: Mark | None
) -> None:
    driver.create(SPEC, mark(), quietly)
    guest = proof(driver)
    stranger = Guest(uuid=A, name="web", power_state="RUNNING", domain_id=9, mark=now)
    store.write(stranger)
    with pytest.raises(NotOurs):
        change(driver, verb, guest)
    assert store.read(A) == stranger


@pytest.mark.parametrize("verb", CHANGES)
def test_each_change_of_a_guest_that_is_gone_says_so(
    driver: SimulatedDriver, store: Store, verb: str
) -> None:
    driver.create(SPEC, mark(), quietly)
    guest = proof(driver)
    store.remove(A)
    with pytest.raises(GuestMissing):
        change(driver, verb, guest)
    assert store.uuids() == []


def test_a_name_that_is_taken_gets_a_tail(driver: SimulatedDriver, store: Store) -> None:
    stranger = Guest(uuid=B, name="web")
    store.write(stranger)
    assert driver.create(SPEC, mark(), quietly).name == "web-aaaaaaaa"
    assert store.read(B) == stranger


def test_a_uuid_that_is_taken_is_an_error(driver: SimulatedDriver, store: Store) -> None:
    stranger = Guest(uuid=A, name="theirs")
    store.write(stranger)
    with pytest.raises(HypervisorError, match="exists already"):
        driver.create(SPEC, mark(), quietly)
    assert store.read(A) == stranger


@pytest.mark.parametrize(
    "body",
    ["", "{", '{"uuid": 7}', '{"uuid": "x", "name": "y"}', json.dumps({"uuid": A, "name": 1})],
)
def test_a_file_that_can_not_be_read_is_an_error_of_the_listing(
    driver: SimulatedDriver, store: Store, body: str
) -> None:
    store.write(Guest(uuid=B, name="fine"))
    (store.guests / f"{A}.json").write_text(body)
    listing = driver.list_guests()
    assert [g.hypervisor_uuid for g in listing.guests] == [B]
    assert list(listing.errors) == [A]
    assert not listing.complete
    with pytest.raises(HypervisorError):
        driver.look(A)


def test_an_impossible_power_state_is_an_error_too(driver: SimulatedDriver, store: Store) -> None:
    store.write(Guest(uuid=A, name="x", power_state="DREAMING"))
    assert list(driver.list_guests().errors) == [A]


def test_a_folder_that_vanished_is_no_empty_hypervisor(
    driver: SimulatedDriver, store: Store
) -> None:
    store.guests.rmdir()
    for ask in (driver.list_guests, driver.capacity, lambda: driver.look(A)):
        with pytest.raises(HypervisorUnavailable):
            ask()
    assert driver.health()
    with pytest.raises(HypervisorUnavailable):
        driver.create(SPEC, mark(), quietly)


@pytest.mark.parametrize("op", ["look", "capacity", "create", *CHANGES])
def test_any_call_can_be_made_to_fail(driver: SimulatedDriver, store: Store, op: str) -> None:
    if op != "create":
        driver.create(SPEC, mark(), quietly)
    before = store.read(A)
    guest = proof(driver) if op in CHANGES else None
    store.set_faults(Faults(ops={op: "fail"}))
    calls: dict[str, Callable[[], object]] = {
        "look": lambda: driver.look(A),
        "capacity": driver.capacity,
        "create": lambda: driver.create(SPEC, mark(), quietly),
    }
    if guest is not None:
        calls[op] = lambda: change(driver, op, guest)
    with pytest.raises(HypervisorError, match="fault"):
        calls[op]()
    assert store.read(A) == before


def test_a_listing_fails_as_a_hypervisor_that_is_away(
    driver: SimulatedDriver, store: Store
) -> None:
    store.set_faults(Faults(ops={"list": "fail"}))
    with pytest.raises(HypervisorUnavailable):
        driver.list_guests()
    store.set_faults(Faults(down="out for lunch"))
    assert driver.health() == "out for lunch"
    with pytest.raises(HypervisorUnavailable, match="lunch"):
        driver.look(A)


def test_fail_after_has_its_effect(driver: SimulatedDriver, store: Store) -> None:
    store.set_faults(Faults(ops={"create": "fail_after"}))
    with pytest.raises(HypervisorError):
        driver.create(SPEC, mark(), quietly)
    assert store.read(A) is not None


def test_every_changing_call_fails_at_a_rate_of_one(store: Store, runtime: Runtime) -> None:
    driver = SimulatedDriver(store, _settings(store, failure_rate=1.0), runtime)
    with pytest.raises(HypervisorError):
        driver.create(SPEC, mark(), quietly)
    assert driver.list_guests().guests == ()


def test_a_killed_agent_does_not_finish_its_call(driver: SimulatedDriver, store: Store) -> None:
    store.set_faults(Faults(latency_s={"create": 60}))
    driver._runtime.kill()
    with pytest.raises(Stopped):
        driver.create(SPEC, mark(), quietly)
    assert store.uuids() == []


def test_capacity_counts_strangers_that_run(driver: SimulatedDriver, store: Store) -> None:
    store.write(Guest(uuid=A, name="a", vcpus=2, memory_mib=100, power_state="RUNNING"))
    store.write(Guest(uuid=B, name="b", vcpus=4, memory_mib=200, power_state="SHUTOFF"))
    seen = driver.capacity()
    assert (seen.vcpus_used, seen.memory_mib_used, seen.vcpus_total) == (2, 100, 16)


def test_changes_made_by_hand_are_noticed(store: Store, runtime: Runtime) -> None:
    driver = SimulatedDriver(store, _settings(store), runtime)
    told: queue.Queue[str | None] = queue.Queue()
    store.write(Guest(uuid=A, name="a"))
    driver.open(told.put)
    store.write(Guest(uuid=B, name="b"))
    assert told.get(timeout=30) == B
    (store.guests / f"{A}.json").write_text(json.dumps({"uuid": A, "name": "renamed"}))
    assert told.get(timeout=30) == A
    store.remove(B)
    assert told.get(timeout=30) == B
    driver.close()


def _domain_ids(state_dir: str, count: int) -> list[int]:
    store, numbers = Store(state_dir, "h"), []
    for _ in range(count):
        with store.lock():
            numbers.append(store.next_domain_id())
    return numbers


def test_processes_do_not_step_on_each_other(tmp_path: Path, store: Store) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        lists = pool.starmap(_domain_ids, [(str(tmp_path), 50)] * 2)
    assert sorted(n for numbers in lists for n in numbers) == list(range(1, 101))


# the console


def run(store: Store, capsys: pytest.CaptureFixture[str], *args: str, status: int = 0) -> str:
    base = ["--state-dir", str(store.folder.parent), "--host", store.folder.name]
    assert console.main([*base, *args]) == status
    out = capsys.readouterr()
    return (out.err if status else out.out).strip()


def test_the_console_makes_and_changes_strangers(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run(store, capsys, "create", "byhand", "--vcpus", "3", "--memory", "64", "--start")
    assert str(uuid.UUID(made)) == made
    (row,) = json.loads(run(store, capsys, "list", "-f", "json"))
    assert (row["uuid"], row["power_state"], row["mark"]) == (made, "RUNNING", None)
    for verb, state in (
        ("pause", "PAUSED"),
        ("stop", "SHUTOFF"),
        ("start", "RUNNING"),
        ("suspend", "SUSPENDED"),
        ("crash", "CRASHED"),
    ):
        run(store, capsys, verb, "byhand")
        guest = store.read(made)
        assert guest is not None
        assert guest.power_state == state
    assert "CRASHED" in run(store, capsys, "list")
    run(store, capsys, "destroy", made)
    assert json.loads(run(store, capsys, "list", "-f", "json")) == []


def test_the_console_tells_what_was_done_and_by_whom(
    store: Store, driver: SimulatedDriver, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(store, capsys, "log") == ""
    driver.create(SPEC, mark(), quietly)
    run(store, capsys, "create", "byhand", "--start")
    run(store, capsys, "stop", "web")
    told = json.loads(run(store, capsys, "log", "-f", "json"))
    assert [(act["by"], act["verb"], act["name"], act["instance"]) for act in told] == [
        ("agent", "create", "web", "i-1"),
        ("console", "create", "byhand", None),
        ("console", "start", "byhand", None),
        ("console", "stop", "web", "i-1"),
    ]
    assert run(store, capsys, "log", "byhand").count("console") == 2
    assert "i-1 at generation 1" in run(store, capsys, "log", "i-1")


def test_the_console_clones_with_the_mark(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.write(Guest(uuid=A, name="ours", mark=mark()))
    clone = store.read(run(store, capsys, "create", "clone", "--clone-of", "ours"))
    assert clone is not None
    assert clone.mark == mark()
    assert clone.uuid != A


def test_the_console_says_what_it_does_not_know(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "NOT_FOUND" in run(store, capsys, "stop", "nobody", status=3)
    store.write(Guest(uuid=A, name="twin"))
    store.write(Guest(uuid=B, name="twin"))
    assert "AMBIGUOUS" in run(store, capsys, "stop", "twin", status=3)


def test_the_console_sets_and_clears_faults(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    run(store, capsys, "set-fault", "list", "fail")
    run(store, capsys, "set-fault", "start", "0.5")
    run(store, capsys, "set-fault", "down", "no power")
    assert store.faults() == Faults(ops={"list": "fail"}, latency_s={"start": 0.5}, down="no power")
    run(store, capsys, "set-fault", "list", "none")
    run(store, capsys, "set-fault", "start", "none")
    run(store, capsys, "set-fault", "down", "none")
    assert store.faults() == Faults()


def test_faults_that_can_not_be_read_are_an_error_and_not_health(
    driver: SimulatedDriver, store: Store
) -> None:
    (store.folder / "faults.json").write_text("{")
    assert driver.health()
    with pytest.raises(MusterError):
        driver.list_guests()


def on_disk(snapshot: SnapshotFiles, n: int = 0) -> GuestSpec:
    kept = SnapshotDisk(
        instance=snapshot.instance, snapshot=snapshot.snapshot, folder=snapshot.folder, n=n
    )
    return msgspec.structs.replace(SPEC, disks=(DiskSpec(size_gib=1, snapshot=kept),))


@pytest.mark.parametrize("folder", [None, "/kept"])
def test_a_guest_is_made_from_a_snapshot_only_while_that_is_there(
    driver: SimulatedDriver, folder: str | None
) -> None:
    files = msgspec.structs.replace(KEPT, folder=folder)
    spec = msgspec.structs.replace(SPEC, disks=(DiskSpec(size_gib=1),))
    driver.create(spec, mark(), quietly)
    driver.snapshot(proof(driver), spec, files, quietly)
    driver.destroy(proof(driver))
    driver.create(on_disk(files), mark(), quietly)
    with pytest.raises(HypervisorError, match="no disk 1"):
        driver.create(on_disk(files, 1), mark(B), quietly)
    driver.clean_up(files)
    driver.clean_up(files)  # already gone is success
    with pytest.raises(HypervisorError, match="no snapshot"):
        driver.create(on_disk(files), mark(B), quietly)


def test_a_snapshot_of_a_pool_is_there_for_other_hosts_and_one_of_a_host_is_not(
    driver: SimulatedDriver, tmp_path: Path, runtime: Runtime
) -> None:
    spec = msgspec.structs.replace(SPEC, disks=(DiskSpec(size_gib=1),))
    driver.create(spec, mark(), quietly)
    shared = msgspec.structs.replace(KEPT, folder="/kept")
    for files in (KEPT, shared):
        driver.snapshot(proof(driver), spec, files, quietly)
    other = SimulatedDriver(Store(str(tmp_path), "other"), Settings(), runtime)
    other._store.make()
    other.create(on_disk(shared), mark(), quietly)
    with pytest.raises(HypervisorError, match="no snapshot"):
        other.create(on_disk(KEPT), mark(B), quietly)


def test_a_guest_that_runs_is_not_copied(driver: SimulatedDriver) -> None:
    driver.create(SPEC, mark(), quietly)
    driver.start(proof(driver))
    with pytest.raises(HypervisorError, match="RUNNING"):
        driver.snapshot(proof(driver), SPEC, KEPT, quietly)

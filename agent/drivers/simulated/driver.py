"""The simulated driver: the hypervisor port over a folder of guests, with faults on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from agent.drivers import checks
from agent.drivers.base import Doing, Driver, Listing, OwnedGuest
from agent.drivers.simulated.disks import folders_of, of_ceph
from agent.drivers.simulated.store import Before, Guest, Store
from common.conf import Settings
from common.errors import (
    GuestMissing,
    HypervisorError,
    HypervisorUnavailable,
    MusterError,
    NotOurs,
)
from common.messages import (
    Attachment,
    Capacity,
    GuestFiles,
    GuestReport,
    GuestSpec,
    RbdImage,
    Remains,
    SnapshotFiles,
)
from common.ownership import Mark, why_not_ours
from common.runtime import Runtime
from common.states import PowerState

UP = frozenset({PowerState.RUNNING.name, PowerState.BLOCKED.name, PowerState.PAUSED.name})
CHANGING = frozenset(
    {"create", "remark", "start", "stop", "reboot", "pause", "unpause"}
    | {"suspend", "resume", "resize", "confirm_resize", "revert_resize"}
    | {"snapshot", "destroy", "clean_up"}
)
_ON = frozenset({PowerState.RUNNING.name, PowerState.BLOCKED.name})
_PAUSED = frozenset({PowerState.PAUSED.name})
_SUSPENDED = frozenset({PowerState.SUSPENDED.name})


def create(host: str, settings: Settings, runtime: Runtime) -> Driver:
    """The entry point."""
    return SimulatedDriver(Store(settings.simulated.state_dir, host), settings, runtime)


class SimulatedDriver:
    """One host's simulated hypervisor, as its agent sees it."""

    name = "simulated"
    attaches = False

    def __init__(self, store: Store, settings: Settings, runtime: Runtime) -> None:
        self._store = store
        self._settings = settings.simulated
        self._runtime = runtime
        self._closed = runtime.event()
        self._seen: dict[str, tuple[int, int, int]] = {}

    def open(self, on_change: Callable[[str | None], None]) -> None:
        def make() -> bool:
            try:
                self._store.make()
            except HypervisorUnavailable:
                return False  # each call says why
            self._seen = self._store.signature()
            return True

        def watch() -> None:
            now = self._store.signature()
            before, self._seen = self._seen, now
            for guest in {g for g, _ in now.items() ^ before.items()}:
                on_change(guest)

        made = make()

        def loop() -> None:
            nonlocal made
            while not self._closed.is_set() and not self._runtime.stopping.is_set():
                made = made or make()
                watch()
                self._runtime.wait(self._closed, self._settings.watch_interval)

        self._runtime.spawn("simulated-watch", loop)

    def close(self) -> None:
        self._closed.set()

    def health(self) -> str:
        try:
            self._store.uuids()
            return self._store.faults().down
        except MusterError as exc:
            return exc.message

    def list_guests(self) -> Listing:
        with self._fault("list") as mode:
            guests: list[GuestReport] = []
            errors: dict[str, str] = {}
            for n, guest_uuid in enumerate(self._store.uuids()):
                if mode == "partial" and n % 2 == 0:
                    errors[guest_uuid] = "fault: not listed"
                    continue
                try:
                    guest = self._store.read(guest_uuid)
                except HypervisorError as exc:
                    errors[guest_uuid] = exc.message
                    continue
                if guest is not None:
                    guests.append(guest.report())
            return Listing(guests=tuple(guests), errors=errors)

    def look(self, hypervisor_uuid: str) -> GuestReport | None:
        with self._fault("look"):
            guest = self._store.read(hypervisor_uuid)
            return guest.report() if guest is not None else None

    def capacity(self) -> Capacity:
        with self._fault("capacity"):
            running = []
            for guest_uuid in self._store.uuids():
                try:
                    guest = self._store.read(guest_uuid)
                except HypervisorError:
                    continue
                if guest is not None and guest.power_state in UP:
                    running.append(guest)
            return Capacity(
                vcpus_total=self._settings.vcpus,
                memory_mib_total=self._settings.memory_mib,
                vcpus_used=sum(g.vcpus for g in running),
                memory_mib_used=sum(g.memory_mib for g in running),
            )

    def create(self, spec: GuestSpec, mark: Mark, doing: Doing) -> GuestReport:
        checks.check(spec)
        doing("define")
        with self._fault("create"), self._store.lock():
            if self._store.read(mark.bearer) is not None:
                raise HypervisorError(f"guest {mark.bearer} exists already", "look at the host")
            for disk in spec.disks:
                if disk.snapshot is not None:
                    self._store.require_snapshot(disk.snapshot)
            guest = Guest(
                uuid=mark.bearer,
                name=self._store.free_name(spec.name, mark.bearer),
                vcpus=spec.vcpus,
                memory_mib=spec.memory_mib,
                macs=tuple(nic.mac for nic in spec.nics),
                mark=mark,
                spec=spec,
            )
            self._store.disks.make(guest.uuid, folders_of(spec))
            self._store.write(guest)
            self._note("create", guest)
            return guest.report()

    def remark(self, guest: OwnedGuest, generation: int) -> OwnedGuest:
        with self._fault("remark"), self._ours(guest) as found:
            found.mark = msgspec.structs.replace(guest.mark, generation=generation)
            self._store.write(found)
            return msgspec.structs.replace(guest, mark=found.mark, seen=found.report())

    def start(self, guest: OwnedGuest) -> None:
        with self._fault("start"), self._ours(guest) as found:
            if found.power_state == PowerState.RUNNING.name:
                return
            if found.power_state not in UP:
                found.domain_id = self._store.next_domain_id()
            found.power_state = PowerState.RUNNING.name
            self._store.write(found)
            self._note("start", found)

    def stop(self, guest: OwnedGuest, *, force: bool, timeout_s: float) -> None:
        # A simulated guest obeys at once, so there is nothing to force and no time to give it.
        with self._fault("stop"), self._ours(guest) as found:
            if found.power_state == PowerState.SHUTOFF.name:
                return
            found.power_state, found.domain_id = PowerState.SHUTOFF.name, None
            self._store.write(found)
            self._note("stop", found)

    def reboot(self, guest: OwnedGuest, *, force: bool, timeout_s: float) -> None:
        with self._fault("reboot"), self._ours(guest) as found:
            if found.power_state not in UP:
                raise HypervisorError(f"guest {found.name} is not running", "start it instead")
            if force:
                found.domain_id = self._store.next_domain_id()
            found.power_state = PowerState.RUNNING.name
            self._store.write(found)
            self._note("reboot", found)

    def pause(self, guest: OwnedGuest) -> None:
        self._turn("pause", guest, _ON, PowerState.PAUSED)

    def unpause(self, guest: OwnedGuest) -> None:
        self._turn("unpause", guest, _PAUSED, PowerState.RUNNING)

    def suspend(self, guest: OwnedGuest) -> None:
        self._turn("suspend", guest, UP, PowerState.SUSPENDED)

    def resume(self, guest: OwnedGuest) -> None:
        self._turn("resume", guest, _SUSPENDED, PowerState.RUNNING)

    def _turn(self, verb: str, guest: OwnedGuest, sources: frozenset[str], to: PowerState) -> None:
        with self._fault(verb), self._ours(guest) as found:
            if found.power_state == to.name:
                return
            if found.power_state not in sources:
                raise HypervisorError(f"guest {found.name} is {found.power_state}", f"no {verb}")
            if to.name not in UP:
                found.domain_id = None
            elif found.power_state not in UP:
                found.domain_id = self._store.next_domain_id()
            found.power_state = to.name
            self._store.write(found)
            self._note(verb, found)

    def snapshot(
        self, guest: OwnedGuest, spec: GuestSpec, files: SnapshotFiles, doing: Doing
    ) -> None:
        doing("snapshot")
        with self._fault("snapshot"), self._ours(guest) as found:
            if found.power_state != PowerState.SHUTOFF.name:
                raise HypervisorError(f"guest {found.name} is {found.power_state}", "not off")
            self._store.write_snapshot(files, spec)
            self._note("snapshot", found)

    def resize(self, guest: OwnedGuest, spec: GuestSpec, key: str, doing: Doing) -> None:
        doing("resize")
        with self._fault("resize"), self._ours(guest) as found:
            _must_be_off(found)
            if found.before is None or found.before.key != key:
                found.before = Before(
                    key=key,
                    vcpus=found.vcpus,
                    memory_mib=found.memory_mib,
                    spec=found.spec,
                )
            found.vcpus, found.memory_mib, found.spec = spec.vcpus, spec.memory_mib, spec
            self._store.write(found)
            self._note("resize", found)

    def keeps(self, guest: OwnedGuest) -> str | None:
        with self._fault("look"), self._ours(guest) as found:
            return None if found.before is None else found.before.key

    def confirm_resize(self, guest: OwnedGuest, spec: GuestSpec, key: str) -> None:
        with self._fault("confirm_resize"), self._ours(guest) as found:
            if found.before is None or found.before.key != key:
                _must_have_size(found, spec)
                return
            found.before = None
            self._store.write(found)
            self._note("confirm_resize", found)

    def revert_resize(self, guest: OwnedGuest, spec: GuestSpec | None, key: str) -> None:
        with self._fault("revert_resize"), self._ours(guest) as found:
            before = found.before
            if before is None or before.key != key:
                _must_have_size(found, spec)
                return
            _must_be_off(found)
            found.before = None
            found.vcpus, found.memory_mib, found.spec = (
                before.vcpus,
                before.memory_mib,
                before.spec,
            )
            self._store.write(found)
            self._note("revert_resize", found)

    def attached(self, guest: OwnedGuest) -> tuple[Attachment, ...]:
        return ()

    def destroy(self, guest: OwnedGuest) -> None:
        with self._fault("destroy"), self._ours(guest) as found:
            self._store.disks.remove(found.uuid, folders_of(found.spec))
            self._store.remove(found.uuid)
            self._note("destroy", found)

    def clean_up(self, remains: Remains) -> None:
        with self._fault("clean_up"), self._store.lock():
            match remains:
                case GuestFiles():
                    if self._store.read(remains.bearer) is not None:
                        raise checks.still_there(remains)
                    places = {*remains.folders, *map(of_ceph, remains.images)}
                    self._store.disks.remove(remains.bearer, places)
                case RbdImage():
                    # A simulated guest writes nothing that it would have to be kept from.
                    self._store.disks.remove(remains.target.guest, {of_ceph(remains.target)})
                case SnapshotFiles():
                    self._store.remove_snapshot(remains)

    def _note(self, verb: str, guest: Guest) -> None:
        self._store.note("agent", verb, guest)

    @contextmanager
    def _ours(self, guest: OwnedGuest) -> Iterator[Guest]:
        """The guest's file under the host's lock, if it still carries the mark it was found by."""
        with self._store.lock():
            found = self._store.read(guest.hypervisor_uuid)
            if found is None:
                raise GuestMissing(f"guest {guest.hypervisor_uuid} is gone", "look at the host")
            why = why_not_ours(
                found.mark,
                fleet=guest.mark.fleet,
                hypervisor_uuid=found.uuid,
                template=found.template,
            )
            if not why and found.mark is not None and found.mark.instance != guest.mark.instance:
                why = f"its mark names instance {found.mark.instance}"
            if why:
                raise NotOurs(f"guest {found.name} is left alone: {why}", "")
            yield found

    @contextmanager
    def _fault(self, op: str) -> Iterator[str]:
        """The latency and faults set for `op`, before and after what the block does."""
        faults = self._store.faults()
        mode = faults.ops.get(op, "")
        rest = self._settings.latency if op in CHANGING else 0.0
        if seconds := faults.latency_s.get(op, rest):
            self._runtime.pause(seconds)
        if faults.down:
            raise HypervisorUnavailable(faults.down, "bring the simulated hypervisor back")
        if mode == "hang":
            self._hang(op, mode)
        if mode == "fail" or self._unlucky(op):
            kind = HypervisorUnavailable if op == "list" else HypervisorError
            raise kind(f"fault: {op} fails", "clear the fault")
        yield mode
        if mode == "hang_after":
            self._hang(op, mode)
        if mode == "fail_after":
            raise HypervisorError(f"fault: {op} fails after its effect", "clear the fault")

    def _hang(self, op: str, mode: str) -> None:
        while self._store.faults().ops.get(op) == mode:
            self._runtime.pause(0.05)
            if self._runtime.stopping.is_set():
                raise HypervisorUnavailable(f"fault: {op} hangs", "clear the fault")

    def _unlucky(self, op: str) -> bool:
        rate = self._settings.failure_rate
        return op in CHANGING and rate > 0 and self._runtime.random_below(10**6) < rate * 10**6


def _must_be_off(guest: Guest) -> None:
    if guest.power_state in UP:
        raise HypervisorError(f"guest {guest.name} is {guest.power_state}", "stop it first")


def _must_have_size(guest: Guest, spec: GuestSpec | None) -> None:
    if spec is not None:
        other = None if guest.before is None else guest.before.key
        checks.check_size(spec, guest.vcpus, guest.memory_mib, _root_gib(guest.spec), other)


def _root_gib(spec: GuestSpec | None) -> int | None:
    return spec.disks[0].size_gib if spec is not None and spec.disks else None

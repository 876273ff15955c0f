"""The hypervisor port on libvirt: what is there, and what is done to guests of ours.

What is there is read with calls that look into libvirtd's memory only (list, XML, state): none asks
a guest's monitor, so one guest that hangs holds up nobody. Each change looks the domain up by uuid
and reads its mark again, and acts on that very domain.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import libvirt
import msgspec

from agent.drivers import checks
from agent.drivers.base import Doing, Listing, OwnedGuest
from agent.drivers.libvirt import domains, making, probe
from agent.drivers.libvirt.connection import Connection
from agent.drivers.libvirt.making import Maker
from agent.drivers.libvirt.resizing import Resizer
from common.conf.libvirt import Libvirt
from common.conf.rbd import Rbd
from common.errors import (
    CallTimeout,
    GuestMissing,
    HypervisorError,
    HypervisorUnavailable,
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
from common.ownership import Mark
from common.runtime import Runtime

LOG = logging.getLogger(__name__)

POLL_S = 0.2
# A guest that is still booting loses the first press of its power button.
PRESS_AGAIN_S = 5.0


class Hypervisor:
    """A Driver (agent/drivers/base.py)."""

    name = "libvirt"

    def __init__(self, settings: Libvirt, rbd: Rbd, runtime: Runtime) -> None:
        self.attaches = bool(rbd.keyring)
        self._settings = settings
        self._runtime = runtime
        self._connection = Connection(settings.connection_uri, settings.keepalive_interval, runtime)
        self._maker = Maker(settings, rbd, self._connection, runtime)
        self._resizer = Resizer(self._connection, settings.instances_path)

    def open(self, on_change: Callable[[str | None], None]) -> None:
        self._connection.open(on_change)
        if self._settings.virt_type == "auto" and self._settings.connection_uri.startswith("qemu"):
            # Ready before the first guest is created.
            self._runtime.spawn(
                "libvirt-probe", self._runtime.offload, probe.best_virt_type, self._runtime
            )

    def close(self) -> None:
        self._connection.close()

    def health(self) -> str:
        return self._connection.problem

    # what is there

    def list_guests(self) -> Listing:
        try:
            found = self._connection.call("list domains", lambda conn: conn.listAllDomains())
        except HypervisorError as exc:
            raise HypervisorUnavailable(exc.message, exc.remedy) from exc
        guests: list[GuestReport] = []
        errors: dict[str, str] = {}
        for domain in found:
            uuid = domain.UUIDString()
            try:
                guests.append(self._connection.call(f"look at {uuid}", partial(_read_of, domain)))
            except GuestMissing:
                continue  # it went between the list and the look
            except HypervisorUnavailable:
                raise
            except (HypervisorError, ValueError) as exc:
                errors[uuid] = str(exc)
        return Listing(guests=tuple(guests), errors=errors)

    def look(self, hypervisor_uuid: str) -> GuestReport | None:
        try:
            return self._connection.call(
                f"look at {hypervisor_uuid}",
                lambda conn: domains.read(conn.lookupByUUIDString(hypervisor_uuid)),
            )
        except GuestMissing:
            return None
        except ValueError as exc:
            raise HypervisorError(f"look at {hypervisor_uuid}: {exc}") from exc

    def capacity(self) -> Capacity:
        info = self._connection.call("ask for the host's size", lambda conn: conn.getInfo())
        active = self._connection.call(
            "list running domains",
            lambda conn: conn.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE),
        )
        vcpus = memory_kib = 0
        for domain in active:
            try:
                _, kib, _, count, _ = self._connection.call(
                    f"size of {domain.UUIDString()}", partial(_info_of, domain)
                )
            except HypervisorUnavailable:
                raise
            except (GuestMissing, HypervisorError):
                continue  # the listing tells of it
            vcpus += count
            memory_kib += kib
        return Capacity(
            vcpus_total=info[2],
            memory_mib_total=info[1],
            vcpus_used=vcpus,
            memory_mib_used=memory_kib // 1024,
        )

    # changes

    def create(self, spec: GuestSpec, mark: Mark, doing: Doing) -> GuestReport:
        if self.look(mark.bearer) is not None:
            raise HypervisorError(
                f"a guest with uuid {mark.bearer} exists already", "create it under a fresh uuid"
            )
        self._maker.make(spec, mark, doing)
        made = self.look(mark.bearer)
        if made is None:
            raise HypervisorError(f"guest {spec.name} was removed while it was created")
        return made

    def remark(self, guest: OwnedGuest, generation: int) -> OwnedGuest:
        mark = msgspec.structs.replace(guest.mark, generation=generation)

        def write(conn: Any) -> GuestReport:
            domain = domains.ours(conn, guest)
            domains.write_mark(domain, mark)
            return domains.read(domain)

        seen = self._connection.call(f"mark {guest.seen.name}", write)
        return msgspec.structs.replace(guest, mark=mark, seen=seen)

    def start(self, guest: OwnedGuest) -> None:
        self._connection.call(
            f"start {guest.seen.name}",
            lambda conn: domains.run(
                self._maker.ready(conn, domains.ours(conn, guest)), guest.mark
            ),
        )

    def stop(self, guest: OwnedGuest, *, force: bool, timeout_s: float) -> None:
        if not force:
            try:
                self._ask_to_shut_down(guest, timeout_s)
            except HypervisorError as exc:
                LOG.warning("%s; pulling the plug", exc)
        self._connection.call(
            f"stop {guest.seen.name}", lambda conn: domains.pull(domains.ours(conn, guest))
        )

    def reboot(self, guest: OwnedGuest, *, force: bool, timeout_s: float) -> None:
        if not force and self._reboot_softly(guest, timeout_s):
            return

        def cycle(conn: Any) -> None:
            domain = self._maker.ready(conn, domains.ours(conn, guest))
            domains.pull(domain)
            domains.run(domain, guest.mark)

        self._connection.call(f"reboot {guest.seen.name}", cycle)

    def pause(self, guest: OwnedGuest) -> None:
        self._connection.call(
            f"pause {guest.seen.name}", lambda conn: domains.pause(domains.ours(conn, guest))
        )

    def unpause(self, guest: OwnedGuest) -> None:
        self._connection.call(
            f"unpause {guest.seen.name}", lambda conn: domains.unpause(domains.ours(conn, guest))
        )

    def suspend(self, guest: OwnedGuest) -> None:
        self._connection.call(
            f"suspend {guest.seen.name}", lambda conn: domains.save(domains.ours(conn, guest))
        )

    def resume(self, guest: OwnedGuest) -> None:
        self._connection.call(
            f"resume {guest.seen.name}",
            lambda conn: domains.restore(
                self._maker.ready(conn, domains.ours(conn, guest)), guest.mark
            ),
        )

    def snapshot(
        self, guest: OwnedGuest, spec: GuestSpec, files: SnapshotFiles, doing: Doing
    ) -> None:
        def require_off(conn: Any) -> None:
            domain = domains.ours(conn, guest)
            if domain.isActive() or domain.hasManagedSaveImage():
                raise HypervisorError(f"guest {guest.seen.name} is not off", "who uses it?")

        # Its image files are locked by a guest that runs; before and after, nobody holds it off.
        self._connection.call(f"look at {guest.seen.name}", require_off)
        self._maker.keep(spec, guest.mark, files, doing)
        self._connection.call(f"look at {guest.seen.name}", require_off)

    def resize(self, guest: OwnedGuest, spec: GuestSpec, key: str, doing: Doing) -> None:
        self._resizer.resize(guest, spec, key, doing)

    def keeps(self, guest: OwnedGuest) -> str | None:
        return self._resizer.keeps(guest)

    def confirm_resize(self, guest: OwnedGuest, spec: GuestSpec, key: str) -> None:
        self._resizer.confirm(guest, spec, key)

    def revert_resize(self, guest: OwnedGuest, spec: GuestSpec | None, key: str) -> None:
        self._resizer.revert(guest, spec, key)

    def attached(self, guest: OwnedGuest) -> tuple[Attachment, ...]:
        definition = self._connection.call(
            f"look at {guest.seen.name}", lambda conn: domains.ours(conn, guest).XMLDesc()
        )
        return self._maker.attached(definition)

    def destroy(self, guest: OwnedGuest) -> None:
        known: set[str] = set()

        def once(conn: Any) -> None:
            domain = domains.ours(conn, guest)
            known.update(making.definitions(domain))
            domains.pull(domain)
            # The domain goes last: as long as it is there, somebody knows what is left to do.
            self._maker.remove(guest.mark, tuple(known))
            domains.undefine(domain)

        try:
            # Undefining a guest that was started by another hand meanwhile makes it transient;
            # it is gone when it is not found any more.
            for _ in range(3):
                self._connection.call(f"destroy {guest.seen.name}", once)
            raise HypervisorError(
                f"destroy {guest.seen.name}: it comes back", "who else starts it on this host?"
            )
        except GuestMissing:
            self._maker.remove(guest.mark, tuple(known))

    def clean_up(self, remains: Remains) -> None:
        match remains:
            case GuestFiles():
                if self.look(remains.bearer) is not None:
                    raise checks.still_there(remains)
                found = self.list_guests()
                of_it = (g.mark and g.mark.instance == remains.instance for g in found.guests)
                self._maker.remove_files(remains, others=bool(found.errors) or any(of_it))
            case SnapshotFiles():
                self._maker.drop(remains)
            case RbdImage():
                self._maker.remove_image(remains)

    # parts of the changes

    def _ask_to_shut_down(self, guest: OwnedGuest, timeout_s: float) -> None:
        def press(conn: Any) -> bool:
            domain = domains.ours(conn, guest)
            if domain.state()[0] != libvirt.VIR_DOMAIN_RUNNING:
                return False  # off already, or paused and deaf
            domain.shutdown()
            return True

        doing = f"shut {guest.seen.name} down"
        deadline = self._runtime.monotonic() + timeout_s
        while (left := deadline - self._runtime.monotonic()) > 0:
            if not self._connection.call(doing, press):
                return
            if self._until(lambda: not self._is_active(guest), min(left, PRESS_AGAIN_S)):
                return

    def _reboot_softly(self, guest: OwnedGuest, timeout_s: float) -> bool:
        """True when the guest was seen to reset itself."""
        uuid = guest.hypervisor_uuid.lower()
        before = self._connection.resets(uuid)

        def ask(conn: Any) -> bool:
            domain = domains.ours(conn, guest)
            if domain.state()[0] != libvirt.VIR_DOMAIN_RUNNING:
                return False
            domain.reboot()
            return True

        try:
            asked = self._connection.call(f"reboot {guest.seen.name}", ask)
        except HypervisorError as exc:
            LOG.warning("%s; rebooting it the hard way", exc)
            return False
        return (
            asked
            and self._until(
                lambda: self._connection.resets(uuid) > before or not self._is_active(guest),
                timeout_s,
            )
            and self._is_active(guest)
        )

    def _is_active(self, guest: OwnedGuest) -> bool:
        try:
            return bool(
                self._connection.call(
                    f"look at {guest.seen.name}",
                    lambda conn: conn.lookupByUUIDString(guest.hypervisor_uuid).isActive(),
                )
            )
        except GuestMissing:
            return False

    def _until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """True once the condition holds; False when the time is over first."""
        deadline = self._runtime.monotonic() + timeout_s
        while not condition():
            if self._runtime.stopping.is_set():
                raise CallTimeout("the agent stops", "the command is looked at when it is back")
            if self._runtime.monotonic() >= deadline:
                return False
            self._runtime.sleep(POLL_S)
        return True


def _read_of(domain: Any, _conn: Any) -> GuestReport:
    return domains.read(domain)


def _info_of(domain: Any, _conn: Any) -> list[int]:
    return [int(number) for number in domain.info()]

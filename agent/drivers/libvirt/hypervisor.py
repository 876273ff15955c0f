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

from agent.drivers.base import Listing, OwnedGuest
from agent.drivers.libvirt import probe, xml
from agent.drivers.libvirt.connection import Connection
from agent.drivers.libvirt.disks import Disks
from common.conf.libvirt import Libvirt
from common.errors import (
    CallTimeout,
    GuestMissing,
    HypervisorError,
    HypervisorUnavailable,
    NotOurs,
    StaleCommand,
)
from common.messages import Capacity, GuestReport, GuestSpec, NicSpec
from common.ownership import Mark, why_not_ours
from common.runtime import Runtime
from common.states import PowerState

LOG = logging.getLogger(__name__)

POLL_S = 0.2
# A guest that is still booting loses the first press of its power button.
PRESS_AGAIN_S = 5.0
# Everything that belongs to a domain goes with it; the mock driver knows the first two.
_UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
)
_UNDEFINE_ALL = (
    _UNDEFINE | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)


class Hypervisor:
    """A Driver (agent/drivers/base.py)."""

    name = "libvirt"

    def __init__(self, settings: Libvirt, runtime: Runtime) -> None:
        self._settings = settings
        self._runtime = runtime
        self._connection = Connection(settings.connection_uri, settings.keepalive_interval, runtime)
        self._disks = Disks(settings.instances_path)

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
            domains = self._connection.call("list domains", lambda conn: conn.listAllDomains())
        except HypervisorError as exc:
            raise HypervisorUnavailable(exc.message, exc.remedy) from exc
        guests: list[GuestReport] = []
        errors: dict[str, str] = {}
        for domain in domains:
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
                lambda conn: _read(conn.lookupByUUIDString(hypervisor_uuid)),
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

    def create(self, spec: GuestSpec, mark: Mark) -> GuestReport:
        if self.look(mark.bearer) is not None:
            raise HypervisorError(
                f"a guest with uuid {mark.bearer} exists already", "create it under a fresh uuid"
            )
        disks = self._disks.plan(mark.instance, mark.bearer, spec.disks)
        nics = [self._nic(nic) for nic in spec.nics]

        def define(name: str, conn: Any) -> None:
            conn.defineXML(
                xml.define(
                    spec,
                    mark,
                    name=name,
                    virt_type=self._virt_type(conn),
                    disks=disks,
                    nics=nics,
                    serial_log=self._disks.serial_log(mark.instance),
                )
            )

        # Defined before its disks are made: whenever we are killed, a domain that carries our mark
        # leads to whatever was made for it.
        self._define_under_a_free_name(spec.name, mark, define)
        try:
            self._disks.make(mark.instance, mark.bearer, spec.disks, disks)
            made = self.look(mark.bearer)
        except Exception:
            self._undo_create(mark)
            raise
        if made is None:
            self._disks.remove(mark.instance, mark.bearer)
            raise HypervisorError(f"guest {spec.name} was removed while it was created")
        return made

    def remark(self, guest: OwnedGuest, generation: int) -> OwnedGuest:
        mark = msgspec.structs.replace(guest.mark, generation=generation)

        def write(conn: Any) -> GuestReport:
            domain = _ours(conn, guest)
            _write_mark(domain, mark)
            return _read(domain)

        seen = self._connection.call(f"mark {guest.seen.name}", write)
        return msgspec.structs.replace(guest, mark=mark, seen=seen)

    def start(self, guest: OwnedGuest) -> None:
        self._connection.call(
            f"start {guest.seen.name}", lambda conn: _run(_ours(conn, guest), guest.mark)
        )

    def stop(self, guest: OwnedGuest, *, force: bool, timeout_s: float) -> None:
        if not force:
            try:
                self._ask_to_shut_down(guest, timeout_s)
            except HypervisorError as exc:
                LOG.warning("%s; pulling the plug", exc)
        self._connection.call(f"stop {guest.seen.name}", lambda conn: _pull(_ours(conn, guest)))

    def reboot(self, guest: OwnedGuest, *, force: bool, timeout_s: float) -> None:
        if not force and self._reboot_softly(guest, timeout_s):
            return

        def cycle(conn: Any) -> None:
            domain = _ours(conn, guest)
            _pull(domain)
            _run(domain, guest.mark)

        self._connection.call(f"reboot {guest.seen.name}", cycle)

    def destroy(self, guest: OwnedGuest) -> None:
        def once(conn: Any) -> None:
            domain = _ours(conn, guest)
            _pull(domain)
            # The domain goes last: as long as it is there, somebody knows what is left to do.
            self._disks.remove(guest.mark.instance, guest.hypervisor_uuid)
            _undefine(domain)

        try:
            # Undefining a guest that was started by another hand meanwhile makes it transient;
            # it is gone when it is not found any more.
            for _ in range(3):
                self._connection.call(f"destroy {guest.seen.name}", once)
            raise HypervisorError(
                f"destroy {guest.seen.name}: it comes back", "who else starts it on this host?"
            )
        except GuestMissing:
            self._disks.remove(guest.mark.instance, guest.hypervisor_uuid)

    # parts of the changes

    def _virt_type(self, conn: Any) -> str:
        if conn.getType() == "TEST":
            return "test"
        if self._settings.virt_type == "auto":
            return probe.best_virt_type(self._runtime)
        return self._settings.virt_type

    def _nic(self, nic: NicSpec) -> xml.Nic:
        """A card on the libvirt network of that name, else the bridge; without one, user mode."""
        if nic.network is None:
            return xml.Nic(nic.mac, "user")
        networks = self._connection.call(
            "list networks", lambda conn: [network.name() for network in conn.listAllNetworks()]
        )
        return xml.Nic(nic.mac, "network" if nic.network in networks else "bridge", nic.network)

    def _define_under_a_free_name(
        self, wanted: str, mark: Mark, define: Callable[[str, Any], None]
    ) -> None:
        """Names belong to whoever has them: libvirt refuses a second domain of the same name."""
        plain = xml.domain_name(wanted)
        names = (plain, f"{plain}-{mark.instance.replace('-', '')[:8]}")
        refusal: HypervisorError | None = None
        for name in names:
            if self._name_is_taken(name):
                continue
            try:
                self._connection.call(f"define {name}", partial(define, name))
                return
            except HypervisorError as exc:
                # Somebody may have taken the name since we asked; anything else is final.
                if not self._name_is_taken(name):
                    raise
                refusal = exc
        raise refusal or HypervisorError(
            f"the names {' and '.join(names)} are taken by other guests", "rename the instance"
        )

    def _name_is_taken(self, name: str) -> bool:
        try:
            self._connection.call(f"look for {name}", lambda conn: conn.lookupByName(name))
        except GuestMissing:
            return False
        return True

    def _undo_create(self, mark: Mark) -> None:
        """Remove what a failed create has made; what can not be removed now is logged."""
        try:
            self._disks.remove(mark.instance, mark.bearer)
            self._connection.call(
                f"undefine {mark.bearer}",
                lambda conn: _undefine(_marked(conn, mark.bearer, mark)),
            )
        except GuestMissing:
            return
        except (HypervisorError, HypervisorUnavailable, NotOurs) as exc:
            LOG.warning("what a failed create has made is left behind: %s", exc)

    def _ask_to_shut_down(self, guest: OwnedGuest, timeout_s: float) -> None:
        def press(conn: Any) -> bool:
            domain = _ours(conn, guest)
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
            domain = _ours(conn, guest)
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
    return _read(domain)


def _info_of(domain: Any, _conn: Any) -> list[int]:
    return [int(number) for number in domain.info()]


def _read(domain: Any) -> GuestReport:
    """A domain as libvirtd knows it, without a word to the guest's monitor."""
    definition = domain.XMLDesc()
    number = domain.state()[0]
    if number == libvirt.VIR_DOMAIN_SHUTOFF and domain.hasManagedSaveImage():
        return xml.report(definition, PowerState.SUSPENDED)
    known = number <= PowerState.SUSPENDED
    return xml.report(definition, PowerState(number) if known else PowerState.NOSTATE)


def _ours(conn: Any, guest: OwnedGuest) -> Any:
    """The domain, looked up and read this moment; NotOurs, or StaleCommand, when not for us."""
    return _marked(conn, guest.hypervisor_uuid, guest.mark)


def _marked(conn: Any, uuid: str, mark: Mark) -> Any:
    domain = conn.lookupByUUIDString(uuid)
    seen = _read(domain)
    why = why_not_ours(seen.mark, fleet=mark.fleet, hypervisor_uuid=seen.hypervisor_uuid)
    if not why and seen.mark is not None and seen.mark.instance != mark.instance:
        why = f"it is instance {seen.mark.instance} now"
    if why or seen.mark is None:
        raise NotOurs(f"guest {seen.name} ({uuid}) is not touched: {why}", "adopt it first")
    if seen.mark.generation > mark.generation:
        # A call that was given up for lost, and goes on when a later command has had its effect.
        raise StaleCommand(
            f"guest {seen.name} is at generation {seen.mark.generation}, this is {mark.generation}",
            "a later command has taken over",
            floor=seen.mark.generation,
        )
    return domain


def _write_mark(domain: Any, mark: Mark) -> None:
    for last in (False, True):
        flags = libvirt.VIR_DOMAIN_AFFECT_LIVE if domain.isActive() else 0
        flags |= libvirt.VIR_DOMAIN_AFFECT_CONFIG if domain.isPersistent() else 0
        try:
            domain.setMetadata(
                libvirt.VIR_DOMAIN_METADATA_ELEMENT,
                xml.mark_element(mark),
                xml.MARK_PREFIX,
                xml.MARK_URI,
                flags,
            )
            return
        except libvirt.libvirtError as exc:
            # It was started or stopped between the question and the call.
            if last or exc.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
                raise


def _run(domain: Any, mark: Mark) -> None:
    state = domain.state()[0]
    if state in (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED):
        return
    if state == libvirt.VIR_DOMAIN_PAUSED:
        domain.resume()
        return
    if state == libvirt.VIR_DOMAIN_PMSUSPENDED:
        domain.pMWakeup()
        return
    if domain.isActive():
        domain.destroy()  # crashed and kept, or switched off and not yet put away
    saved = domain.hasManagedSaveImage()
    try:
        domain.create()
    except libvirt.libvirtError:
        if not domain.isActive():
            raise
    if saved:
        # The saved memory came with the metadata of the day it was saved.
        _write_mark(domain, mark)


def _pull(domain: Any) -> None:
    """Off, now; memory that was saved is given up like memory that was not."""
    try:
        if domain.isActive():
            domain.destroy()
    except libvirt.libvirtError:
        if domain.isActive():
            raise
    if domain.hasManagedSaveImage():
        domain.managedSaveRemove()


def _undefine(domain: Any) -> None:
    try:
        domain.undefineFlags(_UNDEFINE_ALL)
    except libvirt.libvirtError as exc:
        if exc.get_error_code() != libvirt.VIR_ERR_INVALID_ARG:
            raise
        domain.undefineFlags(_UNDEFINE)

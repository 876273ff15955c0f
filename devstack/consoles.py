"""The hypervisors' own consoles: what they themselves say, and changes made behind our back.

The demo and the tests check Muster against these and not against its own database.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any, Protocol

import msgspec

from agent.drivers.simulated.store import Guest, Store
from common.states import PowerState
from devstack.parts.libvirtd import Libvirtd


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A guest by its hypervisor's own account; `start` changes each time it is started anew."""

    uuid: str
    name: str
    running: bool
    start: int | None


class Console(Protocol):
    """One hypervisor, used as its administrator would."""

    def guests(self) -> dict[str, Seen]:
        """Every guest, by its hypervisor uuid."""

    def make_stranger(self, name: str) -> str:
        """A running guest made by hand; its uuid."""

    def power_off(self, hypervisor_uuid: str) -> None:
        """Pull a guest's plug."""

    def break_down(self) -> None:
        """Make the hypervisor stop answering; its guests run on."""

    def mend(self) -> None:
        """Make it answer again."""


class SimulatedConsole:
    """The console of a simulated hypervisor: the files that it keeps."""

    def __init__(self, state_dir: Path, host: str) -> None:
        self._store = Store(str(state_dir), host)
        self._store.make()

    def guests(self) -> dict[str, Seen]:
        found = {}
        for guest_uuid in self._store.uuids():
            guest = self._store.read(guest_uuid)
            if guest is not None:
                found[guest_uuid] = Seen(
                    uuid=guest_uuid,
                    name=guest.name,
                    running=guest.power_state == PowerState.RUNNING.name,
                    start=guest.domain_id,
                )
        return found

    def make_stranger(self, name: str) -> str:
        with self._store.lock():
            guest = Guest(uuid=str(uuid.uuid4()), name=name, vcpus=1, memory_mib=128)
            guest.power_state = PowerState.RUNNING.name
            guest.domain_id = self._store.next_domain_id()
            self._store.write(guest)
        return guest.uuid

    def power_off(self, hypervisor_uuid: str) -> None:
        with self._store.lock():
            guest = self._store.read(hypervisor_uuid)
            if guest is None:
                raise KeyError(hypervisor_uuid)
            guest.power_state, guest.domain_id = PowerState.SHUTOFF.name, None
            self._store.write(guest)

    def break_down(self) -> None:
        self._fault("the hypervisor's toolstack was stopped by hand")

    def mend(self) -> None:
        self._fault("")

    def _fault(self, why: str) -> None:
        faults = self._store.faults()
        faults.down = why
        self._store.set_faults(faults)


class LibvirtConsole:
    """The console of a libvirt host, over a connection of its own."""

    def __init__(self, daemon: Libvirtd, kernel: Path, initrd: Path) -> None:
        import libvirt  # needed by fleets of libvirt hosts only

        libvirt.registerErrorHandler(lambda *_: None, None)
        self._libvirt: Any = libvirt
        self._daemon, self._kernel, self._initrd = daemon, kernel, initrd

    def _domains(self) -> Any:
        return self._libvirt.open(self._daemon.qemu_uri)

    def guests(self) -> dict[str, Seen]:
        conn = self._domains()
        try:
            found = {}
            for domain in conn.listAllDomains():
                state = domain.state()[0]
                found[domain.UUIDString()] = Seen(
                    uuid=domain.UUIDString(),
                    name=domain.name(),
                    running=state == self._libvirt.VIR_DOMAIN_RUNNING,
                    start=domain.ID() if domain.isActive() else None,
                )
            return found
        finally:
            conn.close()

    def make_stranger(self, name: str) -> str:
        guest_uuid = str(uuid.uuid4())
        conn = self._domains()
        try:
            conn.defineXML(
                f"<domain type='qemu'><name>{name}</name><uuid>{guest_uuid}</uuid>"
                f"<memory unit='MiB'>96</memory><vcpu>1</vcpu>"
                f"<os><type arch='x86_64' machine='pc'>hvm</type><kernel>{self._kernel}</kernel>"
                f"<initrd>{self._initrd}</initrd><cmdline>console=ttyS0 quiet</cmdline></os>"
                "<features><acpi/></features></domain>"
            ).create()
        finally:
            conn.close()
        return guest_uuid

    def power_off(self, hypervisor_uuid: str) -> None:
        conn = self._domains()
        try:
            conn.lookupByUUIDString(hypervisor_uuid).destroy()
        finally:
            conn.close()

    def break_down(self) -> None:
        self._daemon.freeze()

    def mend(self) -> None:
        self._daemon.thaw()

"""The hypervisors' own consoles: what they themselves say, and changes made behind our back.

The demo, the tests and the storm check Muster against these and not against its own database, and
never ask through an agent.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec

from agent.drivers.simulated.store import Guest, Store
from common.messages import GuestReport
from common.ownership import Mark, new_bearer
from common.states import PowerState
from devstack.parts.base import PartError
from devstack.parts.libvirtd import Libvirtd

FLEET = "demo"


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """Something that an agent did to a guest, how often, and for which command if that is known."""

    verb: str
    instance: str
    generation: int | None
    times: int


class Console(Protocol):
    """One hypervisor, used as its administrator would."""

    def guests(self) -> dict[str, GuestReport]:
        """Every guest by its hypervisor uuid; `domain_id` changes each time it is started anew."""

    def make_stranger(self, name: str, mark: Mark | None = None) -> GuestReport:
        """A running guest made by hand; a clone of ours when it carries one of our marks."""

    def power_off(self, hypervisor_uuid: str) -> None:
        """Pull a guest's plug."""

    def break_down(self) -> None:
        """Make the hypervisor stop answering; its guests run on."""

    def mend(self) -> None:
        """Make it answer again."""


class Witness(Console, Protocol):
    """A console that keeps account of what was done."""

    def effects(self, instances: Iterable[str]) -> list[Effect]:
        """All that was done by agents to these."""

    def story(self, about: str) -> list[str]:
        """What it tells of one instance."""

    def kept(self) -> list[str]:
        """The hypervisor uuids of all guests that have files here, there or not."""


def runs(guest: GuestReport) -> bool:
    """True for a guest that is powered on."""
    return guest.power_state is PowerState.RUNNING


class SimulatedConsole:
    """The console of a simulated hypervisor: the files that it keeps, its account among them."""

    def __init__(self, state_dir: Path, host: str) -> None:
        self._store = Store(str(state_dir), host)
        self._store.make()

    def guests(self) -> dict[str, GuestReport]:
        found = [self._store.read(guest_uuid) for guest_uuid in self._store.uuids()]
        return {guest.uuid: guest.report() for guest in found if guest is not None}

    def make_stranger(self, name: str, mark: Mark | None = None) -> GuestReport:
        with self._store.lock():
            guest = Guest(uuid=str(uuid.uuid4()), name=name, memory_mib=16, mark=mark)
            guest.power_state = PowerState.RUNNING.name
            guest.domain_id = self._store.next_domain_id()
            self._store.write(guest)
            self._store.note("console", "create", guest)
        return guest.report()

    def power_off(self, hypervisor_uuid: str) -> None:
        with self._store.lock():
            guest = self._store.read(hypervisor_uuid)
            if guest is None:
                raise KeyError(hypervisor_uuid)
            guest.power_state, guest.domain_id = PowerState.SHUTOFF.name, None
            self._store.write(guest)
            self._store.note("console", "stop", guest)

    def break_down(self) -> None:
        self._fault("the hypervisor's toolstack was stopped by hand")

    def mend(self) -> None:
        self._fault("")

    def _fault(self, why: str) -> None:
        faults = self._store.faults()
        faults.down = why
        self._store.set_faults(faults)

    def effects(self, instances: Iterable[str]) -> list[Effect]:
        known = set(instances)
        counted = Counter(
            (act.verb, str(act.instance), act.generation)
            for act in self._store.account()
            if act.by == "agent" and act.instance in known
        )
        return [
            Effect(verb=verb, instance=instance, generation=generation, times=times)
            for (verb, instance, generation), times in counted.items()
        ]

    def story(self, about: str) -> list[str]:
        return [
            f"{act.at:%H:%M:%S.%f} {act.by}: {act.verb} of {act.name}"
            f" ({act.uuid}) at generation {act.generation}"
            for act in self._store.account()
            if act.instance == about
        ]

    def kept(self) -> list[str]:
        return self._store.disks.left()


class LibvirtConsole:
    """The console of a libvirt host, over connections of its own.

    `kind` and `boot` are the domain type and the XML of what its strangers boot.
    """

    memory_mib = 96  # enough for a guest that boots

    def __init__(self, daemon: Libvirtd, uri: str, kind: str, boot: str) -> None:
        import libvirt  # needed by fleets of libvirt hosts only

        libvirt.registerErrorHandler(lambda *_: None, None)
        self._libvirt: Any = libvirt
        self._daemon, self._uri, self._kind, self._boot = daemon, uri, kind, boot

    @classmethod
    def of_qemu(cls, daemon: Libvirtd, kernel: Path, initrd: Path) -> LibvirtConsole:
        """The console of QEMU guests that boot a kernel from files."""
        boot = (
            f"<os><type arch='x86_64' machine='pc'>hvm</type><kernel>{kernel}</kernel>"
            f"<initrd>{initrd}</initrd><cmdline>console=ttyS0 quiet</cmdline></os>"
            "<features><acpi/></features>"
        )
        return cls(daemon, daemon.qemu_uri, "qemu", boot)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Any]:
        conn = self._libvirt.open(self._uri)
        try:
            yield conn
        finally:
            conn.close()

    def guests(self) -> dict[str, GuestReport]:
        from agent.drivers.libvirt import domains

        found = {}
        with self._connected() as conn:
            for domain in conn.listAllDomains():
                try:
                    report = domains.read(domain)
                except self._libvirt.libvirtError:
                    continue  # it went between the list and the look
                found[report.hypervisor_uuid] = report
        return found

    def make_stranger(self, name: str, mark: Mark | None = None) -> GuestReport:
        from agent.drivers.libvirt import domains

        guest_uuid = str(uuid.uuid4())
        with self._connected() as conn:
            domain = conn.defineXML(
                f"<domain type='{self._kind}'><name>{name}</name><uuid>{guest_uuid}</uuid>"
                f"<memory unit='MiB'>{self.memory_mib}</memory><vcpu>1</vcpu>{self._boot}</domain>"
            )
            domain.create()
            if mark is not None:
                domains.write_mark(domain, mark)
        made = self.guests().get(guest_uuid)
        if made is None:
            raise PartError(f"libvirt has lost {name} at once")
        return made

    def power_off(self, hypervisor_uuid: str) -> None:
        with self._connected() as conn:
            conn.lookupByUUIDString(hypervisor_uuid).destroy()

    def break_down(self) -> None:
        self._daemon.freeze()

    def mend(self) -> None:
        self._daemon.thaw()


class MockConsole(LibvirtConsole):
    """libvirt's mock driver behind a daemon; its account are the events that the daemon sends."""

    memory_mib = 16

    def __init__(self, daemon: Libvirtd) -> None:
        super().__init__(daemon, daemon.mock_uri, "test", "<os><type>hvm</type></os>")
        self._events: list[tuple[str, str]] = []
        self._libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=self._turn, name="libvirt-events", daemon=True).start()
        self._listening = self._libvirt.open(daemon.mock_uri)
        self._listening.domainEventRegisterAny(
            None, self._libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_event, None
        )

    def _turn(self) -> None:
        while True:
            self._libvirt.virEventRunDefaultImpl()

    def _on_event(self, _conn: Any, domain: Any, event: int, _detail: int, _opaque: Any) -> None:
        words = {
            self._libvirt.VIR_DOMAIN_EVENT_STARTED: "start",
            self._libvirt.VIR_DOMAIN_EVENT_STOPPED: "stop",
            self._libvirt.VIR_DOMAIN_EVENT_UNDEFINED: "destroy",
        }
        if event in words:
            self._events.append((words[event], domain.UUIDString()))

    def effects(self, instances: Iterable[str]) -> list[Effect]:
        """Starts by guest: an event does not tell which command it was for."""
        starts = Counter(guest for verb, guest in self._events if verb == "start")
        return [
            Effect(verb="start", instance=instance, generation=None, times=starts[guest])
            for instance in instances
            if (guest := _first_guest(instance)) in starts
        ]

    def story(self, about: str) -> list[str]:
        ours = _first_guest(about)
        return [f"{verb} of {guest}" for verb, guest in self._events if guest == ours]

    def kept(self) -> list[str]:
        return []  # its agent keeps the files of its guests, and no account is kept of them


def _first_guest(instance: str) -> str:
    """The uuid of the guest that an instance's create makes, as its agent chooses it."""
    return new_bearer(FLEET, instance, 1)

"""The hypervisors under the storm: strangers made by hand, and each one's own account.

What they say is held against Muster's database; they are never asked through an agent.
"""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from agent.drivers.simulated.store import Guest, Store
from common.messages import GuestReport
from common.ownership import Mark
from common.states import PowerState
from devstack.parts.base import PartError
from devstack.parts.libvirtd import Libvirtd

FLEET = "demo"
MEMORY_MIB = 16


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """Something that an agent did to a guest, how often, and for which command if that is known."""

    verb: str
    instance: str
    generation: int | None
    times: int


class Hypervisor(Protocol):
    """One host's hypervisor, used as its administrator would."""

    def guests(self) -> dict[str, GuestReport]:
        """Every guest by its hypervisor uuid."""

    def make(self, name: str, mark: Mark | None = None) -> GuestReport:
        """A running guest made by hand; a clone of ours when it carries one of our marks."""

    def effects(self, instances: Iterable[str]) -> list[Effect]:
        """All that was done by agents to these."""

    def story(self, about: str) -> list[str]:
        """What it tells of one instance."""

    def break_down(self) -> None:
        """Stop answering; guests run on."""

    def mend(self) -> None:
        """Answer again."""


class Simulated:
    """A simulated hypervisor: the files that it keeps."""

    def __init__(self, state_dir: Path, host: str) -> None:
        self._store = Store(str(state_dir), host)
        self._store.make()

    def guests(self) -> dict[str, GuestReport]:
        found = [self._store.read(guest_uuid) for guest_uuid in self._store.uuids()]
        return {guest.uuid: guest.report() for guest in found if guest is not None}

    def make(self, name: str, mark: Mark | None = None) -> GuestReport:
        with self._store.lock():
            guest = Guest(uuid=str(uuid.uuid4()), name=name, memory_mib=MEMORY_MIB, mark=mark)
            guest.power_state = PowerState.RUNNING.name
            guest.domain_id = self._store.next_domain_id()
            self._store.write(guest)
            self._store.note("console", "create", guest)
        return guest.report()

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

    def break_down(self) -> None:
        self._fault("the hypervisor's toolstack was stopped by hand")

    def mend(self) -> None:
        self._fault("")

    def _fault(self, why: str) -> None:
        faults = self._store.faults()
        faults.down = why
        self._store.set_faults(faults)


class LibvirtMock:
    """libvirt's mock driver behind a daemon; its account are the events that the daemon sends."""

    def __init__(self, daemon: Libvirtd) -> None:
        import libvirt  # needed with a libvirt host only

        self._libvirt: Any = libvirt
        self._daemon = daemon
        self._events: list[tuple[str, str]] = []
        libvirt.registerErrorHandler(lambda *_: None, None)
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=self._turn, name="libvirt-events", daemon=True).start()
        self._conn = libvirt.open(daemon.mock_uri)
        self._conn.domainEventRegisterAny(
            None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_event, None
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

    def guests(self) -> dict[str, GuestReport]:
        from agent.drivers.libvirt import domains

        found = {}
        for domain in self._conn.listAllDomains():
            try:
                report = domains.read(domain)
            except self._libvirt.libvirtError:
                continue  # it went between the list and the look
            found[report.hypervisor_uuid] = report
        return found

    def make(self, name: str, mark: Mark | None = None) -> GuestReport:
        from agent.drivers.libvirt import domains

        guest_uuid = str(uuid.uuid4())
        domain = self._conn.defineXML(
            f"<domain type='test'><name>{name}</name><uuid>{guest_uuid}</uuid>"
            f"<memory unit='MiB'>{MEMORY_MIB}</memory><vcpu>1</vcpu>"
            "<os><type>hvm</type></os></domain>"
        )
        domain.create()
        if mark is not None:
            domains.write_mark(domain, mark)
        made = self.guests().get(guest_uuid)
        if made is None:
            raise PartError(f"libvirt has lost {name} at once")
        return made

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

    def break_down(self) -> None:
        self._daemon.freeze()

    def mend(self) -> None:
        self._daemon.thaw()


def _first_guest(instance: str) -> str:
    """The uuid of the guest that an instance's create makes, as its agent chooses it."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{FLEET}/{instance}/1"))

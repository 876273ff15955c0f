"""A libvirt driver at work, and the hand of a stranger on the same hypervisor."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from agent.drivers.base import Driver, OwnedGuest
from agent.drivers.libvirt.driver import create
from agent.drivers.libvirt.filters import BRIDGE_TRAFFIC
from common.conf import Settings
from common.conf.libvirt import Libvirt
from common.conf.rbd import Rbd
from common.messages import GuestReport, GuestSpec
from common.ownership import Mark
from common.runtime import Runtime
from tests.wait import wait_until

filtering = pytest.mark.skipif(
    not BRIDGE_TRAFFIC.exists(), reason=f"no {BRIDGE_TRAFFIC}: modprobe br_netfilter"
)

FLEET = "ours"
MARK_URI = "https://muster.invalid/xmlns/domain/1"


class Rig:
    """`driver` with the changes it told of; `hand` is a connection of its own."""

    def __init__(self, uri: str, folder: Path, rbd: Rbd = Rbd()) -> None:  # noqa: B008 - frozen
        self.uri = uri
        self.instances = folder / "instances"
        self.changes: list[str | None] = []
        self.phases: list[str] = []
        self.runtime = Runtime("libvirt-test")
        self.driver: Driver = create(
            "host-1",
            Settings(
                libvirt=Libvirt(
                    connection_uri=uri,
                    virt_type="qemu",
                    instances_path=str(self.instances),
                    keepalive_interval=1,
                ),
                rbd=rbd,
            ),
            self.runtime,
        )

    @contextlib.contextmanager
    def hand(self) -> Iterator[Any]:
        conn = libvirt.open(self.uri)
        try:
            yield conn
        finally:
            conn.close()

    def open(self) -> None:
        self.driver.open(self.changes.append)

    def connected(self) -> None:
        wait_until(lambda: not self.driver.health(), 30, "connected")

    def all_told(self) -> None:
        """Return once every change made up to now has been told, and forget them."""
        # Events come in order.
        last = self.stranger("last", running=False)
        wait_until(lambda: last in self.changes, 30, "told of the last change")
        with self.hand() as conn:
            conn.lookupByUUIDString(last).undefine()
        self.changes.clear()

    def create(self, name: str = "web-1", **spec: Any) -> OwnedGuest:
        mark = Mark(fleet=FLEET, instance=str(uuid.uuid4()), generation=1, bearer=str(uuid.uuid4()))
        wanted = GuestSpec(**{"name": name, "vcpus": 1, "memory_mib": 128, **spec})
        return OwnedGuest(mark.bearer, mark, self.driver.create(wanted, mark, self.doing))

    def doing(self, phase: str) -> None:
        if self.phases[-1:] != [phase]:
            self.phases.append(phase)

    def look(self, guest: OwnedGuest) -> GuestReport:
        seen = self.driver.look(guest.hypervisor_uuid)
        assert seen is not None
        return seen

    def folder(self, guest: OwnedGuest) -> Path:
        return self.instances / guest.mark.instance

    def serial(self, guest: OwnedGuest) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder(guest) / "serial.log").read_text(errors="replace")
        return ""

    def stranger(
        self, name: str, *, metadata: str = "", running: bool = True, bearer: str | None = None
    ) -> str:
        """A domain made by another hand; its uuid."""
        made = bearer or str(uuid.uuid4())
        body = name.replace("&", "&amp;").replace("<", "&lt;")
        kind = "test" if self.uri.startswith("test") else "qemu"
        with self.hand() as conn:
            domain = conn.defineXML(
                f"<domain type='{kind}'><name>{body}</name><uuid>{made}</uuid>"
                f"<metadata>{metadata.replace('BEARER', made)}</metadata>"
                "<memory unit='MiB'>64</memory><vcpu>1</vcpu>"
                "<os><type>hvm</type></os></domain>"
            )
            if running:
                domain.create()
        return made

    def picture(self, hypervisor_uuid: str) -> tuple[Any, ...]:
        """Everything of a domain that a touch would change."""
        with self.hand() as conn:
            domain = conn.lookupByUUIDString(hypervisor_uuid)
            return (domain.ID(), domain.state(), domain.XMLDesc(), domain.XMLDesc(2))

    def clear(self) -> None:
        """Remove every domain of the hypervisor."""
        with self.hand() as conn:
            for domain in conn.listAllDomains():
                if domain.isActive():
                    domain.destroy()
                with contextlib.suppress(libvirt.libvirtError):
                    domain.undefineFlags(
                        libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
                        | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                    )


def mark_xml(*, fleet: str = FLEET, instance: str, generation: str = "1", bearer: str) -> str:
    """A mark as somebody may have written it; bearer BEARER stands for the domain's own uuid."""
    return (
        f"<muster:mark xmlns:muster='{MARK_URI}' fleet='{fleet}' instance='{instance}'"
        f" generation='{generation}' bearer='{bearer}'/>"
    )


@contextlib.contextmanager
def at_work(uri: str, folder: Path, *, wait: bool = True, **settings: Any) -> Iterator[Rig]:
    """A rig whose driver is connected; everything it made is removed in the end."""
    rig = Rig(uri, folder, **settings)
    rig.open()
    try:
        if wait:
            rig.connected()
        yield rig
        rig.clear()
    finally:
        rig.driver.close()
        rig.runtime.stop()

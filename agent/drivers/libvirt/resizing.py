"""Another size for a guest that is there: done so that it can be undone until it is confirmed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import libvirt
import msgspec

from agent.drivers.base import Doing, OwnedGuest
from agent.drivers.checks import check_size
from agent.drivers.libvirt import cpu, domains, qemu_img, xml
from agent.drivers.libvirt.connection import Connection
from agent.drivers.libvirt.disks import GIB
from agent.drivers.libvirt.kept import Keeper, Record, Stage
from common.errors import HypervisorError, ResizeOver, ResizeReverting
from common.messages import GuestSpec


class Resizer:
    """Changes, confirms and reverts the size of guests that are off (confirms: of any)."""

    def __init__(self, connection: Connection, instances_path: str) -> None:
        self._connection = connection
        self._root = Path(instances_path)

    def keeps(self, guest: OwnedGuest) -> str | None:
        """As the port's `keeps`."""
        record = self._keeper(guest).read()
        return None if record is None else record.key

    def resize(self, guest: OwnedGuest, spec: GuestSpec, key: str, doing: Doing) -> None:
        """As the port's `resize`."""
        keeper, definition = self._keeper(guest), self._definition(guest, must_be_off=True)
        record = keeper.read()
        if record is not None and record.key != key:
            self._over(keeper, record)
            record = None
        if record is None or record.stage is Stage.KEEPING:
            record = self._keep(keeper, guest, key, definition, doing)
        elif record.stage is not Stage.KEPT:
            raise HypervisorError(f"the resize of {guest.seen.name} is {record.stage}", "")
        doing("resize")
        wanted = spec.disks[0].size_gib if spec.disks else None
        if wanted is not None and record.disks:
            root = record.disks[0]
            if qemu_img.info(root).virtual_size < wanted * GIB:
                qemu_img.resize(root, wanted * GIB)
        doing("define")
        tuning = partial(_tuning, spec)
        self._define(guest, lambda conn: xml.Size(spec.vcpus, spec.memory_mib, tuning(conn)))

    def confirm(self, guest: OwnedGuest, spec: GuestSpec, key: str) -> None:
        """As the port's `confirm_resize`."""
        keeper = self._keeper(guest)
        record = keeper.read()
        if record is None or record.key != key:
            self._nothing(guest, keeper, record, spec)
        elif record.stage in (Stage.KEPT, Stage.CONFIRMING):
            self._connection.call(
                f"look at {guest.seen.name}", lambda conn: domains.ours(conn, guest)
            )
            self._over(keeper, record)
        elif record.stage is Stage.REVERTING:
            raise ResizeReverting(f"the resize of {guest.seen.name} is half reverted", "revert it")
        else:
            raise HypervisorError(f"the resize of {guest.seen.name} is {record.stage}", "revert it")

    def revert(self, guest: OwnedGuest, spec: GuestSpec | None, key: str) -> None:
        """As the port's `revert_resize`."""
        keeper = self._keeper(guest)
        record = keeper.read()
        if record is None or record.key != key:
            self._nothing(guest, keeper, record, spec)
            return
        if record.stage is Stage.CONFIRMING:
            raise ResizeOver(f"the resize of {guest.seen.name} is being confirmed", "confirm it")
        self._definition(guest, must_be_off=True)
        if record.stage is not Stage.KEEPING:
            record = keeper.write(msgspec.structs.replace(record, stage=Stage.REVERTING))
            keeper.put_back(record.disks)
            tuned = None if record.shares is None else xml.Cpu(record.shares, record.quota)
            before = xml.Size(record.vcpus, record.memory_mib, tuned)
            self._define(guest, lambda _conn: before)
        keeper.forget(record.disks)

    # inside

    def _keep(
        self, keeper: Keeper, guest: OwnedGuest, key: str, definition: str, doing: Doing
    ) -> Record:
        was = xml.size(definition)
        record = Record(
            stage=Stage.KEEPING,
            key=key,
            vcpus=was.vcpus,
            memory_mib=was.memory_mib,
            shares=was.cpu.shares if was.cpu else None,
            quota=was.cpu.quota if was.cpu else None,
            disks=xml.disks_below(definition, f"{guest.mark.bearer}.disk"),
        )
        doing("keep")
        keeper.write(record)
        keeper.copy(record.disks, partial(doing, "keep"))
        return keeper.write(msgspec.structs.replace(record, stage=Stage.KEPT))

    def _over(self, keeper: Keeper, record: Record) -> None:
        """Nothing of it is kept; what is half put back never gets here."""
        if record.stage is Stage.REVERTING:
            raise HypervisorError("an earlier resize is being reverted", "revert it")
        keeper.write(msgspec.structs.replace(record, stage=Stage.CONFIRMING))
        keeper.forget(record.disks)

    def _nothing(
        self, guest: OwnedGuest, keeper: Keeper, record: Record | None, spec: GuestSpec | None
    ) -> None:
        """Nothing is kept for who asks; ResizeOver when that is not as it should be."""
        if record is None:
            keeper.forget(())  # of one that was never finished
        if spec is None:
            return
        definition = self._definition(guest)
        was = xml.size(definition)
        disks = xml.disks_below(definition, f"{guest.mark.bearer}.disk0.")
        gib = qemu_img.info(disks[0]).virtual_size / GIB if disks else None
        check_size(spec, was.vcpus, was.memory_mib, gib, record.key if record else None)

    def _definition(self, guest: OwnedGuest, *, must_be_off: bool = False) -> str:
        """What the guest is from its next start on."""

        def read(conn: Any) -> str:
            domain = domains.ours(conn, guest)
            if must_be_off and domain.isActive():
                raise HypervisorError(f"guest {guest.seen.name} runs", "stop it first")
            return str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))

        return self._connection.call(f"read {guest.seen.name}", read)

    def _define(self, guest: OwnedGuest, to: Any) -> None:
        def define(conn: Any) -> None:
            domain = domains.ours(conn, guest)
            if domain.isActive():
                raise HypervisorError(f"guest {guest.seen.name} runs", "stop it first")
            flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
            conn.defineXML(xml.resized(domain.XMLDesc(flags), to(conn)))

        self._connection.call(f"resize {guest.seen.name}", define)

    def _keeper(self, guest: OwnedGuest) -> Keeper:
        return Keeper(self._root / guest.mark.instance, guest.mark.bearer)


def _tuning(spec: GuestSpec, conn: Any) -> xml.Cpu | None:
    return cpu.tuning(spec, conn.getInfo()[3], version=cpu.cgroup_version())

"""A guest with all that belongs to it: made in an order in which nothing of it can be lost.

The domain, which carries our mark and names every file, folder and filter, is defined before any of
them is made and undefined after the last of them is removed: whenever we are killed, what is there
of a guest is found from its domain.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import libvirt
import msgspec

from agent.drivers import checks
from agent.drivers.base import Doing
from agent.drivers.libvirt import cpu, domains, filters, keys, probe, seed, xml
from agent.drivers.libvirt.connection import Connection
from agent.drivers.libvirt.disks import Disks
from agent.drivers.libvirt.filters import Filters
from agent.drivers.libvirt.networks import Networks
from agent.drivers.libvirt.rbd import Images
from agent.drivers.libvirt.templates import Templates
from common.conf.libvirt import Libvirt
from common.conf.rbd import Rbd
from common.errors import GuestMissing, HypervisorError, MusterError
from common.messages import Attachment, GuestFiles, GuestSpec, RbdImage, RbdTarget, SnapshotFiles
from common.ownership import Mark
from common.runtime import Runtime

LOG = logging.getLogger(__name__)


class Maker:
    """Makes guests whole and removes them whole."""

    def __init__(
        self, settings: Libvirt, rbd: Rbd, connection: Connection, runtime: Runtime
    ) -> None:
        self._settings = settings
        self._runtime = runtime
        self._connection = connection
        self._images = Images(rbd, runtime)
        self._disks = Disks(settings.instances_path, Templates(runtime), self._images)
        self._networks = Networks(connection)
        self._filters = Filters(connection)

    def make(self, spec: GuestSpec, mark: Mark, doing: Doing) -> None:
        """Everything that the port's `create` promises; undone when it fails."""
        checks.check(spec)
        instance, bearer = mark.instance, mark.bearer
        disks = self._disks.plan(instance, bearer, spec.disks)
        # Before the domain is there: what can be made must be possible to remove.
        self._disks.sign(spec.disks)
        self._disks.reach(spec.disks)
        kernels = [s for s in (spec.kernel_source, spec.initrd_source) if s is not None]
        if kernels or any(d.source is not None and d.snapshot is None for d in spec.disks):
            doing("template")
            self._disks.fetch(spec.disks, kernels, partial(doing, "template"))
        doing("network")
        cards = self._networks.cards(instance, bearer, spec.nics)
        if spec.hostname is not None:
            disks += (xml.Disk(self._disks.seed(instance, bearer), "raw", "seed"),)
        described = self._with_kernels(spec)

        def define(name: str, conn: Any) -> None:
            conn.defineXML(
                xml.define(
                    described,
                    mark,
                    name=name,
                    virt_type=self._virt_type(conn),
                    disks=disks,
                    nics=cards,
                    serial_log=self._disks.serial_log(instance),
                    cpu=cpu.tuning(spec, conn.getInfo()[3], version=cpu.cgroup_version()),
                )
            )

        doing("define")
        self._define_under_a_free_name(spec.name, mark, define)
        begun: set[RbdTarget] = set()
        try:
            self._disks.make(instance, bearer, spec.disks, disks[: len(spec.disks)], doing, begun)
            if spec.hostname is not None:
                doing("seed")
                self._disks.write_seed(instance, bearer, seed.iso(spec, instance))
            if any(nic.rules is not None for nic in spec.nics):
                doing("filters")
                self._filters.make(instance, bearer, spec.nics)
            # Not there any more: somebody gave us up for lost, and removed what there was by then.
            self._connection.call(f"look at {bearer}", lambda conn: conn.lookupByUUIDString(bearer))
        except Exception:
            self._undo(spec, mark, begun)
            raise

    def remove(self, mark: Mark, definitions: tuple[str, ...] = ()) -> None:
        """Remove what was made for a guest that is off, but not the domain itself.

        `definitions` are what the domain's XML says of it; without them its own folder is all.
        """
        found = [xml.belongings(definition) for definition in definitions]
        names = {name for belongings in found for name in belongings.filters}
        self._filters.remove(mark.instance, mark.bearer, names)
        folders = {folder for belongings in found for folder in belongings.folders}
        images = {image for belongings in found for image in belongings.images}
        self._disks.remove(mark.instance, mark.bearer, folders, images)

    def ready(self, conn: Any, domain: Any) -> Any:
        """The domain, once libvirt has what it needs to open the domain's disks."""
        images = xml.belongings(domain.XMLDesc()).images
        for monitors in {image.monitors for image in images}:
            keys.ensure(conn, self._images, monitors)
        return domain

    def attached(self, definition: str) -> tuple[Attachment, ...]:
        """Each image in Ceph that was made for a guest, with who has it open."""
        images = sorted(xml.belongings(definition).images, key=lambda image: image.image)
        return tuple(self._images.attached(image) for image in images)

    def keep(self, spec: GuestSpec, mark: Mark, files: SnapshotFiles, doing: Doing) -> None:
        """Copy the disks of a guest that is off into the snapshot store."""
        self._disks.keep(mark.bearer, spec.disks, files, doing)

    def drop(self, files: SnapshotFiles) -> None:
        """Remove a snapshot from its store."""
        self._disks.drop(files)

    def remove_files(self, files: GuestFiles, *, others: bool) -> None:
        """Remove what is left of a guest whose domain, which named it all, is gone.

        `others`: there may be a domain of the same instance, which has its log there.
        """
        names = self._filters.left_of(files.instance, files.bearer)
        self._filters.remove(files.instance, files.bearer, names)
        self._disks.remove(files.instance, files.bearer, files.folders, files.images, others=others)

    def remove_image(self, image: RbdImage) -> None:
        """Shut out whoever has an image in Ceph open, and remove it."""
        words = f"{image.target.pool}/{image.target.image}"
        self._images.fence_and_remove(
            image.target,
            image.addresses,
            image.expiry_s,
            lambda told: LOG.warning("image %s: %s", words, told),
        )

    # inside

    def _with_kernels(self, spec: GuestSpec) -> GuestSpec:
        """The spec with a fetched kernel as if it had always been on this host."""
        fetched = {
            name: self._disks.template(source)
            for name, source in (("kernel", spec.kernel_source), ("initrd", spec.initrd_source))
            if source is not None
        }
        return msgspec.structs.replace(spec, **fetched)

    def _virt_type(self, conn: Any) -> str:
        if conn.getType() == "TEST":
            return "test"
        if self._settings.virt_type == "auto":
            return probe.best_virt_type(self._runtime)
        return self._settings.virt_type

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

    def _undo(self, spec: GuestSpec, mark: Mark, images: set[RbdTarget]) -> None:
        """Remove what a failed create has made; what can not be removed now is logged.

        Of images in Ceph only these: another of such a name may be a guest's of another host.
        """
        names = {
            name
            for number, nic in enumerate(spec.nics)
            if (name := filters.name(mark.instance, mark.bearer, number, nic)) is not None
        }
        folders = {disk.folder for disk in spec.disks if disk.folder is not None}

        def undefine(conn: Any) -> None:
            domains.undefine(domains.marked(conn, mark.bearer, mark))

        try:
            self._filters.remove(mark.instance, mark.bearer, names)
            self._disks.remove(mark.instance, mark.bearer, folders, images)
            self._connection.call(f"undefine {mark.bearer}", undefine)
        except GuestMissing:
            return
        except MusterError as exc:
            LOG.warning("what a failed create has made is left behind: %s", exc)


def definitions(domain: Any) -> tuple[str, ...]:
    """What a domain is now, and what it is from its next start on."""
    if domain.isActive() and domain.isPersistent():
        return domain.XMLDesc(), domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    return (domain.XMLDesc(),)

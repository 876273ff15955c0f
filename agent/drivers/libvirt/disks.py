"""Disks of guests, in files or in Ceph: removed only when we made them."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from agent.drivers.base import Doing
from agent.drivers.libvirt import ceph, folders, qemu_img
from agent.drivers.libvirt.rbd import Images
from agent.drivers.libvirt.templates import Templates
from agent.drivers.libvirt.xml import Access, Disk
from common.errors import HypervisorError
from common.messages import DiskSpec, ImageSource, RbdTarget, SnapshotDisk, SnapshotFiles
from common.model import TemplateFormat

LOG = logging.getLogger(__name__)

SERIAL_LOG = "serial.log"
# In each pool's folder from its first disk on: an empty folder may be one that is not mounted.
SIGN = ".muster-pool"
SIGNED = "Disks of Muster are made here. Without this file the folder counts as not mounted.\n"
SNAPSHOTS = "snapshots"  # beside the instances' own folders
GIB = 1 << 30

_FOLDER_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")


class Disks:
    """A folder for each instance in the folder of each pool; new images are named by their guest.

    So two guests of one instance (an attempt that was given up, and the next) never share a file,
    and what a destroyed guest leaves behind is known by its name alone. The same goes for images.
    """

    def __init__(self, instances_path: str, templates: Templates, images: Images) -> None:
        self._root = Path(instances_path)
        self._templates = templates
        self._images = images

    def serial_log(self, instance: str) -> str:
        return str(self._folder(self._root, instance) / SERIAL_LOG)

    def seed(self, instance: str, bearer: str) -> str:
        """Where a guest's cloud-init seed is."""
        return str(self._folder(self._root, instance) / f"{bearer}.seed.iso")

    def plan(self, instance: str, bearer: str, specs: Sequence[DiskSpec]) -> tuple[Disk, ...]:
        """Where each disk is or will be; HypervisorError for an existing image that is missing."""
        return tuple(
            self._planned(instance, bearer, number, spec) for number, spec in enumerate(specs)
        )

    def sign(self, specs: Sequence[DiskSpec]) -> None:
        """Leave a sign in the folder of each pool, before anything else is made there."""
        for folder in {spec.folder for spec in specs if spec.folder is not None}:
            self._sign(folder)

    def reach(self, specs: Sequence[DiskSpec]) -> None:
        """HypervisorError unless each new image in Ceph can be made; Taken for one that is there.

        Before the domain is there: what is of the name later on was made for it.
        """
        for spec in specs:
            if spec.rbd is not None and is_new(spec):
                self._images.reach(spec.rbd)

    def fetch(
        self, specs: Sequence[DiskSpec], others: Iterable[ImageSource], alive: Callable[[], None]
    ) -> None:
        """Have every template in the folder that needs it; those of no disk in our own.

        One that is in a pool in Ceph already is not fetched for it.
        """
        for spec in specs:
            if spec.source is None or spec.snapshot is not None:
                continue
            in_ceph = spec.rbd if is_new(spec) else None
            if in_ceph is not None and self._images.has_template(in_ceph, spec.source.sha256):
                continue
            file = self._templates.ensure(self._pool(spec), spec.source, alive)
            if in_ceph is not None:
                self._images.ensure_template(
                    in_ceph, spec.source.sha256, file, spec.source.format.value, alive
                )
        for source in others:
            self._templates.ensure(self._root, source, alive)

    def template(self, source: ImageSource) -> str:
        """Where a template of no disk is, a kernel for instance."""
        return str(self._templates.path(self._root, source))

    def make(
        self,
        instance: str,
        bearer: str,
        specs: Sequence[DiskSpec],
        plan: Sequence[Disk],
        doing: Doing,
        begun: set[RbdTarget],
    ) -> None:
        """Make the new images of a plan, and the folder that the serial log is in.

        `begun` gets the images in Ceph that there may be something of, also when it fails.
        """
        self._make_folder(self._folder(self._root, instance), "check [libvirt] instances_path")
        for number, (spec, disk) in enumerate(zip(specs, plan, strict=True)):
            if spec.path is not None or disk.device == "cdrom":
                continue
            phase = "data disks" if number else "root disk"
            doing(phase)
            if spec.rbd is not None:
                kept = self._kept(spec.snapshot) if spec.snapshot is not None else None
                begun.add(spec.rbd)
                try:
                    self._images.make(spec.rbd, spec, partial(doing, phase), kept)
                except ceph.Taken:
                    begun.remove(spec.rbd)
                    raise
                continue
            self._make_folder(Path(disk.path).parent, "check the pool's folder")
            part = f"{disk.path}.part"
            try:
                self._make_one(spec, part, partial(doing, phase))
                os.chmod(part, 0o600)
                os.replace(part, disk.path)
            except OSError as exc:
                raise HypervisorError(
                    f"disk {disk.path} can not be made: {exc.strerror}", "check the pool's folder"
                ) from exc

    def write_seed(self, instance: str, bearer: str, body: bytes) -> None:
        """Keep a guest's seed where only the hypervisor reads it: keys and passwords are in it."""
        path = self.seed(instance, bearer)
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(body)
        except OSError as exc:
            raise HypervisorError(
                f"no seed {path}: {exc.strerror}", "check [libvirt] instances_path"
            ) from exc

    def keep(
        self, bearer: str, specs: Sequence[DiskSpec], files: SnapshotFiles, doing: Doing
    ) -> None:
        """Copy the new disks of a guest that is off into the snapshot store, each one flat."""
        folder = self._kept_in(files)
        if files.folder is not None:
            self._sign(files.folder)
        for number, spec in enumerate(specs):
            if is_new(spec):
                doing("snapshot")
                self._make_folder(folder, "check the folder of the snapshots")
                disk = self._planned(files.instance, bearer, number, spec)
                try:
                    self._keep_one(disk.path, folder / f"disk{number}.qcow2", doing)
                except OSError as exc:
                    raise HypervisorError(
                        f"disk {disk.path} can not be kept in {folder}: {exc.strerror}",
                        "check the folder of the snapshots",
                    ) from exc

    def drop(self, files: SnapshotFiles) -> None:
        """Remove a snapshot; nothing to do when it is gone."""
        folder = self._kept_in(files)
        if files.folder is not None:
            _require_sign(files.folder)
        try:
            if folder.is_dir():
                shutil.rmtree(folder)
            if folder.parent.is_dir() and not any(folder.parent.iterdir()):
                folder.parent.rmdir()
        except OSError as exc:
            raise HypervisorError(
                f"could not remove {exc.filename or folder}: {exc.strerror}", "check the folder"
            ) from exc

    def remove(
        self,
        instance: str,
        bearer: str,
        pools: Iterable[str] = (),
        images: Iterable[RbdTarget] = (),
        *,
        others: bool = False,
    ) -> None:
        """Remove what was made for this guest here, in pools' folders and in Ceph.

        The instance's folder goes with its last guest's files, its log too, unless there are
        `others`: guests of the instance that are defined here. HypervisorError for a pool's folder
        that is not there or not mounted, and for an image that is open: what is left could not be
        removed.
        """
        for image in sorted(images, key=lambda image: image.image):
            if image.image.startswith(f"muster-{bearer}-disk"):
                self._images.remove(image)
        for pool in sorted(set(pools) - {str(self._root)}):
            if not os.path.isdir(pool):
                raise HypervisorError(
                    f"the pool's folder {pool} is not there, so its disks can not be removed",
                    "mount it; it goes on by itself",
                )
            _require_sign(pool)
            self._remove(self._folder(Path(pool), instance), bearer, others)
        # Last: its folder is what an administrator finds a guest by.
        self._remove(self._folder(self._root, instance), bearer, others)

    # inside

    def _planned(self, instance: str, bearer: str, number: int, spec: DiskSpec) -> Disk:
        if spec.path is not None:
            return Disk(spec.path, _format_of(spec.path))
        pool = self._pool(spec)
        is_iso = spec.source is not None and spec.source.format is TemplateFormat.ISO
        if spec.rbd is not None and not is_iso:
            if spec.rbd.image != f"muster-{bearer}-disk{number}":
                raise HypervisorError(
                    f"the image {spec.rbd.image} is not named by its guest {bearer}",
                    "upgrade the managers or this agent: they name images differently",
                )
            access = Access(spec.rbd, self._images.user, self._images.secret(spec.rbd.monitors))
            return Disk("", "raw", access=access)
        if spec.source is not None and spec.source.format is TemplateFormat.ISO:
            return Disk(str(self._templates.path(pool, spec.source)), "raw", "cdrom")
        return Disk(str(self._folder(pool, instance) / f"{bearer}.disk{number}.qcow2"), "qcow2")

    def _keep_one(self, disk: str, path: Path, doing: Doing) -> None:
        """Under its own name only once it is whole, checked, and on the disk."""
        part = path.with_name(f"{path.name}.part")
        part.unlink(missing_ok=True)
        size = qemu_img.info(disk).virtual_size
        _require_room(disk, "qcow2", part)
        qemu_img.convert(disk, "qcow2", str(part), partial(doing, "snapshot"))
        copy = qemu_img.info(str(part))
        if copy.virtual_size != size or copy.backing_filename is not None:
            raise HypervisorError(f"the copy of {disk} is not what it should be", "try it again")
        qemu_img.check(str(part))
        os.chmod(part, 0o600)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        folders.sync(path.parent)

    def _kept_in(self, files: SnapshotFiles | SnapshotDisk) -> Path:
        """Where a snapshot is, in the folder of a pool or our own."""
        if files.folder is not None and not os.path.isdir(files.folder):
            raise HypervisorError(
                f"the folder {files.folder} of the snapshots is not on this host",
                "make or mount it",
            )
        root = self._root if files.folder is None else Path(files.folder)
        return self._folder(self._folder(root / SNAPSHOTS, files.instance), files.snapshot)

    def _kept(self, disk: SnapshotDisk) -> str:
        """The image that a disk of a snapshot was copied to."""
        path = str(self._kept_in(disk) / f"disk{disk.n}.qcow2")
        if not os.path.isfile(path):
            raise HypervisorError(f"no snapshot {path} on this host", "is it on another one?")
        return path

    def _from_snapshot(
        self, kept: SnapshotDisk, wanted: int | None, part: str, alive: Callable[[], None]
    ) -> None:
        path = self._kept(kept)
        _require_room(path, "qcow2", Path(part))
        qemu_img.convert(path, "qcow2", part, alive)
        if wanted is not None and wanted > qemu_img.info(part).virtual_size:
            qemu_img.resize(part, wanted)

    def _make_one(self, spec: DiskSpec, part: str, alive: Callable[[], None]) -> None:
        wanted = spec.size_gib * GIB if spec.size_gib is not None else None
        if spec.snapshot is not None:
            self._from_snapshot(spec.snapshot, wanted, part, alive)
            return
        if spec.source is None:
            qemu_img.create(part, size=wanted or GIB)
            return
        template = str(self._templates.path(self._pool(spec), spec.source))
        kind = spec.source.format.value
        size = qemu_img.info(template).virtual_size
        if wanted is not None and wanted < size:
            raise HypervisorError(
                f"the disk of {wanted} bytes ({spec.size_gib} GiB) is smaller than its template"
                f" {spec.source.url}, of {size} bytes ({-(-size // GIB)} GiB)",
                "give it at least the template's size",
            )
        if not spec.copy:
            qemu_img.create(part, size=wanted or size, backing=(template, kind))
            return
        _require_room(template, kind, Path(part), spec.source.url)
        qemu_img.convert(template, kind, part, alive)
        if wanted is not None and wanted > size:
            qemu_img.resize(part, wanted)

    def _pool(self, spec: DiskSpec) -> Path:
        """The folder of a disk's pool; one that is named must be there, or be mounted first."""
        if spec.folder is None:
            return self._root
        if not os.path.isdir(spec.folder):
            raise HypervisorError(
                f"the pool's folder {spec.folder} is not on this host", "make or mount it"
            )
        return Path(spec.folder)

    def _folder(self, pool: Path, instance: str) -> Path:
        if not _FOLDER_NAME.fullmatch(instance):
            raise HypervisorError(
                f"{instance!r} can not name a folder", "instances are named by their uuid"
            )
        return pool / instance

    def _make_folder(self, folder: Path, remedy: str) -> None:
        try:
            folders.make(folder)
        except OSError as exc:
            raise HypervisorError(f"no folder {folder}: {exc.strerror}", remedy) from exc

    def _sign(self, folder: str) -> None:
        sign = Path(folder) / SIGN
        try:
            if not sign.exists():
                sign.write_text(SIGNED)
        except OSError as exc:
            raise HypervisorError(
                f"could not write {sign}: {exc.strerror}", "check the pool's folder"
            ) from exc

    def _remove(self, folder: Path, bearer: str, others: bool) -> None:
        try:
            for file in folder.glob(f"{bearer}.*"):
                file.unlink(missing_ok=True)
            if others:
                return  # they write to the log, and may not have made their disks yet
            left = [file.name for file in folder.iterdir()]
            if left in ([], [SERIAL_LOG]):
                (folder / SERIAL_LOG).unlink(missing_ok=True)
                folder.rmdir()
            else:
                LOG.info("kept %s, which also holds %s", folder, ", ".join(sorted(left)))
        except (FileNotFoundError, NotADirectoryError):
            return  # nothing was made there
        except OSError as exc:
            raise HypervisorError(
                f"could not remove {exc.filename or folder}: {exc.strerror}",
                "check the folder, then delete the instance again",
            ) from exc


def is_new(spec: DiskSpec) -> bool:
    """True for a disk that is made for its guest, and goes with it."""
    is_iso = spec.source is not None and spec.source.format is TemplateFormat.ISO
    return spec.path is None and not is_iso


def _require_sign(pool: str) -> None:
    """HypervisorError for a pool's folder that is not the one in which disks were made."""
    sign = os.path.join(pool, SIGN)
    if not os.path.exists(sign):
        raise HypervisorError(
            f"the pool's folder {pool} is not mounted: it has no {SIGN}, which is there since its"
            " first disk",
            f"mount it; if it is: touch {sign}",
        )


def _require_room(image: str, kind: str, part: Path, name: str = "") -> None:
    """HypervisorError unless there is room for a whole copy of an image."""
    needed, free = qemu_img.copy_bytes(image, kind), shutil.disk_usage(part.parent).free
    if needed > free:
        raise HypervisorError(
            f"a copy of {name or image} takes {needed} bytes, and {part.parent} has {free} left",
            "make room in the pool, or use an overlay",
        )


def _format_of(path: str) -> str:
    """The format of an existing image, told by its content."""
    if not os.path.isfile(path):
        raise HypervisorError(f"no disk image {path} on this host", "check the path")
    found = qemu_img.info(path).format
    if found not in ("qcow2", "raw"):
        raise HypervisorError(
            f"disk image {path} is of format {found}", "convert it to qcow2 with qemu-img"
        )
    return found

"""Image files of guests: made with qemu-img, removed only when we made them."""

from __future__ import annotations

import logging
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.drivers.libvirt.xml import Disk
from common.errors import HypervisorError
from common.messages import DiskSpec

LOG = logging.getLogger(__name__)

QEMU_IMG_LIMIT_S = 60
SERIAL_LOG = "serial.log"

_FOLDER_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")


class _Info(msgspec.Struct):
    format: str


class Disks:
    """A folder for each instance; new images carry the uuid of the guest they were made for.

    So two guests of one instance (an attempt that was given up, and the next) never share a file,
    and what a destroyed guest leaves behind is known by its name alone.
    """

    def __init__(self, instances_path: str) -> None:
        self._root = Path(instances_path)

    def serial_log(self, instance: str) -> str:
        return str(self._folder(instance) / SERIAL_LOG)

    def plan(self, instance: str, bearer: str, specs: Sequence[DiskSpec]) -> tuple[Disk, ...]:
        """Where each disk is or will be; HypervisorError for an existing image that is missing."""
        folder = self._folder(instance)
        return tuple(
            Disk(spec.path, _format_of(spec.path))
            if spec.path is not None
            else Disk(str(folder / f"{bearer}.disk{number}.qcow2"), "qcow2")
            for number, spec in enumerate(specs)
        )

    def make(
        self, instance: str, bearer: str, specs: Sequence[DiskSpec], plan: Sequence[Disk]
    ) -> None:
        """Make the new images of a plan, and the folder that they and the serial log are in."""
        folder = self._folder(instance)
        try:
            # The hypervisor's own user has to reach the files, and nobody needs to list them.
            folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        except OSError as exc:
            raise HypervisorError(
                f"no folder {folder}: {exc.strerror}", "check [libvirt] instances_path"
            ) from exc
        for spec, disk in zip(specs, plan, strict=True):
            if spec.path is None:
                part = f"{disk.path}.part"
                _qemu_img("create", "-q", "-f", "qcow2", part, f"{spec.size_gib or 1}G")
                os.replace(part, disk.path)

    def remove(self, instance: str, bearer: str) -> None:
        """Remove what was made for this guest; the folder goes with its last guest's files."""
        folder = self._folder(instance)
        try:
            for file in folder.glob(f"{bearer}.disk*"):
                file.unlink(missing_ok=True)
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
                "check [libvirt] instances_path, then delete the instance again",
            ) from exc

    def _folder(self, instance: str) -> Path:
        if not _FOLDER_NAME.fullmatch(instance):
            raise HypervisorError(
                f"{instance!r} can not name a folder", "instances are named by their uuid"
            )
        return self._root / instance


def _format_of(path: str) -> str:
    """The format of an existing image, told by its content."""
    if not os.path.isfile(path):
        raise HypervisorError(f"no disk image {path} on this host", "check the path")
    try:
        found = msgspec.json.decode(
            _qemu_img("info", "--force-share", "--output=json", path), type=_Info
        ).format
    except msgspec.MsgspecError as exc:
        raise HypervisorError(f"qemu-img: unreadable answer on {path}: {exc}") from exc
    if found not in ("qcow2", "raw"):
        raise HypervisorError(
            f"disk image {path} is of format {found}", "convert it to qcow2 with qemu-img"
        )
    return found


def _qemu_img(*args: str) -> bytes:
    command = ["qemu-img", *args]
    try:
        done = subprocess.run(  # noqa: S603 - arguments are a list, never a shell's
            command, capture_output=True, check=False, timeout=QEMU_IMG_LIMIT_S
        )
    except FileNotFoundError as exc:
        raise HypervisorError("there is no qemu-img", "install qemu-utils") from exc
    except subprocess.TimeoutExpired as exc:
        raise HypervisorError(
            f"qemu-img {args[0]} took over {QEMU_IMG_LIMIT_S} s", "is the storage slow or away?"
        ) from exc
    if done.returncode:
        raise HypervisorError(
            f"qemu-img {args[0]}: {done.stderr.decode(errors='replace').strip()}",
            "check the path and the free space",
        )
    return done.stdout

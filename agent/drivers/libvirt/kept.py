"""What is kept of a guest while its resize is not confirmed: how large it was, and its disks.

The record `BEARER.before.json` is in the agent's own folder of the instance, each copy beside the
disk that it is of. The record is there before anything is copied and goes after the last copy, and
its stage is on disk before what it stands for is done: whenever we are killed, it tells which of
the two states is whole.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from agent.drivers.libvirt import folders
from common.errors import HypervisorError

FICLONE = 0x40049409  # of linux/fs.h: a copy that shares its blocks until one of them is written
CHUNK = 64 << 20


class Stage(enum.StrEnum):
    """How far a resize is."""

    KEEPING = "keeping"  # nothing is changed: the guest is what it was
    KEPT = "kept"  # all is copied: the guest may be changed
    REVERTING = "reverting"  # copies are being put back
    CONFIRMING = "confirming"  # copies are being removed


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What a guest was; `disks`: the files of which there are copies."""

    stage: Stage
    key: str
    vcpus: int
    memory_mib: int
    shares: int | None = None
    quota: int | None = None
    disks: tuple[str, ...] = ()


class Keeper:
    """The record and the copies of one guest."""

    def __init__(self, folder: Path, bearer: str) -> None:
        self._folder, self._bearer = folder, bearer
        self._path = folder / f"{bearer}.before.json"

    def read(self) -> Record | None:
        """None when nothing is kept; HypervisorError when that can not be read."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Record)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as exc:
            raise HypervisorError(
                f"{self._path}: {exc}", "repair it: a resize is kept by it"
            ) from exc

    def write(self, record: Record) -> Record:
        """On disk when this returns."""
        part = self._path.with_name(f"{self._path.name}.part")
        with _told(self._path):
            folders.make(self._folder)
            with part.open("wb") as file:
                file.write(msgspec.json.encode(record))
                _flush(file.fileno())
            part.replace(self._path)
            _flush_folders([self._folder])
        return record

    def copy_of(self, disk: str) -> Path:
        """Where the copy of a disk is kept."""
        path = Path(disk)
        return path.with_name(path.name.replace(self._bearer, f"{self._bearer}.before", 1))

    def copy(self, disks: Iterable[str], alive: Callable[[], None]) -> None:
        """Keep a copy of each of these disks; ended by what `alive` raises meanwhile."""
        disks = tuple(disks)
        for disk in disks:
            target = self.copy_of(disk)
            part = target.with_name(f"{target.name}.part")
            with _told(target):
                needed = os.stat(disk).st_blocks * 512
                free = shutil.disk_usage(target.parent).free
                if needed > free:
                    raise HypervisorError(
                        f"a copy of {disk} takes {needed} bytes, and there are {free} left",
                        "make room there: the old disk is kept until the resize is confirmed",
                    )
                _copy(disk, part, alive)
                part.replace(target)
        with _told(self._folder):
            _flush_folders(Path(disk).parent for disk in disks)

    def put_back(self, disks: Iterable[str]) -> None:
        """The disks are their copies again; those without one were put back before."""
        disks = tuple(disks)
        for disk in disks:
            with _told(Path(disk)), contextlib.suppress(FileNotFoundError):
                self.copy_of(disk).replace(disk)
        with _told(self._folder):
            _flush_folders(Path(disk).parent for disk in disks)

    def forget(self, disks: Iterable[str]) -> None:
        """Neither copies nor record are there afterwards."""
        disks = tuple(disks)
        with _told(self._path):
            for disk in disks:
                copy = self.copy_of(disk)
                copy.with_name(f"{copy.name}.part").unlink(missing_ok=True)
                copy.unlink(missing_ok=True)
            _flush_folders(Path(disk).parent for disk in disks)
            self._path.with_name(f"{self._path.name}.part").unlink(missing_ok=True)
            self._path.unlink(missing_ok=True)
            _flush_folders([self._folder])


def _copy(source: str, target: Path, alive: Callable[[], None]) -> None:
    with open(source, "rb") as src, target.open("wb") as dst:
        os.fchmod(dst.fileno(), 0o600)
        shared = True
        try:
            fcntl.ioctl(dst.fileno(), FICLONE, src.fileno())
        except OSError:  # this file system shares no blocks
            shared = False
        for begin, end in () if shared else _filled(src.fileno()):
            os.lseek(dst.fileno(), begin, os.SEEK_SET)
            while begin < end:
                alive()
                some = min(CHUNK, end - begin)
                sent = os.sendfile(dst.fileno(), src.fileno(), begin, some)
                if not sent:
                    raise OSError(errno.EIO, "has become shorter while it was copied", source)
                begin += sent
        dst.truncate(os.fstat(src.fileno()).st_size)
        _flush(dst.fileno())


def _filled(descriptor: int) -> Iterator[tuple[int, int]]:
    """Where a file has blocks: its holes stay holes, or a copy would take more room than it."""
    end, size = 0, os.fstat(descriptor).st_size
    while end < size:
        try:
            begin = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # holes up to its end
                return
            raise
        end = os.lseek(descriptor, begin, os.SEEK_HOLE)
        yield begin, end


def _flush(descriptor: int) -> None:
    os.fsync(descriptor)


def _flush_folders(folders_: Iterable[Path]) -> None:
    """New names are on disk as well."""
    for folder in set(folders_):
        if not folder.is_dir():
            continue
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _flush(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise HypervisorError(
            f"{exc.filename or path}: {exc.strerror}", "check the folder of the disks"
        ) from exc

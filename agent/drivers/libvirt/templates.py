"""Templates on this host: fetched once a folder, and used only when they are what they should be.

A template is kept as `<folder>/templates/<sha256>.<format>`, so its name is its checksum; guests'
disks lie on it, and nothing ever writes to it or removes it. Its folder may be shared by hosts: who
fetches holds a lock on the half-made file, and the others wait for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import IO

from agent.drivers.libvirt import folders, qemu_img
from common.errors import HypervisorError, TemplateInvalid
from common.messages import ImageSource
from common.model import TemplateFormat
from common.runtime import Runtime

TEMPLATES = "templates"

# A server that sends nothing for this long has gone; the whole fetch ends with its command.
STALL_S = 20.0
CHUNK_BYTES = 1 << 20
LOCK_TURN_S = 0.2

_QCOW2_MAGIC = b"QFI\xfb"
_EXTERNAL_DATA = 1 << 2  # of a qcow2 header's incompatible features
_ISO_MAGIC_AT = 32769
_ISO_MAGIC = b"CD001"


class Templates:
    """The cache of templates in each folder; two that want the same file fetch it once."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def path(self, folder: Path, source: ImageSource) -> Path:
        """Where a template is, once it is there."""
        return folder / TEMPLATES / f"{source.sha256}.{source.format}"

    def ensure(self, folder: Path, source: ImageSource, alive: Callable[[], None]) -> Path:
        """The template's file, fetched and checked if need be; ended by what `alive` raises.

        TemplateInvalid for another checksum, format or an image that leans on other files;
        HypervisorError, which names the url, for one that can not be had.
        """
        path = self.path(folder, source)
        if path.exists():
            return path
        try:
            folders.make(path.parent)
            with self._locked(path.with_name(f"{path.name}.part"), alive) as part:
                if not path.exists():
                    self._fetch(source, part, alive)
                    _check_format(source, part.name)
                    os.fchmod(part.fileno(), 0o444)
                    os.fsync(part.fileno())
                    os.rename(part.name, path)
        except OSError as exc:
            raise HypervisorError(
                f"template {source.url} can not be kept in {path.parent}: {exc.strerror}",
                "check the folder",
            ) from exc
        return path

    @contextlib.contextmanager
    def _locked(self, path: Path, alive: Callable[[], None]) -> Iterator[IO[bytes]]:
        """The half-made file, empty and ours alone; gone afterwards unless it was renamed."""
        while True:
            with path.open("a+b") as file:
                while not _lock(file):
                    alive()
                    self._runtime.sleep(LOCK_TURN_S)
                if not _is(file, path):
                    continue  # who had the lock has finished it, or given it up
                file.truncate(0)  # what an interrupted fetch has left
                try:
                    yield file
                finally:
                    if _is(file, path):
                        path.unlink()
                return

    def _fetch(self, source: ImageSource, part: IO[bytes], alive: Callable[[], None]) -> None:
        found, got = hashlib.sha256(), 0
        with _opened(source.url) as (body, size):
            free = shutil.disk_usage(os.path.dirname(part.name)).free
            if size is not None and size > free:
                raise HypervisorError(
                    f"template {source.url} has {size} bytes, and {os.path.dirname(part.name)} has"
                    f" {free} left",
                    "make room in the folder's file system",
                )
            while chunk := _read(source.url, body):
                alive()
                found.update(chunk)
                got += len(chunk)
                part.write(chunk)
        part.flush()
        if size is not None and got != size:
            raise _unreachable(source.url, f"it broke off after {got} of {size} bytes")
        if found.hexdigest() != source.sha256:
            raise TemplateInvalid(
                f"{source.url}: expected sha256 {source.sha256}, found {found.hexdigest()}",
                "put the file back, or give the template the checksum of the new one",
            )


def _lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is(file: IO[bytes], path: Path) -> bool:
    """True while `path` is this very file."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(file.fileno()), there)


@contextlib.contextmanager
def _opened(url: str) -> Iterator[tuple[IO[bytes], int | None]]:
    """The body behind a url, and its size if that is told."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "file":
        path = urllib.parse.unquote(parts.path)
        try:
            # A pipe that nobody writes to would be waited for until the end of days.
            file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")  # noqa: SIM115
        except OSError as exc:
            raise _unreachable(url, str(exc.strerror)) from exc
        with file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise _unreachable(url, "not a regular file")
            yield file, found.st_size
        return
    try:
        response = urllib.request.urlopen(url, timeout=STALL_S)  # noqa: S310 - http(s), see Url
    except (OSError, HTTPException, ValueError) as exc:
        raise _unreachable(url, str(exc)) from exc
    with response:
        size = response.headers.get("Content-Length", "")
        yield response, int(size) if size.isdigit() else None


def _read(url: str, body: IO[bytes]) -> bytes:
    try:
        return body.read(CHUNK_BYTES)
    except (OSError, HTTPException) as exc:
        raise _unreachable(url, f"it broke off: {exc or type(exc).__name__}") from exc


def _unreachable(url: str, reason: str) -> HypervisorError:
    return HypervisorError(
        f"template {url} can not be fetched: {reason}", "can this host reach it?"
    )


def _check_format(source: ImageSource, path: str) -> None:
    """TemplateInvalid unless the file is what the template says, and nothing but itself."""
    if source.format is TemplateFormat.KERNEL:
        return
    with open(path, "rb") as file:
        head = file.read(104)
        file.seek(_ISO_MAGIC_AT)
        is_iso = file.read(len(_ISO_MAGIC)) == _ISO_MAGIC
    # Told from the header before qemu-img looks: it would open what the image names.
    if head[:4] == _QCOW2_MAGIC:
        version = int.from_bytes(head[4:8], "big")
        if int.from_bytes(head[8:16], "big"):
            raise _not_alone(source, "a backing file")
        if version > 2 and int.from_bytes(head[72:80], "big") & _EXTERNAL_DATA:
            raise _not_alone(source, "an external data file")
    try:
        seen = qemu_img.info(path)
    except qemu_img.Refused as exc:
        raise TemplateInvalid(
            f"{source.url}: expected format {source.format}, found what qemu-img can not read"
            f" ({exc.message})",
            "is it an image at all?",
        ) from exc
    if seen.backing_filename is not None:
        raise _not_alone(source, f"the backing file {seen.backing_filename}")
    if seen.data_file is not None:
        raise _not_alone(source, f"the external data file {seen.data_file}")
    found = "iso" if seen.format == "raw" and is_iso else seen.format
    # A disk image may carry an ISO's header as well, to boot from either.
    wanted = ("raw", "iso") if source.format is TemplateFormat.RAW else (source.format.value,)
    if found not in wanted:
        raise TemplateInvalid(
            f"{source.url}: expected format {source.format}, found {found}",
            "give the template its true format, or convert the file",
        )


def _not_alone(source: ImageSource, what: str) -> TemplateInvalid:
    return TemplateInvalid(
        f"{source.url}: expected an image that is whole by itself, found one with {what}",
        "make it whole: qemu-img convert -O qcow2 OLD NEW",
    )

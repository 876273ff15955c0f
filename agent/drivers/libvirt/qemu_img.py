"""The program qemu-img: what it is asked, what it says, and how long it may take."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from typing import TypeVar

import msgspec

from common.errors import HypervisorError

S = TypeVar("S", bound=msgspec.Struct)

LIMIT_S = 60.0
# How often somebody is asked whether a long copy is still waited for.
TURN_S = 0.5


class Refused(HypervisorError):
    """qemu-img ran, and ended with an error of its own."""


class _Specific(msgspec.Struct, frozen=True):
    data: dict[str, object] = {}


class Info(msgspec.Struct, frozen=True, rename="kebab"):
    """What qemu-img says of an image: its format, its sizes in bytes, what it leans on."""

    format: str
    virtual_size: int
    backing_filename: str | None = None
    format_specific: _Specific = _Specific()

    @property
    def data_file(self) -> str | None:
        name = self.format_specific.data.get("data-file")
        return None if name is None else str(name)


class _Measured(msgspec.Struct, frozen=True):
    required: int


def info(path: str) -> Info:
    """An image, told by its content; HypervisorError when that can not be read."""
    return _decoded(_run("info", "--force-share", "--output=json", path), Info, path)


def copy_bytes(path: str, kind: str) -> int:
    """The bytes that a qcow2 copy of an image takes."""
    answer = _run("measure", "--output=json", "-f", kind, "-O", "qcow2", path)
    return _decoded(answer, _Measured, path).required


def create(path: str, *, size: int, backing: tuple[str, str] | None = None) -> None:
    """A new qcow2 of `size` bytes; `backing` is the path and format of what it begins as."""
    based = () if backing is None else ("-b", backing[0], "-F", backing[1])
    _run("create", "-q", "-f", "qcow2", *based, path, str(size))


def convert(source: str, kind: str, path: str, alive: Callable[[], None]) -> None:
    """A qcow2 with the content of another image; ended by what `alive` raises meanwhile."""
    _run("convert", "-f", kind, "-O", "qcow2", source, path, alive=alive)


def check(path: str) -> None:
    """HypervisorError unless a qcow2 is whole in itself."""
    _run("check", "-q", "-f", "qcow2", path)


def copy_raw(source: str, kind: str, place: str, alive: Callable[[], None]) -> None:
    """A new raw image with the content of another; ended by what `alive` raises meanwhile."""
    _run("convert", "-f", kind, "-O", "raw", source, place, alive=alive)


def resize(path: str, size: int) -> None:
    """Grow a qcow2 to `size` bytes."""
    _run("resize", "-q", "-f", "qcow2", path, str(size))


def _decoded(answer: bytes, kind: type[S], path: str) -> S:
    try:
        return msgspec.json.decode(answer, type=kind)
    except msgspec.MsgspecError as exc:
        raise HypervisorError(f"qemu-img: unreadable answer on {path}: {exc}") from exc


def _run(*args: str, alive: Callable[[], None] | None = None) -> bytes:
    """Its output; without `alive` within LIMIT_S."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(  # noqa: S603 - arguments are a list, never a shell's
                ["qemu-img", *args],  # noqa: S607 - where it is differs between distributions
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
            )
        except FileNotFoundError as exc:
            raise HypervisorError("there is no qemu-img", "install qemu-utils") from exc
        try:
            _wait(process, args[0], alive)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        out.seek(0)
        errors.seek(0)
        if process.returncode:
            words = errors.read().decode(errors="replace").strip()
            raise Refused(f"qemu-img {args[0]}: {words}", "check the path and the free space")
        return out.read()


def _wait(process: subprocess.Popen[bytes], verb: str, alive: Callable[[], None] | None) -> None:
    if alive is None:
        try:
            process.wait(LIMIT_S)
        except subprocess.TimeoutExpired as exc:
            raise HypervisorError(
                f"qemu-img {verb} took over {LIMIT_S:g} s", "is the storage slow or away?"
            ) from exc
        return
    while True:
        alive()
        try:
            process.wait(TURN_S)
            return
        except subprocess.TimeoutExpired:
            continue

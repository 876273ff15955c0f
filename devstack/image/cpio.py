"""Writes a cpio archive of the "newc" kind, the only thing a kernel takes as initramfs."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from typing import NamedTuple


class Entry(NamedTuple):
    """One member; `mode` holds its kind and permissions, `major` and `minor` a device's numbers."""

    name: str
    mode: int
    body: bytes = b""
    major: int = 0
    minor: int = 0


def folder(name: str) -> Entry:
    return Entry(name, stat.S_IFDIR | 0o755)


def file(name: str, body: bytes, mode: int = 0o644) -> Entry:
    return Entry(name, stat.S_IFREG | mode, body)


def device(name: str, major: int, minor: int) -> Entry:
    """A character device."""
    return Entry(name, stat.S_IFCHR | 0o600, b"", major, minor)


def pack(entries: Iterable[Entry]) -> bytes:
    """The archive: all times and owners zero, so that the same input gives the same bytes."""
    members = [*entries, Entry("TRAILER!!!", 0)]
    return b"".join(_member(number, entry) for number, entry in enumerate(members, start=1))


def _member(inode: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    fields = (
        inode,
        entry.mode,
        0,  # owner
        0,  # group
        2 if stat.S_ISDIR(entry.mode) else 1,  # links
        0,  # modified
        len(entry.body),
        0,  # device it was on
        0,
        entry.major,
        entry.minor,
        len(name),
        0,  # checksum, unused in this kind
    )
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(entry.body)


def _padded(body: bytes) -> bytes:
    return body + b"\0" * (-len(body) % 4)

"""The tiny guest as a disk image with a boot loader, as templates of the field are."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from devstack.image.build import Image, ImageError

PACKAGES = "dosfstools, mtools, qemu-utils and syslinux"
SIZE_KIB = 20 * 1024

_LOADER = """\
DEFAULT tiny
LABEL tiny
 KERNEL vmlinuz
 INITRD initrd.img
 APPEND console=ttyS0 quiet
"""


def bootable(image: Image) -> Path:
    """`tiny.qcow2` beside the image, made again when that is newer. Raises ImageError."""
    disk = image.kernel.parent / "tiny.qcow2"
    newest = max(file.stat().st_mtime_ns for file in (*image, Path(__file__)))
    if disk.exists() and disk.stat().st_mtime_ns > newest:
        return disk
    with tempfile.TemporaryDirectory(dir=disk.parent) as scratch:
        raw, loader = Path(scratch) / "raw", Path(scratch) / "syslinux.cfg"
        made = Path(scratch) / "qcow2"
        loader.write_text(_LOADER)
        # Without partitions: the BIOS boots what is in the first sector, whoever put it there.
        _run("mkfs.vfat", "-C", str(raw), str(SIZE_KIB))
        for file in (*image, loader):
            _run("mcopy", "-i", str(raw), str(file), f"::/{file.name}")
        _run("syslinux", "--install", str(raw))
        _run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(made))
        os.replace(made, disk)
    return disk


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except FileNotFoundError as exc:
        raise ImageError(f"there is no {command[0]} (Debian packages {PACKAGES})") from exc
    if done.returncode:
        raise ImageError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")

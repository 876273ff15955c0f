"""The guest image is built once from its packages, and what it lacks is named with the remedy."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from devstack.image import ImageError, build, cpio

pytestmark = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="needs dpkg-deb (dpkg)")

RELEASE = "6.1.0-1-cloud-amd64"
DEPENDS = {
    "button": "",
    "evdev": "",
    "virtio_pci": "virtio,virtio_ring",
    "virtio_blk": "virtio-ring",
    "virtio_net": "net_failover",
    "virtio_scsi": "virtio",
    "sr_mod": "",
    "isofs": "",
    "net_failover": "",
    "virtio": "",
    "virtio_ring": "virtio",
}


def package(tmp_path: Path, into: Path, name: str, files: dict[str, bytes]) -> None:
    tree = tmp_path / "trees" / name
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: amd64\nMaintainer: x <x@x>\nDescription: x\n"
    )
    for path, body in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(body)
    into.mkdir(exist_ok=True)
    subprocess.run(
        ["dpkg-deb", "-b", str(tree), str(into / f"{name}_1_amd64.deb")],
        check=True,
        capture_output=True,
    )


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    into = tmp_path / "packages"
    drivers = f"lib/modules/{RELEASE}/kernel/drivers"
    package(
        tmp_path,
        into,
        f"linux-image-{RELEASE}",
        {
            f"boot/vmlinuz-{RELEASE}": b"kernel",
            **{
                f"{drivers}/{name}.ko": b"\x7fELF\0license=GPL\0depends=" + deps.encode() + b"\0"
                for name, deps in DEPENDS.items()
            },
        },
    )
    package(tmp_path, into, "busybox-static", {"bin/busybox": b"busybox"})
    return into


def test_modules_come_after_those_they_need(tmp_path: Path, packages: Path) -> None:
    image = build(tmp_path / "out", cache=packages)
    assert image.kernel.read_bytes() == b"kernel"
    unpacked = subprocess.run(
        ["gzip", "-dc", str(image.initrd)], check=True, capture_output=True
    ).stdout
    start = unpacked.index(b"button.ko\n")
    # Up to the header of the next file in the archive.
    order = unpacked[start:].partition(b"070701")[0].strip(b"\0").decode().split()
    place = {name.removesuffix(".ko"): number for number, name in enumerate(order)}
    assert place.keys() == DEPENDS.keys()
    for name, needs in DEPENDS.items():
        for needed in filter(None, needs.replace("-", "_").split(",")):
            assert place[needed] < place[name]


def test_an_image_that_is_up_to_date_is_not_built_again(tmp_path: Path, packages: Path) -> None:
    told: list[str] = []
    image = build(tmp_path / "out", cache=packages, tell=told.append)
    made = image.initrd.stat().st_mtime_ns
    assert build(tmp_path / "out", cache=packages, tell=told.append) == image
    assert image.initrd.stat().st_mtime_ns == made
    assert "up to date" in told[-1]
    image.kernel.unlink()
    build(tmp_path / "out", cache=packages)
    assert image.kernel.exists()


def test_a_download_that_fails_names_the_remedy(
    tmp_path: Path, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "apt-get").write_text("#!/bin/sh\necho 'E: Could not resolve' >&2\nexit 100\n")
    (tools / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    next(packages.glob("busybox*")).unlink()
    with pytest.raises(ImageError, match=r"Could not resolve.*apt-get update"):
        build(tmp_path / "out", cache=packages)
    assert not (tmp_path / "out" / "made-of").exists()


def test_a_machine_that_is_no_debian_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageError, match="no apt-cache here"):
        build(tmp_path / "out", cache=tmp_path / "none")


@pytest.mark.skipif(not shutil.which("busybox"), reason="needs busybox")
def test_the_archive_is_one_that_cpio_reads(tmp_path: Path) -> None:
    archive = cpio.pack(
        [cpio.folder("bin"), cpio.file("bin/a", b"12345", 0o755), cpio.file("b", b"")]
    )
    assert archive == cpio.pack(
        [cpio.folder("bin"), cpio.file("bin/a", b"12345", 0o755), cpio.file("b", b"")]
    )
    subprocess.run(["busybox", "cpio", "-i"], input=archive, cwd=tmp_path, check=True)
    assert (tmp_path / "bin" / "a").read_bytes() == b"12345"
    assert (tmp_path / "bin" / "a").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "b").read_bytes() == b""

"""Builds the tiny guest: fetches the packages, takes out what is needed, packs the initramfs."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from devstack.image import cpio
from devstack.image.init import CARDS_AWK, INIT

KERNEL_METAPACKAGE = "linux-image-cloud-amd64"
BUSYBOX_PACKAGE = "busybox-static"
# button and evdev tell the guest of the ACPI power button; then its disks, its cards and its seed.
MODULES = (
    *("button", "evdev", "virtio_pci", "virtio_blk", "virtio_net"),
    *("virtio_scsi", "sr_mod", "isofs"),
)


class ImageError(Exception):
    """The guest can not be built; the message says what to do."""


class Image(NamedTuple):
    """The two files a guest boots from."""

    kernel: Path
    initrd: Path


def build(
    outdir: Path, *, cache: Path | None = None, tell: Callable[[str], None] = lambda _line: None
) -> Image:
    """`vmlinuz` and `initrd.img` in `outdir`, built only when what they are made of has changed.

    Packages are kept in `cache` (default: `packages` beside the image). Raises ImageError.
    """
    outdir = outdir.resolve()
    packages = (cache or outdir / "packages").resolve()
    image = Image(outdir / "vmlinuz", outdir / "initrd.img")
    made_of = outdir / "made-of"
    for folder in (outdir, packages):
        folder.mkdir(parents=True, exist_ok=True)

    kernel_package = _fetched(packages, "linux-image-*-cloud-amd64_*.deb")
    busybox_package = _fetched(packages, f"{BUSYBOX_PACKAGE}_*.deb")
    if kernel_package is None:
        kernel_package = _download(_real_kernel_package(), packages, tell)
    if busybox_package is None:
        busybox_package = _download(BUSYBOX_PACKAGE, packages, tell)

    key = _content_key(kernel_package.name, busybox_package.name)
    if made_of.exists() and made_of.read_text() == key and all(f.exists() for f in image):
        tell(f"guest image: {outdir} is up to date")
        return image

    tell(f"guest image: unpacking {kernel_package.name}")
    with tempfile.TemporaryDirectory(dir=outdir) as scratch:
        root = Path(scratch)
        _run(["dpkg-deb", "-x", str(kernel_package), str(root)], "is the disk full?")
        _run(["dpkg-deb", "-x", str(busybox_package), str(root)], "is the disk full?")
        kernel = _one(root / "boot", "vmlinuz-*")
        busybox = _one(root, "**/bin/busybox")
        modules = list(_with_dependencies(root / "lib" / "modules", MODULES))
        tell(f"guest image: packing an initramfs with {len(modules)} kernel modules")
        archive = cpio.pack(_contents(busybox, modules))
        # Renamed into place, the key last: a build that was killed is built again.
        made_of.unlink(missing_ok=True)
        _replace(image.initrd, gzip.compress(archive, compresslevel=1, mtime=0))
        _replace(image.kernel, kernel.read_bytes())
        _replace(made_of, key.encode())
    tell(f"guest image: {outdir} is ready")
    return image


def _content_key(*packages: str) -> str:
    """Changes whenever the image would come out otherwise."""
    ours = [
        INIT.encode(),
        CARDS_AWK.encode(),
        Path(cpio.__file__).read_bytes(),
        Path(__file__).read_bytes(),
    ]
    body = b"\0".join([*(name.encode() for name in packages), *ours])
    return hashlib.blake2b(body, digest_size=16).hexdigest()


def _contents(busybox: Path, modules: list[Path]) -> list[cpio.Entry]:
    names = [module.name for module in modules]
    return [
        *(
            cpio.folder(name)
            for name in ("bin", "dev", "proc", "sys", "tmp", "modules", "seed", "www")
        ),
        # The kernel opens it for /init before anything is mounted.
        cpio.device("dev/console", 5, 1),
        cpio.file("bin/busybox", busybox.read_bytes(), 0o755),
        cpio.file("init", INIT.encode(), 0o755),
        cpio.file("cards.awk", CARDS_AWK.encode()),
        cpio.file("modules/order", "".join(f"{n}\n" for n in names).encode()),
        *(cpio.file(f"modules/{module.name}", module.read_bytes()) for module in modules),
    ]


def _with_dependencies(tree: Path, wanted: Iterable[str]) -> Iterator[Path]:
    """Modules in an order in which they can be loaded, read from their own `depends=` lines."""
    files = {f.name.partition(".")[0].replace("-", "_"): f for f in tree.rglob("*.ko")}
    done: set[str] = set()

    def load(name: str) -> Iterator[Path]:
        if name in done:
            return
        done.add(name)
        if name not in files:
            raise ImageError(
                f"the kernel package has no module {name}"
                " (take another kernel, or drop it from devstack/image/build.py)"
            )
        body = files[name].read_bytes()
        start = body.find(b"\0depends=") + len(b"\0depends=")
        for needed in body[start : body.index(b"\0", start)].decode().split(","):
            if needed:
                yield from load(needed.replace("-", "_"))
        yield files[name]

    for name in wanted:
        yield from load(name)


def _real_kernel_package() -> str:
    """The versioned package behind the metapackage."""
    known = _run(
        ["apt-cache", "depends", "--important", KERNEL_METAPACKAGE],
        "is this Debian, and was `apt-get update` run?",
    )
    for line in known.splitlines():
        word = line.strip().removeprefix("Depends: ")
        if word.startswith("linux-image-") and word != KERNEL_METAPACKAGE:
            return word
    raise ImageError(
        f"{KERNEL_METAPACKAGE} is not known to apt (run `apt-get update`, and check that the"
        " sources have Debian main for amd64)"
    )


def _fetched(packages: Path, pattern: str) -> Path | None:
    """The newest package already there."""
    found = sorted(packages.glob(pattern), key=lambda f: f.stat().st_mtime)
    return found[-1] if found else None


def _download(package: str, into: Path, tell: Callable[[str], None]) -> Path:
    tell(f"guest image: downloading {package}")
    with tempfile.TemporaryDirectory(dir=into) as scratch:
        _run(
            # Not as user _apt, who may not write where we do.
            ["apt-get", "-o", "APT::Sandbox::User=root", "-q", "download", package],
            "no network? With one, run `apt-get update` and try again; without, put the"
            f" {package} .deb into {into}",
            cwd=scratch,
        )
        [deb] = Path(scratch).glob("*.deb")
        return Path(shutil.move(deb, into / deb.name))


def _one(folder: Path, pattern: str) -> Path:
    found = sorted(f for f in folder.glob(pattern) if f.is_file() and not f.is_symlink())
    if not found:
        raise ImageError(f"the package has no {pattern} (was its download cut short? remove it)")
    return found[0]


def _replace(path: Path, body: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(body)
    os.replace(part, path)


def _run(command: list[str], remedy: str, cwd: str | None = None) -> str:
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, check=False, timeout=600
        )
    except FileNotFoundError as exc:
        raise ImageError(f"there is no {command[0]} here (this needs Debian's tools)") from exc
    except subprocess.TimeoutExpired as exc:
        raise ImageError(f"{' '.join(command)} took over 10 minutes ({remedy})") from exc
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise ImageError(f"{' '.join(command)}: {reason[-1] if reason else 'failed'} ({remedy})")
    return done.stdout

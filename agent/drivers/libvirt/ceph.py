"""Ceph's own libraries: found, connected to a cluster for a moment, and bounded in time.

Nothing stays open between two calls: connecting takes some hundredths of a second, and a client
that is not there can not be fenced, hang or go stale.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from common.conf.rbd import Rbd
from common.errors import BadConfig, HypervisorError

# Where Debian keeps what python3-rados and python3-rbd install. The folder itself never goes on the
# path: it holds other versions of packages that the agent has its own of.
PACKAGES = Path("/usr/lib/python3/dist-packages")

_SAID = {
    errno.ETIMEDOUT: "no answer in time",
    errno.ECONNREFUSED: "no answer in time",
    errno.EPERM: "the user's key or its capabilities do not allow it",
    errno.EACCES: "the user's key is not taken",
    errno.ENOENT: "there is no such thing",
    errno.ESHUTDOWN: "this client has been fenced",
}


class Gone(HypervisorError):
    """There is no image of that name."""


class Busy(HypervisorError):
    """The image is open somewhere."""


class Taken(HypervisorError):
    """An image of that name is there, which this create did not make."""


class Libraries(msgspec.Struct, frozen=True):
    """The modules rados and rbd."""

    rados: Any
    rbd: Any


def libraries(packages: Path = PACKAGES) -> Libraries:
    """Both modules, from the path or from the system's Python; BadConfig when there are none."""
    return Libraries(module("rados", packages), module("rbd", packages))


def module(name: str, packages: Path) -> Any:
    """One of them; BadConfig when there is none for this Python."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.find_spec(name) or _spec_in(name, packages)
    if spec is None or spec.loader is None:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise BadConfig(
            f"[rbd] keyring is set and there is no module {name} for Python {version}",
            f"install python3-{name}, and run the agent with the Python that it is made for",
        )
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found  # rbd imports rados
    spec.loader.exec_module(found)
    return found


def _spec_in(name: str, packages: Path) -> importlib.machinery.ModuleSpec | None:
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        file = packages / f"{name}{suffix}"
        if file.exists():
            return importlib.util.spec_from_file_location(name, file)
    return None


class Cluster:
    """One Ceph cluster by its monitors; `with cluster.pool(...)` connects and leaves again."""

    def __init__(self, settings: Rbd, libraries: Libraries, monitors: Sequence[str]) -> None:
        self._settings = settings
        self._libraries = libraries
        self._monitors = tuple(monitors)

    @contextlib.contextmanager
    def connected(self, doing: str, **options: object) -> Iterator[Any]:
        """A rados handle; every error of Ceph's within the block is ours, and says `doing`.

        Gone for an image or object that is not there, Busy for one that somebody has open, else
        HypervisorError.
        """
        key(self._settings)  # Ceph's own words for a keyring that is not there name nothing
        seconds = str(self._settings.timeout)
        with self._errors(doing):
            handle = self._libraries.rados.Rados(
                rados_id=self._settings.user,
                conffile=self._settings.conf or None,
                conf={
                    "mon_host": ",".join(self._monitors),
                    "keyring": self._settings.keyring,
                    # Without these a call to a cluster that does not answer never ends.
                    "client_mount_timeout": seconds,
                    "rados_mon_op_timeout": seconds,
                    "rados_osd_op_timeout": seconds,
                    "log_to_stderr": "false",
                    "err_to_stderr": "false",
                    **{name: str(value) for name, value in options.items()},
                },
            )
            try:
                handle.connect()
                yield handle
            finally:
                handle.shutdown()

    @contextlib.contextmanager
    def pool(self, name: str, doing: str, **options: object) -> Iterator[tuple[Any, Any]]:
        """A rados handle, and an I/O context of one of its pools."""
        with self.connected(doing, **options) as handle:
            try:
                ioctx = handle.open_ioctx(name)
            except self._libraries.rados.ObjectNotFound as exc:
                raise HypervisorError(
                    f"{doing}: Ceph at {self.words} has no pool {name}",
                    f"ceph osd pool create {name}, or correct the pool's rbd_pool",
                ) from exc
            with ioctx:
                yield handle, ioctx

    @property
    def words(self) -> str:
        """Its monitors, for a message."""
        return ",".join(self._monitors)

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        rados, rbd = self._libraries.rados, self._libraries.rbd
        try:
            yield
        except rbd.ImageNotFound as exc:
            raise Gone(f"{doing}: it is not there", "was it removed by another hand?") from exc
        except rbd.ImageBusy as exc:
            raise Busy(f"{doing}: it is open somewhere", "rbd status IMAGE tells where") from exc
        except (rados.Error, rbd.Error) as exc:
            said = _SAID.get(abs(getattr(exc, "errno", 0) or 0), str(exc))
            raise HypervisorError(
                f"{doing}: Ceph at {self.words}: {said}",
                "ceph -s, and ceph auth get for the user's capabilities",
            ) from exc


def key(settings: Rbd) -> str:
    """The user's secret, from its keyring file; HypervisorError when it is not in there."""
    section = f"[client.{settings.user}]"
    inside = False
    try:
        lines = Path(settings.keyring).read_text().splitlines()
    except OSError as exc:
        raise HypervisorError(
            f"[rbd] keyring {settings.keyring}: {exc.strerror}", "may the agent read it?"
        ) from exc
    for line in map(str.strip, lines):
        if line.startswith("["):
            inside = line == section
        name, _, value = line.partition("=")
        if inside and name.strip() == "key":
            return value.strip()
    raise HypervisorError(
        f"[rbd] keyring {settings.keyring} has no key in {section}",
        f"ceph auth get-or-create client.{settings.user} prints what belongs in it",
    )


def qemu_path(settings: Rbd, monitors: Sequence[str], pool: str, image: str) -> str:
    """An image as qemu-img names it; the key stays in its file."""

    def plain(text: str) -> str:
        return "".join(f"\\{letter}" if letter in "\\:@=;" else letter for letter in text)

    options = {
        "id": settings.user,
        "keyring": settings.keyring,
        "mon_host": ",".join(monitors),
        **({"conf": settings.conf} if settings.conf else {}),
    }
    words = "".join(f":{name}={plain(value)}" for name, value in options.items())
    return f"rbd:{plain(pool)}/{plain(image)}{words}"

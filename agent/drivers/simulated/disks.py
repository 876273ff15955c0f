"""What a simulated hypervisor keeps for its guests: an empty file in place of each one's disks.

In the host's own folder always, and in a folder for each pool that its spec names, which all
simulated hosts of one state_dir share. Whoever removes a guest by hand leaves them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from common.errors import HypervisorError
from common.messages import GuestSpec, RbdTarget


def folders_of(spec: GuestSpec | None) -> set[str]:
    """The folders of pools in which a guest of this spec has disks, and what stands for Ceph's."""
    disks = spec.disks if spec is not None else ()
    images = {of_ceph(disk.rbd) for disk in disks if disk.rbd is not None}
    return images | {disk.folder for disk in disks if disk.folder is not None}


def of_ceph(target: RbdTarget) -> str:
    """The folder that stands for a pool in Ceph."""
    return f"rbd:{target.pool}"


class Disks:
    """The files of one host's guests, each named by its guest."""

    def __init__(self, state_dir: Path, host: str) -> None:
        self._own = state_dir / host / "disks"
        self._pools = state_dir / "pools"

    def make(self, guest_uuid: str, folders: Iterable[str]) -> None:
        """The files of a new guest."""
        try:
            for place in self._places(folders):
                place.mkdir(parents=True, exist_ok=True)
                (place / guest_uuid).touch()
        except OSError as exc:
            raise HypervisorError(f"no disk: {exc}", "check [simulated] state_dir") from exc

    def remove(self, guest_uuid: str, folders: Iterable[str]) -> None:
        """What is left of a guest; nothing to do when it is gone."""
        try:
            for place in self._places(folders):
                (place / guest_uuid).unlink(missing_ok=True)
        except OSError as exc:
            raise HypervisorError(f"a disk stays: {exc}", "check [simulated] state_dir") from exc

    def left(self) -> list[str]:
        """The guests that have files here or in a pool, sorted."""
        return sorted({file.name for place in (self._own, self._pools) for file in _files(place)})

    def _places(self, folders: Iterable[str]) -> list[Path]:
        return [self._own, *(self._pools / quote(folder, safe="") for folder in sorted(folders))]


def _files(place: Path) -> list[Path]:
    return [found for found in place.rglob("*") if found.is_file()]

"""Images of guests in Ceph: made, cloned, looked at, fenced and removed.

An image is named by its guest and its disk, so an attempt that was given up and the next never
share one, and nothing but `muster-<guest>-disk<n>` is ever fenced or removed here. A template is an
image of each pool with a protected snapshot; what is made of it is a clone.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from agent.drivers.libvirt import ceph, qemu_img
from common.conf.rbd import Rbd
from common.errors import HypervisorError, MusterError, NoAccess
from common.messages import Attachment, DiskSpec, RbdTarget
from common.runtime import Runtime

SNAPSHOT = "muster"
GIB = 1 << 30
# An image is made under this name and renamed: what has its own name is whole.
PART = ".part"
LOCKS = "muster.locks"
LOCK_S = 60
RENEW_S = 5.0
LOCK_TURN_S = 0.5
MAY_RENEW = 1  # librados' flag of a lock
ROUNDS = 5  # of fencing whoever has an image open, before it is told that they come back

_OURS = re.compile(
    r"muster-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}-disk(0|[1-9][0-9]{0,2})", re.ASCII
)
# Without the nonce it would be every client of its host.
_ONE_CLIENT = re.compile(r"(v[12]:)?[0-9A-Fa-f.:\[\]]+:[0-9]{1,5}/[1-9][0-9]{0,9}", re.ASCII)


def image_is_ours(image: str) -> bool:
    """True for a name that a disk of a guest of ours has, and nobody else's image."""
    return _OURS.fullmatch(image) is not None


class Images:
    """The images of all clusters that the pools of the fleet are in. Calls block, each bounded."""

    def __init__(self, settings: Rbd, runtime: Runtime) -> None:
        self._settings = settings
        self._runtime = runtime
        self._libraries = ceph.libraries() if settings.keyring else None

    @property
    def user(self) -> str:
        """The cephx user, as libvirt is told of it."""
        return self._settings.user

    def key(self) -> str:
        """The user's secret, read anew each time: it may have been changed."""
        return ceph.key(self._settings)

    def secret(self, monitors: Sequence[str]) -> str:
        """The uuid of libvirt's secret with that key, told before it is made."""
        words = f"muster/ceph/client.{self.user} {','.join(sorted(monitors))}"
        return str(uuid.uuid5(uuid.NAMESPACE_OID, words))

    def reach(self, target: RbdTarget) -> None:
        """HypervisorError unless an image can be made here; Taken when it is there already."""
        words = f"reach pool {target.pool}"
        with self._cluster(target).pool(target.pool, words) as (_, ioctx):
            if self._exists(ioctx, target.image):
                raise _taken(target)

    def has_template(self, target: RbdTarget, checksum: str) -> bool:
        """True when the template is in the target's pool already."""
        words = f"look for a template in pool {target.pool}"
        with self._cluster(target).pool(target.pool, words) as (_, ioctx):
            return self._exists(ioctx, _template(checksum))

    def ensure_template(
        self, target: RbdTarget, checksum: str, file: Path, kind: str, alive: Callable[[], None]
    ) -> None:
        """Have the template in the target's pool; `file` is a checked one of format `kind`.

        Hosts that want the same wait for the one that copies it.
        """
        name = _template(checksum)
        cluster = self._cluster(target)
        with cluster.pool(target.pool, f"template {target.pool}/{name}") as (_, ioctx):
            if self._exists(ioctx, name):
                return
            with self._alone(ioctx, name, alive) as still_alone:
                if self._exists(ioctx, name):
                    return
                part = f"{name}{PART}"
                self._drop_template(ioctx, part)
                place = ceph.qemu_path(self._settings, target.monitors, target.pool, part)
                qemu_img.copy_raw(str(file), kind, place, still_alone)
                with self._image(ioctx, part) as image:
                    image.create_snap(SNAPSHOT)
                    image.protect_snap(SNAPSHOT)
                still_alone()
                self._rbd.RBD().rename(ioctx, part, name)

    def make(
        self,
        target: RbdTarget,
        spec: DiskSpec,
        alive: Callable[[], None],
        kept: str | None = None,
    ) -> None:
        """A new image: empty, a clone of its template or with `copy` a full copy.

        Or what is in `kept`, a qcow2 file. Taken for one that is there already, which stays.
        """
        words = f"image {target.pool}/{target.image}"
        wanted = spec.size_gib * GIB if spec.size_gib is not None else None
        rbd = self._rbd.RBD()
        with self._cluster(target).pool(target.pool, words) as (_, ioctx):
            part = f"{target.image}{PART}"
            with contextlib.suppress(self._rbd.ImageNotFound):
                rbd.remove(ioctx, part)
            if kept is not None:
                place = ceph.qemu_path(self._settings, target.monitors, target.pool, part)
                qemu_img.copy_raw(kept, "qcow2", place, alive)
                with self._image(ioctx, part) as image:
                    if wanted is not None and wanted > image.size():
                        image.resize(wanted)
            elif spec.source is None:
                rbd.create(ioctx, part, wanted or GIB)
            else:
                template = _template(spec.source.sha256)
                with self._image(ioctx, template, read_only=True) as image:
                    size = image.size()
                if wanted is not None and wanted < size:
                    raise HypervisorError(
                        f"the disk of {wanted} bytes ({spec.size_gib} GiB) is smaller than its"
                        f" template {spec.source.url}, of {size} bytes ({-(-size // GIB)} GiB)",
                        "give it at least the template's size",
                    )
                rbd.clone(ioctx, template, SNAPSHOT, ioctx, part)
                with self._image(ioctx, part) as image:
                    if spec.copy:
                        image.flatten(_heard(alive))
                    if wanted is not None and wanted > size:
                        image.resize(wanted)
            alive()
            try:
                rbd.rename(ioctx, part, target.image)
            except self._rbd.ImageExists as exc:
                with contextlib.suppress(self._rbd.Error):
                    rbd.remove(ioctx, part)
                raise _taken(target) from exc

    def remove(self, target: RbdTarget) -> None:
        """The image is gone afterwards; Busy, with the addresses, while somebody has it open."""
        _require_ours(target)
        words = f"remove {target.pool}/{target.image}"
        with self._cluster(target).pool(target.pool, words) as (_, ioctx):
            for name in (target.image, f"{target.image}{PART}"):
                self._remove(ioctx, name)

    def attached(self, target: RbdTarget) -> Attachment:
        """The image's own id, and the addresses of all that have it open."""
        words = f"look at {target.pool}/{target.image}"
        with (
            self._cluster(target).pool(target.pool, words) as (_, ioctx),
            self._image(ioctx, target.image, read_only=True) as image,
        ):
            return Attachment(
                pool=target.pool,
                image=target.image,
                image_id=image.id(),
                addresses=tuple(sorted(_clients(image))),
            )

    def fence_and_remove(
        self,
        target: RbdTarget,
        known: Collection[str],
        expiry_s: int,
        told: Callable[[str], None] = lambda _word: None,
    ) -> None:
        """Shut out whoever has the image open, and then remove it.

        `known`: addresses from when it was attached, shut out as well. The order is everything: a
        guest whose lock is broken and who is not shut out takes the lock again and writes on.
        """
        _require_ours(target)
        words = f"fence {target.pool}/{target.image}"
        # What breaks a lock shuts its owner out once more, and would shorten the time.
        options = {"rbd_blocklist_expire_seconds": expiry_s}
        # One that is being made is open as well.
        names = (target.image, f"{target.image}{PART}")
        with self._cluster(target).pool(target.pool, words, **options) as (handle, ioctx):
            fenced: set[str] = set()
            for _ in range(ROUNDS):
                found = {name: self._users(ioctx, name) for name in names}
                clients = {address for users, _ in found.values() for address in users}
                fence = (clients | set(known)) - fenced
                for address in sorted(fence):
                    _require_one_client(address)
                    handle.blocklist_add(address, expiry_s)
                    told(f"fenced {address}")
                fenced |= fence
                # From here on each of our own requests carries the map that shuts them out, and
                # no OSD answers it before it has that map.
                handle.wait_for_latest_osdmap()
                for name, (_, lockers) in found.items():
                    for client, cookie in lockers:
                        # What has gone since is seen by the next round.
                        with (
                            contextlib.suppress(self._rbd.ImageNotFound),
                            self._image(ioctx, name) as image,
                        ):
                            image.break_lock(client, cookie)
                        told(f"broke the lock of {client}")
                try:
                    for name in names:
                        self._remove(ioctx, name)
                except ceph.Busy:
                    self._runtime.pause(LOCK_TURN_S)
                    continue  # opened since, or an OSD is still taking the watch off
                told("removed")
                return
        raise ceph.Busy(
            f"{words}: it is opened again and again", f"rbd status {target.pool}/{target.image}"
        )

    # inside

    @property
    def _rbd(self) -> Any:
        return self._loaded().rbd

    def _loaded(self) -> ceph.Libraries:
        if self._libraries is None:
            raise NoAccess(
                "this host has no access to Ceph: [rbd] keyring is not set", "see doc/ceph.md"
            )
        return self._libraries

    def _cluster(self, target: RbdTarget) -> ceph.Cluster:
        return ceph.Cluster(self._settings, self._loaded(), target.monitors)

    def _image(self, ioctx: Any, name: str, *, read_only: bool = False) -> Any:
        return self._rbd.Image(ioctx, name, read_only=read_only)

    def _exists(self, ioctx: Any, name: str) -> bool:
        try:
            with self._image(ioctx, name, read_only=True):
                return True
        except self._rbd.ImageNotFound:
            return False

    def _users(self, ioctx: Any, name: str) -> tuple[set[str], list[tuple[str, str]]]:
        """The addresses of all that have an image open, and its lockers as (client, cookie)."""
        try:
            with self._image(ioctx, name, read_only=True) as image:
                found = image.list_lockers() or {}
                lockers = [(client, cookie) for client, cookie, _ in found.get("lockers", ())]
                return _clients(image), lockers
        except self._rbd.ImageNotFound:
            return set(), []

    def _remove(self, ioctx: Any, name: str) -> None:
        try:
            self._rbd.RBD().remove(ioctx, name)
        except self._rbd.ImageNotFound:
            return
        except self._rbd.ImageBusy as exc:
            if not self._exists(ioctx, name):
                raise ceph.Busy(
                    f"another agent is removing image {name}", "rbd trash ls --all shows it"
                ) from exc
            users = ", ".join(sorted(self._users(ioctx, name)[0])) or "a client that has just left"
            raise ceph.Busy(
                f"image {name} is open at {users}", "it is removed once that has ended"
            ) from exc
        except self._rbd.ImageHasSnapshots as exc:
            raise HypervisorError(
                f"image {name} has snapshots, which are not of our making", f"rbd snap purge {name}"
            ) from exc

    def _drop_template(self, ioctx: Any, part: str) -> None:
        """Remove what an import that was killed has left."""
        with contextlib.suppress(self._rbd.ImageNotFound):
            with self._image(ioctx, part) as image:
                for snap in list(image.list_snaps()):
                    if image.is_protected_snap(snap["name"]):
                        image.unprotect_snap(snap["name"])
                    image.remove_snap(snap["name"])
            self._rbd.RBD().remove(ioctx, part)

    @contextlib.contextmanager
    def _alone(
        self, ioctx: Any, name: str, alive: Callable[[], None]
    ) -> Iterator[Callable[[], None]]:
        """Hold a lock of the pool that ends by itself some time after its holder does.

        Gives a function to call now and then, which renews it.
        """
        rados = self._loaded().rados
        cookie, renewed = self._runtime.new_id(), self._runtime.monotonic()
        while True:
            try:
                ioctx.lock_exclusive(LOCKS, name, cookie, "import", LOCK_S)
                break
            except rados.ObjectBusy:
                alive()
                self._runtime.pause(LOCK_TURN_S)

        def still_alone() -> None:
            nonlocal renewed
            alive()
            if self._runtime.monotonic() - renewed > RENEW_S:
                ioctx.lock_exclusive(LOCKS, name, cookie, "import", LOCK_S, MAY_RENEW)
                renewed = self._runtime.monotonic()

        try:
            yield still_alone
        finally:
            with contextlib.suppress(rados.Error):
                ioctx.unlock(LOCKS, name, cookie)


def _clients(image: Any) -> set[str]:
    """The addresses of an image's watchers and lockers; a read-only look of ours is neither."""
    watchers = {watcher["addr"] for watcher in image.watchers_list()}
    found = image.list_lockers() or {}
    return watchers | {address for _, _, address in found.get("lockers", ())}


def _heard(alive: Callable[[], None]) -> Callable[[int, int], int]:
    """As librbd's progress: it can not be stopped half-way, and takes no error."""

    def progress(_done: int, _of: int) -> int:
        with contextlib.suppress(MusterError):
            alive()
        return 0

    return progress


def _template(checksum: str) -> str:
    return f"muster-template-{checksum}"


def _taken(target: RbdTarget) -> ceph.Taken:
    return ceph.Taken(
        f"the image {target.pool}/{target.image} is there already, and may be another guest's disk",
        f"rbd status {target.pool}/{target.image} tells who has it open; try again for a new name",
    )


def _require_ours(target: RbdTarget) -> None:
    if not image_is_ours(target.image):
        raise HypervisorError(
            f"{target.pool}/{target.image} is no image of a guest of ours", "remove it by hand"
        )


def _require_one_client(address: str) -> None:
    if not _ONE_CLIENT.fullmatch(address):
        raise HypervisorError(
            f"{address!r} is not the address of one client, and its host's others may be alive",
            "as in 10.0.0.5:0/1234567",
        )

"""What starts have made on hosts: kept with the VM, then with its tombstones.

Commands are forgotten in time, and a guest that somebody removes by hand can not be asked for its
disks any more. So each terminate tells its agent what may be left there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from common.conf import Settings
from common.messages import GuestFiles, GuestSpec, RbdTarget, builtins
from common.ownership import new_bearer
from manager.store.engine import Tx
from manager.store.instances import Instance, Made, MadeImage
from manager.store.volumes import Volume


def record(
    tx: Tx, cfg: Settings, vm: Instance, host: str, folders: Mapping[str, str] | None = None
) -> Instance:
    """The start at the VM's generation is going to make a guest on this host.

    `folders`: those of its pools, by name; None, where the last one on this host was made.
    """
    bearer = new_bearer(cfg.default.fleet_id, vm.uuid, vm.generation)
    vm = _named_by(tx, vm, bearer)
    if folders is None:
        folders = next((m.folders for m in reversed(vm.made) if m.host == host), {})
    made = Made(host=host, bearer=bearer, folders=dict(folders), images=_images(tx, vm))
    return tx.swap(vm, made=(*vm.made, made))


def on(vm: Instance, host: str) -> tuple[Made, ...]:
    """What was made for a VM on this host."""
    return tuple(made for made in vm.made if made.host == host)


def files(instance: str, made: Made) -> GuestFiles:
    """What an agent is told of it."""
    folders = tuple(made.folders.values())
    images = tuple(image.target for image in made.images)
    return GuestFiles(instance=instance, bearer=made.bearer, folders=folders, images=images)


def timeout_s(cfg: Settings, made: Iterable[Made]) -> float | None:
    """How long a terminate of it may take: a large image in Ceph is removed object by object."""
    return cfg.manager.create_timeout if any(each.images for each in made) else None


def spec(instance: str, made: Iterable[Made], up_to: int | None = None) -> dict[str, Any]:
    """The spec of a terminate on the host where all this was made."""
    told = [builtins(files(instance, each)) for each in made]
    limit = {} if up_to is None else {"up_to": up_to}
    return {"made": told, **limit} if told else limit


def _named_by(tx: Tx, vm: Instance, bearer: str) -> Instance:
    """The VM with its images in Ceph under the name of this very guest."""
    if all(disk.get("rbd") is None for disk in vm.spec.get("disks", ())):
        return vm
    guest = msgspec.convert(vm.spec, type=GuestSpec)
    disks = tuple(
        disk
        if disk.rbd is None
        else msgspec.structs.replace(disk, rbd=_renamed(disk.rbd, f"muster-{bearer}-disk{n}"))
        for n, disk in enumerate(guest.disks)
    )
    return tx.swap(vm, spec=builtins(msgspec.structs.replace(guest, disks=disks)))


def _renamed(target: RbdTarget, image: str) -> RbdTarget:
    return msgspec.structs.replace(target, image=image)


def _images(tx: Tx, vm: Instance) -> tuple[MadeImage, ...]:
    if all(disk.get("rbd") is None for disk in vm.spec.get("disks", ())):
        return ()
    found = []
    for n, disk in enumerate(msgspec.convert(vm.spec, type=GuestSpec).disks):
        volume = tx.find(Volume, vm.uuid, n)
        if disk.rbd is not None and volume is not None and volume.pool is not None:
            found.append(MadeImage(n=n, pool=volume.pool, target=disk.rbd))
    return tuple(found)

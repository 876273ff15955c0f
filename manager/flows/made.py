"""What starts have made on hosts: kept with the VM, then with its tombstones.

Commands are forgotten in time, and a guest that somebody removes by hand can not be asked for its
disks any more. So each terminate tells its agent what may be left there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from common.conf import Settings
from common.messages import GuestFiles, builtins
from common.ownership import new_bearer
from manager.store.engine import Tx
from manager.store.instances import Instance, Made


def record(
    tx: Tx, cfg: Settings, vm: Instance, host: str, folders: Mapping[str, str] | None = None
) -> Instance:
    """The start at the VM's generation is going to make a guest on this host.

    `folders`: those of its pools, by name; None, where the last one on this host was made.
    """
    bearer = new_bearer(cfg.default.fleet_id, vm.uuid, vm.generation)
    if folders is None:
        folders = next((m.folders for m in reversed(vm.made) if m.host == host), {})
    made = Made(host=host, bearer=bearer, folders=dict(folders))
    return tx.swap(vm, made=(*vm.made, made))


def on(vm: Instance, host: str) -> tuple[Made, ...]:
    """What was made for a VM on this host."""
    return tuple(made for made in vm.made if made.host == host)


def files(instance: str, made: Made) -> GuestFiles:
    """What an agent is told of it."""
    folders = tuple(made.folders.values())
    return GuestFiles(instance=instance, bearer=made.bearer, folders=folders)


def spec(instance: str, made: Iterable[Made]) -> dict[str, Any]:
    """The spec of a terminate on the host where all this was made."""
    told = [builtins(files(instance, each)) for each in made]
    return {"made": told} if told else {}

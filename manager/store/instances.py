"""instances: the VMs we hold, with what each of them is to get."""

from __future__ import annotations

import datetime as dt
import enum
from typing import Any

import msgspec

from common.messages import RbdTarget
from common.states import PowerState, TaskState, VmState
from manager.store.mapping import Row, table


class Nic(msgspec.Struct, frozen=True, kw_only=True):
    """A card of a VM; the first is the default one. Without a network it has no address."""

    mac: str
    network: str | None = None
    address: str | None = None
    address6: str | None = None


class MadeImage(msgspec.Struct, frozen=True, kw_only=True):
    """The image of disk `n`, in the Ceph that the pool of that name is in."""

    n: int
    pool: str
    target: RbdTarget


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """A guest that a start was to make on a host.

    `folders` of its pools, by their names; `images` in Ceph.
    """

    host: str
    bearer: str
    folders: dict[str, str] = {}
    images: tuple[MadeImage, ...] = ()


class DiskWish(msgspec.Struct, frozen=True, kw_only=True):
    """What a disk asks of the pool that it is put into; `n`: its place in the spec's disks."""

    n: int
    size_gib: int
    tags: tuple[str, ...] = ()
    local: bool | None = None


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What a VM asks of the host that it is put on: each time that one is looked for."""

    zone: str | None = None
    pod: str | None = None
    cluster: str | None = None
    host: str | None = None
    pool: str | None = None
    hypervisors: tuple[str, ...] = ()
    host_tags: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    cpu_overcommit: float | None = None
    memory_overcommit: float | None = None
    order: str | None = None
    disks: tuple[DiskWish, ...] = ()


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What a shelved VM's disks were copied to. `taken_at` None: not whole, or not known to be.

    `pool`, at `folder`, as `volume`; without one it is on its `host` alone, and without either
    there is nothing to copy. Guests up to `generation` are from before it left its host;
    `overtaken`: one of them has run since.
    """

    id: str
    folder: str | None = None
    pool: str | None = None
    volume: int | None = None
    host: str | None = None
    taken_at: dt.datetime | None = None
    size_gib: int = 0
    generation: int = 0
    overtaken: bool = False


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """How large a VM is, and by which offering (None: by none)."""

    spec: dict[str, Any]
    wishes: Wishes
    offering: str | None = None

    @property
    def vcpus(self) -> int:
        return int(self.spec["vcpus"])

    @property
    def memory_mib(self) -> int:
        return int(self.spec["memory_mib"])

    @property
    def root_gib(self) -> int | None:
        """The size of its first disk, if that was made for it."""
        return next((disk.size_gib for disk in self.wishes.disks if disk.n == 0), None)


class Phase(enum.StrEnum):
    """How far a resize is: what may still become of it."""

    CHANGING = "changing"  # undone, should it fail
    RESIZED = "resized"  # confirmed or reverted, as is asked for
    CONFIRMING = "confirming"  # confirmed, however long that takes
    REVERTING = "reverting"  # reverted, however long that takes


class Resize(msgspec.Struct, frozen=True, kw_only=True):
    """A change of size that is not settled; meanwhile the VM holds the larger of both.

    `was`: ACTIVE or SHUTOFF before; `key`: the command that made it; `done`: by what its host has
    answered; `tries`: of an undo, confirm or revert that is owed; `error`:
    what it is undone for.
    """

    old: Shape
    new: Shape
    was: VmState
    phase: Phase = Phase.CHANGING
    key: str = ""
    done: bool = False
    tries: int = 0
    error: str = ""


@table(
    "instances", "uuid", index=(("host",), ("name",), ("vm_state",), ("project",), ("resize_at",))
)
class Instance(Row, frozen=True, kw_only=True):
    """One VM. (power_session, power_seq) is the pair of the report that power_state is from.

    `made`: what may be found of it on hosts, also where its guest is gone.
    `reserved`: it holds its share of its project's limits, its addresses and its disks' space, as
    one whose creation has failed does not. `named`: it names objects of the model (table uses).
    `vcpus` and `memory_mib` are what it holds: while it is resized the larger of both sizes.
    `resize_at`: when a manager sees to its resize by itself.
    `reclaim_at`: it was deleted softly, and is deleted for good then, unless it is restored.
    """

    uuid: str
    name: str
    host: str | None
    last_host: str | None = None
    vm_state: VmState
    task_state: TaskState
    power_state: PowerState = PowerState.NOSTATE
    power_session: int = 0
    power_seq: int = 0
    power_at: dt.datetime | None = None
    paused_since: dt.datetime | None = None
    spec: dict[str, Any]
    vcpus: int
    memory_mib: int
    mac: str
    address: str | None = None
    project: str = "default"
    hostname: str | None = None
    nics: tuple[Nic, ...] = ()
    wishes: Wishes = Wishes()
    made: tuple[Made, ...] = ()
    reserved: bool = True
    named: bool = False
    generation: int = 0
    job: str | None = None
    protected: bool = False
    missing: bool = False
    missing_since: dt.datetime | None = None
    missing_reports: int = 0
    error: str = ""
    deletion_owed: bool = False
    snapshot: Snapshot | None = None
    offload_at: dt.datetime | None = None
    resize: Resize | None = None
    resize_at: dt.datetime | None = None
    reclaim_at: dt.datetime | None = None
    created_at: dt.datetime
    deleted_at: dt.datetime | None = None
    terminated_at: dt.datetime | None = None
    version: int = 0

    @property
    def live(self) -> bool:
        return self.vm_state is not VmState.DELETED

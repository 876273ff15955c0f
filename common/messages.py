"""What travels between managers, agents and operators: typed, validated, versioned.

Every struct here is frozen and validated on arrival by msgspec. A reader ignores fields it does
not know and refuses a `schema` newer than its own, so that both sides can be upgraded in turn.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import enum
import hashlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar

import msgspec

from common.errors import BadMessage
from common.model import (
    Backend,
    CephPool,
    Folder,
    MemoryMib,
    Monitor,
    Rule,
    Sha256,
    SizeGib,
    TemplateFormat,
    Url,
    UserData,
    Vcpus,
)
from common.ownership import Mark
from common.states import PowerState

SCHEMA = 1

MANAGER_TOPIC = "muster-manager"
AGENT_TOPIC = "muster-agent"
CONTROL_EXCHANGE = "muster"
REPORTS_EXCHANGE = "muster.reports"
DEAD_EXCHANGE = "muster.dead"
RPC_LIMIT_BYTES = 1024 * 1024

VM_NAME = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?\Z"
VM_NAME_WORDS = (
    "letters, digits, '.', '_' and '-', at most 63, beginning and ending with a letter or digit"
)

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=253)]
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Uuid = Annotated[
    str, msgspec.Meta(pattern=r"^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\Z")
]
Instant = Annotated[dt.datetime, msgspec.Meta(tz=True)]


class CommandKind(enum.StrEnum):
    """The casts to an agent that are commands."""

    START_VM = "start_vm"
    STOP_VM = "stop_vm"
    REBOOT_VM = "reboot_vm"
    PAUSE_VM = "pause_vm"
    UNPAUSE_VM = "unpause_vm"
    SUSPEND_VM = "suspend_vm"
    RESUME_VM = "resume_vm"
    SHELVE_VM = "shelve_vm"
    RESIZE_VM = "resize_vm"
    CONFIRM_RESIZE = "confirm_resize"
    REVERT_RESIZE = "revert_resize"
    TERMINATE_INSTANCE = "terminate_instance"
    CLEAN_UP = "clean_up"
    NOOP = "noop"


class TrailEntry(msgspec.Struct, frozen=True, array_like=True):
    """One entry of a reason trail: who, why, when (UTC)."""

    source: str
    text: str
    when: Instant


class ImageSource(msgspec.Struct, frozen=True, kw_only=True):
    """A template's file: fetched once a folder, used only when its checksum and format agree."""

    url: Url
    sha256: Sha256
    format: TemplateFormat


class SnapshotDisk(msgspec.Struct, frozen=True, kw_only=True):
    """Disk `n` of a snapshot; `folder` as in SnapshotFiles."""

    instance: Id
    snapshot: Id
    n: Annotated[int, msgspec.Meta(ge=0, le=1000)]
    folder: Folder | None = None


class RbdTarget(msgspec.Struct, frozen=True, kw_only=True):
    """An image in a pool of Ceph; `monitors` (host:port) say in which cluster."""

    pool: CephPool
    image: Name
    monitors: tuple[Monitor, ...]

    @property
    def guest(self) -> str:
        """The hypervisor's uuid of the guest whose disk it is: `muster-<guest>-disk<n>`."""
        return self.image.removeprefix("muster-").rpartition("-disk")[0]


class DiskSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A new disk of `size_gib`, or an existing image at `path`, which a delete keeps.

    `source`: what a new disk begins as, an overlay on it or with `copy` a full copy; an ISO is
    attached as it is, to be read only. `snapshot`: what it begins as instead, a copy of it.
    `folder`: where the images of its pool are; None, where the agent keeps those of its guests.
    `rbd`: it is an image in Ceph, and of no folder.
    """

    size_gib: SizeGib | None = None
    path: str | None = None
    source: ImageSource | None = None
    copy: bool = False
    folder: Folder | None = None
    snapshot: SnapshotDisk | None = None
    rbd: RbdTarget | None = None


class NicSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A network card: its MAC, what it is plugged into, and what its guest is to call itself.

    Without a backend `network` is a libvirt network or else a bridge. `ensure`: make the libvirt
    network when there is none of that name. `rules` None: nothing is filtered.
    """

    mac: str
    network: str | None = None
    backend: Backend | None = None
    ensure: bool = False
    vlan: Annotated[int, msgspec.Meta(ge=1, le=4094)] | None = None
    address: str | None = None  # with its prefix length, as in 10.1.0.5/24
    gateway: str | None = None
    address6: str | None = None
    gateway6: str | None = None
    dns: tuple[str, ...] = ()
    rules: tuple[Rule, ...] | None = None


class GuestSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a guest is made from.

    `cpu_mhz`: the weight of each vCPU, with `cpu_cap` also its limit. A guest with a `hostname`
    is given a cloud-init NoCloud seed that tells it its name, addresses, keys and user data.
    """

    name: Name
    vcpus: Vcpus
    memory_mib: MemoryMib
    disks: tuple[DiskSpec, ...] = ()
    nics: tuple[NicSpec, ...] = ()
    kernel: str | None = None
    initrd: str | None = None
    cmdline: str | None = None
    kernel_source: ImageSource | None = None
    initrd_source: ImageSource | None = None
    cpu_mhz: Annotated[int, msgspec.Meta(ge=100, le=10_000)] | None = None
    cpu_cap: bool = False
    hostname: str | None = None
    domain: str | None = None
    ssh_keys: tuple[str, ...] = ()
    user_data: UserData | None = None


class GuestFiles(msgspec.Struct, frozen=True, kw_only=True, tag="guest_files"):
    """What was made for a guest that is not there any more, by its bearer.

    `folders` are those of pools; what is in the agent's own folder always belongs to it. `images`:
    in Ceph.
    """

    instance: Id
    bearer: Uuid
    folders: tuple[Folder, ...] = ()
    images: tuple[RbdTarget, ...] = ()


class RbdImage(msgspec.Struct, frozen=True, kw_only=True, tag="rbd_image"):
    """An image in Ceph of a guest that may be alive, and writing: it is shut out first.

    `addresses`: of the clients that had it open when the guest was started. They and whoever has it
    open now are shut out for `expiry_s`.
    """

    target: RbdTarget
    addresses: tuple[str, ...] = ()
    expiry_s: Annotated[int, msgspec.Meta(ge=1, le=2**31)]


class SnapshotFiles(msgspec.Struct, frozen=True, kw_only=True, tag="snapshot"):
    """The images that a guest's new disks were copied to, one each.

    `folder`: that of a pool which keeps snapshots; None: the agent's own.
    """

    instance: Id
    snapshot: Id
    folder: Folder | None = None


# What a clean_up is to remove, a tagged union of everything that can be left behind.
Remains = GuestFiles | SnapshotFiles | RbdImage


class CleanUpSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The spec of clean_up; `cleanup` is the managers' item."""

    remains: Remains
    cleanup: Id


class TerminateSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The spec of terminate_instance.

    `made`: what its starts have made on this host, guests or not. `up_to`: with it, no guest goes
    whose mark is of a later generation.
    """

    made: tuple[GuestFiles, ...] = ()
    up_to: Count | None = None


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """One order to one agent; `spec` depends on the kind (start_vm: {"guest": GuestSpec}).

    Only a noop, the canary, is about no instance: it has an empty one and generation 1. Like
    `session`, the managers' store and how far it was belong to the cast: they change when it is
    cast again.
    """

    schema: int = SCHEMA
    id: Id
    kind: CommandKind
    fleet: Name
    host: Name
    session: Count
    instance: Annotated[str, msgspec.Meta(max_length=64)]
    generation: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=7 * 86400)]
    store_timeline: str | None = None
    store_mark: Count = 0
    spec: dict[str, Any] = {}
    trail: tuple[TrailEntry, ...] = ()


class GuestReport(msgspec.Struct, frozen=True, kw_only=True):
    """One guest as its hypervisor describes it, ours or not."""

    hypervisor_uuid: Id
    name: str
    power_state: PowerState
    vcpus: Count
    memory_mib: Count
    mark: Mark | None = None
    template: bool = False
    domain_id: int | None = None
    macs: tuple[str, ...] = ()

    def fingerprint(self) -> int:
        """64 bits over what a manager keeps of this guest; the list of fields is part of SCHEMA."""
        kept = (
            self.hypervisor_uuid,
            self.name,
            int(self.power_state),
            self.vcpus,
            self.memory_mib,
            self.mark,
            self.template,
            self.domain_id,
            self.macs,
        )
        body = msgspec.json.encode(kept)
        return int.from_bytes(hashlib.blake2b(body, digest_size=8).digest(), "big")


def digest(fingerprints: Iterable[int]) -> str:
    """An order-free digest of a host's guests, equal on both sides when their views agree."""
    total = count = 0
    for fingerprint in fingerprints:
        total ^= fingerprint
        count += 1
    return f"{count}:{total:016x}"


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What the hypervisor said of one guest at (session, seq); `guest` None: it is not there.

    `seq` is drawn after the command's effect and before the look.
    """

    session: Count
    seq: Count
    guest: GuestReport | None


class Step(enum.StrEnum):
    """Receipts that an agent gives before a command's result."""

    RECEIVED = "received"
    STARTED = "started"


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """A step a command has taken at the agent, `age_s` seconds before the message was sent."""

    command: Id
    step: Step
    age_s: Annotated[float, msgspec.Meta(le=1e9)] = 0.0


class Outcome(enum.StrEnum):
    """How a command ended at its agent."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    NOT_RUN = "not_run"


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """An image in Ceph as it was just after its guest was started.

    `addresses`: of all clients that had it open, each with its nonce, as in 10.0.0.5:0/1234567.
    """

    pool: str
    image: str
    image_id: str
    addresses: tuple[str, ...]


class Phase(msgspec.Struct, frozen=True, array_like=True):
    """A part of a command's work, and how long it took."""

    name: str
    seconds: float


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """What a terminate could not remove of a guest that is gone, and why not."""

    files: GuestFiles
    why: str


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a command, repeated until a manager confirms `id`.

    `error_code` STALE_COMMAND carries the floor that refused it. `attached`: the images in Ceph of
    a guest that this command has started. `left`: files of a terminate that has succeeded.
    """

    id: Id
    command: Id
    kind: str
    instance: str
    generation: int
    outcome: Outcome
    error_code: str | None = None
    error: str | None = None
    floor: Annotated[int, msgspec.Meta(ge=0, le=2**52)] | None = None
    look: Look | None = None
    phases: tuple[Phase, ...] = ()
    attached: tuple[Attachment, ...] = ()
    left: tuple[Left, ...] = ()


class VoidOutcome(enum.StrEnum):
    """What had become of the commands at or below a voided generation."""

    NOT_RUN = "not_run"
    RUNNING = "running"
    DONE = "done"


class VoidAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The agent's word on a void: the floor is raised, and this is what it found."""

    id: Id
    instance: Id
    generation: Count
    answer: VoidOutcome


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A cast that could not be a command at all, with its reason and the start of its body."""

    id: Id
    code: str
    message: str
    body: str


class FloorEntry(msgspec.Struct, frozen=True, array_like=True):
    """(instance, generation): nothing at or below it may run any more."""

    instance: str
    generation: int


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent tells outside its heartbeats, on routing key `result.<host>`.

    `floors` only when its hello was answered DB_ROLLED_BACK.
    """

    schema: int = SCHEMA
    fleet: Name
    host: Name
    session: Count | None
    agent_run: Id
    receipts: tuple[Receipt, ...] = ()
    results: tuple[Result, ...] = ()
    voids: tuple[VoidAnswer, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    floors: tuple[FloorEntry, ...] = ()


class DriverReport(msgspec.Struct, frozen=True, kw_only=True):
    """The hypervisor driver's own health."""

    name: Name
    healthy: bool
    message: str = ""


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What the hypervisor has in all, aliens included in what is used."""

    vcpus_total: Count
    memory_mib_total: Count
    vcpus_used: Count
    memory_mib_used: Count


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """The guests of a host: all of them (`full`), or what changed since the last report.

    `complete` False: the listing failed or was partial, and absence means nothing. `gone` lists
    hypervisor uuids that were there and are not any more. `digest` is over all guests.
    """

    full: bool
    complete: bool
    digest: str
    guests: tuple[GuestReport, ...] = ()
    gone: tuple[str, ...] = ()
    errors: dict[str, str] = {}


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """A host's sign of life, on routing key `heartbeat.<host>`; `seq` is drawn before the look."""

    schema: int = SCHEMA
    fleet: Name
    host: Name
    session: Count | None
    agent_run: Id
    seq: Count
    interval_s: Annotated[float, msgspec.Meta(gt=0, le=86400)]
    driver: DriverReport
    sent_at: Instant
    inventory: Inventory | None = None
    capacity: Capacity | None = None
    receipts: tuple[Receipt, ...] = ()
    results: tuple[Result, ...] = ()
    voids: tuple[VoidAnswer, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    dropped_casts: Count = 0


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's request for a session (RPC call `hello` to the managers)."""

    schema: int = SCHEMA
    hello_id: Id
    fleet: Name
    host: Name
    agent_run: Id
    agent_version: str
    driver: Name
    interval_s: Annotated[float, msgspec.Meta(gt=0, le=86400)]
    host_boot: str
    journal_id: Id
    journal_seq: Count
    store_timeline: str | None
    store_mark: Count
    session: Count = 0
    unfinished: tuple[str, ...] = ()


class Welcome(msgspec.Struct, frozen=True, kw_only=True):
    """The managers' answer to a hello.

    `wanted` are the unfinished commands of the hello that may still run; `voids` ask for an
    answer each; `store_timeline` and `store_mark` are kept by the agent for its next hello.
    `canary_interval_s`: how often at least something is cast to the agent; 0, nothing may come.
    """

    session: Count
    tombstones: tuple[FloorEntry, ...] = ()
    floors: tuple[FloorEntry, ...] = ()
    voids: tuple[FloorEntry, ...] = ()
    wanted: tuple[str, ...] = ()
    store_timeline: str
    store_mark: Count
    canary_interval_s: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 0.0


M = TypeVar("M", bound=msgspec.Struct)


def prepare() -> None:
    """Have msgspec study every struct that is defined by now.

    It does so at the first use of each, and crashes the process if two threads do so at once. Call
    it before there are any.
    """
    kinds: list[type[msgspec.Struct]] = [msgspec.Struct]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        with contextlib.suppress(TypeError):  # one that only gives others their fields
            msgspec.json.Decoder(kind)


def encode(message: msgspec.Struct) -> bytes:
    """The JSON body of a message."""
    return msgspec.json.encode(message)


def builtins(message: msgspec.Struct) -> Any:
    """A message as plain dicts and lists, for an RPC argument."""
    return msgspec.to_builtins(message)


def decode(body: bytes | str, kind: type[M]) -> M:
    """A message from its JSON body; BadMessage names the field that is wrong."""
    try:
        message = msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadMessage(f"{kind.__name__}: {exc}", "see the dead-letter queue") from exc
    return _checked(message)


def convert(value: Any, kind: type[M]) -> M:
    """A message from plain dicts and lists; BadMessage names the field that is wrong."""
    try:
        message = msgspec.convert(value, type=kind, strict=True)
    except (msgspec.ValidationError, RecursionError) as exc:
        raise BadMessage(f"{kind.__name__}: {exc}", "see the dead-letter queue") from exc
    return _checked(message)


def within_limit(what: str, kwargs: Mapping[str, Any]) -> None:
    """Raise BadMessage for the arguments of an RPC that nobody of ours could have sent."""
    try:
        size = len(msgspec.json.encode(kwargs))
    except (OverflowError, RecursionError) as exc:
        raise BadMessage(f"{what}: {exc}", "find who sends this") from exc
    if size > RPC_LIMIT_BYTES:
        raise BadMessage(
            f"{what}: {size} bytes are more than {RPC_LIMIT_BYTES}", "find who sends this"
        )


def _checked(message: M) -> M:
    schema = getattr(message, "schema", SCHEMA)
    if not 1 <= schema <= SCHEMA:
        raise BadMessage(
            f"{type(message).__name__}: schema {schema} is not one of 1..{SCHEMA}",
            "upgrade this process first",
        )
    return message

"""What operators may ask, field by field; a wrong one is named in the answer."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

import msgspec

from common import fields, since
from common.errors import BadRequest
from common.messages import VM_NAME, VM_NAME_WORDS
from common.model import MemoryMib, Ratio, SizeGib, Vcpus
from common.states import SettableState
from manager.flows.jobs import Wish
from manager.rules.placement import Order

_UUID = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z"
JobId = Annotated[str, msgspec.Meta(pattern=_UUID)]
NameOrId = Annotated[str, msgspec.Meta(min_length=1, max_length=253)]
Text = Annotated[str, msgspec.Meta(max_length=1000)]
Reason = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
Operator = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
VmName = Annotated[str, msgspec.Meta(pattern=VM_NAME)]
Path = Annotated[str, msgspec.Meta(pattern=r"^/[^\x00]+\Z", max_length=4096)]


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of everything that can be asked."""


class Change(Request, frozen=True, kw_only=True):
    """A request that changes something: who, why, and under which job uuid."""

    job: JobId
    operator: Operator = "unknown"
    reason: Text | None = None

    def wish(self, verb: str) -> Wish:
        """The request as it is stored; who repeats it and why does not make it another one."""
        # As it comes back from the store: a tuple would differ from its own stored list.
        asked = msgspec.json.decode(msgspec.json.encode(self))
        for name in ("job", "operator", "reason"):
            asked.pop(name)
        return Wish(
            job=self.job,
            operator=self.operator,
            reason=self.reason,
            request={"verb": verb, **asked},
        )


class DiskWish(Request, frozen=True, kw_only=True):
    """A new disk of a size, or an image that is on the host and is kept."""

    size_gib: SizeGib | None = None
    path: str | None = None


class NetworkWish(Request, frozen=True, kw_only=True):
    """A card: the network it is in, and the addresses that are asked for, if any."""

    network: NameOrId
    address: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    address6: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    default: bool = False


class DataDisk(Request, frozen=True, kw_only=True):
    """A data disk of an offering, or of a size of its own."""

    size_gib: SizeGib | None = None
    offering: NameOrId | None = None


Names = Annotated[tuple[NameOrId, ...], msgspec.Meta(max_length=32)]


class VmCreate(Change, frozen=True, kw_only=True):
    name: VmName
    vcpus: Vcpus | None = None
    memory_mib: MemoryMib | None = None
    offering: NameOrId | None = None
    template: NameOrId | None = None
    full_copy: bool = False
    root_gib: SizeGib | None = None
    disks: Annotated[tuple[DiskWish, ...], msgspec.Meta(max_length=16)] = ()
    data_disks: Annotated[tuple[DataDisk, ...], msgspec.Meta(max_length=16)] = ()
    kernel: Path | None = None
    initrd: Path | None = None
    cmdline: Text | None = None
    hostname: Annotated[str, msgspec.Meta(max_length=253)] | None = None
    zone: NameOrId | None = None
    networks: Annotated[tuple[NetworkWish, ...], msgspec.Meta(max_length=16)] = ()
    security_groups: Names = ()
    affinity_groups: Names = ()
    project: NameOrId | None = None
    ssh_keys: Names = ()
    user_data: str | None = None
    user_data_name: NameOrId | None = None
    pod: NameOrId | None = None
    cluster: NameOrId | None = None
    host: NameOrId | None = None
    pool: NameOrId | None = None
    order: Order | None = None
    cpu_overcommit: Ratio | None = None
    memory_overcommit: Ratio | None = None
    start: bool = True
    dry_run: bool = False


class VmVerb(Change, frozen=True, kw_only=True):
    vm: NameOrId


class VmSetState(VmVerb, frozen=True, kw_only=True):
    vm_state: SettableState
    reason: Reason


class VmSet(VmVerb, frozen=True, kw_only=True):
    protected: bool
    reason: Reason


class VmResize(VmVerb, frozen=True, kw_only=True):
    offering: NameOrId | None = None
    vcpus: Vcpus | None = None
    memory_mib: MemoryMib | None = None
    root_gib: SizeGib | None = None


class VmPower(VmVerb, frozen=True, kw_only=True):
    force: bool = False


class VmShelve(VmVerb, frozen=True, kw_only=True):
    offload: bool = False


class VmDelete(Change, frozen=True, kw_only=True):
    vm: NameOrId
    force: bool = False
    soft: bool = False
    idempotent: bool = False
    dry_run: bool = False


class Wishes(Request, frozen=True, kw_only=True):
    """Several requests that change something, each under its own job: [method, arguments]."""

    wishes: Annotated[
        tuple[tuple[str, dict[str, Any]], ...], msgspec.Meta(min_length=1, max_length=100)
    ]


class VmList(Request, frozen=True, kw_only=True):
    host: NameOrId | None = None
    state: str | None = None
    task_state: str | None = None
    stale: bool = False


class VmShow(Request, frozen=True, kw_only=True):
    vm: NameOrId


Entries = Annotated[int, msgspec.Meta(ge=1, le=1000)]


class VmHistory(Request, frozen=True, kw_only=True):
    vm: NameOrId
    since: str | None = None
    limit: Entries = 1000


class HostHistory(Request, frozen=True, kw_only=True):
    host: NameOrId
    since: str | None = None
    limit: Entries = 1000


class EventList(Request, frozen=True, kw_only=True):
    object: NameOrId | None = None
    kind: NameOrId | None = None
    limit: Entries = 100


class HostShow(Request, frozen=True, kw_only=True):
    host: NameOrId


class HostChange(Request, frozen=True, kw_only=True):
    host: NameOrId
    operator: Operator = "unknown"
    reason: Text | None = None
    dry_run: bool = False


class HostMaintenance(HostChange, frozen=True, kw_only=True):
    on: bool


class JobList(Request, frozen=True, kw_only=True):
    all: bool = False


class JobShow(Request, frozen=True, kw_only=True):
    job: JobId


class JobCancel(Request, frozen=True, kw_only=True):
    job: JobId
    operator: Operator = "unknown"
    reason: Text | None = None


class AcceptRestore(Request, frozen=True, kw_only=True):
    operator: Operator = "unknown"
    reason: Reason


class Freeze(Request, frozen=True, kw_only=True):
    operator: Operator = "unknown"
    reason: Reason


class Unfreeze(Request, frozen=True, kw_only=True):
    operator: Operator = "unknown"
    reason: Text | None = None


class AlienList(Request, frozen=True, kw_only=True):
    host: NameOrId | None = None


class TombstoneList(Request, frozen=True, kw_only=True):
    state: str | None = None


class TombstoneShow(Request, frozen=True, kw_only=True):
    tombstone: JobId


class TombstoneForget(TombstoneShow, frozen=True, kw_only=True):
    operator: Operator = "unknown"
    reason: Reason


class CleanupList(Request, frozen=True, kw_only=True):
    all: bool = False


class CleanupShow(Request, frozen=True, kw_only=True):
    cleanup: JobId


class CleanupRetry(CleanupShow, frozen=True, kw_only=True):
    operator: Operator = "unknown"
    reason: Text | None = None


class CleanupForget(CleanupShow, frozen=True, kw_only=True):
    operator: Operator = "unknown"
    reason: Reason


class AddressList(Request, frozen=True, kw_only=True):
    network: NameOrId | None = None
    vm: NameOrId | None = None


class Nothing(Request, frozen=True, kw_only=True):
    pass


_REMEDIES = {
    "name": VM_NAME_WORDS,
    "vcpus": "a whole number from 1 to 512",
    "memory_mib": "MiB, a whole number from 16 to 16777216",
    "disks": "GiB as a whole number from 1 to 65536, or the absolute path of an image",
    "root_gib": "GiB, a whole number from 1 to 65536",
    "data_disks": "GiB as a whole number from 1 to 65536, or a disk offering",
    "networks": "names, each with an address, address6 and default if wanted",
    "order": "one of first_fit, spread, spread_by_project, pack",
    "cpu_overcommit": "a number from 0.1 to 100",
    "memory_overcommit": "a number from 0.1 to 100",
    "kernel": "an absolute path on the host",
    "initrd": "an absolute path on the host",
    "job": "a UUID",
    "tombstone": "a UUID",
    "cleanup": "a UUID",
    "all": "true or false",
    "vm": "a name or a UUID",
    "protected": "true or false",
    "vm_state": f"one of {', '.join(SettableState)}",
    "host": "a name",
    "since": since.WORDS,
    "limit": "a whole number from 1 to 1000",
    "on": "true or false",
    "network": "its name: muster network list",
    "reason": "why, in 1 to 1000 characters",
}
Q = TypeVar("Q", bound=Request)


def parse(kind: type[Q], kwargs: dict[str, Any]) -> Q:
    """The request, or BadRequest with the field that is wrong and what it may be."""
    try:
        request = msgspec.convert(kwargs, type=kind)
    except msgspec.ValidationError as exc:
        problems = [
            (field, said, _REMEDIES.get(re.split(r"[.[]", field)[0], remedy))
            for field, said, remedy in fields.wrong(kind, kwargs)
        ]
        if len(problems) > 1:
            raise fields.refused(problems) from exc
        text = str(exc)
        found = re.search(r"`\$\.?([A-Za-z_]+)|field `([A-Za-z_]+)`", text)
        field = (found.group(1) or found.group(2)) if found else "request"
        given = kwargs.get(field)
        if isinstance(given, str | int) and f"`$.{field}`" in text:
            # Not msgspec's words: they show a regular expression.
            text = f"{given!r:.80} is not possible"
        raise BadRequest(
            f"{field}: {text}", _REMEDIES.get(field, "correct this field"), field=field
        ) from exc
    if isinstance(request, VmCreate):
        _check_create(request)
    return request


def _check_create(request: VmCreate) -> None:
    if re.match(_UUID, request.name):
        raise BadRequest(
            f"name: {request.name!r} has the shape of a UUID, by which another VM may be meant",
            "choose a name that is no UUID",
            field="name",
        )

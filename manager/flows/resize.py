"""Resize: another size for a VM, which can be taken back until it is confirmed.

The VM holds the larger of both sizes until then. What has begun and has not ended well is undone:
by a step of the same job, or, when nobody is there to say how it stands, by a job of the managers'
own once its host is back. So does a confirm or revert go on that has begun.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
import sqlalchemy as sa

from common.conf import Settings
from common.errors import (
    Conflict,
    GuestMissing,
    NotSupported,
    NoValidHost,
    ResizeOver,
    ResizeReverting,
    UnknownKind,
    WrongState,
)
from common.messages import CommandKind, Result
from common.model import Kind, Template
from common.states import CommandState, JobEvent, TaskState, VmState
from manager.flows import commands, freeze, growing, jobs, limits, power, restore
from manager.flows import model as nouns
from manager.flows.jobs import Wish
from manager.rules import quarantine, verbs
from manager.store.commands import CommandRow
from manager.store.engine import Tx
from manager.store.hosts import Host
from manager.store.instances import Instance, Phase, Resize, Shape
from manager.store.jobs import Job
from manager.store.model import Use
from manager.store.statements import Query, Removal, ask, soonest
from manager.store.volumes import Volume

RESIZE, CONFIRM, REVERT = KINDS = ("resize", "confirm-resize", "revert-resize")
# How a job ends whose resize has failed with one of these, and was undone.
ENDS = {
    "CANCELLED": JobEvent.CANCEL,
    "VOIDED": JobEvent.EXPIRE,
    "EXPIRED": JobEvent.EXPIRE,
}
COMMANDS = {CONFIRM: CommandKind.CONFIRM_RESIZE, REVERT: CommandKind.REVERT_RESIZE}
# Where it runs afterwards if it ran before; in others somebody has stopped it since.
RUNS_IN = (VmState.ACTIVE, VmState.RESIZED, VmState.ERROR)
BASE_BACK_OFF_S = 2.0
LATER_S = 5.0
U = Use.__table__.c
I = Instance.__table__.c  # noqa: E741 - the table's columns, as U
MADE_FROM = sa.select(U.name).where(U.instance == ask("instance"), U.kind == ask("kind"))
USES_ANY = sa.select(U.name).where(U.instance == ask("instance")).limit(1)
NOT_USED = Removal(
    Use, U.instance == ask("instance"), U.kind == Kind.OFFERING, U.name == ask("name")
)
BESIDE = Query(
    Host, Host.__table__.c.cluster == ask("cluster"), order=[Host.__table__.c.name], limit=200
)
DUE = Query(Instance, I.resize_at <= ask("now"), order=[I.resize_at], limit=20)
IS_DUE = soonest(I.resize_at) <= ask("now")


# operators' wishes


def shape(tx: Tx, vm: Instance) -> Shape:
    """How large a VM is now."""
    names = [name for (name,) in _made_from(tx, vm, Kind.OFFERING)]
    return Shape(spec=vm.spec, wishes=vm.wishes, offering=next(iter(names), None))


def template(tx: Tx, vm: Instance) -> Template | None:
    """What it was made from."""
    found: Template | None = None
    for (name,) in _made_from(tx, vm, Kind.TEMPLATE):
        found = nouns.find(tx, Kind.TEMPLATE, name)
    return found


def _made_from(tx: Tx, vm: Instance, kind: Kind) -> list[Any]:
    return list(tx.rows(MADE_FROM, (Use,), instance=vm.uuid, kind=kind)) if vm.named else []


def shown(vm: Instance) -> dict[str, Any] | None:
    """A resize that is not settled, for whoever looks at the VM."""
    change = vm.resize
    if change is None:
        return None
    by_itself = change.phase is Phase.RESIZED
    return {
        "phase": change.phase.value,
        "before": _told(change.old),
        "after": _told(change.new),
        "confirmed_at": vm.resize_at if by_itself else None,
        "error": change.error or None,
    }


def admit(tx: Tx, verb: str, vm: Instance) -> None:
    """Raises what the verb table refuses, WrongState for a resize that is being settled already."""
    restore.require_none(tx, (vm.host,) if vm.host else ())
    power.require_wanted(vm)
    power.require_settled(vm)
    verbs.admit(verbs.VERBS[verb], vm.name, vm.vm_state, vm.task_state, vm.job)
    if verb == RESIZE and vm.snapshot is not None:
        raise WrongState(
            f"{vm.name} still has a snapshot of its old size, and {vm.host} has not shown it since",
            f"wait until it is seen again: muster vm show {vm.name}",
        )
    if vm.host is None:
        raise WrongState(f"{vm.name} is on no host", f"start it first: muster vm start {vm.name}")


def request(tx: Tx, cfg: Settings, wish: Wish, vm: Instance, new: Shape) -> Job:
    """Accept a resize, once `admit` has; raises QuotaExceeded and NoValidHost."""
    old = shape(tx, vm)
    if any(disk.get("rbd") for disk in vm.spec.get("disks", ())):
        raise NotSupported(
            f"{vm.name} has disks in Ceph, of which no copy could be kept until it is confirmed",
            "make a new VM of that size",
        )
    if new == old:
        job = jobs.accept(tx, wish, RESIZE, instance=vm.uuid, host=vm.host)
        return jobs.end_at_once(tx, job, f"{vm.name} has that size already", vm.host)
    _reserve(tx, vm, old, new)
    _use(tx, vm, new.offering)
    grown = _growth(old, new)
    why = growing.grow(tx, vm, new.wishes, new.vcpus, new.memory_mib, grown)
    if why:
        raise NoValidHost(
            f"{vm.host} can not hold {vm.name} with {new.vcpus} vCPUs and {new.memory_mib} MiB:"
            f" it {why}",
            "a smaller size, or free that host: muster host list",
            hosts={vm.host: why, **_others(tx, vm)},
        )
    if grown is not None:
        _root_is(tx, vm, grown)
    change = Resize(old=old, new=new, was=vm.vm_state)
    vm = tx.swap(
        vm,
        vcpus=max(old.vcpus, new.vcpus),
        memory_mib=max(old.memory_mib, new.memory_mib),
        named=vm.named or new.offering is not None,
        resize=change,
        resize_at=None,
    )
    job = jobs.accept(tx, wish, RESIZE, instance=vm.uuid, host=vm.host)
    job = jobs.add_step(tx, job, f"reserve {_told(old)} -> {_told(new)}", vm.host)
    job = jobs.end_step(tx, job, 0, JobEvent.SUCCEED, "the larger of both is held until confirmed")
    return _cast(tx, cfg, jobs.start(tx, job), vm, change, CommandKind.RESIZE_VM)


def confirm(tx: Tx, cfg: Settings, wish: Wish, vm: Instance) -> Job:
    """Accept a confirm: nothing is kept of what the VM was."""
    return _settle_by(tx, cfg, wish, vm, CONFIRM)


def revert(tx: Tx, cfg: Settings, wish: Wish, vm: Instance) -> Job:
    """Accept a revert: the VM is again what it was, disks included."""
    return _settle_by(tx, cfg, wish, vm, REVERT)


def _settle_by(tx: Tx, cfg: Settings, wish: Wish, vm: Instance, verb: str) -> Job:
    admit(tx, verb, vm)
    if vm.resize is None:
        raise WrongState(
            f"nothing is known of a resize of {vm.name}", "muster vm set-state says what it is"
        )
    job = jobs.accept(tx, wish, verb, instance=vm.uuid, host=vm.host)
    return _cast(tx, cfg, jobs.start(tx, job), vm, vm.resize, COMMANDS[verb])


def _others(tx: Tx, vm: Instance) -> dict[str, str]:
    """Why the other hosts of its cluster are not asked."""
    host = tx.find(Host, vm.host) if vm.host is not None else None
    beside = tx.ask(BESIDE, cluster=host.cluster) if host is not None and host.cluster else []
    why = f"what {vm.name} was is kept where its disks are, on {vm.host}"
    return {other.name: why for other in beside if other.name != vm.host}


def _reserve(tx: Tx, vm: Instance, old: Shape, new: Shape) -> None:
    grown = {
        "vcpus": new.vcpus - old.vcpus,
        "memory_mib": new.memory_mib - old.memory_mib,
        "storage_gib": (new.root_gib or 0) - (old.root_gib or 0),
    }
    more = {what: amount for what, amount in grown.items() if amount > 0}
    if more:
        limits.reserve(tx, vm.project, dict.fromkeys(limits.RESOURCES, 0) | more)


def _use(tx: Tx, vm: Instance, offering: str | None) -> None:
    """Its new offering stays while it may have that size."""
    if offering is None:
        return
    if nouns.hold(tx, Kind.OFFERING, offering) is None:
        raise Conflict(f"offering {offering} was deleted meanwhile")
    tx.insert_if_new(Use(kind=Kind.OFFERING, name=offering, instance=vm.uuid))


def _growth(old: Shape, new: Shape) -> int | None:
    return new.root_gib if new.root_gib != old.root_gib else None


def _root_is(tx: Tx, vm: Instance, size_gib: int) -> None:
    volume = tx.find(Volume, vm.uuid, 0)
    if volume is not None:
        tx.put(volume, size_gib=size_gib)


def _told(size: Shape) -> str:
    disk = f", {size.root_gib} GiB" if size.root_gib is not None else ""
    return f"{size.vcpus} vCPUs, {size.memory_mib} MiB{disk}"


def _cast(tx: Tx, cfg: Settings, job: Job, vm: Instance, change: Resize, kind: CommandKind) -> Job:
    if vm.host is None:
        raise AssertionError(f"{vm.name} is on no host")
    generation = vm.generation + 1
    tx.swap(vm, task_state=TaskState.RESIZING, job=job.uuid, generation=generation)
    to = change.old if kind is CommandKind.REVERT_RESIZE else change.new
    command = commands.issue(
        tx,
        cfg,
        kind=kind,
        instance=vm.uuid,
        host=vm.host,
        generation=generation,
        job=job.uuid,
        trail=job.trail,
        spec={
            "guest": to.spec,
            "on": change.was is VmState.ACTIVE and vm.vm_state in RUNS_IN,
            "timeout_s": cfg.libvirt.stop_timeout,
            "key": change.key,
            "undo": not change.done,
        },
        timeout_s=cfg.manager.create_timeout,
    )
    if kind is CommandKind.RESIZE_VM:
        vm = tx.get(Instance, vm.uuid)
        tx.swap(vm, resize=msgspec.structs.replace(change, key=command.id))
    job = jobs.add_step(tx, job, kind.value, vm.host, command.id)
    return tx.swap(job, deadline_at=command.deadline_at)


# how they end


def command_ended(
    tx: Tx, cfg: Settings, job: Job, command: CommandRow, result: Result | None
) -> None:
    """The end of a resize, of its undo, of a confirm or of a revert."""
    vm = tx.find(Instance, job.instance) if job.instance else None
    if vm is not None and result is not None and (result.floor or 0) > vm.generation:
        # The agent has heard of a newer command than we remember: the next one goes above it.
        vm = tx.swap(vm, generation=result.floor)
    if vm is None or vm.job != job.uuid or not vm.live or vm.resize is None:
        power.superseded(tx, job, command)
        return
    looked = result is not None and result.look is not None
    if command.kind == CommandKind.RESIZE_VM:
        _resize_ended(tx, cfg, job, vm, vm.resize, command, looked=looked)
    elif job.kind == RESIZE:
        _undo_ended(tx, cfg, job, vm, vm.resize, command, looked=looked)
    else:
        _settling_ended(tx, cfg, job, vm, vm.resize, command, looked=looked)


def _resize_ended(
    tx: Tx,
    cfg: Settings,
    job: Job,
    vm: Instance,
    change: Resize,
    command: CommandRow,
    *,
    looked: bool,
) -> None:
    if command.state is CommandState.SUCCEEDED:
        job = jobs.end_steps(tx, job, JobEvent.SUCCEED, "done")
        jobs.end(tx, job, JobEvent.SUCCEED)
        window_s = cfg.manager.resize_confirm_window
        vm = tx.swap(
            vm,
            spec=change.new.spec,
            wishes=change.new.wishes,
            resize=msgspec.structs.replace(change, phase=Phase.RESIZED, done=True),
            resize_at=tx.now + dt.timedelta(seconds=window_s) if window_s else None,
        )
        told = f"{_told(change.old)} -> {_told(change.new)}"
        tx.event("instance.resized", vm.uuid, "manager", f"{vm.name}: {told}", job=job.uuid)
        power.settle(tx, cfg, vm, VmState.RESIZED, looked=looked)
        return
    event, code, error = power.ending(job, command)
    job = jobs.end_steps(tx, job, event, f"{code}: {error}")
    if command.published_at is None or code == UnknownKind.code:
        # No agent can have seen it, or it is one that knows of no resizes.
        jobs.end(tx, job, event, code=code, error=error)
        _become(tx, cfg, vm, change, change.old, looked=True)
        return
    change = msgspec.structs.replace(change, error=f"{code}: {error}")
    vm = tx.swap(vm, resize=change)
    if command.state is CommandState.UNKNOWN:
        jobs.end(tx, job, event, code=code, error=error)
        _owe(tx, cfg, vm, change, Phase.REVERTING, f"{code}: {error}", VmState.ERROR)
        return
    # What its agent has not undone, or can not know of, is undone now; done already is success.
    tx.swap(job, waiting_for=f"{vm.host} to undo it, after {code}")
    _cast(tx, cfg, tx.get(Job, job.uuid), vm, change, CommandKind.REVERT_RESIZE)


def _undo_ended(
    tx: Tx,
    cfg: Settings,
    job: Job,
    vm: Instance,
    change: Resize,
    command: CommandRow,
    *,
    looked: bool,
) -> None:
    """The job fails as its resize has, whatever became of the undo, which is owed until done."""
    done = command.state is CommandState.SUCCEEDED
    code, _, error = change.error.partition(": ")
    said = "undone" if done else f"{command.error_code}: {command.error}"
    job = jobs.end_steps(tx, job, JobEvent.SUCCEED if done else JobEvent.FAIL, said)
    jobs.end(tx, job, ENDS.get(code, JobEvent.FAIL), code=code, error=error)
    if done or command.error_code == GuestMissing.code:
        _become(tx, cfg, vm, change, change.old, looked=looked)
    else:
        _owe(tx, cfg, vm, change, Phase.REVERTING, f"{change.error}; undo: {said}", VmState.ERROR)


def _settling_ended(
    tx: Tx,
    cfg: Settings,
    job: Job,
    vm: Instance,
    change: Resize,
    command: CommandRow,
    *,
    looked: bool,
) -> None:
    """A confirm or a revert; what has begun is owed until it is done."""
    ahead, other = change.new, change.old
    phase = Phase.CONFIRMING
    if job.kind == REVERT:
        ahead, other, phase = change.old, change.new, Phase.REVERTING
    if command.state is CommandState.SUCCEEDED:
        job = jobs.end_steps(tx, job, JobEvent.SUCCEED, "done")
        jobs.end(tx, job, JobEvent.SUCCEED)
        _become(tx, cfg, vm, change, ahead, looked=looked)
        return
    event, code, error = power.ending(job, command)
    job = jobs.end_steps(tx, job, event, f"{code}: {error}")
    jobs.end(tx, job, event, code=code, error=error)
    if code == ResizeOver.code:
        # Its host knows more than this database, which was put back.
        _become(tx, cfg, vm, change, other, looked=looked)
    elif code == GuestMissing.code:
        _become(tx, cfg, vm, change, ahead, looked=looked)
    elif code == ResizeReverting.code:
        # Begun in what such a database has lost, or under another job: there is no way back.
        _owe(tx, cfg, vm, change, Phase.REVERTING, f"{code}: {error}", vm.vm_state)
    elif command.state is CommandState.NOT_RUN:
        _again(tx, cfg, vm, change)
    else:
        _owe(tx, cfg, vm, change, phase, f"{code}: {error}", vm.vm_state)


def lost(tx: Tx, cfg: Settings, job: Job, _command: CommandRow, *, code: str, error: str) -> None:
    """It was sent to a host of which nothing is heard: its job ends, it is owed."""
    job = jobs.end_steps(tx, job, JobEvent.EXPIRE, f"{code}: {error}")
    jobs.end(tx, job, JobEvent.EXPIRE, code=code, error=error, unconfirmed=True)
    vm = tx.find(Instance, job.instance) if job.instance else None
    if vm is None or vm.job != job.uuid or not vm.live or vm.resize is None:
        return
    phase = Phase.CONFIRMING if job.kind == CONFIRM else Phase.REVERTING
    state = VmState.ERROR if job.kind == RESIZE else vm.vm_state
    _owe(tx, cfg, vm, vm.resize, phase, f"{code}: {error}", state)


def _become(
    tx: Tx, cfg: Settings, vm: Instance, change: Resize, to: Shape, *, looked: bool
) -> None:
    """The VM is of one size again; the claim of the other, and what it named, are given back."""
    growing.shrink(tx, vm, to.vcpus, to.memory_mib)
    if to.root_gib is not None:
        _root_is(tx, vm, to.root_gib)
    for name in {change.old.offering, change.new.offering} - {to.offering, None}:
        tx.remove(NOT_USED, instance=vm.uuid, name=name)
    # What an operator or a report has said of it meanwhile stays.
    state = change.was if vm.vm_state in (VmState.RESIZED, VmState.ERROR) else vm.vm_state
    vm = tx.swap(
        tx.get(Instance, vm.uuid),
        vcpus=to.vcpus,
        memory_mib=to.memory_mib,
        spec=to.spec,
        wishes=to.wishes,
        named=bool(tx.rows(USES_ANY, (Use,), instance=vm.uuid)),
        resize=None,
        resize_at=None,
    )
    tx.event("instance.size", vm.uuid, "manager", f"{vm.name} has {_told(to)}")
    power.settle(tx, cfg, vm, state, looked=looked)


def _again(tx: Tx, cfg: Settings, vm: Instance, change: Resize) -> None:
    """As before: RESIZED, and to be confirmed or reverted."""
    window_s = cfg.manager.resize_confirm_window
    at = tx.now + dt.timedelta(seconds=window_s) if window_s else None
    owed = change.phase is not Phase.RESIZED
    vm = tx.swap(vm, resize_at=tx.now + dt.timedelta(seconds=LATER_S) if owed else at)
    power.settle(tx, cfg, vm, vm.vm_state, looked=True)


def _owe(
    tx: Tx, cfg: Settings, vm: Instance, change: Resize, phase: Phase, why: str, state: VmState
) -> None:
    """It goes on as soon as its host can be told, again and again."""
    wait_s = quarantine.back_off_s(change.tries, BASE_BACK_OFF_S)
    vm = tx.swap(
        vm,
        resize=msgspec.structs.replace(change, phase=phase, tries=change.tries + 1, error=why),
        resize_at=tx.now + dt.timedelta(seconds=wait_s),
    )
    tx.event("instance.resize_owed", vm.uuid, "manager", f"{vm.name}: still {phase}, after {why}")
    power.settle(tx, cfg, vm, state, looked=False, error=f"its resize is {phase}: {why}")


# by the clock


def pursue_due(tx: Tx, cfg: Settings) -> int:
    """Confirm what nobody has confirmed in time, and go on with what is owed; returns how many."""
    due = tx.due(DUE, now=tx.now)
    for vm in due:
        if vm.resize is None or not vm.live or vm.deletion_owed:
            tx.swap(vm, resize_at=None)
            continue
        host = tx.find(Host, vm.host) if vm.host is not None else None
        by_itself = vm.resize.phase is Phase.RESIZED
        held = host is None or not host.session_open or (by_itself and freeze.why(tx) != "")
        if held or vm.task_state is not TaskState.NONE:
            tx.swap(vm, resize_at=tx.now + dt.timedelta(seconds=LATER_S))
            continue
        _go_on(tx, cfg, vm, vm.resize)
    return len(due)


def confirm_by_state(tx: Tx, vm: Instance) -> Instance:
    """An operator has called a resized VM something else: its resize is confirmed by that."""
    if vm.resize is None or vm.resize.phase is not Phase.RESIZED:
        return vm
    change = msgspec.structs.replace(vm.resize, phase=Phase.CONFIRMING)
    return tx.swap(vm, resize=change, resize_at=tx.now)


def _go_on(tx: Tx, cfg: Settings, vm: Instance, change: Resize) -> None:
    """A job of the managers' own."""
    verb = REVERT if change.phase in (Phase.CHANGING, Phase.REVERTING) else CONFIRM
    why, request_ = change.error or "an operator has called it something else", {}
    if change.phase is Phase.RESIZED:
        why = f"nobody has confirmed it in {cfg.manager.resize_confirm_window:g} s"
        request_ = {"by": "resize_confirm_window"}
    wish = Wish(
        job=tx.new_id(),
        operator="manager",
        reason=why,
        request={"verb": verb, "vm": vm.uuid, **request_},
    )
    job = jobs.accept(tx, wish, verb, instance=vm.uuid, host=vm.host)
    vm = tx.swap(vm, resize_at=None)
    _cast(tx, cfg, jobs.start(tx, job), vm, change, COMMANDS[verb])

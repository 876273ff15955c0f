"""Shelve: a VM's guest is stopped, its disks are copied, and then it may leave its host.

It leaves by a tombstone, like everything that must be gone from a host: nothing but its agent's
answer says that it has. A host that is away keeps its guest, and the VM is SHELVED until then.
"""

from __future__ import annotations

import datetime as dt

import msgspec
import sqlalchemy as sa

from common.conf import Settings
from common.errors import GuestIsNewer, WrongState
from common.messages import CommandKind, Result
from common.states import (
    CommandEvent,
    CommandState,
    HostState,
    JobEvent,
    PowerState,
    TaskState,
    TombstoneState,
    VmState,
)
from manager.flows import (
    commands,
    freeze,
    inventory,
    jobs,
    placing,
    power,
    reap,
    restore,
    snapshots,
)
from manager.flows.jobs import Wish
from manager.rules import shelving as rule
from manager.rules import verbs
from manager.store.commands import CommandRow
from manager.store.engine import Tx
from manager.store.hosts import Host
from manager.store.instances import Instance
from manager.store.jobs import Job
from manager.store.statements import Query, among, ask
from manager.store.tombstones import Tombstone

H, I, J = Host.__table__.c, Instance.__table__.c, Job.__table__.c  # noqa: E741 - columns
T = Tombstone.__table__.c
IS_DUE = sa.and_(J.kind == "shelve", among(J.state, jobs.OPEN), J.check_at <= ask("now"))
DUE = Query(Job, IS_DUE, order=[J.check_at], limit=20)
# One whose host is away, or has not told all since it is back, is looked at when that has.
IS_TO_LEAVE = sa.and_(
    I.vm_state == VmState.SHELVED,
    I.task_state == TaskState.NONE,
    I.offload_at <= ask("now"),
    sa.exists().where(
        H.name == I.host,
        H.state == HostState.UP,
        H.session_open,
        H.inventory_session == H.session,
    ),
)
TO_LEAVE = Query(Instance, IS_TO_LEAVE, order=[I.offload_at], limit=20, reads=(Host,))


def request(tx: Tx, cfg: Settings, wish: Wish, vm: Instance, *, offload: bool) -> Job:
    """Accept a shelve; raises what the verb table refuses, and NoSpace.

    `offload`: its guest leaves its host at once, also that of a VM that is SHELVED already.
    """
    verb = verbs.VERBS["shelve"]
    restore.require_none(tx, (vm.host,) if vm.host else ())
    power.require_wanted(vm)
    power.require_settled(vm)
    if verbs.admit(verb, vm.name, vm.vm_state, vm.task_state, vm.job) is not verbs.Admission.CAST:
        return _again(tx, cfg, wish, vm, offload=offload)
    if vm.host is None:
        raise WrongState(f"{vm.name} is on no host: there is nothing to keep", "start it first")
    if vm.snapshot is not None:
        way = f"wait until it is seen again: muster vm show {vm.name}"
        raise WrongState(
            f"{vm.name} still has what was copied of it, and {vm.host} has not shown it since",
            way if vm.snapshot.taken_at is None else f"muster vm start {vm.name}",
        )
    kept = snapshots.begin(tx, vm)
    job = jobs.accept(tx, wish, "shelve", instance=vm.uuid, host=vm.host)
    files = snapshots.files(vm, kept)
    vm = tx.swap(vm, snapshot=kept, task_state=verb.task, job=job.uuid, generation=kept.generation)
    command = commands.issue(
        tx,
        cfg,
        kind=CommandKind.SHELVE_VM,
        instance=vm.uuid,
        host=job.host or "",
        generation=vm.generation,
        job=job.uuid,
        trail=job.trail,
        spec={
            "guest": vm.spec,
            "snapshot": msgspec.to_builtins(files),
            "timeout_s": cfg.libvirt.stop_timeout,
        },
        timeout_s=cfg.manager.create_timeout,
    )
    job = jobs.add_step(tx, job, f"{CommandKind.SHELVE_VM} on {vm.host}", vm.host, command.id)
    return jobs.start(tx, job, deadline_at=command.deadline_at)


def _again(tx: Tx, cfg: Settings, wish: Wish, vm: Instance, *, offload: bool) -> Job:
    """It is shelved already; what is left to do is to have its guest leave its host."""
    job = jobs.start(tx, jobs.accept(tx, wish, "shelve", instance=vm.uuid, host=vm.host))
    if offload and vm.vm_state is VmState.SHELVED and not leaving(tx, vm):
        why = _stays(vm)
        if why:
            raise WrongState(
                f"{vm.name} stays on {vm.host}: {why}", f"muster vm unshelve {vm.name}"
            )
        vm = tx.swap(vm, task_state=TaskState.SHELVING, job=job.uuid)
        _leave(tx, cfg, vm, f"{wish.operator} has asked for it")
        return _wait(tx, cfg, job, vm)
    return jobs.end_at_once(tx, job, f"{vm.name} is {vm.vm_state} already", vm.host)


def command_ended(
    tx: Tx, cfg: Settings, job: Job, command: CommandRow, result: Result | None
) -> None:
    """The disks are copied, or the VM is what it was and what was copied goes again."""
    vm = tx.find(Instance, job.instance) if job.instance else None
    mine = vm is not None and vm.job == job.uuid and vm.live
    if vm is not None and mine and command.state is CommandState.SUCCEEDED:
        _taken(tx, cfg, job, vm, result)
        return
    power.command_ended(tx, cfg, job, command, result)
    if mine and command.published_at is None:
        snapshots.never_begun(tx, tx.get(Instance, job.instance))
    elif mine and result is not None and result.look is not None and result.look.guest is not None:
        vm = tx.get(Instance, job.instance)
        snapshots.seen(tx, cfg, vm, result.look.guest, command.host)


def lost(tx: Tx, cfg: Settings, job: Job, command: CommandRow, *, code: str, error: str) -> None:
    """Nobody says what became of it: what was copied goes when the guest is seen again."""
    power.lost(tx, cfg, job, command, code=code, error=error)


def _taken(tx: Tx, cfg: Settings, job: Job, vm: Instance, result: Result | None) -> None:
    """The snapshot is whole."""
    if vm.snapshot is None:
        raise AssertionError("a VM that is being shelved has a snapshot")
    kept = msgspec.structs.replace(vm.snapshot, taken_at=tx.now)
    told = ", ".join(f"{p.name} {p.seconds:.1f} s" for p in result.phases) if result else ""
    job = jobs.end_steps(tx, job, JobEvent.SUCCEED, told or "done")
    vm = tx.swap(vm, vm_state=VmState.SHELVED, snapshot=kept, error="")
    size = f"{kept.size_gib} GiB, {snapshots.where(kept)}"
    tx.event("instance.shelved", vm.uuid, f"host {vm.host}", f"{vm.name}: {size}", job=job.uuid)
    after_s = cfg.manager.shelved_offload_time
    if job.request.get("offload"):
        after_s = rule.AT_ONCE
    why = _stays(vm)
    if after_s == rule.AT_ONCE and not why:
        _leave(tx, cfg, vm, f"{vm.name} is shelved")
        _wait(tx, cfg, job, vm)
        return
    jobs.end(tx, job, JobEvent.SUCCEED)
    vm = tx.swap(vm, task_state=TaskState.NONE, job=None)
    if why:
        snapshots.overtaken(tx, vm, f"host {vm.host}")
    else:
        tx.swap(vm, offload_at=rule.offload_at(tx.now, after_s))


def _stays(vm: Instance) -> str:
    kept = vm.snapshot
    taken = kept is not None and kept.taken_at is not None
    return rule.stays(taken, kept is not None and kept.overtaken, vm.power_state)


# the guest leaves its host


def leaving(tx: Tx, vm: Instance) -> Tombstone | None:
    """The tombstone of a shelved VM's guest on its host, if that guest is to leave it."""
    stone = reap.at(tx, vm.host, vm.uuid) if vm.host is not None else None
    kept = vm.snapshot
    if stone is None or kept is None or stone.generation < kept.generation:
        return None
    return stone if stone.state is TombstoneState.OPEN else None


def _leave(tx: Tx, cfg: Settings, vm: Instance, why: str) -> None:
    """Have the guest and its disks removed."""
    if vm.host is None or vm.snapshot is None:
        raise AssertionError("a guest that leaves is on a host, and has a snapshot")
    reason = f"offloaded, {why}; its disks are {snapshots.where(vm.snapshot)}"
    stone = reap.bury(
        tx,
        vm,
        vm.host,
        state=TombstoneState.OPEN,
        reason=reason,
        pair=(0, 0),
        # Should it have been used since, by a wish that this database has lost, it must stay.
        up_to=vm.snapshot.generation,
    )
    tx.swap(tx.get(Instance, vm.uuid), offload_at=None)
    reap.issue(tx, cfg, stone, why)


def _wait(tx: Tx, cfg: Settings, job: Job, vm: Instance) -> Job:
    """A job waits for its guest to be gone, but not for ever."""
    job = jobs.add_step(tx, job, f"offload from {vm.host}", vm.host)
    until = tx.now + dt.timedelta(seconds=cfg.manager.command_timeout)
    waits = f"{vm.host} to remove its guest and disks"
    return tx.swap(job, deadline_at=until, check_at=until, waiting_for=waits)


def answered(tx: Tx, command: CommandRow) -> None:
    """A terminate has come back: of a VM that was to leave this host nothing is there any more, or
    a guest that was used since and stays."""
    vm = tx.find(Instance, command.instance)
    if vm is None or not vm.live or vm.snapshot is None or vm.task_state is TaskState.DELETING:
        return
    stone = reap.at(tx, command.host, vm.uuid)
    if command.error_code == GuestIsNewer.code and stone is not None and leaving(tx, vm) == stone:
        snapshots.overtaken(tx, _stay(tx, vm, stone, command.error or ""), f"host {command.host}")
        return
    if stone is None or stone.state is not TombstoneState.CLOSED or vm.deletion_owed:
        return
    here = vm.host == command.host and stone.generation >= vm.snapshot.generation
    if vm.vm_state is VmState.SHELVED and here:
        _gone(tx, vm)
    elif vm.vm_state is VmState.SHELVED_OFFLOADED and vm.host is None and _is_nowhere(tx, vm):
        snapshots.unplace(tx, vm)


def _stay(tx: Tx, vm: Instance, stone: Tombstone, why: str) -> Instance:
    """Take back that a guest is to leave its host; whoever asks for it again says so."""
    command = commands.in_flight(tx, vm.uuid, stone.host, CommandKind.TERMINATE_INSTANCE)
    if command is not None:
        sent = command.state is not CommandState.ACCEPTED
        event = CommandEvent.GIVE_UP if sent else CommandEvent.NOT_RUN
        command, _ = commands.move(tx, command, event, error_code="SUPERSEDED", error=why)
        if sent:
            commands.owe_void(tx, command)
            tx.commands_due = True
    tx.delete(stone)
    tx.event("instance.stays", vm.uuid, "manager", f"{vm.name} stays on {vm.host}: {why}")
    job = tx.find(Job, vm.job) if vm.job is not None else None
    if job is not None and job.state in jobs.OPEN:
        job = jobs.end_steps(tx, job, JobEvent.FAIL, why)
        jobs.end(tx, job, JobEvent.SUCCEED)  # it is shelved
    return tx.swap(tx.get(Instance, vm.uuid), task_state=TaskState.NONE, job=None, offload_at=None)


def after_restore(tx: Tx) -> None:
    """No guest leaves its host by what an older database remembers, but by an operator's word.

    It may run again, by a wish that was lost, and its snapshot be gone.
    """
    tx.change_where(Instance, I.vm_state == VmState.SHELVED, offload_at=None)
    for stone in tx.all(Tombstone, T.state == TombstoneState.OPEN, T.up_to.is_not(None)):
        vm = tx.find(Instance, stone.instance)
        if vm is None or vm.vm_state is not VmState.SHELVED or leaving(tx, vm) != stone:
            continue
        if vm.task_state is not TaskState.DELETING:
            _stay(tx, vm, stone, "the database was restored from a backup")


def _is_nowhere(tx: Tx, vm: Instance) -> bool:
    return all(stone.state is TombstoneState.CLOSED for stone in reap.of(tx, vm.uuid))


def _gone(tx: Tx, vm: Instance) -> None:
    text = f"{vm.name} has left {vm.host}"
    tx.event("instance.offloaded", vm.uuid, f"host {vm.host}", text)
    job = tx.find(Job, vm.job) if vm.job is not None else None
    if job is not None and job.state in jobs.OPEN:
        job = jobs.end_steps(tx, job, JobEvent.SUCCEED, f"{vm.host} answered that it is gone")
        jobs.end(tx, job, JobEvent.SUCCEED)
    vm = let_go(tx, tx.get(Instance, vm.uuid))
    snapshots.unplace(tx, vm)
    # One that was unshelved elsewhere, in what a restored database has lost, is the VM.
    inventory.take_found(tx, tx.get(Instance, vm.uuid))
    for host in inventory.hosts_showing(tx, vm.uuid):
        tx.cast(host, "report_inventory")  # a leftover that runs there is stopped


def let_go(tx: Tx, vm: Instance) -> Instance:
    """The VM is on no host: all that there is of it is its snapshot, and what it holds."""
    if vm.snapshot is None:
        raise AssertionError("a VM that leaves its host has a snapshot")
    placing.release(tx, vm)
    return tx.swap(
        vm,
        host=None,
        last_host=vm.host or vm.last_host,
        vm_state=VmState.SHELVED_OFFLOADED,
        task_state=TaskState.NONE,
        job=None,
        offload_at=None,
        power_state=PowerState.NOSTATE,
        power_session=0,
        power_seq=0,
        power_at=None,
        paused_since=None,
        missing=False,
        missing_since=None,
        missing_reports=0,
    )


def pursue_due(tx: Tx, _cfg: Settings) -> int:
    """End the jobs whose host takes its time: the VM is shelved, and its tombstone goes on."""
    due = tx.due(DUE, now=tx.now)
    for job in due:
        vm = tx.find(Instance, job.instance) if job.instance else None
        if vm is None or vm.job != job.uuid or vm.vm_state is not VmState.SHELVED:
            tx.swap(job, check_at=None)
            continue
        told = f"{vm.host} has not answered yet; it goes on in the background"
        job = jobs.end_steps(tx, job, JobEvent.SUCCEED, told)
        jobs.end(tx, job, JobEvent.SUCCEED)
        tx.swap(vm, task_state=TaskState.NONE, job=None)
    return len(due)


def offload_due(tx: Tx, cfg: Settings) -> int:
    """Have the guests leave whose time has come, unless the fleet is frozen, or the database may
    be an older one; returns how many."""
    if freeze.why(tx) or restore.is_doubtful(tx):
        return 0
    due = tx.due(TO_LEAVE, now=tx.now)
    for vm in due:
        why = _stays(vm)
        if why:
            tx.swap(vm, offload_at=None)
            tx.event("instance.stays", vm.uuid, "manager", f"{vm.name} stays on {vm.host}: {why}")
        else:
            _leave(tx, cfg, vm, "its time has come")
    return len(due)

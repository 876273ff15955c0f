"""Soft delete and restore: the guest is stopped, and the VM kept until its `reclaim_at`.

Where its host can not be asked the VM is marked at once: whatever a report then shows running is
stopped again (rules/power). `delete` accepts the wish and has it pursued here; a stronger delete
takes the job over, `reclaim` deletes what nobody has restored in time.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable

from common.conf import Settings
from common.errors import GuestMissing
from common.messages import CommandKind, Result
from common.states import (
    CommandEvent,
    CommandState,
    JobEvent,
    JobState,
    TaskState,
    VmState,
)
from manager.flows import commands, jobs, limits, notices, power, restore
from manager.flows.jobs import Wish
from manager.rules import deletion as rule
from manager.rules import quarantine, verbs
from manager.store.commands import CommandRow
from manager.store.engine import Tx
from manager.store.hosts import Host
from manager.store.instances import Instance
from manager.store.jobs import Job
from manager.store.statements import Query, among, ask

BASE_BACK_OFF_S = 1.0
RECLAIM = "reclaim"  # who asks for the delete of what nobody has restored in time
DELETING = (TaskState.DELETING, TaskState.SOFT_DELETING)
C, J = CommandRow.__table__.c, Job.__table__.c
I = Instance.__table__.c  # noqa: E741 - the table's columns, as the others
STARTS = Query(
    CommandRow,
    C.instance == ask("instance"),
    C.host == ask("host"),
    C.kind == CommandKind.START_VM.value,
    among(C.state, (*commands.OPEN, CommandState.SUCCEEDED)),
)


def is_keepable(vm: Instance) -> bool:
    """True for a VM of which there is something to restore."""
    between_hosts = vm.vm_state is VmState.BUILDING and vm.host is None
    return vm.reserved and not vm.deletion_owed and not between_hosts


def reclaim_at(tx: Tx, cfg: Settings) -> dt.datetime:
    """Until when a VM that is deleted softly now is kept."""
    keep_s = cfg.manager.reclaim_interval or cfg.manager.soft_delete_keep
    return tx.now + dt.timedelta(seconds=keep_s)


def after_restore(tx: Tx, cfg: Settings, raised: Iterable[str]) -> None:
    """Believe no soft delete that an older database tells of more than it has to.

    All are kept as if they had been deleted now, and a reclaim that had begun is taken back. One
    of which an agent knows later commands (`raised`) was restored or reclaimed in what was lost:
    it is SHUTOFF, or what its host shows.
    """
    for job in tx.all(Job, J.kind == "delete", among(J.state, jobs.OPEN)):
        if job.request.get("by") == RECLAIM:
            take_back(tx, cfg, job, "the database was restored from a backup")
    tx.change_where(Instance, I.vm_state == VmState.SOFT_DELETED, reclaim_at=reclaim_at(tx, cfg))
    for instance in raised:
        vm = tx.find(Instance, instance)
        if vm is None or vm.vm_state is not VmState.SOFT_DELETED or vm.task_state in DELETING:
            continue
        tx.swap(vm, vm_state=VmState.SHUTOFF, reclaim_at=None)
        text = f"{vm.name}: {vm.host} knows later commands of it than this database"
        tx.event("instance.restore", vm.uuid, "manager", text)


def take_back(tx: Tx, cfg: Settings, job: Job, why: str) -> Job:
    """End a reclaim; the VM is kept as if it had been deleted softly now."""
    for command in _end_commands(tx, job, why):
        commands.owe_void(tx, command)
        tx.commands_due = True
    job = jobs.end_steps(tx, job, JobEvent.CANCEL, why)
    job = jobs.end(tx, job, JobEvent.CANCEL, code="CANCELLED", error=why)
    vm = tx.find(Instance, job.instance) if job.instance else None
    if vm is not None and vm.job == job.uuid:
        kept = tx.swap(vm, reclaim_at=reclaim_at(tx, cfg))
        power.settle(tx, cfg, kept, kept.vm_state, looked=True)
    return job


def begin(tx: Tx, wish: Wish, job: Job, vm: Instance) -> Job:
    """The first step of an accepted soft delete; it is pursued by the caller."""
    tx.swap(vm, task_state=TaskState.SOFT_DELETING, job=job.uuid)
    text = f"{vm.name}: {wish.reason or ''}"
    tx.event("instance.soft_delete.start", vm.uuid, wish.operator, text)
    notices.tell(tx, "instance.soft_delete.start", vm, job)
    job = jobs.start(tx, job)
    name = f"{CommandKind.STOP_VM} on {vm.host}" if vm.host is not None else "mark"
    return jobs.add_step(tx, job, name, vm.host)


def done_already(tx: Tx, wish: Wish, vm: Instance) -> Job:
    """A soft delete of what is SOFT_DELETED: until when it is kept does not change."""
    job = jobs.accept(tx, wish, "delete", instance=vm.uuid, host=vm.host, strength=rule.SOFT)
    return jobs.end_at_once(tx, job, f"{vm.name} is {vm.vm_state} already", vm.host)


def pursue(tx: Tx, cfg: Settings, job: Job, vm: Instance, place: rule.Place | None) -> None:
    """Have the guest stopped, or mark the VM where nobody can be asked; the job is held."""
    decision = rule.soft_at_host(place)
    if decision.outcome is rule.Outcome.MARK:
        if not _made(tx, vm):
            _harden(tx, job, f"nothing was made yet that could be kept, and {decision.reason}")
        else:
            _mark(tx, cfg, job, vm, decision.reason, proven=False)
        return
    job, waiting = _stop(tx, cfg, job, tx.get(Instance, vm.uuid), decision.reason)
    if job.deadline_at is not None and tx.now >= job.deadline_at:
        _give_up(tx, cfg, job, tx.get(Instance, vm.uuid), waiting)
        return
    soon = tx.now + dt.timedelta(seconds=max(0.2, cfg.manager.tick_interval))
    tx.swap(job, waiting_for=waiting, check_at=soon)


def _stop(tx: Tx, cfg: Settings, job: Job, vm: Instance, reason: str) -> tuple[Job, str]:
    """Make sure that a stop is on its way; what is waited for, in words."""
    n = _running(job)
    step = job.steps[n]
    command = tx.find(CommandRow, step.command) if step.command else None
    if command is not None and command.state in commands.OPEN:
        return job, reason
    if step.next_try_at is not None and step.next_try_at > tx.now:
        return job, f"try {step.tries + 1} at {step.host}, after: {step.detail}"
    command = commands.issue(
        tx,
        cfg,
        kind=CommandKind.STOP_VM,
        instance=vm.uuid,
        host=step.host or "",
        # Above every command before it: none of those can begin once its agent has this one.
        generation=commands.next_generation(tx, vm.uuid),
        job=job.uuid,
        trail=job.trail,
        spec={"force": False, "timeout_s": cfg.libvirt.stop_timeout},
    )
    return jobs.change_step(tx, job, n, command=command.id, next_try_at=None), reason


def _running(job: Job) -> int:
    return next(n for n, step in enumerate(job.steps) if step.state is JobState.RUNNING)


# how a stop ends


def command_ended(
    tx: Tx, cfg: Settings, job: Job, command: CommandRow, result: Result | None
) -> None:
    """The end of a soft delete's stop, if it is not in a stronger one's hands meanwhile."""
    vm = tx.find(Instance, command.instance)
    floor = (result.floor if result is not None else None) or 0
    if vm is not None and floor > vm.generation:
        # The agent has heard of a newer command than we remember: the next one goes above it.
        vm = tx.swap(vm, generation=floor)
    held = _held(tx, job, command)
    if held is None or vm is None or vm.job != job.uuid or not vm.live:
        return
    job = held
    answered = f"{command.host} answered that "
    if command.state is CommandState.SUCCEEDED:
        made = _made(tx, vm)
        if made is None:
            _again(tx, job, "the end of its first start is not known yet")
        elif made:
            _mark(tx, cfg, job, vm, f"{answered}it is off", proven=True)
        else:
            _harden(tx, job, "its first start has failed: there is nothing to keep")
    elif command.error_code == GuestMissing.code and not _made(tx, vm):
        _harden(tx, job, f"{answered}nothing was made")
    elif command.error_code == GuestMissing.code:
        _mark(tx, cfg, job, vm, f"{answered}there is no guest of it", proven=True)
    else:
        _again(tx, job, f"{command.error_code}: {command.error}", at_once=floor > 0)


def lost(tx: Tx, _cfg: Settings, job: Job, command: CommandRow, *, code: str, error: str) -> None:
    """Nobody is there to say what became of the stop: it is asked for again, or the VM marked."""
    held = _held(tx, job, command)
    if held is not None:
        _again(tx, held, f"{code}: {error}")


def _held(tx: Tx, job: Job, command: CommandRow) -> Job | None:
    """The job, held, while it is soft and waits for this very command."""
    held = tx.lock(Job, job.uuid)
    if held is None or held.state not in jobs.OPEN or held.strength != rule.SOFT:
        return None
    return held if held.steps[_running(held)].command == command.id else None


def _made(tx: Tx, vm: Instance) -> bool | None:
    """Whether a guest was made that can be kept; None until its first start has ended."""
    if vm.vm_state is not VmState.BUILDING:
        return True
    starts = tx.ask(STARTS, instance=vm.uuid, host=vm.host)
    if any(row.state is CommandState.SUCCEEDED for row in starts):
        return True
    return None if starts else False


def _again(tx: Tx, job: Job, detail: str, *, at_once: bool = False) -> None:
    """The next stop, above this one, after a while."""
    n = _running(job)
    tries = job.steps[n].tries
    wait_s = 0.0 if at_once else quarantine.back_off_s(tries, BASE_BACK_OFF_S)
    job = jobs.change_step(
        tx,
        job,
        n,
        tries=tries + 1,
        detail=detail,
        next_try_at=tx.now + dt.timedelta(seconds=wait_s),
    )
    tx.swap(job, check_at=tx.now)


# what it comes to


def _mark(tx: Tx, cfg: Settings, job: Job, vm: Instance, text: str, *, proven: bool) -> None:
    """SOFT_DELETED. `proven`: its agent has looked, and the guest is off."""
    _end_commands(tx, job, "the VM is SOFT_DELETED")
    job = jobs.end_steps(tx, job, JobEvent.SUCCEED, text)
    until = reclaim_at(tx, cfg)
    vm = power.settle(tx, cfg, tx.swap(vm, reclaim_at=until), VmState.SOFT_DELETED, looked=proven)
    told = f"{vm.name}: {text}; it can be restored until {until:%Y-%m-%dT%H:%M:%SZ}"
    tx.event("instance.soft_delete.end", vm.uuid, "manager", told)
    about = "instance.soft_delete.end"
    notices.tell(tx, about, vm, job, text=text, proven=proven, reclaim_at=until.isoformat())
    jobs.end(tx, job, JobEvent.SUCCEED)
    host = tx.find(Host, vm.host) if vm.host is not None and not proven else None
    if host is not None and host.session_open:
        # An agent lives on a host that an operator calls down: what it shows is stopped again.
        tx.cast(host.name, "report_inventory")


def _harden(tx: Tx, job: Job, why: str) -> None:
    """There is nothing that could be restored: the next look at the job takes it for a hard one."""
    job = jobs.end_steps(tx, job, JobEvent.CANCEL, why)
    tx.swap(job, strength=rule.HARD, check_at=tx.now)


def _give_up(tx: Tx, cfg: Settings, job: Job, vm: Instance, waiting: str) -> None:
    """After delete_timeout: the VM is what it was, and its guest as its host reports it."""
    made = _made(tx, vm)
    if made is None:
        # Its first start has a limit of its own, and only its end tells what there is to keep.
        soon = tx.now + dt.timedelta(seconds=max(0.2, cfg.manager.tick_interval))
        tx.swap(job, waiting_for=waiting, check_at=soon)
        return
    if not made:
        _harden(tx, job, f"nothing was made that could be kept, and {waiting}")
        return
    for command in _end_commands(tx, job, "its soft delete has run out of time"):
        commands.owe_void(tx, command)
        tx.commands_due = True
    why = f"not stopped within {cfg.manager.delete_timeout:g} s ({waiting})"
    job = jobs.end_steps(tx, job, JobEvent.FAIL, why)
    notices.tell(tx, "instance.soft_delete.error", vm, job, error=True, text=why)
    tx.event("instance.soft_delete.error", vm.uuid, "manager", f"{vm.name}: {why}")
    error = f"{why}; nothing was deleted, ask again"
    jobs.end(tx, job, JobEvent.FAIL, code="DELETE_TIMEOUT", error=error)
    state = VmState.ACTIVE if vm.vm_state is VmState.BUILDING else vm.vm_state
    power.settle(tx, cfg, vm, state, looked=True)


def _end_commands(tx: Tx, job: Job, why: str) -> list[CommandRow]:
    """Nobody waits for its stop any more; returns what its agent may have received."""
    sent = []
    for command in commands.open_of_job(tx, job.uuid):
        published = command.state is not CommandState.ACCEPTED
        event = CommandEvent.GIVE_UP if published else CommandEvent.NOT_RUN
        moved, _ = commands.move(tx, command, event, error_code="SUPERSEDED", error=why)
        sent += [moved] if published else []
    return sent


# restore


def restore_vm(tx: Tx, wish: Wish, vm: Instance) -> Job:
    """SHUTOFF again, within the limits of its project; its host is not asked.

    Raises WrongState, TaskUnderWay, QuotaExceeded or DbRolledBack.
    """
    restore.require_none(tx, (vm.host,) if vm.host else ())
    power.require_wanted(vm)
    verb = verbs.VERBS["restore"]
    admission = verbs.admit(verb, vm.name, vm.vm_state, vm.task_state, vm.job)
    if admission is verbs.Admission.ALREADY_THERE:
        job = jobs.accept(tx, wish, "restore", instance=vm.uuid, host=vm.host)
        return jobs.end_at_once(tx, job, f"{vm.name} is {vm.vm_state} already", None)
    size = {"instances": 1, "vcpus": vm.vcpus, "memory_mib": vm.memory_mib}
    limits.reserve(tx, vm.project, size)
    tx.swap(vm, vm_state=verb.success, reclaim_at=None, error="")
    job = jobs.accept(tx, wish, "restore", instance=vm.uuid, host=vm.host)
    tx.event("instance.restore", vm.uuid, wish.operator, f"{vm.name}: {wish.reason or ''}")
    for event in ("instance.restore.start", "instance.restore.end"):
        notices.tell(tx, event, vm, job)
    return jobs.end_at_once(tx, job, f"{vm.vm_state} -> {verb.success}", None, "done")

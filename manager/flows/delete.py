"""Delete: to every host where the VM may be, remote or DB-only, until it is gone.

The rules decide row by row (rules/deletion); this story writes what they ask for. A delete of an
unreachable host's VM leaves a tombstone in the transaction that removes the record.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
import sqlalchemy as sa

from common.conf import Settings
from common.errors import AlreadyDeleted, NotFound, VmProtected
from common.messages import CommandKind, Outcome, Result
from common.states import (
    CommandEvent,
    CommandState,
    HostState,
    JobEvent,
    JobState,
    PowerState,
    TaskState,
    TombstoneState,
    VmState,
)
from manager.flows import (
    commands,
    deploy,
    freeze,
    holdings,
    inventory,
    jobs,
    leftovers,
    made,
    notices,
    placing,
    reap,
    restore,
    soft,
)
from manager.flows.jobs import Wish
from manager.rules import deletion as rule
from manager.rules import quarantine
from manager.store.commands import CommandRow
from manager.store.engine import Tx
from manager.store.hosts import Host
from manager.store.instances import Instance
from manager.store.jobs import Job
from manager.store.statements import Query, among, ask

C = CommandRow.__table__.c
H = Host.__table__.c
I = Instance.__table__.c  # noqa: E741 - the table's columns, as C and H
J = Job.__table__.c
MASS_SILENT = Query(Host, H.mass_silent, H.enabled, limit=1)
# Those of tombstones and clean-up items are nobody's wish, and wanted whatever becomes of the VM.
UNPUBLISHED = Query(
    CommandRow,
    C.instance == ask("instance"),
    C.state == CommandState.ACCEPTED,
    C.job.is_not(None),
)
STARTED_AT = (
    sa.select(C.host, sa.func.max(C.generation))
    .where(
        C.instance == ask("instance"),
        C.kind == CommandKind.START_VM.value,
        C.published_at.is_not(None),
        C.state != CommandState.NOT_RUN,
    )
    .group_by(C.host)
)
IS_DUE = sa.and_(J.kind == "delete", among(J.state, jobs.OPEN), J.check_at <= ask("now"))
DUE = Query(Job, IS_DUE, order=[J.check_at], limit=20)
# Whatever an operator says that its state is.
IS_OWED = I.deletion_owed
OWED = Query(Instance, IS_OWED, limit=100)
DELETING = (TaskState.DELETING, TaskState.SOFT_DELETING)


class Foreseen(msgspec.Struct, frozen=True):
    """What a delete of this VM would do at one host, for --dry-run."""

    vm: str
    name: str
    host: str | None
    decision: str
    row: int
    reason: str


def request(
    tx: Tx,
    cfg: Settings,
    wish: Wish,
    vm: Instance | None,
    *,
    force: bool,
    softly: bool = False,
) -> Job:
    """Accept a delete; raises NotFound, AlreadyDeleted, VmProtected, or what a soft one is refused
    for."""
    strength = _strength(cfg, vm, force=force, softly=softly)
    current = _delete_under_way(tx, vm)
    places = _places(tx, vm) if vm is not None else []
    decision = _admit(tx, vm, strength, current, places)
    if vm is None or decision.outcome is rule.Outcome.NOT_FOUND:
        raise NotFound("no such VM", "muster vm list shows all")
    if decision.outcome is rule.Outcome.ALREADY_DELETED:
        raise AlreadyDeleted(f"{vm.name} ({vm.uuid}) was deleted already", "nothing to do")
    if decision.outcome is rule.Outcome.PROTECTED:
        raise VmProtected(
            f"{vm.name} is protected from deletion",
            f"if it is meant: muster vm set {vm.name} --unprotected --reason TEXT",
        )
    if current is not None:
        if strength > current.strength or "by" in current.request:
            # What only the clock wanted is somebody's wish from now on: no freeze holds it up.
            asked = {key: value for key, value in current.request.items() if key != "by"}
            current = tx.swap(
                current,
                strength=max(strength, current.strength),
                request=asked,
                trail=current.trail + wish.trail(tx.now),
            )
        jobs.accept_same(tx, wish, current)
        pursue(tx, cfg, current)
        return tx.get(Job, current.uuid)
    if not force:
        restore.require_none(tx, places)
    if decision.outcome is rule.Outcome.SOFT_ALREADY:
        return soft.done_already(tx, wish, vm)
    keep = decision.outcome is rule.Outcome.SOFT
    if keep:
        rule.admit_soft(vm.name, vm.vm_state, vm.task_state, vm.job)
    job = jobs.accept(
        tx,
        wish,
        "delete",
        instance=vm.uuid,
        host=vm.host,
        strength=strength if keep else max(strength, rule.HARD),
        deadline_at=tx.now + dt.timedelta(seconds=cfg.manager.delete_timeout),
    )
    _withdraw_unpublished(tx, vm)
    if keep:
        job = soft.begin(tx, wish, job, vm)
    else:
        job = _begin(tx, job, vm, places, wish.operator, wish.reason or "")
    pursue(tx, cfg, job)
    return tx.get(Job, job.uuid)


def foresee(
    tx: Tx, cfg: Settings, vm: Instance, *, force: bool, softly: bool = False
) -> list[Foreseen]:
    """The decision per host, changing nothing; raises what a soft delete is refused for."""
    strength = _strength(cfg, vm, force=force, softly=softly)
    places = _places(tx, vm)
    decision = _admit(tx, vm, strength, _delete_under_way(tx, vm), places)
    if decision.outcome is rule.Outcome.SOFT:
        rule.admit_soft(vm.name, vm.vm_state, vm.task_state, None)
        decision = rule.soft_at_host(_host_of(tx, vm))
    if decision.outcome not in (rule.Outcome.GO_ON, rule.Outcome.TAKE_OVER):
        outcome = decision.outcome.value
        return [Foreseen(vm.uuid, vm.name, vm.host, outcome, decision.row, decision.reason)]
    return [
        Foreseen(vm.uuid, vm.name, host, found.outcome.value, found.row, found.reason)
        for host in places
        for found in [_decide(tx, host, forced=force)]
    ]


def _strength(cfg: Settings, vm: Instance | None, *, force: bool, softly: bool) -> int:
    state = vm.vm_state if vm is not None else None
    interval_s = cfg.manager.reclaim_interval
    return rule.strength(state, force=force, soft=softly, interval_s=interval_s)


def _begin(tx: Tx, job: Job, vm: Instance, places: list[str], who: str, why: str) -> Job:
    """A step for each place where the VM may be; they are pursued by the caller."""
    tx.swap(vm, task_state=TaskState.DELETING, job=job.uuid)
    tx.event("instance.delete.start", vm.uuid, who, f"{vm.name}: {why}")
    notices.tell(tx, "instance.delete.start", vm, job, hosts=places)
    job = jobs.start(tx, job)
    for host in places:
        job = jobs.add_step(tx, job, f"{CommandKind.TERMINATE_INSTANCE} on {host}", host)
    return job


def _take_over(tx: Tx, cfg: Settings, job: Job, vm: Instance) -> Job:
    """A soft delete becomes a hard one; the terminates supersede a stop that has not begun."""
    for command in commands.open_of_job(tx, job.uuid):
        if command.state is CommandState.ACCEPTED:
            why = "taken over by a hard delete before it was published"
            commands.move(tx, command, CommandEvent.NOT_RUN, error_code="SUPERSEDED", error=why)
    job = jobs.end_steps(tx, job, JobEvent.CANCEL, "taken over by a hard delete")
    deadline = tx.now + dt.timedelta(seconds=cfg.manager.delete_timeout)
    asked = job.trail[-1]
    job = tx.swap(job, deadline_at=deadline)
    return _begin(tx, job, vm, _places(tx, vm), asked.source, asked.text)


def pursue(tx: Tx, cfg: Settings, job: Job, under_way: list[Job] | None = None) -> None:
    """Do what the table asks for at every host that is not settled yet; end the job when all are.

    Run again and again: at acceptance, on every answer, when a host goes DOWN, and by the clock.
    `under_way`: the VM's open jobs, where they are held already.
    """
    # Held before its steps are read: two who pursue it at once would both issue a terminate.
    held = tx.lock(Job, job.uuid)
    vm = tx.find(Instance, job.instance) if job.instance else None
    if held is None or held.state not in jobs.OPEN or vm is None:
        return
    if not vm.live:
        _is_gone(tx, held)
        return
    if held.strength == rule.SOFT:
        soft.pursue(tx, cfg, held, vm, _host_of(tx, vm))
        return
    if vm.task_state is TaskState.SOFT_DELETING:
        held = _take_over(tx, cfg, held, vm)
    # What nobody has asked for waits for the end of a freeze, and its time does not run.
    why = freeze.why(tx) if "by" in held.request else ""
    job, waiting, frozen = held, [], why != ""
    for n, step in enumerate(job.steps):
        if step.state is not JobState.RUNNING or step.host is None:
            continue
        decision = _decide(tx, step.host, forced=job.strength == rule.FORCED)
        if decision.outcome is rule.Outcome.DB_ONLY:
            vm = tx.get(Instance, vm.uuid)
            reap.bury(
                tx, vm, step.host, state=TombstoneState.OPEN, reason=decision.reason, pair=(0, 0)
            )
            job = jobs.end_step(tx, job, n, JobEvent.SUCCEED, f"DB-only: {decision.reason}")
        else:
            told = f"{why}; what nobody has asked for waits for muster unfreeze" if why else ""
            job, awaited = _terminate(tx, cfg, job, n, told or decision.reason)
            waiting.append(awaited)
            frozen = frozen or decision.outcome is rule.Outcome.FROZEN
    if not waiting:
        _finish(tx, cfg, job, tx.get(Instance, vm.uuid), under_way)
    elif job.deadline_at is not None and tx.now >= job.deadline_at and not frozen:
        _give_up(tx, cfg, job, tx.get(Instance, vm.uuid), waiting)
    else:
        soon = tx.now + dt.timedelta(seconds=max(0.2, cfg.manager.tick_interval))
        job = tx.swap(job, waiting_for="; ".join(waiting), check_at=soon)
        if frozen:  # its time does not run
            tx.swap(job, deadline_at=tx.now + dt.timedelta(seconds=cfg.manager.delete_timeout))


def command_ended(
    tx: Tx, cfg: Settings, command: CommandRow, result: Result, pair: tuple[int, int]
) -> None:
    """An agent's answer to a delete's terminate."""
    # Held before one is changed: the clock may be pursuing it, and one of the two would be undone.
    under_way = jobs.hold_open_of(tx, command.instance)
    job = next((job for job in under_way if job.uuid == command.job), None)
    if job is None:
        return
    vm = tx.find(Instance, command.instance)
    n = next((n for n, s in enumerate(job.steps) if s.command == command.id), None)
    if vm is None or n is None:
        return
    step = job.steps[n]
    if result.outcome is Outcome.SUCCEEDED:
        reap.bury(
            tx,
            vm,
            command.host,
            state=TombstoneState.CLOSED,
            reason=f"deleted by job {job.uuid}",
            pair=pair,
        )
        text = f"{command.host} answered that it is gone"
        job = jobs.end_step(tx, job, n, JobEvent.SUCCEED, text)
    else:
        wait_s = quarantine.back_off_s(step.tries, reap.BASE_BACK_OFF_S)
        if result.floor is not None:
            wait_s = 0.0
            if result.floor > vm.generation:
                tx.swap(vm, generation=result.floor)
        job = jobs.change_step(
            tx,
            job,
            n,
            tries=step.tries + 1,
            detail=f"{result.error_code}: {result.error}",
            next_try_at=tx.now + dt.timedelta(seconds=wait_s),
        )
    pursue(tx, cfg, job, under_way)


def pursue_due(tx: Tx, cfg: Settings) -> int:
    """Look again at the deletes whose time has come; returns how many."""
    due = tx.due(DUE, now=tx.now)
    for job in due:
        pursue(tx, cfg, job)
    return len(due)


def settle_owed(tx: Tx, cfg: Settings) -> None:
    """Deletions owed after their job gave up: end the record once every host has answered."""
    for vm in tx.ask(OWED):
        open_places = 0
        for host in _places(tx, vm):
            stone = reap.at(tx, host, vm.uuid)
            if stone is not None and stone.state is TombstoneState.CLOSED:
                continue
            if stone is None:
                why = "seen while its deletion was owed"
                stone = reap.bury(tx, vm, host, state=TombstoneState.OPEN, reason=why, pair=(0, 0))
                reap.issue(tx, cfg, stone, why)
            decision = _decide(tx, host, forced=False)
            open_places += decision.outcome is not rule.Outcome.DB_ONLY
        if not open_places:
            _forget(tx, cfg, tx.get(Instance, vm.uuid), "the deletion that was owed is done")


def _admit(
    tx: Tx, vm: Instance | None, strength: int, current: Job | None, places: list[str]
) -> rule.Decision:
    down = any(_place(tx, host, forced=False).state is HostState.DOWN for host in places)
    return rule.admit(
        rule.Wish(
            vm_state=vm.vm_state if vm else None,
            strength=strength,
            protected=vm.protected if vm else False,
            in_flight=current.strength if current else None,
            any_host_down=down,
            hosts=len(places),
            last_host=vm.last_host if vm else None,
            keepable=vm is not None and soft.is_keepable(vm),
        )
    )


def _delete_under_way(tx: Tx, vm: Instance | None) -> Job | None:
    if vm is None or vm.job is None or vm.task_state not in DELETING:
        return None
    job = tx.find(Job, vm.job)
    return job if job is not None and job.state in jobs.OPEN else None


def _places(tx: Tx, vm: Instance) -> list[str]:
    """Every host where the VM may be: its own, those that a start went to, those that show it."""
    started = {
        host
        for host, generation in tx.rows(STARTED_AT, instance=vm.uuid)
        if host == vm.host or not _is_proven_gone(tx, host, vm.uuid, generation)
    }
    places = started | set(inventory.hosts_showing(tx, vm.uuid))
    if vm.host is not None:
        places.add(vm.host)
    return sorted(places)


def _is_proven_gone(tx: Tx, host: str, instance: str, generation: int) -> bool:
    """True when its agent has answered that nothing up to this generation is or ever will be."""
    stone = reap.at(tx, host, instance)
    closed = stone is not None and stone.state is TombstoneState.CLOSED
    return closed and stone is not None and stone.generation >= generation


def _host_of(tx: Tx, vm: Instance) -> rule.Place | None:
    return _place(tx, vm.host, forced=False) if vm.host is not None else None


def _decide(tx: Tx, host: str, *, forced: bool) -> rule.Decision:
    """Rows 6 to 9 for one host, as far as a freeze lets them."""
    decision = rule.at_host(_place(tx, host, forced=forced))
    if forced or decision.outcome is not rule.Outcome.DB_ONLY:
        return decision
    return rule.unless_frozen(decision, freeze.why(tx))


def _place(tx: Tx, name: str, *, forced: bool) -> rule.Place:
    host = tx.find(Host, name)
    if host is None:
        return rule.Place(name, known=False, state=HostState.DOWN, reason="", forced=forced)
    mass = tx.ask_first(MASS_SILENT) is not None
    return rule.Place(
        name,
        known=True,
        state=host.state,
        reason=host.reason,
        blind=host.blind,
        mass_silence=mass and (host.mass_silent or not host.session_open),
        forced=forced,
        operator_down=host.forced_down or host.fenced,
    )


def _terminate(tx: Tx, cfg: Settings, job: Job, n: int, reason: str) -> tuple[Job, str]:
    """Make sure a terminate is on its way to the step's host; what is waited for, in words."""
    step = job.steps[n]
    if step.host is None or job.instance is None:
        raise AssertionError("a delete's step has a host and its job an instance")
    command = tx.find(CommandRow, step.command) if step.command else None
    if command is not None and command.state in commands.OPEN:
        return job, reason
    if step.next_try_at is not None and step.next_try_at > tx.now:
        return job, f"try {step.tries + 1} at {step.host}, after: {step.detail}"
    generation = commands.next_generation(tx, job.instance)
    vm = tx.get(Instance, job.instance)
    command = commands.issue(
        tx,
        cfg,
        kind=CommandKind.TERMINATE_INSTANCE,
        instance=job.instance,
        host=step.host,
        generation=generation,
        job=job.uuid,
        trail=job.trail,
        spec=made.spec(vm.uuid, made.on(vm, step.host)),
        timeout_s=made.timeout_s(cfg, made.on(vm, step.host)),
    )
    return jobs.change_step(tx, job, n, command=command.id, next_try_at=None), reason


def _withdraw_unpublished(tx: Tx, vm: Instance) -> None:
    """Take back what no agent can have seen; what was published the higher generation voids."""
    for command in tx.ask(UNPUBLISHED, instance=vm.uuid):
        moved, changed = commands.move(
            tx,
            command,
            CommandEvent.NOT_RUN,
            error_code="SUPERSEDED",
            error="withdrawn by a delete before it was published",
        )
        if changed and moved.job is not None:
            other = tx.get(Job, moved.job)
            other = jobs.end_steps(tx, other, JobEvent.CANCEL, "superseded by a delete")
            jobs.end(tx, other, JobEvent.CANCEL, code="SUPERSEDED", error="the VM is being deleted")


def _finish(tx: Tx, cfg: Settings, job: Job, vm: Instance, under_way: list[Job] | None) -> None:
    text = "; ".join(s.detail for s in job.steps) or "it was on no host"
    if not job.steps and vm.vm_state is VmState.SHELVED_OFFLOADED:
        text += f", its network was released at {vm.last_host}"
    _forget(tx, cfg, vm, text, job, under_way)
    jobs.end(tx, tx.get(Job, job.uuid), JobEvent.SUCCEED)


def _is_gone(tx: Tx, job: Job) -> None:
    """A delete of what was deleted meanwhile has what it wanted."""
    job = jobs.end_steps(tx, job, JobEvent.SUCCEED, "the VM was deleted meanwhile")
    jobs.end(tx, job, JobEvent.SUCCEED)


def _forget(
    tx: Tx,
    cfg: Settings,
    vm: Instance,
    text: str,
    by: Job | None = None,
    under_way: list[Job] | None = None,
) -> None:
    """Remove the record: DELETED, off its host, and what nothing holds back is given back.

    `by`: the delete that comes to its end with it, and is ended by the caller.
    """
    stones = reap.of(tx, vm.uuid)
    proven = all(stone.state is TombstoneState.CLOSED for stone in stones)
    changes: dict[str, Any] = {
        "vm_state": VmState.DELETED,
        "task_state": TaskState.NONE,
        "power_state": PowerState.NOSTATE,
        "job": None,
        "host": None,
        "last_host": vm.host or vm.last_host,
        "missing": False,
        "deletion_owed": False,
        "resize": None,
        "resize_at": None,
        "reclaim_at": None,
        "deleted_at": tx.now,
        "terminated_at": tx.now if proven else None,
    }
    job = vm.job
    placing.release(tx, vm)
    if vm.named:
        tx.remove(deploy.USED_BY, instance=vm.uuid)
    vm = tx.swap(vm, **changes)
    leftovers.forget(tx, cfg, vm)
    holdings.release(tx, vm.uuid, stones)
    tx.event("instance.delete.end", vm.uuid, "manager", f"{vm.name}: {text}")
    deleted_by = tx.find(Job, job) if job is not None else None
    notices.tell(tx, "instance.delete.end", vm, deleted_by, text=text, proven=proven)
    for other in jobs.open_of(tx, vm.uuid) if under_way is None else under_way:
        this = by is not None and other.uuid == by.uuid
        if this and not any(step.state is JobState.CANCELLED for step in other.steps):
            continue
        for command in commands.open_of_job(tx, other.uuid):
            if this and command.kind == CommandKind.TERMINATE_INSTANCE:
                continue
            # Only its agent could say that a published one did not run.
            sent = command.state is not CommandState.ACCEPTED
            event = CommandEvent.GIVE_UP if sent else CommandEvent.NOT_RUN
            commands.move(tx, command, event, error_code="SUPERSEDED", error="the VM was deleted")
        if this:
            continue
        if other.kind == "delete":
            _is_gone(tx, other)
            continue
        other = jobs.end_steps(tx, other, JobEvent.CANCEL, "the VM was deleted")
        jobs.end(tx, other, JobEvent.CANCEL, code="SUPERSEDED", error="the VM was deleted")


def _give_up(tx: Tx, cfg: Settings, job: Job, vm: Instance, waiting: list[str]) -> None:
    """After delete_timeout: the job fails, the deletion stays owed, its tombstones go on."""
    why = "; ".join(waiting)
    for n, step in enumerate(job.steps):
        if step.state is JobState.RUNNING and step.host is not None:
            reap.bury(
                tx,
                vm,
                step.host,
                state=TombstoneState.OPEN,
                reason=f"owed since the delete timed out: {why}",
                pair=(0, 0),
            )
            job = jobs.end_step(tx, job, n, JobEvent.FAIL, f"not answered in time: {why}")
    tx.swap(
        tx.get(Instance, vm.uuid),
        vm_state=VmState.ERROR,
        task_state=TaskState.NONE,
        job=None,
        deletion_owed=True,
        error=f"deletion owed: {why}",
    )
    tx.event("instance.delete.error", vm.uuid, "manager", f"{vm.name}: deletion owed: {why}")
    notices.tell(tx, "instance.delete.error", vm, job, error=True, text=why)
    jobs.end(
        tx,
        tx.get(Job, job.uuid),
        JobEvent.FAIL,
        code="DELETE_TIMEOUT",
        error=f"no answer within {cfg.manager.delete_timeout:g} s ({why}); it goes on in the"
        " background",
    )

"""A VM's first start: a host is claimed and told to make the guest, or the next one is tried.

A host that refuses is left out; a start that fails has been undone by its own agent. Where a guest
may have been left behind, nothing is tried elsewhere: a tombstone and quarantine stay. At the final
failure all that was reserved is given back.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

import msgspec
import sqlalchemy as sa

from common.conf import Settings
from common.errors import NoValidHost, OutcomeUnknown, StaleCommand
from common.messages import CommandKind, GuestSpec, RbdTarget, Result
from common.model import Kind
from common.states import (
    CommandState,
    JobEvent,
    JobState,
    PowerState,
    TaskState,
    TombstoneState,
    VmState,
)
from manager.flows import (
    commands,
    holdings,
    inventory,
    jobs,
    made,
    placing,
    power,
    reap,
    restore,
    snapshots,
)
from manager.flows import model as nouns
from manager.rules import retry as rule
from manager.store.commands import CommandRow
from manager.store.engine import Tx
from manager.store.instances import Instance
from manager.store.jobs import Job
from manager.store.statements import Query, among, ask
from manager.store.volumes import Volume

TOLD = 200  # hosts that a job remembers the reasons of
NEVER_RUN = ("VOIDED", "EXPIRED")
J = Job.__table__.c
IS_DUE = sa.and_(
    among(J.kind, ("create", "start", "unshelve")),
    among(J.state, jobs.OPEN),
    J.check_at <= ask("now"),
)
DUE = Query(Job, IS_DUE, order=[J.check_at], limit=20)


def place(tx: Tx, cfg: Settings, job: Job, vm: Instance, avoid: Mapping[str, str]) -> Job:
    """Claim a host and cast start_vm to it."""
    return begin(tx, cfg, job, vm, placing.claim(tx, cfg, snapshots.bound(tx, vm), avoid))


def begin(tx: Tx, cfg: Settings, job: Job, vm: Instance, placed: placing.Placed) -> Job:
    """Cast start_vm to the host that was claimed."""
    job = jobs.add_step(tx, job, "place", placed.host)
    n = len(job.steps) - 1
    why = dict(placed.reasons)
    job = jobs.change_step(tx, job, n, hosts=dict(list(why.items())[:TOLD]))
    job = jobs.end_step(tx, job, n, JobEvent.SUCCEED, why.get(placed.host, ""))
    guest = _stored(tx, vm, placed)
    generation = vm.generation + 1
    vm = tx.swap(
        vm, host=placed.host, generation=generation, spec=msgspec.to_builtins(guest), job=job.uuid
    )
    return _cast(tx, cfg, job, vm, placed.host, _folders(tx, placed))


def _folders(tx: Tx, placed: placing.Placed) -> dict[str, str]:
    """Of the pools that its disks are put into, by their names; those in Ceph have none."""
    pools = {pool for pool in placed.pools if pool is not None}
    paths = {pool: nouns.find(tx, Kind.POOL, pool).path for pool in sorted(pools)}
    return {pool: path for pool, path in paths.items() if path is not None}


def _stored(tx: Tx, vm: Instance, placed: placing.Placed) -> GuestSpec:
    """The guest with its disks in the pools that were chosen."""
    guest = msgspec.convert(vm.spec, type=GuestSpec)
    if not vm.wishes.disks:
        return guest
    disks = list(guest.disks)
    for wish, pool in zip(vm.wishes.disks, placed.pools, strict=True):
        folder = rbd = None
        if pool is not None:
            noun = nouns.find(tx, Kind.POOL, pool)
            folder = noun.path
            if noun.rbd_pool is not None:
                # Named once it is known which guest it is for.
                rbd = RbdTarget(pool=noun.rbd_pool, image="muster", monitors=noun.monitors)
        disks[wish.n] = msgspec.structs.replace(disks[wish.n], folder=folder, rbd=rbd)
        volume = tx.find(Volume, vm.uuid, wish.n)
        if volume is not None:
            tx.put(volume, pool=pool, host=placed.host)
    return msgspec.structs.replace(guest, disks=tuple(disks))


def _cast(
    tx: Tx,
    cfg: Settings,
    job: Job,
    vm: Instance,
    host: str,
    folders: dict[str, str] | None = None,
) -> Job:
    vm = made.record(tx, cfg, vm, host, folders)
    command = commands.issue(
        tx,
        cfg,
        kind=CommandKind.START_VM,
        instance=vm.uuid,
        host=host,
        generation=vm.generation,
        job=job.uuid,
        trail=job.trail,
        spec={"guest": snapshots.spec_from(vm), "create": True},
        timeout_s=cfg.manager.create_timeout if vm.wishes.disks or vm.named else None,
    )
    job = jobs.add_step(tx, job, f"{CommandKind.START_VM} on {host}", host, command.id)
    return tx.swap(job, host=host, deadline_at=command.deadline_at, check_at=None, waiting_for="")


def pursue_due(tx: Tx, cfg: Settings) -> int:
    """Try the next host for VMs that one has refused; returns how many."""
    due = tx.due(DUE, now=tx.now)
    for job in due:
        vm = tx.find(Instance, job.instance) if job.instance else None
        if vm is None or vm.job != job.uuid or not vm.live:
            tx.swap(job, check_at=None)
            continue
        left_at = unclean(tx, vm.uuid)
        if left_at and job.deadline_at is not None and tx.now < job.deadline_at:
            soon = tx.now + dt.timedelta(seconds=max(0.2, cfg.manager.tick_interval))
            told = f"{left_at} to answer that nothing of {vm.name} is left there"
            tx.swap(job, check_at=soon, waiting_for=told)
            continue
        if left_at:
            told = f"{left_at} has not answered that nothing of {vm.name} is left there"
            _fail(tx, job, vm, JobEvent.FAIL, code=OutcomeUnknown.code, error=told)
            continue
        if inventory.take_found(tx, vm):
            continue
        if told := restore.untold(tx, cfg, job.accepted_at):
            soon = tx.now + dt.timedelta(seconds=max(0.2, cfg.manager.tick_interval))
            tx.swap(job, check_at=soon, waiting_for=told)
            continue
        try:
            place(tx, cfg, job, vm, _refused(job))
        except NoValidHost as exc:
            _fail(tx, job, vm, JobEvent.FAIL, code=exc.code, error=exc.message)
    return len(due)


def unclean(tx: Tx, instance: str) -> str:
    """A host where a guest of the VM may be running still."""
    stones = [s for s in reap.of(tx, instance) if s.state is TombstoneState.OPEN]
    return next((s.host for s in stones if not reap.is_or_was_fenced(tx, s.host)), "")


def _refused(job: Job) -> dict[str, str]:
    """The hosts that have refused, and with what."""
    return {
        step.host: step.detail
        for step in job.steps
        if step.command is not None and step.host is not None and step.state is not JobState.RUNNING
    }


# how a start of a new guest ends


def is_ours(command: CommandRow) -> bool:
    """True for a start_vm that makes its guest."""
    return command.kind == CommandKind.START_VM and bool(command.spec.get("create"))


def command_ended(
    tx: Tx, cfg: Settings, job: Job, command: CommandRow, result: Result | None
) -> None:
    """The end of a start that makes its guest: the VM runs, the next host is tried, or it fails."""
    vm = tx.find(Instance, job.instance) if job.instance else None
    if vm is not None and result is not None and (result.floor or 0) > vm.generation:
        # The agent has heard of a newer command than we remember: the next one goes above it.
        vm = tx.swap(vm, generation=result.floor)
    if vm is None or vm.job != job.uuid or not vm.live:
        power.superseded(tx, job, command)
        return
    if command.state is CommandState.SUCCEEDED:
        told = ", ".join(f"{p.name} {p.seconds:.1f} s" for p in result.phases) if result else ""
        job = jobs.end_steps(tx, job, JobEvent.SUCCEED, told or "done")
        jobs.end(tx, job, JobEvent.SUCCEED)
        looked = result is not None and result.look is not None
        power.settle(tx, cfg, vm, VmState.ACTIVE, looked=looked)
        snapshots.drop(tx, cfg, tx.get(Instance, vm.uuid), f"{vm.name} runs again")
        return
    decision = rule.after(
        rule.Ending(
            host=command.host,
            state=command.state,
            code=command.error_code,
            error=command.error,
            seen=_seen(result),
            tries=_tried(job),
            limit=cfg.manager.start_retries,
            stale=_stale(job, command),
            named=_is_bound(tx, vm),
            fenced=reap.is_fenced(tx, command.host),
            cancelling=job.cancelling,
        )
    )
    # Nobody has looked there: an agent without its journal says of every command that it did not
    # run; what a terminate answers, it has seen.
    unseen = command.state is CommandState.NOT_RUN and command.published_at is not None
    bury = decision.hold or unseen
    left_on = command.host if bury else None
    # Meanwhile a host that was left for being fenced may have been unfenced: it answers first.
    again = decision.next is rule.Next.SAME_HOST_AGAIN and not unclean(tx, vm.uuid)
    if decision.next in (rule.Next.NEXT_HOST, rule.Next.SAME_HOST_AGAIN) and not again:
        _go_on(tx, cfg, job, vm, command.host, _told(command), bury=bury)
    elif again:
        job = jobs.end_steps(tx, job, JobEvent.FAIL, _told(command))
        vm = tx.swap(vm, generation=vm.generation + 1)
        _cast(tx, cfg, job, vm, command.host)
    elif decision.next is rule.Next.CANCELLED:
        begun = f"{command.host} had begun to carry it out"
        said = f"{jobs.cancelled_by(job)} before {begun if command.published_at else 'it was sent'}"
        _fail(tx, job, vm, JobEvent.CANCEL, code="CANCELLED", error=said, left_on=left_on)
    else:
        never = command.state is CommandState.NOT_RUN and command.error_code in NEVER_RUN
        _fail(
            tx,
            job,
            vm,
            JobEvent.EXPIRE if never else JobEvent.FAIL,
            code=decision.code,
            error=command.error or decision.reason,
            left_on=left_on,
        )


def _go_on(
    tx: Tx, cfg: Settings, job: Job, vm: Instance, host: str, told: str, *, bury: bool
) -> None:
    """Leave a host; the job is taken up again at the next tick, or when the host is proven clean.

    `bury`: nobody has looked whether it has no guest of ours.
    """
    if bury:
        reap.bury(tx, vm, host, state=TombstoneState.OPEN, reason=told, pair=(0, 0))
        vm = tx.get(Instance, vm.uuid)
    job = jobs.end_steps(tx, job, JobEvent.FAIL, told)
    placing.release(tx, vm)
    # What is known of its power is a pair of that host: no other host's could be newer.
    off = PowerState.NOSTATE
    tx.swap(vm, host=None, last_host=host, power_state=off, power_session=0, power_seq=0)
    patience = tx.now + dt.timedelta(seconds=cfg.manager.command_timeout)
    text = f"another host than {host}, which gave {told}"
    tx.swap(job, check_at=tx.now, deadline_at=patience, waiting_for=text)
    tx.event("instance.refused", vm.uuid, f"host {host}", f"{vm.name} is not taken: {told}")


def lost(tx: Tx, cfg: Settings, job: Job, command: CommandRow, *, code: str, error: str) -> None:
    """A start that was sent to a host of which nothing is heard: its guest may be running."""
    host = command.host
    vm = tx.find(Instance, job.instance) if job.instance else None
    if vm is None or vm.job != job.uuid or not vm.live:
        job = jobs.end_steps(tx, job, JobEvent.FAIL, f"{code}: {error}")
        jobs.end(tx, job, JobEvent.FAIL, code=code, error=error, unconfirmed=True)
        return
    fenced = reap.is_fenced(tx, host)
    if fenced and job.cancelling:
        said = f"{jobs.cancelled_by(job)}; {host} is fenced"
        _fail(tx, job, vm, JobEvent.CANCEL, code="CANCELLED", error=said, left_on=host)
        return
    if fenced and not _is_bound(tx, vm) and _tried(job) <= cfg.manager.start_retries:
        _go_on(tx, cfg, job, vm, host, f"{code}: {error}, and it is fenced", bury=True)
        return
    _fail(tx, job, vm, JobEvent.FAIL, code=code, error=error, left_on=host, unconfirmed=True)


def withdraw(tx: Tx, job: Job) -> None:
    """End a job that is between two hosts, as an operator has asked for."""
    vm = tx.find(Instance, job.instance) if job.instance else None
    said = jobs.cancelled_by(job)
    if vm is not None and vm.job == job.uuid and vm.live:
        _fail(tx, job, vm, JobEvent.CANCEL, code="CANCELLED", error=said)
    else:
        job = jobs.end_steps(tx, job, JobEvent.CANCEL, said)
        jobs.end(tx, job, JobEvent.CANCEL, code="CANCELLED", error=said)


def _fail(
    tx: Tx,
    job: Job,
    vm: Instance,
    event: JobEvent,
    *,
    code: str | None,
    error: str,
    left_on: str | None = None,
    unconfirmed: bool = False,
) -> None:
    """The end of it: all that was reserved is given back, but what a guest may still be using."""
    job = jobs.end_steps(tx, job, event, f"{code}: {error}")
    shelved = vm.vm_state is VmState.SHELVED_OFFLOADED
    told = "shelved as before" if shelved else "all that was reserved is given back"
    if left_on is not None:
        reap.bury(
            tx, vm, left_on, state=TombstoneState.OPEN, reason=f"{code}: {error}", pair=(0, 0)
        )
        told += f", but for what a guest on {left_on} may be using (muster tombstone list)"
    job = jobs.add_step(tx, job, "give back", None)
    job = jobs.end_step(tx, job, len(job.steps) - 1, JobEvent.SUCCEED, told)
    jobs.end(tx, job, event, code=code, error=error, unconfirmed=unconfirmed)
    vm = tx.get(Instance, vm.uuid)
    placing.release(tx, vm)
    ended = {
        "host": None,
        "last_host": vm.host or vm.last_host,
        "task_state": TaskState.NONE,
        "power_state": PowerState.NOSTATE,
        "job": None,
        "error": f"{code}: {error}",
    }
    if shelved:
        # It has its snapshot, and with it all that it holds; what it left goes by its tombstone.
        tx.swap(vm, power_session=0, power_seq=0, power_at=None, **ended)
        if left_on is None:
            snapshots.unplace(tx, vm)
        return
    tx.swap(vm, vm_state=VmState.ERROR, reserved=False, address=None, **ended)
    holdings.release(tx, vm.uuid)


def _is_bound(tx: Tx, vm: Instance) -> bool:
    """True when no other host may take it: an operator named this one, or its snapshot is there."""
    return snapshots.bound(tx, vm).wishes.host is not None


def _tried(job: Job) -> int:
    """How many hosts were told to make the guest."""
    return len({step.host for step in job.steps if step.command is not None})


def _seen(result: Result | None) -> rule.Seen:
    """What the agent's own look said of the guest."""
    if result is None or result.look is None:
        return rule.Seen.NOTHING
    return rule.Seen.ABSENT if result.look.guest is None else rule.Seen.PRESENT


def _stale(job: Job, command: CommandRow) -> int:
    """How often this host has now said that it knows of a later command."""
    if command.error_code != StaleCommand.code:
        return 0
    return 1 + sum(
        step.host == command.host and step.detail.startswith(StaleCommand.code)
        for step in job.steps
    )


def _told(command: CommandRow) -> str:
    return f"{command.error_code}: {command.error}"

"""Cancel: an operator takes a wish back, as far as its host has not begun to carry it out.

What was not sent is withdrawn. What was sent is voided: only its agent can say that it did not run,
and the job is CANCELLED when it has. What had begun goes on and ends as it ends.
"""

from __future__ import annotations

from common.conf import Settings
from common.errors import NotFound, WrongState
from common.messages import TrailEntry
from common.states import CommandEvent, CommandState, JobEvent, JobState
from manager.flows import commands, first_start, jobs, outcome, power, soft
from manager.store.commands import CommandRow, Void
from manager.store.engine import Tx
from manager.store.instances import Instance
from manager.store.jobs import Job
from manager.store.statements import Query, ask

C, J = CommandRow.__table__.c, Job.__table__.c
WITHDRAWN = "withdrawn before it was sent"
WITHDRAWN_BY = Query(
    Job,
    J.instance == ask("instance"),
    J.error_code == "SUPERSEDED",
    J.ended_at == ask("at"),
    limit=1,
)


def cancel(tx: Tx, cfg: Settings, uuid: str, operator: str, reason: str | None) -> Job:
    """Withdraw or void a job's command; the same job again when that was asked before.

    Raises NotFound, and WrongState for a job that has ended or can not be called back any more.
    """
    named = tx.find(Job, uuid)
    if named is None:
        raise NotFound(f"no job {uuid}", "muster job list --all shows all")
    job = jobs.resolve(tx, named)
    if job.state is JobState.CANCELLED or job.cancelling:
        return job
    if job.state not in jobs.OPEN:
        raise WrongState(f"job {job.uuid} has {job.state} already", "muster job show")
    if tx.first(Job, Job.__table__.c.same_as == job.uuid) is not None:
        raise WrongState(
            f"job {job.uuid} also carries out another wish, which nobody took back",
            f"wait for its end: muster job wait {job.uuid}",
        )
    rows = _held(tx, job)
    if job.kind == "shelve" and not rows:
        raise WrongState(
            f"job {job.uuid} has copied all disks, and its guest is to leave {job.host}",
            f"wait for its end: muster job wait {job.uuid}",
        )
    if job.kind == "delete":
        return _delete(tx, cfg, _marked(tx, job, operator, reason), rows)
    begun = [row for row in rows if row.state is CommandState.STARTED]
    if begun:
        raise WrongState(
            f"{begun[0].host} has begun to carry out {begun[0].kind}",
            f"wait for its end: muster job wait {job.uuid}",
        )
    job = _marked(tx, job, operator, reason)
    for row in rows:
        if row.state is CommandState.ACCEPTED:
            _withdraw(tx, cfg, row)
        else:
            commands.owe_void(tx, row)
            tx.commands_due = True
    if not rows:
        first_start.withdraw(tx, job)
    return tx.get(Job, job.uuid)


def too_late(tx: Tx, row: CommandRow, owed: Void) -> None:
    """Its agent had begun: the void of a cancelled job is taken back, and the job goes on.

    What runs may also be an earlier command of this VM: then its agent is asked again.
    """
    if row.state is not CommandState.STARTED and _earlier_runs(tx, row):
        return
    job = tx.find(Job, row.job) if row.job else None
    if job is None or not job.cancelling or job.state not in jobs.OPEN:
        return
    tx.delete(owed)
    text = f"{job.kind} is not cancelled: {row.host} had begun to carry it out"
    said = TrailEntry(f"host {row.host}", text, tx.now)
    tx.swap(job, cancelling=False, waiting_for="", trail=(*job.trail, said))
    tx.event("job.not_cancelled", job.instance or job.uuid, f"host {row.host}", text, job=job.uuid)


def _earlier_runs(tx: Tx, row: CommandRow) -> bool:
    """True when an earlier command of the same VM may still be at work on its host."""
    earlier = tx.first(
        CommandRow,
        C.instance == row.instance,
        C.host == row.host,
        C.generation < row.generation,
        C.state.in_((*commands.OPEN, CommandState.UNKNOWN)),
    )
    return earlier is not None


def _held(tx: Tx, job: Job) -> list[CommandRow]:
    """The job's open commands, held: their answers may be coming in."""
    found = [tx.lock(CommandRow, row.id) for row in commands.open_of_job(tx, job.uuid)]
    return [row for row in found if row is not None and row.state in commands.OPEN]


def _marked(tx: Tx, job: Job, operator: str, reason: str | None) -> Job:
    said = TrailEntry(operator, f"{jobs.CANCEL}{reason or 'no reason given'}", tx.now)
    return tx.swap(job, cancelling=True, waiting_for="", trail=(*job.trail, said))


def _withdraw(tx: Tx, cfg: Settings, row: CommandRow) -> None:
    moved, _ = commands.move(tx, row, CommandEvent.NOT_RUN, error_code="CANCELLED", error=WITHDRAWN)
    outcome.command_ended(tx, cfg, moved, None)


def _delete(tx: Tx, cfg: Settings, job: Job, rows: list[CommandRow]) -> Job:
    """A delete is taken back only as a whole: not one host may have heard of it."""
    waiting = {row.id for row in rows if row.state is CommandState.ACCEPTED}
    others = [other for other in jobs.open_of(tx, job.instance or "") if other.uuid != job.uuid]
    # What it has withdrawn does not come back: a VM whose create went with it would be left over.
    withdrawn = tx.ask(WITHDRAWN_BY, instance=job.instance, at=job.accepted_at)
    if (
        others
        or withdrawn
        or not all(s.state is JobState.RUNNING and s.command in waiting for s in job.steps)
    ):
        raise WrongState(
            "a delete can not be cancelled once it has been sent or has taken another job's place",
            f"wait for its end: muster job wait {job.uuid}",
        )
    for row in rows:
        commands.move(tx, row, CommandEvent.NOT_RUN, error_code="CANCELLED", error=WITHDRAWN)
    text = f"{jobs.cancelled_by(job)} before it was sent"
    if job.request.get("by") == soft.RECLAIM:
        return soft.take_back(tx, cfg, job, text)
    job = jobs.end_steps(tx, job, JobEvent.CANCEL, text)
    job = jobs.end(tx, job, JobEvent.CANCEL, code="CANCELLED", error=text)
    vm = tx.find(Instance, job.instance) if job.instance else None
    if vm is not None and vm.job == job.uuid:
        power.settle(tx, cfg, vm, vm.vm_state, looked=True)
    return job

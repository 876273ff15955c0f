"""Jobs: accepting a wish once, following its steps, ending it."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec

from common.errors import IdReused
from common.messages import TrailEntry
from common.states import JOB, JobEvent, JobState
from manager.store.engine import Tx
from manager.store.jobs import Job, JobStep
from manager.store.statements import Query, among, ask

OPEN = (JobState.PENDING, JobState.RUNNING)
CANCEL = "cancel: "  # begins the line of the trail on which an operator took the wish back
J = Job.__table__.c
OPEN_OF_INSTANCE = Query(
    Job, J.instance == ask("instance"), among(J.state, OPEN), J.same_as.is_(None)
)


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """Who wants what, and why: the part of a request that every verb shares."""

    job: str
    operator: str
    reason: str | None = None
    request: dict[str, Any]

    def trail(self, now: dt.datetime) -> tuple[TrailEntry, ...]:
        return (TrailEntry(self.operator, self.reason or "no reason given", now),)


def known(tx: Tx, wish: Wish) -> Job | None:
    """The job of an earlier copy of this very request; IdReused when it asked for another thing.

    Not looked for at the first attempt: nearly every wish is new, and that of one which is not
    ends in a Conflict when its job is written.
    """
    job = tx.find(Job, wish.job) if tx.attempt else None
    if job is None:
        return None
    if job.request != wish.request:
        raise IdReused(
            f"job {wish.job} was accepted for another request ({job.kind})",
            "choose a new job uuid",
        )
    return resolve(tx, job)


def resolve(tx: Tx, job: Job) -> Job:
    """The job that does the work of this one."""
    return job if job.same_as is None else tx.get(Job, job.same_as)


def accept(
    tx: Tx,
    wish: Wish,
    kind: str,
    *,
    instance: str | None,
    host: str | None,
    **fields: Any,
) -> Job:
    """A new job, in the transaction that changes what it is about."""
    job = Job(
        uuid=wish.job,
        kind=kind,
        instance=instance,
        host=host,
        state=JobState.PENDING,
        request=wish.request,
        trail=wish.trail(tx.now),
        accepted_at=tx.now,
        **fields,
    )
    tx.insert(job)
    return job


def accept_same(tx: Tx, wish: Wish, job: Job) -> Job:
    """Record that this wish is served by a job under way, so that its uuid can be asked for."""
    tx.insert(
        Job(
            uuid=wish.job,
            kind=job.kind,
            instance=job.instance,
            host=job.host,
            state=job.state,
            request=wish.request,
            trail=wish.trail(tx.now),
            accepted_at=tx.now,
            same_as=job.uuid,
        )
    )
    return job


def start(tx: Tx, job: Job, **changes: Any) -> Job:
    """RUNNING: its first command or decision is made."""
    return tx.swap(job, state=JOB.step(job.state, JobEvent.START).state, **changes)


def end(
    tx: Tx,
    job: Job,
    event: JobEvent,
    *,
    code: str | None = None,
    error: str | None = None,
    unconfirmed: bool = False,
) -> Job:
    """A final state; a job that has one already keeps it, and its first error."""
    step = JOB.step(job.state, event)
    if not step.changed:
        return job
    tx.event(
        f"job.{step.state.lower()}",
        job.instance or job.uuid,
        "manager",
        f"{job.kind} {step.state}" + (f": {code}: {error}" if code else ""),
        job=job.uuid,
    )
    return tx.swap(
        job,
        state=step.state,
        ended_at=tx.now,
        check_at=None,
        waiting_for="",
        error_code=code,
        error=error,
        unconfirmed=unconfirmed,
    )


def end_at_once(
    tx: Tx, job: Job, name: str, host: str | None, detail: str = "nothing to do"
) -> Job:
    """SUCCEEDED, by one step that is done as soon as it is asked for."""
    job = end_step(tx, add_step(tx, job, name, host), 0, JobEvent.SUCCEED, detail)
    return end(tx, start(tx, job), JobEvent.SUCCEED)


def cancelled_by(job: Job) -> str:
    """Who took it back, in words."""
    who = [entry.source for entry in job.trail if entry.text.startswith(CANCEL)]
    return f"cancelled by {who[-1]}" if who else "cancelled"


def add_step(tx: Tx, job: Job, name: str, host: str | None, command: str | None = None) -> Job:
    """One more named step, running from now on."""
    step = JobStep(name=name, host=host, command=command, state=JobState.RUNNING, started_at=tx.now)
    return tx.swap(job, steps=(*job.steps, step))


def change_step(tx: Tx, job: Job, n: int, **changes: Any) -> Job:
    """New values for the step at place `n`."""
    steps = list(job.steps)
    steps[n] = msgspec.structs.replace(steps[n], **changes)
    return tx.swap(job, steps=tuple(steps))


def end_step(tx: Tx, job: Job, n: int, event: JobEvent, detail: str) -> Job:
    """The end of the step at place `n`, with what came of it in words."""
    after = JOB.step(job.steps[n].state, event)
    if not after.changed:
        return job
    return change_step(tx, job, n, state=after.state, detail=detail, ended_at=tx.now)


def end_steps(tx: Tx, job: Job, event: JobEvent, detail: str) -> Job:
    """The end of every step that is still open."""
    for n in range(len(job.steps)):
        job = end_step(tx, job, n, event, detail)
    return job


def open_of(tx: Tx, instance: str) -> list[Job]:
    """Jobs under way for an instance."""
    return tx.ask(OPEN_OF_INSTANCE, instance=instance)


def hold_open_of(tx: Tx, instance: str) -> list[Job]:
    """As `open_of`, and nobody else changes them meanwhile."""
    return tx.steady(OPEN_OF_INSTANCE, alone=True, instance=instance)

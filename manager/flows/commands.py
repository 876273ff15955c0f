"""Commands: issued with the state that they change, followed by receipts, voided at the end."""

from __future__ import annotations

import datetime as dt
from typing import Any

import sqlalchemy as sa

from common.conf import Settings
from common.messages import CommandKind, Receipt, Step, TrailEntry
from common.states import COMMAND, CommandEffect, CommandEvent, CommandState
from manager.store.commands import CommandRow, Void
from manager.store.engine import Tx
from manager.store.instances import Instance
from manager.store.tombstones import Tombstone

OPEN = (
    CommandState.ACCEPTED,
    CommandState.PUBLISHED,
    CommandState.RECEIVED,
    CommandState.STARTED,
)
C = CommandRow.__table__.c


def next_generation(tx: Tx, instance: str) -> int:
    """One above everything that was ever issued for this instance.

    Every command's generation is kept in the instance's record or, once that is deleted, in a
    tombstone: commands themselves are forgotten in time.
    """
    vm = tx.find(Instance, instance)
    t = Tombstone.__table__.c
    buried = tx.rows(sa.select(sa.func.max(t.generation)).where(t.instance == instance))[0][0]
    return max(vm.generation if vm else 0, buried or 0) + 1


def issue(
    tx: Tx,
    cfg: Settings,
    *,
    kind: CommandKind,
    instance: str,
    host: str,
    generation: int,
    job: str | None,
    trail: tuple[TrailEntry, ...],
    spec: dict[str, Any] | None = None,
) -> CommandRow:
    """A command in the outbox, due at once. Terminates have no deadline: they are always owed."""
    timeout_s = cfg.manager.command_timeout
    expires = kind is not CommandKind.TERMINATE_INSTANCE
    row = CommandRow(
        id=tx.new_id(),
        job=job,
        kind=kind.value,
        host=host,
        instance=instance,
        generation=generation,
        spec=spec or {},
        timeout_s=timeout_s,
        trail=trail,
        state=CommandState.ACCEPTED,
        publish_at=tx.now,
        deadline_at=tx.now + dt.timedelta(seconds=timeout_s) if expires else None,
        accepted_at=tx.now,
    )
    tx.insert(row)
    tx.commands_due = True
    return row


def move(tx: Tx, row: CommandRow, event: CommandEvent, **changes: Any) -> tuple[CommandRow, bool]:
    """One transition of a command; False when it changed nothing (a repeat, or too late)."""
    step = COMMAND.step(row.state, event)
    if not step.changed:
        return row, False
    if CommandEffect.STOP_PUBLISHING in step.effects:
        changes["publish_at"] = None
    if CommandEffect.TELL_JOB in step.effects:
        changes["deadline_at"] = None
        changes.setdefault("ended_at", tx.now)
    return tx.swap(row, state=step.state, **changes), True


def receipt(tx: Tx, message: Receipt) -> None:
    """A step that an agent reports; one for a command we do not know says nothing to us."""
    row = tx.lock(CommandRow, message.command)
    if row is None:
        return
    when = tx.now - dt.timedelta(seconds=max(0.0, message.age_s))
    if message.step is Step.RECEIVED:
        row, _ = move(tx, row, CommandEvent.RECEIVE, received_at=when)
    else:
        row, _ = move(
            tx, row, CommandEvent.START, started_at=when, received_at=row.received_at or when
        )
    if row.publish_at is not None and row.state in OPEN:
        # Cast again after its agent's hello, and received again.
        tx.swap(row, publish_at=None)


def in_flight(tx: Tx, instance: str, host: str, kind: CommandKind) -> CommandRow | None:
    """The command of this kind that has not ended yet, if any."""
    return tx.first(
        CommandRow,
        C.instance == instance,
        C.host == host,
        C.kind == kind.value,
        C.state.in_(OPEN),
    )


def open_of_job(tx: Tx, job: str) -> list[CommandRow]:
    return tx.all(CommandRow, C.job == job, C.state.in_(OPEN))


def owe_void(tx: Tx, row: CommandRow) -> None:
    """Ask the agent to raise its floor to this command, now and until it has answered."""
    owed = tx.find(Void, row.host, row.instance)
    if owed is None:
        tx.insert(
            Void(
                host=row.host,
                instance=row.instance,
                generation=row.generation,
                command=row.id,
                next_at=tx.now,
                created_at=tx.now,
            )
        )
    elif owed.generation < row.generation:
        tx.put(owed, generation=row.generation, command=row.id, next_at=tx.now)

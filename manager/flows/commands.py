"""Commands: issued with the state that they change, followed by receipts, voided at the end."""

from __future__ import annotations

import datetime as dt
from typing import Any

from common.conf import Settings
from common.messages import Command, CommandKind, Receipt, Step, TrailEntry, builtins
from common.states import COMMAND, CommandEffect, CommandEvent, CommandState
from manager.flows import freeze
from manager.store import timeline
from manager.store.cleanups import Cleanup
from manager.store.commands import CommandRow, Void
from manager.store.engine import Tx
from manager.store.hosts import Host
from manager.store.instances import Instance
from manager.store.statements import Query, among, ask
from manager.store.tombstones import Tombstone

OPEN = (
    CommandState.ACCEPTED,
    CommandState.PUBLISHED,
    CommandState.RECEIVED,
    CommandState.STARTED,
)
C = CommandRow.__table__.c
T = Tombstone.__table__.c
CLEANUPS = Cleanup.__table__
IS_OPEN = among(C.state, OPEN)
IN_FLIGHT = Query(
    CommandRow,
    C.instance == ask("instance"),
    C.host == ask("host"),
    C.kind == ask("kind"),
    IS_OPEN,
    limit=1,
)
# By the deadline, which only those have that have not ended: there is an index of these.
UNDER_WAY = Query(
    CommandRow,
    C.host == ask("host"),
    C.kind != CommandKind.NOOP.value,
    C.deadline_at.is_not(None),
    order=[C.deadline_at],
    limit=1,
)
OPEN_OF_GUEST = Query(
    CommandRow, C.instance == ask("instance"), C.kind != CommandKind.CLEAN_UP.value, IS_OPEN
)
OPEN_OF_JOB = Query(CommandRow, C.job == ask("job"), IS_OPEN)
HIGHEST_STONE = Query(
    Tombstone, T.instance == ask("instance"), order=[T.generation.desc()], limit=1
)

HIGHEST_CLEANUP = Query(
    Cleanup,
    CLEANUPS.c.instance == ask("instance"),
    order=[CLEANUPS.c.generation.desc()],
    limit=1,
)


def issued(tx: Tx, instance: str) -> int:
    """The highest generation that was ever issued for this instance.

    It is kept in the instance's record and, for when that is forgotten, in its tombstones and
    clean-up items; commands themselves are forgotten in time.
    """
    vm = tx.find(Instance, instance)
    if vm is not None:
        return vm.generation
    stone = tx.ask_first(HIGHEST_STONE, instance=instance)
    item = tx.ask_first(HIGHEST_CLEANUP, instance=instance)
    return max(0 if row is None else row.generation for row in (stone, item))


def next_generation(tx: Tx, instance: str) -> int:
    """One above everything that was ever issued for this instance; its record says so."""
    generation = issued(tx, instance) + 1
    raise_generation(tx, instance, generation)
    return generation


def raise_generation(tx: Tx, instance: str, generation: int) -> None:
    """Generations up to this one are in use: the record of the instance goes with them."""
    vm = tx.find(Instance, instance)
    if vm is not None and vm.generation < generation:
        tx.swap(vm, generation=generation)


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
    timeout_s: float | None = None,
) -> CommandRow:
    """A command in the outbox, claimed for our own broker if there is somebody to take it.

    `timeout_s`: how long it may take at its agent, [manager] command_timeout unless told.
    """
    timeout_s = timeout_s or cfg.manager.command_timeout
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
        deadline_at=tx.now + dt.timedelta(seconds=timeout_s),
        accepted_at=tx.now,
    )
    tx.insert(row)
    return claim(tx, cfg, row) or row


def claim(tx: Tx, cfg: Settings, row: CommandRow) -> CommandRow | None:
    """Cast a command after the commit, and again if nothing is heard of it; None: to nobody yet.

    The row says PUBLISHED before the cast is made, so that a manager that dies between the two
    can hide nothing: what may have been sent counts as sent, and is sent again when no receipt
    comes.
    """
    host = tx.find(Host, row.host)
    if host is None or not host.session_open or freeze.holds_back(tx, row):
        return None
    row = tx.swap(
        row,
        state=COMMAND.step(row.state, CommandEvent.PUBLISH).state,
        session=host.session,
        publishes=row.publishes + 1,
        published_at=row.published_at or tx.now,
        publish_at=tx.now + dt.timedelta(seconds=cfg.manager.resend_after),
    )
    store = timeline.seen(tx)
    command = Command(
        id=row.id,
        kind=CommandKind(row.kind),
        fleet=cfg.default.fleet_id,
        host=row.host,
        session=host.session,
        instance=row.instance,
        generation=row.generation,
        timeout_s=row.timeout_s,
        store_timeline=store.timeline,
        store_mark=store.mark,
        spec=row.spec,
        trail=row.trail,
    )
    tx.cast(row.host, row.kind, command=builtins(command))
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
    row = tx.find(CommandRow, message.command)
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
    return tx.ask_first(IN_FLIGHT, instance=instance, host=host, kind=kind.value)


def under_way(tx: Tx, host: str) -> bool:
    """True while this host has a command of an instance that has not ended."""
    return tx.ask_first(UNDER_WAY, host=host) is not None


def open_of_job(tx: Tx, job: str) -> list[CommandRow]:
    return tx.ask(OPEN_OF_JOB, job=job)


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

"""Watchdog: no command is waited for without end (decision tables, section 6)."""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa

from common.conf import Settings
from common.messages import CommandKind
from common.states import CommandEvent, CommandState, HostState, PowerState, TaskState, VmState
from manager.flows import cleanup, commands, outcome, power
from manager.store.commands import CommandRow
from manager.store.engine import Tx
from manager.store.hosts import Host
from manager.store.instances import Instance
from manager.store.statements import Query, ask, soonest

C = CommandRow.__table__.c
I = Instance.__table__.c  # noqa: E741 - the table's columns, as C
LATE = Query(CommandRow, C.deadline_at <= ask("now"), order=[C.deadline_at], limit=50)
ANY_IS_LATE = soonest(C.deadline_at) <= ask("now")
IS_HELD = sa.and_(
    I.paused_since.is_not(None),
    I.task_state == TaskState.NONE,
    sa.or_(
        I.vm_state == VmState.ACTIVE,
        sa.and_(I.vm_state == VmState.PAUSED, I.power_state == PowerState.SUSPENDED),
        sa.and_(I.vm_state == VmState.SUSPENDED, I.power_state == PowerState.PAUSED),
    ),
)
HELD = Query(Instance, IS_HELD)
ACCEPTED = CommandState.ACCEPTED
PATIENCE = 10  # times timeout_s for a command that its agent calls running


def deadlines(tx: Tx, cfg: Settings) -> int:
    """Look at every command whose deadline has passed; returns how many."""
    rows = tx.due(LATE, now=tx.now)
    for row in rows:
        host = tx.find(Host, row.host)
        if row.kind == CommandKind.TERMINATE_INSTANCE:
            _owed(tx, row)
        elif row.kind == CommandKind.CLEAN_UP:
            _clean_up(tx, row, host)
        elif row.state is ACCEPTED:
            _never_sent(tx, cfg, row, host)
        elif host is None or host.state is not HostState.UP:
            _unreachable(tx, cfg, row, host)
        elif _patience_is_over(tx, row):
            _give_up(tx, cfg, row)
        else:
            _ask(tx, cfg, row)
    return len(rows)


def _owed(tx: Tx, row: CommandRow) -> None:
    """A terminate never expires. One that was received and not answered for is cast again: a
    database that was put back by a little may have forgotten the answer that its agent gave."""
    tx.swap(
        row,
        publish_at=row.publish_at or tx.now,
        deadline_at=tx.now + dt.timedelta(seconds=row.timeout_s),
    )
    tx.commands_due = True


def _clean_up(tx: Tx, row: CommandRow, host: Host | None) -> None:
    """Cast again to a host that is there; else its item is for another one."""
    there = host is not None and host.state is HostState.UP and row.state is not ACCEPTED
    if there and not _patience_is_over(tx, row):
        _owed(tx, row)
    else:
        cleanup.given_up(tx, row)


def held_guests(tx: Tx, cfg: Settings) -> None:
    """ACTIVE guests that have been paused for longer than one interval."""
    for vm in tx.ask(HELD):
        power.held_long_enough(tx, cfg, vm)


def _never_sent(tx: Tx, cfg: Settings, row: CommandRow, host: Host | None) -> None:
    """No agent can have seen it: that it did not run is certain."""
    state = "unknown" if host is None else f"{host.state}: {host.reason}"
    moved, _ = commands.move(
        tx,
        row,
        CommandEvent.NOT_RUN,
        error_code="EXPIRED",
        error=f"never sent within {row.timeout_s:g} s, {row.host} is {state}",
    )
    outcome.command_ended(tx, cfg, moved, None)


def _unreachable(tx: Tx, cfg: Settings, row: CommandRow, host: Host | None) -> None:
    """Sent, and nobody there to ask: the job ends unconfirmed, the void stays owed."""
    state = "gone" if host is None else f"{host.state} ({host.reason})"
    code = "OUTCOME_UNKNOWN"
    error = f"no answer within {row.timeout_s:g} s and {row.host} is {state}"
    commands.owe_void(tx, row)
    commands.move(tx, row, CommandEvent.GIVE_UP, error_code=code, error=error)
    outcome.lost(tx, cfg, row, code=code, error=error)


def _patience_is_over(tx: Tx, row: CommandRow) -> bool:
    age_s = (tx.now - row.accepted_at).total_seconds()
    return age_s > PATIENCE * row.timeout_s


def _give_up(tx: Tx, cfg: Settings, row: CommandRow) -> None:
    """Its agent has called it running for ten times its limit."""
    moved, _ = commands.move(
        tx,
        row,
        CommandEvent.GIVE_UP,
        error_code="OUTCOME_UNKNOWN",
        error=f"{row.host} has not finished it within {PATIENCE} x {row.timeout_s:g} s",
    )
    outcome.command_ended(tx, cfg, moved, None)


def _ask(tx: Tx, cfg: Settings, row: CommandRow) -> None:
    """Only the agent can say that a command did not run."""
    commands.owe_void(tx, row)
    again = max(cfg.manager.resend_after, row.timeout_s / 4)
    tx.swap(
        row,
        asked_at=row.asked_at or tx.now,
        deadline_at=tx.now + dt.timedelta(seconds=again),
    )
    tx.commands_due = True

"""Canaries: a command without effect, so that a host which is deaf to commands is found out.

A host that heartbeats proves that it can speak. Only a command that took the whole way - outbox,
cast, the agent's journal, its result - proves that it can also be told something. One canary is in
flight a host; its row goes with its answer, and nobody is told of one that came back. As every
command it carries the store's mark, by which the agent knows a database that is older than itself.
"""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa

from common.conf import Settings
from common.messages import CommandKind, Result
from common.states import CommandState
from manager.flows import commands
from manager.rules import liveness as rule
from manager.store.commands import CommandRow
from manager.store.engine import Tx
from manager.store.hosts import Host
from manager.store.statements import Query, ask

H = Host.__table__.c
BATCH = 100
IS_DUE = sa.and_(
    H.session_open,
    H.canary.is_(None),
    sa.or_(H.canary_at.is_(None), H.canary_at <= ask("last_canary")),
)
DUE = Query(Host, IS_DUE, order=[H.canary_at], limit=BATCH)
C = CommandRow.__table__.c
CANARIES = Query(CommandRow, C.host == ask("host"), C.kind == CommandKind.NOOP.value)
RESENDS = 3  # casts that may be lost before the silence says something


def limit_s(cfg: Settings) -> float:
    """Seconds without an answer after which a canary is overdue."""
    return max(RESENDS * cfg.manager.resend_after, cfg.manager.canary_interval)


def limits(tx: Tx, cfg: Settings) -> dict[str, dt.datetime]:
    """A host whose last canary is older than this gets one."""
    return {"last_canary": tx.now - dt.timedelta(seconds=cfg.manager.canary_interval)}


def send_due(tx: Tx, cfg: Settings) -> int:
    """A canary to each host with a session that has had none for a while; returns how many."""
    if not cfg.manager.canary_interval:
        return 0
    due = tx.due(DUE, **limits(tx, cfg))
    for host in due:
        row = CommandRow(
            id=tx.new_id(),
            job=None,
            kind=CommandKind.NOOP.value,
            host=host.name,
            instance="",
            generation=1,
            spec={},
            timeout_s=limit_s(cfg),
            trail=(),
            state=CommandState.ACCEPTED,
            publish_at=tx.now,
            accepted_at=tx.now,
        )
        tx.insert(row)
        commands.claim(tx, cfg, row)
        tx.put(host, canary=row.id, canary_at=tx.now)
    return len(due)


def overdue(tx: Tx, cfg: Settings, host: Host, heard: rule.Hearing) -> bool:
    """True when a canary should have been answered by now, and we would have heard it."""
    if host.canary is None or host.canary_at is None or not host.session_open:
        return False
    waited_s = (tx.now - host.canary_at).total_seconds()
    return min(waited_s, heard.gapless_s or 0.0) > limit_s(cfg)


def answered(tx: Tx, host: Host, result: Result) -> None:
    """Whatever the agent made of it: it was heard. Repeats and late answers say nothing new."""
    if result.command != host.canary:
        return
    row = tx.find(CommandRow, result.command)
    if row is not None:
        tx.delete(row)
    tx.put(host, canary=None, canary_heard_at=tx.now)


def forget(tx: Tx, host: Host) -> Host:
    """Withdraw the canary of a session that is over; the next session gets one at once."""
    for row in tx.ask(CANARIES, host=host.name):
        tx.delete(row)
    return tx.put(host, canary=None, canary_at=None)

"""Publish: the outbox on its way to the broker, by any manager.

The row says PUBLISHED before the cast is made, so that a manager that dies between the two can
hide nothing: what may have been sent counts as sent, and is sent again when no receipt comes.
"""

from __future__ import annotations

import datetime as dt
import logging

from common.bus.base import Bus, agent_at
from common.conf import Settings
from common.errors import BrokerUnavailable
from common.messages import Command, CommandKind, builtins
from common.states import COMMAND, CommandEvent
from manager.store.commands import CommandRow, Void
from manager.store.engine import Hint, Store, Tx
from manager.store.hosts import Host

LOG = logging.getLogger(__name__)
C = CommandRow.__table__.c
BATCH = 50


def publish_due(store: Store, cfg: Settings, bus: Bus) -> int:
    """Cast what is due; returns how many commands and voids that were.

    What the broker does not take is given back at once: another manager may be able to reach it,
    and must not wait for one that can't and keeps on claiming.
    """
    claimed, voids = store.run(_claim, cfg)
    for n, command in enumerate(claimed):
        if not _cast(bus, command.host, command.kind.value, {"command": builtins(command)}):
            store.run(_give_back, claimed[n:], voids)
            return 0
    for n, void in enumerate(voids):
        if not _cast(bus, void.host, void.method, void.kwargs):
            store.run(_give_back, [], voids[n:])
            return 0
    return len(claimed) + len(voids)


def say(bus: Bus, hints: list[Hint]) -> None:
    """Cast what a transaction left to be said; losing one of these does no harm."""
    for hint in hints:
        _cast(bus, hint.host, hint.method, hint.kwargs)


def _cast(bus: Bus, host: str, method: str, kwargs: dict[str, object]) -> bool:
    try:
        bus.cast(agent_at(host), method, kwargs)
    except BrokerUnavailable as exc:
        LOG.warning("%s to %s is not sent yet: %s", method, host, exc)
        return False
    return True


def _claim(tx: Tx, cfg: Settings) -> tuple[list[Command], list[Hint]]:
    resend = dt.timedelta(seconds=cfg.manager.resend_after)
    rows = tx.due(CommandRow, C.publish_at <= tx.now, order=[C.publish_at], limit=BATCH)
    hosts = {name: tx.find(Host, name) for name in {row.host for row in rows}}
    claimed = []
    for row in rows:
        host = hosts[row.host]
        if host is None or not host.session_open:
            # Nobody to take it: its hello makes it due again at once. A session counts for more
            # than the state: a host that an operator called down may still have VMs to reap.
            tx.swap(row, publish_at=tx.now + resend)
            continue
        step = COMMAND.step(row.state, CommandEvent.PUBLISH)
        row = tx.swap(
            row,
            state=step.state,
            session=host.session,
            publishes=row.publishes + 1,
            published_at=row.published_at or tx.now,
            publish_at=tx.now + resend,
        )
        claimed.append(_message(cfg, row, host.session))
    return claimed, _claim_voids(tx, resend)


def _claim_voids(tx: Tx, resend: dt.timedelta) -> list[Hint]:
    v = Void.__table__.c
    hints = []
    for void in tx.due(Void, v.next_at <= tx.now, order=[v.next_at], limit=BATCH):
        host = tx.find(Host, void.host)
        tx.put(void, next_at=tx.now + resend)
        if host is not None and host.session_open:
            hints.append(
                Hint(
                    void.host,
                    "void",
                    {
                        "instance": void.instance,
                        "generation": void.generation,
                        "session": host.session,
                    },
                )
            )
    return hints


def _give_back(tx: Tx, unsent: list[Command], voids: list[Hint]) -> None:
    """Due again, still PUBLISHED: a broker that broke off may have taken it all the same."""
    for command in unsent:
        row = tx.lock(CommandRow, command.id)
        if row is not None and row.publish_at is not None:
            tx.swap(row, publish_at=tx.now)
    for hint in voids:
        void = tx.lock(Void, hint.host, hint.kwargs["instance"])
        if void is not None:
            tx.put(void, next_at=tx.now)


def _message(cfg: Settings, row: CommandRow, session: int) -> Command:
    return Command(
        id=row.id,
        kind=CommandKind(row.kind),
        fleet=cfg.default.fleet_id,
        host=row.host,
        session=session,
        instance=row.instance,
        generation=row.generation,
        timeout_s=row.timeout_s,
        spec=row.spec,
        trail=row.trail,
    )

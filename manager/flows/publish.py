"""Publish: the outbox on its way to the broker, by any manager.

What a transaction leaves to be said is cast after its commit. A command is claimed in the
transaction that issues it, and cast again, by whichever manager is first, when no receipt comes;
one that had nobody to take it, and what a manager did not live to cast, is found here as due.
"""

from __future__ import annotations

import collections
import datetime as dt
import logging
from collections.abc import Iterable
from typing import Any

import msgspec
import sqlalchemy as sa

from common.bus.base import Bus, agent_at
from common.conf import Settings
from common.errors import BrokerUnavailable
from common.messages import RPC_LIMIT_BYTES
from manager.flows import commands
from manager.store.commands import CommandRow, Void
from manager.store.engine import Cast, Store, Tx
from manager.store.hosts import Host
from manager.store.statements import Query, ask, soonest

LOG = logging.getLogger(__name__)
BATCH = 50
# A cast costs the broker and both sides much more than a command more in it.
TOGETHER = 50
TOGETHER_BYTES = RPC_LIMIT_BYTES // 4
C, V = CommandRow.__table__.c, Void.__table__.c
DUE = Query(CommandRow, C.publish_at <= ask("now"), order=[C.publish_at], limit=BATCH)
VOIDS_DUE = Query(Void, V.next_at <= ask("now"), order=[V.next_at], limit=BATCH)
ANY_IS_DUE = sa.or_(soonest(C.publish_at) <= ask("now"), soonest(V.next_at) <= ask("now"))


class Publisher:
    """What this manager has to say: told by its transactions, said by one loop, in order."""

    def __init__(self, store: Store, cfg: Settings, bus: Bus) -> None:
        self._store, self._cfg, self._bus = store, cfg, bus
        self._waiting: collections.deque[Cast] = collections.deque()
        self._something_due = False

    def take(self, tx: Tx) -> bool:
        """Remember what a transaction that has been committed has to say; True for anything."""
        self._waiting.extend(tx.casts)
        self._something_due = self._something_due or tx.commands_due
        return bool(tx.casts) or tx.commands_due

    def turn(self) -> None:
        """Say what waits, and claim and say what was made due; the clock finds the rest."""
        # One that is to stop finishes its batch; the rest stays due, for any other manager.
        while self.say() and self._something_due and not self._store.runtime.stopping.is_set():
            self._something_due = False
            self._store.run(claim_due, self._cfg)

    def say(self) -> bool:
        """Cast all that waits; False when the broker did not take all of it.

        Commands and voids that it did not take are given back at once: another manager may be
        able to reach it, and must not wait for one that can't and keeps on claiming. The rest is
        dropped: its cause is stored and repeats it.
        """
        while self._waiting:
            letters = _letters(self._waiting)
            self._waiting.clear()
            for n, letter in enumerate(letters):
                if not self._send(letter):
                    unsent = [cast for left in letters[n:] for cast in left.casts]
                    unsent += self._waiting
                    self._waiting.clear()
                    self._store.run(_give_back, unsent)
                    return False
        return True

    def _send(self, letter: _Letter) -> bool:
        method, kwargs = letter.content()
        try:
            self._bus.cast(agent_at(letter.host), method, kwargs)
        except BrokerUnavailable as exc:
            LOG.warning("%s to %s is not sent yet: %s", method, letter.host, exc)
            return False
        return True


class _Letter:
    """One cast on the wire: commands or confirmations to one host, or anything else alone."""

    def __init__(self, cast: Cast) -> None:
        self.host = cast.host
        self.casts = [cast]
        self._bytes = _size(cast)

    def takes(self, cast: Cast) -> bool:
        """True when the cast goes with those in it; they may be read in any order."""
        size = self._bytes + _size(cast)
        if len(self.casts) == TOGETHER or size > TOGETHER_BYTES:
            return False
        self.casts.append(cast)
        self._bytes = size
        return True

    def content(self) -> tuple[str, dict[str, Any]]:
        """The method and its arguments."""
        first = self.casts[0]
        if len(self.casts) == 1:
            return first.method, first.kwargs
        if "command" in first.kwargs:
            return "commands", {"commands": [cast.kwargs["command"] for cast in self.casts]}
        return first.method, {"ids": [id_ for cast in self.casts for id_ in cast.kwargs["ids"]]}


def _letters(casts: Iterable[Cast]) -> list[_Letter]:
    letters: list[_Letter] = []
    last: dict[tuple[str, str], _Letter] = {}
    for cast in casts:
        about = next((what for what in ("command", "ids") if what in cast.kwargs), "")
        known = last.get((cast.host, about)) if about else None
        if known is None or not known.takes(cast):
            last[cast.host, about] = _Letter(cast)
            letters.append(last[cast.host, about])
    return letters


def _size(cast: Cast) -> int:
    """Of the arguments on the wire, in bytes."""
    return len(msgspec.json.encode(cast.kwargs))


def claim_due(tx: Tx, cfg: Settings) -> int:
    """Claim what is due; returns how many commands and voids that were."""
    resend = dt.timedelta(seconds=cfg.manager.resend_after)
    rows = tx.due(DUE, now=tx.now)
    for row in rows:
        if commands.claim(tx, cfg, row) is None:
            # Nobody to take it, or it is held back by a freeze: its hello makes it due again at
            # once. A session counts for more than the state: a host that an operator called down
            # may still have VMs to reap.
            tx.swap(row, publish_at=tx.now + resend)
    voids = tx.due(VOIDS_DUE, now=tx.now)
    for void in voids:
        host = tx.find(Host, void.host)
        tx.put(void, next_at=tx.now + resend)
        if host is not None and host.session_open:
            tx.cast(
                void.host,
                "void",
                instance=void.instance,
                generation=void.generation,
                session=host.session,
            )
    if max(len(rows), len(voids)) == BATCH:
        tx.commands_due = True  # and perhaps there are more
    return len(rows) + len(voids)


def _give_back(tx: Tx, unsent: list[Cast]) -> None:
    """Due again, still PUBLISHED: a broker that broke off may have taken it all the same."""
    for cast in unsent:
        if "command" in cast.kwargs:
            row = tx.find(CommandRow, cast.kwargs["command"]["id"])
            if row is not None and row.publish_at is not None:
                tx.swap(row, publish_at=tx.now)
        elif cast.method == "void":
            void = tx.find(Void, cast.host, cast.kwargs["instance"])
            if void is not None:
                tx.put(void, next_at=tx.now)

"""A delete waits for the agent of a host that is DOWN, unless an operator has named it."""

from __future__ import annotations

from typing import Any

from manager.flows import delete
from manager.rules.deletion import Decision, Outcome
from manager.store.hosts import Host


def apply(swap: Any) -> None:
    good = delete._decide

    def decide(tx: Any, host: str, *, forced: bool) -> Decision:
        found = good(tx, host, forced=forced)
        row = tx.find(Host, host)
        named = row is None or row.forced_down or row.fenced
        if forced or named or found.outcome is not Outcome.DB_ONLY:
            return found
        return Decision(8, Outcome.REMOTE, found.reason)

    swap(delete, "_decide", decide)

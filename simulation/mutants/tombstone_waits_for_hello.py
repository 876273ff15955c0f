"""A tombstone that opens on a host whose agent lives waits for the agent's next hello."""

from __future__ import annotations

from typing import Any

from manager.flows import reap


def apply(swap: Any) -> None:
    good = reap.bury

    def bury(tx: Any, vm: Any, host: str, **fields: Any) -> Any:
        stone = good(tx, vm, host, **fields)
        return tx.swap(stone, issue_at=None)

    swap(reap, "bury", bury)

"""A command is cast once: what the network lost is never sent again."""

from __future__ import annotations

from typing import Any

from manager.flows import commands


def apply(swap: Any) -> None:
    good = commands.claim

    def claim(tx: Any, cfg: Any, row: Any) -> Any:
        cast = row if row.publishes else good(tx, cfg, row)
        return cast and tx.swap(cast, publish_at=None)

    swap(commands, "claim", claim)

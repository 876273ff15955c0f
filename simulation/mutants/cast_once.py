"""A command is cast once: what the network lost is never sent again."""

from __future__ import annotations

from typing import Any

from manager.flows import publish
from manager.store.commands import CommandRow


def apply(swap: Any) -> None:
    good = publish._claim

    def claim(tx: Any, cfg: Any) -> Any:
        claimed, voids = good(tx, cfg)
        for command in claimed:
            tx.swap(tx.get(CommandRow, command.id), publish_at=None)
        return claimed, voids

    swap(publish, "_claim", claim)

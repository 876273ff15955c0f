"""A command that is cast again has another id."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from manager.flows import commands


def apply(swap: Any) -> None:
    good = commands.claim

    def claim(tx: Any, cfg: Any, row: Any) -> Any:
        claimed = good(tx, cfg, row)
        if claimed is not None and claimed.publishes > 1:
            cast = tx.casts[-1]
            other = uuid.uuid5(uuid.UUID(claimed.id), str(claimed.publishes))
            command = {**cast.kwargs["command"], "id": str(other)}
            tx.casts[-1] = msgspec.structs.replace(cast, kwargs={"command": command})
        return claimed

    swap(commands, "claim", claim)

"""A command that is cast again has another id."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from manager.flows import publish


def apply(swap: Any) -> None:
    good = publish._message

    def message(cfg: Any, row: Any, session: int) -> Any:
        made = good(cfg, row, session)
        if row.publishes > 1:
            other = uuid.uuid5(uuid.UUID(row.id), str(row.publishes))
            made = msgspec.structs.replace(made, id=str(other))
        return made

    swap(publish, "_message", message)

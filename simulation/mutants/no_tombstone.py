"""A DB-only delete leaves no tombstone."""

from __future__ import annotations

from typing import Any

from common.states import TombstoneState
from manager.flows import reap


def apply(swap: Any) -> None:
    good = reap.bury

    def bury(tx: Any, vm: Any, host: str, *, state: TombstoneState, **fields: Any) -> Any:
        if state is TombstoneState.OPEN:
            return None
        return good(tx, vm, host, state=state, **fields)

    swap(reap, "bury", bury)

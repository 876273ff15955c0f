"""A clean-up that has failed, or of which nothing was heard, counts as done."""

from __future__ import annotations

from typing import Any

from manager.flows import cleanup
from manager.store.cleanups import Cleanup, CleanupState


def apply(swap: Any) -> None:
    def command_ended(tx: Any, command: Any, _result: Any) -> None:
        item = tx.find(Cleanup, str(command.spec.get("cleanup")))
        if item is not None and item.state is CleanupState.OPEN:
            cleanup._end(tx, item, CleanupState.DONE, "manager", "asked for")

    swap(cleanup, "command_ended", command_ended)

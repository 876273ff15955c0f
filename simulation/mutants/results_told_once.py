"""An agent forgets a result as soon as it has told it, without waiting for a confirmation."""

from __future__ import annotations

from typing import Any

from agent.journal import Journal


def apply(swap: Any) -> None:
    good = Journal.pending

    def pending(self: Journal, after: int, limit: int) -> Any:
        found = good(self, after, limit)
        self.confirm([r.id for r in found.results])
        return found

    swap(Journal, "pending", pending)

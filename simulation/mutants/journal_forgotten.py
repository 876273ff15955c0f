"""An agent that starts again remembers nothing but its journal's name."""

from __future__ import annotations

from typing import Any

from simulation.journals import SimJournal


def apply(swap: Any) -> None:
    good = SimJournal._open

    def forget(self: SimJournal) -> Any:
        db = good(self)
        for table in ("commands", "floors", "answers"):
            db.execute(f"DELETE FROM {table}")  # noqa: S608 - one of three words
        return db

    swap(SimJournal, "_open", forget)

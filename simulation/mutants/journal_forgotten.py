"""An agent that starts again remembers nothing but its journal's name."""

from __future__ import annotations

from typing import Any

from agent.journal import Journal


def apply(swap: Any) -> None:
    good = Journal._open

    def forget(self: Journal) -> Any:
        db = good(self)
        for table in ("commands", "floors", "answers"):
            db.execute(f"DELETE FROM {table}")  # noqa: S608 - one of three words
        return db

    swap(Journal, "_open", forget)

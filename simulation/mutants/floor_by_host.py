"""One floor orders the commands of a whole host instead of those of each VM."""

from __future__ import annotations

from typing import Any

from agent.journal import Journal


def apply(swap: Any) -> None:
    def floor(_self: Journal, db: Any, _instance: str) -> int | None:
        (highest,) = db.execute("SELECT max(generation) FROM floors").fetchone()
        return None if highest is None else int(highest)

    swap(Journal, "_floor", floor)

"""A terminate ends also what has started, as not run."""

from __future__ import annotations

from typing import Any

import msgspec

from agent.journal import Journal, State, not_run
from common import messages as m


def apply(swap: Any) -> None:
    def end(self: Journal, db: Any, instance: str, upto: int, code: str, text: str) -> Any:
        rows = db.execute(
            "SELECT body FROM commands WHERE instance = ? AND generation <= ? AND state != ?",
            (instance, upto, State.FINISHED),
        ).fetchall()
        found = [msgspec.json.decode(body, type=m.Command) for (body,) in rows]
        for command in found:
            self._finish(db, not_run(command, code, text))
        return tuple(c.id for c in found)

    swap(Journal, "_end_unstarted", end)

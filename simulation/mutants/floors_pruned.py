"""An agent forgets a command and its floor once its result is confirmed."""

from __future__ import annotations

from typing import Any

from agent.journal import Journal


def apply(swap: Any) -> None:
    good = Journal.confirm

    def confirm(self: Journal, ids: Any) -> None:
        keys = [(i,) for i in ids]
        good(self, [k for (k,) in keys])

        def prune(db: Any) -> None:
            db.executemany(
                "DELETE FROM floors WHERE instance IN"
                " (SELECT instance FROM commands WHERE id = ? AND state = 'FINISHED')",
                keys,
            )
            db.executemany("DELETE FROM commands WHERE id = ? AND state = 'FINISHED'", keys)

        self._write(prune)

    swap(Journal, "confirm", confirm)

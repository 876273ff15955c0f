"""An agent does not look whether it has had a command already."""

from __future__ import annotations

from typing import Any

from agent.journal import Journal


def apply(swap: Any) -> None:
    good = Journal.receive

    def receive(self: Journal, command: Any) -> Any:
        def forget(db: Any) -> None:
            known = db.execute("DELETE FROM commands WHERE id = ?", (command.id,)).rowcount
            if known:
                db.execute("DELETE FROM floors WHERE instance = ?", (command.instance,))

        self._write(forget)
        return good(self, command)

    swap(Journal, "receive", receive)

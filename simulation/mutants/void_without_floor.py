"""A void is answered with not-run without a floor that keeps the command from running later."""

from __future__ import annotations

from typing import Any

from agent.journal import Journal


def apply(swap: Any) -> None:
    good = Journal.void

    def void(self: Journal, instance: str, generation: int) -> Any:
        floor = self.floor(instance)
        answer = good(self, instance, generation)

        def lower(db: Any) -> None:
            db.execute("DELETE FROM floors WHERE instance = ?", (instance,))
            if floor is not None:
                db.execute("INSERT INTO floors VALUES (?, ?)", (instance, floor))

        self._write(lower)
        return answer

    swap(Journal, "void", void)

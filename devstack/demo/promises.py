"""The five promises and what was found against them."""

from __future__ import annotations

from collections.abc import Callable

PROMISES = {
    1: "A stranger's VM is never touched",
    2: "Every accepted command ends",
    3: "Deletion converges",
    4: "Power states are what the hypervisor last said, with their age",
    5: "Silence is not evidence",
}


class Ledger:
    """Counts checks; a promise is kept when it was checked and every check held."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._held: dict[int, int] = dict.fromkeys(PROMISES, 0)
        self._broken: dict[int, list[str]] = {n: [] for n in PROMISES}

    def check(self, promise: int, holds: bool, what: str) -> bool:
        """Note whether `what` holds, and say so."""
        if holds:
            self._held[promise] += 1
        else:
            self._broken[promise].append(what)
        self._tell(f"   {'ok ' if holds else 'BROKEN'} [promise {promise}] {what}")
        return holds

    def close(self) -> int:
        """Print the verdict, the broken ones by name; returns the exit status."""
        broken = [n for n in PROMISES if self._broken[n] or not self._held[n]]
        self._tell("")
        for n, words in PROMISES.items():
            state = "BROKEN" if n in broken else "kept"
            self._tell(f"   {n}. {words}: {state} ({self._held[n]} checks)")
            for what in self._broken[n] or (["never checked"] if n in broken else []):
                self._tell(f"      - {what}")
        self._tell(f"promises: {len(PROMISES) - len(broken)} kept, {len(broken)} broken")
        return 1 if broken else 0

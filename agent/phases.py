"""How long each part of a command's work takes, told by whoever does it, on any thread."""

from __future__ import annotations

from common.errors import CallTimeout
from common.messages import Phase
from common.runtime import Runtime


class Phases:
    """The phases of one attempt, in order; nothing may begin after its `deadline` (monotonic)."""

    def __init__(self, runtime: Runtime, deadline: float) -> None:
        self._runtime = runtime
        self._deadline = deadline
        self._begun: list[tuple[str, float]] = []

    def begin(self, name: str) -> None:
        """This phase begins now, or goes on; CallTimeout when the command's time is over."""
        now = self._runtime.monotonic()
        if now >= self._deadline:
            raise CallTimeout(f"no time was left for {name}", "give the command more time")
        if not self._begun or self._begun[-1][0] != name:
            self._begun.append((name, now))

    def told(self) -> tuple[Phase, ...]:
        """All phases up to now, the last one as if it ended now; in milliseconds' precision."""
        ends = [at for _, at in self._begun[1:]] + [self._runtime.monotonic()]
        return tuple(
            Phase(name, round(end - at, 3))
            for (name, at), end in zip(self._begun, ends, strict=False)
        )

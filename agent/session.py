"""The agent's place in the managers' order of things: its session and its looks' numbers."""

from __future__ import annotations

from common.runtime import Runtime


class Session:
    """The session, None until a manager has given one, and the sequence that rises with each look.

    Session and number are drawn together: a look begun in one session is never told in the next.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._lock = runtime.lock()
        self._current: int | None = None
        self._last = 0
        self._seq = 0

    @property
    def current(self) -> int | None:
        """The session that casts must carry; None: nothing may be changed."""
        return self._current

    def begin(self, number: int) -> None:
        """A manager has welcomed us."""
        with self._lock:
            self._current = self._last = number

    def end(self) -> None:
        """The managers do not know our session any more."""
        with self._lock:
            self._current = None

    def draw(self) -> tuple[int | None, int]:
        """The session as it is told and the next number; draw before the hypervisor is asked."""
        with self._lock:
            self._seq += 1
            return self._current, self._seq

    def draw_pair(self) -> tuple[int, int]:
        """The same for a command's look, which belongs to the last session if there is none."""
        with self._lock:
            self._seq += 1
            return self._last, self._seq

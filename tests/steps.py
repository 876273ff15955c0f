"""Runs work that yields its calls, as an agent's commands do, and gives back what it came to."""

from __future__ import annotations

import queue
from typing import Any, TypeVar

from common.runtime import Runtime, Steps

T = TypeVar("T")
DEADLINE_S = 60.0


def outcome(runtime: Runtime, steps: Steps[T]) -> T:
    """What `steps` return or raise, also when a call of theirs hangs."""
    box: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def whole() -> Steps[None]:
        try:
            box.put((True, (yield from steps)))
        except Exception as exc:  # noqa: BLE001 - raised again by the caller
            box.put((False, exc))

    runtime.spawn("steps", runtime.carry_on, whole())
    good, value = box.get(timeout=DEADLINE_S)
    if good:
        return value  # type: ignore[no-any-return]
    raise value

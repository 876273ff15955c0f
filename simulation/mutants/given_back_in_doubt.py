"""When a start has failed its addresses are free at once, though its guest may be there."""

from __future__ import annotations

from typing import Any

from manager.flows import first_start


def apply(swap: Any) -> None:
    good = first_start._fail

    def fail(tx: Any, job: Any, vm: Any, event: Any, **told: Any) -> None:
        good(tx, job, vm, event, **{**told, "left_on": None})

    swap(first_start, "_fail", fail)

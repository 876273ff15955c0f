"""What a project uses is counted before it is held: two may both be granted the last of it."""

from __future__ import annotations

import datetime as dt
from typing import Any

from manager.flows import limits
from simulation.mutants import manager_of

SECONDS = (
    5.0  # no two steps of the simulator fall between a count and a commit: this is how they do
)


def apply(swap: Any) -> None:
    good = limits.usage

    def usage(tx: Any, project: str) -> dict[str, int]:
        counted: dict[str, tuple[dt.datetime, dict[str, int]]]
        counted = vars(manager_of(tx)).setdefault("counted", {})
        if project not in counted or (tx.now - counted[project][0]).total_seconds() > SECONDS:
            counted[project] = (tx.now, good(tx, project))
        return counted[project][1]

    swap(limits, "usage", usage)

"""The address of a VM deleted in the database alone is free at once."""

from __future__ import annotations

from typing import Any

from manager.rules import quarantine


def apply(swap: Any) -> None:
    swap(quarantine, "held", lambda _state, **_: ())

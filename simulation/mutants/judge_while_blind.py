"""Managers that could not hear judge hosts by their silence."""

from __future__ import annotations

from typing import Any

from manager.rules import liveness


def apply(swap: Any) -> None:
    swap(liveness, "is_blind", lambda _hearing, _limits: False)

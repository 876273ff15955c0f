"""Managers welcome an agent that knows a later state of their database."""

from __future__ import annotations

from typing import Any

from manager.flows import restore


def apply(swap: Any) -> None:
    swap(restore, "judge", lambda _tx, _hello: None)

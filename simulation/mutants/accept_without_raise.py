"""Accepting a restored database does not raise generations above what agents know."""

from __future__ import annotations

from typing import Any

from manager.flows import restore


def apply(swap: Any) -> None:
    swap(restore, "_raise_above", lambda *_: False)

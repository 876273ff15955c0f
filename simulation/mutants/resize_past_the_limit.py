"""A resize asks nobody whether its project may have that much."""

from __future__ import annotations

from typing import Any

from manager.flows import resize


def apply(swap: Any) -> None:
    swap(resize, "_reserve", lambda _tx, _vm, _old, _new: None)

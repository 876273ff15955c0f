"""A frozen fleet still sends the terminates that were issued before."""

from __future__ import annotations

from typing import Any

from manager.flows import freeze


def apply(swap: Any) -> None:
    swap(freeze, "holds_back", lambda _tx, _row: False)

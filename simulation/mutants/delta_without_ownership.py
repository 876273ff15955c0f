"""Deltas take any mark of the fleet for ours; full reports look whose it is."""

from __future__ import annotations

from typing import Any

from common import ownership
from manager.flows import inventory
from manager.rules import inventory as rule


def apply(swap: Any) -> None:
    take, judge = inventory.take, ownership.is_ours
    path = {"delta": False}

    def is_ours(mark: Any, *, fleet: str, **rest: Any) -> bool:
        if path["delta"]:
            return mark is not None and mark.fleet == fleet
        return judge(mark, fleet=fleet, **rest)

    def bad(tx: Any, cfg: Any, host: Any, found: Any, pair: Any) -> bool:
        path["delta"] = not found.full
        try:
            return take(tx, cfg, host, found, pair)
        finally:
            path["delta"] = False

    swap(inventory, "take", bad)
    swap(inventory, "is_ours", is_ours)
    swap(rule, "is_ours", is_ours)

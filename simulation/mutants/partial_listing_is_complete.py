"""A listing that could not read every guest is taken for the whole of them."""

from __future__ import annotations

from typing import Any

from agent.drivers.base import Listing


def apply(swap: Any) -> None:
    swap(Listing, "complete", property(lambda _self: True))

"""A freeze is told in every listing, and nobody asks for it before he destroys something."""

from __future__ import annotations

from typing import Any

from manager.flows import freeze


def apply(swap: Any) -> None:
    swap(freeze, "why", lambda _tx: "")

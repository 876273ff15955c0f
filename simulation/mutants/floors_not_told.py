"""An agent that is refused by a restored database does not tell its floors."""

from __future__ import annotations

from typing import Any

from agent.hello import Greeter


def apply(swap: Any) -> None:
    swap(Greeter, "_tell_floors", lambda _self, _known: None)

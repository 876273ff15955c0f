"""An agent and its driver take the copy of a mark for the mark."""

from __future__ import annotations

from typing import Any

from agent import ownership
from simulation import hypervisor


def apply(swap: Any) -> None:
    def is_ours(mark: Any, *, fleet: str, **_: Any) -> bool:
        return mark is not None and mark.fleet == fleet

    def why_not_ours(mark: Any, *, fleet: str, **_: Any) -> str:
        return "" if is_ours(mark, fleet=fleet) else "another's"

    swap(ownership, "is_ours", is_ours)
    swap(ownership, "why_not_ours", why_not_ours)
    swap(hypervisor, "why_not_ours", why_not_ours)

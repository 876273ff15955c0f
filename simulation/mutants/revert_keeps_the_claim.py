"""A resize that is confirmed or reverted gives back nothing of the larger size on its host."""

from __future__ import annotations

from typing import Any

from manager.flows import growing


def apply(swap: Any) -> None:
    swap(growing, "shrink", lambda _tx, _vm, _vcpus, _memory_mib: None)

"""A resize that was cut short and is not wanted any more is left as it is."""

from __future__ import annotations

from typing import Any

from common.states import VmState
from manager.flows import resize


def apply(swap: Any) -> None:
    def owe(
        tx: Any, cfg: Any, vm: Any, change: Any, _phase: Any, _why: str, _state: VmState
    ) -> None:
        resize._become(tx, cfg, vm, change, change.old, looked=False)

    swap(resize, "_owe", owe)

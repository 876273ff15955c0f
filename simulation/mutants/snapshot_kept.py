"""The snapshot of a VM that runs again, or that is deleted, is never removed."""

from __future__ import annotations

from typing import Any

from manager.flows import snapshots


def apply(swap: Any) -> None:
    swap(snapshots, "drop", lambda tx, _cfg, vm, _why: tx.swap(vm, snapshot=None, offload_at=None))

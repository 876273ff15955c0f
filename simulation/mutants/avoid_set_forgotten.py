"""A host that has refused a VM is asked again."""

from __future__ import annotations

from typing import Any

from manager.flows import first_start


def apply(swap: Any) -> None:
    swap(first_start, "_refused", lambda _job: {})

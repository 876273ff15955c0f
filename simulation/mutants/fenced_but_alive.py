"""A fenced host whose agent speaks is still believed to run nothing."""

from __future__ import annotations

from typing import Any

from manager.flows import reap
from manager.store.hosts import Host


def apply(swap: Any) -> None:
    def is_fenced(tx: Any, name: str) -> bool:
        host = tx.find(Host, name)
        return host is not None and host.fenced

    swap(reap, "is_fenced", is_fenced)

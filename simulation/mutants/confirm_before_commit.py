"""Managers confirm results before the transaction that takes them commits."""

from __future__ import annotations

import contextlib
from typing import Any

from common.bus.base import agent_at
from common.errors import BrokerUnavailable
from manager.flows import reports
from simulation.mutants import manager_of


def apply(swap: Any) -> None:
    def confirm(tx: Any, host: str, ids: list[str]) -> None:
        if ids:
            with contextlib.suppress(BrokerUnavailable):
                manager_of(tx).bus.inner.cast(agent_at(host), "confirm", {"ids": ids})

    swap(reports, "_confirm", confirm)

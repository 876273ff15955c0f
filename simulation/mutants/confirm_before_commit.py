"""Managers confirm results before the transaction that takes them commits."""

from __future__ import annotations

import contextlib
from typing import Any

from common.bus.base import agent_at
from common.errors import BrokerUnavailable
from manager.flows import reports
from simulation.mutants import manager_of


def apply(swap: Any) -> None:
    good = reports._answers

    def answers(tx: Any, cfg: Any, host: Any, message: Any) -> None:
        good(tx, cfg, host, message)
        bus = manager_of(tx).bus.inner
        for hint in tx.casts:
            if hint.method == "confirm":
                with contextlib.suppress(BrokerUnavailable):
                    bus.cast(agent_at(hint.host), hint.method, hint.kwargs)

    swap(reports, "_answers", answers)

"""A command is cast as soon as it is issued, before the transaction that records it commits."""

from __future__ import annotations

import contextlib
from typing import Any

from common.bus.base import agent_at
from common.errors import BrokerUnavailable
from manager.flows import commands
from simulation.mutants import manager_of


def apply(swap: Any) -> None:
    good = commands.issue

    def issue(tx: Any, cfg: Any, **fields: Any) -> Any:
        row = good(tx, cfg, **fields)
        bus = manager_of(tx).bus.inner
        for cast in tx.casts:
            with contextlib.suppress(BrokerUnavailable):
                bus.cast(agent_at(cast.host), cast.method, cast.kwargs)
        tx.casts.clear()
        return row

    swap(commands, "issue", issue)

"""A command is cast as soon as it is issued, before the transaction that records it commits."""

from __future__ import annotations

import contextlib
from typing import Any

from common.bus.base import agent_at
from common.errors import BrokerUnavailable
from common.messages import builtins
from manager.flows import commands, publish
from manager.store.hosts import Host
from simulation.mutants import manager_of


def apply(swap: Any) -> None:
    good = commands.issue

    def issue(tx: Any, cfg: Any, **fields: Any) -> Any:
        row = good(tx, cfg, **fields)
        host = tx.find(Host, row.host)
        if host is not None and host.session_open:
            message = publish._message(cfg, row, host.session)
            bus = manager_of(tx).bus.inner
            with contextlib.suppress(BrokerUnavailable):
                bus.cast(agent_at(row.host), row.kind, {"command": builtins(message)})
        return row

    swap(commands, "issue", issue)

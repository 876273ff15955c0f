"""The processes of the fleet: managers by what they hear, agents by what is heard of them."""

from __future__ import annotations

from typing import Any

from common.conf import Settings
from manager.flows import liveness
from manager.store.engine import Tx
from manager.store.hosts import Host, ManagerRow


def services(tx: Tx, cfg: Settings) -> list[dict[str, Any]]:
    """Managers first, then agents, each in the order of their hosts."""
    managers = sorted(tx.all(ManagerRow), key=lambda row: (row.host, row.id))
    return [*[_manager(tx, cfg, row) for row in managers], *[_agent(row) for row in tx.all(Host)]]


def _manager(tx: Tx, cfg: Settings, row: ManagerRow) -> dict[str, Any]:
    blind = liveness.is_blind(tx, cfg, row)
    return {
        "service": "manager",
        "id": row.id,
        "host": row.host,
        "state": "BLIND" if blind else "HEARS",
        "version": None,
        "started_at": row.started_at,
        "heard_since": row.heard_since,
        "blind": blind,
        "reason": row.gap or None,
        "heard_until": row.heard_until,
    }


def _agent(row: Host) -> dict[str, Any]:
    return {
        "service": "agent",
        "id": row.agent_run,
        "host": row.name,
        "state": row.state.value,
        "version": row.agent_version,
        "started_at": None,
        "heard_since": None,
        "blind": row.blind,
        "reason": row.reason,
        "heard_until": row.heard_at,
    }

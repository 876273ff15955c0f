"""Watches on the database: triggers that tell the simulator of changes which need a reason.

A trigger costs nothing while nothing happens, where a look at the tables after each step would
cost more than the step. What a transaction did that is rolled back is told as well: whoever is
told looks again after the step.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from manager.rules.deletion import FORCED

FROZEN = "EXISTS (SELECT 1 FROM meta WHERE key = 'frozen')"

RECLAIMABLE = (
    "EXISTS (SELECT 1 FROM instances i WHERE i.uuid = NEW.instance"
    " AND i.vm_state IN ('SOFT_DELETED', 'DELETED') AND NOT i.protected)"
)

# name: what it fires on, when, and what it tells
_WATCHES = {
    "older_power": (
        "UPDATE OF power_seq ON instances",
        "NEW.host IS OLD.host AND (NEW.power_session, NEW.power_seq)"
        " < (OLD.power_session, OLD.power_seq)",
        "NEW.uuid",
    ),
    "missing": ("UPDATE OF missing ON instances", "NEW.missing AND NOT OLD.missing", "NEW.uuid"),
    "seen": (
        "INSERT ON sightings",
        "NEW.kind != 'ALIEN'",
        "NEW.hypervisor_uuid, NEW.kind, NEW.host",
    ),
    "seen_otherwise": (
        "UPDATE OF kind ON sightings",
        "NEW.kind != 'ALIEN'",
        "NEW.hypervisor_uuid, NEW.kind, NEW.host",
    ),
    "released": ("DELETE ON macs", "1", "OLD.mac, OLD.instance"),
    "given": ("INSERT ON macs", "1", "NEW.mac, NEW.instance"),
    "released_ip": ("DELETE ON addresses", "1", "OLD.ip, OLD.instance"),
    "given_ip": ("INSERT ON addresses", "1", "NEW.ip, NEW.instance"),
    "held": ("INSERT ON instances", "1", ""),
    "held_otherwise": (
        "UPDATE OF host, reserved, vm_state, nics, vcpus, memory_mib ON instances",
        "NEW.host IS NOT OLD.host OR NEW.reserved != OLD.reserved OR NEW.vm_state != OLD.vm_state",
        "",
    ),
    "put": ("UPDATE OF pool ON volumes", "NEW.pool IS NOT OLD.pool", ""),
    "defect": (
        "UPDATE OF error_code ON commands",
        "NEW.error_code IN ('INTERNAL_ERROR', 'BAD_MESSAGE')",
        "NEW.instance, NEW.error",
    ),
    "reaped": (
        "UPDATE OF publishes ON commands",
        f"NEW.kind IN ('terminate_instance', 'clean_up') AND {FROZEN}",
        "NEW.id",
    ),
    "db_only": (
        "UPDATE OF steps ON jobs",
        f"NEW.kind = 'delete' AND NEW.strength < {FORCED} AND {FROZEN} AND"
        " length(replace(NEW.steps, '\"DB-only', '')) - length(NEW.steps)"
        " != length(replace(OLD.steps, '\"DB-only', '')) - length(OLD.steps)",
        "NEW.uuid",
    ),
    "reclaimed": (
        "INSERT ON jobs",
        f"json_extract(NEW.request, '$.by') = 'reclaim' AND ({FROZEN} OR NOT {RECLAIMABLE})",
        "NEW.uuid",
    ),
    "softly": (
        "UPDATE OF vm_state ON instances",
        "NEW.vm_state = 'SOFT_DELETED' AND OLD.vm_state != 'SOFT_DELETED'",
        "NEW.uuid",
    ),
    "tried": ("INSERT ON commands", "NEW.kind = 'start_vm'", "NEW.id"),
    "closed": (
        "UPDATE OF state ON tombstones",
        "NEW.state = 'CLOSED' AND OLD.state = 'OPEN'",
        "NEW.instance, NEW.host",
    ),
    "tidied": ("UPDATE OF state ON cleanups", "NEW.state = 'DONE'", "NEW.instance, NEW.remains"),
    "not_run": (
        "UPDATE OF state ON commands",
        "NEW.state = 'NOT_RUN' AND OLD.state != 'NOT_RUN'",
        "NEW.id, NEW.instance, NEW.generation, NEW.host",
    ),
    "succeeded": (
        "UPDATE OF state ON commands",
        "NEW.state = 'SUCCEEDED' AND OLD.state != 'SUCCEEDED'",
        "NEW.id, NEW.instance, NEW.generation",
    ),
    "greeted": (
        "UPDATE OF session ON hosts",
        "NEW.session_open AND NEW.session != OLD.session",
        "NEW.name, NEW.session",
    ),
    "ahead": ("INSERT ON rollbacks", "1", "NEW.host"),
    "accepted": ("DELETE ON rollbacks", "1", "OLD.host"),
    "down": (
        "UPDATE OF state ON hosts",
        "NEW.state = 'DOWN' AND OLD.state != 'DOWN' AND NOT NEW.forced_down AND NOT NEW.fenced",
        "NEW.name",
    ),
}


class Watches:
    """`told(name, ...)` is called for each change that is watched, within its transaction."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self.told: Callable[..., None] = nobody
        database.create_function("told", -1, self._tell)
        for name, (change, when, values) in _WATCHES.items():
            database.execute(
                f"CREATE TEMP TRIGGER watch_{name} AFTER {change} WHEN {when}"
                f" BEGIN SELECT told({', '.join(filter(None, (repr(name), values)))}); END"
            )

    def _tell(self, *values: Any) -> int:
        self.told(*values)
        return 0


def nobody(*_: Any) -> None:
    """There is no one to be told."""

"""Freeze: whatever destroys something without being asked has to ask here first.

Reaping and cleaning up (`reap.issue`, `cleanup`, and `commands.claim` for what was issued before),
stopping again (`power`), confirming a resize for which nobody has spoken (`resize`), and steps of a
delete that would go on from the database alone (`delete`). What an agent was sent before is not
called back, and what an operator forces is done.
"""

from __future__ import annotations

from common.messages import CommandKind
from common.states import TombstoneState
from manager.flows import jobs
from manager.store import freezing
from manager.store.cleanups import Cleanup, CleanupState
from manager.store.commands import CommandRow
from manager.store.engine import Tx
from manager.store.freezing import Freeze
from manager.store.hosts import Host
from manager.store.jobs import Job
from manager.store.statements import Query
from manager.store.tombstones import Tombstone

DESTROYING = (
    CommandKind.TERMINATE_INSTANCE,
    CommandKind.STOP_VM,
    CommandKind.CLEAN_UP,
    CommandKind.CONFIRM_RESIZE,
)
WITH_SESSION = Query(Host, Host.__table__.c.session_open)


def why(tx: Tx) -> str:
    """That nothing may be destroyed now, and by whose word; "" when it may."""
    frozen = freezing.current(tx)
    return "" if frozen is None else told(frozen)


def told(frozen: Freeze) -> str:
    """The freeze in words."""
    return f"FROZEN since {frozen.since:%Y-%m-%dT%H:%M:%SZ} by {frozen.operator}: {frozen.reason}"


def holds_back(tx: Tx, row: CommandRow) -> bool:
    """True for a command that nobody waits for and that must not be sent now."""
    if row.kind not in DESTROYING:
        return False
    job = tx.find(Job, row.job) if row.job is not None else None
    wanted = job is not None and job.state in jobs.OPEN and "by" not in job.request
    return not wanted and why(tx) != ""


def begin(tx: Tx, operator: str, reason: str) -> Freeze:
    """Freeze; one that is in force already stays as it is."""
    if freezing.begin(tx, operator, reason):
        tx.event("fleet.frozen", "fleet", operator, reason)
    frozen = freezing.current(tx)
    if frozen is None:
        raise AssertionError("it has just been written")
    return frozen


def end(tx: Tx, operator: str, reason: str | None) -> None:
    """Unfreeze: what was held back is taken up again."""
    if not freezing.end(tx):
        return
    tx.event("fleet.unfrozen", "fleet", operator, reason or "no reason given")
    is_open = Tombstone.__table__.c.state == TombstoneState.OPEN
    tx.change_where(Tombstone, is_open, issue_at=tx.now)
    tx.change_where(Cleanup, Cleanup.__table__.c.state == CleanupState.OPEN, next_try_at=tx.now)
    for host in tx.ask(WITH_SESSION):
        # Guests that run although they were stopped are judged when they are reported again.
        tx.cast(host.name, "report_inventory")

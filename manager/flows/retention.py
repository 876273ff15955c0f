"""Retention: deleted VMs, what has ended and old events are forgotten; tombstones are not."""

from __future__ import annotations

import datetime as dt

from common.conf import Settings
from common.states import VmState
from manager.flows import commands, jobs
from manager.store.cleanups import Cleanup, CleanupState
from manager.store.commands import CommandRow
from manager.store.engine import Tx
from manager.store.events import Event
from manager.store.instances import Instance
from manager.store.jobs import Job
from manager.store.sightings import Sighting
from manager.store.statements import Removal, among, ask

EVENTS_KEPT_S = 30 * 86400.0
GONE_KEPT_S = 3600.0  # longer than any report can be under way


J, E = Job.__table__.c, Event.__table__.c
C = CommandRow.__table__.c
CLEANUPS = Cleanup.__table__.c
S = Sighting.__table__.c
I = Instance.__table__.c  # noqa: E741 - the table's columns, as the others
IS_OPEN = among(J.state, jobs.OPEN)
OLD = (
    Removal(Instance, I.vm_state == VmState.DELETED, I.deleted_at < ask("old")),
    Removal(Job, ~IS_OPEN, J.ended_at < ask("old")),
    Removal(Job, J.same_as.is_not(None), J.accepted_at < ask("old")),
    Removal(CommandRow, ~commands.IS_OPEN, C.ended_at < ask("old")),
    Removal(Cleanup, CLEANUPS.state != CleanupState.OPEN, CLEANUPS.ended_at < ask("old")),
)
OLD_EVENTS = Removal(Event, E.at < ask("old"))
GONE = Removal(Sighting, S.present.is_(False), S.last_seen < ask("old"))


def prune(tx: Tx, cfg: Settings) -> None:
    """One round; what is open or live is never touched."""
    old = tx.now - dt.timedelta(seconds=cfg.manager.retention)
    for removal in OLD:
        tx.remove(removal, old=old)
    kept = max(EVENTS_KEPT_S, cfg.manager.retention)
    tx.remove(OLD_EVENTS, old=tx.now - dt.timedelta(seconds=kept))
    tx.remove(GONE, old=tx.now - dt.timedelta(seconds=GONE_KEPT_S))

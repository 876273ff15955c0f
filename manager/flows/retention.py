"""Retention: deleted VMs, ended jobs and old events are forgotten; tombstones are not."""

from __future__ import annotations

import datetime as dt

from common.conf import Settings
from common.states import VmState
from manager.flows import commands, jobs
from manager.store.commands import CommandRow
from manager.store.engine import Tx
from manager.store.events import Event
from manager.store.instances import Instance
from manager.store.jobs import Job
from manager.store.sightings import Sighting

EVENTS_KEPT_S = 30 * 86400.0
GONE_KEPT_S = 3600.0  # longer than any report can be under way


def prune(tx: Tx, cfg: Settings) -> None:
    """One round; what is open or live is never touched."""
    old = tx.now - dt.timedelta(seconds=cfg.manager.retention)
    i, j, c, e, s = (kind.__table__.c for kind in (Instance, Job, CommandRow, Event, Sighting))
    tx.delete_where(Instance, i.vm_state == VmState.DELETED, i.deleted_at < old)
    tx.delete_where(Job, j.state.not_in(jobs.OPEN), j.ended_at < old)
    tx.delete_where(Job, j.same_as.is_not(None), j.accepted_at < old)
    tx.delete_where(CommandRow, c.state.not_in(commands.OPEN), c.ended_at < old)
    kept = max(EVENTS_KEPT_S, cfg.manager.retention)
    tx.delete_where(Event, e.at < tx.now - dt.timedelta(seconds=kept))
    gone = tx.now - dt.timedelta(seconds=GONE_KEPT_S)
    tx.delete_where(Sighting, s.present.is_(False), s.last_seen < gone)

"""One timeline of a VM or a host: its events, its jobs and its commands, oldest first."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from common.messages import CommandKind
from common.states import CommandState
from manager.api import views
from manager.store.commands import CommandRow
from manager.store.engine import Tx
from manager.store.events import Event
from manager.store.hosts import Host
from manager.store.instances import Instance
from manager.store.jobs import Job

C, E, J = CommandRow.__table__.c, Event.__table__.c, Job.__table__.c
I = Instance.__table__.c  # noqa: E741 - the table's columns, as the others
# The last that a row tells: with the newest N rows of each kind come the newest N entries.
LAST_OF_JOB = sa.func.coalesce(J.ended_at, J.accepted_at)
LAST_OF_COMMAND = sa.func.coalesce(
    C.ended_at, C.started_at, C.received_at, C.published_at, C.accepted_at
)


class Entry(NamedTuple):
    """One line. `turn` and `n` order what has happened at the same instant."""

    at: dt.datetime
    turn: int
    n: int
    source: str
    what: str
    detail: str


def of_vm(tx: Tx, vm: Instance, since: dt.datetime | None, limit: int) -> dict[str, Any]:
    """Everything that is stored of what happened to a VM."""
    where = [E.object == vm.uuid], [J.instance == vm.uuid], [C.instance == vm.uuid]
    return _told(tx, _Rows(tx, *where, since, limit).entries(), since, limit)


def of_host(tx: Tx, host: Host, since: dt.datetime | None, limit: int) -> dict[str, Any]:
    """The same of a host: what was asked of it for its VMs included, canaries left out."""
    ours = [C.host == host.name, C.kind != CommandKind.NOOP]
    where = [E.object == host.name], [J.host == host.name], ours
    return _told(tx, _Rows(tx, *where, since, limit).entries(), since, limit)


def events(tx: Tx, object_: str | None, kind: str | None, limit: int) -> dict[str, Any]:
    """The newest events, of all or of an object by its name or id, of a kind or its beginning."""
    where = []
    if object_ is not None:
        named = sa.select(I.uuid).where(I.name == object_)
        where.append(sa.or_(E.object.in_([object_, object_.lower()]), E.object.in_(named)))
    if kind is not None:
        where.append(sa.or_(E.kind == kind, E.kind.startswith(f"{kind}.", autoescape=True)))
    found = tx.all(Event, *where, order=[E.at.desc(), E.n.desc()], limit=limit + 1)
    shown = [
        {"at": e.at, "kind": e.kind, "object": e.object, "source": e.source, "text": e.text}
        for e in reversed(found[:limit])
    ]
    return {"events": shown, "notices": _notices(tx, len(found) > limit)}


def _told(
    tx: Tx, entries: Iterator[Entry], since: dt.datetime | None, limit: int
) -> dict[str, Any]:
    found = sorted(entry for entry in entries if since is None or entry.at >= since)
    shown = [
        {"at": e.at, "source": e.source, "what": e.what, "detail": e.detail} for e in found[-limit:]
    ]
    return {"history": shown, "notices": _notices(tx, len(found) > limit)}


def _notices(tx: Tx, left_out: bool) -> list[str]:
    more = ["only the newest are shown; more with --limit"] if left_out else []
    return [*views.frozen(tx), *more]


class _Rows:
    """What is stored, and the entries that it makes."""

    def __init__(
        self,
        tx: Tx,
        events_: Sequence[Any],
        jobs: Sequence[Any],
        commands: Sequence[Any],
        since: dt.datetime | None,
        limit: int,
    ) -> None:
        def recent(ended: Any) -> list[Any]:
            return [] if since is None else [sa.or_(ended.is_(None), ended >= since)]

        of_events = [] if since is None else [E.at >= since]
        order = [E.at.desc(), E.n.desc()]
        most = limit + 1
        self._events = tx.all(Event, *events_, *of_events, order=order, limit=most)
        last = [LAST_OF_JOB.desc()]
        self._jobs = tx.all(Job, *jobs, *recent(J.ended_at), order=last, limit=most)
        last = [LAST_OF_COMMAND.desc()]
        self._commands = tx.all(CommandRow, *commands, *recent(C.ended_at), order=last, limit=most)
        about = {job.instance for job in self._jobs if job.instance}
        about |= {command.instance for command in self._commands}
        vms = tx.all(Instance, I.uuid.in_(sorted(about))) if about else []
        self._names = {vm.uuid: vm.name for vm in vms}

    def entries(self) -> Iterator[Entry]:
        ended = {job.uuid for job in self._jobs if job.ended_at is not None}
        for event in self._events:
            # The end of a job is an event too, which outlives it.
            if not (event.kind.startswith("job.") and event.data.get("job") in ended):
                yield Entry(event.at, 6, event.n, event.source, event.kind, event.text)
        for job in self._jobs:
            yield from self._of_job(job)
        for command in self._commands:
            yield from self._of_command(command)

    def _of_job(self, job: Job) -> Iterator[Entry]:
        what = f"{job.kind} of {self._name(job.instance)}, job {job.uuid}"
        for n, said in enumerate(job.trail):
            kind = "job.said" if n else "job.accepted"
            yield Entry(said.when, 0, n, said.source, kind, f"{what}: {said.text}")
        if job.ended_at is not None:
            why = f": {job.error_code}: {job.error}" if job.error_code else ""
            kind = f"job.{job.state.lower()}"
            yield Entry(job.ended_at, 7, 0, "manager", kind, f"{what}{why}")

    def _of_command(self, row: CommandRow) -> Iterator[Entry]:
        name, agent = self._name(row.instance), f"host {row.host}"
        what = f"{row.kind} of {name} at generation {row.generation} on {row.host}"
        casts = f", cast {row.publishes} times" if row.publishes > 1 else ""
        steps = (
            ("accepted", row.accepted_at, "manager", ""),
            ("published", row.published_at, "manager", casts),
            ("received", row.received_at, agent, ""),
            ("started", row.started_at, agent, ""),
            (row.state.lower(), row.ended_at, self._ended_by(row), self._why(row)),
        )
        for turn, (step, at, source, more) in enumerate(steps, start=1):
            if at is not None:
                yield Entry(at, turn, row.generation, source, f"command.{step}", what + more)

    @staticmethod
    def _ended_by(row: CommandRow) -> str:
        """Nobody but its agent can say what became of a command that was sent."""
        said = row.published_at is not None and row.state is not CommandState.UNKNOWN
        return f"host {row.host}" if said else "manager"

    @staticmethod
    def _why(row: CommandRow) -> str:
        return f": {row.error_code}: {row.error}" if row.error_code else ""

    def _name(self, instance: str | None) -> str:
        return self._names.get(instance or "", instance or "-")

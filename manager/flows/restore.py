"""A database that was restored from a backup is older than its agents, and must not command them.

Agents keep the highest mark of the store that they were told. One that is told a lower one, or one
of another timeline, asks for a session and gets none: it reports its floors instead, and changes
nothing until an operator accepts what was lost (`muster db accept-restore`).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from common.conf import Settings
from common.errors import DbRolledBack, WrongState
from common.messages import FloorEntry, Hello
from common.states import HostState, TaskState, TombstoneState
from manager.flows import found, jobs
from manager.store import timeline
from manager.store.engine import Tx
from manager.store.events import Meta
from manager.store.hosts import Host
from manager.store.instances import Instance
from manager.store.jobs import Job
from manager.store.rollbacks import AgentFloor, Rollback
from manager.store.statements import Query, among, ask
from manager.store.tombstones import Tombstone

T = Tombstone.__table__.c
F = AgentFloor.__table__.c
J = Job.__table__.c
R = Rollback.__table__.c
AHEAD = Query(Rollback, R.timeline == ask("timeline"))
RISE_S = 10.0
STOOD_STILL = 3  # times that it should have risen: nobody used this database, or it is an older one
STARTING = (TaskState.SPAWNING, TaskState.UNSHELVING)
M = Meta.__table__.c
# Risen too long ago, or by a clock that was ahead of the one that the database has now.
IS_DUE = sa.and_(
    M.key == timeline.RISEN_AT, sa.or_(M.value <= ask("risen"), M.value > ask("risen_ahead"))
)


def limits(tx: Tx) -> dict[str, str]:
    """When the mark should have risen last."""
    age = dt.timedelta(seconds=RISE_S)
    return {"risen": (tx.now - age).isoformat(), "risen_ahead": (tx.now + age).isoformat()}


def rise(tx: Tx, cfg: Settings) -> None:
    """Raise the mark by the clock, not by what happens: a restored database must not catch up
    with its agents before they have compared. While one is known to be ahead, it stands still;
    one that belongs to another database holds up nobody."""
    if timeline.age_s(tx) >= RISE_S and noticed_at(tx) is None:
        if timeline.age_s(tx) > STOOD_STILL * max(RISE_S, cfg.manager.tick_interval):
            timeline.doubt(tx, cfg.manager.service_down_time + 2 * cfg.manager.canary_interval)
        timeline.advance(tx)


def is_doubtful(tx: Tx) -> bool:
    """True while an agent is known to be ahead of this database, or may not have said so yet."""
    return timeline.is_doubted(tx) or noticed_at(tx) is not None


def untold(tx: Tx, cfg: Settings, wished_at: dt.datetime) -> str:
    """Who may still have to tell of guests that this database has forgotten; "" for nobody.

    Of a wish from before it was put back: what a host has made for it may not be on record.
    """
    noticed, went_on = noticed_at(tx), timeline.went_on_at(tx)
    if timeline.is_doubted(tx) or (noticed is not None and wished_at <= noticed):
        return "agents to compare what they know with this database"
    patience = dt.timedelta(seconds=cfg.manager.service_down_time)
    if went_on is None or wished_at > went_on or tx.now >= went_on + patience:
        return ""
    for host in tx.all(Host, Host.__table__.c.state != HostState.DOWN):
        if host.inventory_at is None or host.inventory_at <= went_on:
            return f"{host.name} to show its guests, since a restore was accepted"
    return ""


def noticed_at(tx: Tx) -> dt.datetime | None:
    """When the first host was found ahead of this very database, if one is."""
    ahead = tx.ask(AHEAD, timeline=timeline.current(tx).timeline)
    return min((row.since for row in ahead), default=None)


def judge(tx: Tx, hello: Hello) -> None:
    """Raise DbRolledBack for an agent that knows a later state of this database, or another one."""
    if hello.store_timeline is None:
        return
    ours = timeline.current(tx)
    accepted = timeline.accepted(tx, hello.store_timeline)
    limit = ours.mark if hello.store_timeline == ours.timeline else accepted
    noted = tx.find(Rollback, hello.host)
    if noted is None and limit is not None and hello.store_mark <= limit:
        return
    raise DbRolledBack(
        f"{hello.host} knows this database at mark {hello.store_mark}, and it is at {ours.mark}"
        if hello.store_timeline == ours.timeline
        else f"{hello.host} belongs to another database, of timeline {hello.store_timeline}",
        "was it restored from a backup? muster doctor; "
        "then: muster db accept-restore --reason TEXT",
        floors=floors_of(tx, hello.host),
    )


def note(tx: Tx, hello: Hello) -> None:
    """Remember a host that is ahead of us, in a transaction of its own."""
    row = Rollback(
        host=hello.host,
        timeline=hello.store_timeline or "",
        mark=hello.store_mark,
        since=tx.now,
    )
    host = tx.lock(Host, hello.host)
    if host is not None and host.session_open:
        tx.put(host, session_open=False)
    if tx.insert_if_new(row):
        text = f"{told(tx, row)}, and changes nothing until a restore is accepted"
        tx.event("DB_ROLLED_BACK", hello.host, f"host {hello.host}", text, mark=hello.store_mark)


def told(tx: Tx, row: Rollback) -> str:
    """What its agent's hello has told of this host, in words."""
    if row.timeline == timeline.current(tx).timeline:
        return f"{row.host} has seen a later state of this database"
    return f"{row.host} belongs to another database"


def require_none(tx: Tx, hosts: Iterable[str]) -> None:
    """Raise DbRolledBack for a wish about a host that is ahead: it would rest on old listings."""
    for name in hosts:
        host = tx.find(Host, name)
        if host is not None and host.session_open:
            continue  # one that is ahead gets no session
        row = tx.find(Rollback, name)
        if row is not None:
            raise DbRolledBack(
                f"{told(tx, row)}, and nothing is changed there",
                "muster doctor; then: muster db accept-restore --reason TEXT",
            )


def require_not_noticed(tx: Tx) -> None:
    """Raise DbRolledBack while any host is ahead of this very database: whatever is on no host may
    be on that one."""
    if noticed_at(tx) is not None:
        raise DbRolledBack(
            "a host has seen a later state of this database, and may have it",
            "muster doctor; then: muster db accept-restore --reason TEXT",
        )


def floors_of(tx: Tx, host: str) -> int:
    """How many floors a refused host has reported."""
    return tx.count(AgentFloor, F.host == host)


def floors(tx: Tx, host: str, reported: tuple[FloorEntry, ...]) -> None:
    """What a host's agent reports that was refused; of others nobody asks."""
    if not reported or tx.find(Rollback, host) is None:
        return
    known = {f.instance: f for f in tx.all(AgentFloor, F.host == host)}
    for entry in reported:
        old = known.get(entry.instance)
        if old is None:
            row = AgentFloor(host=host, instance=entry.instance, generation=entry.generation)
            tx.insert_if_new(row)
        elif old.generation < entry.generation:
            tx.put(old, generation=entry.generation)


def accept(tx: Tx, operator: str, reason: str) -> dict[str, Any]:
    """Go on from this state: above what agents know, and with the tombstones it has."""
    ahead = tx.all(Rollback)
    if not ahead:
        raise WrongState("no agent is ahead of this database", "nothing to accept")
    ours = timeline.current(tx)
    noticed = noticed_at(tx)
    unheard = [] if noticed is None else _not_heard_since(tx, noticed)
    going_on = [] if noticed is None else _open_since_before(tx, noticed)
    raised = {}
    highest: dict[str, AgentFloor] = {}
    for floor in tx.all(AgentFloor, order=[F.generation]):
        highest[floor.instance] = floor
    for instance, floor in highest.items():
        _find(tx, floor)
        if _raise_above(tx, instance, floor.generation):
            raised[instance] = floor.generation
    marks: dict[str, int] = {}
    for row in ahead:
        marks[row.timeline] = max(row.mark, marks.get(row.timeline, 0))
    timeline.advance(tx, above=marks.pop(ours.timeline, 0))
    for other, mark in marks.items():
        timeline.accept(tx, other, mark)
    timeline.went_on(tx)
    tx.delete_where(AgentFloor)
    tx.delete_where(Rollback)
    stones = tx.all(Tombstone, T.state == TombstoneState.OPEN)
    hosts = [row.host for row in ahead]
    text = f"{operator} went on with a restored database, on {', '.join(hosts)}: {reason}"
    if unheard:
        text += f"; not heard since, and not compared: {', '.join(unheard)}"
    if going_on:
        text += f"; open jobs of the backup that go on: {len(going_on)}"
    tx.event("db.restore_accepted", "database", operator, text, raised=len(raised))
    return {
        "hosts": hosts,
        "not_compared": unheard,
        "raised": raised,
        "open_jobs": len(going_on),
        "tombstones": stones,
    }


def _not_heard_since(tx: Tx, when: dt.datetime) -> list[str]:
    """Hosts that may be ahead as well: nothing of what their agents know has been compared.

    One whose session was in the backup reports as if nothing had happened, and compares when it
    gets a canary.
    """
    return [
        host.name
        for host in tx.all(Host)
        if min(host.heard_at, host.canary_heard_at or host.heard_at) < when
        and tx.find(Rollback, host.name) is None
    ]


def _open_since_before(tx: Tx, when: dt.datetime) -> list[Job]:
    return tx.all(Job, among(J.state, jobs.OPEN), J.same_as.is_(None), J.accepted_at < when)


def _find(tx: Tx, floor: AgentFloor) -> None:
    """A VM that is being started, and whose agent has heard of a start that is forgotten."""
    vm = tx.find(Instance, floor.instance)
    if vm is None or not vm.live or vm.task_state not in STARTING:
        return
    if found.is_leftover(vm, floor.generation):
        return
    if not found.is_on_record(tx, vm.uuid, floor.host, floor.generation):
        found.take(tx, vm, floor.host, f"the agent of {floor.host} knows a later command of it")


def _raise_above(tx: Tx, instance: str, generation: int) -> bool:
    """The next command of an instance goes above what any agent has heard of it."""
    raised = False
    vm = tx.find(Instance, instance)
    if vm is not None and vm.generation < generation:
        tx.swap(vm, generation=generation)
        raised = True
    for stone in tx.all(Tombstone, T.instance == instance, T.generation < generation):
        # A guest whose record lives on this very host must not become doomed by this.
        if vm is None or not vm.live or vm.host != stone.host:
            tx.swap(stone, generation=generation)
            raised = True
    return raised

"""Hello: an agent asks for a session; nothing is changed on its host without one."""

from __future__ import annotations

import sqlalchemy as sa

from common.conf import Settings
from common.errors import BadRequest, MusterError, WrongFleet
from common.messages import FloorEntry, Hello, Welcome
from common.model import Kind
from common.states import HostState
from manager.flows import canary, commands, model, placing, reap, restore
from manager.rules.liveness import LATE
from manager.store import timeline
from manager.store.commands import CommandRow, Void
from manager.store.engine import Tx
from manager.store.hosts import Host
from manager.store.instances import Instance
from manager.store.sightings import Sighting
from manager.store.statements import Query, ask
from manager.store.tombstones import Tombstone

C, V = CommandRow.__table__.c, Void.__table__.c
OPEN_OF_HOST = Query(CommandRow, C.host == ask("host"), commands.IS_OPEN)
OPEN_OF_VM = Query(
    CommandRow,
    C.instance == ask("instance"),
    C.host == ask("host"),
    commands.IS_OPEN,
    order=[C.generation],
    limit=1,
)
S, T = Sighting.__table__.c, Tombstone.__table__.c
I = Instance.__table__.c  # noqa: E741 - the table's columns, as the others
SESSIONS = sa.union_all(
    sa.select(sa.func.max(S.session)).where(S.host == ask("host")),
    sa.select(sa.func.max(T.closed_session)).where(T.host == ask("host")),
    sa.select(sa.func.max(I.power_session)).where(I.host == ask("host")),
)
VMS_OF_HOST = Query(Instance, I.host == ask("host"))
VOIDS_OF_HOST = Query(Void, V.host == ask("host"))


class HostNameClash(MusterError):
    """Two agents report under one host name; neither gets a session."""

    code = "HOST_NAME_CLASH"


def welcome(tx: Tx, cfg: Settings, hello: Hello) -> Welcome:
    """Open the host's next session; the same one again for a repeated hello_id."""
    if hello.fleet != cfg.default.fleet_id:
        raise WrongFleet(
            f"agent {hello.host} belongs to fleet {hello.fleet}, these managers to"
            f" {cfg.default.fleet_id}",
            "correct [DEFAULT] fleet_id or transport_url of the agent",
        )
    if cfg.manager.service_down_time <= LATE * hello.interval_s:
        raise BadRequest(
            f"report_interval {hello.interval_s:g} s of {hello.host} is too long for"
            f" service_down_time {cfg.manager.service_down_time:g} s",
            f"set it below {cfg.manager.service_down_time / LATE:g}",
            field="report_interval",
        )
    restore.judge(tx, hello)
    host = tx.lock(Host, hello.host) or _meet(tx, cfg, hello)
    host = heard_from(tx, cfg, host, hello.agent_run)
    if host.clash:
        raise HostNameClash(
            f"two agents report as {host.name}", "give one of them another [DEFAULT] host"
        )
    repeated = host.session_open and host.hello_id == hello.hello_id
    # Above all that the agent has used: looks of a session that this database has forgotten, or of
    # a host whose record is new, must not pass for newer than those of this one.
    session = host.session if repeated else max(host.session, hello.session) + 1
    # A journal without a timeline has kept no welcome yet: an earlier one was lost on its way.
    new_journal = host.journal_id != hello.journal_id or hello.store_timeline is None
    if not repeated:
        host = canary.forget(tx, host)
    # Read with the host's row held: who changes the noun changes that row too.
    place = model.find(tx, Kind.HOST, host.name)
    host = tx.put(
        host,
        driver=hello.driver,
        agent_version=hello.agent_version,
        interval_s=hello.interval_s,
        session=session,
        session_open=True,
        hello_id=hello.hello_id,
        agent_run=hello.agent_run,
        host_boot=hello.host_boot,
        journal_id=hello.journal_id,
        inventory_digest=None,
        disagreed_since=None,
        seq=0 if not repeated else host.seq,
        cluster=place.cluster if place is not None else None,
        tags=place.tags if place is not None else (),
    )
    if not repeated:
        tx.event("host.session", host.name, f"host {host.name}", f"session {session}")
    wanted = _resume(tx, host.name, frozenset(hello.unfinished))
    stones = reap.issue_for_host(tx, cfg, host.name, "its host said hello")
    voids = tx.ask(VOIDS_OF_HOST, host=host.name)
    mark = timeline.current(tx)
    return Welcome(
        session=session,
        tombstones=tuple(FloorEntry(s.instance, s.generation) for s in stones),
        floors=_floors(tx, host.name) if new_journal else (),
        voids=tuple(FloorEntry(v.instance, v.generation) for v in voids),
        wanted=wanted,
        store_timeline=mark.timeline,
        store_mark=mark.mark,
        canary_interval_s=cfg.manager.canary_interval,
    )


def heard_lately(tx: Tx, host: Host, run: str) -> bool:
    """A sign of life that says nothing new: heartbeats write down what an answer need not."""
    age_s = (tx.now - host.heard_at).total_seconds()
    return _is_alone(host, run) and age_s < host.interval_s / 2


def _is_alone(host: Host, run: str) -> bool:
    return host.agent_run in (None, run) and not host.clash and set(host.runs) <= {run}


def heard_from(tx: Tx, cfg: Settings, host: Host, run: str) -> Host:
    """Note a sign of life of one run of the host's agent, and tell two rivals apart.

    A run that ends and one that follows it overlap for a moment in the queues. Two that are both
    heard over more than 2.5 intervals are two machines under one name.
    """
    now, window = tx.now, LATE * host.interval_s
    if _is_alone(host, run):
        return tx.put(host, heard_at=now)
    forget_s = cfg.manager.service_down_time
    runs = {
        name: times
        for name, times in host.runs.items()
        if (now - times[1]).total_seconds() <= forget_s
    }
    if not runs and host.agent_run is not None and host.agent_run != run:
        runs[host.agent_run] = (host.heard_at, host.heard_at)
    first, last = runs.get(run, (now, now))
    if (now - last).total_seconds() > window and not host.clash:
        first = now
    runs[run] = (first, now)
    fresh = [t for t in runs.values() if (now - t[1]).total_seconds() <= window]
    rivals = len(fresh) > 1 and all(
        (t[1] - max(o[0] for o in fresh)).total_seconds() > window for t in fresh
    )
    clash = (host.clash and len(runs) > 1) or rivals
    if clash and not host.clash:
        tx.event(
            "HOST_NAME_CLASH",
            host.name,
            "manager",
            f"two agents report as {host.name}",
            runs=sorted(runs),
        )
    if not clash and len(runs) == 1:
        runs = {}
    return tx.put(
        host,
        heard_at=now,
        runs=runs,
        clash=clash,
        session_open=host.session_open and not clash,
    )


def _meet(tx: Tx, cfg: Settings, hello: Hello) -> Host:
    """A host that was never seen: known from now on, but not used before an operator says so."""
    reap.remember_host(tx, hello.host)
    enabled = cfg.manager.auto_enable_hosts
    # Its record may have been deleted, and VMs of that time may still be here.
    vcpus, memory_mib = placing.promised(tx, hello.host)
    host = Host(
        name=hello.host,
        fleet=hello.fleet,
        driver=hello.driver,
        agent_version=hello.agent_version,
        interval_s=hello.interval_s,
        state=HostState.SUSPECT,
        reason="it has just said hello for the first time",
        state_since=tx.now,
        enabled=enabled,
        heard_at=tx.now,
        session=_last_session(tx, hello.host),
        vcpus_claimed=vcpus,
        memory_mib_claimed=memory_mib,
    )
    tx.insert(host)
    tx.event(
        "host.new",
        host.name,
        f"host {host.name}",
        "first hello" + ("" if enabled else "; disabled until: muster host enable"),
    )
    return host


def _last_session(tx: Tx, host: str) -> int:
    """The highest session that anything which a deleted record has left behind tells of."""
    return max(
        int(row[0] or 0) for row in tx.rows(SESSIONS, (Sighting, Tombstone, Instance), host=host)
    )


def _resume(tx: Tx, host: str, unfinished: frozenset[str]) -> tuple[str, ...]:
    """Which of the agent's unfinished commands may still run; the others of ours are cast again."""
    wanted = []
    for row in tx.ask(OPEN_OF_HOST, host=host):
        if row.id in unfinished:
            wanted.append(row.id)
        else:
            # Never arrived, or went with a lost journal; an agent that finished it says so again.
            tx.swap(row, publish_at=tx.now)
            tx.commands_due = True
    return tuple(wanted)


def _floors(tx: Tx, host: str) -> tuple[FloorEntry, ...]:
    """For an agent with a new journal: what had ended here before it began."""
    floors = []
    for vm in tx.ask(VMS_OF_HOST, host=host):
        under_way = tx.ask_first(OPEN_OF_VM, instance=vm.uuid, host=host)
        floor = under_way.generation - 1 if under_way else vm.generation
        if floor > 0:
            floors.append(FloorEntry(vm.uuid, floor))
    return tuple(floors)

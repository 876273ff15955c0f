"""Liveness: judging every host by the clock, and what follows from a change of its state."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import sqlalchemy as sa

from common.conf import Settings
from common.states import HOST, CommandState, HostEffect, JobState
from manager.flows import canary, jobs
from manager.rules import liveness as rule
from manager.store.commands import CommandRow, Void
from manager.store.engine import Tx
from manager.store.hosts import Host, ManagerRow
from manager.store.jobs import Job
from manager.store.rollbacks import Rollback
from manager.store.statements import Query, among

BEATS = 20  # of a manager in a service_down_time
DEAF_AFTER = 4  # beats; without its own for so long, a manager has not been hearing
C, J, M, V = (kind.__table__.c for kind in (CommandRow, Job, ManagerRow, Void))
HOSTS = Query(Host)
MANAGERS = Query(ManagerRow)
ROLLBACKS = Query(Rollback)
OWING = (
    sa.select(V.host)
    .select_from(sa.outerjoin(Void.__table__, CommandRow.__table__, C.id == V.command))
    .where(sa.or_(C.state == CommandState.UNKNOWN, C.state.is_(None)))
)
OPEN_DELETES = Query(Job, J.kind == "delete", among(J.state, jobs.OPEN))


def beat_s(cfg: Settings) -> float:
    """Seconds between two beats of a manager."""
    return cfg.manager.service_down_time / BEATS


def deaf_after_s(cfg: Settings) -> float:
    """Seconds without an echo of its own beat after which a manager has not been hearing."""
    return max(1.0, DEAF_AFTER * beat_s(cfg))


def heard_own_beat(
    tx: Tx, manager: str, host: str, started_at: dt.datetime, gapless_s: float, gap: str
) -> None:
    """Write down for how long this manager has heard without a gap."""
    since = tx.now - dt.timedelta(seconds=gapless_s)
    fields = {"heard_since": since, "heard_until": tx.now, "gap": gap}
    row = tx.find(ManagerRow, manager)
    if row is None:
        tx.insert(ManagerRow(id=manager, host=host, started_at=started_at, **fields))  # type: ignore[arg-type]
    else:
        tx.put(row, **fields)


def heard_until(tx: Tx, manager: str) -> dt.datetime | None:
    """Until when this manager has written down that it heard."""
    row = tx.find(ManagerRow, manager)
    return None if row is None else row.heard_until


def hearing(tx: Tx, cfg: Settings) -> rule.Hearing:
    """What the best-hearing manager of the cluster has heard without a gap, in seconds."""
    return _hearing(tx, cfg, tx.ask(MANAGERS))


def _hearing(tx: Tx, cfg: Settings, managers: list[ManagerRow]) -> rule.Hearing:
    fresh = tx.now - dt.timedelta(seconds=deaf_after_s(cfg))
    spans = [
        (tx.now - row.heard_since).total_seconds()
        for row in managers
        if row.heard_since is not None and row.heard_until is not None and row.heard_until >= fresh
    ]
    return rule.Hearing(max(spans) if spans else None)


def is_blind(tx: Tx, cfg: Settings, manager: ManagerRow) -> bool:
    """True for a manager whose own hearing would not do to call a host DOWN."""
    return rule.is_blind(_hearing(tx, cfg, [manager]), limits(cfg))


def limits(cfg: Settings) -> rule.Limits:
    return rule.Limits(cfg.manager.service_down_time, cfg.manager.silence_budget)


@dataclass(frozen=True)
class _Told:
    """What other tables tell of hosts, by their names.

    `owing`: they have not answered for a command which was given up. `rolled_back`: their agents
    know another state of the database.
    """

    owing: frozenset[str]
    rolled_back: frozenset[str]


def judge_all(tx: Tx, cfg: Settings) -> None:
    """One round over the fleet: write down each verdict that differs from what is stored."""
    managers = tx.ask(MANAGERS)
    heard = _hearing(tx, cfg, managers)
    hosts = tx.ask(HOSTS)
    told = _told(tx, hosts)
    facts = {host.name: _facts(tx, cfg, host, heard, told) for host in hosts}
    mass = frozenset[str]()
    if not rule.is_blind(heard, limits(cfg)):
        mass = rule.mass_silence(list(facts.values()), limits(cfg))
    for host in hosts:
        verdict = rule.judge(facts[host.name], hearing=heard, mass=mass, limits=limits(cfg))
        if _differs(host, verdict):
            _apply(tx, cfg, host.name, heard, mass, told)
    _forget_silent(tx, cfg, managers)


def judge_now(tx: Tx, cfg: Settings, name: str) -> Host:
    """One host at once, for an operator's command."""
    heard = hearing(tx, cfg)
    hosts = tx.ask(HOSTS)
    told = _told(tx, hosts)
    fleet = [_facts(tx, cfg, host, heard, told) for host in hosts]
    blind = rule.is_blind(heard, limits(cfg))
    mass = frozenset[str]() if blind else rule.mass_silence(fleet, limits(cfg))
    _apply(tx, cfg, name, heard, mass, told)
    return tx.get(Host, name)


def _told(tx: Tx, hosts: list[Host]) -> _Told:
    # One that is ahead of the database has no session: mostly there is nothing to look for.
    refused = tx.ask(ROLLBACKS) if not all(host.session_open for host in hosts) else []
    return _Told(
        owing=frozenset(row[0] for row in tx.rows(OWING)),
        rolled_back=frozenset(row.host for row in refused),
    )


def _apply(
    tx: Tx,
    cfg: Settings,
    name: str,
    heard: rule.Hearing,
    mass: frozenset[str],
    told: _Told,
) -> None:
    # Judged again with the row held: a heartbeat may have arrived since it was read.
    host = tx.lock(Host, name)
    if host is None:
        return
    verdict = rule.judge(
        _facts(tx, cfg, host, heard, told), hearing=heard, mass=mass, limits=limits(cfg)
    )
    if not _differs(host, verdict):
        return
    step = HOST.step(host.state, verdict.state)
    if verdict.mass_silent and not host.mass_silent:
        tx.event("host.mass_silence", name, "manager", verdict.reason)
    if HostEffect.TELL in step.effects:
        tx.event(
            "host.state",
            name,
            "manager",
            f"{host.state} -> {step.state}: {verdict.reason}",
            row=verdict.row,
        )
    if HostEffect.END_SESSION in step.effects:
        host = canary.forget(tx, host)
    tx.put(
        host,
        state=step.state,
        reason=verdict.reason,
        judged=verdict.cause,
        state_since=tx.now if step.changed else host.state_since,
        blind=verdict.blind,
        mass_silent=verdict.mass_silent,
        session_open=host.session_open and HostEffect.END_SESSION not in step.effects,
    )
    if HostEffect.RELEASE_WAITING in step.effects or host.mass_silent != verdict.mass_silent:
        _release_waiting(tx, name)


def _release_waiting(tx: Tx, host: str) -> None:
    """Deletes that wait for this host are looked at now."""
    for job in tx.ask(OPEN_DELETES):
        if any(step.host == host and step.state is JobState.RUNNING for step in job.steps):
            tx.swap(job, check_at=tx.now)


def _differs(host: Host, verdict: rule.Verdict) -> bool:
    """The reason of a steady state is refreshed only when its cause is another: its numbers
    change with every tick."""
    return (host.judged, host.state, host.blind, host.mass_silent) != (
        verdict.cause,
        verdict.state,
        verdict.blind,
        verdict.mass_silent,
    )


def _facts(tx: Tx, cfg: Settings, host: Host, heard: rule.Hearing, told: _Told) -> rule.HostFacts:
    message = host.driver_message
    if host.inventory_partial and host.driver_healthy:
        message = "its listing was partial"
    return rule.HostFacts(
        name=host.name,
        state=host.state,
        age_s=(tx.now - host.heard_at).total_seconds(),
        interval_s=host.interval_s,
        enabled=host.enabled,
        forced_down=host.forced_down,
        fenced=host.fenced,
        driver_healthy=host.driver_healthy and not host.inventory_partial,
        driver_message=message,
        session_open=host.session_open,
        reported=host.inventory_digest is not None,
        clash=host.clash,
        mass_silent=host.mass_silent,
        owes_fate=host.name in told.owing,
        rolled_back=host.name in told.rolled_back,
        canary_overdue=canary.overdue(tx, cfg, host, heard),
    )


def _forget_silent(tx: Tx, cfg: Settings, managers: list[ManagerRow]) -> None:
    """Managers that have been silent for ten service_down_times are no longer listed."""
    old = tx.now - dt.timedelta(seconds=10 * cfg.manager.service_down_time)
    for row in managers:
        if row.heard_until is not None and row.heard_until < old:
            tx.delete(row)

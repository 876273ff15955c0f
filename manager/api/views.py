"""What operators are shown: rows as plain dicts, each with the age of what is known."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from common.errors import Ambiguous, NotFound
from common.states import (
    CommandState,
    GuestKind,
    HostState,
    JobState,
    TombstoneState,
    VmState,
)
from manager.api import holders
from manager.flows import freeze
from manager.flows import hosts as host_flow
from manager.flows import jobs as job_flow
from manager.rules.liveness import LATE
from manager.store.commands import CommandRow
from manager.store.engine import Tx
from manager.store.hosts import Host
from manager.store.instances import Instance
from manager.store.jobs import Job
from manager.store.rollbacks import Rollback
from manager.store.sightings import Sighting
from manager.store.statements import Joined, Query, ask, ask_any
from manager.store.tombstones import Tombstone

C = CommandRow.__table__.c
I = Instance.__table__.c  # noqa: E741 - the table's columns, as C, S and T elsewhere


# With the host, which whoever names a VM asks for next.
NAMED = Joined(
    (Instance, Host),
    Instance.__table__.outerjoin(Host.__table__, Host.__table__.c.name == I.host),
    sa.or_(I.uuid == ask("uuid"), sa.and_(I.name == ask("name"), I.vm_state != VmState.DELETED)),
)
THESE = Joined(
    (Instance, Host),
    Instance.__table__.outerjoin(Host.__table__, Host.__table__.c.name == I.host),
    I.uuid.in_(ask_any("uuids")),
)
LATEST_OF_NAME = Query(Instance, I.name == ask("name"), order=[I.deleted_at.desc()], limit=1)
OF_JOB = Query(CommandRow, C.job == ask("job"), order=[C.accepted_at])


def find_vm(tx: Tx, name_or_id: str, *, deleted: bool = False) -> Instance:
    """A live VM by uuid or name; with `deleted` also one that is remembered as deleted."""
    known = tx.known(Instance, name_or_id.lower())
    if known is not None and known.live:
        return known
    found: list[Instance] = [
        vm for vm, _host in tx.together(NAMED, name=name_or_id, uuid=name_or_id.lower())
    ]
    for vm in found:
        if vm.uuid == name_or_id.lower() and (vm.live or deleted):
            return vm
    named = [vm for vm in found if vm.name == name_or_id and vm.live]
    if not named and deleted:
        named = tx.ask(LATEST_OF_NAME, name=name_or_id)
    if not named:
        raise NotFound(f"no VM {name_or_id}", "muster vm list shows all")
    if len(named) > 1:
        candidates = [f"{vm.uuid} on {vm.host}" for vm in named]
        raise Ambiguous(
            f"{len(named)} VMs are called {name_or_id}: {', '.join(candidates)}",
            "use the uuid",
            candidates=candidates,
        )
    return named[0]


def look_up_vms(tx: Tx, uuids: Sequence[str]) -> None:
    """Read VMs and their hosts at once, for `find_vm` to know them."""
    tx.together(THESE, uuids=sorted({uuid.lower() for uuid in uuids}))


def vm(tx: Tx, row: Instance, host: Host | None) -> dict[str, Any]:
    """One VM, with the age of its power state and whether that is older than it may be."""
    known_at = row.power_at
    confirmed_at = host.inventory_at if host is not None and not row.missing else None
    if known_at is not None and confirmed_at is not None:
        # An agreed digest says that what we hold of every guest is what is there now.
        known_at = max(known_at, confirmed_at)
    age_s = None if known_at is None else round((tx.now - known_at).total_seconds(), 3)
    late_s = LATE * host.interval_s if host is not None else 0.0
    return {
        "uuid": row.uuid,
        "name": row.name,
        "vm_state": row.vm_state.value,
        "task_state": row.task_state.value,
        "power_state": row.power_state.name,
        "power_age_s": age_s,
        "host": row.host,
        "host_state": host.state.value if host is not None else None,
        "address": row.address,
        # One that was never on a host, or has left it, has no state that could be old.
        "stale": row.live
        and row.generation > 0
        and row.vm_state is not VmState.SHELVED_OFFLOADED
        and (age_s is None or age_s > late_s),
        "missing": row.missing,
        # What it is; while it is resized, the record holds the larger of both.
        "vcpus": row.spec.get("vcpus", row.vcpus),
        "memory_mib": row.spec.get("memory_mib", row.memory_mib),
        "mac": row.mac,
        "project": row.project,
        "zone": row.wishes.zone,
        "hostname": row.hostname,
        "generation": row.generation,
        "job": row.job,
        "error": row.error or None,
        "deletion_owed": row.deletion_owed,
        "reclaim_at": row.reclaim_at,
        "protected": row.protected,
        "created_at": row.created_at,
        "deleted_at": row.deleted_at,
        "terminated_at": row.terminated_at,
        "last_host": row.last_host,
    }


def vms(
    tx: Tx, *, host: str | None, state: str | None, task_state: str | None, stale: bool
) -> list[dict[str, Any]]:
    where = [I.vm_state != VmState.DELETED]
    if host is not None:
        where.append(I.host == host)
    if state is not None:
        where.append(I.vm_state == state_named(VmState, state))
    hosts = {row.name: row for row in tx.all(Host)}
    found = [
        vm(tx, row, hosts.get(row.host or ""))
        for row in tx.all(Instance, *where, order=[I.name, I.uuid])
    ]
    if task_state is not None:
        found = [v for v in found if v["task_state"] == task_state.lower()]
    return [v for v in found if v["stale"]] if stale else found


def state_named(kind: Any, name: str) -> Any:
    """A state by its name in any case, or NotFound with the names there are."""
    try:
        return kind(name.upper())
    except ValueError:
        names = ", ".join(s.value for s in kind)
        raise NotFound(f"no state {name!r}", f"one of: {names}") from None


def host(tx: Tx, row: Host, counts: dict[str, int]) -> dict[str, Any]:
    return {
        "name": row.name,
        "driver": row.driver,
        "state": row.state.value,
        "enabled": row.enabled,
        "last_heard_s": round((tx.now - row.heard_at).total_seconds(), 3),
        "vms": counts.get("vms", 0),
        "aliens": counts.get("alien", 0),
        "vcpus_used": row.vcpus_used,
        "vcpus_total": row.vcpus_total,
        "memory_mib_used": row.memory_mib_used,
        "memory_mib_total": row.memory_mib_total,
        "agent_version": row.agent_version,
        "reason": row.reason,
        "state_since": row.state_since,
        "blind": row.blind,
        "mass_silence": row.mass_silent,
        "forced_down": row.forced_down,
        "fenced": row.fenced,
        "maintenance": row.maintenance,
        "operator_reason": row.operator_reason or None,
        "session": row.session if row.session_open else None,
        "orphans": counts.get("orphan", 0),
        "tombstones": counts.get("tombstones", 0),
        "driver_healthy": row.driver_healthy,
        "driver_message": row.driver_message or None,
        "report_interval_s": row.interval_s,
        "clock_skew_s": round(row.clock_skew_s, 3),
        "dropped_casts": row.dropped_casts,
        "canary_age_s": _age_s(tx, row.canary_heard_at),
        "cluster": row.cluster,
        "tags": row.tags,
    }


def _age_s(tx: Tx, when: dt.datetime | None) -> float | None:
    return None if when is None else round((tx.now - when).total_seconds(), 3)


def hosts(tx: Tx) -> list[dict[str, Any]]:
    counts = host_flow.counts(tx)
    return [host(tx, row, counts.get(row.name, {})) for row in tx.all(Host)]


def job(tx: Tx, row: Job) -> dict[str, Any]:
    end = row.ended_at or tx.now
    return {
        "uuid": row.uuid,
        "kind": row.kind,
        "instance": row.instance,
        "host": row.host,
        "state": row.state.value,
        "waiting_for": waiting_for(tx, row),
        "step": next((s.name for s in reversed(row.steps) if s.state is JobState.RUNNING), None),
        "age_s": round((end - row.accepted_at).total_seconds(), 3),
        "unconfirmed": row.unconfirmed,
        "error_code": row.error_code,
        "error": row.error,
    }


def job_whole(tx: Tx, row: Job) -> dict[str, Any]:
    commands = tx.ask(OF_JOB, job=row.uuid)
    return {
        **job(tx, row),
        "accepted_at": row.accepted_at,
        "ended_at": row.ended_at,
        "steps": [
            {
                "name": s.name,
                "host": s.host,
                "state": s.state.value,
                "started_at": s.started_at,
                "ended_at": s.ended_at,
                "detail": s.detail,
                **({"hosts": s.hosts} if s.hosts else {}),
            }
            for s in row.steps
        ],
        "receipts": [
            {
                "command": c.id,
                "kind": c.kind,
                "host": c.host,
                "generation": c.generation,
                "state": c.state.value,
                "publishes": c.publishes,
                "accepted_at": c.accepted_at,
                "published_at": c.published_at,
                "received_at": c.received_at,
                "started_at": c.started_at,
                "ended_at": c.ended_at,
                "error_code": c.error_code,
                "error": c.error,
            }
            for c in commands
        ],
        "reason": [[e.source, e.text, e.when] for e in row.trail],
    }


def waiting_for(tx: Tx, row: Job) -> str:
    """What the job cannot go on without, in words."""
    if row.state not in job_flow.OPEN:
        return ""
    if row.waiting_for:
        return row.waiting_for
    cast = [s.command for s in row.steps if s.command and s.state is JobState.RUNNING]
    command = tx.find(CommandRow, cast[0]) if cast else None
    if command is None or command.ended_at is not None:
        return "a manager to take it up"
    host_row = tx.find(Host, command.host)
    if row.cancelling:
        text = f"{command.host} to say whether it has begun, to be cancelled"
    elif command.state in (CommandState.RECEIVED, CommandState.STARTED):
        word = "has received" if command.state is CommandState.RECEIVED else "carries out"
        text = f"{command.host}, which {word} {command.kind}"
    elif command.state is CommandState.PUBLISHED:
        text = f"a receipt of {command.kind} from {command.host}"
    else:
        text = f"{command.kind} to be sent to {command.host}"
    if host_row is not None and host_row.state is not HostState.UP:
        text += f" ({host_row.state}: {host_row.reason})"
    return text


def jobs(tx: Tx, *, everything: bool) -> list[dict[str, Any]]:
    columns = Job.__table__.c
    where = [columns.same_as.is_(None)]
    if not everything:
        where.append(columns.state.in_(job_flow.OPEN))
    return [job(tx, row) for row in tx.all(Job, *where, order=[columns.accepted_at, columns.uuid])]


def aliens(tx: Tx, host_name: str | None) -> list[dict[str, Any]]:
    columns = Sighting.__table__.c
    where = [columns.kind == GuestKind.ALIEN, columns.present]
    if host_name is not None:
        where.append(columns.host == host_name)
    looked = {row.name: row.inventory_at for row in tx.all(Host)}
    return [
        {
            "host": row.host,
            "hypervisor_uuid": row.hypervisor_uuid,
            "name": row.name,
            "power_state": row.power_state.name,
            "vcpus": row.vcpus,
            "memory_mib": row.memory_mib,
            "first_seen": row.first_seen,
            "last_seen": _later(row.last_seen, looked.get(row.host)),
        }
        for row in tx.all(Sighting, *where, order=[columns.host, columns.name])
    ]


def _later(a: dt.datetime, b: dt.datetime | None) -> dt.datetime:
    return a if b is None else max(a, b)


def tombstones(tx: Tx, state: str | None) -> list[dict[str, Any]]:
    columns = Tombstone.__table__.c
    where = []
    if state is not None:
        where.append(columns.state == state_named(TombstoneState, state))
    return [tombstone(tx, row) for row in tx.all(Tombstone, *where, order=[columns.created_at])]


def tombstone(tx: Tx, row: Tombstone) -> dict[str, Any]:
    return {
        "uuid": row.uuid,
        "name": row.name,
        "instance": row.instance,
        "host": row.host,
        "generation": row.generation,
        "state": row.state.value,
        "reason": row.reason,
        "age_s": round((tx.now - row.created_at).total_seconds(), 3),
        "holds": [held for what in row.holds if (held := _held(row, what))],
        "closed_at": row.closed_at,
        "answer": row.answer or None,
    }


def tombstone_whole(tx: Tx, row: Tombstone) -> dict[str, Any]:
    """As `tombstone`, with what it waits for, and what the quarantine really keeps."""
    host_row = tx.find(Host, row.host)
    return {
        **tombstone(tx, row),
        "host_state": host_row.state.value if host_row is not None else None,
        "created_at": row.created_at,
        "tries": row.tries,
        "next_try_at": row.issue_at,
        "quarantined": holders.of(tx, row.instance) if row.holds else [],
        "notices": notices(tx),
    }


def _held(row: Tombstone, what: str) -> str:
    """What is held back, with its value; nothing for an address that the VM never had."""
    values = {"mac": row.mac, "address": row.address}
    if what not in values:
        return what
    return f"{what} {values[what]}" if values[what] else ""


def frozen(tx: Tx) -> list[str]:
    """That the fleet is frozen, if it is: told with every listing."""
    why = freeze.why(tx)
    until = "nothing is reaped, stopped again or deleted from the database alone until unfreeze"
    return [f"{why} ({until})"] if why else []


def notices(tx: Tx) -> list[str]:
    """What an operator must know before believing a listing."""
    found = frozen(tx)
    columns = Host.__table__.c
    if tx.first(Host, columns.blind) is not None:
        found.append(
            "the managers are blind: they have not heard reports long enough to call hosts down"
        )
    ahead = tx.all(Rollback)
    if ahead:
        names = ", ".join(row.host for row in ahead[:10])
        found.append(
            f"the database is older than the agents of {len(ahead)} hosts ({names}): what is listed"
            " of them may be long past, and nothing is changed there (muster doctor)"
        )
    silent = tx.all(Host, columns.mass_silent, columns.enabled)
    if silent:
        names = ", ".join(row.name for row in silent[:10])
        found.append(
            f"mass silence: {len(silent)} hosts ({names}); DB-only deletes are suspended until they"
            " speak or are named by: muster host set-down"
        )
    return found

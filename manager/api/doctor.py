"""Doctor: what is not as it should be, each finding with a stable code and a remedy."""

from __future__ import annotations

import datetime as dt
from typing import Any

from common.conf import Settings
from common.states import GuestKind, HostState, TaskState, TombstoneState, VmState
from manager.flows import freeze, inventory, liveness, restore
from manager.flows import hosts as host_flow
from manager.flows import jobs as job_flow
from manager.rules.liveness import is_blind
from manager.store.cleanups import Cleanup, CleanupState
from manager.store.commands import Void
from manager.store.engine import Tx
from manager.store.events import DeadLetter, Event
from manager.store.hosts import Host
from manager.store.instances import Instance, Phase
from manager.store.jobs import Job
from manager.store.rollbacks import Rollback
from manager.store.sightings import Sighting
from manager.store.tombstones import Tombstone

ERROR, WARNING, INFO = "ERROR", "WARNING", "INFO"
SKEW_S = 5.0
CLEANUP_OLD_S, CLEANUP_TRIES, CLEANUPS_TOLD = 600.0, 3, 100
DAY = dt.timedelta(days=1)

Finding = dict[str, Any]


def findings(tx: Tx, cfg: Settings) -> list[Finding]:
    """Everything worth a look, errors first."""
    found = [
        *_cluster(tx, cfg),
        *_hosts(tx),
        *_counts(tx),
        *_vms(tx),
        *_tombstones(tx),
        *_cleanups(tx),
        *_jobs(tx, cfg),
    ]
    found += [*_guests(tx), *_letters(tx)]
    order = {ERROR: 0, WARNING: 1, INFO: 2}
    return sorted(found, key=lambda f: (order[f["level"]], f["code"], f["object"]))


def _finding(code: str, level: str, object_: str, message: str, remedy: str) -> Finding:
    return {
        "code": code,
        "level": level,
        "object": object_,
        "message": message,
        "remedy": remedy,
    }


def _cluster(tx: Tx, cfg: Settings) -> list[Finding]:
    found = []
    heard = liveness.hearing(tx, cfg)
    if is_blind(heard, liveness.limits(cfg)):
        text = "nothing" if heard.gapless_s is None else f"{heard.gapless_s:.0f} s"
        found.append(
            _finding(
                "MANAGERS_BLIND",
                WARNING,
                "managers",
                f"heard {text} without a gap, {cfg.manager.service_down_time:g} s are needed to"
                " call a host down",
                "wait; if it stays, look at the broker and the managers' logs",
            )
        )
    if why := freeze.why(tx):
        text = f"{why}; nothing is reaped, stopped again or deleted from the database alone"
        found.append(_finding("FROZEN", WARNING, "fleet", text, "muster unfreeze"))
    found += [
        _finding(
            "DB_ROLLED_BACK",
            ERROR,
            row.host,
            f"{restore.told(tx, row)} (mark {row.mark}), and its agent changes nothing; it has"
            f" reported {restore.floors_of(tx, row.host)} floors",
            "was it restored from a backup on purpose? once every host is listed: muster db"
            " accept-restore --reason TEXT",
        )
        for row in tx.all(Rollback)
    ]
    silent = tx.all(Host, Host.__table__.c.mass_silent, Host.__table__.c.enabled)
    if silent:
        found.append(
            _finding(
                "MASS_SILENCE",
                ERROR,
                "fleet",
                f"{len(silent)} hosts fell silent together; DB-only deletes are suspended",
                "check the network and the broker, then name what is really down: muster host"
                " set-down",
            )
        )
    return found


def _hosts(tx: Tx) -> list[Finding]:
    found = []
    for host in tx.all(Host):
        if host.state is HostState.DOWN:
            named = host.forced_down or host.fenced
            known = named or host.maintenance
            remedy = "muster host unfence" if host.fenced else "muster host unset-down"
            found.append(
                _finding(
                    "HOST_DOWN",
                    INFO if known else ERROR,
                    host.name,
                    host.reason,
                    remedy if named else "look at the machine",
                )
            )
        elif host.state is HostState.SUSPECT:
            found.append(
                _finding("HOST_SUSPECT", WARNING, host.name, host.reason, "look at its agent's log")
            )
        if not host.enabled:
            text = "takes no new VMs"
            found.append(_finding("HOST_DISABLED", INFO, host.name, text, "muster host enable"))
        if host.maintenance:
            text = f"takes no new VMs: {host.operator_reason or 'no reason given'}"
            remedy = "muster host maintenance HOST off"
            found.append(_finding("HOST_MAINTENANCE", INFO, host.name, text, remedy))
        if abs(host.clock_skew_s) > SKEW_S:
            text = f"its clock is {host.clock_skew_s:+.1f} s off the database's"
            found.append(_finding("CLOCK_SKEW", WARNING, host.name, text, "check its NTP"))
        if host.clash:
            text = "two agents report under this name"
            remedy = "give one of them another [DEFAULT] host"
            found.append(_finding("HOST_NAME_CLASH", ERROR, host.name, text, remedy))
    return found


def _counts(tx: Tx) -> list[Finding]:
    """Hosts whose complete reports show another number of our VMs than the database holds."""
    counts = host_flow.counts(tx)
    return [
        _finding(
            "COUNT_MISMATCH",
            WARNING,
            host.name,
            f"{held} VMs are recorded here and its hypervisor shows {shown}",
            "muster vm list --host; look for VMs that are missing or were moved by hand",
        )
        for host in tx.all(Host, Host.__table__.c.inventory_at.is_not(None))
        for held in [counts.get(host.name, {}).get("vms", 0)]
        for shown in [counts.get(host.name, {}).get("managed", 0)]
        if held != shown and host.state is HostState.UP and not _under_way(tx, host.name)
    ]


def _under_way(tx: Tx, host: str) -> bool:
    """Something is just being made or removed there, so that the two may differ."""
    columns = Instance.__table__.c
    return tx.count(Instance, columns.host == host, columns.task_state != TaskState.NONE) > 0


def _vms(tx: Tx) -> list[Finding]:
    found = []
    columns = Instance.__table__.c
    for vm in tx.all(Instance, columns.vm_state != VmState.DELETED):
        what = f"{vm.name} ({vm.uuid})"
        if vm.deletion_owed:
            text = "it is to be deleted and no host has answered yet"
            remedy = "muster cleanup list; or muster vm delete --force --reason"
            found.append(_finding("DELETION_OWED", ERROR, what, text, remedy))
        elif vm.vm_state is VmState.ERROR:
            remedy = "muster vm start, or muster vm delete" if vm.reserved else "muster vm delete"
            found.append(_finding("VM_ERROR", WARNING, what, vm.error or "in ERROR", remedy))
        found += _size(tx, vm, what)
        if vm.missing:
            text = f"{vm.host} does not show it any more"
            remedy = "look for it in the hypervisor; muster vm delete if it is gone for good"
            found.append(_finding("VM_MISSING", ERROR, what, text, remedy))
    return found


def _size(tx: Tx, vm: Instance, what: str) -> list[Finding]:
    """A resize that waits for somebody, and a guest that was given a size behind our back."""
    change = vm.resize
    if vm.task_state is not TaskState.NONE:
        return []
    if change is not None and change.phase is Phase.RESIZED:
        text = "what it was is kept, and takes space, until its resize is confirmed or reverted"
        remedy = "muster vm confirm-resize, or revert-resize"
        return [_finding("RESIZE_UNCONFIRMED", INFO, what, text, remedy)]
    if change is not None:
        text = f"its resize is {change.phase}: {change.error or f'{vm.host} has to be told'}"
        remedy = f"look at {vm.host}: it goes on by itself once that answers"
        return [_finding("RESIZE_OWED", WARNING, what, text, remedy)]
    return [
        _finding(
            "SIZE_DIFFERS",
            WARNING,
            what,
            f"{vm.host} shows it with {seen.vcpus} vCPUs and {seen.memory_mib} MiB, and it holds"
            f" {vm.vcpus} and {vm.memory_mib}",
            "muster vm resize it to what it has and confirm that, or to what it should have",
        )
        for seen in inventory.sightings(tx, vm.uuid)
        if seen.host == vm.host and (seen.vcpus, seen.memory_mib) != (vm.vcpus, vm.memory_mib)
    ]


def _tombstones(tx: Tx) -> list[Finding]:
    columns = Tombstone.__table__.c
    found = []
    for stone in tx.all(Tombstone, columns.state == TombstoneState.OPEN):
        held = ", ".join(stone.holds)
        hours = (tx.now - stone.created_at).total_seconds() / 3600
        found.append(
            _finding(
                "TOMBSTONE_OPEN",
                WARNING if held else INFO,
                f"{stone.name} on {stone.host}",
                f"open for {hours:.1f} h, holds {held or 'nothing'}"
                + (f"; last answer: {stone.answer}" if stone.answer else ""),
                "it closes when the host's agent answers; if that never comes back: muster"
                " tombstone forget"
                if held
                else "it closes when the host's agent answers",
            )
        )
    return found


def _cleanups(tx: Tx) -> list[Finding]:
    """One line for each that does not get on, and one for all the others."""
    columns = Cleanup.__table__.c
    items = tx.all(Cleanup, columns.state == CleanupState.OPEN, order=[columns.created_at])
    old = tx.now - dt.timedelta(seconds=CLEANUP_OLD_S)
    stuck = [item for item in items if item.created_at < old or item.tries >= CLEANUP_TRIES]
    found = [
        _finding(
            "CLEANUP_OWED",
            WARNING,
            f"{item.name}: {item.kind} ({item.uuid})",
            f"still to be removed after {item.tries} tries, waits for {item.waits_for}"
            + (f"; last answer: {item.answer}" if item.answer else ""),
            "see to what it waits for; muster cleanup retry; or let it be: muster cleanup forget",
        )
        for item in stuck[:CLEANUPS_TOLD]
    ]
    rest = len(items) - len(found)
    if rest:
        text = f"{rest} more items are still to be removed"
        found.append(_finding("CLEANUP_OWED", INFO, "fleet", text, "muster cleanup list"))
    return found


def _jobs(tx: Tx, cfg: Settings) -> list[Finding]:
    columns = Job.__table__.c
    old = tx.now - dt.timedelta(seconds=10 * cfg.manager.command_timeout)
    found = [
        _finding(
            "JOB_OLD",
            WARNING,
            job.uuid,
            f"{job.kind} has been under way since {job.accepted_at:%Y-%m-%dT%H:%M:%SZ}",
            "muster job show",
        )
        for job in tx.all(
            Job, columns.state.in_(job_flow.OPEN), columns.accepted_at < old, limit=100
        )
    ]
    owed = tx.count(Void, Void.__table__.c.created_at < old)
    if owed:
        text = f"{owed} commands whose fate their hosts have not told"
        found.append(_finding("VOID_OWED", WARNING, "commands", text, "bring the hosts back"))
    return found


def _guests(tx: Tx) -> list[Finding]:
    columns = Sighting.__table__.c
    found = [
        _finding(
            "ORPHAN",
            WARNING,
            f"{guest.name} on {guest.host}",
            "carries our mark and has no record; left alone",
            "look whose it was before you remove it",
        )
        for guest in tx.all(Sighting, columns.kind == GuestKind.ORPHAN, columns.present, limit=100)
    ]
    events = Event.__table__.c
    for kind, level in (
        ("ADDRESS_CONFLICT", ERROR),
        ("instance.duplicate", ERROR),
        ("GENERATION_AHEAD", WARNING),
    ):
        for event in tx.all(Event, events.kind == kind, events.at > tx.now - DAY, limit=20):
            code = kind.rpartition(".")[2].upper()
            found.append(_finding(code, level, event.object, event.text, "muster vm show"))
    return found


def _letters(tx: Tx) -> list[Finding]:
    columns = DeadLetter.__table__.c
    letters = tx.all(DeadLetter, columns.at > tx.now - DAY, order=[columns.at.desc()], limit=20)
    return [
        _finding(
            "DEAD_LETTER",
            WARNING,
            letter.source,
            f"{letter.code}: {letter.reason}",
            "find who sends it; its body is kept for a day",
        )
        for letter in letters
    ]

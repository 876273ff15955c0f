"""Hosts: what operators say of them. The machine never clears what an operator has set."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from common.conf import Settings
from common.errors import NotFound, WrongState
from common.states import GuestKind, HostState, TombstoneState, VmState
from manager.flows import (
    canary,
    delete,
    found,
    freeze,
    liveness,
    quarantine,
    reap,
    shared_files,
)
from manager.rules import deletion
from manager.rules import quarantine as quarantine_rule
from manager.store.commands import Void
from manager.store.engine import Tx
from manager.store.hosts import Host
from manager.store.instances import Instance
from manager.store.rollbacks import Rollback
from manager.store.sightings import Sighting
from manager.store.statements import Query, Removal, among, ask
from manager.store.tombstones import Tombstone

NAMED = 5  # VMs in a message; the rest are counted
S, T, V = (kind.__table__.c for kind in (Sighting, Tombstone, Instance))
OF_HOST = Query(Instance, V.host == ask("host"), order=[V.name, V.uuid])
OFFLOADED = Query(Instance, V.vm_state == VmState.SHELVED_OFFLOADED, order=[V.name, V.uuid])
# Who is not ours is listed of hosts that are known; what is ours a delete has to find.
NOT_OURS = Removal(
    Sighting, S.host == ask("host"), among(S.kind, (GuestKind.ALIEN, GuestKind.ORPHAN))
)
VOIDS = Removal(Void, Void.__table__.c.host == ask("host"))
ONE = sa.func.count()
VMS = sa.select(V.host, sa.literal("vms"), ONE).where(V.host.is_not(None)).group_by(V.host)
GUESTS = sa.select(S.host, S.kind, ONE).where(S.present).group_by(S.host, S.kind)
STONES = (
    sa.select(T.host, sa.literal("tombstones"), ONE)
    .where(T.state == TombstoneState.OPEN)
    .group_by(T.host)
)


def named(tx: Tx, name: str) -> Host:
    """The host, or NotFound."""
    host = tx.find(Host, name)
    if host is None:
        raise NotFound(f"no host {name}", "muster host list shows all")
    return host


def set_enabled(tx: Tx, name: str, enabled: bool, operator: str, reason: str | None) -> Host:
    """Admit a host to placement, or keep new VMs off it."""
    word = "enabled" if enabled else "disabled"
    return _set(tx, name, "enabled", enabled, word, operator, reason)


def set_down(
    tx: Tx, cfg: Settings, name: str, down: bool, operator: str, reason: str | None
) -> Host:
    """Declare a host down, or take that back; judged again at once."""
    named(tx, name)
    host = tx.lock(Host, name)
    if host is not None and host.forced_down != down:
        word = "set_down" if down else "unset_down"
        tx.event(f"host.{word}", name, operator, reason or "no reason given")
        tx.put(host, forced_down=down, operator_reason=reason or "")
    return liveness.judge_now(tx, cfg, name)


def set_maintenance(tx: Tx, name: str, on: bool, operator: str, reason: str | None) -> Host:
    """Keep new VMs off a host that is being worked on; what runs there is left alone."""
    word = f"maintenance_{'on' if on else 'off'}"
    return _set(tx, name, "maintenance", on, word, operator, reason)


def _set(
    tx: Tx, name: str, flag: str, value: bool, word: str, operator: str, reason: str | None
) -> Host:
    """A flag that changes nothing but where VMs are placed."""
    named(tx, name)
    host = tx.lock(Host, name)
    if host is None or getattr(host, flag) == value:
        return named(tx, name)
    tx.event(f"host.{word}", name, operator, reason or "no reason given")
    return tx.put(host, operator_reason=reason or "", **{flag: value})


def fence(tx: Tx, cfg: Settings, name: str, operator: str, reason: str) -> Host:
    """Nothing runs on this host, by an operator's word: DOWN, and identities are given back.

    At once, or when it has been silent for long enough to be believed.
    """
    named(tx, name)
    host = tx.lock(Host, name)
    if host is not None and (not host.fenced or host.session_open):
        tx.event("host.fenced", name, operator, reason)
        # Whoever says hello after this is alive: see `reap.is_fenced`.
        host = canary.forget(tx, host)
        host = tx.put(host, fenced=True, session_open=False, operator_reason=reason)
    if host is not None:
        quarantine.fenced(tx, cfg, host, operator)
    return liveness.judge_now(tx, cfg, name)


def unfence(tx: Tx, cfg: Settings, name: str, operator: str, reason: str | None) -> Host:
    """Its guests may run again; judged by what is heard of it at once."""
    named(tx, name)
    host = tx.lock(Host, name)
    if host is not None and host.fenced:
        tx.event("host.unfenced", name, operator, reason or "no reason given")
        tx.put(host, fenced=False, fence_due=None, operator_reason=reason or "")
        quarantine.unfenced(tx, name, operator)
    return liveness.judge_now(tx, cfg, name)


def remove(tx: Tx, cfg: Settings, name: str, operator: str, reason: str) -> None:
    """Forget a host; its tombstones stay, and its VMs are deleted without it from then on.

    What doomed guests have in pools that other hosts reach is for those to remove. Nobody is left
    to answer its voids.

    Raises WrongState while its agent has a session and may be there, while VMs live on it that
    nobody has given up by fencing the host or setting it down, and while a VM that is to live on
    elsewhere waits for it: to give that up takes a fence, which it keeps.
    """
    named(tx, name)
    host = tx.lock(Host, name)
    if host is None:
        return
    why, remedy = _in_the_way(tx, cfg, host)
    if why:
        raise WrongState(why, remedy)
    host = canary.forget(tx, host)
    tx.remove(NOT_OURS, host=name)
    tx.remove(VOIDS, host=name)
    reap.forget_host(tx, name)
    tx.delete(host)
    for stone in tx.ask(reap.OPEN_OF_HOST, host=name):
        shared_files.owe(tx, cfg, stone, f"host {name} was deleted by {operator}: {reason}")
    tx.event("host.deleted", name, operator, reason)


def _in_the_way(tx: Tx, cfg: Settings, host: Host) -> tuple[str, str]:
    """Why a host can not be forgotten, and what to do about it."""
    # That of a host which was set down while its agent spoke stays open when it falls silent.
    silent_s = (tx.now - host.heard_at).total_seconds()
    if host.session_open and not (
        host.state is HostState.DOWN and silent_s > cfg.manager.service_down_time
    ):
        why = f"the agent of {host.name} has a session"
        return why, "stop the agent, and wait until the host is DOWN: muster host list"
    if tx.find(Rollback, host.name) is not None:
        why = f"the agent of {host.name} knows a later state of the database"
        return why, "muster doctor; then: muster db accept-restore --reason TEXT"
    vms = [] if host.fenced or host.forced_down else tx.ask(OF_HOST, host=host.name)
    if vms:
        names = ", ".join(vm.name for vm in vms[:NAMED])
        more = f" and {len(vms) - NAMED} more" if len(vms) > NAMED else ""
        some = "1 VM" if len(vms) == 1 else f"{len(vms)} VMs"
        return (
            f"{host.name} has {some}: {names}{more}",
            "delete them; or say what became of the host: muster host fence, muster host set-down",
        )
    waiting = [] if host.fenced else _waiting_for(tx, host.name)
    if waiting:
        names = ", ".join(vm.name for vm in waiting[:NAMED])
        why = f"{host.name} has still to answer for guests of VMs that run elsewhere next: {names}"
        return why, f"if nothing runs there: muster host fence {host.name}"
    kept = [vm for vm in tx.ask(OFFLOADED) if vm.snapshot and vm.snapshot.host == host.name]
    if kept:
        some = "1 shelved VM" if len(kept) == 1 else f"{len(kept)} shelved VMs"
        names = ", ".join(vm.name for vm in kept[:NAMED])
        why = f"{host.name} keeps the snapshot of {some}: {names}"
        return why, "unshelve them, or delete them"
    return "", ""


def _waiting_for(tx: Tx, name: str) -> list[Instance]:
    """VMs that can be started elsewhere only when nothing of them runs on this host."""
    shelved = [vm for vm in tx.ask(OF_HOST, host=name) if vm.vm_state is VmState.SHELVED]
    doomed = [tx.find(Instance, stone.instance) for stone in tx.ask(reap.OPEN_OF_HOST, host=name)]
    return shelved + [vm for vm in doomed if vm is not None and found.is_nowhere(vm)]


def foresee_removal(tx: Tx, cfg: Settings, name: str) -> list[delete.Foreseen]:
    """What a delete of each VM of this host would do once the host is forgotten."""
    host = named(tx, name)
    why, _ = _in_the_way(tx, cfg, host)
    if why:
        return [delete.Foreseen("", "", name, "refused", 6, why)]
    reason = f"the record of host {name} will be gone"
    return [
        delete.Foreseen(vm.uuid, vm.name, name, "DB-only", 6, reason)
        for vm in tx.ask(OF_HOST, host=name)
    ]


def foresee_fence(tx: Tx, cfg: Settings, name: str, fenced: bool) -> list[delete.Foreseen]:
    """As `foresee_down`, with the tombstones that would give back what they hold."""
    host = named(tx, name)
    decisions = _foresee(tx, host, down=fenced or host.forced_down)
    for stone in tx.ask(reap.OPEN_OF_HOST, host=name) if fenced else ():
        if quarantine_rule.holds_identity(stone.holds):
            due_s = quarantine.silent_in_s(tx, cfg, host)
            when = f" in {due_s:.0f} s, unless its agent speaks" if due_s > 0 else ""
            reason = f"its tombstone gives back the addresses that it holds{when}, and still reaps"
            decisions.append(
                delete.Foreseen(stone.instance, stone.name, name, "given back", 9, reason)
            )
    return decisions


def foresee_down(tx: Tx, name: str, down: bool) -> list[delete.Foreseen]:
    """What a delete of each VM of this host would do once an operator's word is changed."""
    host = named(tx, name)
    return _foresee(tx, host, down=down or host.fenced)


def _foresee(tx: Tx, host: Host, *, down: bool) -> list[delete.Foreseen]:
    """`down`: whether an operator will say that it is."""
    if down:
        gone = deletion.Decision(
            9, deletion.Outcome.DB_ONLY, "a delete would no longer wait for it"
        )
        found = deletion.unless_frozen(gone, freeze.why(tx))
        row, decision, reason = found.row, found.outcome.value, found.reason
    elif host.session_open:
        row, decision, reason = 8, "remote", "its agent, which has a session, would be asked"
    else:
        row, decision, reason = 8, "as its state", "judged again by what is heard of it"
    return [
        delete.Foreseen(vm.uuid, vm.name, host.name, decision, row, reason)
        for vm in tx.ask(OF_HOST, host=host.name)
    ]


def counts(tx: Tx) -> dict[str, dict[str, int]]:
    """Live VMs, guests of each kind and open tombstones, by host."""
    result: dict[str, dict[str, int]] = {}

    def add(rows: Any) -> None:
        for host, what, number in rows:
            result.setdefault(host, {})[what] = number

    add(tx.rows(VMS))
    add((host, kind.value.lower(), number) for host, kind, number in tx.rows(GUESTS))
    add(tx.rows(STONES))
    return result

"""Hosts: what operators say of them. The machine never clears what an operator has set."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from common.conf import Settings
from common.errors import NotFound
from common.states import TombstoneState
from manager.flows import delete, liveness
from manager.store.engine import Tx
from manager.store.hosts import Host
from manager.store.instances import Instance
from manager.store.sightings import Sighting
from manager.store.statements import Query, ask
from manager.store.tombstones import Tombstone

S, T, V = (kind.__table__.c for kind in (Sighting, Tombstone, Instance))
OF_HOST = Query(Instance, V.host == ask("host"), order=[V.name])
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
    named(tx, name)
    host = tx.lock(Host, name)
    if host is None or host.enabled == enabled:
        return named(tx, name)
    word = "enabled" if enabled else "disabled"
    tx.event(f"host.{word}", name, operator, reason or "no reason given")
    return tx.put(host, enabled=enabled, operator_reason=reason or "")


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


def foresee_down(tx: Tx, name: str, down: bool) -> list[delete.Foreseen]:
    """What a delete of each VM of this host would do once the flag is changed."""
    host = named(tx, name)
    decisions = []
    for vm in tx.ask(OF_HOST, host=name):
        if down:
            decisions.append(
                delete.Foreseen(
                    vm.uuid, vm.name, name, "DB-only", 9, "a delete would no longer wait for it"
                )
            )
        elif host.session_open:
            decisions += delete.foresee(tx, vm, force=False)
        else:
            reason = "judged again by what is heard of it"
            decisions.append(delete.Foreseen(vm.uuid, vm.name, name, "as its state", 8, reason))
    return decisions


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

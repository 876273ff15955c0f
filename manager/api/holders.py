"""Who holds which address, and why: in use, reserved, or in quarantine by which tombstone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from common.states import GuestKind, TombstoneState
from manager.rules.quarantine import IDENTITY
from manager.store.addresses import Address, Mac
from manager.store.engine import Tx
from manager.store.instances import Instance
from manager.store.sightings import Sighting
from manager.store.tombstones import Tombstone

A, M, S, T = (kind.__table__.c for kind in (Address, Mac, Sighting, Tombstone))
I = Instance.__table__.c  # noqa: E741 - the table's columns, as the others
IN_CHUNKS_OF = 500


def addresses(
    tx: Tx, *, network: str | None = None, instance: str | None = None
) -> list[dict[str, Any]]:
    """Every IP address that is not free, and the MACs that have none, in the order of the IPs."""
    ips = tx.all(
        Address,
        *([A.network == network] if network is not None else []),
        *([A.instance == instance] if instance is not None else []),
        order=[A.network, A.number, A.ip],
    )
    macs = (
        []
        if network is not None
        else tx.all(Mac, *([M.instance == instance] if instance is not None else []), order=[M.mac])
    )
    told = {ip.mac for ip in ips}
    rows: list[Address | Mac] = [*ips, *(mac for mac in macs if mac.mac not in told)]
    owners = {row.instance for row in rows}
    vms = {vm.uuid: vm for vm in _of(tx, Instance, I.uuid, owners)}
    why = _reasons(tx, owners, vms)
    return [
        {
            "ip": getattr(row, "ip", None),
            "mac": row.mac,
            "network": getattr(row, "network", None),
            "instance": row.instance,
            "vm": vms[row.instance].name if row.instance in vms else None,
            "why": why[row.instance],
            "since": row.since,
        }
        for row in rows
    ]


def of(tx: Tx, instance: str) -> list[str]:
    """What an instance holds: MACs, and IP addresses with their networks."""
    macs = tx.all(Mac, M.instance == instance, order=[M.mac])
    ips = tx.all(Address, A.instance == instance, order=[A.network, A.number, A.ip])
    return [mac.mac for mac in macs] + [f"{ip.ip} in {ip.network}" for ip in ips]


def _reasons(tx: Tx, owners: set[str], vms: dict[str, Instance]) -> dict[str, str]:
    """Of each owner, why what it holds is not free."""
    stones: dict[str, list[str]] = {}
    for stone in _of(tx, Tombstone, T.instance, owners):
        if stone.state is TombstoneState.OPEN and set(stone.holds) & set(IDENTITY):
            stones.setdefault(stone.instance, []).append(f"{stone.uuid} on {stone.host}")
    orphans: dict[str, list[str]] = {}
    for seen in _of(tx, Sighting, S.instance, owners):
        if seen.kind is GuestKind.ORPHAN:
            orphans.setdefault(seen.instance or "", []).append(seen.host)
    return {owner: _why(vms.get(owner), stones.get(owner), orphans.get(owner)) for owner in owners}


def _why(vm: Instance | None, stones: Sequence[str] | None, orphans: Sequence[str] | None) -> str:
    if vm is not None and vm.live and vm.reserved:
        return "in use" if vm.host is not None else "reserved"
    if stones:
        return f"quarantined by tombstone {', '.join(sorted(stones))}"
    if orphans:
        return f"seen on an orphan on {', '.join(sorted(orphans))}"
    return "left behind by a guest that was seen without a record"


def _of(tx: Tx, kind: Any, column: Any, owners: Iterable[str]) -> list[Any]:
    """The rows of these owners, some at a time: there may be as many as a database takes."""
    names, found = sorted(owners), []
    for start in range(0, len(names), IN_CHUNKS_OF):
        found += tx.all(kind, column.in_(names[start : start + IN_CHUNKS_OF]))
    return found

"""The nouns of the model: found, and held while something that refers to them is made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import sqlalchemy as sa

from common.errors import Conflict, NotFound
from common.model import NOUNS, Kind, Noun, Project
from manager.store.addresses import Address
from manager.store.engine import Tx
from manager.store.hosts import Host
from manager.store.instances import Instance
from manager.store.model import Object, Use
from manager.store.statements import Query, ask, ask_any
from manager.store.volumes import Volume

DEFAULT_PROJECT = "default"  # unlimited while nobody has made it

Key = tuple[Kind, str]

O = Object.__table__.c  # noqa: E741 - the tables' columns
H, I, U = Host.__table__.c, Instance.__table__.c, Use.__table__.c  # noqa: E741 - as above
OF_KIND = Query(Object, O.kind == ask("kind"))
THESE = Query(Object, O.kind.in_(ask_any("kinds")), O.name.in_(ask_any("names")))
HOSTS_OF = Query(Host, sa.or_(H.name == ask("host"), H.cluster.in_(ask_any("clusters"))))
VMS_OF = Query(
    Instance, I.uuid == U.instance, U.kind == ask("kind"), U.name == ask("name"), reads=(Use,)
)
VMS_ON = Query(
    Instance, I.host.in_(ask_any("hosts")), sa.exists().where(U.instance == I.uuid), reads=(Use,)
)
THESE_VMS = Query(Instance, I.uuid.in_(ask_any("uuids")))
A, V = Address.__table__.c, Volume.__table__.c
QUARANTINED = {
    Kind.NETWORK: sa.select(A.instance).where(A.network == ask("name")).distinct(),
    Kind.POOL: sa.select(V.instance).where(V.pool == ask("name")).distinct(),
}


def find(tx: Tx, kind: Kind, name: str) -> Any:
    """The noun, a struct of `NOUNS[kind]`, or None."""
    row = tx.find(Object, kind, name)
    return noun(row) if row is not None else _implied(kind, name)


def look_up(tx: Tx, wanted: Iterable[Key]) -> None:
    """Read nouns at once, for `find` to know them."""
    keys = set(wanted)
    kinds, names = ({key[n] for key in keys} for n in (0, 1))
    rows = tx.ask(THESE, kinds=sorted(kinds), names=sorted(names)) if keys else []
    for kind, name in keys - {(row.kind, row.name) for row in rows}:
        tx.absent(Object, kind, name)


def named(tx: Tx, kind: Kind, name: str) -> Any:
    """As `find`, or NotFound."""
    found = find(tx, kind, name)
    if found is None:
        raise missing(kind, name)
    return found


def missing(kind: Kind, name: str) -> NotFound:
    """The error that says so."""
    return NotFound(f"no {kind.words} {name}", f"muster {kind.noun} list shows all")


def all_of(tx: Tx, kind: Kind) -> dict[str, Any]:
    """Every noun of a kind by its name, in the order of the names."""
    return {row.name: noun(row) for row in tx.ask(OF_KIND, kind=kind)}


def hold(tx: Tx, kind: Kind, name: str) -> Any:
    """As `find`, and it is neither changed nor deleted before this transaction has ended."""
    return hold_all(tx, [(kind, name)]).get((kind, name))


def lock(tx: Tx, kind: Kind, name: str) -> Any:
    """As `hold`, and nobody else holds it: what is counted against it stays as it is."""
    seen = tx.known(Object, kind, name)
    row = tx.lock(Object, kind, name)
    if row is not None:
        _same(seen, row)
    return noun(row) if row is not None else _implied(kind, name)


def hold_all(tx: Tx, wanted: Iterable[Key]) -> dict[Key, Any]:
    """Those that are there, held as by `hold`; one statement however many there are.

    Whoever makes something that names a noun holds that noun first; others may hold it as well.
    Conflict, which runs the handler again, when one was changed since this transaction has read it:
    what was checked against the old one may not fit the new one.
    """
    keys = set(wanted)
    if not keys:
        return {}
    kinds, names = ({key[n] for key in keys} for n in (0, 1))
    seen = {key: tx.known(Object, *key) for key in keys}
    rows = tx.steady(THESE, kinds=sorted(kinds), names=sorted(names))
    for row in rows:
        _same(seen.get((row.kind, row.name)), row)
    there = {(row.kind, row.name): noun(row) for row in rows}
    for kind, name in keys - there.keys():
        implied = _implied(kind, name)
        if implied is None:
            tx.absent(Object, kind, name)
        else:
            there[kind, name] = implied
    return {key: there[key] for key in keys if key in there}


def _same(seen: Object | None, now: Object) -> None:
    if seen is not None and seen.version != now.version:
        raise Conflict(f"{now.kind} {now.name} was changed meanwhile")


def vms_using(tx: Tx, kind: Kind, name: str) -> list[str]:
    """The VMs that were made from a noun or live on it, as `VM web-1`.

    Of a host, cluster or pod those that are there, if they were made in a zone; its hosts are
    held, so that there come no others. Of a network or pool also those in quarantine.
    """
    found = tx.ask(VMS_OF, kind=kind, name=name)
    gone: set[str] = set()
    if kind in QUARANTINED:
        at = QUARANTINED[kind]
        gone = {row[0] for row in tx.rows(at, name=name)} - {vm.uuid for vm in found}
        found += (mine := tx.ask(THESE_VMS, uuids=sorted(gone)))
        gone -= {vm.uuid for vm in mine}
    if kind in (Kind.HOST, Kind.CLUSTER, Kind.POD):
        clusters = [name] if kind is Kind.CLUSTER else []
        if kind is Kind.POD:
            clusters = [c for c, cluster in all_of(tx, Kind.CLUSTER).items() if cluster.pod == name]
        host = name if kind is Kind.HOST else ""
        hosts = tx.steady(HOSTS_OF, alone=True, host=host, clusters=clusters)
        found += tx.ask(VMS_ON, hosts=[row.name for row in hosts])
    return sorted({f"VM {vm.name}" for vm in found} | {f"instance {uuid}" for uuid in gone})


def noun(row: Object) -> Any:
    """The struct of a stored noun."""
    return msgspec.convert(row.spec, type=NOUNS[row.kind])


def _implied(kind: Kind, name: str) -> Noun | None:
    return Project() if (kind, name) == (Kind.PROJECT, DEFAULT_PROJECT) else None

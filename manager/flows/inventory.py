"""Inventory: what hypervisors show, guest by guest, applied in (session, seq) order.

One path for full reports, deltas and the looks inside results, so that no rule can be forgotten
on one of them.
"""

from __future__ import annotations

import sqlalchemy as sa

from common.conf import Settings
from common.messages import GuestReport, Inventory, Look, digest
from common.ownership import is_ours
from common.states import GuestKind, TombstoneState, VmState
from manager.flows import addresses, commands, found, power, quarantine, reap
from manager.rules import inventory as rule
from manager.store.engine import LOG, Tx
from manager.store.hosts import Host
from manager.store.instances import Instance
from manager.store.sightings import Sighting
from manager.store.statements import Joined, Query, ask, ask_any
from manager.store.tombstones import Tombstone

Pair = tuple[int, int]
S = Sighting.__table__.c
T = Tombstone.__table__.c
I = Instance.__table__.c  # noqa: E741 - the table's columns, as S
IN_CHUNKS_OF = 500
# What is known of guests, with all that tells what they are.
KNOWN = (
    (Sighting, Instance, Tombstone),
    Sighting.__table__.outerjoin(Instance.__table__, I.uuid == S.instance).outerjoin(
        Tombstone.__table__, sa.and_(T.host == S.host, T.instance == S.instance)
    ),
    S.host == ask("host"),
)
OF_HOST = Joined(*KNOWN)
THESE = Joined(*KNOWN, S.hypervisor_uuid.in_(ask_any("uuids")))
SHOWN_AT = Query(Sighting, S.host == ask("host"), S.instance == ask("instance"), S.present)
SHOWN = Query(Sighting, S.instance == ask("instance"), S.present)
FINGERPRINTS = sa.select(S.fingerprint).where(S.host == ask("host"), S.present)
NOT_SHOWN = Query(
    Instance,
    I.host == ask("host"),
    *[
        I.vm_state != state
        for state in (VmState.DELETED, VmState.SHELVED_OFFLOADED, VmState.BUILDING)
    ],
    I.missing.is_(False),
    ~sa.exists().where(S.host == I.host, S.instance == I.uuid, S.present),
    reads=(Sighting,),
)


def take(tx: Tx, cfg: Settings, host: Host, inventory: Inventory, pair: Pair) -> bool:
    """Apply one report of a host; True when our view of it now agrees with the agent's digest."""
    if pair <= confirmed(host):
        return True  # it says nothing about now
    wanted = None if inventory.full else [g.hypervisor_uuid for g in inventory.guests]
    known = _known(tx, host.name, wanted)
    whole = inventory.full and inventory.complete
    # A guest that is named twice must not lose the others of its report.
    for guest in {g.hypervisor_uuid: g for g in inventory.guests}.values():
        see(tx, cfg, host, guest, pair, known.get(guest.hypervisor_uuid), whole=whole)
    if not inventory.complete:
        return False
    if inventory.full:
        listed = {g.hypervisor_uuid for g in inventory.guests}
        gone = [s for uuid, s in known.items() if uuid not in listed]
    else:
        gone = list(_known(tx, host.name, list(inventory.gone)).values()) if inventory.gone else []
    for sighting in gone:
        vanish(tx, host, sighting, pair)
    changed = bool(inventory.full or inventory.guests or inventory.gone)
    ours = host.inventory_digest
    if changed or ours != inventory.digest:
        ours = _digest(tx, host.name)
    agreed = ours == inventory.digest
    host = tx.put(host, inventory_digest=ours)
    if agreed:
        tx.put(host, inventory_at=tx.now)
    if agreed or whole:
        tx.put(host, inventory_session=pair[0], inventory_seq=pair[1])
    if agreed:
        _look_for_missing(tx, cfg, host.name, pair)
    return agreed


def confirmed(host: Host) -> Pair:
    """Up to here all guests of the host are known: what is older says nothing new of any."""
    return host.inventory_session, host.inventory_seq


def take_look(tx: Tx, cfg: Settings, host: Host, instance: str, look: Look) -> None:
    """Apply what an agent saw of one guest after a command's effect."""
    pair = (look.session, look.seq)
    if look.guest is not None:
        old = tx.find(Sighting, host.name, look.guest.hypervisor_uuid)
        see(tx, cfg, host, look.guest, pair, old)
        return
    for sighting in tx.ask(SHOWN_AT, host=host.name, instance=instance):
        vanish(tx, host, sighting, pair)


def see(
    tx: Tx,
    cfg: Settings,
    at: Host,
    guest: GuestReport,
    pair: Pair,
    old: Sighting | None,
    *,
    whole: bool = False,
) -> None:
    """One guest that a hypervisor shows.

    In a `whole` report the host keeps the pair for all of its guests: what has not changed is not
    written again.
    """
    host = at.name
    if pair <= confirmed(at) or (old is not None and pair <= (old.session, old.seq)):
        return
    fleet = cfg.default.fleet_id
    ours = is_ours(
        guest.mark, fleet=fleet, hypervisor_uuid=guest.hypervisor_uuid, template=guest.template
    )
    instance = guest.mark.instance if ours and guest.mark is not None else None
    vm = tx.find(Instance, instance) if instance else None
    stone = reap.at(tx, host, instance) if instance else None
    live = vm is not None and vm.live
    if stone is not None and stone.state is TombstoneState.CLOSED and guest.mark is not None:
        closed = (stone.closed_session, stone.closed_seq)
        if pair < closed:
            return  # looked at before its agent answered that it is gone
        if rule.reopens(guest.mark.generation, tombstone=stone.dooms, closed=closed, seen=pair):
            reap.reopen(tx, cfg, stone, host)
            stone = reap.at(tx, host, stone.instance)
    doom = stone.dooms if stone and stone.state is TombstoneState.OPEN else None
    kind = rule.classify(guest, fleet=fleet, tombstone=doom, live=live)
    if not (whole and _is_known(old, guest, kind, instance)):
        _record(tx, host, guest, pair, kind, instance, old)
    if instance and guest.mark is not None and (old is None or old.mark != guest.mark):
        held = max(vm.generation if vm else 0, stone.generation if stone else 0)
        if guest.mark.generation > held > 0:
            ahead(tx, host, instance, guest.mark.generation)
    if kind is GuestKind.DOOMED and stone is not None:
        stone = quarantine.seen(tx, stone, guest, host)
        reap.issue(tx, cfg, stone, f"seen on {host}")
    elif kind is GuestKind.ORPHAN and instance is not None:
        for mac in guest.macs:
            addresses.hold_mac(tx, instance, mac, host)
    elif kind is GuestKind.MANAGED and vm is not None:
        if found.is_nowhere(vm) and guest.mark is not None:
            if found.is_leftover(vm, guest.mark.generation):
                power.left_over(tx, cfg, host, vm, guest)
                return
            if found.is_on_record(tx, vm.uuid, host, guest.mark.generation):
                return
            vm = found.take(tx, vm, host, f"{host} shows its guest", guest, pair)
        power.report(tx, cfg, host, vm, guest, pair, whole=whole)


def ahead(tx: Tx, host: str, instance: str, generation: int) -> None:
    """Tell of a generation above all that were ever issued; nothing is done about it."""
    issued = commands.issued(tx, instance)
    if generation > issued:
        tx.event(
            "GENERATION_AHEAD",
            instance,
            f"host {host}",
            f"{host} knows generation {generation}, {issued} is the highest that was issued: was"
            " the database restored, or is another fleet of this name at work?",
            generation=generation,
            issued=issued,
        )


def _is_known(
    old: Sighting | None, guest: GuestReport, kind: GuestKind, instance: str | None
) -> bool:
    return (
        old is not None
        and old.present
        and (old.fingerprint, old.kind, old.instance, old.mark)
        == (_fingerprint(guest), kind, instance, guest.mark)
    )


def _fingerprint(guest: GuestReport) -> str:
    return f"{guest.fingerprint():016x}"


def vanish(tx: Tx, host: Host, sighting: Sighting, pair: Pair) -> None:
    """One guest that a complete answer of its hypervisor does not contain."""
    if not sighting.present or pair <= max(confirmed(host), (sighting.session, sighting.seq)):
        return
    if sighting.kind in (GuestKind.ALIEN, GuestKind.ORPHAN):
        tx.event(
            f"{sighting.kind.lower()}.gone",
            sighting.host,
            f"host {sighting.host}",
            f"{sighting.kind.lower()} VM {sighting.name} is gone",
            hypervisor_uuid=sighting.hypervisor_uuid,
        )
    tx.put(sighting, present=False, session=pair[0], seq=pair[1])


def _record(
    tx: Tx,
    host: str,
    guest: GuestReport,
    pair: Pair,
    kind: GuestKind,
    instance: str | None,
    old: Sighting | None,
) -> None:
    fields = {
        "name": guest.name,
        "kind": kind,
        "instance": instance,
        "mark": guest.mark,
        "template": guest.template,
        "power_state": guest.power_state,
        "vcpus": guest.vcpus,
        "memory_mib": guest.memory_mib,
        "macs": guest.macs,
        "fingerprint": _fingerprint(guest),
        "present": True,
        "session": pair[0],
        "seq": pair[1],
        "last_seen": tx.now,
    }
    is_new = old is None or not old.present or old.kind is not kind
    if old is None:
        tx.insert(
            Sighting(
                host=host,
                hypervisor_uuid=guest.hypervisor_uuid,
                first_seen=tx.now,
                **fields,  # type: ignore[arg-type]
            )
        )
    elif not old.present:
        tx.put(old, first_seen=tx.now, **fields)
    else:
        tx.put(old, **fields)
    if is_new and kind in (GuestKind.ALIEN, GuestKind.ORPHAN):
        word = kind.lower()
        LOG.warning("%s VM %s on %s, left alone", word, guest.name, host)
        tx.event(
            f"{word}.seen",
            host,
            f"host {host}",
            f"{word} VM {guest.name} on {host}, left alone",
            hypervisor_uuid=guest.hypervisor_uuid,
        )


def _known(tx: Tx, host: str, uuids: list[str] | None) -> dict[str, Sighting]:
    if uuids is None:
        rows = tx.together(OF_HOST, host=host)
    else:
        rows = []
        for start in range(0, len(uuids), IN_CHUNKS_OF):
            chunk = uuids[start : start + IN_CHUNKS_OF]
            rows += tx.together(THESE, host=host, uuids=chunk)
    for sighting, vm, stone in rows:
        if sighting.instance is not None and vm is None:
            tx.absent(Instance, sighting.instance)
        if sighting.instance is not None and stone is None:
            tx.absent(Tombstone, host, sighting.instance)
    return {sighting.hypervisor_uuid: sighting for sighting, _vm, _stone in rows}


def _digest(tx: Tx, host: str) -> str:
    return digest(int(row[0], 16) for row in tx.rows(FINGERPRINTS, host=host))


def _look_for_missing(tx: Tx, cfg: Settings, host: str, pair: Pair) -> None:
    """VMs with a live record on this host that its hypervisor does not show."""
    for vm in tx.ask(NOT_SHOWN, host=host):
        power.absent(tx, cfg, vm, pair)


def take_found(tx: Tx, vm: Instance) -> bool:
    """True when a VM on no host is somewhere after all, as after a database was put back.

    It is there from then on.
    """
    doomed = {s.host for s in reap.of(tx, vm.uuid) if s.state is TombstoneState.OPEN}
    for seen in sightings(tx, vm.uuid):
        if seen.host in doomed or seen.mark is None or not found.is_nowhere(vm):
            continue
        if found.is_leftover(vm, seen.mark.generation):
            continue
        if not found.is_on_record(tx, vm.uuid, seen.host, seen.mark.generation):
            pair = seen.session, seen.seq
            found.take(tx, vm, seen.host, f"{seen.host} shows its guest", seen, pair)
            return True
    return False


def hosts_showing(tx: Tx, instance: str) -> list[str]:
    """Every host whose latest word shows a guest with this instance's own mark."""
    return sorted({row.host for row in sightings(tx, instance)})


def sightings(tx: Tx, instance: str) -> list[Sighting]:
    """Every guest with this instance's own mark, by the latest word of its host."""
    return tx.ask(SHOWN, instance=instance)

"""Quarantine: what a tombstone keeps from being given away, ended before its agent answers.

An operator may know that a guest does not run before its host can say so. Neither a fence nor
`tombstone forget` closes a tombstone: the guest is reaped all the same. One that is seen running
shows that he was mistaken: what is still free goes back, and what is not raises the alarm.
"""

from __future__ import annotations

import datetime as dt

from common.conf import Settings
from common.errors import NotFound
from common.messages import GuestReport
from common.states import PowerState
from manager.flows import addresses, holdings, reap, shared_files
from manager.rules import quarantine as rule
from manager.store.engine import Tx
from manager.store.hosts import Host
from manager.store.statements import Query, ask
from manager.store.tombstones import Tombstone

BY_UUID = Query(Tombstone, Tombstone.__table__.c.uuid == ask("uuid"), limit=1)
FENCE_IS_DUE = Host.__table__.c.fence_due <= ask("now")
FENCES_DUE = Query(Host, FENCE_IS_DUE)
OFF = (PowerState.SHUTOFF, PowerState.CRASHED, PowerState.SUSPENDED)


def named(tx: Tx, uuid: str) -> Tombstone:
    """The tombstone, or NotFound."""
    stone = tx.ask_first(BY_UUID, uuid=uuid.lower())
    if stone is None:
        raise NotFound(f"no tombstone {uuid}", "muster tombstone list shows all")
    return stone


def fenced(tx: Tx, cfg: Settings, host: Host, operator: str) -> None:
    """The host runs nothing: the identities that its open tombstones held are given back.

    One that was heard within the last service_down_time may be the wrong one: not before it has
    been silent for so long.
    """
    wait_s = silent_in_s(tx, cfg, host)
    if wait_s > 0:
        tx.put(host, fence_due=tx.now + dt.timedelta(seconds=wait_s))
        return
    tx.put(host, fence_due=None)
    held = [s for s in tx.ask(reap.OPEN_OF_HOST, host=host.name) if rule.holds_identity(s.holds)]
    why = f"{host.name} is fenced"
    for stone in held:
        _let_go(tx, stone, rule.after_fence(stone.holds), operator, why)
    for stone in held:
        holdings.release(tx, stone.instance)


def silent_in_s(tx: Tx, cfg: Settings, host: Host) -> float:
    """Seconds until a host of which nothing more is heard has been silent for long enough."""
    return cfg.manager.service_down_time - (tx.now - host.heard_at).total_seconds()


def fences_due(tx: Tx, cfg: Settings) -> None:
    """Fenced hosts that have been silent for long enough; not those that have a session again."""
    for found in tx.ask(FENCES_DUE, now=tx.now):
        host = tx.lock(Host, found.name)
        if host is not None and reap.is_fenced(tx, host.name):
            fenced(tx, cfg, host, "manager")
        elif host is not None:
            tx.put(host, fence_due=None)


def unfenced(tx: Tx, host: str, operator: str) -> None:
    """Its guests may run again: of what a fence gave back, what nobody has got meanwhile returns.

    What was given to another stays there; should the guest be seen, there is an alarm.
    """
    for stone in tx.ask(reap.OPEN_OF_HOST, host=host):
        if rule.awaits_identity(stone.holds):
            held, lost = addresses.hold_free(tx, stone.instance, stone.mac, stone.nics)
            holds = (*held, *stone.holds)
            tx.swap(stone, holds=holds)
            text = f"{stone.name} on {host}, which is not fenced any more, holds {', '.join(holds)}"
            text += f"; {lost}" if lost else ""
            tx.event("tombstone.holds", stone.instance, operator, text)


def forget(tx: Tx, cfg: Settings, stone: Tombstone, operator: str, reason: str) -> Tombstone:
    """Give back all that a tombstone holds; it stays, and still reaps.

    Its disk in a pool that other hosts reach stays taken until one of them has removed it.
    """
    if not stone.holds:
        return stone
    disk = any(what in rule.DISK for what in stone.holds)
    stone = _let_go(tx, stone, (), operator, reason)
    if disk:
        shared_files.owe(tx, cfg, stone, f"its tombstone was forgotten by {operator}: {reason}")
    holdings.release(tx, stone.instance)
    return stone


def seen(tx: Tx, stone: Tombstone, guest: GuestReport, host: str) -> Tombstone:
    """A doomed guest is shown by its host; returns its tombstone as it is then."""
    if guest.power_state in OFF or rule.holds_all_identity(stone.holds):
        return stone
    disk = rule.after_fence(stone.holds)
    stone = tx.swap(stone, holds=(*rule.IDENTITY, *disk))
    text = f"{stone.name} runs on {host}, although what it held was given back"
    tx.event("tombstone.holds", stone.instance, f"host {host}", text)
    addresses.hold_again(tx, stone.instance, stone.mac, stone.nics, host)
    return stone


def _let_go(tx: Tx, stone: Tombstone, holds: tuple[str, ...], operator: str, why: str) -> Tombstone:
    given = ", ".join(what for what in stone.holds if what not in holds)
    stone = tx.swap(stone, holds=holds)
    text = f"{stone.name} on {stone.host} gives back {given}: {why}"
    tx.event("tombstone.released", stone.instance, operator, text)
    return stone

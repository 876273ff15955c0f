"""Addresses: MACs, IPs and hostnames given to VMs, each with one owner, until proven free.

A free one is taken at random, so that two managers seldom reach for the same; the table's key
decides. Only when luck fails is the first gap looked for.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import sqlalchemy as sa

from common import model
from common.conf import Settings
from common.errors import Conflict, NameTaken, NoAddress, NoValidHost
from manager.rules import addresses as rule
from manager.rules.quarantine import IDENTITY
from manager.store.addresses import Address, Hostname, Mac
from manager.store.engine import Tx
from manager.store.instances import Instance, Nic
from manager.store.statements import Query, Removal, ask

TRIES = 8
A, H, M = Address.__table__.c, Hostname.__table__.c, Mac.__table__.c
MACS = Query(Mac, M.instance == ask("instance"))
TAKEN = sa.select(A.number).where(A.network == ask("network"), A.number.is_not(None))
RELEASED = (
    Removal(Mac, M.instance == ask("instance")),
    Removal(Address, A.instance == ask("instance")),
    Removal(Hostname, H.instance == ask("instance")),
)


def give_mac(tx: Tx, cfg: Settings, instance: str) -> str:
    """A MAC of the fleet's range that no VM has and no quarantine holds."""
    for _ in range(100):
        number = tx.store.runtime.random_below(1 << 24)
        tail = ":".join(f"{(number >> shift) & 0xFF:02x}" for shift in (16, 8, 0))
        mac = f"{cfg.manager.mac_prefix}:{tail}"
        if tx.insert_if_new(Mac(mac=mac, instance=instance, since=tx.now)):
            return mac
    raise NoValidHost(
        f"no free MAC found in {cfg.manager.mac_prefix}:*", "set another [manager] mac_prefix"
    )


def give_nic(
    tx: Tx,
    cfg: Settings,
    instance: str,
    name: str,
    network: model.Network,
    *,
    address: str | None = None,
    address6: str | None = None,
) -> Nic:
    """A card in a network, with the addresses that were asked for or any free ones.

    Raises NoAddress when the one that was asked for is taken, or none is left.
    """
    mac = give_mac(tx, cfg, instance)
    if address is None:
        address = _any_free(tx, instance, mac, name, network)
    else:
        _take(tx, instance, mac, name, address)
    if network.cidr6 is not None:
        address6 = address6 or rule.eui64(network.cidr6, mac)
        _take(tx, instance, mac, name, address6)
    return Nic(mac=mac, network=name, address=address, address6=address6)


def give_hostname(tx: Tx, instance: str, hostname: str, networks: Sequence[str]) -> None:
    """One VM of each of these networks is called so. Raises NameTaken."""
    for network in networks:
        if not tx.insert_if_new(Hostname(network=network, hostname=hostname, instance=instance)):
            raise name_taken(hostname, network)


def make_hostname(tx: Tx, instance: str, name: str, networks: Sequence[str]) -> str:
    """A hostname from a VM's name; with a part of its uuid where another VM is called so."""
    hostname = rule.hostname_from(name, instance)
    given: list[Hostname] = []
    for network in networks:
        row = Hostname(network=network, hostname=hostname, instance=instance)
        if not tx.insert_if_new(row):
            break
        given.append(row)
    else:
        return hostname
    for row in given:
        tx.delete(row)
    hostname = rule.hostname_from(name, instance, taken=True)
    give_hostname(tx, instance, hostname, networks)
    return hostname


def name_taken(hostname: str, network: str) -> NameTaken:
    """The error that says so."""
    return NameTaken(
        f"{hostname} is taken in network {network}",
        "choose another with --hostname",
        field="hostname",
    )


def why_taken(tx: Tx, network: str, ip: str) -> NoAddress | None:
    """The error that names who has an address, if anybody has."""
    owner = tx.find(Address, network, ip)
    return _taken(network, ip, owner.instance) if owner is not None else None


def hold_again(tx: Tx, instance: str, mac: str | None, nics: Sequence[Nic], host: str) -> None:
    """What a guest may be using goes (back) into quarantine; an alarm when it is another's."""
    for _kind, what, owner in _hold(tx, instance, mac, nics):
        _alarm(tx, instance, host, what, owner)


def hold_free(
    tx: Tx, instance: str, mac: str | None, nics: Sequence[Nic]
) -> tuple[tuple[str, ...], str]:
    """As `hold_again`, of what nobody else was given: the kinds that are held whole, and the rest.

    The rest is told in words, each with its new owner; nobody is alarmed.
    """
    lost = _hold(tx, instance, mac, nics)
    kinds = {kind for kind, _what, _owner in lost}
    told = ", ".join(f"{what} belongs to instance {owner}" for _kind, what, owner in lost)
    return tuple(kind for kind in IDENTITY if kind not in kinds), told


def _hold(
    tx: Tx, instance: str, mac: str | None, nics: Sequence[Nic]
) -> list[tuple[str, str, str]]:
    """Take what is free; what is another's, as its kind, itself and its owner."""
    lost = []
    for each in dict.fromkeys([*([mac] if mac else []), *(nic.mac for nic in nics)]):
        owner = _hold_mac(tx, instance, each)
        if owner is not None:
            lost.append(("mac", each, owner))
    for nic in nics:
        for ip in (nic.address, nic.address6):
            if ip is None or nic.network is None:
                continue
            row = tx.find(Address, nic.network, ip)
            if row is None:
                if not tx.insert_if_new(_row(tx, instance, nic.mac, nic.network, ip)):
                    raise Conflict(f"{ip} was taken by another manager")
            elif row.instance != instance:
                lost.append(("address", ip, row.instance))
    return lost


def hold_mac(tx: Tx, instance: str, mac: str, host: str) -> None:
    """As `hold_again`, for the MAC that a guest shows."""
    owner = _hold_mac(tx, instance, mac)
    if owner is not None:
        _alarm(tx, instance, host, mac, owner)


def _hold_mac(tx: Tx, instance: str, mac: str) -> str | None:
    """Take a MAC; whose it is, if it is another's."""
    row = tx.find(Mac, mac)
    if row is None:
        if not tx.insert_if_new(Mac(mac=mac, instance=instance, since=tx.now)):
            raise Conflict(f"{mac} was taken by another manager")
    elif row.instance != instance:
        return row.instance
    return None


def release(tx: Tx, instance: str, vm: Instance | None) -> None:
    """Give back all that a VM held; one that had no network has a MAC alone."""
    if vm is not None and not any(nic.network for nic in vm.nics):
        for mac in tx.ask(MACS, instance=instance):
            tx.delete(mac)
        return
    for removal in RELEASED:
        tx.remove(removal, instance=instance)


def _any_free(tx: Tx, instance: str, mac: str, name: str, network: model.Network) -> str:
    first, last = network.pool()
    reserved = rule.reserved(network)
    for _ in range(TRIES):
        number = first + tx.store.runtime.random_below(last - first + 1)
        if number not in reserved:
            ip = str(ipaddress.IPv4Address(number))
            if tx.insert_if_new(_row(tx, instance, mac, name, ip)):
                return ip
    taken = [int(row[0]) for row in tx.rows(TAKEN, network=name)]
    free = rule.free(first, last, taken, reserved)
    if free is None:
        size = last - first + 1
        raise NoAddress(
            f"network {name}: none of its {size} addresses is free",
            f"delete VMs, or give it more: muster network set {name} --last IP",
        )
    ip = str(ipaddress.IPv4Address(free))
    if not tx.insert_if_new(_row(tx, instance, mac, name, ip)):
        raise Conflict(f"{ip} was taken by another manager")
    return ip


def _take(tx: Tx, instance: str, mac: str, network: str, ip: str) -> None:
    if not tx.insert_if_new(_row(tx, instance, mac, network, ip)):
        owner = tx.find(Address, network, ip)
        raise _taken(network, ip, owner.instance if owner is not None else "another VM")


def _taken(network: str, ip: str, owner: str) -> NoAddress:
    said = f"address {ip} of network {network} is taken by {owner}"
    return NoAddress(said, "ask for another", field="networks")


def _row(tx: Tx, instance: str, mac: str, network: str, ip: str) -> Address:
    parsed = ipaddress.ip_address(ip)
    number = int(parsed) if parsed.version == 4 else None
    return Address(
        network=network, ip=str(parsed), number=number, instance=instance, mac=mac, since=tx.now
    )


def _alarm(tx: Tx, instance: str, host: str, what: str, owner: str) -> None:
    tx.event(
        "ADDRESS_CONFLICT",
        instance,
        f"host {host}",
        f"{what} is in use by a guest on {host} and belongs to instance {owner}",
        address=what,
        owner=owner,
    )

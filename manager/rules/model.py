"""What must hold between nouns: names, networks of a zone, and what may change while it is used."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from common.model import NOUNS, Kind, Network, NetworkKind, Noun, Problem, Zone, ZoneKind, named_by

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

# Fields that VMs were made by: another value would not be true of those that are there.
FIXED_BY_VMS: Mapping[Kind, tuple[str, ...]] = {
    Kind.ZONE: ("security_groups",),
    Kind.POD: ("zone",),
    Kind.CLUSTER: ("pod",),
    Kind.HOST: ("cluster",),
    Kind.POOL: ("scope", "host", "cluster", "zone", "kind", "path", "rbd_pool", "monitors"),
    Kind.TEMPLATE: ("format", "sha256", "initrd_sha256"),
    Kind.NETWORK: ("zone", "kind", "backend", "source", "vlan", "security_groups"),
    Kind.AFFINITY_GROUP: ("kind",),
}
# Fields that other nouns were checked against.
FIXED_BY_NOUNS: Mapping[Kind, tuple[str, ...]] = {Kind.ZONE: ("kind",)}

# Who may name a noun of a kind.
REFERRERS: Mapping[Kind, tuple[Kind, ...]] = {
    kind: tuple(other for other in Kind if kind in NOUNS[other].refs.values()) for kind in Kind
}


def bad_name(kind: Kind, name: str) -> Iterator[Problem]:
    """A name with the shape of a UUID, by which another object may be meant.

    Hosts name themselves.
    """
    if kind is not Kind.HOST and _UUID.fullmatch(name):
        yield "name", f"{name!r} has the shape of a UUID", "choose a name that is no UUID"


def unknown(
    noun: type[Noun], given: Mapping[str, Any], exists: Callable[[Kind, str], bool]
) -> Iterator[Problem]:
    """References to what is not there; `given` are the fields that could be read."""
    for field, kind in noun.refs.items():
        value: Any = given.get(field)
        several = isinstance(value, list | tuple)
        for n, name in enumerate(value if several else (value,)):
            if name is not None and not exists(kind, name):
                where = f"{field}[{n}]" if several else field
                yield where, f"no {kind.words} {name}", _remedy(kind)


def _remedy(kind: Kind) -> str:
    if kind is Kind.HOST:
        return "say where it stands: muster host set HOST --cluster CLUSTER"
    return f"muster {kind.noun} list shows all"


def clashes(network: Network, zone: Zone, others: Mapping[str, Network]) -> Iterator[Problem]:
    """What a network can not be beside the `others` of its zone."""
    if zone.kind is ZoneKind.BASIC:
        if network.kind is not NetworkKind.SHARED:
            yield "kind", f"{network.kind} in a basic zone", "shared; or an advanced zone"
        for name in others:
            said = f"zone {network.zone} is basic and has network {name}"
            yield "zone", said, "an advanced zone, which takes several"
            break
    for name, other in others.items():
        same_wire = (network.source, network.vlan) == (other.source, other.vlan)
        if network.vlan is not None and same_wire:
            said = f"{network.vlan} on {network.source} is network {name}"
            yield "vlan", said, "a tag that no other network of the zone has there"
        apart = network.kind is other.kind is NetworkKind.ISOLATED and not same_wire
        for field in () if apart else ("cidr", "cidr6"):
            mine, theirs = getattr(network, field), getattr(other, field)
            if _overlap(mine, theirs):
                said = f"{mine} overlaps {theirs} of network {name}"
                yield field, said, "a subnet of its own"


def lost(network: Network, changed: Collection[str], given: Collection[str]) -> Iterator[Problem]:
    """What of a network can not change so, because of the addresses that VMs have there."""
    for field in ("cidr", "cidr6"):
        subnet = _subnet(getattr(network, field) or "")
        mine = [ip for ip in given if (":" in ip) is (field == "cidr6")]
        left = sorted(ip for ip in mine if subnet is None or not _is_of_a_vm(ip, subnet))
        if field in changed and left:
            yield field, f"VMs have {some(left)}", "a subnet with all addresses that were given"
    for field in ("gateway", "gateway6"):
        if field in changed and getattr(network, field) in given:
            yield field, f"a VM has {getattr(network, field)}", "an address that no VM has"


def _is_of_a_vm(ip: str, subnet: Any) -> bool:
    """True for an address in a subnet that is not the subnet's own, nor that of all in it."""
    address = ipaddress.ip_address(ip)
    own = {subnet.network_address}
    if subnet.version == 4:
        own.add(subnet.broadcast_address)
    return address in subnet and address not in own


def _overlap(one: str | None, other: str | None) -> bool:
    subnets = [_subnet(text) for text in (one, other) if text is not None]
    if len(subnets) < 2 or None in subnets:
        return False
    first, second = subnets
    return bool(first.version == second.version and first.overlaps(second))


def _subnet(text: str) -> Any:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        return None


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The fields whose values differ."""
    return [field for field in after if before.get(field) != after[field]]


def referrers(key: tuple[Kind, str], nouns: Mapping[tuple[Kind, str], Noun]) -> list[str]:
    """Those that name a noun, as `pod p1`."""
    return [
        f"{kind.words} {name}"
        for (kind, name), noun in nouns.items()
        if any((ref, value) == key for _field, ref, value in named_by(noun))
    ]


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few of several, and how many there are besides."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")

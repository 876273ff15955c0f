"""Which address and which name a NIC gets (decision tables, section 8, steps 1 and 3)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from common.model import Network

LABEL_LIMIT = 63  # RFC 1123, section 2.1
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def free(first: int, last: int, taken: Iterable[int], reserved: Iterable[int] = ()) -> int | None:
    """The lowest number from `first` to `last` that nobody has; None when there is none."""
    busy = {*taken, *reserved}
    return next((number for number in range(first, last + 1) if number not in busy), None)


def reserved(network: Network) -> frozenset[int]:
    """The IPv4 addresses in a network that serve it, and that no VM may have."""
    subnet = ipaddress.IPv4Network(network.cidr)
    servers = (ipaddress.ip_address(text) for text in (network.gateway, *network.dns) if text)
    return frozenset(int(server) for server in servers if server in subnet)


def why_not(network: Network, text: str) -> str:
    """Why a VM can not have the address that was asked for in this network; "" when it can.

    `first` and `last` bound what is given out unasked: an operator may ask for one beside them.
    """
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return f"{text!r} is no IPv4 address"
    subnet = ipaddress.IPv4Network(network.cidr)
    if address not in subnet:
        return f"{text} is not in {network.cidr}"
    if address == subnet.network_address:
        return f"{text} is the address of the network itself"
    if address == subnet.broadcast_address:
        return f"{text} is the broadcast address of {network.cidr}"
    if text == network.gateway:
        return f"{text} is the gateway"
    if int(address) in reserved(network):
        return f"{text} is a DNS server of the network"
    return ""


def why_not6(network: Network, text: str) -> str:
    """As `why_not`, of the IPv6 address that was asked for."""
    if network.cidr6 is None:
        return f"{text}: the network has no IPv6"
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return f"{text!r} is no IPv6 address"
    subnet = ipaddress.IPv6Network(network.cidr6)
    if address.scope_id is not None:
        return f"{text} has a scope, which only its own host would know"
    if address not in subnet:
        return f"{text} is not in {network.cidr6}"
    if address == subnet.network_address:
        return f"{text} is the address of the network itself"  # its routers' (RFC 4291, 2.6.1)
    if network.gateway6 is not None and address == ipaddress.IPv6Address(network.gateway6):
        return f"{text} is the gateway"
    if address in {ipaddress.ip_address(server) for server in network.dns}:
        return f"{text} is a DNS server of the network"
    return ""


def eui64(cidr6: str, mac: str) -> str:
    """The address that a guest makes itself in a /64 from its MAC (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    flipped = bytes([octets[0] ^ 0x02]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    subnet = ipaddress.IPv6Network(cidr6)
    return str(subnet[int.from_bytes(flipped, "big")])


def is_hostname(text: str) -> bool:
    """One label of RFC 1123 in lower case, without a domain."""
    return _LABEL.fullmatch(text) is not None


def hostname_from(name: str, uuid: str, *, taken: bool = False) -> str:
    """The hostname that a VM's name comes to; `taken`: with a part of its uuid, as another has it.

    Whatever can not be in a hostname becomes a hyphen.
    """
    made = re.sub(r"[^a-z0-9]+", "-", name.lower())[:LABEL_LIMIT].strip("-")
    tail = f"-{uuid[:8]}"
    if not made:
        return f"vm{tail}"
    return made[: LABEL_LIMIT - len(tail)].rstrip("-") + tail if taken else made

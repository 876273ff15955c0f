"""Security groups as libvirt's nwfilters: one for each card of a guest that is filtered."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from agent.drivers.libvirt.connection import Connection
from common.errors import HypervisorError
from common.messages import NicSpec
from common.model import Direction, Protocol, Rule

# libvirt's own, from the package libvirt-daemon-config-nwfilter.
BASE = ("no-mac-spoofing", "no-ip-spoofing", "no-arp-spoofing", "no-other-l2-traffic")
# Rules on ports are iptables rules, which see a bridge's traffic only where this holds a 1.
BRIDGE_TRAFFIC = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
# What the neighbours of an IPv6 network tell each other, which conntrack does not follow: who is
# there (135, 136), and guests ask for routers (133), which answer (134).
_NEIGHBOURS = {"in": (134, 135, 136), "out": (133, 135, 136)}

# There is none of that name, or there are none at all: libvirt's mock driver knows no filters.
_MISSING = (libvirt.VIR_ERR_NO_NWFILTER, libvirt.VIR_ERR_NO_SUPPORT)

_IN_LIBVIRT = {
    (4, Protocol.TCP): "tcp",
    (4, Protocol.UDP): "udp",
    (4, Protocol.ICMP): "icmp",
    (4, Protocol.ALL): "all",
    (6, Protocol.TCP): "tcp-ipv6",
    (6, Protocol.UDP): "udp-ipv6",
    (6, Protocol.ICMP): "icmpv6",
    (6, Protocol.ALL): "all-ipv6",
}


def prefix(instance: str, bearer: str) -> str:
    """What the names of a guest's filters begin with, and nobody else's."""
    return f"muster-{instance}-{bearer[:8]}-"


def name(instance: str, bearer: str, number: int, nic: NicSpec) -> str | None:
    """The filter of a guest's card; None for one that is not filtered."""
    return None if nic.rules is None else f"{prefix(instance, bearer)}{number}"


def body(filter_name: str, nic: NicSpec) -> str:
    """The XML: a card speaks for itself alone, its rules let through, replies come back."""
    root = ET.Element("filter", name=filter_name, chain="root")
    for base in ("no-mac-spoofing", "no-ip-spoofing"):
        ET.SubElement(root, "filterref", filter=base)
    _rule(root, "accept", "inout", -650, "mac", protocolid="ipv4")
    _speak_ipv6(root, nic)
    ET.SubElement(root, "filterref", filter="no-arp-spoofing")
    _rule(root, "accept", "inout", -500, "mac", protocolid="arp")
    ET.SubElement(root, "filterref", filter="no-other-l2-traffic")

    rules = list(nic.rules or ())
    if not any(rule.direction is Direction.EGRESS for rule in rules):
        rules += [
            Rule(direction=Direction.EGRESS, cidr=everywhere)
            for everywhere in ("0.0.0.0/0", "::/0")
        ]
    for family in ("all", "all-ipv6"):
        _rule(root, "accept", "inout", 100, family, state="ESTABLISHED,RELATED")
    for rule in rules:
        _let_through(root, rule)
    for family in ("all", "all-ipv6"):
        _rule(root, "drop", "inout", 1000, family)
    return ET.tostring(root, encoding="unicode")


class Filters:
    """The nwfilters of our guests, on one host."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def make(self, instance: str, bearer: str, nics: Iterable[NicSpec]) -> None:
        """Define the filters of a guest; HypervisorError where this host filters nothing."""
        wanted = {
            filter_name: nic
            for number, nic in enumerate(nics)
            if (filter_name := name(instance, bearer, number, nic)) is not None
        }
        if not wanted:
            return
        if not _sees_bridges():
            raise HypervisorError(
                "security groups would filter nothing here: the traffic of bridges does not pass"
                " iptables",
                f"modprobe br_netfilter, and echo 1 > {BRIDGE_TRAFFIC}",
            )
        for base in BASE:
            if not self._exists(base):
                raise HypervisorError(
                    f"libvirt has no nwfilter {base}", "install libvirt-daemon-config-nwfilter"
                )
        for filter_name, nic in wanted.items():
            self._connection.call(
                f"define nwfilter {filter_name}", partial(_define, body(filter_name, nic))
            )

    def remove(self, instance: str, bearer: str, names: Iterable[str]) -> None:
        """Remove those of `names` that are this guest's; one that another guest uses stays."""
        ours = sorted(n for n in set(names) if n.startswith(prefix(instance, bearer)))
        if not ours:
            return
        used = self._connection.call("read domains", lambda conn: _used(conn, bearer))
        for filter_name in ours:
            if filter_name not in used:
                self._connection.call(
                    f"remove nwfilter {filter_name}", partial(_undefine, filter_name)
                )

    def left_of(self, instance: str, bearer: str) -> list[str]:
        """All that are called as this guest's, whether or not anything names them."""

        def look(conn: Any) -> list[str]:
            try:
                there = conn.listNWFilters()
            except libvirt.libvirtError as exc:
                if exc.get_error_code() not in _MISSING:
                    raise
                return []
            return [each for each in there if each.startswith(prefix(instance, bearer))]

        return self._connection.call("list nwfilters", look)

    def _exists(self, filter_name: str) -> bool:
        def look(conn: Any) -> bool:
            try:
                conn.nwfilterLookupByName(filter_name)
            except libvirt.libvirtError as exc:
                if exc.get_error_code() not in _MISSING:
                    raise
                return False
            return True

        return self._connection.call(f"look for nwfilter {filter_name}", look)


def _used(conn: Any, bearer: str) -> set[str]:
    """The filters that the definitions of all guests but this one name."""
    found: set[str] = set()
    for domain in conn.listAllDomains():
        if domain.UUIDString() == bearer.lower():
            continue
        try:
            tree = ET.fromstring(domain.XMLDesc())  # noqa: S314 - libvirt's own
        except libvirt.libvirtError as exc:
            if exc.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
            continue  # it went between the list and the look
        found |= {ref.get("filter", "") for ref in tree.iterfind("devices/interface/filterref")}
    return found


def _define(made: str, conn: Any) -> None:
    conn.nwfilterDefineXML(made)


def _undefine(filter_name: str, conn: Any) -> None:
    try:
        conn.nwfilterLookupByName(filter_name).undefine()
    except libvirt.libvirtError as exc:
        if exc.get_error_code() not in _MISSING:
            raise


def _sees_bridges() -> bool:
    try:
        return BRIDGE_TRAFFIC.read_text().strip() != "0"
    except OSError:
        return False


def _speak_ipv6(root: ET.Element, nic: NicSpec) -> None:
    """Without an address of its own a card has no IPv6 at all."""
    if nic.address6 is None:
        return
    own = str(ipaddress.ip_interface(nic.address6).ip)
    # Its own address, that of the link, and none yet: a guest asks whether its address is free.
    for address, mask in ((own, "128"), ("fe80::", "10"), ("::", "128")):
        _rule(root, "accept", "out", -620, "ipv6", srcipaddr=address, srcipmask=mask)
    _rule(root, "drop", "out", -610, "mac", protocolid="ipv6")
    _rule(root, "accept", "in", -600, "mac", protocolid="ipv6")
    # libvirt makes nothing of a rule for both directions that names a type.
    for direction, kinds in _NEIGHBOURS.items():
        for kind in kinds:
            made = _rule(root, "accept", direction, 100, "icmpv6", type=str(kind))
            made.set("statematch", "false")


def _let_through(root: ET.Element, rule: Rule) -> None:
    subnet = ipaddress.ip_network(rule.cidr)
    ingress = rule.direction is Direction.INGRESS
    where = dict(_match(rule, subnet, "src" if ingress else "dst"))
    direction = "in" if ingress else "out"
    tag = _IN_LIBVIRT[subnet.version, rule.protocol]
    _rule(root, "accept", direction, 500, tag, state="NEW", **where)


def _match(rule: Rule, subnet: Any, far: str) -> Iterator[tuple[str, str]]:
    if subnet.prefixlen:
        yield f"{far}ipaddr", str(subnet.network_address)
        yield f"{far}ipmask", str(subnet.prefixlen)
    if rule.protocol in (Protocol.TCP, Protocol.UDP) and (
        rule.port_first is not None or rule.port_last is not None
    ):
        yield "dstportstart", str(rule.port_first or 0)
        yield "dstportend", str(65535 if rule.port_last is None else rule.port_last)


def _rule(
    root: ET.Element, action: str, direction: str, priority: int, protocol: str, **match: str
) -> ET.Element:
    rule = ET.SubElement(root, "rule", action=action, direction=direction, priority=str(priority))
    ET.SubElement(rule, protocol, match)
    return rule

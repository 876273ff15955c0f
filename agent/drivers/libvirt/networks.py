"""What the cards of guests are plugged into: libvirt networks, bridges, Open vSwitch ports."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from agent.drivers.libvirt import filters
from agent.drivers.libvirt.connection import Connection
from agent.drivers.libvirt.xml import Nic
from common.errors import HypervisorError
from common.messages import NicSpec
from common.model import Backend


class Networks:
    """The networks of one host, looked at but not changed, except that an isolated one is made."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def cards(self, instance: str, bearer: str, nics: Iterable[NicSpec]) -> tuple[Nic, ...]:
        """Each card as its domain will have it; HypervisorError for a network that is missing."""
        return tuple(
            self._card(nic, filters.name(instance, bearer, number, nic))
            for number, nic in enumerate(nics)
        )

    def _card(self, nic: NicSpec, filter_name: str | None) -> Nic:
        return Nic(
            nic.mac,
            self._kind(nic),
            nic.network,
            vlan=nic.vlan,
            filter=filter_name,
            address=None if nic.address is None else str(ipaddress.ip_interface(nic.address).ip),
        )

    def _kind(self, nic: NicSpec) -> str:
        if nic.network is None:
            return "user"
        if nic.backend is None:
            return "network" if nic.network in self._names() else "bridge"
        if nic.backend is Backend.LIBVIRT:
            self._connection.call(
                f"start network {nic.network}", lambda conn: _running(conn, nic.network, nic.ensure)
            )
            return "network"
        if not self._connection.call(
            f"look for bridge {nic.network}", lambda conn: _has_interface(conn, nic.network)
        ):
            raise HypervisorError(
                f"there is no bridge {nic.network} on this host",
                f"ovs-vsctl add-br {nic.network}"
                if nic.backend is Backend.OVS
                else f"ip link add {nic.network} type bridge",
            )
        return nic.backend.value

    def _names(self) -> list[str]:
        return self._connection.call(
            "list networks", lambda conn: [network.name() for network in conn.listAllNetworks()]
        )


def _has_interface(conn: Any, name: Any) -> bool:
    """False only when libvirt says so; a libvirt that does not know tells when the guest starts."""
    try:
        conn.interfaceLookupByName(name)
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == libvirt.VIR_ERR_NO_INTERFACE:
            return False
        if exc.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise
    return True


def _running(conn: Any, name: Any, ensure: bool) -> None:
    try:
        network = conn.networkLookupByName(name)
    except libvirt.libvirtError as exc:
        if exc.get_error_code() != libvirt.VIR_ERR_NO_NETWORK:
            raise
        if not ensure:
            raise HypervisorError(
                f"libvirt has no network {name} on this host", f"virsh net-define one named {name}"
            ) from exc
        network = _made(conn, name)
    if network.isActive():
        return
    try:
        network.create()
    except libvirt.libvirtError:
        if not network.isActive():  # else somebody started it at the same time
            raise


def _made(conn: Any, name: str) -> Any:
    """A network that joins guests of this host and nothing else, there after a reboot as well."""
    root = ET.Element("network")
    ET.SubElement(root, "name").text = name
    # No loop can be on one host, so that a guest need not wait until that is found out.
    ET.SubElement(root, "bridge", stp="off", delay="0")
    try:
        network = conn.networkDefineXML(ET.tostring(root, encoding="unicode"))
    except libvirt.libvirtError:
        return conn.networkLookupByName(name)  # somebody made it at the same time
    network.setAutostart(True)
    return network

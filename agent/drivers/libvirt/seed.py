"""The cloud-init NoCloud seed: a small ISO that tells a guest its name, addresses and keys.

Format: cloudinit.readthedocs.io, datasource NoCloud. JSON is YAML, so its files are JSON.
"""

from __future__ import annotations

import io
import ipaddress
import json
from typing import Any

import pycdlib

from common.messages import GuestSpec, NicSpec

LABEL = "cidata"
_CONFIG = "#cloud-config\n"
_DEFAULT_ROUTE = {4: "0.0.0.0/0", 6: "::/0"}


def iso(spec: GuestSpec, instance: str) -> bytes:
    """The image of a guest that has a hostname, volume label `cidata`."""
    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=LABEL)
    try:
        for number, (name, text) in enumerate(files(spec, instance).items()):
            body = text.encode()
            image.add_fp(
                io.BytesIO(body),
                len(body),
                f"/FILE{number}.;1",
                rr_name=name,
                joliet_path=f"/{name}",
            )
        written = io.BytesIO()
        image.write_fp(written)
    finally:
        image.close()
    return written.getvalue()


def files(spec: GuestSpec, instance: str) -> dict[str, str]:
    """The seed's files by name; keys come as vendor data when the user's own data has the floor."""
    name = f"{spec.hostname}.{spec.domain}" if spec.domain else spec.hostname
    keys = _CONFIG + _json({"ssh_authorized_keys": list(spec.ssh_keys)} if spec.ssh_keys else {})
    made = {
        "meta-data": _json({"instance-id": instance, "local-hostname": name}),
        "user-data": keys if spec.user_data is None else spec.user_data,
        "network-config": _json(_network(spec.nics)),
    }
    if spec.user_data is not None and spec.ssh_keys:
        made["vendor-data"] = keys
    return made


def _network(nics: tuple[NicSpec, ...]) -> dict[str, Any]:
    """Version 2, cards known by their MACs; one without an address asks for one."""
    return {
        "version": 2,
        "ethernets": {f"nic{number}": _card(nic) for number, nic in enumerate(nics)},
    }


def _card(nic: NicSpec) -> dict[str, Any]:
    card: dict[str, Any] = {"match": {"macaddress": nic.mac.lower()}}
    addresses = [address for address in (nic.address, nic.address6) if address is not None]
    if addresses:
        card["addresses"] = addresses
    else:
        card["dhcp4"] = True
    routes = [
        {"to": _DEFAULT_ROUTE[ipaddress.ip_address(gateway).version], "via": gateway}
        for gateway in (nic.gateway, nic.gateway6)
        if gateway is not None
    ]
    if routes:
        card["routes"] = routes
    if nic.dns:
        card["nameservers"] = {"addresses": list(nic.dns)}
    return card


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"

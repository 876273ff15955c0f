"""What is wrong with a guest's spec that can be told without a hypervisor, alike everywhere."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Any

from common.errors import BadRequest, HypervisorError, ResizeOver
from common.messages import DiskSpec, GuestFiles, GuestSpec, NicSpec
from common.model import Backend, Problem, TemplateFormat

_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_DOMAIN = re.compile(rf"{_NAME.pattern}(\.{_NAME.pattern})*")


def check(spec: GuestSpec) -> None:
    """BadRequest that names every field which no host could make a guest from."""
    found = list(_problems(spec))
    if found:
        fields = "; ".join(f"{field}: {what}" for field, what, _ in found)
        remedies = "; ".join(dict.fromkeys(remedy for _, _, remedy in found))
        raise BadRequest(fields, remedies, field=found[0][0])


def check_size(
    spec: GuestSpec, vcpus: int, memory_mib: int, root_gib: float | None, other: str | None = None
) -> None:
    """ResizeOver for a guest of which nothing is kept for who asks: it has not the size of `spec`,
    or another resize keeps something."""
    if other is not None:
        raise ResizeOver(
            f"what is kept of the guest is of another resize ({other})",
            "this one was confirmed or reverted before: muster vm history",
        )
    disk = spec.disks[0].size_gib if spec.disks else None
    has: list[float] = [vcpus, memory_mib]
    wanted: list[float] = [spec.vcpus, spec.memory_mib]
    if disk is not None and root_gib is not None:
        has, wanted = [*has, root_gib], [*wanted, disk]
    if has != wanted:
        is_now, should_be = (" x ".join(f"{n:g}" for n in numbers) for numbers in (has, wanted))
        raise ResizeOver(
            f"nothing is kept of what it was before a resize, and it has {is_now} and not"
            f" {should_be} (vCPUs x MiB x GiB)",
            "it was confirmed or reverted before: muster vm history",
        )


def still_there(files: GuestFiles) -> HypervisorError:
    """Why the files of a guest stay: it is there, whatever its mark says now."""
    return HypervisorError(
        f"guest {files.bearer} is there, which may be using its files",
        "look at the host: it carries no mark of its VM any more",
    )


def _problems(spec: GuestSpec) -> Iterator[Problem]:
    for number, disk in enumerate(spec.disks):
        for field, what, remedy in _of_disk(disk):
            yield f"disks[{number}].{field}", what, remedy
    for number, nic in enumerate(spec.nics):
        for field, what, remedy in _of_nic(nic):
            yield f"nics[{number}].{field}", what, remedy
    macs = [nic.mac.lower() for nic in spec.nics]
    for mac in sorted({mac for mac in macs if macs.count(mac) > 1}):
        yield "nics", f"{mac} is the MAC of several", "give each its own"
    for name in ("kernel", "initrd"):
        source = getattr(spec, f"{name}_source")
        if source is None:
            continue
        if source.format is not TemplateFormat.KERNEL:
            yield f"{name}_source", f"of format {source.format}", "of format kernel"
        if getattr(spec, name) is not None:
            yield name, f"given beside {name}_source", "give one of the two"
    if spec.cpu_cap and spec.cpu_mhz is None:
        yield "cpu_cap", "a cap needs a speed", "give cpu_mhz too"
    if spec.hostname is not None and not _NAME.fullmatch(spec.hostname):
        yield "hostname", f"{spec.hostname!r} is none", "letters, digits and hyphens within, to 63"
    if spec.domain is not None and not _DOMAIN.fullmatch(spec.domain):
        yield "domain", f"{spec.domain!r} is none", "hostnames with dots between them"


def _of_disk(disk: DiskSpec) -> Iterator[Problem]:
    if disk.path is not None:
        if disk.source is not None:
            yield "source", "given beside a path", "an existing image has no source"
        if disk.rbd is not None:
            yield "rbd", "given beside a path", "an existing image is a file"
        if not disk.path.startswith("/") or "\0" in disk.path:
            yield "path", f"{disk.path!r} is none", "an absolute path"
    elif disk.rbd is not None and disk.folder is not None:
        yield "rbd", "given beside a folder", "a disk is in one pool"
    elif disk.rbd is not None and not disk.rbd.monitors:
        yield "rbd.monitors", "there is none", "as in 10.0.0.1:6789"
    elif disk.source is not None and disk.source.format is TemplateFormat.KERNEL:
        yield "source.format", "a kernel is no disk", "qcow2, raw or iso; a kernel as kernel_source"


def _of_nic(nic: NicSpec) -> Iterator[Problem]:
    if not _MAC.fullmatch(nic.mac) or int(nic.mac[:2], 16) & 1:
        yield "mac", f"{nic.mac!r} is none of a card", "as in 52:54:00:12:34:56"
    if nic.backend is not None and nic.network is None:
        yield "network", f"missing with backend {nic.backend}", "name the network or bridge"
    if nic.ensure and nic.backend is not Backend.LIBVIRT:
        yield "ensure", "nobody makes bridges", "only with backend libvirt"
    if nic.vlan is not None and nic.backend is not Backend.OVS:
        yield "vlan", "a tag without Open vSwitch", "only with backend ovs"
    yield from _of_address(nic.address, nic.gateway, 4, "")
    yield from _of_address(nic.address6, nic.gateway6, 6, "6")
    for server in nic.dns:
        if _parsed(ipaddress.ip_address, server) is None:
            yield "dns", f"{server!r} is no address", "IPv4 or IPv6 addresses"
    if nic.rules is None:
        return
    if nic.backend is Backend.OVS:
        yield "rules", "Open vSwitch ports are not filtered", "backend libvirt or bridge"
    if nic.network is None:
        yield "rules", "a card of no network is not filtered", "name its network"
    if nic.address is None:
        yield "rules", "the card has no address to hold it to", "give its address too"
    for rule in nic.rules:
        if _parsed(ipaddress.ip_network, rule.cidr) is None:
            yield "rules", f"{rule.cidr!r} is no subnet", "as in 10.0.0.0/8"


def _of_address(
    address: str | None, gateway: str | None, version: int, tail: str
) -> Iterator[Problem]:
    example = "10.1.0.5/24" if version == 4 else "2001:db8::5/64"
    subnet = None
    if address is not None:
        found = _parsed(ipaddress.ip_interface, address) if "/" in address else None
        if found is None or found.version != version:
            yield f"address{tail}", f"{address!r} is none", f"with its prefix, as in {example}"
        else:
            subnet = found.network
    if gateway is None:
        return
    router = _parsed(ipaddress.ip_address, gateway)
    if router is None or router.version != version:
        yield f"gateway{tail}", f"{gateway!r} is none", f"an IPv{version} address"
    elif address is None:
        yield f"gateway{tail}", "there is no address that would use it", f"give address{tail} too"
    elif version == 4 and subnet is not None and router not in subnet:
        yield f"gateway{tail}", f"{gateway} is not in {subnet}", "an address of the subnet"


def _parsed(parse: Any, text: str) -> Any:
    try:
        return parse(text)
    except ValueError:
        return None

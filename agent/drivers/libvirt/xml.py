"""Domain XML, pure: a guest's definition from its spec, and what a definition says of a guest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# What is parsed is libvirt's own serialisation, which knows neither entities nor DTDs.
from xml.etree import ElementTree as ET

from common.messages import GuestReport, GuestSpec
from common.ownership import Mark
from common.states import PowerState

MARK_URI = "https://muster.invalid/xmlns/domain/1"
MARK_PREFIX = "muster"

_MARK_TAG = f"{{{MARK_URI}}}mark"
_GENERATION = re.compile(r"[0-9]{1,16}")
_MARK_TEXT_LIMIT = 253
# libvirt makes file names of domain names: of the log, the monitor, the saved memory.
_NAME_BYTES = 200
_NOT_IN_NAMES = re.compile("[\x00-\x1f\x7f-\x9f/\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]+")
_KIB = {
    "b": 1 / 1024,
    "bytes": 1 / 1024,
    "KB": 1000 / 1024,
    "k": 1,
    "KiB": 1,
    "MB": 1000**2 / 1024,
    "M": 1024,
    "MiB": 1024,
    "GB": 1000**3 / 1024,
    "G": 1024**2,
    "GiB": 1024**2,
    "TB": 1000**4 / 1024,
    "T": 1024**3,
    "TiB": 1024**3,
}

ET.register_namespace(MARK_PREFIX, MARK_URI)


class Disk(NamedTuple):
    """An image file and its format, qcow2 or raw."""

    path: str
    format: str


class Nic(NamedTuple):
    """A card; `kind` is `user` (no `source`), `network` or `bridge`."""

    mac: str
    kind: str
    source: str | None = None


def domain_name(wanted: str) -> str:
    """A name that libvirt takes and that still reads like `wanted`."""
    name = _NOT_IN_NAMES.sub("-", wanted).strip()
    name = name.encode()[:_NAME_BYTES].decode(errors="ignore").strip()
    return "guest" if name in ("", ".", "..") else name


def mark_element(mark: Mark) -> str:
    """The mark as libvirt's setMetadata takes it, which puts the namespace in by itself."""
    return ET.tostring(_mark(mark, "mark"), encoding="unicode")


def define(
    spec: GuestSpec,
    mark: Mark,
    *,
    name: str,
    virt_type: str,
    disks: Sequence[Disk],
    nics: Sequence[Nic],
    serial_log: str,
) -> str:
    """The XML of a new domain; `virt_type` is kvm, qemu or test."""
    domain = ET.Element("domain", type=virt_type)
    _text(domain, "name", name)
    _text(domain, "uuid", mark.bearer)
    ET.SubElement(domain, "metadata").append(_mark(mark))
    _text(domain, "memory", str(spec.memory_mib), unit="MiB")
    _text(domain, "vcpu", str(spec.vcpus))

    os = ET.SubElement(domain, "os")
    # The mock driver knows one architecture and no machine types.
    machine = {"kvm": {"arch": "x86_64", "machine": "q35"}, "qemu": {"arch": "x86_64"}}
    _text(os, "type", "hvm", **machine.get(virt_type, {}))
    for tag, value in (("kernel", spec.kernel), ("initrd", spec.initrd), ("cmdline", spec.cmdline)):
        if value is not None:
            _text(os, tag, value)
    if spec.kernel is None:
        ET.SubElement(os, "boot", dev="hd")

    # Without ACPI a guest hears no power button.
    ET.SubElement(ET.SubElement(domain, "features"), "acpi")
    if virt_type == "kvm":
        ET.SubElement(domain, "cpu", mode="host-passthrough")
    ET.SubElement(domain, "clock", offset="utc")
    _text(domain, "on_poweroff", "destroy")
    _text(domain, "on_reboot", "restart")
    _text(domain, "on_crash", "destroy")

    devices = ET.SubElement(domain, "devices")
    for number, disk in enumerate(disks):
        device = ET.SubElement(devices, "disk", type="file", device="disk")
        ET.SubElement(device, "driver", name="qemu", type=disk.format)
        ET.SubElement(device, "source", file=disk.path)
        ET.SubElement(device, "target", dev=_disk_name(number), bus="virtio")
    for nic in nics:
        card = ET.SubElement(devices, "interface", type=nic.kind)
        ET.SubElement(card, "mac", address=nic.mac)
        if nic.source is not None:
            ET.SubElement(card, "source", {nic.kind: nic.source})
        ET.SubElement(card, "model", type="virtio")
    serial = ET.SubElement(devices, "serial", type="file")
    ET.SubElement(serial, "source", path=serial_log, append="on")
    ET.SubElement(serial, "target", port="0")
    return ET.tostring(domain, encoding="unicode")


def report(xml: str, power_state: PowerState) -> GuestReport:
    """What a domain's XML says of the guest. ValueError when it is not a domain's XML."""
    domain = _parse(xml)
    uuid = (domain.findtext("uuid") or "").strip()
    if domain.tag != "domain" or not uuid:
        raise ValueError("not the XML of a domain")
    vcpu = domain.find("vcpu")
    domain_id = domain.get("id")
    return GuestReport(
        hypervisor_uuid=uuid,
        name=domain.findtext("name") or "",
        power_state=power_state,
        vcpus=int(vcpu.get("current") or vcpu.text or 1) if vcpu is not None else 1,
        memory_mib=_mib(domain.find("memory")),
        mark=_read_mark(domain.find("metadata")),
        domain_id=int(domain_id) if domain_id is not None else None,
        macs=tuple(
            mac.get("address", "").lower() for mac in domain.iterfind("devices/interface/mac")
        ),
    )


def disk_paths(xml: str) -> tuple[str, ...]:
    """The image files that a domain's disks are on."""
    sources = _parse(xml).iterfind("devices/disk/source")
    return tuple(path for path in (source.get("file") for source in sources) if path)


def _parse(xml: str) -> ET.Element:
    try:
        return ET.fromstring(xml)  # noqa: S314 - libvirt's own, see the import
    except ET.ParseError as exc:
        raise ValueError(f"not XML: {exc}") from exc


def _mark(mark: Mark, tag: str = _MARK_TAG) -> ET.Element:
    return ET.Element(
        tag,
        fleet=mark.fleet,
        instance=mark.instance,
        generation=str(mark.generation),
        bearer=mark.bearer,
    )


def _read_mark(metadata: ET.Element | None) -> Mark | None:
    """The mark; None when there is none, or it is damaged, or there are several."""
    marks = metadata.findall(_MARK_TAG) if metadata is not None else []
    if len(marks) != 1:
        return None
    fleet, instance, generation, bearer = _attributes(
        marks[0], ("fleet", "instance", "generation", "bearer")
    )
    if not (fleet and instance and bearer and _GENERATION.fullmatch(generation)):
        return None
    if max(len(fleet), len(instance), len(bearer)) > _MARK_TEXT_LIMIT:
        return None
    return Mark(fleet=fleet, instance=instance, generation=int(generation), bearer=bearer)


def _attributes(element: ET.Element, names: Iterable[str]) -> list[str]:
    return [element.get(name, "") for name in names]


def _mib(memory: ET.Element | None) -> int:
    if memory is None or not memory.text:
        return 0
    return int(int(memory.text) * _KIB.get(memory.get("unit", "KiB"), 1) // 1024)


def _disk_name(number: int) -> str:
    """vda ... vdz, vdaa ..."""
    letters = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(ord("a") + rest) + letters
    return f"vd{letters}"


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text

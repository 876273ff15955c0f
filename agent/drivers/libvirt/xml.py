"""Domain XML, pure: a guest's definition from its spec, and what a definition says of a guest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# What is parsed is libvirt's own serialisation, which knows neither entities nor DTDs.
from xml.etree import ElementTree as ET

from common.messages import GuestReport, GuestSpec, RbdTarget
from common.ownership import Mark
from common.states import PowerState

MARK_URI = "https://muster.invalid/xmlns/domain/1"
MARK_PREFIX = "muster"
MADE_URI = "https://muster.invalid/xmlns/made/1"

_MARK_TAG = f"{{{MARK_URI}}}mark"
_MADE_TAG = f"{{{MADE_URI}}}in"
_FOLDER_TAG = f"{{{MADE_URI}}}folder"
_IMAGE_TAG = f"{{{MADE_URI}}}image"
CPU_PERIOD_US = 100_000

_GENERATION = re.compile(r"[0-9]{1,16}")
_MARK_TEXT_LIMIT = 253
# libvirt makes file names of domain names: of the log, the monitor, the saved memory.
_NAME_BYTES = 200
_NOT_IN_NAMES = re.compile("[\x00-\x1f\x7f-\x9f/\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]+")
_MONITOR = re.compile(r"\[?([^\]]*?)\]?(?::([0-9]{1,5}))?")
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
ET.register_namespace("made", MADE_URI)


class Access(NamedTuple):
    """How a guest opens an image in Ceph: as which user, with libvirt's secret of which uuid."""

    target: RbdTarget
    user: str
    secret: str


class Disk(NamedTuple):
    """An image file, its format, qcow2 or raw, and its `device`: disk, cdrom, or seed.

    One in Ceph has an `access` instead of a path.
    """

    path: str
    format: str
    device: str = "disk"
    access: Access | None = None


class Nic(NamedTuple):
    """A card; `kind` is `user` (no `source`), `network`, `bridge` or `ovs`.

    `filter`: the name of its nwfilter, which holds it to `address`.
    """

    mac: str
    kind: str
    source: str | None = None
    vlan: int | None = None
    filter: str | None = None
    address: str | None = None


class Cpu(NamedTuple):
    """The weight of a guest among others, and the µs of each 100 ms that a vCPU may run."""

    shares: int
    quota: int | None = None


class Belongings(NamedTuple):
    """What a definition says that was made for its guest: in which folders, under which names."""

    folders: frozenset[str] = frozenset()
    filters: frozenset[str] = frozenset()
    images: frozenset[RbdTarget] = frozenset()


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
    cpu: Cpu | None = None,
) -> str:
    """The XML of a new domain; `virt_type` is kvm, qemu or test."""
    domain = ET.Element("domain", type=virt_type)
    _text(domain, "name", name)
    _text(domain, "uuid", mark.bearer)
    metadata = ET.SubElement(domain, "metadata")
    metadata.append(_mark(mark))
    folders = sorted({disk.folder for disk in spec.disks if disk.folder is not None})
    images = [disk.rbd for disk in spec.disks if disk.rbd is not None]
    if folders or images:
        made = ET.SubElement(metadata, _MADE_TAG)
        for folder in folders:
            ET.SubElement(made, _FOLDER_TAG, path=folder)
        for image in images:
            monitors = " ".join(image.monitors)
            ET.SubElement(made, _IMAGE_TAG, pool=image.pool, name=image.image, monitors=monitors)
    _text(domain, "memory", str(spec.memory_mib), unit="MiB")
    _text(domain, "vcpu", str(spec.vcpus))
    _tune(domain, cpu)

    os = ET.SubElement(domain, "os")
    # The mock driver knows one architecture and no machine types.
    machine = {"kvm": {"arch": "x86_64", "machine": "q35"}, "qemu": {"arch": "x86_64"}}
    _text(os, "type", "hvm", **machine.get(virt_type, {}))
    for tag, value in (("kernel", spec.kernel), ("initrd", spec.initrd), ("cmdline", spec.cmdline)):
        if value is not None:
            _text(os, tag, value)
    boots_iso = any(disk.device == "cdrom" for disk in disks)
    if spec.kernel is None and not boots_iso:
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
    # The root disk, and then the disc that fills it while it is empty.
    first = [next((d for d in disks if d.device == kind), None) for kind in ("disk", "cdrom")]
    for disk, target, bus in _placed(disks, "sata" if virt_type == "kvm" else "ide"):
        device = ET.SubElement(devices, "disk", type="network" if disk.access else "file")
        device.set("device", "disk" if disk.device == "disk" else "cdrom")
        ET.SubElement(device, "driver", name="qemu", type=disk.format)
        if disk.access is not None:
            _in_ceph(device, disk.access)
        else:
            ET.SubElement(device, "source", file=disk.path)
        ET.SubElement(device, "target", dev=target, bus=bus)
        if disk.device != "disk":
            ET.SubElement(device, "readonly")
        if boots_iso and spec.kernel is None and disk in first:
            ET.SubElement(device, "boot", order=str(1 + first.index(disk)))
    if any(disk.device == "seed" for disk in disks):
        ET.SubElement(devices, "controller", type="scsi", index="0", model="virtio-scsi")
    for nic in nics:
        _card(devices, nic)
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


def belongings(xml: str) -> Belongings:
    """Where to look for what was made for a guest; the names themselves prove whose it is."""
    domain = _parse(xml)
    found = domain.iterfind(f"metadata/{_MADE_TAG}/{_FOLDER_TAG}")
    filters = domain.iterfind("devices/interface/filterref")
    images = domain.iterfind(f"metadata/{_MADE_TAG}/{_IMAGE_TAG}")
    named = (_attributes(image, ("pool", "name", "monitors")) for image in images)
    return Belongings(
        frozenset(path for path in (folder.get("path") for folder in found) if path),
        frozenset(name for name in (ref.get("filter") for ref in filters) if name),
        frozenset(
            RbdTarget(pool=pool, image=name, monitors=tuple(monitors.split()))
            for pool, name, monitors in named
            if pool and name and monitors
        ),
    )


def without_cpu_tuning(xml: str) -> str | None:
    """The same definition for a host that can not weigh its guests; None when it asks for none."""
    domain = _parse(xml)
    tune = domain.find("cputune")
    if tune is None:
        return None
    domain.remove(tune)
    return ET.tostring(domain, encoding="unicode")


class Size(NamedTuple):
    """What a resize changes of a definition."""

    vcpus: int
    memory_mib: int
    cpu: Cpu | None


def size(xml: str) -> Size:
    """How large a definition makes its guest."""
    domain = _parse(xml)
    shares, quota = (domain.findtext(f"cputune/{tag}") for tag in ("shares", "quota"))
    return Size(
        int(domain.findtext("vcpu") or 1),
        _mib(domain.find("memory")),
        None if shares is None else Cpu(int(shares), None if quota is None else int(quota)),
    )


def resized(xml: str, to: Size) -> str:
    """The same definition of another size."""
    domain = _parse(xml)
    for tag in ("memory", "currentMemory", "vcpu", "cputune"):
        for old in domain.findall(tag):
            domain.remove(old)
    _text(domain, "memory", str(to.memory_mib), unit="MiB")
    _text(domain, "vcpu", str(to.vcpus))
    _tune(domain, to.cpu)
    return ET.tostring(domain, encoding="unicode")


def disks_below(xml: str, prefix: str) -> tuple[str, ...]:
    """The files of a definition's disks whose names begin like this, in their order."""
    sources = _parse(xml).iterfind("devices/disk/source")
    files = (source.get("file", "") for source in sources)
    return tuple(file for file in files if file.rpartition("/")[2].startswith(prefix))


def _tune(domain: ET.Element, cpu: Cpu | None) -> None:
    if cpu is None:
        return
    tune = ET.SubElement(domain, "cputune")
    _text(tune, "shares", str(cpu.shares))
    if cpu.quota is not None:
        _text(tune, "period", str(CPU_PERIOD_US))
        _text(tune, "quota", str(cpu.quota))


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


def _placed(disks: Sequence[Disk], disc_bus: str) -> Iterable[tuple[Disk, str, str]]:
    """Each disk with its target and bus.

    Every system knows the drive that it is installed from. The seed is for those of clouds, whose
    kernels often know nothing but virtio.
    """
    numbers = {"vd": 0, "hd": 0, "sd": 0}
    for disk in sorted(disks, key=lambda disk: disk.device == "seed"):
        bus = {"disk": "virtio", "cdrom": disc_bus, "seed": "scsi"}[disk.device]
        letters = {"virtio": "vd", "ide": "hd"}.get(bus, "sd")
        yield disk, _disk_name(letters, numbers[letters]), bus
        numbers[letters] += 1


def _in_ceph(device: ET.Element, access: Access) -> None:
    auth = ET.SubElement(device, "auth", username=access.user)
    ET.SubElement(auth, "secret", type="ceph", uuid=access.secret)
    name = f"{access.target.pool}/{access.target.image}"
    source = ET.SubElement(device, "source", protocol="rbd", name=name)
    for monitor in access.target.monitors:
        found = _MONITOR.fullmatch(monitor)
        if found is None:
            raise ValueError(f"{monitor!r} is no monitor")
        host = ET.SubElement(source, "host", name=found[1])
        if found[2]:
            host.set("port", found[2])


def _card(devices: ET.Element, nic: Nic) -> None:
    kind = "bridge" if nic.kind == "ovs" else nic.kind
    card = ET.SubElement(devices, "interface", type=kind)
    ET.SubElement(card, "mac", address=nic.mac)
    if nic.source is not None:
        ET.SubElement(card, "source", {kind: nic.source})
    if nic.kind == "ovs":
        ET.SubElement(card, "virtualport", type="openvswitch")
    if nic.vlan is not None:
        ET.SubElement(ET.SubElement(card, "vlan"), "tag", id=str(nic.vlan))
    ET.SubElement(card, "model", type="virtio")
    if nic.filter is not None:
        held = ET.SubElement(card, "filterref", filter=nic.filter)
        if nic.address is not None:
            ET.SubElement(held, "parameter", name="IP", value=nic.address)


def _disk_name(prefix: str, number: int) -> str:
    """vda ... vdz, vdaa ..."""
    letters = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(ord("a") + rest) + letters
    return f"{prefix}{letters}"


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text

"""The nouns that a deploy is made of: zones, pools, offerings, networks and the rest.

One struct a noun. It is what the managers store, what `muster NOUN create` asks for and what an
`apply` file holds; the name, unique within its kind, is kept beside it. References are names.
"""

from __future__ import annotations

import base64
import binascii
import enum
import ipaddress
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

import msgspec

# A pattern ends with \Z: $ would let a line break pass. Operators are told the description.
ObjectName = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?\Z",
        description="a name: letters, digits, '.', '_' and '-', at most 63, beginning and ending"
        " with a letter or digit",
    ),
]
Text = Annotated[str, msgspec.Meta(max_length=1000)]
Folder = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^/[^\x00]*\Z", max_length=1000, description="an absolute path on the host"
    ),
]
CephPool = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z",
        description="the name of a Ceph pool: letters, digits, '.', '_' and '-', at most 63",
    ),
]
Monitor = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^([A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9a-fA-F:.]{2,45}\])"
        r"(:[0-9]{1,5})?\Z",
        description="a monitor, as in 10.0.0.1:6789, ceph-1.example.org or [fd00::1]:3300",
    ),
]
Url = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(file:///|https?://)[^\x00\s]+\Z",
        max_length=2000,
        description="a URL that begins with http://, https:// or file:///",
    ),
]
Sha256 = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[0-9a-f]{64}\Z", description="64 digits of 0-9 and a-f, as sha256sum prints"
    ),
]
Domain = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)"
        r"(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*\Z",
        max_length=200,
        description="a domain: labels of letters, digits and '-' (not first or last), at most 63"
        " each, between dots",
    ),
]
Tag = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z",
        description="a word of letters, digits, '.', '_' and '-', at most 63",
    ),
]
Ratio = Annotated[float, msgspec.Meta(ge=0.1, le=100)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
Vcpus = Annotated[int, msgspec.Meta(ge=1, le=512)]
MemoryMib = Annotated[int, msgspec.Meta(ge=16, le=16 * 1024 * 1024)]
SizeGib = Annotated[int, msgspec.Meta(ge=1, le=65536)]
Limit = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
UserData = Annotated[str, msgspec.Meta(max_length=64 * 1024)]
USER_DATA_LIMIT_BYTES = 64 * 1024

Problem = tuple[str, str, str]  # the field, what is wrong with it, what it may be


class Kind(enum.StrEnum):
    """The nouns, in the order in which one may need another."""

    PROJECT = "project"
    ZONE = "zone"
    POD = "pod"
    CLUSTER = "cluster"
    HOST = "host"
    POOL = "pool"
    OFFERING = "offering"
    DISK_OFFERING = "disk_offering"
    TEMPLATE = "template"
    NETWORK = "network"
    SECURITY_GROUP = "security_group"
    AFFINITY_GROUP = "affinity_group"
    SSH_KEY = "ssh_key"
    USER_DATA = "user_data"

    @property
    def words(self) -> str:
        """As it is said: `security group`."""
        return self.value.replace("_", " ")

    @property
    def noun(self) -> str:
        """As it is typed: `security-group`."""
        return self.value.replace("_", "-")

    @property
    def plural(self) -> str:
        """Its key in an apply file: `security_groups`."""
        return self.value if self is Kind.USER_DATA else f"{self.value}s"


class ZoneKind(enum.StrEnum):
    """Basic: one flat shared guest network. Advanced: networks are chosen, one NIC is default."""

    BASIC = "basic"
    ADVANCED = "advanced"


class PoolScope(enum.StrEnum):
    """Who can reach a storage pool."""

    HOST = "host"
    CLUSTER = "cluster"
    ZONE = "zone"


class PoolKind(enum.StrEnum):
    """Where the disks of a pool are: files of a folder, or images in Ceph."""

    DIR = "dir"
    RBD = "rbd"


class TemplateFormat(enum.StrEnum):
    """What a template's file is; `kernel` is a kernel with its initrd, booted without a disk."""

    QCOW2 = "qcow2"
    RAW = "raw"
    ISO = "iso"
    KERNEL = "kernel"


class NetworkKind(enum.StrEnum):
    """How a network is kept apart from the others."""

    SHARED = "shared"
    VLAN = "vlan"
    ISOLATED = "isolated"


class Backend(enum.StrEnum):
    """What a NIC is plugged into on its host."""

    LIBVIRT = "libvirt"
    BRIDGE = "bridge"
    OVS = "ovs"


class Direction(enum.StrEnum):
    """Seen from the guest."""

    INGRESS = "ingress"
    EGRESS = "egress"


class Protocol(enum.StrEnum):
    """What a security rule lets through; `all` has no ports."""

    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"
    ALL = "all"


class AffinityKind(enum.StrEnum):
    """Together on one host, or each on another."""

    AFFINITY = "affinity"
    ANTI_AFFINITY = "anti_affinity"


class Noun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of all nouns. `refs`: which kind of noun a field names.

    `checks`: the methods that find contradictions between fields, each by itself, so that those
    about other fields can still be made when one of them can not be read.
    """

    refs: ClassVar[Mapping[str, Kind]] = {}
    checks: ClassVar[tuple[str, ...]] = ()

    def problems(self) -> Iterator[Problem]:
        """What no single field can tell: contradictions between them."""
        for check in self.checks:
            yield from getattr(self, check)()


class Project(Noun, frozen=True, kw_only=True):
    """Whose VMs are counted together; a limit of None is none."""

    enabled: bool = True
    instances: Limit | None = None
    vcpus: Limit | None = None
    memory_mib: Limit | None = None
    volumes: Limit | None = None
    storage_gib: Limit | None = None
    addresses: Limit | None = None


class Zone(Noun, frozen=True, kw_only=True):
    """A site. `project`: dedicated to it; `security_groups`: an advanced zone that filters."""

    refs: ClassVar[Mapping[str, Kind]] = {"project": Kind.PROJECT}

    kind: ZoneKind = ZoneKind.ADVANCED
    enabled: bool = True
    project: ObjectName | None = None
    local_storage: bool = True
    security_groups: bool = False
    domain: Domain | None = None


class Pod(Noun, frozen=True, kw_only=True):
    """A rack or row of a zone."""

    refs: ClassVar[Mapping[str, Kind]] = {"zone": Kind.ZONE}

    zone: ObjectName
    enabled: bool = True


class Cluster(Noun, frozen=True, kw_only=True):
    """Hosts that are alike. A host takes no more VMs once it is used beyond a threshold."""

    refs: ClassVar[Mapping[str, Kind]] = {"pod": Kind.POD}

    pod: ObjectName
    enabled: bool = True
    cpu_overcommit: Ratio = 16.0
    memory_overcommit: Ratio = 1.0
    cpu_threshold: Share = 1.0
    memory_threshold: Share = 1.0


class Place(Noun, frozen=True, kw_only=True):
    """Where a host stands; the host itself is known by its agent's hello."""

    refs: ClassVar[Mapping[str, Kind]] = {"cluster": Kind.CLUSTER}

    cluster: ObjectName
    tags: tuple[Tag, ...] = ()


class Pool(Noun, frozen=True, kw_only=True):
    """Where disks are, on one host or shared by those of a cluster or zone.

    `dir`: a folder at `path`; `rbd`: the pool `rbd_pool` of the Ceph cluster with these monitors.
    """

    refs: ClassVar[Mapping[str, Kind]] = {
        "host": Kind.HOST,
        "cluster": Kind.CLUSTER,
        "zone": Kind.ZONE,
    }

    scope: PoolScope
    host: ObjectName | None = None
    cluster: ObjectName | None = None
    zone: ObjectName | None = None
    kind: PoolKind = PoolKind.DIR
    path: Folder | None = None
    rbd_pool: CephPool | None = None
    monitors: Annotated[tuple[Monitor, ...], msgspec.Meta(max_length=20)] = ()
    capacity_gib: Annotated[int, msgspec.Meta(ge=1, le=2**32)]
    overprovisioning: Ratio = 1.0
    tags: tuple[Tag, ...] = ()
    snapshots: bool = False
    enabled: bool = True

    checks = ("_place", "_scope", "_path", "_rbd_pool", "_monitors", "_snapshots")

    def _place(self) -> Iterator[Problem]:
        for scope in PoolScope:
            given = getattr(self, scope) is not None
            if given is not (scope is self.scope):
                said = "not possible" if given else "missing"
                yield scope.value, f"{said} with scope {self.scope}", f"name the {self.scope} alone"

    def _scope(self) -> Iterator[Problem]:
        if self.kind is PoolKind.RBD and self.scope is PoolScope.HOST:
            yield "scope", "Ceph is never one host's own", "cluster or zone"

    def _path(self) -> Iterator[Problem]:
        return self._only("path", PoolKind.DIR, "a folder, as in /srv/muster")

    def _rbd_pool(self) -> Iterator[Problem]:
        return self._only("rbd_pool", PoolKind.RBD, "the name of a pool in Ceph")

    def _monitors(self) -> Iterator[Problem]:
        return self._only("monitors", PoolKind.RBD, "as in 10.0.0.1:6789")

    def _snapshots(self) -> Iterator[Problem]:
        if self.snapshots and self.scope is PoolScope.HOST:
            said = "a host keeps the snapshots of its own VMs without a pool"
            yield "snapshots", said, "in a pool of a cluster or zone"
        elif self.snapshots and self.kind is not PoolKind.DIR:
            yield "snapshots", f"they are files, and not possible with kind {self.kind}", "dir"

    def _only(self, field: str, kind: PoolKind, example: str) -> Iterator[Problem]:
        given = bool(getattr(self, field))
        if given is not (kind is self.kind):
            said = "not possible" if given else "missing"
            yield field, f"{said} with kind {self.kind}", f"{example}, with kind {kind}"


class Offering(Noun, frozen=True, kw_only=True):
    """What a VM gets. A custom one leaves vcpus or memory_mib open, within its bounds.

    `cpu_mhz`: the speed of each vCPU, which makes its weight; `cpu_cap`: and not a cycle more.
    """

    vcpus: Vcpus | None = None
    vcpus_min: Vcpus = 1
    vcpus_max: Vcpus = 512
    memory_mib: MemoryMib | None = None
    memory_mib_min: MemoryMib = 16
    memory_mib_max: MemoryMib = 16 * 1024 * 1024
    cpu_mhz: Annotated[int, msgspec.Meta(ge=100, le=10_000)] | None = None
    cpu_cap: bool = False
    root_gib: SizeGib | None = None
    ha: bool = False
    local_storage: bool = False
    host_tags: tuple[Tag, ...] = ()
    storage_tags: tuple[Tag, ...] = ()
    cpu_overcommit: Ratio | None = None
    memory_overcommit: Ratio | None = None

    checks = ("_vcpus", "_memory", "_cap")

    def _vcpus(self) -> Iterator[Problem]:
        if self.vcpus_min > self.vcpus_max:
            yield "vcpus_min", f"above vcpus_max, {self.vcpus_max}", "no more than vcpus_max"

    def _memory(self) -> Iterator[Problem]:
        if self.memory_mib_min > self.memory_mib_max:
            said = f"above memory_mib_max, {self.memory_mib_max}"
            yield "memory_mib_min", said, "no more than memory_mib_max"

    def _cap(self) -> Iterator[Problem]:
        if self.cpu_cap and self.cpu_mhz is None:
            yield "cpu_cap", "a cap needs a speed", "give cpu_mhz too"


class DiskOffering(Noun, frozen=True, kw_only=True):
    """A data disk; one without size_gib leaves it open, within its bounds."""

    size_gib: SizeGib | None = None
    size_gib_min: SizeGib = 1
    size_gib_max: SizeGib = 65536
    local_storage: bool = False
    storage_tags: tuple[Tag, ...] = ()

    checks = ("_size",)

    def _size(self) -> Iterator[Problem]:
        if self.size_gib_min > self.size_gib_max:
            said = f"above size_gib_max, {self.size_gib_max}"
            yield "size_gib_min", said, "no more than size_gib_max"


class Template(Noun, frozen=True, kw_only=True):
    """An image to make root disks from, or a kernel and initrd; fetched once a pool, then checked.

    `zones` and `hypervisors` empty: all of them. `system`: for Muster's own use, not for VMs.
    """

    refs: ClassVar[Mapping[str, Kind]] = {"project": Kind.PROJECT, "zones": Kind.ZONE}

    format: TemplateFormat
    url: Url
    sha256: Sha256
    initrd_url: Url | None = None
    initrd_sha256: Sha256 | None = None
    cmdline: Text | None = None
    min_disk_gib: Annotated[int, msgspec.Meta(ge=0, le=65536)] = 0
    min_memory_mib: Annotated[int, msgspec.Meta(ge=0, le=16 * 1024 * 1024)] = 0
    hypervisors: tuple[Tag, ...] = ()
    zones: tuple[ObjectName, ...] = ()
    project: ObjectName | None = None
    public: bool = True
    system: bool = False
    enabled: bool = True

    checks = ("_kernel", "_initrd")

    def _kernel(self) -> Iterator[Problem]:
        if self.format is not TemplateFormat.KERNEL:
            for field in ("initrd_url", "initrd_sha256", "cmdline"):
                if getattr(self, field) is not None:
                    yield field, f"a {self.format} image has none", "only with format kernel"

    def _initrd(self) -> Iterator[Problem]:
        if (self.initrd_url is None) != (self.initrd_sha256 is None):
            missing = "initrd_sha256" if self.initrd_sha256 is None else "initrd_url"
            yield missing, "missing", "give initrd_url and initrd_sha256 together"


class Network(Noun, frozen=True, kw_only=True):
    """A guest network: what it is plugged into on each host, and its pool of addresses.

    `source`: the libvirt network or bridge; `first`..`last`: what may be given to VMs.
    """

    refs: ClassVar[Mapping[str, Kind]] = {"zone": Kind.ZONE, "project": Kind.PROJECT}

    zone: ObjectName
    kind: NetworkKind = NetworkKind.SHARED
    backend: Backend
    source: Annotated[
        str,
        msgspec.Meta(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,49}\Z",
            description="the name of a bridge or libvirt network, at most 50 characters",
        ),
    ]
    vlan: Annotated[int, msgspec.Meta(ge=1, le=4094)] | None = None
    cidr: str
    gateway: str | None = None
    first: str | None = None
    last: str | None = None
    cidr6: str | None = None
    gateway6: str | None = None
    dns: tuple[str, ...] = ()
    security_groups: bool = False
    project: ObjectName | None = None
    enabled: bool = True

    checks = (
        "_vlan",
        "_backend",
        "_subnet",
        "_gateway",
        "_first",
        "_last",
        "_order",
        "_subnet6",
        "_gateway6",
        "_dns",
    )

    def _vlan(self) -> Iterator[Problem]:
        if (self.kind is NetworkKind.VLAN) is not (self.vlan is not None):
            said = "missing" if self.vlan is None else f"a {self.kind} network has none"
            yield "vlan", said, "a tag from 1 to 4094, with kind vlan"

    def _backend(self) -> Iterator[Problem]:
        if self.vlan is not None and self.backend is not Backend.OVS:
            yield "backend", f"{self.backend} carries no VLAN tag of a port", "ovs, for kind vlan"

    def _subnet(self) -> Iterator[Problem]:
        subnet = _parsed(ipaddress.IPv4Network, self.cidr)
        if subnet is None:
            said = f"{self.cidr!r} is no IPv4 subnet"
            yield "cidr", said, "as in 10.1.0.0/24, no host bits set"
        elif not 8 <= subnet.prefixlen <= 30:
            size = "large" if subnet.prefixlen < 8 else "small"
            yield "cidr", f"{self.cidr} is too {size}", "/8 to /30"

    def _gateway(self) -> Iterator[Problem]:
        return self._inside("gateway", self.gateway)

    def _first(self) -> Iterator[Problem]:
        return self._inside("first", self.first)

    def _last(self) -> Iterator[Problem]:
        return self._inside("last", self.last)

    def _inside(self, field: str, text: str | None) -> Iterator[Problem]:
        subnet = _parsed(ipaddress.IPv4Network, self.cidr)
        if text is None or subnet is None:
            return
        address = _parsed(ipaddress.IPv4Address, text)
        if address is None or address not in subnet:
            yield field, f"{text!r} is no address in {self.cidr}", f"an address in {self.cidr}"
        elif address in (subnet[0], subnet[-1]):
            yield field, f"{text} is the network's own or its broadcast", "one between the two"

    def _order(self) -> Iterator[Problem]:
        first = _parsed(ipaddress.IPv4Address, self.first or "")
        last = _parsed(ipaddress.IPv4Address, self.last or "")
        if first is not None and last is not None and first > last:
            yield "first", f"{self.first} is behind {self.last}", "no address behind `last`"

    def _subnet6(self) -> Iterator[Problem]:
        if self.cidr6 is None:
            return
        subnet = _parsed(ipaddress.IPv6Network, self.cidr6)
        if subnet is None:
            said = f"{self.cidr6!r} is no IPv6 subnet"
            yield "cidr6", said, "as in 2001:db8::/64, no host bits set"
        elif subnet.prefixlen != 64:
            yield "cidr6", f"{self.cidr6} is no /64", "a /64: addresses are made from the MAC"

    def _gateway6(self) -> Iterator[Problem]:
        if self.gateway6 is None:
            return
        if self.cidr6 is None:
            yield "gateway6", "there is no cidr6 that it could be in", "give cidr6 too"
            return
        subnet = _parsed(ipaddress.IPv6Network, self.cidr6)
        address = _parsed(ipaddress.IPv6Address, self.gateway6)
        # A router's own link-local address is as good.
        if subnet is not None and (
            address is None or not (address in subnet or address.is_link_local)
        ):
            said = f"{self.gateway6!r} is no address in {self.cidr6}"
            yield "gateway6", said, f"an address in {self.cidr6}, or a link-local one"

    def _dns(self) -> Iterator[Problem]:
        for server in self.dns:
            if _parsed(ipaddress.ip_address, server) is None:
                yield "dns", f"{server!r} is no address", "IPv4 or IPv6 addresses"

    def pool(self) -> tuple[int, int]:
        """The first and the last IPv4 address that may be given to VMs, as numbers."""
        subnet = ipaddress.IPv4Network(self.cidr)
        first = ipaddress.IPv4Address(self.first) if self.first else subnet[1]
        last = ipaddress.IPv4Address(self.last) if self.last else subnet[-2]
        return int(first), int(last)


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a security group lets through: to the guest (ingress) or from it (egress)."""

    direction: Direction = Direction.INGRESS
    protocol: Protocol = Protocol.ALL
    port_first: Port | None = None
    port_last: Port | None = None
    cidr: str = "0.0.0.0/0"


class SecurityGroup(Noun, frozen=True, kw_only=True):
    """What may reach its VMs: nothing that no rule lets in. All goes out unless an egress rule is
    there; then only that."""

    refs: ClassVar[Mapping[str, Kind]] = {"project": Kind.PROJECT}

    project: ObjectName | None = None
    rules: Annotated[tuple[Rule, ...], msgspec.Meta(max_length=100)] = ()

    checks = ("_rules",)

    def _rules(self) -> Iterator[Problem]:
        for n, rule in enumerate(self.rules, 1):
            ports = (rule.port_first, rule.port_last)
            if rule.protocol in (Protocol.ICMP, Protocol.ALL) and ports != (None, None):
                yield "rules", f"rule {n}: {rule.protocol} has no ports", "ports with tcp and udp"
            elif (ports[0] or 0) > (65535 if ports[1] is None else ports[1]):
                yield "rules", f"rule {n}: port_first is behind port_last", "the lower port first"
            if _parsed(ipaddress.ip_network, rule.cidr) is None:
                yield "rules", f"rule {n}: {rule.cidr!r} is no subnet", "as in 10.0.0.0/8"


class AffinityGroup(Noun, frozen=True, kw_only=True):
    """VMs that must share a host, or must not."""

    refs: ClassVar[Mapping[str, Kind]] = {"project": Kind.PROJECT}

    kind: AffinityKind = AffinityKind.ANTI_AFFINITY
    project: ObjectName | None = None


class SshKey(Noun, frozen=True, kw_only=True):
    """A public key, as OpenSSH writes it."""

    refs: ClassVar[Mapping[str, Kind]] = {"project": Kind.PROJECT}

    public_key: Annotated[str, msgspec.Meta(max_length=20_000)]
    project: ObjectName | None = None

    checks = ("_key",)

    def _key(self) -> Iterator[Problem]:
        words = self.public_key.split()
        if not _is_ssh_key(words) or "\n" in self.public_key.strip():
            yield "public_key", "no OpenSSH public key", "one line, as in: ssh-ed25519 AAAA... me"


class StoredUserData(Noun, frozen=True, kw_only=True):
    """What cloud-init is told in a guest: a script or a #cloud-config document."""

    refs: ClassVar[Mapping[str, Kind]] = {"project": Kind.PROJECT}

    data: UserData
    project: ObjectName | None = None

    checks = ("_size",)

    def _size(self) -> Iterator[Problem]:
        size = len(self.data.encode(errors="replace"))
        if size > USER_DATA_LIMIT_BYTES:
            yield "data", f"{size} bytes", f"at most {USER_DATA_LIMIT_BYTES} bytes"


NOUNS: dict[Kind, type[Noun]] = {
    Kind.PROJECT: Project,
    Kind.ZONE: Zone,
    Kind.POD: Pod,
    Kind.CLUSTER: Cluster,
    Kind.HOST: Place,
    Kind.POOL: Pool,
    Kind.OFFERING: Offering,
    Kind.DISK_OFFERING: DiskOffering,
    Kind.TEMPLATE: Template,
    Kind.NETWORK: Network,
    Kind.SECURITY_GROUP: SecurityGroup,
    Kind.AFFINITY_GROUP: AffinityGroup,
    Kind.SSH_KEY: SshKey,
    Kind.USER_DATA: StoredUserData,
}


def named_by(noun: Noun) -> Iterator[tuple[str, Kind, str]]:
    """Every reference of a noun: the field, the kind and the name."""
    for field, kind in noun.refs.items():
        value = getattr(noun, field)
        for name in value if isinstance(value, tuple) else (value,):
            if name is not None:
                yield field, kind, name


def _is_ssh_key(words: list[str]) -> bool:
    if len(words) < 2 or not words[0].startswith(("ssh-", "ecdsa-", "sk-")):
        return False
    try:
        blob = base64.b64decode(words[1], validate=True)
    except (binascii.Error, ValueError):
        return False
    # The blob begins with the length and the name of its own type.
    kind = words[0].encode()
    return blob[:4] == len(kind).to_bytes(4, "big") and blob[4 : 4 + len(kind)] == kind


def _parsed(parse: Any, text: str) -> Any:
    try:
        return parse(text)
    except ValueError:
        return None

"""From a request for a VM to an order: all that it names is looked up, and all is checked.

Every field that is wrong is told in one answer (decision tables, section 8, step 1).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

from common import fields, model
from common.errors import MusterError, NotFound
from common.messages import DiskSpec, GuestSpec, ImageSource
from common.model import Kind, Rule, TemplateFormat, ZoneKind
from manager.api.requests import NetworkWish, VmCreate
from manager.flows import addresses, hosts
from manager.flows import model as nouns
from manager.flows.deploy import Card, Order
from manager.rules import addresses as address_rule
from manager.rules import offering as size_rule
from manager.store.addresses import Hostname
from manager.store.engine import Tx
from manager.store.instances import DiskWish, Wishes

# Drivers that can filter what reaches a guest.
FILTERING = ("libvirt", "simulated", "simulation")
# Templates that root disks are made from.
COPIED = (TemplateFormat.QCOW2, TemplateFormat.RAW)


def checked(tx: Tx, request: VmCreate) -> Order:
    """The order; BadRequest with every problem. When it is the only one: NotFound for a host that
    there is not, NameTaken or NoAddress for what another VM has."""
    return _Checker(tx, request).order()


class _Checker:
    """One request on its way to an order."""

    def __init__(self, tx: Tx, request: VmCreate) -> None:
        self._tx, self._r = tx, request
        self._problems: list[model.Problem] = []
        # Those that have an error of their own, when there is no other problem.
        self._refusals: list[tuple[str, MusterError]] = []
        self._uses: set[tuple[Kind, str]] = set()
        self.project = request.project or nouns.DEFAULT_PROJECT
        nouns.look_up(tx, _named(request, self.project))
        project = self._find(Kind.PROJECT, "project", self.project)
        if project is not None and not project.enabled:
            self._wrong("project", f"project {self.project} is disabled", "muster project set")
        self.zone_name, self.zone = self._zone()

    def order(self) -> Order:
        r = self._r
        offering = self._find(Kind.OFFERING, "offering", r.offering)
        template = self._template()
        size, problems = size_rule.size(offering, r.vcpus, r.memory_mib, r.root_gib, template)
        self._problems += problems
        disks, wishes = self._disks(offering, template, size.root_gib if size else None)
        self._host()
        cards, group = self._cards()
        guest = self._guest(offering, template, size, disks)
        tags = offering.host_tags if offering is not None else ()
        ordered = Wishes(
            zone=self.zone_name,
            pod=self._inside(Kind.POD, "pod"),
            cluster=self._inside(Kind.CLUSTER, "cluster"),
            host=r.host,
            pool=self._inside(Kind.POOL, "pool"),
            hypervisors=self._hypervisors(template, cards),
            host_tags=tags,
            groups=self._groups(),
            cpu_overcommit=r.cpu_overcommit or (offering.cpu_overcommit if offering else None),
            memory_overcommit=r.memory_overcommit
            or (offering.memory_overcommit if offering else None),
            order=r.order,
            disks=wishes,
        )
        self._refuse()
        if guest is None:
            raise AssertionError("a VM without a size has a problem that says so")
        return Order(
            guest=guest,
            project=self.project,
            cards=cards,
            wishes=ordered,
            uses=frozenset(self._uses - {(Kind.PROJECT, nouns.DEFAULT_PROJECT)}),
            default_group=group,
            start=r.start,
        )

    def _refuse(self) -> None:
        """Raise what is wrong, if anything is."""
        if not self._problems and len(self._refusals) == 1:
            raise self._refusals[0][1]
        told = [(field, exc.message, exc.remedy) for field, exc in self._refusals]
        if self._problems or told:
            raise fields.refused([*self._problems, *told])

    # where

    def _zone(self) -> tuple[str | None, model.Zone | None]:
        name = self._r.zone
        if name is None:
            zones: dict[str, model.Zone] = nouns.all_of(self._tx, Kind.ZONE)
            if len(zones) > 1:
                self._wrong("zone", "there are several", f"one of: {', '.join(zones)}")
                return None, None
            name = next(iter(zones), None)
        zone = self._find(Kind.ZONE, "zone", name)
        if zone is None:
            return name, None
        if not zone.enabled:
            self._wrong("zone", f"zone {name} is disabled", f"muster zone set {name} --enabled")
        if zone.project not in (None, self.project):
            self._wrong("zone", f"zone {name} is for project {zone.project} alone", "another zone")
        return name, zone

    @property
    def _in_doubt(self) -> bool:
        """Nobody can say which zone it is: that was told, and whatever should be in it can wait."""
        return self.zone is None and any(field == "zone" for field, _, _ in self._problems)

    def _host(self) -> None:
        try:
            if self._r.host is not None:
                hosts.named(self._tx, self._r.host)
        except NotFound as exc:
            self._refusals.append(("host", exc))

    def _inside(self, kind: Kind, field: str) -> str | None:
        """A pod, cluster or pool that an operator named, in the zone."""
        name: str | None = getattr(self._r, field)
        found = self._find(kind, field, name)
        if found is None or self._in_doubt:
            return name
        if _zone_of(self._tx, found) != self.zone_name:
            self._wrong(field, f"{name} is not in zone {self.zone_name}", f"muster {kind} list")
        return name

    def _groups(self) -> tuple[str, ...]:
        for name in self._r.affinity_groups:
            self._own(Kind.AFFINITY_GROUP, "affinity_groups", name)
        return tuple(dict.fromkeys(self._r.affinity_groups))

    def _hypervisors(
        self, template: model.Template | None, cards: tuple[Card, ...]
    ) -> tuple[str, ...]:
        fitting = tuple(template.hypervisors) if template is not None else ()
        if any(card.rules is not None for card in cards):
            fitting = tuple(h for h in fitting or FILTERING if h in FILTERING)
            if not fitting:
                self._wrong(
                    "security_groups",
                    "none of the template's hypervisors can filter",
                    "another template, or none of these groups",
                )
        return fitting

    # what

    def _template(self) -> model.Template | None:
        name = self._r.template
        template: model.Template | None = self._find(Kind.TEMPLATE, "template", name)
        if template is None:
            return None
        if not template.enabled:
            self._wrong("template", f"{name} is disabled", f"muster template set {name} --enabled")
        if template.system:
            self._wrong("template", f"{name} is a system template", "muster template list")
        if template.zones and not self._in_doubt and self.zone_name not in template.zones:
            zones = ", ".join(template.zones)
            self._wrong("template", f"{name} is not in zone {self.zone_name}", f"it is in {zones}")
        if not template.public and template.project != self.project:
            self._wrong("template", f"{name} is not for project {self.project}", "another template")
        if self._r.kernel is not None:
            self._wrong("kernel", "not with a template", "leave out one of the two")
        return template

    def _disks(
        self,
        offering: model.Offering | None,
        template: model.Template | None,
        root_gib: int | None,
    ) -> tuple[tuple[DiskSpec, ...], tuple[DiskWish, ...]]:
        """The disks in their order, the root disk first, and what each asks of a pool."""
        specs: list[DiskSpec] = []
        wishes: list[DiskWish] = []

        def add(
            spec: DiskSpec, size_gib: int, kind: model.Offering | model.DiskOffering | None
        ) -> None:
            local = None if self.zone is None or self.zone.local_storage else False
            tags: tuple[str, ...] = ()
            if kind is not None:
                tags = kind.storage_tags
                local = True if kind.local_storage else local
            wishes.append(DiskWish(n=len(specs), size_gib=size_gib, tags=tags, local=local))
            specs.append(spec)

        if root_gib is not None:
            image = template is not None and template.format in COPIED
            source = _source(template) if image and template is not None else None
            add(
                DiskSpec(size_gib=root_gib, source=source, copy=self._r.full_copy and image),
                root_gib,
                offering,
            )
        if offering is not None and offering.local_storage:
            self._local_allowed("offering", self._r.offering)
        if self._r.full_copy and (template is None or template.format not in COPIED):
            self._wrong("full_copy", "there is nothing to copy", "with a template of a disk alone")
        for n, disk in enumerate(self._r.disks):
            if (disk.size_gib is None) == (disk.path is None):
                self._wrong("disks", f"disk {n + 1} has a size or a path", "one of the two")
            elif disk.path is not None and not disk.path.startswith("/"):
                self._wrong("disks", f"{disk.path!r} is not absolute", "as in /srv/images/one.raw")
            elif disk.path is not None:
                specs.append(DiskSpec(path=disk.path))
            else:
                add(DiskSpec(size_gib=disk.size_gib), disk.size_gib or 1, None)
        for n, data in enumerate(self._r.data_disks):
            kind: model.DiskOffering | None = self._find(
                Kind.DISK_OFFERING, "data_disks", data.offering
            )
            size = self._data_size(n, data.size_gib, kind, named=data.offering is not None)
            if kind is not None and kind.local_storage:
                self._local_allowed("data_disks", data.offering)
            if size is not None:
                add(DiskSpec(size_gib=size), size, kind)
        if template is not None and template.format is TemplateFormat.ISO:
            specs.append(DiskSpec(source=_source(template)))
        return tuple(specs), tuple(wishes)

    def _data_size(
        self, n: int, asked: int | None, kind: model.DiskOffering | None, *, named: bool
    ) -> int | None:
        if named and kind is None:
            return None  # told already
        fixed = kind.size_gib if kind is not None else None
        if fixed is not None:
            if asked is not None:
                said = f"disk {n + 1}: the offering fixes it at {fixed} GiB"
                self._wrong("data_disks", said, "leave the size out")
            return fixed
        low, high = (kind.size_gib_min, kind.size_gib_max) if kind else (1, 65536)
        if asked is None or not low <= asked <= high:
            said = "no size" if asked is None else f"{asked} GiB is not possible"
            self._wrong("data_disks", f"disk {n + 1}: {said}", f"from {low} to {high} GiB")
            return None
        return asked

    def _local_allowed(self, field: str, name: str | None) -> None:
        if self.zone is not None and not self.zone.local_storage:
            said = f"{name} is for local storage, which zone {self.zone_name} does not allow"
            self._wrong(field, said, "another offering")

    def _guest(
        self,
        offering: model.Offering | None,
        template: model.Template | None,
        size: size_rule.Size | None,
        disks: tuple[DiskSpec, ...],
    ) -> GuestSpec | None:
        r = self._r
        hostname = r.hostname.lower() if r.hostname is not None else None
        if hostname is not None and not address_rule.is_hostname(hostname):
            self._wrong(
                "hostname",
                f"{r.hostname!r:.80} is no hostname",
                "letters, digits and '-', at most 63, beginning and ending with no '-' (RFC 1123)",
            )
        keys = tuple(
            key.public_key.strip()
            for name in r.ssh_keys
            if (key := self._own(Kind.SSH_KEY, "ssh_keys", name)) is not None
        )
        user_data = self._user_data()
        self._boot(template)
        booted = template if template is not None and _is_kernel(template) else None
        if size is None:
            return None
        return GuestSpec(
            name=r.name,
            vcpus=size.vcpus,
            memory_mib=size.memory_mib,
            disks=disks,
            kernel=r.kernel,
            initrd=r.initrd,
            cmdline=r.cmdline if r.cmdline is not None or booted is None else booted.cmdline,
            kernel_source=_source(booted) if booted is not None else None,
            initrd_source=_initrd(booted) if booted is not None else None,
            cpu_mhz=offering.cpu_mhz if offering is not None else None,
            cpu_cap=offering.cpu_cap if offering is not None else False,
            hostname=hostname,
            domain=self.zone.domain if self.zone is not None else None,
            ssh_keys=keys,
            user_data=user_data,
        )

    def _boot(self, template: model.Template | None) -> None:
        r = self._r
        if r.initrd is not None and r.kernel is None:
            self._wrong("initrd", "it needs a kernel", "add --kernel")
        boots = r.kernel is not None or (template is not None and _is_kernel(template))
        if r.cmdline is not None and not boots:
            self._wrong("cmdline", "it needs a kernel", "add --kernel, or a template of one")

    def _user_data(self) -> str | None:
        text, name = self._r.user_data, self._r.user_data_name
        if text is not None and name is not None:
            self._wrong("user_data", "given twice", "a name or a file")
        if name is not None:
            stored = self._own(Kind.USER_DATA, "user_data_name", name)
            return stored.data if stored is not None else None
        size = len(text.encode(errors="replace")) if text is not None else 0
        if size > model.USER_DATA_LIMIT_BYTES:
            limit = f"at most {model.USER_DATA_LIMIT_BYTES} bytes"
            self._wrong("user_data", f"{size} bytes", limit)
        return text

    # networks

    def _cards(self) -> tuple[tuple[Card, ...], str | None]:
        """The cards, the default one first, and the project's default group if it is used."""
        wanted = list(self._networks())
        if not wanted:
            if self._r.security_groups:
                self._wrong("security_groups", "there is no network to filter", "give --network")
            return (Card(),), None
        rules, group = self._rules([network for _, network in wanted])
        cards = []
        for asked, network in wanted:
            address, address6 = self._addresses(asked, network)
            filtered = self._filters and network.security_groups
            cards.append(
                Card(
                    network=asked.network,
                    address=address,
                    address6=address6,
                    rules=rules if filtered else None,
                )
            )
        self._hostname([asked.network for asked, _ in wanted])
        return tuple(cards), group

    def _networks(self) -> Iterator[tuple[NetworkWish, model.Network]]:
        asked = list(self._r.networks)
        if self.zone is None:
            if asked and not self._in_doubt:
                self._wrong("networks", "a VM in no zone has none", "make a zone: muster apply")
            return
        if self.zone.kind is ZoneKind.BASIC and asked:
            self._wrong("networks", "a basic zone has one network, for all", "leave them out")
            return
        if not asked:
            every: dict[str, model.Network] = nouns.all_of(self._tx, Kind.NETWORK)
            mine = [name for name, net in every.items() if self._may_use(net)]
            if len(mine) == 1:
                asked = [NetworkWish(network=mine[0])]
            elif mine or self.zone.kind is ZoneKind.BASIC:
                said = "there are several" if mine else f"zone {self.zone_name} has none"
                remedy = f"one or more of: {', '.join(mine)}" if mine else "muster network create"
                self._wrong("networks", said, remedy)
        defaults = [wish.network for wish in asked if wish.default]
        if len(defaults) > 1 or (len(asked) > 1 and not defaults):
            said = f"{len(defaults)} are" if defaults else f"none of {len(asked)} is"
            self._wrong("networks", f"{said} the default one", "name one as default")
        if len({wish.network for wish in asked}) < len(asked):
            self._wrong("networks", "one is named twice", "each network once")
        for wish in sorted(asked, key=lambda wish: not wish.default):
            network: model.Network | None = self._find(Kind.NETWORK, "networks", wish.network)
            if network is None:
                continue
            if network.zone != self.zone_name:
                said = f"{wish.network} is in zone {network.zone}, not in {self.zone_name}"
                self._wrong("networks", said, "muster network list")
            elif not self._may_use(network):
                said = f"{wish.network} is not for project {self.project}, or disabled"
                self._wrong("networks", said, "muster network show")
            yield wish, network

    def _may_use(self, network: model.Network) -> bool:
        return (
            network.enabled
            and network.zone == self.zone_name
            and network.project in (None, self.project)
        )

    def _addresses(
        self, asked: NetworkWish, network: model.Network
    ) -> tuple[str | None, str | None]:
        """The addresses that were asked for, as they are written everywhere."""
        found: list[str | None] = []
        for text, why_not, subnet in (
            (asked.address, address_rule.why_not, network.cidr),
            (asked.address6, address_rule.why_not6, network.cidr6),
        ):
            why = why_not(network, text) if text is not None else ""
            if text is None or why:
                found.append(None)
            else:
                ip = str(ipaddress.ip_address(text))
                found.append(ip)
                taken = addresses.why_taken(self._tx, asked.network, ip)
                self._refusals += [("networks", taken)] if taken is not None else []
            if why:
                self._wrong("networks", why, f"a free one of {subnet}, or none")
        return found[0], found[1]

    def _hostname(self, networks: list[str]) -> None:
        hostname = (self._r.hostname or "").lower()
        for network in networks if hostname else ():
            if self._tx.find(Hostname, network, hostname) is not None:
                self._refusals.append(("hostname", addresses.name_taken(hostname, network)))

    @property
    def _filters(self) -> bool:
        zone = self.zone
        return zone is not None and (zone.kind is ZoneKind.BASIC or zone.security_groups)

    def _rules(self, networks: list[model.Network]) -> tuple[tuple[Rule, ...], str | None]:
        """What the groups let through together, and the default group where that is used."""
        names = list(self._r.security_groups)
        filtered = self._filters and any(network.security_groups for network in networks)
        if names and not self._filters:
            said = f"zone {self.zone_name} has none"
            self._wrong("security_groups", said, "muster zone set --security-groups")
        elif names and not filtered:
            self._wrong("security_groups", "none of the networks filters", "another network")
        default = None
        if not names and filtered:
            default = f"{self.project}-default"
            self._uses.add((Kind.SECURITY_GROUP, default))
            found = nouns.find(self._tx, Kind.SECURITY_GROUP, default)
            self._check_own("security_groups", default, found)
            return (found.rules if found is not None else ()), default
        rules: list[Rule] = []
        for name in names:
            group = self._own(Kind.SECURITY_GROUP, "security_groups", name)
            rules += group.rules if group is not None else ()
        return tuple(dict.fromkeys(rules)), default

    # inside

    def _find(self, kind: Kind, field: str, name: str | None) -> Any:
        """What a field names, noted as used; None, and a problem, when there is none."""
        if name is None:
            return None
        found = nouns.find(self._tx, kind, name)
        if found is None:
            noun = kind.replace("_", "-")
            self._wrong(field, f"no {noun} {name}", f"muster {noun} list shows all")
        else:
            self._uses.add((kind, name))
        return found

    def _own(self, kind: Kind, field: str, name: str) -> Any:
        """As `_find`, of what belongs to the project or to nobody."""
        found = self._find(kind, field, name)
        self._check_own(field, name, found)
        return found

    def _check_own(self, field: str, name: str, found: Any) -> None:
        if found is not None and found.project not in (None, self.project):
            self._wrong(field, f"{name} belongs to project {found.project}", "one of its own")

    def _wrong(self, field: str, said: str, remedy: str) -> None:
        self._problems.append((field, said, remedy))


def _named(r: VmCreate, project: str) -> Iterator[nouns.Key]:
    """All that a request names."""
    one = {
        Kind.ZONE: r.zone,
        Kind.POD: r.pod,
        Kind.CLUSTER: r.cluster,
        Kind.POOL: r.pool,
        Kind.OFFERING: r.offering,
        Kind.TEMPLATE: r.template,
        Kind.USER_DATA: r.user_data_name,
    }
    yield Kind.PROJECT, project
    yield from ((kind, name) for kind, name in one.items() if name is not None)
    yield from ((Kind.DISK_OFFERING, disk.offering) for disk in r.data_disks if disk.offering)
    yield from ((Kind.NETWORK, wish.network) for wish in r.networks)
    yield from ((Kind.SECURITY_GROUP, name) for name in r.security_groups)
    yield from ((Kind.AFFINITY_GROUP, name) for name in r.affinity_groups)
    yield from ((Kind.SSH_KEY, name) for name in r.ssh_keys)


def _source(template: model.Template) -> ImageSource:
    return ImageSource(url=template.url, sha256=template.sha256, format=template.format)


def _initrd(template: model.Template) -> ImageSource | None:
    if template.initrd_url is None or template.initrd_sha256 is None:
        return None
    return ImageSource(
        url=template.initrd_url, sha256=template.initrd_sha256, format=template.format
    )


def _is_kernel(template: model.Template) -> bool:
    return template.format is TemplateFormat.KERNEL


def _zone_of(tx: Tx, noun: Any) -> str | None:
    """The zone that a pod, cluster or pool is in."""
    if isinstance(noun, model.Pool) and noun.host is not None:
        noun = nouns.find(tx, Kind.HOST, noun.host)
    if getattr(noun, "cluster", None) is not None:
        noun = nouns.find(tx, Kind.CLUSTER, noun.cluster)
    if isinstance(noun, model.Cluster):
        noun = nouns.find(tx, Kind.POD, noun.pod)
    return getattr(noun, "zone", None)

"""Deploy: a VM's record with all that it holds; its first start is told in first_start.

Create reserves the limits of its project, addresses and a hostname, and writes the record.
"""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec

from common import model
from common.conf import Settings
from common.errors import Conflict, WrongState
from common.messages import GuestSpec, NicSpec
from common.model import Backend, Kind, NetworkKind, Rule
from common.states import JobEvent, TaskState, VmState
from manager.flows import addresses, first_start, inventory, jobs, limits, placing
from manager.flows import model as nouns
from manager.flows.jobs import Wish
from manager.rules import verbs
from manager.store.engine import Tx
from manager.store.instances import Instance, Nic, Wishes
from manager.store.jobs import Job
from manager.store.model import Object, Use
from manager.store.statements import Removal, ask
from manager.store.volumes import Volume

USED_BY = Removal(Use, Use.__table__.c.instance == ask("instance"))


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """A network card that was asked for; without a network it is plugged into none of ours."""

    network: str | None = None
    address: str | None = None
    address6: str | None = None
    rules: tuple[Rule, ...] | None = None


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator asked for, checked by the door; `guest` has no cards and no folders yet.

    `default_group`: the project's own security group, which is made on its first use.
    """

    guest: GuestSpec
    project: str = nouns.DEFAULT_PROJECT
    cards: tuple[Card, ...] = (Card(),)
    wishes: Wishes = Wishes()
    uses: frozenset[tuple[Kind, str]] = frozenset()
    default_group: str | None = None
    start: bool = True


# create


def request(tx: Tx, cfg: Settings, wish: Wish, order: Order) -> Job:
    """Accept a create; raises NoValidHost (with every reason), QuotaExceeded, NoAddress and
    NameTaken."""
    uuid = tx.new_id()
    disks = order.wishes.disks
    _hold(tx, order, limited=limits.reserve(tx, order.project, _wanted(order)))
    networks = [card.network for card in order.cards if card.network is not None]
    hostname = order.guest.hostname
    if hostname is not None:
        addresses.give_hostname(tx, uuid, hostname, networks)
    elif networks or order.guest.ssh_keys or order.guest.user_data is not None:
        # Also without a network: what a guest is told comes with its name.
        hostname = addresses.make_hostname(tx, uuid, order.guest.name, networks)
    nics, cards = _cards(tx, cfg, uuid, order.cards)
    guest = msgspec.structs.replace(order.guest, hostname=hostname, nics=cards)
    vm = Instance(
        uuid=uuid,
        name=guest.name,
        host=None,
        vm_state=VmState.BUILDING if order.start else VmState.SHUTOFF,
        task_state=TaskState.SPAWNING if order.start else TaskState.NONE,
        spec=msgspec.to_builtins(guest),
        vcpus=guest.vcpus,
        memory_mib=guest.memory_mib,
        mac=nics[0].mac,
        address=nics[0].address,
        project=order.project,
        hostname=hostname,
        nics=nics,
        wishes=order.wishes,
        named=bool(order.uses),
        job=wish.job if order.start else None,
        created_at=tx.now,
    )
    # Before anything is written: what a claim has to look at would have to be written twice.
    placed = placing.claim(tx, cfg, vm, {}) if order.start else None
    for use in sorted(order.uses):
        tx.insert(Use(kind=use[0], name=use[1], instance=uuid))
    for disk in disks:
        kind = "root" if disk.n == 0 and guest.disks[0].source is not None else "data"
        tx.insert(Volume(instance=uuid, n=disk.n, kind=kind, size_gib=disk.size_gib))
    tx.insert(vm)
    job = jobs.accept(tx, wish, "create", instance=uuid, host=None)
    job = jobs.add_step(tx, job, "reserve", None)
    job = jobs.end_step(tx, job, 0, JobEvent.SUCCEED, _reserved(order, nics, hostname))
    job = jobs.start(tx, job)
    if placed is not None:
        return first_start.begin(tx, cfg, job, vm, placed)
    return jobs.end(tx, job, JobEvent.SUCCEED)


def start(tx: Tx, cfg: Settings, wish: Wish, vm: Instance) -> Job:
    """The second half of a create that stopped after the first; raises NoValidHost."""
    if not vm.reserved:
        raise WrongState(
            f"the creation of {vm.name} has failed, and it holds nothing any more",
            "delete it and create it again; muster vm show says why it failed",
        )
    verbs.admit(verbs.VERBS["start"], vm.name, vm.vm_state, vm.task_state, vm.job)
    shown = ", ".join(inventory.hosts_showing(tx, vm.uuid))
    if shown:
        # It was started, and the database put back to before that.
        raise WrongState(
            f"a guest of {vm.name} is on {shown} already, which this database knows nothing of",
            "muster vm delete removes both",
        )
    job = jobs.accept(tx, wish, "start", instance=vm.uuid, host=None)
    vm = tx.swap(vm, vm_state=VmState.BUILDING, task_state=TaskState.SPAWNING, job=job.uuid)
    return first_start.place(tx, cfg, jobs.start(tx, job), vm, {})


def foresee(tx: Tx, cfg: Settings, order: Order) -> dict[str, Any]:
    """What a create would do now, host by host, for --dry-run; nothing is reserved.

    Raises QuotaExceeded.
    """
    limits.foresee(tx, order.project, _wanted(order))
    found = placing.foresee(
        tx,
        cfg,
        order.wishes,
        instance="",
        project=order.project,
        vcpus=order.guest.vcpus,
        memory_mib=order.guest.memory_mib,
        avoid={},
    )
    return {
        "host": found.host,
        "decisions": [
            {
                "host": host,
                "decision": "chosen" if host == found.host else "passed over",
                "reason": reason,
            }
            for host, reason in found.reasons
        ],
    }


def _hold(tx: Tx, order: Order, *, limited: bool) -> None:
    """Nothing that the VM names goes away before its record says that it is used."""
    if order.default_group is not None:
        group = model.SecurityGroup(project=order.project)
        spec = msgspec.to_builtins(group)
        name, kind = order.default_group, Kind.SECURITY_GROUP
        tx.insert_if_new(
            Object(kind=kind, name=name, spec=spec, created_at=tx.now, changed_at=tx.now)
        )
    # What is held alone must not be held with others before: two who do so wait for each other.
    # The project is held already if it has limits, the pools with the host that is chosen.
    alone = sorted(name for kind, name in order.uses if kind is Kind.AFFINITY_GROUP)
    placed = order.start and bool(order.wishes.disks)
    shared: set[nouns.Key] = {
        (kind, name)
        for kind, name in order.uses
        if kind is not Kind.AFFINITY_GROUP
        and not (limited and kind is Kind.PROJECT)
        and not (placed and kind is Kind.POOL)
    }
    gone = shared - nouns.hold_all(tx, shared).keys()
    for name in alone:
        if nouns.lock(tx, Kind.AFFINITY_GROUP, name) is None:
            gone.add((Kind.AFFINITY_GROUP, name))
    if gone:
        kind, name = min(gone)
        raise Conflict(f"{kind} {name} was deleted meanwhile")


def _wanted(order: Order) -> dict[str, int]:
    """What it takes of its project's limits."""
    disks = order.wishes.disks
    return {
        "instances": 1,
        "vcpus": order.guest.vcpus,
        "memory_mib": order.guest.memory_mib,
        "volumes": len(disks),
        "storage_gib": sum(disk.size_gib for disk in disks),
        "addresses": sum(card.network is not None for card in order.cards),
    }


def _cards(
    tx: Tx, cfg: Settings, instance: str, wanted: tuple[Card, ...]
) -> tuple[tuple[Nic, ...], tuple[NicSpec, ...]]:
    """MACs and addresses, and what the guest's cards are made from; the first has the gateway."""
    nics: list[Nic] = []
    specs: list[NicSpec] = []
    for card in wanted:
        network = nouns.find(tx, Kind.NETWORK, card.network) if card.network else None
        if card.network is None or network is None:
            nics.append(Nic(mac=addresses.give_mac(tx, cfg, instance)))
            specs.append(NicSpec(mac=nics[-1].mac))
            continue
        nic = addresses.give_nic(
            tx,
            cfg,
            instance,
            card.network,
            network,
            address=card.address,
            address6=card.address6,
        )
        specs.append(_card(nic, network, card.rules, default=not nics))
        nics.append(nic)
    return tuple(nics), tuple(specs)


def _card(
    nic: Nic, network: model.Network, rules: tuple[Rule, ...] | None, *, default: bool
) -> NicSpec:
    length = ipaddress.IPv4Network(network.cidr).prefixlen
    return NicSpec(
        mac=nic.mac,
        network=network.source,
        backend=network.backend,
        ensure=network.kind is NetworkKind.ISOLATED and network.backend is Backend.LIBVIRT,
        vlan=network.vlan,
        address=f"{nic.address}/{length}" if nic.address else None,
        gateway=network.gateway if default else None,
        address6=f"{nic.address6}/64" if nic.address6 else None,
        gateway6=network.gateway6 if default else None,
        dns=network.dns,
        rules=rules,
    )


def _reserved(order: Order, nics: tuple[Nic, ...], hostname: str | None) -> str:
    told = [f"project {order.project}"]
    told += [f"{nic.address} in {nic.network}" for nic in nics if nic.address]
    if hostname is not None:
        told.append(f"hostname {hostname}")
    return ", ".join(told)

"""Deploy: choose a host, reserve an address, write the record and cast its first start."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from common.conf import Settings
from common.errors import Conflict, NotFound, NoValidHost
from common.messages import CommandKind, DiskSpec, GuestSpec, NicSpec
from common.states import PowerState, TaskState, VmState
from manager.flows import commands, jobs
from manager.flows.jobs import Wish
from manager.rules import placement as rule
from manager.store.engine import Tx
from manager.store.hosts import Host
from manager.store.instances import Instance, Mac
from manager.store.jobs import Job
from manager.store.sightings import Sighting
from manager.store.statements import Query, among

S = Sighting.__table__.c
I = Instance.__table__.c  # noqa: E741 - the table's columns, as S
HOSTS = Query(Host)
# MiB by host: what hypervisors run, and what was promised and does not run yet.
RUNNING = (
    sa.select(S.host, sa.func.sum(S.memory_mib))
    .where(
        S.present,
        *[
            S.power_state != off
            for off in (PowerState.SHUTOFF, PowerState.CRASHED, PowerState.SUSPENDED)
        ],
    )
    .group_by(S.host)
)
PROMISED = (
    sa.select(I.host, sa.func.sum(I.memory_mib))
    .where(
        I.vm_state == VmState.BUILDING,
        among(I.power_state, (PowerState.NOSTATE, PowerState.SHUTOFF)),
    )
    .group_by(I.host)
)


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator asked for; checked by the door."""

    name: str
    vcpus: int
    memory_mib: int
    disks: tuple[DiskSpec, ...] = ()
    kernel: str | None = None
    initrd: str | None = None
    cmdline: str | None = None
    host: str | None = None


def request(tx: Tx, cfg: Settings, wish: Wish, order: Order) -> Job:
    """Accept a create; raises NotFound for an unknown host and NoValidHost with every reason."""
    host = _place(tx, order)
    uuid = tx.new_id()
    mac = _reserve_mac(tx, cfg, uuid)
    spec = GuestSpec(
        name=order.name,
        vcpus=order.vcpus,
        memory_mib=order.memory_mib,
        disks=order.disks,
        nics=(NicSpec(mac=mac),),
        kernel=order.kernel,
        initrd=order.initrd,
        cmdline=order.cmdline,
    )
    job = jobs.accept(tx, wish, "create", instance=uuid, host=host)
    generation = 1
    tx.insert(
        Instance(
            uuid=uuid,
            name=order.name,
            host=host,
            vm_state=VmState.BUILDING,
            task_state=TaskState.SPAWNING,
            spec=msgspec.to_builtins(spec),
            vcpus=order.vcpus,
            memory_mib=order.memory_mib,
            mac=mac,
            generation=generation,
            job=job.uuid,
            created_at=tx.now,
        )
    )
    command = commands.issue(
        tx,
        cfg,
        kind=CommandKind.START_VM,
        instance=uuid,
        host=host,
        generation=generation,
        job=job.uuid,
        trail=job.trail,
        spec={"guest": msgspec.to_builtins(spec), "create": True},
    )
    job = jobs.add_step(tx, job, f"{CommandKind.START_VM} on {host}", host, command.id)
    return jobs.start(tx, job, deadline_at=command.deadline_at)


def _place(tx: Tx, order: Order) -> str:
    if order.host is not None and tx.find(Host, order.host) is None:
        raise NotFound(f"no host {order.host}", "muster host list shows all")
    demand = rule.Demand(vcpus=order.vcpus, memory_mib=order.memory_mib, host=order.host)
    chosen = rule.place(_candidates(tx), demand)
    if chosen.host is None:
        raise NoValidHost(
            f"no host can take {order.name} ({order.memory_mib} MiB): {chosen.explain()}",
            "free or add a host: muster host list",
        )
    # Held until the commit: another manager's claim on this host is seen by one of the two.
    tx.lock(Host, chosen.host)
    if any(h.name == chosen.host and rule.unfit(h, demand) for h in _candidates(tx)):
        raise Conflict(f"host {chosen.host} was filled by another manager")
    return chosen.host


def _candidates(tx: Tx) -> list[rule.Candidate]:
    """Every host with what its hypervisor runs and what was promised on top of it."""
    running = {host: int(total) for host, total in tx.rows(RUNNING)}
    promised = {host: int(total) for host, total in tx.rows(PROMISED)}
    return [
        rule.Candidate(
            name=host.name,
            state=host.state,
            enabled=host.enabled,
            maintenance=host.maintenance,
            vcpus_total=host.vcpus_total,
            vcpus_used=host.vcpus_used,
            vcpus_claimed=0,
            memory_mib_total=host.memory_mib_total,
            memory_mib_used=(used := max(host.memory_mib_used, running.get(host.name, 0))),
            memory_mib_claimed=used + promised.get(host.name, 0),
        )
        for host in tx.ask(HOSTS)
    ]


def _reserve_mac(tx: Tx, cfg: Settings, instance: str) -> str:
    """A MAC of the fleet's range that no VM has and no quarantine holds; the key decides."""
    for _ in range(100):
        number = tx.store.runtime.random_below(1 << 24)
        tail = ":".join(f"{(number >> shift) & 0xFF:02x}" for shift in (16, 8, 0))
        mac = f"{cfg.manager.mac_prefix}:{tail}"
        if tx.insert_if_new(Mac(mac=mac, instance=instance, since=tx.now)):
            return mac
    raise NoValidHost(
        f"no free MAC found in {cfg.manager.mac_prefix}:*", "set another [manager] mac_prefix"
    )

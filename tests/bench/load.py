"""What the benchmark sends: a plain command, and heartbeats of about 2 kB."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterator
from typing import Any

from common import __version__
from common.messages import (
    SCHEMA,
    Capacity,
    DriverReport,
    GuestReport,
    Heartbeat,
    Hello,
    Inventory,
    builtins,
    digest,
    encode,
)
from common.ownership import Mark
from common.states import PowerState

HOSTS = 50
GUESTS = 5
FLEET = "default"
INTERVAL_S = 10.0
TTL_S = 60.0
COMMAND = {
    "schema": SCHEMA,
    "id": str(uuid.UUID(int=1)),
    "kind": "start_vm",
    "fleet": FLEET,
    "host": "receiver",
    "session": 1,
    "instance": str(uuid.UUID(int=2)),
    "generation": 1,
    "timeout_s": 120.0,
    "spec": {"guest": {"name": "web-1", "vcpus": 2, "memory_mib": 2048}},
    "trail": [["operator", "bench", "2026-11-01T00:00:00Z"]],
}


def hellos() -> Iterator[Any]:
    """The hello of each host, as an RPC argument."""
    for n in range(HOSTS):
        yield builtins(
            Hello(
                hello_id=f"hello-{n}",
                fleet=FLEET,
                host=f"host-{n}",
                agent_run=f"run-{n}",
                agent_version=__version__,
                driver="simulated",
                interval_s=INTERVAL_S,
                host_boot=f"boot-{n}",
                journal_id=f"journal-{n}",
                journal_seq=0,
                store_timeline=None,
                store_mark=0,
            )
        )


def heartbeats(first_seq: int, count: int) -> list[tuple[str, bytes]]:
    """(routing key, body) of `count` heartbeats, host after host, seq rising."""
    inventories = [_inventory(n) for n in range(HOSTS)]
    return [
        (
            f"heartbeat.host-{n % HOSTS}",
            encode(_heartbeat(n % HOSTS, first_seq + n // HOSTS, inventories[n % HOSTS])),
        )
        for n in range(count)
    ]


def _heartbeat(host: int, seq: int, inventory: Inventory) -> Heartbeat:
    return Heartbeat(
        fleet=FLEET,
        host=f"host-{host}",
        session=1,
        agent_run=f"run-{host}",
        seq=seq,
        interval_s=INTERVAL_S,
        driver=DriverReport(name="simulated", healthy=True),
        sent_at=dt.datetime(2026, 11, 1, tzinfo=dt.UTC),
        inventory=inventory,
        capacity=Capacity(
            vcpus_total=64, memory_mib_total=262144, vcpus_used=12, memory_mib_used=24576
        ),
    )


def _inventory(host: int) -> Inventory:
    """Guests of nobody: every heartbeat tells all of them, and nothing changes."""
    guests = tuple(_guest(host, n) for n in range(GUESTS))
    return Inventory(
        full=True, complete=True, digest=digest(g.fingerprint() for g in guests), guests=guests
    )


def _guest(host: int, n: int) -> GuestReport:
    own = str(uuid.UUID(int=host * 1000 + n))
    return GuestReport(
        hypervisor_uuid=own,
        name=f"stranger-{host}-{n}.example.org",
        power_state=PowerState.RUNNING,
        vcpus=2,
        memory_mib=4096,
        mark=Mark(fleet="another-fleet", instance=own, generation=3, bearer=own),
        domain_id=n + 1,
        macs=(f"52:54:00:00:{host:02x}:{n:02x}",),
    )

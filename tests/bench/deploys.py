"""Deploys: VMs with an offering, a template, an address, a hostname and a disk in a pool.

Made and deleted by two managers; what is compared with is a raw cast, in the same run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import msgspec

from tests.bench.counters import Cost, mean
from tests.bench.fleet import Fleet
from tests.bench.operators import Load

MADE, GONE = "deploy", "delete"
VERBS = (MADE, GONE)
EFFECTS = {MADE: ("start",), GONE: ("destroy",)}
"""What comes of each at the hypervisor."""


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured."""

    single: int = 50
    """VMs made and deleted one at a time, to be counted."""
    vms: int = 400
    """VMs made at once, then deleted."""
    threads: int = 32
    rounds: int = 2


QUICK = Size(single=10, vms=80, rounds=1)


class Burst(msgspec.Struct, frozen=True, kw_only=True):
    """So many at once."""

    verb: str
    load: Load
    cost: Cost

    @property
    def rate(self) -> float:
        """How many a second have ended well."""
        return self.load.succeeded / self.load.seconds


class Deploys(msgspec.Struct, kw_only=True):
    """Everything measured."""

    single: dict[str, Cost] = {}
    """What one costs on an idle fleet, by verb."""
    bursts: list[Burst] = []
    raw_casts: list[float] = []

    def rate(self, verb: str) -> float:
        """Of all bursts."""
        return statistics.median(burst.rate for burst in self.bursts if burst.verb == verb)

    def ratio(self, verb: str) -> float:
        """Of raw casts."""
        return self.rate(verb) / statistics.median(self.raw_casts)

    def loaded(self, verb: str) -> Cost:
        """What one costs among many."""
        return mean([burst.cost for burst in self.bursts if burst.verb == verb])


def zone(hosts: list[str]) -> dict[str, list[dict[str, Any]]]:
    """All that such a VM needs."""
    return {
        "zones": [{"name": "z1"}],
        "pods": [{"name": "p1", "zone": "z1"}],
        "clusters": [{"name": "c1", "pod": "p1"}],
        "hosts": [{"name": host, "cluster": "c1"} for host in hosts],
        "pools": [
            {"name": "wide", "scope": "zone", "zone": "z1", "path": "/d", "capacity_gib": 100_000}
        ],
        "offerings": [{"name": "tiny", "vcpus": 1, "memory_mib": 16, "root_gib": 1}],
        "templates": [
            {"name": "img", "format": "qcow2", "url": "file:///srv/img", "sha256": "0" * 64}
        ],
        "networks": [
            {"name": "n1", "zone": "z1", "backend": "bridge", "source": "b", "cidr": "10.0.0.0/16"}
        ],
    }


def measure(fleet: Fleet, size: Size, idle: Cost, raw_casts: Callable[[], float]) -> Deploys:
    """On a fleet with two managers, whose own cost is `idle`; SystemExit when one has failed."""
    done = Deploys()
    fleet.ask("apply", objects=zone(fleet.hosts))
    _both(fleet, size.threads, size.threads, idle)  # compiles statements, opens connections
    for burst in _both(fleet, size.single, 1, idle):
        done.single[burst.verb] = burst.cost
    done.raw_casts.append(raw_casts())
    for _ in range(size.rounds):
        done.bursts += _both(fleet, size.vms, size.threads, idle)
        done.raw_casts.append(raw_casts())
    return done


def _both(fleet: Fleet, count: int, threads: int, idle: Cost) -> list[Burst]:
    """So many VMs made, and deleted again."""
    return [_burst(fleet, verb, count, threads, idle) for verb in VERBS]


def _burst(fleet: Fleet, verb: str, count: int, threads: int, idle: Cost) -> Burst:
    before = fleet.changes(EFFECTS[verb])
    answers: list[Any] = []
    cost = fleet.counters.measure(
        lambda: answers.append(fleet.ask(verb, count=count, threads=threads))
    )
    load = msgspec.convert(answers[0], Load)
    effects = fleet.changes(EFFECTS[verb]) - before
    if load.states != {"SUCCEEDED": count} or effects != count:
        raise SystemExit(
            f"bench: of {count} {verb}s {load.states}, errors {load.errors}, {effects} guests"
        )
    return Burst(verb=verb, load=load, cost=cost.less(idle, count))

"""Durable commands: how soon an agent begins, how many a second, and what each of them costs.

A durable command is an operator's request over RPC, accepted in PostgreSQL, published, journalled
and carried out by an agent, and told back until its job has SUCCEEDED.
"""

from __future__ import annotations

import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import msgspec

from devstack.parts.postgres import Postgres
from devstack.parts.rabbitmq import RabbitMQ
from tests.bench import deploys
from tests.bench.counters import Cost, mean
from tests.bench.deploys import Deploys
from tests.bench.fleet import Fleet
from tests.bench.floor import Floor
from tests.bench.operators import WAYS, Load

Tell = Callable[[str], None]
METHODS = ("vm_stop", "vm_start")
QUIET_S = 0.03
"""The agent has begun by then: looking for the command's end takes nothing from it."""
EFFECTS = ("stop", "start")
"""What comes of them at the hypervisor."""


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured."""

    hosts: int = 4
    vms: int = 400
    single: int = 100
    """Commands one at a time: by turns with the floor, and as many of each verb to be counted."""
    idle_s: float = 8.0
    warm_s: float = 1.0
    load_s: float = 8.0
    rounds: int = 2
    threads: int = 40
    in_flight: int = 300
    """Commands that have been asked for and have not ended, at the most."""
    deploys: deploys.Size = deploys.Size()


QUICK = Size(vms=80, single=30, idle_s=3.0, load_s=3.0, rounds=1, deploys=deploys.QUICK)


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """One window under load: what came of it, and what one command cost."""

    managers: int
    way: str
    load: Load
    cost: Cost

    @property
    def rate(self) -> float:
        """Commands a second whose jobs have SUCCEEDED."""
        return self.load.succeeded / self.load.seconds


class Durable(msgspec.Struct, kw_only=True):
    """Everything measured; times in seconds."""

    begun_s: list[float] = []
    """From the request until an agent first changes the guest."""
    floor_s: list[float] = []
    steps_s: dict[str, list[float]] = {}
    """Of `begun_s`, how long it took to come to each step from the one before."""
    answered_s: dict[str, list[float]] = {}
    """From the request until the operator has a manager's answer, by method."""
    ended_s: dict[str, list[float]] = {}
    """From the request until the job has ended, by method."""
    idle: dict[int, Cost] = {}
    """What a fleet with so many managers spends on itself."""
    single: dict[str, Cost] = {}
    """What one command costs, one at a time, by method."""
    loaded: list[Loaded] = []
    raw_casts: list[float] = []
    """Raw oslo.messaging casts a second, before and after each window under load."""

    @property
    def latency_ratio(self) -> float:
        return statistics.median(self.begun_s) / statistics.median(self.floor_s)

    def rates(self, managers: int) -> dict[str, float]:
        """Durable commands a second by way of asking, median of its windows."""
        by_way: dict[str, list[float]] = {}
        for window in self.loaded:
            if window.managers == managers:
                by_way.setdefault(window.way, []).append(window.rate)
        return {way: statistics.median(rates) for way, rates in by_way.items()}

    def rate(self, managers: int) -> float:
        """Durable commands a second, of the best way; 0 without any."""
        return max(self.rates(managers).values(), default=0.0)

    @property
    def one_at_a_time(self) -> Cost:
        """What one command costs an idle fleet: the mean of stop and start."""
        return mean(list(self.single.values()))

    def under_load(self, managers: int, way: str | None = None) -> Cost:
        """What one command costs under load, asked for in some way or the best: the mean."""
        rates = self.rates(managers)
        way = way or max(rates, key=lambda each: rates[each])
        return mean([w.cost for w in self.loaded if (w.managers, w.way) == (managers, way)])

    def ratio(self, managers: int) -> float:
        """Of raw casts."""
        return self.rate(managers) / statistics.median(self.raw_casts)


def measure(
    broker: RabbitMQ,
    postgres: Postgres,
    folder: pathlib.Path,
    size: Size,
    raw_casts: Callable[[], float],
    tell: Tell,
) -> tuple[Durable, Deploys]:
    """A whole fleet through all of it; SystemExit when a command did not succeed."""
    done = Durable()
    tell(f"starting a manager and {size.hosts} agents, deploying {size.vms} VMs")
    fleet = Fleet(broker, postgres, folder, hosts=size.hosts)
    try:
        fleet.deploy(size.vms)
        tell(f"one at a time: {size.single} commands by turns with the floor, then counted")
        _by_turns(fleet, Floor(broker.new_vhost(), postgres.new_database()), size, done)
        _idle(fleet, 1, size, done)
        for method in METHODS:
            _counted(fleet, method, size, done)
        done.raw_casts.append(raw_casts())
        for managers in (1, 2):
            if managers > 1:
                fleet.add_manager()
                _idle(fleet, managers, size, done)
            _under_load(fleet, managers, size, done, raw_casts, tell)
        tell(f"2 managers: {size.deploys.vms} VMs deployed and deleted, {size.deploys.rounds} x")
        deployed = deploys.measure(fleet, size.deploys, done.idle[2], raw_casts)
    except BaseException as exc:
        exc.add_note(fleet.log_tails())
        raise
    finally:
        fleet.close()
    return done, deployed


def _by_turns(fleet: Fleet, floor: Floor, size: Size, done: Durable) -> None:
    """Ours and the floor one after the other, so that noise falls on both."""
    try:
        for n in range(-2, size.single):
            least = floor.once()
            ours = _succeeded(fleet.ask("one", method=METHODS[n % 2], quiet_s=QUIET_S))
            begun_ns = fleet.begun_ns(ours["instance"], ours["sent_ns"])
            if begun_ns is None:
                raise SystemExit(f"bench: no agent has begun {ours}")
            if n >= 0:  # the first ones open connections
                done.floor_s.append(least)
                done.begun_s.append((begun_ns - ours["sent_ns"]) / 1e9)
                _steps(fleet, ours, begun_ns, done)
    finally:
        floor.close()


def _steps(fleet: Fleet, ours: dict[str, Any], begun_ns: int, done: Durable) -> None:
    """What the database has of a command on its way, whose clock is this machine's."""
    wall_s = time.time() - time.monotonic()
    accepted_s, published_s = fleet.counters.receipts(ours["job"])
    reached = {
        "accepted": accepted_s,
        "published": published_s,
        "begun": begun_ns / 1e9 + wall_s,
    }
    before_s = ours["sent_ns"] / 1e9 + wall_s
    for step, at_s in reached.items():
        done.steps_s.setdefault(step, []).append(at_s - before_s)
        before_s = at_s


def _idle(fleet: Fleet, managers: int, size: Size, done: Durable) -> None:
    done.idle[managers] = fleet.counters.measure(lambda: time.sleep(size.idle_s))


def _counted(fleet: Fleet, method: str, size: Size, done: Durable) -> None:
    singles = []
    cost = fleet.counters.measure(
        lambda: singles.extend(fleet.ask("many", method=method, count=size.single))
    )
    done.single[method] = cost.less(done.idle[1], len(singles))
    done.answered_s[method] = [one["answered_s"] for one in singles]
    done.ended_s[method] = [_succeeded(one)["ended_s"] for one in singles]


def _succeeded(one: dict[str, Any]) -> dict[str, Any]:
    if one["state"] != "SUCCEEDED":
        raise SystemExit(f"bench: {one}")
    return one


def _under_load(
    fleet: Fleet,
    managers: int,
    size: Size,
    done: Durable,
    raw_casts: Callable[[], float],
    tell: Tell,
) -> None:
    # A new manager compiles its statements and opens its connections once.
    load_once(fleet, next(iter(WAYS)), msgspec.structs.replace(size, load_s=size.warm_s))
    for _ in range(size.rounds):
        for way in WAYS:
            tell(f"{managers} manager{'s' * (managers > 1)}, {way}: {size.load_s:g} s of load")
            load, cost = load_once(fleet, way, size)
            done.loaded.append(
                Loaded(
                    managers=managers,
                    way=way,
                    load=load,
                    cost=cost.less(done.idle[managers], load.succeeded),
                )
            )
            done.raw_casts.append(raw_casts())


def load_once(fleet: Fleet, way: str, size: Size) -> tuple[Load, Cost]:
    """One window, and what all of it cost; SystemExit when a command was lost or done twice."""
    before = fleet.changes(EFFECTS)
    answers: list[Any] = []
    cost = fleet.counters.measure(
        lambda: answers.append(
            fleet.ask(
                "load",
                way=way,
                seconds=size.load_s,
                threads=size.threads,
                in_flight=size.in_flight,
            )
        )
    )
    load = msgspec.convert(answers[0], Load)
    check(load, fleet.changes(EFFECTS) - before)
    return load, cost


def check(load: Load, effects: int) -> None:
    """Every accepted command has succeeded, and its guest was changed once; else SystemExit."""
    if not load.accepted or load.states != {"SUCCEEDED": load.accepted} or effects != load.accepted:
        raise SystemExit(
            f"bench: of {load.accepted} commands {load.states}, errors {load.errors},"
            f" and the guests were changed {effects} times"
        )

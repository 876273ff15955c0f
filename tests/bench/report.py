"""What the benchmark prints: tables for people, and the last line for scripts."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from tests.bench import load
from tests.bench.counters import CLIENT, Cost
from tests.bench.deploys import GONE, MADE, Deploys
from tests.bench.durable import Durable
from tests.bench.planner import Planner
from tests.bench.ways import Way

GROUPS = ("managers", "agents", "PostgreSQL", "RabbitMQ")
# DESIGN section 7: measured on a machine like the one CI runs on, two cores and a fake driver.
NOVA = (("Nova 34, stop", 45, 11, "75-105"), ("Nova 34, start", 61, 20, "100-145"))
NOVA_MADE = (("Nova 34, boot", 405, 30, "470-590"), ("Nova 34, delete", 253, 27, "290-330"))
STEPS = {
    "accepted": "request -> the accepting transaction",
    "published": "from there -> the publishing one",
    "begun": "from there -> the agent begins",
}
WANTED_LATENCY, WANTED_RATIO, WANTED_STATEMENTS, WANTED_CPU_MS = 3.0, 0.5, 8, 5
WANTED_MADE_STATEMENTS, WANTED_MADE_MS = 25, 15


def show_ways(ways: list[Way], rounds: int) -> None:
    """Messages a second, each way beside the bare library's."""
    size = len(load.heartbeats(0, 1)[0][1])
    say(f"a heartbeat has {size} bytes and {load.GUESTS} guests; median of {rounds} turns each;")
    say("CPU counts sender and receiver, not the broker or database")
    say(f"{'way':24} {'a second':>9} {'lowest':>9} {'highest':>9} {'CPU us each':>12} {'ratio':>6}")
    for way in ways:
        ratio = f"{way.ratio:.2f}" if way.bare else "1"
        say(
            f"{way.name:24} {way.rate:9.0f} {min(way.rates):9.0f} {max(way.rates):9.0f}"
            f" {statistics.median(way.cpu_us):12.0f} {ratio:>6}"
        )
    say()


def show_durable(done: Durable) -> None:
    """How soon, how many, and at what cost."""
    say(f"{'idle fleet, milliseconds':40} {'median':>7} {'lowest':>7} {'90 %':>7}")
    _times("request -> an agent begins to carry out", done.begun_s)
    for step, seconds in done.steps_s.items():
        _times(f"    {STEPS[step]}", seconds)
    _times("one commit, then one raw cast", done.floor_s)
    for method, ended in done.ended_s.items():
        _times(f"request -> accepted, {method}", done.answered_s[method])
        _times(f"request -> job has ended, {method}", ended)
    say(f"  (wanted: to begin within {WANTED_LATENCY:g} x of one commit, then one raw cast)")
    say()
    say(f"{'durable commands':40} {'a second':>9} {'commands':>9} {'ratio':>6}")
    raw = statistics.median(done.raw_casts)
    for window in done.loaded:
        many = f"{_managers(window.managers)}, {window.way}"
        say(f"{many:40} {window.rate:9.0f} {window.load.succeeded:9} {window.rate / raw:6.2f}")
        if window.load.errors:
            say(f"    asked for again: {window.load.errors}")
    say(f"{'casts, oslo.messaging, between those':40} {raw:9.0f} {'':9} {1:6}")
    say(f"  (wanted: a ratio of {WANTED_RATIO:g} with one manager, and more with two)")
    say()
    cpu = "".join(f"{who:>11}" for who in (*GROUPS, "all", "operators"))
    head = f"{'statements':>11} {'commits':>8} {'writing':>8} {'publishes':>10}"
    say(f"{'what one costs':30} {head} {'CPU ms:':>8}{cpu}")
    for method, cost in done.single.items():
        _cost(f"{method}, idle fleet", cost)
    for managers, way in sorted({(window.managers, window.way) for window in done.loaded}):
        _cost(f"{_managers(managers)}, {way}", done.under_load(managers, way))
    for name, statements, publishes, ms in NOVA:
        say(f"{name:30} {statements:11} {'':17} {publishes:10} {'':8}{ms:>55}")
    for managers, idle in done.idle.items():
        _cost(f"idle, {_managers(managers)}, a second", idle.each(idle.seconds))
    say("  (the idle fleet's part is taken off the others; Nova took 41 and 155 ms for each;")
    say(f"  wanted: {WANTED_STATEMENTS} statements and {WANTED_CPU_MS} ms of CPU)")
    say()


def show_deploys(done: Deploys, planned: Planner) -> None:
    """How many VMs, at what cost, and how soon a host is found among many."""
    raw = statistics.median(done.raw_casts)
    say(f"{'deploys, 2 managers, many at once':40} {'a second':>9} {'commands':>9} {'ratio':>6}")
    for burst in done.bursts:
        each = f"{burst.rate:9.0f} {burst.load.succeeded:9} {burst.rate / raw:6.2f}"
        say(f"{burst.verb:40} {each}")
        if burst.load.errors:
            say(f"    asked for again: {burst.load.errors}")
    say()
    cpu = "".join(f"{who:>11}" for who in (*GROUPS, "all", "operators"))
    head = f"{'statements':>11} {'commits':>8} {'writing':>8} {'publishes':>10}"
    say(f"{'what one costs':30} {head} {'CPU ms:':>8}{cpu}")
    for verb, cost in done.single.items():
        _cost(f"{verb}, idle fleet", cost)
    for verb in done.single:
        _cost(f"{verb}, many at once", done.loaded(verb))
    for name, statements, publishes, ms in NOVA_MADE:
        say(f"{name:30} {statements:11} {'':17} {publishes:10} {'':8}{ms:>55}")
    say(f"  (wanted: {WANTED_MADE_STATEMENTS} statements and {WANTED_MADE_MS} ms of CPU)")
    say()
    say(f"{f'decisions before {planned.hosts} hosts':40} {'a second':>9}")
    say(f"{'the rule alone, hosts as they were read':40} {planned.rule:9.1f}")
    say(f"{'all of it, a pool in each cluster':40} {planned.whole:9.1f}")
    say(f"{'all of it, a pool on each host':40} {planned.local:9.1f}")
    say(f"{'all of it, and why not of every host':40} {planned.told:9.1f}")
    say(f"  ({planned.queries} queries each)")
    say()


def show_ratios(ways: list[Way], done: Durable, made: Deploys, planned: Planner) -> None:
    """One line for scripts."""
    ratios = {way.name: way.ratio for way in ways}
    alone = "".join(
        f"{name} ratio {ratios[f'{name}, ours']:.2f}, "
        for name in ("casts", "heartbeats")
        if f"{name}, ours" in ratios
    )
    idle, loaded = done.one_at_a_time, done.under_load(1)
    say(
        f"bench: {alone}latency ratio {done.latency_ratio:.2f},"
        f" durable ratio {done.ratio(1):.3f} (1 manager) {done.ratio(2):.3f} (2 managers),"
        f" statements {idle.statements:.1f} (idle) {loaded.statements:.1f} (load),"
        f" publishes {idle.publishes:.1f} (idle) {loaded.publishes:.1f} (load),"
        f" CPU {idle.fleet_cpu_s * 1e3:.1f} ms (idle) {loaded.fleet_cpu_s * 1e3:.1f} ms (load),"
        f" deploys ratio {made.ratio(MADE):.3f}, decisions/s {planned.whole:.0f},"
        f" statements {made.single[MADE].statements:.1f}/{made.single[GONE].statements:.1f},"
        f" CPU {made.loaded(MADE).fleet_cpu_s * 1e3:.1f}/{made.loaded(GONE).fleet_cpu_s * 1e3:.1f}"
        f" ms"
    )


def _managers(count: int) -> str:
    return f"{count} manager{'s' * (count > 1)}"


def _times(name: str, seconds: Iterable[float]) -> None:
    ms = sorted(s * 1e3 for s in seconds)
    say(f"{name:40} {statistics.median(ms):7.2f} {ms[0]:7.2f} {ms[len(ms) * 9 // 10]:7.2f}")


def _cost(name: str, cost: Cost) -> None:
    spent: Mapping[str, float] = cost.cpu_s
    figures = [spent[who] for who in GROUPS] + [cost.fleet_cpu_s, spent[CLIENT]]
    cpu = "".join(f"{s * 1e3:11.2f}" for s in figures)
    counts = f"{cost.statements:11.1f} {cost.commits:8.2f} {cost.writes:8.2f}"
    say(f"{name:30} {counts} {cost.publishes:10.2f} {'':8}{cpu}")


def say(*words: Any) -> None:
    print(*words, flush=True)  # noqa: T201 - a report for a terminal

"""Where a manager and an agent spend their time, and which statements a command costs.

Profiling slows what it looks at: no figure of such a run is one of the benchmark's.
"""

from __future__ import annotations

import pathlib
import pstats

from devstack.parts.postgres import Postgres
from devstack.parts.rabbitmq import RabbitMQ
from tests.bench.durable import Size, Tell, load_once
from tests.bench.fleet import Fleet
from tests.bench.operators import WAYS
from tests.bench.report import say

TOP = 40
OURS = r"/(?:agent|common|manager)/"


def run(
    broker: RabbitMQ,
    postgres: Postgres,
    folder: pathlib.Path,
    size: Size,
    profile: pathlib.Path,
    tell: Tell,
) -> None:
    """Load one profiled manager; the profiles are left in `profile` and `profile`.agent."""
    tell(f"starting a manager and {size.hosts} agents, deploying {size.vms} VMs")
    fleet = Fleet(broker, postgres, folder / "fleet", hosts=size.hosts, profile=profile)
    try:
        fleet.deploy(size.vms)
        tell(f"a profiled manager: {size.load_s:g} s of load")
        fleet.profile_manager()
        before = fleet.counters.statements()
        load, _ = load_once(fleet, next(iter(WAYS)), size)
        after = fleet.counters.statements()
    except BaseException as exc:
        exc.add_note(fleet.log_tails())
        raise
    finally:
        fleet.close()
    say(f"{load.succeeded} commands; per command:")
    say(f"{'calls':>7} {'ms':>7}  statement")
    spent = [
        (calls - before.get(key, ("", 0, 0.0))[1], ms - before.get(key, ("", 0, 0.0))[2], text)
        for key, (text, calls, ms) in after.items()
    ]
    for calls, ms, text in sorted(spent, reverse=True)[:TOP]:
        if calls:
            say(f"{calls / load.succeeded:7.2f} {ms / load.succeeded:7.3f}  {text[:150]}")
    for path in (profile, pathlib.Path(f"{profile}.agent")):
        say(f"\n{path}: CPU time of every thread but the first")
        stats = pstats.Stats(str(path))
        stats.sort_stats("tottime").print_stats(TOP)
        stats.sort_stats("cumulative").print_stats(OURS, TOP)

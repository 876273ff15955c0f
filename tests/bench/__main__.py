"""What Muster does in a second, and what that costs, beside the bare parts in the same run.

First messages alone, each way beside the bare library; then durable commands through a whole fleet.
All of it on a private RabbitMQ and a private PostgreSQL that syncs every commit to disk. What is
compared takes turns, so that whatever else the machine does falls on both.

    python -m tests.bench [--quick] [--commands] [--profile FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import pathlib
import signal
import sys
import time
import warnings
from collections.abc import Iterator

from devstack.fleet import Scratch
from devstack.parts.postgres import Postgres
from devstack.parts.rabbitmq import RabbitMQ
from tests.bench import durable, planner, profiling, report
from tests.bench.report import say
from tests.bench.ways import Senders, Way, every_way, raw_rpc

ROUNDS = 5


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--quick", action="store_true", help="less of everything: rougher figures")
    parser.add_argument(
        "--commands", action="store_true", help="only durable commands, not messages alone"
    )
    parser.add_argument(
        "--profile",
        metavar="FILE",
        type=pathlib.Path,
        help="only look where a manager and an agent (FILE.agent) spend their time under load",
    )
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    # Forty raw calls at once are more than oslo.messaging likes.
    logging.disable(logging.WARNING)
    # So that the parts end with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    size = durable.QUICK if args.quick else durable.Size()
    begun = time.monotonic()

    def tell(line: str) -> None:
        say(f"{time.monotonic() - begun:4.0f} s  {line}")

    tell(f"the load of this machine is {os.getloadavg()[0]:.1f}, on {os.cpu_count()} processors")
    tell("starting a private RabbitMQ and a private PostgreSQL")
    with (
        RabbitMQ() as broker,
        Postgres(durable=True, count_statements=True) as postgres,
        scratch_folder() as folder,
    ):
        if args.profile is not None:
            profiling.run(broker, postgres, folder, size, args.profile.absolute(), tell)
            return 0
        rounds = 2 if args.quick else ROUNDS
        with messages(broker, postgres, folder, all_of_them=not args.commands) as (casts, ways):
            tell(f"messages alone: {rounds} turns of each of {len(ways)} ways")
            for n in range(rounds + 1):
                for way in ways:
                    # The first turn opens connections and fills caches.
                    way.round(counted=n > 0)
            for way in ways:
                if way is not casts:
                    way.close()
            done, deployed = durable.measure(
                broker,
                postgres,
                folder / "fleet",
                size,
                lambda: casts.round(counted=False),
                tell,
            )
        tell(f"the planner, before {planner.HOSTS} hosts")
        turns = planner.TURNS // 3 if args.quick else planner.TURNS
        planned = planner.measure(postgres.new_database(), turns=turns)
    say()
    report.show_ways(ways, rounds)
    report.show_durable(done)
    report.show_deploys(deployed, planned)
    say(f"{time.monotonic() - begun:.0f} s in all")
    report.show_ratios(ways, done, deployed, planned)
    return 0


@contextlib.contextmanager
def scratch_folder() -> Iterator[pathlib.Path]:
    """A folder that ends with the run."""
    scratch = Scratch()
    try:
        yield scratch.path
    finally:
        scratch.remove()


@contextlib.contextmanager
def messages(
    broker: RabbitMQ, postgres: Postgres, folder: pathlib.Path, *, all_of_them: bool
) -> Iterator[tuple[Way, list[Way]]]:
    """Raw casts, and every way of a message (or raw RPC alone), ready to take turns.

    Those that keep what they take have a virtual host and a database of their own.
    """
    bus, sqlite, server = (Senders(broker.new_vhost()) for _ in range(3))
    rpc = ways = raw_rpc(bus)
    try:
        if all_of_them:
            ways = every_way(
                bus,
                (sqlite, f"sqlite:///{folder}/bench.db"),
                (server, postgres.new_database()),
                rpc,
            )
        yield rpc[0], ways
    finally:
        for way in ways:
            way.close()
        for sender in (bus, sqlite, server):
            sender.bus.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

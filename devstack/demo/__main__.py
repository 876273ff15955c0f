"""`python -m devstack.demo [--real]`: tells the story and exits 0 only when every promise held."""

from __future__ import annotations

import argparse
import sys

from common import logs
from common.errors import MusterError
from devstack.demo.story import Story
from devstack.fleet import Embedded, Fleet, Real, Scratch, Times
from devstack.parts.base import PartError

HOSTS = ("alpha", "beta", "gamma")


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m devstack.demo", description=__doc__)
    parser.add_argument(
        "--real", action="store_true", help="RabbitMQ, PostgreSQL and QEMU guests under libvirt"
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the folder with databases and logs"
    )
    args = parser.parse_args()
    logs.setup("ERROR", as_json=False)
    scratch = Scratch()
    fleet: Fleet | None = None
    try:
        if args.real:
            tell("Muster on real parts: every process its own, guests under QEMU")
            fleet = Real(
                scratch.path,
                HOSTS,
                driver="libvirt",
                times=Times(report_interval=1.0, service_down_time=8.0),
                tell=lambda line: tell(f"   {line}"),
            )
        else:
            tell("Muster embedded: memory bus, SQLite, simulated hypervisors, one process")
            fleet = Embedded(scratch.path, HOSTS)
        return Story(fleet, tell).run()
    except (PartError, MusterError) as exc:
        tell(f"demo: {exc}")
        if isinstance(fleet, Real):
            tell(fleet.log_tails())
        return 1
    finally:
        if fleet is not None:
            fleet.close()
        if args.keep:
            tell(f"kept: {scratch.path}")
        else:
            scratch.remove()


if __name__ == "__main__":
    sys.exit(main())

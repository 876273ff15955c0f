"""`python -m devstack up|down`: a whole fleet with the real parts on one machine."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from pathlib import Path

from common import logs
from common.errors import MusterError
from devstack.fleet import BIN, Real, Times, all_up
from devstack.parts.base import PartError, wait_for

PID = "devstack.pid"


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def up(args: argparse.Namespace) -> int:
    """Start everything, say how to use it, and stay until told to end."""
    folder: Path = args.dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    running = _running(folder)
    if running is not None:
        tell(f"devstack: it is up already, as process {running} (python -m devstack down)")
        return 1
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    hosts = [f"host-{n}" for n in range(1, args.agents + 1)]
    (folder / PID).write_text(str(os.getpid()))
    fleet: Real | None = None
    try:
        fleet = Real(
            folder,
            hosts,
            managers=args.managers,
            driver=args.driver,
            executor=args.executor,
            times=Times(report_interval=2.0, service_down_time=15.0, resend_after=3.0),
            tell=lambda line: tell(f"  {line}"),
        )
        all_up(fleet)
        tell(
            f"\n{args.managers} manager(s) and {args.agents} agent(s) ({args.driver}) are up.\n\n"
            f"  export MUSTER_CONFIG={fleet.muster_config}\n"
            f"  {BIN / 'muster'} host list\n"
            f"  {BIN / 'muster'} vm create web-1 --vcpus 1 --memory 96"
            f" {' '.join(fleet.boot_options())} --wait\n\n"
            f"logs: {folder}/*.log\n"
            "Ctrl-C here, or `python -m devstack down`, takes everything down again."
        )
        ended.wait()
        tell("taking the fleet down")
        return 0
    except (PartError, MusterError) as exc:
        tell(f"devstack: {exc}")
        if fleet is not None:
            tell(fleet.log_tails())
        return 1
    finally:
        if fleet is not None:
            fleet.close()
        (folder / PID).unlink(missing_ok=True)


def down(args: argparse.Namespace) -> int:
    """End the fleet that `up` has started, by its pid, and wait for that."""
    folder: Path = args.dir.resolve()
    pid = _running(folder)
    if pid is None:
        tell(f"devstack: nothing is up in {folder}")
        return 0
    os.kill(pid, signal.SIGTERM)
    wait_for(
        lambda: _running(folder) is None,
        60.0,
        lambda: PartError(f"process {pid} does not end"),
    )
    tell("devstack: down")
    return 0


def _running(folder: Path) -> int | None:
    """The pid of the `up` of this folder, if it is alive and really that."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((folder / PID).read_text())
        if b"devstack" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m devstack", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for name, run in (("up", up), ("down", down)):
        verb = verbs.add_parser(name, help=run.__doc__)
        verb.set_defaults(run=run)
        verb.add_argument(
            "--dir",
            type=Path,
            default=Path(sys.prefix) / "devstack",
            help="where it keeps its data",
        )
        if name == "up":
            verb.add_argument("--managers", type=int, default=2, metavar="N")
            verb.add_argument("--agents", type=int, default=3, metavar="M")
            verb.add_argument("--driver", choices=["simulated", "libvirt"], default="simulated")
            verb.add_argument("--executor", choices=["threading", "eventlet"], default="threading")
    args = parser.parse_args()
    logs.setup("ERROR", as_json=False)
    code: int = args.run(args)
    return code


if __name__ == "__main__":
    sys.exit(main())

"""Runs `muster-agent` itself, and writes down when it begins to change a simulated guest.

The guests are in its memory: the hypervisor takes no time.

    stamped.py FILE PROGRAM ARGS...

Each line of FILE is a time, a verb of the driver and an instance. The time is CLOCK_MONOTONIC in
nanoseconds, which is one clock for all processes of a machine.
"""

from __future__ import annotations

import functools
import os
import pathlib
import runpy
import sys
import time
from collections.abc import Callable
from typing import Any

CHANGES = ("remark", "start", "stop", "reboot", "destroy")


def stamped(sink: int, verb: str, change: Callable[..., Any]) -> Callable[..., Any]:
    """The driver's method, with a line for each call before anything else is done."""

    @functools.wraps(change)
    def call(driver: Any, guest: Any, *args: Any, **kwargs: Any) -> Any:
        line = f"{time.monotonic_ns()} {verb} {guest.mark.instance}\n"
        os.write(sink, line.encode())
        return change(driver, guest, *args, **kwargs)

    return call


def main(file: str, program: str, *args: str) -> None:
    """Become `program`, an entry point's script."""
    from agent.drivers.simulated import driver
    from agent.drivers.simulated.driver import SimulatedDriver

    # This script is run by its path, and what it installs lies beside it.
    sys.path.append(str(pathlib.Path(__file__).resolve().parents[2]))
    from tests.bench.instant import InstantStore

    sink = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for verb in CHANGES:
        setattr(SimulatedDriver, verb, stamped(sink, verb, getattr(SimulatedDriver, verb)))
    driver.Store = InstantStore  # type: ignore[misc]
    sys.argv = [program, *args]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Runs an entry point with every thread but the first under cProfile, by CPU time of the thread.

    profiled.py FILE PROGRAM ARGS...

FILE is written at the program's end, for `python -m pstats`. The first thread only imports and
waits. Only CPU time counts: a thread that waits for a lock or a socket costs nothing.
"""

from __future__ import annotations

import contextlib
import cProfile
import pstats
import runpy
import sys
import threading
import time


def main(file: str, program: str, *args: str) -> None:
    """Become `program`, an entry point's script."""
    if sys.version_info >= (3, 12):
        # From there on there can be one profile in a process, where each thread needs its own.
        sys.exit("profiling needs Python 3.11")
    profiles: list[cProfile.Profile] = []

    def begin(*_: object) -> None:
        profile = cProfile.Profile(time.thread_time)
        profiles.append(profile)
        profile.enable()

    from common import runtime

    runtime.end_now = sys.exit  # the real one would leave no profile behind
    threading.setprofile(begin)
    sys.argv = [program, *args]
    try:
        with contextlib.suppress(SystemExit):
            runpy.run_path(program, run_name="__main__")
    finally:
        threading.setprofile(None)
        whole = pstats.Stats()
        for profile in profiles:
            profile.snapshot_stats()
            whole.add(_Taken(profile.stats))  # type: ignore[arg-type] # it has what add looks for
        whole.dump_stats(file)


class _Taken:
    """What pstats takes for a profile; the profile itself would be disabled in a wrong thread."""

    def __init__(self, stats: object) -> None:
        self.stats = stats

    def create_stats(self) -> None:
        """It has been."""


if __name__ == "__main__":
    main(*sys.argv[1:])

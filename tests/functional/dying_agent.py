"""Carries out one command on libvirt; run as a program, stands still for ever in a given phase.

    python -m tests.functional.dying_agent URI FOLDER PHASE [TIMES USER KEYRING] < command.json

`FOLDER` holds the agent's journal and its guests' folders. It says PHASE when it has got there, or
has been told of it so many TIMES; USER and KEYRING are for Ceph.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from agent.calls import Calls
from agent.drivers.libvirt.driver import create
from agent.effects import Effects, Mode, Work
from agent.journal import Journal
from agent.ownership import Finder
from agent.phases import Phases
from agent.session import Session
from common import messages as m
from common.conf import Settings
from common.conf.libvirt import Libvirt
from common.conf.rbd import Rbd
from common.runtime import Runtime
from tests.steps import outcome
from tests.wait import wait_until


class Host:
    """What an agent is made of, as far as one command needs it."""

    def __init__(self, uri: str, folder: Path, rbd: Rbd = Rbd()) -> None:  # noqa: B008 - frozen
        self.runtime = Runtime("host")
        settings = Libvirt(
            connection_uri=uri, virt_type="qemu", instances_path=str(folder / "instances")
        )
        self.driver = create("host-1", Settings(libvirt=settings, rbd=rbd), self.runtime)
        self.driver.open(lambda _guest: None)
        self.journal = Journal(str(folder / "agent"), self.runtime)
        calls = Calls(self.runtime, 30.0, 10)
        finder = Finder(self.driver, "ours", calls)
        session = Session(self.runtime)
        self._effects = Effects(self.driver, finder, calls, self.journal, session, self.runtime)
        wait_until(lambda: not self.driver.health(), 30, "connected")

    def carry_out(self, command: m.Command, mode: Mode = Mode.FRESH) -> m.Result:
        work = Work(command=command, mode=mode)
        return outcome(self.runtime, self._effects.carry_out(work))

    def close(self) -> None:
        self.driver.close()
        self.journal.close()
        self.runtime.stop()


def main() -> None:
    uri, folder, last, *more = sys.argv[1:]
    rbd = Rbd(user=more[1], keyring=more[2]) if more else Rbd()
    host = Host(uri, Path(folder), rbd)
    begin, left = Phases.begin, int(more[0]) if more else 1

    def standing(phases: Phases, name: str) -> None:
        nonlocal left
        begin(phases, name)
        left -= name == last
        if not left:
            sys.stdout.write(f"{name}\n")
            sys.stdout.flush()
            threading.Event().wait()

    Phases.begin = standing  # type: ignore[method-assign]
    host.carry_out(m.decode(sys.stdin.read(), m.Command))


if __name__ == "__main__":
    main()

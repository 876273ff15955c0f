"""When a queued command has ended unstarted, the next of its instance does not get its turn."""

from __future__ import annotations

from typing import Any

from agent.commands import Commands
from agent.effects import Mode
from common import messages as m


def apply(swap: Any) -> None:
    def run(self: Commands, work: Any) -> None:
        command = work.command
        try:
            if work.mode is Mode.FRESH and not self._insist(self._journal.start, command.id):
                return
            with self._lock:
                self._step(command.id, m.Step.STARTED)
            result = self._carry_out(work)
            self._insist(self._journal.finish, result)
        finally:
            with self._lock:
                self._steps.pop(command.id, None)
                self._running.discard(command.instance)
                if not self._running:
                    self._idle.set()
        self._answers.wake()
        self._pump()

    swap(Commands, "_run", run)

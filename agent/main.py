"""muster-agent: the process around an Agent."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from types import FrameType

from common import conf
from common.errors import MusterError
from common.logs import setup
from common.runtime import end_now, end_within, make, prepare

PROG = "muster-agent"
STOP_S = 5.0
CLOSE_S = 1.0
POLL_S = 0.25


class _Signals:
    """Flags only: a handler that took a lock could meet its own thread holding it."""

    def __init__(self) -> None:
        self.stop = False
        self.reload = False
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGHUP, self._reload)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stop = True
        end_within()

    def _reload(self, _number: int, _frame: FrameType | None) -> None:
        self.reload = True


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM, or until the agent can not go on; returns the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(args)
    except MusterError as exc:
        sys.stderr.write(f"{PROG}: {exc}\n")
        return exc.exit_code


def _run(args: list[str]) -> int:
    settings = conf.load(PROG, args)
    # Before anything below imports sockets.
    prepare(settings.default.executor)
    setup(settings.default.log_level, settings.default.log_json)

    from agent.service import Agent
    from common.bus import rabbit

    runtime = make(settings.default.executor, PROG)
    signals = _Signals()
    bus = rabbit.connect(settings, runtime, "agent")
    agent = Agent(settings, bus, runtime)
    agent.start()
    while not signals.stop and agent.failure is None:
        if signals.reload:
            signals.reload = False
            _reload(args)
        runtime.sleep(POLL_S)
    agent.stop(STOP_S)
    # A broker that does not answer would hold up the end.
    runtime.spawn("close", bus.close).join(CLOSE_S)
    if agent.failure is not None:
        raise agent.failure
    end_now()


def _reload(args: list[str]) -> None:
    """What can change without a restart: how much is logged, and how."""
    try:
        settings = conf.load(PROG, args)
    except MusterError as exc:
        sys.stderr.write(f"{PROG}: the old settings stay: {exc}\n")
        return
    setup(settings.default.log_level, settings.default.log_json)


if __name__ == "__main__":
    sys.exit(main())

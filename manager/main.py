"""The muster-manager command."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence

from common import logs
from common.conf import Settings, load
from common.errors import BadConfig, MusterError
from common.runtime import THREADING, Runtime, end_now, end_within, prepare

LOG = logging.getLogger(__name__)
# How long a thread that only reckons may keep the others waiting, which wait for the database or
# the broker otherwise and hold what they have locked meanwhile. Python's own is five times that.
TURN_S = 0.001


def main(argv: Sequence[str] | None = None) -> int:
    """Run a manager in the foreground until SIGTERM; SIGHUP reads the log level again."""
    try:
        settings = load("muster-manager", argv)
        if settings.default.transport_url.startswith("memory:"):
            raise BadConfig(
                "[DEFAULT] transport_url: memory:// reaches nobody outside of its own process",
                "use rabbit://...; the embedded fleet is `make demo`",
            )
        prepare(THREADING)
        sys.setswitchinterval(TURN_S)
        logs.setup(settings.default.log_level, settings.default.log_json)
        return _run(settings, argv)
    except MusterError as exc:
        sys.stderr.write(f"muster-manager: {exc}\n")
        return exc.exit_code


def _run(settings: Settings, argv: Sequence[str] | None) -> int:
    # Late, so that a wrong option is told before half a second of imports.
    from common.bus import notifier, rabbit
    from manager.service import Manager

    runtime = Runtime("manager")
    ended = runtime.event()

    def reload(*_: object) -> None:
        try:
            fresh = load("muster-manager", argv)
            logging.getLogger().setLevel(fresh.default.log_level)
        except MusterError as exc:
            LOG.warning("SIGHUP: kept the old configuration: %s", exc)

    def end(*_: object) -> None:
        runtime.stopping.set()
        ended.set()
        end_within()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGHUP, reload)
    bus = rabbit.connect(settings, runtime, "manager")
    manager = Manager(settings, bus, runtime, notifier=notifier.connect(settings))
    manager.start()
    while not ended.wait(1.0):
        pass
    manager.stop()
    end_now()

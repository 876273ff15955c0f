"""The agent of one host: wiring and lifetime only."""

from __future__ import annotations

import contextlib
import logging
from importlib import metadata
from typing import cast

from agent.answers import Answers, Identity
from agent.calls import Calls
from agent.commands import Commands
from agent.door import Door
from agent.drivers.base import Driver, DriverFactory
from agent.ears import Ears
from agent.effects import Effects
from agent.hello import Greeter
from agent.inventory import Inventory
from agent.journal import Journal
from agent.ownership import Finder
from agent.session import Session
from common import messages
from common.bus.base import Bus, Handle, agent_at
from common.conf import Settings
from common.errors import BadConfig, BrokerUnavailable, MusterError
from common.runtime import Runtime, Stopped

LOG = logging.getLogger(__name__)

DRIVERS = "muster.drivers"
SERVE_PAUSE_S = 1.0


def load_driver(settings: Settings, runtime: Runtime) -> Driver:
    """The driver named by [agent] driver; BadConfig when there is none or it can't be loaded."""
    name = settings.agent.driver
    known = {point.name: point for point in metadata.entry_points(group=DRIVERS)}
    if name not in known:
        raise BadConfig(
            f"[agent] driver: {name!r} is unknown", f"use one of {', '.join(sorted(known))}"
        )
    try:
        factory = cast(DriverFactory, known[name].load())
    except ImportError as exc:
        raise BadConfig(
            f"[agent] driver: {name} can not be loaded: {exc}", f"install musterd[{name}]"
        ) from exc
    return factory(settings.default.host, settings, runtime)


class Agent:
    """One agent. It owns its runtime: `stop` and `kill` end it, and the agent is not started again.

    `driver` and `journal` are given by embedders; otherwise they are those of the settings.
    """

    def __init__(
        self,
        settings: Settings,
        bus: Bus,
        runtime: Runtime,
        driver: Driver | None = None,
        journal: Journal | None = None,
    ) -> None:
        if not settings.agent.state_dir:
            raise BadConfig("[agent] state_dir is not set", "name a folder for the journal")
        conf, interval_s = settings.agent, settings.default.report_interval
        identity = Identity(
            fleet=settings.default.fleet_id,
            host=settings.default.host,
            agent_run=runtime.new_id(),
        )
        self.host = identity.host
        self.agent_run = identity.agent_run
        self.session = Session(runtime)
        self._runtime = runtime
        self._bus = bus
        self._driver = driver if driver is not None else load_driver(settings, runtime)
        messages.prepare()  # the driver's structs as well, and before there are threads
        self._handle: Handle | None = None
        self._journal = journal if journal is not None else Journal(conf.state_dir, runtime)
        calls = Calls(runtime, conf.call_timeout, 2 * conf.max_parallel + 2)
        finder = Finder(self._driver, identity.fleet, calls)
        effects = Effects(self._driver, finder, calls, self._journal, self.session, runtime)
        self._answers = Answers(
            runtime,
            bus,
            self._journal,
            self.session,
            identity,
            interval_s,
            told=lambda instance, look: self._inventory.told(instance, look),
        )
        self._commands = Commands(
            runtime,
            self._journal,
            self.session,
            self._answers,
            effects.carry_out,
            conf.max_parallel,
        )
        self._inventory = Inventory(
            runtime,
            bus,
            self._driver,
            self.session,
            identity,
            interval_s=interval_s,
            full_s=conf.full_report_interval,
            call_timeout_s=conf.call_timeout,
            learn=finder.learn,
            receipts=self._commands.receipts,
            dropped=lambda: self._door.dropped,
        )
        self._greeter = Greeter(
            runtime,
            bus,
            self._journal,
            self.session,
            identity,
            driver=self._driver.name,
            interval_s=interval_s,
            commands=self._commands,
            answers=self._answers,
            inventory=self._inventory,
            welcomed=lambda canary_interval_s: self._ears.welcomed(canary_interval_s),
        )
        self._ears = Ears(runtime, self.session, self._serve_again, self._greeter.wanted)
        self._door = Door(
            runtime,
            identity,
            self._journal,
            self.session,
            self._commands,
            self._answers,
            report=self._inventory.want_full,
            hello=self._greeter.wanted,
            heard=self._ears.heard,
        )

    @property
    def failure(self) -> MusterError | None:
        """Why the agent can not go on and is to be ended and started again; None while it can."""
        return self._ears.failure

    def start(self) -> None:
        """Connect and begin to report; returns at once, whatever is away."""
        LOG.info(
            "agent of host %s, run %s, driver %s", self.host, self.agent_run, self._driver.name
        )
        self._driver.open(self._inventory.changed)
        self._runtime.spawn("heartbeats", self._inventory.loop)
        self._runtime.spawn("results", self._commands.loop)
        self._runtime.spawn("answers", self._answers.loop)
        self._runtime.spawn("hello", self._greet)
        self._runtime.spawn("ears", self._ears.loop)

    def stop(self, timeout_s: float = 5.0) -> None:
        """Take nothing new, let what runs end if it does in time, and leave the rest journalled."""
        deadline = self._runtime.monotonic() + timeout_s
        if self._handle is not None:
            # Beside the rest: a broker that does not answer makes it wait.
            self._runtime.spawn("end", self._handle.stop)
        if not self._commands.drain(timeout_s / 2):
            LOG.warning("commands are left in the middle; the next agent finds out about them")
        self._runtime.spawn("flush", self._flush).join(timeout_s / 4)
        # Before the driver is closed: what fails from now on may have failed by that alone.
        self._runtime.stopping.set()
        self._runtime.spawn("close", self._driver.close)
        self._inventory.wake()
        late = self._runtime.stop(max(0.0, deadline - self._runtime.monotonic()))
        if late:
            LOG.warning("still running at the end: %s", ", ".join(late))
        self._journal.close()

    def _flush(self) -> None:
        with contextlib.suppress(MusterError):
            self._answers.flush()

    def kill(self) -> None:
        """End as by kill -9: nothing is finished, told or tidied."""
        self._runtime.kill()
        self._journal.close()
        self._inventory.wake()

    def _greet(self) -> None:
        self._serve()
        self._greeter.loop(self._door)

    def _serve(self) -> None:
        """Begin to hear casts, however long the broker is away."""
        told = False
        while True:
            try:
                self._handle = self._bus.serve(agent_at(self.host), self._door)
                return
            except BrokerUnavailable as exc:
                if not told:
                    LOG.warning("no casts can be heard, tried again until they can: %s", exc)
                told = True
                self._runtime.sleep(SERVE_PAUSE_S)
                if self._runtime.stopping.is_set():
                    raise Stopped from None

    def _serve_again(self) -> None:
        if self._handle is not None:
            self._handle.stop()
        self._serve()

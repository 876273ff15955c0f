"""Tells the managers receipts at once and results again and again until they are confirmed."""

from __future__ import annotations

import logging

import msgspec

from agent.journal import Journal
from agent.session import Session
from common import messages as m
from common.bus.base import Bus
from common.errors import MusterError
from common.runtime import Runtime

LOG = logging.getLogger(__name__)

BATCH = 100
PAUSE_S = 1.0


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who is speaking; `agent_run` is new at each start of the agent."""

    fleet: str
    host: str
    agent_run: str


class Answers:
    """One loop that publishes what is new as soon as it can, and all of it each interval."""

    def __init__(
        self,
        runtime: Runtime,
        bus: Bus,
        journal: Journal,
        session: Session,
        identity: Identity,
        interval_s: float,
    ) -> None:
        self._runtime = runtime
        self._bus = bus
        self._journal = journal
        self._session = session
        self._identity = identity
        self._interval_s = interval_s
        self._bell = runtime.event()
        self._lock = runtime.lock()
        self._receipts: list[tuple[str, m.Step, float]] = []
        self._told = 0
        self._away = False

    def receipt(self, command: str, step: m.Step) -> None:
        """Tell of a step. It is not kept: heartbeats repeat it while the command is unfinished."""
        with self._lock:
            self._receipts.append((command, step, self._runtime.monotonic()))
        self._bell.set()

    def wake(self) -> None:
        """The journal has a new answer."""
        self._bell.set()

    def loop(self) -> None:
        """Runs until the agent stops."""
        again = self._runtime.monotonic()
        while not self._runtime.stopping.is_set():
            now = self._runtime.monotonic()
            if now >= again:
                self._told, again = 0, now + self._interval_s
            self._bell.clear()
            try:
                self.flush()
                self._away = False
            except MusterError as exc:
                if not self._away:
                    LOG.warning("answers are kept until they can be told: %s", exc)
                self._away = True
                self._runtime.sleep(PAUSE_S)
                continue
            self._runtime.wait(self._bell, again - self._runtime.monotonic())

    def flush(self) -> None:
        """Publish what has not been told; raises the bus's error and tells it all next time."""
        while True:
            with self._lock:
                receipts, self._receipts = self._receipts, []
            pending = self._journal.pending(self._told, BATCH)
            if not receipts and not pending:
                return
            now = self._runtime.monotonic()
            answers = m.Answers(
                fleet=self._identity.fleet,
                host=self._identity.host,
                session=self._session.current,
                agent_run=self._identity.agent_run,
                receipts=tuple(
                    m.Receipt(command=c, step=step, age_s=max(0.0, now - at))
                    for c, step, at in receipts
                ),
                results=pending.results,
                voids=pending.voids,
                refusals=pending.refusals,
            )
            self._bus.publish(f"result.{self._identity.host}", m.encode(answers))
            self._told = pending.last

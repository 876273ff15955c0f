"""Tells the managers results at once, again and again until they are confirmed, and receipts.

Each message costs the managers a transaction, so a receipt waits a moment for its result: what a
quick command has to tell goes out in one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from agent.journal import Journal, Pending
from agent.session import Session
from common import messages as m
from common.bus.base import Bus
from common.errors import MusterError
from common.runtime import Runtime

LOG = logging.getLogger(__name__)

BATCH = 100
PAUSE_S = 1.0
# How long a receipt waits for its result; well below the managers' resend_after.
RECEIPT_S = 0.25
# How long a result waits for that of another command which is running.
GATHER_S = 0.02
NEVER = float("inf")


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who is speaking; `agent_run` is new at each start of the agent."""

    fleet: str
    host: str
    agent_run: str


class Answers:
    """One loop that publishes what is new in good time, and all of it each interval.

    `told` hears of each look that a result has carried to the managers, with its instance.
    """

    def __init__(
        self,
        runtime: Runtime,
        bus: Bus,
        journal: Journal,
        session: Session,
        identity: Identity,
        interval_s: float,
        told: Callable[[str, m.Look], None],
    ) -> None:
        self._runtime = runtime
        self._bus = bus
        self._journal = journal
        self._session = session
        self._identity = identity
        self._interval_s = interval_s
        self._tell_of = told
        self._bell = runtime.event()
        self._lock = runtime.lock()
        self._receipts: dict[tuple[str, m.Step], float] = {}
        self._due = NEVER
        self._told = 0
        self._away = False

    def receipt(self, command: str, step: m.Step, at: float) -> None:
        """Tell soon of a step taken `at` (monotonic).

        It is not kept: heartbeats repeat it while the command is unfinished.
        """
        with self._lock:
            self._receipts.setdefault((command, step), at)
        self._publish_within(RECEIPT_S)

    def wake(self, *, more: bool = False) -> None:
        """The journal has a new answer; `more` when another is to be expected any moment."""
        self._publish_within(GATHER_S if more else 0.0)

    def loop(self) -> None:
        """Runs until the agent stops."""
        again = self._runtime.monotonic()
        while not self._runtime.stopping.is_set():
            now = self._runtime.monotonic()
            if now >= again:
                self._told, again = 0, now + self._interval_s
                self._publish_within(0.0)
            self._bell.clear()
            if self._due <= now:
                try:
                    if self._told == 0:
                        self._journal.tidy()
                    self.flush()
                    self._away = False
                except MusterError as exc:
                    if not self._away:
                        LOG.warning("answers are kept until they can be told: %s", exc)
                    self._away = True
                    self._runtime.sleep(PAUSE_S)
                    self._publish_within(0.0)
                continue
            self._runtime.wait(self._bell, min(again, self._due) - now)

    def flush(self) -> None:
        """Publish what has not been told; raises the bus's error and tells it all next time."""
        more = True
        while more:
            with self._lock:
                self._due = NEVER
            # Receipts are read after the journal: those of a result that is in it are there.
            pending = self._journal.pending(self._told, BATCH)
            with self._lock:
                receipts, self._receipts = self._receipts, {}
            if not receipts and not pending:
                return
            try:
                self._bus.publish(
                    f"result.{self._identity.host}", m.encode(self._message(receipts, pending))
                )
            except MusterError:
                with self._lock:
                    self._receipts = receipts | self._receipts
                raise
            self._told, more = pending.last, len(pending) == BATCH
            for result in pending.results:
                if result.look is not None:
                    self._tell_of(result.instance, result.look)

    # inside

    def _message(self, receipts: dict[tuple[str, m.Step], float], pending: Pending) -> m.Answers:
        now = self._runtime.monotonic()
        return m.Answers(
            fleet=self._identity.fleet,
            host=self._identity.host,
            session=self._session.current,
            agent_run=self._identity.agent_run,
            receipts=tuple(
                m.Receipt(command=command, step=step, age_s=max(0.0, now - at))
                for (command, step), at in receipts.items()
            ),
            results=pending.results,
            voids=pending.voids,
            refusals=pending.refusals,
        )

    def _publish_within(self, seconds: float) -> None:
        with self._lock:
            due = self._runtime.monotonic() + seconds
            sooner = due < self._due
            self._due = min(self._due, due)
        if sooner:
            self._bell.set()

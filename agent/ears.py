"""Notices that managers are not heard any more, connects again, and says when that does not help.

A consumer can be lost without an error: the host then speaks and is deaf. Managers cast a canary to
each host with a session every so often, and the welcome tells how often, so silence says something.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from agent.session import Session
from common.errors import MusterError
from common.runtime import Runtime

LOG = logging.getLogger(__name__)

# As long as this many canary intervals, and at least so many seconds, nothing may be heard.
INTERVALS = 2.0
LEAST_S = 5.0
TRIES = 2
IDLE_S = 3600.0


class Deaf(MusterError):
    """Nothing that managers cast arrives, although they answer what the agent asks them."""

    code = "DEAF"


class Ears:
    """Each silence ends with a new consumer and a hello.

    That hello is the proof that managers live: only silence between two that were answered at
    once counts, so that an outage of theirs never ends an agent. After TRIES that were in vain,
    `failure` is set; whoever runs the agent ends it then.
    """

    def __init__(
        self,
        runtime: Runtime,
        session: Session,
        reconnect: Callable[[], None],
        greet: Callable[[str], None],
    ) -> None:
        self._runtime = runtime
        self._session = session
        self._reconnect = reconnect
        self._greet = greet
        self._bell = runtime.event()
        self._interval_s = 0.0
        self._since = self._asked_at = runtime.monotonic()
        self._silences = 0
        self.failure: Deaf | None = None

    def heard(self) -> None:
        """Something was cast to us, whatever it is."""
        self._since = self._runtime.monotonic()
        self._silences = 0

    def welcomed(self, canary_interval_s: float) -> None:
        """Managers have answered a hello; 0: they send no canaries, and silence says nothing."""
        now = self._runtime.monotonic()
        if now - self._asked_at > LEAST_S:
            self._silences = 0
        elif self._silences > TRIES:
            self.failure = Deaf(
                f"nothing has been heard from managers for {now - self._since:.0f} s and after"
                f" {TRIES} new connections, although they answer",
                "it is to be started again; look at this host's queue on the broker",
            )
            self._silences = 0
        self._interval_s, self._since = canary_interval_s, now
        self._bell.set()

    def loop(self) -> None:
        """Runs until the agent stops."""
        while not self._runtime.stopping.is_set():
            self._bell.clear()
            due = self._due()
            if self._runtime.wait(self._bell, due - self._runtime.monotonic()):
                continue
            now = self._runtime.monotonic()
            if now > due + LEAST_S:
                self._since = now  # it was us who stood still
            elif now >= self._due() and not self._runtime.stopping.is_set():
                self._listen_again(now)

    # inside

    def _due(self) -> float:
        """When the silence has lasted too long."""
        if not self._interval_s or self._session.current is None:
            return self._runtime.monotonic() + IDLE_S
        return self._since + max(INTERVALS * self._interval_s, LEAST_S)

    def _listen_again(self, now: float) -> None:
        why = f"nothing was cast to it for {now - self._since:.0f} s"
        self._silences += 1
        if self._silences <= TRIES:
            LOG.warning("%s: listening on a new connection", why)
            self._reconnect()
        self._asked_at = self._runtime.monotonic()
        self._greet(why)

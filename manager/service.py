"""A manager: wiring and lifetime only. Any number run side by side, all alike."""

from __future__ import annotations

import datetime as dt
import logging
from typing import Any

from common.bus.base import HEARTBEATS, RESULTS, Address, Bus, Handle
from common.bus.notifier import Notifier
from common.conf import Settings
from common.errors import BrokerUnavailable, Conflict, DatabaseUnavailable, MusterError
from common.messages import MANAGER_TOPIC, prepare, within_limit
from common.runtime import Runtime
from manager import ticks
from manager.api.endpoint import Api
from manager.flows import liveness, publish
from manager.intake.hello import hello
from manager.intake.reports import Intake
from manager.store import migrate
from manager.store.engine import Store, Tx, wait_ready

LOG = logging.getLogger(__name__)
TIDY_S = 300.0
NOTIFY_S = 60.0  # at the latest; what is to be told wakes it
CLOSE_S = 1.0
WRITE_BEATS = 1.5  # between two notes of a manager that goes on hearing; far less than DEAF_AFTER


class Manager:
    """One manager process: three doors on one store.

    `store` is given by embedders, ready for use; otherwise it is the one that the settings name.
    `notifier`: who is told of deletes, if anybody is.
    """

    def __init__(
        self,
        settings: Settings,
        bus: Bus,
        runtime: Runtime,
        store: Store | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        prepare()
        self.settings, self.bus, self.runtime = settings, bus, runtime
        self.id = runtime.new_id()
        self._store_given = store is not None
        self.store = store if store is not None else Store(settings.database, runtime)
        self.store.after_commit = self._after_commit
        self._hearing = _Hearing(self)
        self._api = Api(self.store, settings)
        self._publisher = publish.Publisher(self.store, settings, bus)
        self._publish_now = runtime.event()
        self._notifier, self._notify_now = notifier, runtime.event()
        self._handles: list[Handle] = []
        self.ready = runtime.event()

    def start(self) -> None:
        """Wait for the database, then open the doors; returns when they are open."""
        if not self._store_given:
            if not wait_ready(self.store, self.runtime.stopping.is_set):
                return
            migrate.at_start(self.store, self.settings.database)
        intake = Intake(self.store, self.settings)
        stall_s = max(2.0, self.settings.default.report_interval)
        beats = f"beats.{self.id}"
        self._handles = [
            self.bus.consume(
                {HEARTBEATS: "heartbeat.*", beats: f"beat.{self.id}"},
                self._hearing.listening(intake),
                self._hearing.gap,
                stall_s,
            ),
            self.bus.consume({RESULTS: "result.*"}, intake, self._hearing.gap, stall_s),
        ]
        if not self._serve():
            return
        self.runtime.every("beat", liveness.beat_s(self.settings), self._hearing.beat)
        self.runtime.every(
            "publish",
            self.settings.manager.tick_interval,
            self._publisher.turn,
            wake=self._publish_now,
        )
        self.runtime.every(
            "tick",
            self.settings.manager.tick_interval,
            lambda: ticks.tick(self.store, self.settings),
        )
        if self._notifier is not None:
            self.runtime.every("notify", NOTIFY_S, self._notifier.turn, wake=self._notify_now)
        self.runtime.every("tidy", TIDY_S, lambda: ticks.tidy(self.store, self.settings))
        self.ready.set()
        LOG.info("manager %s of fleet %s is up", self.id, self.settings.default.fleet_id)

    def _serve(self) -> bool:
        """Answer RPCs as soon as the broker takes us on; False when stopped before that."""
        pause_s = 0.5
        while not self.runtime.stopping.is_set():
            try:
                at = Address(MANAGER_TOPIC, self.id)
                self._handles.append(self.bus.serve(at, self._rpc))
                return True
            except BrokerUnavailable as exc:
                LOG.warning("%s; again in %.1f s", exc, pause_s)
                self.runtime.sleep(pause_s)
                pause_s = min(10.0, pause_s * 2)
        return False

    def stop(self, timeout_s: float = 5.0) -> None:
        """Take nothing new, finish what is in hand, give back the rest by leaving it in place."""
        deadline = self.runtime.monotonic() + timeout_s
        # Side by side: a broker that does not answer makes each of them wait.
        for ending in [self.runtime.spawn("end", handle.stop) for handle in self._handles]:
            ending.join(max(0.0, deadline - self.runtime.monotonic()))
        late = self.runtime.stop(max(0.0, deadline - self.runtime.monotonic()))
        if late:
            LOG.warning("left behind at stop: %s", ", ".join(late))
        # What was committed in the last moment; others would find it only after `resend_after`.
        self.runtime.spawn("farewell", self._publisher.say).join(CLOSE_S)
        if self._notifier is not None:
            self.runtime.spawn("last notices", self._notifier.turn).join(CLOSE_S)
        self.runtime.spawn("close", self.bus.close).join(CLOSE_S)
        self.store.close()
        LOG.info("manager %s has stopped", self.id)

    def _rpc(self, method: str, kwargs: dict[str, Any]) -> Any:
        try:
            within_limit(method, kwargs)
            if method == "hello":
                return hello(self.store, self.settings, kwargs)
            return self._api(method, kwargs)
        except Conflict as exc:
            raise MusterError("too many managers changed this at once", "try again") from exc

    def _after_commit(self, tx: Tx) -> None:
        if self._publisher.take(tx):
            self._publish_now.set()
        if self._notifier is not None and self._notifier.take(tx.notices):
            self._notify_now.set()


class _Hearing:
    """Does this manager hear? It sends itself a beat through the same exchange and queue path.

    A gap in what it hears - a lost connection, a loop that stood still, a database whose clock
    jumped or that has gone back to an older state - starts its record anew: what it did not hear
    proves nothing about anyone else.
    """

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._runtime = manager.runtime
        self._since: float | None = None
        self._last: float | None = None
        self._clock_offset_s: float | None = None
        self._written: dt.datetime | None = None
        self._written_since: float | None = None
        self._write_at = 0.0
        self._gap = "it has just started"
        self._deaf_s = liveness.deaf_after_s(manager.settings)
        self._started_at = self._runtime.now()

    def listening(self, intake: Intake) -> Any:
        """The intake's handler, with our own beat taken out."""

        def handle(key: str, body: bytes, sender: str | None) -> None:
            if key.startswith("beat."):
                self._heard()
            else:
                intake(key, body, sender)

        return handle

    def gap(self, reason: str) -> None:
        """Reports may have been missed."""
        if self._since is not None:
            LOG.warning("not hearing: %s", reason)
        self._since, self._last, self._gap = None, None, reason

    def beat(self) -> None:
        """Send our beat; without an echo for too long, we are deaf."""
        now = self._runtime.monotonic()
        if self._last is not None and now - self._last > self._deaf_s:
            self.gap(f"no echo of its own beat for {now - self._last:.1f} s")
        self._manager.bus.publish(f"beat.{self._manager.id}", b"{}", ttl_s=self._deaf_s)

    def _heard(self) -> None:
        now = self._runtime.monotonic()
        if self._last is not None and now - self._last > self._deaf_s:
            self.gap(f"its own beat came {now - self._last:.1f} s after the one before")
        self._since = now if self._since is None else self._since
        self._last = now
        if self._since == self._written_since and now < self._write_at:
            return  # what is written says so already, for a while
        try:
            self._written = self._manager.store.run(self._write, now)
            self._written_since = self._since
            self._write_at = now + WRITE_BEATS * liveness.beat_s(self._manager.settings)
        except DatabaseUnavailable as exc:
            self.gap(f"{exc}")

    def _write(self, tx: Tx, now: float) -> dt.datetime:
        if self._written is not None:
            until = liveness.heard_until(tx, self._manager.id)
            if until is None or until < self._written:
                # Its hosts were last heard in another time, and that says nothing of this one.
                self.gap("the database has gone back to an older state")
                self._since = self._last = now
        offset_s = tx.now.timestamp() - self._runtime.monotonic()
        if self._clock_offset_s is not None and abs(offset_s - self._clock_offset_s) > 2.0:
            self.gap(f"the database's clock jumped by {offset_s - self._clock_offset_s:+.1f} s")
            self._since = self._last = now
        self._clock_offset_s = offset_s
        since = self._since if self._since is not None else now
        liveness.heard_own_beat(
            tx,
            self._manager.id,
            self._manager.settings.default.host,
            self._started_at,
            now - since,
            self._gap,
        )
        return tx.now

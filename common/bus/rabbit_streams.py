"""Report streams on RabbitMQ through kombu: publishing and consuming."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from kombu.entity import Exchange, Queue
from kombu.messaging import Consumer as KombuConsumer

from common.bus.base import RESULTS, GatheringHandler, Handle, Report, StreamHandler
from common.bus.rabbit_link import (
    BROKER_ERRORS,
    HEARTBEAT_S,
    Link,
    describe,
    drain,
)
from common.bus.rabbit_publisher import Publisher, discard, release, reports_exchange
from common.errors import BadMessage
from common.messages import DEAD_EXCHANGE, REPORTS_EXCHANGE

LOG = logging.getLogger(__name__)

DEAD = DEAD_EXCHANGE
DEAD_LENGTH = 10_000
STREAM_LENGTH = 20_000
PREFETCH = 200
GATHER = 50  # reports that are offered to a handler at once, at the most
GATHER_S = 0.0005  # for the next that has come already
RESULT_PREFIX = "result."
RETRY_MIN_S, RETRY_MAX_S = 0.2, 5.0


class Streams:
    """Both directions of the report streams of one process."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._publisher = Publisher(link)
        self._consumers: list[Consumer] = []

    def publish(self, key: str, body: bytes, ttl_s: float | None) -> None:
        result = key.startswith(RESULT_PREFIX)
        self._publisher.put(
            REPORTS_EXCHANGE, key, body, ttl_s=ttl_s, confirmed=result, persistent=result
        )

    def consume(
        self,
        streams: Mapping[str, str],
        handler: StreamHandler,
        on_gap: Callable[[str], None],
        stall_s: float,
    ) -> Handle:
        consumer = Consumer(self._link, self._publisher, streams, handler, on_gap, stall_s)
        self._consumers.append(consumer)
        return consumer

    def close(self) -> None:
        for consumer in self._consumers:
            consumer.stop()
        self._publisher.close()


class _Stalled(Exception):
    """The loop stood still: what was prefetched is too old to be believed."""


class _Held:
    """A report whose handler failed, kept unacknowledged until its next turn."""

    def __init__(self, message: Any, now: float) -> None:
        self.message = message
        self.since = now
        self.tries = 0
        self.due = now

    def later(self, now: float, limit_s: float) -> None:
        self.tries += 1
        self.due = now + min(RETRY_MIN_S * 2 ** (self.tries - 1), RETRY_MAX_S, limit_s)


class Consumer:
    """One connection and one loop for a set of queues."""

    def __init__(
        self,
        link: Link,
        publisher: Publisher,
        streams: Mapping[str, str],
        handler: StreamHandler,
        on_gap: Callable[[str], None],
        stall_s: float,
    ) -> None:
        self._link = link
        self._runtime = link.runtime
        self._publisher = publisher
        self._streams = dict(streams)
        self._handler = handler
        self._on_gap = on_gap
        self._stall_s = stall_s
        self._step_s = min(1.0, stall_s / 4)
        self._stopped = link.runtime.event()
        self._held: list[_Held] = []
        self._gathered: list[Any] = []
        self._seen = 0.0
        self._taken = 0.0
        self._pulse = 0.0
        self._away_since: float | None = None
        self._task = link.runtime.spawn(f"consume-{'+'.join(streams)}", self._run)

    def stop(self) -> None:
        self._stopped.set()
        self._task.join(self._link.farewell_s())

    # one connection after the other

    def _over(self) -> bool:
        return self._stopped.is_set() or self._runtime.stopping.is_set()

    def _run(self) -> None:
        pause = RETRY_MIN_S
        while not self._over():
            connection = None
            try:
                connection = self._link.open()
                consuming = self._begin(connection)
                pause = RETRY_MIN_S
                while not self._over():
                    self._step(connection)
                consuming.cancel()
                release(connection)
                return
            except _Stalled as exc:
                LOG.warning("reports: %s; what was prefetched is dropped", exc)
                self._gap(str(exc))
            except BROKER_ERRORS as exc:
                self._link.outage.lost(exc)
                self._gap(f"the broker is away: {describe(exc)}")
            finally:
                self._held.clear()
                self._gathered.clear()
            discard(connection)
            self._runtime.wait(self._stopped, self._runtime.jitter(pause / 2, pause))
            pause = min(pause * 2, RETRY_MAX_S)

    def _begin(self, connection: Any) -> Any:
        channel = connection.channel()
        declare_dead(channel)
        queues = [queue_for(name, pattern) for name, pattern in self._streams.items()]
        consuming = KombuConsumer(
            channel, queues, on_message=self._on_message, prefetch_count=PREFETCH
        )
        # Before it subscribes: the first reports can come with the answer to that, and must not be
        # measured against the time before this connection.
        now = self._runtime.monotonic()
        self._seen = self._pulse = self._taken = now
        consuming.consume()
        self._link.outage.back()
        if self._away_since is not None:
            lasted, self._away_since = now - self._away_since, None
            self._gap(f"consuming again after {lasted:.1f} s")
            self._away_since = None
        return consuming

    def _gap(self, reason: str) -> None:
        if self._away_since is None:
            self._away_since = self._runtime.monotonic()
        try:
            self._on_gap(reason)
        except Exception:
            LOG.exception("reports: noting a gap (%s)", reason)

    # one message after the other, or those that have come together

    def _step(self, connection: Any) -> None:
        drain(connection, self._step_s if not self._held else min(self._step_s, RETRY_MIN_S))
        if self._gathered:
            self._take_gathered(connection)
        now = self._alive()
        if now - self._pulse > HEARTBEAT_S / 6:
            self._pulse = now
            connection.heartbeat_check()
        if self._held:
            self._retry(now)

    def _alive(self) -> float:
        """The time, if the loop has not stood still since it was last here."""
        now = self._runtime.monotonic()
        still = now - self._seen
        self._seen = now
        if still > self._stall_s:
            raise _Stalled(f"the consumer stood still for {still:.1f} s")
        return now

    def _on_message(self, message: Any) -> None:
        now = self._alive()
        if self._over():
            return
        if isinstance(self._handler, GatheringHandler):
            self._gathered.append(message)
        else:
            self._take_or_hold(message, now)

    def _take_gathered(self, connection: Any) -> None:
        """What has come already, in one go; one after the other if that does not work."""
        before = 0
        while before < len(self._gathered) < GATHER:
            before = len(self._gathered)
            drain(connection, GATHER_S)
        messages, self._gathered = self._gathered, []
        if isinstance(self._handler, GatheringHandler) and len(messages) > 1:
            try:
                self._handler.together([_read(message) for message in messages])
            except Exception as exc:  # noqa: BLE001 - whatever it is belongs to one of them
                LOG.debug("%d reports are taken one by one: %s", len(messages), describe(exc))
            else:
                self._taken = self._runtime.monotonic()
                for message in messages:
                    message.ack()
                return
        for message in messages:
            if self._over():
                return
            self._take_or_hold(message, self._alive())

    def _take_or_hold(self, message: Any, now: float) -> None:
        if not self._take(message):
            held = _Held(message, now)
            held.later(now, self._stall_s / 4)
            self._held.append(held)

    def _retry(self, now: float) -> None:
        for held in [h for h in self._held if h.due <= now]:
            if now - held.since > self._stall_s:
                # The broker knows how old it is, and drops it if it has outlived its time.
                self._held.remove(held)
                held.message.requeue()
                if self._taken < held.since:
                    self._gap(f"no report could be taken for {now - held.since:.1f} s")
            elif self._take(held.message):
                self._held.remove(held)
            else:
                held.later(self._runtime.monotonic(), self._stall_s / 4)
            if self._over():
                return
            now = self._alive()

    def _take(self, message: Any) -> bool:
        """Handle one report; False when it has to come again."""
        key, body, sender = _read(message)
        try:
            try:
                self._handler(key, body, sender)
            except BadMessage as exc:
                self._bury(key, body, sender, exc)
        except Exception as exc:
            if not self._held:
                LOG.warning("%s: not taken, comes again: %s", key, describe(exc))
                LOG.debug("%s", key, exc_info=True)
            return False
        self._taken = self._runtime.monotonic()
        message.ack()
        return True

    def _bury(self, key: str, body: bytes, sender: str | None, reason: BadMessage) -> None:
        LOG.warning("dead letter from %s: %s", key, reason)
        self._publisher.put(
            DEAD,
            key,
            body,
            confirmed=True,
            persistent=True,
            headers={
                "x-muster-reason": str(reason),
                "x-muster-key": key,
                "x-muster-user": sender or "",
            },
        )


def _read(message: Any) -> Report:
    body = message.body if isinstance(message.body, bytes) else message.body.encode()
    return message.delivery_info["routing_key"], body, message.properties.get("user_id")


def queue_for(name: str, pattern: str) -> Any:
    """The queue of a stream; a name with a '.' is private to its consumer.

    `*` of a pattern stands for the rest of the key: host names contain dots, and each is a word
    of its own to AMQP.
    """
    private = "." in name
    results = name == RESULTS
    bounds = {} if results else {"x-max-length": STREAM_LENGTH, "x-overflow": "drop-head"}
    return Queue(
        f"muster.{name}",
        exchange=reports_exchange(),
        routing_key=pattern.replace("*", "#"),
        durable=not private,
        exclusive=private,
        auto_delete=private,
        queue_arguments=bounds,
    )


def declare_dead(channel: Any) -> None:
    """Where reports go that nobody can read."""
    exchange = Exchange(DEAD, type="fanout", durable=True)
    Queue(
        DEAD,
        exchange=exchange,
        durable=True,
        queue_arguments={"x-max-length": DEAD_LENGTH, "x-overflow": "drop-head"},
    )(channel).declare()

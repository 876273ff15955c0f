"""An end to oslo.messaging's patience: its connections, bounded in time, and quiet."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from oslo_messaging._drivers import common as oslo_common
from oslo_messaging._drivers import impl_rabbit

from common.bus.rabbit_link import BROKER_ERRORS, PATIENCE_S, Outage, drain, read_ahead
from common.messages import AGENT_TOPIC, DEAD_EXCHANGE, MANAGER_TOPIC

POLL_S = 1.0
LISTEN_S = 5.0
REFUSED_S = 1.0
# What oslo says of an outage that Outage tells of, with its reason.
TOLD = frozenset(
    {
        "Failed to process incoming message, retrying..",
        "Unexpected exception occurred %d time(s)... retrying.",
    }
)


class _Deadline(threading.local):
    """When the call or cast of this thread must have left; None outside of one."""

    at: float | None = None

    def left(self) -> float:
        if self.at is None:
            return PATIENCE_S
        return max(0.05, min(PATIENCE_S, self.at - time.monotonic()))


_DEADLINE = _Deadline()


@contextmanager
def within(timeout_s: float) -> Iterator[None]:
    """What this thread sends in the block must have left after `timeout_s`."""
    _DEADLINE.at = time.monotonic() + timeout_s
    try:
        yield
    finally:
        _DEADLINE.at = None


class BoundedConnection(impl_rabbit.Connection):  # type: ignore[misc] # oslo.messaging has no types
    """oslo.messaging's connection, which by itself tries for ever, also inside a cast.

    Sending, and the first step of listening, get one try, so that the caller learns of an outage;
    only a connection that has begun to consume goes on trying.
    """

    def __init__(
        self, outage: Outage, conf: Any, url: Any, purpose: str, retry: int | None = None
    ) -> None:
        self._outage = outage
        self._consuming = self._broken = False
        super().__init__(conf, url, purpose, retry=len(url.hosts) - 1 if retry is None else retry)
        # An idle server looks this often whether it shall stop.
        self._poll_timeout = POLL_S

    def declare_consumer(self, consumer: Any) -> Any:
        # What is no JSON is rejected before it is acknowledged: keep it where people can look.
        if consumer.queue_name.startswith((MANAGER_TOPIC, AGENT_TOPIC)):
            consumer.queue_arguments["x-dead-letter-exchange"] = DEAD_EXCHANGE
        return super().declare_consumer(consumer)

    def ensure_connection(self) -> None:
        self.connection.connect_timeout = _DEADLINE.left()
        try:
            super().ensure_connection()
        except BROKER_ERRORS as exc:
            self._outage.lost(exc)
            raise

    def ensure(self, method: Any, retry: int | None = None, **callbacks: Any) -> Any:
        told = callbacks.pop("recoverable_error_callback", None)

        def on_error(exc: BaseException) -> None:
            if not isinstance(exc, oslo_common.Timeout):
                self._outage.lost(exc)
            if told is not None:
                told(exc)

        def attempt() -> Any:
            try:
                return method()
            except OSError:
                self._broken = True
                raise

        if retry is None and not self._consuming:
            retry = 0
        self.connection.connect_timeout = _DEADLINE.left()
        return super().ensure(
            attempt, retry=retry, recoverable_error_callback=on_error, **callbacks
        )

    def _heartbeat_thread_job(self) -> None:
        # oslo's own would reconnect here, holding the lock that a sender waits for.
        while not self._heartbeat_exit_event.wait(self._heartbeat_wait_timeout):
            with self._connection_lock.for_heartbeat():
                if not self.connection.connected:
                    continue
                try:
                    self._heartbeat_check()
                    drain(self.connection, 0.001)
                except BROKER_ERRORS as exc:
                    self._outage.lost(exc)
                    self._broken = True
                    self._set_current_channel(None)

    def consume(self, timeout: float | None = None) -> None:
        self._consuming = True
        if timeout is not None:
            # oslo comes back every few milliseconds after each message, to acknowledge what only
            # its notifications leave to be acknowledged.
            timeout = max(timeout, LISTEN_S)
        try:
            super().consume(timeout)
        except oslo_common.Timeout:
            raise
        except BROKER_ERRORS as exc:
            # Refused: a login or a permission was taken back. Who asked comes again at once.
            self._outage.lost(exc)
            self._outage.pause(REFUSED_S)
            raise

    def set_transport_socket_timeout(self, timeout: float | None = None) -> None:
        # Bounds the wait for the broker's confirmation, which has no limit of its own.
        if _DEADLINE.at is not None:
            timeout = _DEADLINE.left()
        super().set_transport_socket_timeout(timeout)

    def _set_current_channel(self, new_channel: Any) -> None:
        if new_channel is None and self._broken:
            # Closing the channel in good order would wait for a broker that does not answer.
            self._broken = False
            self.connection.collect(socket_timeout=0.1)
        fresh = new_channel is not None and new_channel is not self.channel
        super()._set_current_channel(new_channel)
        if fresh:
            read_ahead(new_channel.connection)
            self._outage.back()


class _OneLine(logging.Filter):
    """oslo.messaging logs outages with tracebacks; an operator needs the line."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        record.exc_info = None
        return not (record.msg in TOLD and isinstance(error, BROKER_ERRORS))


def quieten() -> None:
    """Leave the telling of outages to Outage."""
    # It tells of each attempt; Outage tells of the outage. (oslo.log renames loggers: take them.)
    impl_rabbit.LOG.logger.setLevel(logging.CRITICAL)
    for name in (
        "oslo_messaging.rpc.server",
        "oslo_messaging._drivers.amqpdriver",
        "oslo_utils.excutils",
    ):
        logger = logging.getLogger(name)
        if not any(isinstance(f, _OneLine) for f in logger.filters):
            logger.addFilter(_OneLine())

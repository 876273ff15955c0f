"""Publishing reports on RabbitMQ: one connection for all threads of a process."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from amqp.exceptions import AccessRefused
from kombu.entity import Exchange

from common.bus.rabbit_link import (
    BROKER_ERRORS,
    HEARTBEAT_S,
    PATIENCE_S,
    QUICK_S,
    Link,
    describe,
    drain,
    tune_socket,
)
from common.errors import BrokerUnavailable
from common.messages import REPORTS_EXCHANGE

LOG = logging.getLogger(__name__)

TRANSIENT, PERSISTENT = 1, 2
# After a failed attempt, publishers that queue up behind it are refused at once for this long.
REFUSE_S = 0.5


class Publisher:
    """One connection with a plain and a confirming channel, shared by all threads."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._runtime = link.runtime
        self._lock = link.runtime.lock()
        self._connection: Any = None
        self._plain: Any = None
        self._confirming: Any = None
        self._refuse_until = 0.0
        self._closed = link.runtime.event()
        self._pulse_runs = False

    def put(
        self,
        exchange: str,
        key: str,
        body: bytes,
        *,
        ttl_s: float | None = None,
        confirmed: bool = False,
        persistent: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Hand a message to the broker; BrokerUnavailable when it did not take it."""
        properties: dict[str, Any] = {
            "delivery_mode": PERSISTENT if persistent else TRANSIENT,
            # The broker refuses a message whose user_id is not its connection's.
            "user_id": self._link.user,
        }
        if ttl_s is not None:
            properties["expiration"] = str(max(1, int(ttl_s * 1000)))
        with self._lock:
            if self._closed.is_set():
                raise BrokerUnavailable("this bus is closed", "start again")
            if self._runtime.monotonic() < self._refuse_until:
                raise self._link.outage.error(self._link.outage.reason or "it was just away")
            begun = self._runtime.monotonic()
            while True:
                was_open = self._connection is not None
                try:
                    return self._send(exchange, key, body, properties, headers, confirmed)
                except BROKER_ERRORS as exc:
                    self._drop()
                    now = self._runtime.monotonic()
                    # What was open may have died in its sleep: one try on a fresh connection.
                    if was_open and now - begun < QUICK_S:
                        continue
                    self._refuse_until = now + REFUSE_S
                    self._link.outage.lost(exc)
                    raise self._link.outage.error(exc) from None

    def _send(
        self,
        exchange: str,
        key: str,
        body: bytes,
        properties: dict[str, Any],
        headers: Mapping[str, str] | None,
        confirmed: bool,
    ) -> None:
        if self._connection is None:
            self._open()
        channel = self._confirming if confirmed else self._plain
        message = channel.prepare_message(
            body, content_type="application/json", headers=headers, properties=properties
        )
        if confirmed:
            channel.basic_publish_confirm(message, exchange, key, confirm_timeout=PATIENCE_S)
        else:
            channel.basic_publish(message, exchange, key)

    def _open(self) -> None:
        self._connection = self._link.open()
        tune_socket(self._connection.connection)
        self._plain = self._connection.channel()
        try:
            reports_exchange()(self._plain).declare()
        except AccessRefused:
            # An agent whose login may only publish: the managers make the exchange.
            self._plain = self._connection.channel()
        self._confirming = self._connection.channel()
        self._link.outage.back()
        if not self._pulse_runs:
            self._pulse_runs = True
            self._runtime.spawn("publisher-pulse", self._pulse)

    def _pulse(self) -> None:
        """Keep an idle connection alive, and notice when it is not."""
        while not self._runtime.wait(self._closed, HEARTBEAT_S / 6):
            if self._runtime.stopping.is_set():
                return
            with self._lock:
                if self._connection is None:
                    continue
                try:
                    self._connection.heartbeat_check()
                    while drain(self._connection, 0):
                        pass
                except BROKER_ERRORS as exc:
                    self._link.outage.lost(exc)
                    self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._plain = self._confirming = None
        discard(connection)

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            connection, self._connection = self._connection, None
            self._plain = self._confirming = None
        release(connection)


def reports_exchange() -> Any:
    """The exchange that all reports go through."""
    return Exchange(REPORTS_EXCHANGE, type="topic", durable=True)


def release(connection: Any) -> None:
    """Close in good order."""
    if connection is None:
        return
    try:
        connection.release()
    except BROKER_ERRORS as exc:
        LOG.debug("closing: %s", describe(exc))


def discard(connection: Any) -> None:
    """Close without a word to the broker, which may not be there to answer."""
    if connection is None:
        return
    try:
        connection.collect(socket_timeout=0.1)
    except BROKER_ERRORS as exc:
        LOG.debug("dropping a connection: %s", describe(exc))

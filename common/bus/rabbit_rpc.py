"""RPC on RabbitMQ: oslo.messaging, with an end to its patience and errors that travel as data."""

from __future__ import annotations

import functools
import logging
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import oslo_messaging
from oslo_messaging._drivers.amqp import AMQPDestinationNotFound
from oslo_messaging._drivers.amqpdriver import AMQPIncomingMessage
from oslo_messaging._drivers.common import PURPOSE_SEND
from oslo_messaging.dispatcher import DispatcherBase
from oslo_messaging.exceptions import MessageUndeliverable
from oslo_messaging.rpc.server import RPCServer

from common.bus.base import API_VERSION, Address, Endpoint, Handle
from common.bus.rabbit_link import BROKER_ERRORS, PATIENCE_S, QUICK_S, Link, describe
from common.bus.rabbit_patience import BoundedConnection, quieten, within
from common.errors import BrokerUnavailable, MusterError, NoManager, NotSupported, RemoteError
from common.runtime import THREADING

LOG = logging.getLogger(__name__)

VALUE, ERROR = "value", "error"
RETRY_MIN_S, RETRY_MAX_S = 0.5, 5.0
OFFER_AGAIN_S = 0.25


class Rpc:
    """Calls, casts and servers over one oslo.messaging transport."""

    def __init__(self, link: Link) -> None:
        quieten()
        self._link = link
        self._transport = link.transport
        # The pool makes every connection of the driver, those for replies and servers included.
        self._transport._driver._connection_pool.connection_cls = functools.partial(
            BoundedConnection, link.outage
        )
        target = oslo_messaging.Target(version=API_VERSION)
        self._caster = oslo_messaging.get_rpc_client(self._transport, target)
        # Mandatory: a call to a topic that nobody ever served fails now, not after its time.
        self._caller = oslo_messaging.get_rpc_client(
            self._transport,
            target,
            transport_options=oslo_messaging.TransportOptions(at_least_once=True),
        )
        self._servers: list[_Server] = []
        self._closed = False

    def call(self, to: Address, method: str, kwargs: Mapping[str, Any], timeout_s: float) -> Any:
        end = time.monotonic() + timeout_s

        def send() -> Any:
            left = max(0.05, end - time.monotonic())
            prepared = self._caller.prepare(topic=to.topic, server=to.server, timeout=left)
            return prepared.call({}, method, **msgspec.to_builtins(kwargs))

        try:
            answer = self._send(send, min(timeout_s, PATIENCE_S))
        except MessageUndeliverable:
            raise NoManager(f"nobody serves {to}", "start a manager") from None
        except oslo_messaging.MessagingTimeout:
            if self._link.outage.reason:
                raise self._link.outage.error(self._link.outage.reason) from None
            raise NoManager(
                f"{to} gave no answer to {method} within {timeout_s:g} s",
                "try again; if it stays, look whether managers run and reach their database",
            ) from None
        if not isinstance(answer, dict) or not (VALUE in answer or ERROR in answer):
            raise NoManager(f"{to} answered {method} in an unknown form", "upgrade both sides")
        if ERROR in answer:
            raise RemoteError(answer[ERROR])
        return answer[VALUE]

    def cast(self, to: Address, method: str, kwargs: Mapping[str, Any]) -> None:
        prepared = self._caster.prepare(topic=to.topic, server=to.server)
        self._send(lambda: prepared.cast({}, method, **msgspec.to_builtins(kwargs)), PATIENCE_S)

    def _send(self, send: Any, patience_s: float) -> Any:
        """`send()` within the limit; a second try when a pooled connection proves to be dead."""
        if self._closed:
            raise BrokerUnavailable("this bus is closed", "start again")
        tried = False
        begun = time.monotonic()
        with within(patience_s):
            while True:
                try:
                    return send()
                except (oslo_messaging.MessagingTimeout, MessageUndeliverable):
                    raise
                except BROKER_ERRORS as exc:
                    if tried or time.monotonic() - begun > QUICK_S:
                        raise self._link.outage.error(exc) from None
                tried = True

    def serve(self, at: Address, endpoint: Endpoint) -> Handle:
        if at.server is None:
            raise ValueError("a server needs a name")
        server = _Server(self._link, at, endpoint)
        self._servers.append(server)
        return server

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for server in self._servers:
            server.stop()
        self._link.runtime.spawn("close-rpc", self._clean_up).join(self._link.farewell_s())

    def _clean_up(self) -> None:
        try:
            self._transport.cleanup()
        except BROKER_ERRORS as exc:
            LOG.debug("closing: %s", describe(exc))


class _Dispatcher(DispatcherBase):  # type: ignore[misc] # oslo.messaging has no types
    """Hands every method to the port's endpoint, and sends errors back as data."""

    def __init__(self, at: Address, endpoint: Endpoint) -> None:
        self._at = at
        self._endpoint = endpoint

    def dispatch(self, incoming: Any) -> dict[str, Any]:
        message = incoming.message
        method = str(message.get("method"))
        try:
            asked = str(message.get("version", API_VERSION))
            if asked.partition(".")[0] != API_VERSION.partition(".")[0]:
                raise NotSupported(
                    f"{method} of version {asked}; this is {API_VERSION}", "upgrade both sides"
                )
            value = self._endpoint(method, dict(message.get("args") or {}))
            return {VALUE: msgspec.to_builtins(value)}
        except MusterError as exc:
            return {ERROR: msgspec.to_builtins(exc.to_wire(), enc_hook=str)}
        except Exception as exc:
            LOG.exception("rpc %s at %s", method, self._at)
            failure = MusterError(f"{type(exc).__name__}: {exc}", "see the log")
            return {ERROR: failure.to_wire()}


class _Request(AMQPIncomingMessage):  # type: ignore[misc] # oslo.messaging has no types
    """A request whose answer is offered to a missing reply queue for a moment, and no longer.

    oslo.messaging would give up the caller with it and drop its next answers for a minute; an agent
    that comes back after its broker has lost all queues uses the same reply queue again.
    """

    def __init__(self, link: Link, *args: Any) -> None:
        super().__init__(*args)
        self._link = link

    def reply(self, reply: Any = None, failure: Any = None) -> None:
        if not self.orig_msg_id:
            return  # a cast
        driver = self.listener.driver
        end = time.monotonic() + driver.missing_destination_retry_timeout
        while True:
            try:
                with driver._get_connection(PURPOSE_SEND) as connection:
                    self._send_reply(connection, reply, failure)
                return
            except (MessageUndeliverable, AMQPDestinationNotFound):
                if time.monotonic() >= end:
                    method = self.message.get("method")
                    LOG.info("nobody is there any more to take the answer to %s", method)
                    return
            self._link.runtime.sleep(OFFER_AGAIN_S)


class _RpcServer(RPCServer):  # type: ignore[misc] # oslo.messaging has no types
    """oslo.messaging's server, with our way of answering."""

    def __init__(self, link: Link, *args: Any) -> None:
        super().__init__(link.transport, *args)
        self._link = link
        if self.executor_type == THREADING:
            # Of oslo's own, each of up to 64 threads wakes up every second to find nothing to do.
            self._executor_cls = ThreadPoolExecutor

    def _create_listener(self) -> Any:
        listener = super()._create_listener()
        listener._poll_style_listener.message_cls = functools.partial(_Request, self._link)
        return listener


class _Server:
    """One RPC server; it keeps trying to begin while the broker is away."""

    def __init__(self, link: Link, at: Address, endpoint: Endpoint) -> None:
        self._link = link
        self._at = at
        self._dispatcher = _Dispatcher(at, endpoint)
        self._stopped = link.runtime.event()
        self._lock = link.runtime.lock()
        self._server: Any = None
        if not self._begin():
            link.runtime.spawn(f"serve-{at}", self._keep_trying)

    def _begin(self) -> bool:
        target = oslo_messaging.Target(
            topic=self._at.topic, server=self._at.server, version=API_VERSION
        )
        with warnings.catch_warnings():
            # The executor follows the process's patching; under eventlet oslo tells of its end.
            warnings.simplefilter("ignore", DeprecationWarning)
            server = _RpcServer(self._link, target, self._dispatcher)
        try:
            server.start()
        except BROKER_ERRORS as exc:
            self._link.outage.lost(exc)
            server._work_executor.shutdown(wait=False)
            return False
        with self._lock:
            self._server = server
        if self._stopped.is_set():
            self._end()
        return True

    def _keep_trying(self) -> None:
        pause = RETRY_MIN_S
        runtime = self._link.runtime
        while not runtime.wait(self._stopped, runtime.jitter(pause / 2, pause)):
            if runtime.stopping.is_set() or self._begin():
                return
            pause = min(pause * 2, RETRY_MAX_S)

    def stop(self) -> None:
        self._stopped.set()
        # Beside the caller: a broker that vanished must not hold up the end of the process.
        self._link.runtime.spawn(f"stop-{self._at}", self._end).join(self._link.farewell_s())

    def _end(self) -> None:
        with self._lock:
            server, self._server = self._server, None
        if server is None:
            return
        try:
            server.stop()
            server.wait()
        except BROKER_ERRORS as exc:
            LOG.debug("stopping the server of %s: %s", self._at, describe(exc))

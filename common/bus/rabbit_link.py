"""What RPC and streams share: the broker's address, the login, and one voice about outages."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import amqp
import oslo_messaging
from kombu.connection import Connection
from kombu.exceptions import KombuError
from oslo_config import cfg
from oslo_messaging._drivers import amqp as oslo_amqp
from oslo_messaging._drivers import impl_rabbit

from common import __version__
from common.conf import Settings
from common.errors import BadConfig, BrokerUnavailable
from common.messages import CONTROL_EXCHANGE
from common.runtime import Runtime

LOG = logging.getLogger(__name__)

RABBIT = "oslo_messaging_rabbit"
# A vanished peer (power cut, cable) shows within this many seconds, where oslo's default takes 60.
HEARTBEAT_S = 15
# How long a reply is offered to a caller whose queue is gone; it holds one thread of 64 that long.
GONE_CALLER_S = 1
RECONNECT_MAX_S = 5
# The most that one attempt to reach the broker, or one message's way to it, may take.
PATIENCE_S = 5.0
# A try that failed sooner than this met a dead connection, and is made once more on a fresh one.
QUICK_S = 1.0
SETTLE_S = 10.0
READ_BYTES = 32768

# py-amqp raises AttributeError here and there when its socket is lost under it.
BROKER_ERRORS = (
    amqp.AMQPError,
    KombuError,
    oslo_messaging.MessagingException,
    OSError,
    AttributeError,
)


class Outage:
    """Says once that the broker is away, and once that it is back.

    A broker that starts takes some connections before it serves them all: what is lost again
    within SETTLE_S of coming back is told only if it lasts.
    """

    def __init__(self, runtime: Runtime, where: str) -> None:
        self._runtime = runtime
        self._lock = runtime.lock()
        self._since: float | None = None
        self._told = False
        self._settled_at = float("-inf")
        self._reason = ""
        self.where = where

    @property
    def reason(self) -> str:
        """Why the broker can not be reached; empty when it can, as far as we know."""
        return self._reason

    def lost(self, error: BaseException | str) -> None:
        with self._lock:
            self._reason = describe(error)
            now = self._runtime.monotonic()
            if self._since is None:
                self._since = now
            if self._told or now < self._settled_at:
                return
            self._told = True
        LOG.warning(
            "the broker at %s is away: %s; trying again until it is back", self.where, self._reason
        )

    def back(self) -> None:
        with self._lock:
            if self._since is None:
                return
            now = self._runtime.monotonic()
            lasted, told = now - self._since, self._told
            self._since, self._told, self._reason = None, False, ""
            if told:
                self._settled_at = now + SETTLE_S
        if told:
            LOG.warning("the broker at %s is back after %.1f s", self.where, lasted)

    def pause(self, seconds: float) -> None:
        """Let time pass before the next try; ends early when the process stops."""
        self._runtime.sleep(seconds)

    def error(self, cause: BaseException | str) -> BrokerUnavailable:
        """The one error that callers see."""
        return BrokerUnavailable(
            f"the broker at {self.where} did not take it: {describe(cause)}",
            "start RabbitMQ, or correct [DEFAULT] transport_url",
        )


def describe(error: BaseException | str) -> str:
    """An error's own words on one line."""
    if isinstance(error, oslo_messaging.MessageDeliveryFailure) and error.__context__ is not None:
        # oslo.messaging's wrapping counts tries that nobody made.
        error = error.__context__
    return " ".join(str(error).split()) or type(error).__name__


class Link:
    """The broker as the configuration names it."""

    def __init__(self, settings: Settings, runtime: Runtime, role: str) -> None:
        self.runtime = runtime
        self.conf = _oslo_conf(settings)
        try:
            self.transport = oslo_messaging.get_rpc_transport(
                self.conf, url=settings.default.transport_url
            )
            url = oslo_messaging.TransportURL.parse(self.conf, settings.default.transport_url)
        except (oslo_messaging.MessagingException, ValueError, RuntimeError) as exc:
            raise BadConfig(
                f"[DEFAULT] transport_url: {describe(exc)}",
                "write it as rabbit://USER:PASSWORD@HOST:PORT/VHOST",
            ) from exc
        if not url.hosts or not url.hosts[0].hostname:
            raise BadConfig(
                "[DEFAULT] transport_url names no host",
                "write it as rabbit://USER:PASSWORD@HOST:PORT/VHOST",
            )
        self.user = url.hosts[0].username or "guest"
        self.hosts = len(url.hosts)
        self.outage = Outage(
            runtime, ", ".join(f"{h.hostname}:{h.port or amqp_port(False)}" for h in url.hosts)
        )
        self._urls = ";".join(_kombu_url(host, url.virtual_host) for host in url.hosts)
        self._name = f"muster-{role} {settings.default.host} {os.getpid()}"

    @property
    def rabbit(self) -> Any:
        """[oslo_messaging_rabbit], which operators may tune."""
        return self.conf[RABBIT]

    def farewell_s(self) -> float:
        """How long the end of a server or consumer may take: a broker that is away gets little."""
        return 1.0 if self.outage.reason else 5.0

    def open(self) -> Any:
        """A fresh, connected kombu.Connection, within PATIENCE_S per host of the URL."""
        connection = Connection(
            self._urls,
            ssl=_ssl(self.rabbit),
            login_method=self.rabbit.rabbit_login_method,
            heartbeat=self.rabbit.heartbeat_timeout_threshold,
            connect_timeout=PATIENCE_S,
            transport_options={
                "write_timeout": PATIENCE_S,
                "client_properties": {
                    "product": "muster",
                    "version": __version__,
                    "connection_name": self._name,
                    "capabilities": {
                        "authentication_failure_close": True,
                        # Makes py-amqp look, before each publish, whether the broker hung up.
                        "connection.blocked": True,
                        "consumer_cancel_notify": True,
                    },
                },
            },
        )
        try:
            connection.ensure_connection(
                max_retries=self.hosts - 1, interval_start=0, interval_step=0
            )
        except BROKER_ERRORS:
            connection.release()
            raise
        read_ahead(connection.connection)
        return connection


def amqp_port(ssl: bool) -> int:
    """AMQP's well-known port."""
    return 5671 if ssl else 5672


def drain(connection: Any, timeout_s: float) -> bool:
    """Take one frame from a connection; False when none came in time."""
    try:
        connection.drain_events(timeout=timeout_s)
    except TimeoutError:
        return False
    return True


def _kombu_url(host: Any, vhost: str | None) -> str:
    name = f"[{host.hostname}]" if ":" in host.hostname else host.hostname
    user, password = quote(host.username or "guest", ""), quote(host.password or "guest", "")
    return f"amqp://{user}:{password}@{name}:{host.port or amqp_port(False)}/{vhost or ''}"


def _ssl(rabbit: Any) -> Any:
    """The same TLS settings that oslo.messaging takes from its options."""
    if not rabbit.ssl:
        return False
    options = {"keyfile": rabbit.ssl_key_file, "certfile": rabbit.ssl_cert_file}
    if rabbit.ssl_ca_file:
        options |= {"ca_certs": rabbit.ssl_ca_file, "server_hostname": None}
    return {name: value for name, value in options.items() if value or value is None} or True


def _oslo_conf(settings: Settings) -> Any:
    """The global configuration that oslo.messaging insists on, read from our files."""
    oslo_messaging.set_transport_defaults(CONTROL_EXCHANGE)
    group = cfg.OptGroup(RABBIT)
    cfg.CONF.register_opts(impl_rabbit.rabbit_opts, group=group)
    cfg.CONF.register_opts(oslo_amqp.amqp_opts, group=group)
    for name, value in (
        ("heartbeat_timeout_threshold", HEARTBEAT_S),
        ("kombu_missing_consumer_retry_timeout", GONE_CALLER_S),
        ("rabbit_interval_max", RECONNECT_MAX_S),
    ):
        cfg.CONF.set_default(name, value, group=RABBIT)
    try:
        cfg.CONF(
            args=[],
            project="muster",
            default_config_files=list(settings.config_files),
            default_config_dirs=[],
        )
    except (cfg.Error, ValueError) as exc:
        raise BadConfig(f"[{RABBIT}]: {describe(exc)}", "correct the configuration") from exc
    return cfg.CONF


def read_ahead(connection: Any) -> None:
    """Let py-amqp take what has come in one read, where it makes three of each frame.

    It keeps what it has read beyond what it wanted, so it may be given more.
    """
    transport = connection.transport
    read: Callable[[int], bytes] | None = getattr(transport, "_quick_recv", None)
    if read is not None and not hasattr(transport, "reads_ahead"):
        transport.reads_ahead = True
        transport._quick_recv = lambda _wanted: read(READ_BYTES)


def tune_socket(connection: Any) -> None:
    """Let a send to a vanished peer fail by itself, where the system knows how."""
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    sock = getattr(connection.transport, "sock", None)
    if option is not None and sock is not None:
        sock.setsockopt(socket.IPPROTO_TCP, option, int(PATIENCE_S * 1000))

"""The bus on RabbitMQ: RPC through oslo.messaging, report streams through kombu.

Nothing here connects at the start, so a process comes up while its broker is away; it says so once
and connects when it can.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from common.bus.base import Address, Bus, Endpoint, Handle, StreamHandler
from common.conf import Settings
from common.errors import BadConfig
from common.runtime import Runtime

if TYPE_CHECKING:
    from common.bus.rabbit_rpc import Rpc
    from common.bus.rabbit_streams import Streams


def connect(settings: Settings, runtime: Runtime, role: str) -> Bus:
    """A bus for one process; `role` (manager, agent, client) names its connections.

    Raises BadConfig when transport_url can not be one of RabbitMQ's.
    """
    url = settings.default.transport_url
    if url.startswith("memory:"):
        raise BadConfig(
            "[DEFAULT] transport_url memory:// reaches nobody outside one process",
            "embedded fleets only: make demo; else rabbit://USER:PASSWORD@HOST:PORT/",
        )
    if not url.startswith("rabbit:"):
        raise BadConfig(
            "[DEFAULT] transport_url is not one of RabbitMQ's",
            "write it as rabbit://USER:PASSWORD@HOST:PORT/VHOST",
        )
    # It tells each process which backend it has loaded, and not whether that is used.
    logging.getLogger("oslo_service").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # oslo.service, which oslo.messaging's server base class comes from, imports eventlet
        # whether it is used or not, and eventlet and oslo.* announce that they are on the way out.
        warnings.simplefilter("ignore")
        # Late: half a second, and under eventlet only after the patching.
        from common.bus.rabbit_link import Link
        from common.bus.rabbit_rpc import Rpc
        from common.bus.rabbit_streams import Streams
    link = Link(settings, runtime, role)
    return RabbitBus(Rpc(link), Streams(link))


class RabbitBus:
    """The port's two halves, which share a link: its address, its login and its outages."""

    def __init__(self, rpc: Rpc, streams: Streams) -> None:
        self._rpc = rpc
        self._streams = streams

    def call(self, to: Address, method: str, kwargs: Mapping[str, Any], timeout_s: float) -> Any:
        return self._rpc.call(to, method, kwargs, timeout_s)

    def cast(self, to: Address, method: str, kwargs: Mapping[str, Any]) -> None:
        self._rpc.cast(to, method, kwargs)

    def serve(self, at: Address, endpoint: Endpoint) -> Handle:
        return self._rpc.serve(at, endpoint)

    def publish(self, key: str, body: bytes, ttl_s: float | None = None) -> None:
        self._streams.publish(key, body, ttl_s)

    def consume(
        self,
        streams: Mapping[str, str],
        handler: StreamHandler,
        on_gap: Callable[[str], None],
        stall_s: float,
    ) -> Handle:
        return self._streams.consume(streams, handler, on_gap, stall_s)

    def close(self) -> None:
        self._streams.close()
        self._rpc.close()

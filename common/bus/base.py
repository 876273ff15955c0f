"""The bus port: RPC between managers, agents and operators, and the stream of reports.

An RPC cast is at most once: it may be lost at any time and nobody is told. Whatever must not be
lost is a row in the managers' database or the agent's journal, and is sent again from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import msgspec

from common.messages import AGENT_TOPIC, MANAGER_TOPIC

API_VERSION = "1.0"

HEARTBEATS = "heartbeats"
RESULTS = "results"


class Address(msgspec.Struct, frozen=True):
    """Whom an RPC goes to: any server of `topic`, or the one named `server`."""

    topic: str
    server: str | None = None

    def __str__(self) -> str:
        return f"{self.topic}.{self.server}" if self.server else self.topic


ANY_MANAGER = Address(MANAGER_TOPIC)


def agent_at(host: str) -> Address:
    """The agent of one host."""
    return Address(AGENT_TOPIC, host)


class Endpoint(Protocol):
    """What a server does with an RPC: every method arrives here, unknown ones too."""

    def __call__(self, method: str, kwargs: dict[str, Any], /) -> Any: ...


class StreamHandler(Protocol):
    """What a consumer does with one report.

    Returning acknowledges it. BadMessage sends it to the dead-letter queue with the reason.
    Any other error leaves it in the queue, and it comes again after a pause.
    """

    def __call__(self, key: str, body: bytes, sender: str | None, /) -> None: ...


Report = tuple[str, bytes, str | None]
"""Routing key, body and the user that the broker vouches for."""


@runtime_checkable
class GatheringHandler(StreamHandler, Protocol):
    """A handler that can take several reports at once, if they have come together."""

    def together(self, reports: Sequence[Report], /) -> None:
        """All of them or, with any error, none: each is then handled by itself."""


class Handle(Protocol):
    """A running server or consumer."""

    def stop(self) -> None:
        """Take nothing new, finish what is in hand."""


class Notice(msgspec.Struct, frozen=True):
    """Something that happened, for whoever wants to know; `priority`: INFO or ERROR."""

    event: str
    priority: str
    payload: dict[str, Any]


class Bus(Protocol):
    """The port. All methods may be called from any thread of the bus's runtime."""

    def call(self, to: Address, method: str, kwargs: Mapping[str, Any], timeout_s: float) -> Any:
        """The answer of a server; NoManager or BrokerUnavailable when there is none in time."""

    def cast(self, to: Address, method: str, kwargs: Mapping[str, Any]) -> None:
        """Send and forget; BrokerUnavailable when the broker did not take it."""

    def serve(self, at: Address, endpoint: Endpoint) -> Handle:
        """Answer RPCs at an address whose `server` is set; also those to its bare topic."""

    def publish(self, key: str, body: bytes, ttl_s: float | None = None) -> None:
        """Put a report on the stream exchange under a routing key (`heartbeat.<host>` ...)."""

    def consume(
        self,
        streams: Mapping[str, str],
        handler: StreamHandler,
        on_gap: Callable[[str], None],
        stall_s: float,
    ) -> Handle:
        """Consume shared streams: {queue name: routing key pattern}, one handler for all.

        A queue name that ends in '.' plus an id is private to this consumer and goes with it.
        `on_gap(reason)` is called whenever reports may have been missed: the connection was lost,
        or the loop stood still for longer than `stall_s` (then what was prefetched is dropped).
        """

    def close(self) -> None:
        """Release connections; safe to call twice."""

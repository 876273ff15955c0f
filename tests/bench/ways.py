"""Ways of a message, ours and the bare libraries': how it is sent, and who takes it."""

from __future__ import annotations

import functools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kombu

from common.bus import rabbit
from common.bus.base import Address
from common.runtime import Runtime
from tests.bench import load, peer

CASTS, CALLS, HEARTBEATS, INTAKE = 1000, 400, 3000, 300
CALLERS = 40


class Way:
    """One way of a message: how it is sent, and the process that takes it."""

    def __init__(
        self,
        name: str,
        mode: str,
        url: str,
        send: Callable[[list[Any]], None],
        make: Callable[[], list[Any]],
        bare: Way | None = None,
    ) -> None:
        """`bare`: the way through the bare library, which this one is compared with."""
        self.name = name
        self.bare = bare
        self._send = send
        self._make = make
        self._peer = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.bench.peer", mode, *url.split("|")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.rates: list[float] = []
        self.cpu_us: list[float] = []
        self._read()

    def round(self, counted: bool) -> float:
        """Send a turn's messages and wait until the last one was taken; how many a second."""
        messages = self._make()
        self._write(str(len(messages)))
        self._read()
        cpu, begun = time.process_time(), time.monotonic()
        self._send(messages)
        theirs = float(self._read())
        took = time.monotonic() - begun
        if counted:
            self.rates.append(len(messages) / took)
            self.cpu_us.append((time.process_time() - cpu + theirs) / len(messages) * 1e6)
        return len(messages) / took

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    @property
    def ratio(self) -> float:
        """Of the bare library's rate."""
        return self.rate / (self.bare or self).rate

    def close(self) -> None:
        self._peer.kill()
        self._peer.wait()

    def _write(self, line: str) -> None:
        assert self._peer.stdin is not None
        self._peer.stdin.write(line + "\n")
        self._peer.stdin.flush()

    def _read(self) -> str:
        assert self._peer.stdout is not None
        line = self._peer.stdout.readline()
        if not line:
            raise SystemExit(f"bench: the receiver of {self.name} has ended")
        return line.strip()


class Senders:
    """The sending side of every way, all in this process."""

    def __init__(self, url: str) -> None:
        import oslo_messaging
        from oslo_config import cfg

        self._seq = 0
        self.url = url
        self.bus = rabbit.connect(peer.settings(url), Runtime("bench"), "manager")
        # A bare transport of its own; ours bounds the retries of its connections.
        raw = oslo_messaging.get_rpc_transport(cfg.CONF, url=url)
        self._oslo, self._calls = (
            oslo_messaging.get_rpc_client(
                raw,
                oslo_messaging.Target(exchange=peer.RAW_EXCHANGE, topic=topic, server=peer.SERVER),
            )
            for topic in (peer.RAW_TOPIC, peer.RAW_CALLS)
        )
        connection = kombu.Connection(url.replace("rabbit://", "amqp://"))
        self._kombu = kombu.Producer(connection.channel())

    def casts(self) -> list[Any]:
        return [load.COMMAND] * CASTS

    def heartbeats(self, count: int) -> list[Any]:
        self._seq += count
        return load.heartbeats(self._seq, count)

    def our_casts(self, commands: list[Any]) -> None:
        to = Address(peer.OUR_TOPIC, peer.SERVER)
        for command in commands:
            self.bus.cast(to, "start_vm", {"command": command})

    def raw_casts(self, commands: list[Any]) -> None:
        for command in commands:
            self._oslo.cast({}, "start_vm", command=command)

    def calls(self) -> list[Any]:
        return [load.COMMAND] * CALLS

    def raw_calls(self, commands: list[Any]) -> None:
        """As operators ask: many at once, each waiting for its answer."""
        with ThreadPoolExecutor(CALLERS) as callers:
            list(
                callers.map(
                    lambda command: self._calls.call({}, "start_vm", command=command), commands
                )
            )

    def our_stream(self, heartbeats: list[Any]) -> None:
        for key, body in heartbeats:
            self.bus.publish(key, body, load.TTL_S)

    def raw_stream(self, heartbeats: list[Any]) -> None:
        for key, body in heartbeats:
            self._kombu.publish(
                body,
                exchange=peer.RAW_REPORTS,
                routing_key=key,
                delivery_mode=1,
                expiration=load.TTL_S,
                user_id="guest",
                content_type="application/json",
                content_encoding="binary",
            )


Stored = tuple[Senders, str]
"""Senders of heartbeats, and the database that the receiver keeps them in."""


def raw_rpc(bus: Senders) -> list[Way]:
    """Raw casts, which every RPC is measured by, and raw calls: what an operator's request for one
    thing costs by itself, with its answer."""
    none = bus.url + "|-"
    casts = Way("casts, oslo.messaging", "raw_casts", none, bus.raw_casts, bus.casts)
    calls = Way("calls, oslo.messaging", "raw_calls", none, bus.raw_calls, bus.calls, casts)
    return [casts, calls]


def every_way(bus: Senders, sqlite: Stored, postgres: Stored, rpc: list[Way]) -> list[Way]:
    """Ours and theirs, in the order of the report; `rpc` are those of raw_rpc."""
    none = bus.url + "|-"
    many = functools.partial(bus.heartbeats, HEARTBEATS)
    stream = Way("heartbeats, kombu", "raw_stream", none, bus.raw_stream, many)
    return [
        Way("casts, ours", "our_casts", none, bus.our_casts, bus.casts, rpc[0]),
        *rpc,
        Way("heartbeats, ours", "our_stream", none, bus.our_stream, many, stream),
        stream,
        _intake("intake, SQLite", *sqlite, stream),
        _intake("intake, PostgreSQL", *postgres, stream),
    ]


def _intake(name: str, bus: Senders, database: str, bare: Way) -> Way:
    many = functools.partial(bus.heartbeats, INTAKE)
    return Way(name, "intake", f"{bus.url}|{database}", bus.our_stream, many, bare)

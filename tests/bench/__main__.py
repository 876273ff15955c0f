"""Casts and heartbeats a second on our way, each beside the bare library in the same run.

The receiver of each way is a process of its own; the ways take turns, so that whatever else the
machine does falls on all of them. `python -m tests.bench [--quick]`.
"""

from __future__ import annotations

import functools
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import kombu

from common.bus import rabbit
from common.bus.base import Address
from common.runtime import Runtime
from devstack.parts.postgres import Postgres
from devstack.parts.rabbitmq import RabbitMQ
from tests.bench import load, peer

ROUNDS = 5
CASTS, HEARTBEATS, INTAKE = 1000, 3000, 300


class Way:
    """One way of a message: how it is sent, and the process that takes it."""

    def __init__(
        self,
        name: str,
        mode: str,
        url: str,
        send: Callable[[list[Any]], None],
        make: Callable[[], list[Any]],
    ) -> None:
        self.name = name
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

    def round(self, counted: bool) -> None:
        """Send a turn's messages and wait until the last one was taken."""
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

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

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
        self._oslo = oslo_messaging.get_rpc_client(
            oslo_messaging.get_rpc_transport(cfg.CONF, url=url),
            oslo_messaging.Target(
                exchange=peer.RAW_EXCHANGE, topic=peer.RAW_TOPIC, server=peer.SERVER
            ),
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


def main(argv: list[str]) -> int:
    warnings.simplefilter("ignore")
    # So that the parts end with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rounds = 2 if "--quick" in argv else ROUNDS
    begun = time.monotonic()
    with RabbitMQ() as broker, Postgres() as postgres, tempfile.TemporaryDirectory() as folder:
        urls = {name: broker.new_vhost() for name in ("bus", "sqlite", "postgres")}
        senders = {name: Senders(url) for name, url in urls.items()}
        bus = senders["bus"]
        none = urls["bus"] + "|-"
        many = functools.partial(bus.heartbeats, HEARTBEATS)
        ways = [
            Way("casts, ours", "our_casts", none, bus.our_casts, bus.casts),
            Way("casts, oslo.messaging", "raw_casts", none, bus.raw_casts, bus.casts),
            Way("heartbeats, ours", "our_stream", none, bus.our_stream, many),
            Way("heartbeats, kombu", "raw_stream", none, bus.raw_stream, many),
            _intake("intake, SQLite", senders["sqlite"], f"sqlite:///{folder}/bench.db"),
            _intake("intake, PostgreSQL", senders["postgres"], postgres.new_database()),
        ]
        try:
            for n in range(rounds + 1):
                for way in ways:
                    # The first turn opens connections and fills caches.
                    way.round(counted=n > 0)
        finally:
            for way in ways:
                way.close()
            for sender in senders.values():
                sender.bus.close()
    show(ways, rounds, time.monotonic() - begun)
    return 0


def _intake(name: str, bus: Senders, database: str) -> Way:
    return Way(
        name,
        "intake",
        f"{bus.url}|{database}",
        bus.our_stream,
        functools.partial(bus.heartbeats, INTAKE),
    )


def show(ways: list[Way], rounds: int, took_s: float) -> None:
    """The table, and the line that scripts read."""
    casts, raw_casts, stream, raw_stream, *stores = ways
    bare: dict[Way, Way] = {casts: raw_casts, stream: raw_stream}
    bare.update(dict.fromkeys(stores, raw_stream))
    size = len(load.heartbeats(0, 1)[0][1])
    say(f"a heartbeat has {size} bytes and {load.GUESTS} guests; median of {rounds} turns each")
    say(f"{'way':24} {'a second':>9} {'lowest':>9} {'highest':>9} {'CPU us each':>12} {'ratio':>6}")
    for way in ways:
        ratio = f"{way.rate / bare[way].rate:.2f}" if way in bare else "1"
        say(
            f"{way.name:24} {way.rate:9.0f} {min(way.rates):9.0f} {max(way.rates):9.0f}"
            f" {statistics.median(way.cpu_us):12.0f} {ratio:>6}"
        )
    say(f"CPU counts sender and receiver, not the broker or database; {took_s:.0f} s in all")
    say(
        f"bench: casts ratio {casts.rate / raw_casts.rate:.2f},"
        f" heartbeats ratio {stream.rate / raw_stream.rate:.2f}"
    )


def say(*words: Any) -> None:
    print(*words, flush=True)  # noqa: T201 - a report for a terminal


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

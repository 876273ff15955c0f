"""The receiving side of the benchmark: one process that takes N messages whenever it is told to."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from common.bus import rabbit
from common.bus.base import HEARTBEATS, Address
from common.conf import Settings
from common.conf.database import Database
from common.conf.default import Default
from common.runtime import Runtime
from tests.wait import wait_until

RAW_TOPIC, OUR_TOPIC, SERVER = "bench-raw", "bench-ours", "receiver"
RAW_CALLS = "bench-calls"
RAW_QUEUE = "bench.raw"
RAW_EXCHANGE, RAW_REPORTS = "bench.raw", "bench.raw.reports"
PREFETCH = 200
# As large as the job that a manager answers with.
ANSWER = {
    "uuid": "3f3c6c9e-7f0b-4a3e-9a53-0d9c0c1f6a11",
    "kind": "start",
    "instance": "5d1c6c9e-7f0b-4a3e-9a53-0d9c0c1f6a12",
    "host": "receiver",
    "state": "RUNNING",
    "waiting_for": "receiver to say that it has the command",
    "accepted_at": "2026-11-01T00:00:00.000000Z",
    "ended_at": None,
}


class Counter:
    """Counts messages; `rounds` tells the parent when the announced number has come."""

    def __init__(self) -> None:
        self._left = 0
        self._lock = threading.Lock()
        self._done = threading.Event()

    def one(self, *_: Any, **__: Any) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._done.set()

    def rounds(self) -> None:
        say("ready")
        for line in sys.stdin:
            self._left = int(line)
            self._done.clear()
            cpu = time.process_time()
            say("go")
            self._done.wait()
            say(str(time.process_time() - cpu))


def await_consumer(url: str, queue: str) -> None:
    """Return once the broker has a consumer on a queue: what comes before it would be lost."""
    import kombu

    def consumed() -> bool:
        with kombu.Connection(url.replace("rabbit://", "amqp://")) as connection:
            try:
                declared = connection.default_channel.queue_declare(queue, passive=True)
            except connection.channel_errors:
                return False
            return bool(declared.consumer_count)

    wait_until(consumed, 20, f"a consumer on {queue}")


def say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


def settings(url: str, database: str = "sqlite://") -> Settings:
    return Settings(
        default=Default(transport_url=url, host="bench"),
        database=Database(connection=database, auto_upgrade=True),
    )


def our_casts(url: str, _database: str, counter: Counter) -> None:
    bus = rabbit.connect(settings(url), Runtime("bench"), "agent")
    bus.serve(Address(OUR_TOPIC, SERVER), lambda _method, _kwargs: counter.one())


def raw_casts(url: str, _database: str, counter: Counter) -> None:
    class Endpoint:
        def start_vm(self, _ctxt: Any, command: Any) -> None:
            counter.one()

    _raw_server(url, RAW_TOPIC, Endpoint())


def raw_calls(url: str, _database: str, counter: Counter) -> None:
    class Endpoint:
        def start_vm(self, _ctxt: Any, command: Any) -> dict[str, Any]:
            counter.one()
            return ANSWER

    _raw_server(url, RAW_CALLS, Endpoint())


def _raw_server(url: str, topic: str, endpoint: Any) -> None:
    import oslo_messaging
    from oslo_config import cfg

    cfg.CONF(args=[], project="bench")
    server = oslo_messaging.get_rpc_server(
        oslo_messaging.get_rpc_transport(cfg.CONF, url=url),
        oslo_messaging.Target(exchange=RAW_EXCHANGE, topic=topic, server=SERVER),
        [endpoint],
    )
    server.start()


def our_stream(url: str, _database: str, counter: Counter) -> None:
    bus = rabbit.connect(settings(url), Runtime("bench"), "manager")
    bus.consume({HEARTBEATS: "heartbeat.*"}, counter.one, _gap, 60.0)


def raw_stream(url: str, _database: str, counter: Counter) -> None:
    import kombu

    connection = kombu.Connection(url.replace("rabbit://", "amqp://"))
    channel = connection.channel()
    queue = kombu.Queue(
        RAW_QUEUE,
        exchange=kombu.Exchange(RAW_REPORTS, type="topic", durable=True),
        routing_key="heartbeat.#",
        queue_arguments={"x-max-length": 20_000},
    )

    def take(message: Any) -> None:
        message.ack()
        counter.one()

    def loop() -> None:
        with kombu.Consumer(channel, [queue], on_message=take, prefetch_count=PREFETCH):
            while True:
                connection.drain_events()

    threading.Thread(target=loop, daemon=True).start()


def intake(url: str, database: str, counter: Counter) -> None:
    """The managers' whole way of a heartbeat: consume, decode, validate, one transaction."""
    from manager.intake.hello import hello
    from manager.intake.reports import Intake
    from manager.store import migrate
    from manager.store.engine import Store
    from tests.bench.load import hellos

    runtime = Runtime("bench")
    configured = settings(url, database)
    store = Store(configured.database, runtime)
    migrate.at_start(store, configured.database)
    for message in hellos():
        hello(store, configured, {"hello": message})
    take = Intake(store, configured)

    def handle(key: str, body: bytes, sender: str | None) -> None:
        take(key, body, sender)
        counter.one()

    bus = rabbit.connect(configured, runtime, "manager")
    bus.consume({HEARTBEATS: "heartbeat.*"}, handle, _gap, 60.0)


def _gap(reason: str) -> None:
    raise RuntimeError(f"the benchmark missed reports: {reason}")


MODES: dict[str, tuple[Callable[[str, str, Counter], None], str]] = {
    "our_casts": (our_casts, f"{OUR_TOPIC}.{SERVER}"),
    "raw_casts": (raw_casts, f"{RAW_TOPIC}.{SERVER}"),
    "raw_calls": (raw_calls, f"{RAW_CALLS}.{SERVER}"),
    "our_stream": (our_stream, f"muster.{HEARTBEATS}"),
    "raw_stream": (raw_stream, RAW_QUEUE),
    "intake": (intake, f"muster.{HEARTBEATS}"),
}

if __name__ == "__main__":
    # Fifty hosts full of strangers are worth a line each to a manager, not to a benchmark.
    logging.disable(logging.WARNING)
    count = Counter()
    begin, taken_from = MODES[sys.argv[1]]
    begin(sys.argv[2], sys.argv[3], count)
    await_consumer(sys.argv[2], taken_from)
    count.rounds()

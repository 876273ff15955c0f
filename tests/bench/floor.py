"""The least that a durable command can cost: one commit in PostgreSQL, then one raw cast.

A bare psycopg connection and a bare oslo.messaging client and server, one after the other, with
nothing of ours between them. `python -m tests.bench.floor URL` is the server.
"""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
import warnings
from typing import Any

import msgspec
import psycopg

from tests.bench import load, peer

TOPIC, SERVER = "bench-floor", "receiver"


class Floor:
    """The raw client, and its server as a process of its own."""

    def __init__(self, broker_url: str, database_url: str) -> None:
        with warnings.catch_warnings():
            # oslo.messaging tells of the end of eventlet, which nothing here uses.
            warnings.simplefilter("ignore")
            import oslo_messaging
        from oslo_config import cfg

        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.bench.floor", broker_url],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._db = psycopg.connect(database_url.replace("+psycopg", ""))
        self._db.execute("CREATE TABLE floor (id text PRIMARY KEY, host text, body text)")
        self._db.execute("CREATE INDEX ON floor (host)")
        self._db.commit()
        # As large as a row of the outbox.
        self._body = msgspec.json.encode(load.COMMAND).decode()
        self._transport = oslo_messaging.get_rpc_transport(cfg.CONF, url=broker_url)
        self._client = oslo_messaging.get_rpc_client(
            self._transport,
            oslo_messaging.Target(exchange=peer.RAW_EXCHANGE, topic=TOPIC, server=SERVER),
        )
        self._read()
        peer.await_consumer(broker_url, f"{TOPIC}.{SERVER}")

    def once(self) -> float:
        """Seconds from the begin of the transaction until the server's endpoint runs."""
        begun = time.monotonic_ns()
        self._db.execute(
            "INSERT INTO floor VALUES (%s, %s, %s)", (str(uuid.uuid4()), "receiver", self._body)
        )
        self._db.commit()
        self._client.cast({}, "start_vm", command=load.COMMAND)
        return (int(self._read()) - begun) / 1e9

    def close(self) -> None:
        self._server.kill()
        self._server.wait()
        self._db.close()
        self._transport.cleanup()

    def _read(self) -> str:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        if not line:
            raise SystemExit("bench: the raw server has ended")
        return line


def serve(url: str) -> None:
    """Say the time at which the endpoint runs, in nanoseconds of CLOCK_MONOTONIC."""
    import oslo_messaging
    from oslo_config import cfg

    class Endpoint:
        def start_vm(self, _ctxt: Any, command: Any) -> None:
            peer.say(str(time.monotonic_ns()))

    cfg.CONF(args=[], project="bench")
    server = oslo_messaging.get_rpc_server(
        oslo_messaging.get_rpc_transport(cfg.CONF, url=url),
        oslo_messaging.Target(exchange=peer.RAW_EXCHANGE, topic=TOPIC, server=SERVER),
        [Endpoint()],
    )
    server.start()
    peer.say("ready")
    server.wait()


if __name__ == "__main__":
    serve(sys.argv[1])

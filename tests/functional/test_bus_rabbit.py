"""What only RabbitMQ can show: logins, frozen and late brokers, green threads."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import amqp
import pytest

from common.bus import rabbit as rabbit_bus
from common.bus.base import ANY_MANAGER, HEARTBEATS, RESULTS, Address, agent_at
from common.errors import BrokerUnavailable, NoManager
from common.runtime import Runtime
from devstack.parts.base import free_port
from devstack.parts.rabbitmq import RabbitMQ
from tests.functional.busfleet import RabbitFleet, raw, settings, unique
from tests.wait import wait_until

pytestmark = pytest.mark.real

# Far more than an idle machine needs, far less than the minute that oslo.messaging waits by itself.
SOON_S = 25.0


@pytest.fixture(scope="module")
def vhost(rabbit: RabbitMQ) -> str:
    return rabbit.new_vhost()


@pytest.fixture
def fleet(rabbit: RabbitMQ, vhost: str) -> Iterator[RabbitFleet]:
    made = RabbitFleet(rabbit, vhost)
    yield made
    made.close()


def test_the_broker_refuses_a_forged_sender(vhost: str) -> None:
    with raw(vhost) as connection:
        message = amqp.Message(b"{}", user_id="somebody-else")
        with pytest.raises(amqp.PreconditionFailed, match="user_id"):
            connection.default_channel.basic_publish(message, "amq.topic", "heartbeat.h")


def test_an_agent_that_may_only_publish_is_vouched_for_by_its_login(
    rabbit: RabbitMQ, fleet: RabbitFleet, vhost: str
) -> None:
    name = unique("agent")
    rabbit.control("add_user", name, "secret")
    rabbit.control(
        "set_permissions", "-p", vhost.rpartition("/")[2], name, "^$", r"^muster\.reports$", "^$"
    )
    got: list[tuple[bytes, str | None]] = []
    word = unique("w")
    fleet.bus("manager").consume(
        {unique("stream"): f"heartbeat.{word}.*"},
        lambda key, body, sender: got.append((body, sender)),
        lambda reason: None,
        30.0,
    )
    url = vhost.replace("guest:guest", f"{name}:secret")
    agent = rabbit_bus.connect(settings(url), fleet.runtime, "agent")

    def heard() -> bool:
        agent.publish(f"heartbeat.{word}.h", b"{}", 5.0)
        return bool(got)

    wait_until(heard, 30, "the report")
    assert got[0] == (b"{}", name)
    agent.close()


def test_heartbeats_are_bounded_and_results_are_kept_by_the_broker(
    rabbit: RabbitMQ, fleet: RabbitFleet, vhost: str
) -> None:
    manager, agent = fleet.bus("manager"), fleet.bus("agent")
    streams = {HEARTBEATS: "heartbeat.*", RESULTS: "result.*"}
    got: list[bytes] = []
    handle = manager.consume(
        streams, lambda key, body, sender: got.append(body), lambda reason: None, 30.0
    )

    def heard() -> bool:
        agent.publish("result.h", b"first")
        return bool(got)

    wait_until(heard, 30, "a first result")
    # Before it stops: more than one may have been published until the first was heard.
    wait_until(lambda: _depth(vhost, "muster.results") == 0, 30, "everything is taken")
    handle.stop()
    agent.publish("heartbeat.h", b"old", 0.001)
    agent.publish("result.h", b"kept")
    rabbit.restart()
    got.clear()
    manager.consume(streams, lambda key, body, sender: got.append(body), lambda reason: None, 30.0)
    wait_until(lambda: b"kept" in got, 60, "the result of before the restart")
    assert b"old" not in got


def _depth(url: str, queue: str) -> int:
    with raw(url) as connection:
        return int(connection.default_channel.queue_declare(queue, passive=True).message_count)


def test_a_process_comes_up_before_its_broker(
    rabbit: RabbitMQ, fleet: RabbitFleet, caplog: pytest.LogCaptureFixture
) -> None:
    topic, word = unique("topic-"), unique("w")
    got: list[bytes] = []
    fleet.down()
    manager = fleet.bus("manager")
    with caplog.at_level(logging.INFO):
        manager.serve(Address(topic, "m1"), lambda method, kwargs: method)
        manager.consume(
            {unique("stream"): f"heartbeat.{word}.*"},
            lambda key, body, sender: got.append(body),
            lambda reason: None,
            30.0,
        )
        for _ in range(3):
            with pytest.raises(BrokerUnavailable):
                manager.cast(Address(topic, "h"), "x", {})
        fleet.up()

        def answered() -> bool:
            # On the same bus: another would tell of the outage for itself.
            try:
                manager.publish(f"heartbeat.{word}.h", b"{}", 5.0)
                return manager.call(Address(topic), "ping", {}, 5.0) == "ping" and bool(got)
            except (BrokerUnavailable, NoManager):
                return False

        wait_until(answered, 60, "both work once the broker is there")
    told = [r for r in caplog.records if "is away" in r.getMessage()]
    assert len(told) == 1
    assert all(r.exc_info is None for r in caplog.records)


def test_a_frozen_broker_costs_seconds_and_not_for_ever(
    rabbit: RabbitMQ, fleet: RabbitFleet
) -> None:
    topic = unique("topic-")
    bus = fleet.bus("manager")
    bus.serve(Address(topic, "m1"), lambda method, kwargs: method)
    assert bus.call(Address(topic), "ping", {}, 10) == "ping"
    bus.publish("result.h", b"{}")
    rabbit.freeze()
    try:
        for attempt in (
            lambda: bus.cast(Address(topic, "m1"), "x", {}),
            lambda: bus.call(Address(topic), "x", {}, 3.0),
            lambda: bus.publish("result.h", b"{}"),
        ):
            begun = time.monotonic()
            with pytest.raises((BrokerUnavailable, NoManager)):
                attempt()
            assert time.monotonic() - begun < SOON_S
    finally:
        rabbit.thaw()

    def answered() -> bool:
        try:
            bus.publish("result.h", b"{}")
            return bool(bus.call(Address(topic), "ping", {}, 5.0))
        except (BrokerUnavailable, NoManager):
            return False

    wait_until(answered, 60, "it works again")


def test_a_caller_that_is_gone_costs_a_second_and_is_answered_when_it_is_back(
    fleet: RabbitFleet, vhost: str, caplog: pytest.LogCaptureFixture
) -> None:
    topic, reply_queue = unique("topic-"), unique("reply_")
    manager, operator = fleet.bus("manager"), fleet.bus("client")
    manager.serve(Address(topic, "m1"), lambda method, kwargs: method)
    assert operator.call(Address(topic), "ping", {}, 10) == "ping"

    def gave_up() -> int:
        return sum("any more to take the answer" in r.getMessage() for r in caplog.records)

    with raw(vhost) as connection, caplog.at_level(logging.INFO):
        begun = time.monotonic()
        for n in range(20):
            _request(connection, topic, reply_queue, f"lost-{n}")
        while not gave_up():
            # Nobody else waits for those who are gone.
            asked = time.monotonic()
            assert operator.call(Address(topic), "ping", {}, 10) == "ping"
            assert time.monotonic() - asked < 1.0
            assert time.monotonic() - begun < SOON_S
        assert time.monotonic() - begun > 0.9
        wait_until(lambda: gave_up() == 20, 10, "all are given up")
        # The same queue again, as that of an agent whose broker had lost it.
        channel = connection.default_channel
        channel.queue_declare(reply_queue, durable=False, auto_delete=False)
        _request(connection, topic, reply_queue, "found")
        taken = wait_until(lambda: channel.basic_get(reply_queue, no_ack=True), 5, "an answer")
        assert json.loads(json.loads(taken.body)["oslo.message"])["result"] == {"value": "found"}


def _request(connection: Any, topic: str, reply_queue: str, method: str) -> None:
    """What oslo.messaging's client sends for a call."""
    request = {
        "method": method,
        "args": {},
        "version": "1.0",
        "_msg_id": unique("id"),
        "_unique_id": unique("id"),
        "_reply_q": reply_queue,
    }
    body = json.dumps({"oslo.version": "2.0", "oslo.message": json.dumps(request)})
    message = amqp.Message(body, content_type="application/json", content_encoding="utf-8")
    connection.default_channel.basic_publish(message, "muster", topic)


def test_a_wrong_password_is_said_in_one_line(vhost: str, caplog: pytest.LogCaptureFixture) -> None:
    url = vhost.replace("guest:guest", "guest:wrong")
    runtime = Runtime("test")
    bus = rabbit_bus.connect(settings(url), runtime, "client")
    with pytest.raises(BrokerUnavailable, match="ACCESS_REFUSED"):
        bus.call(ANY_MANAGER, "vm_list", {}, 5.0)
    bus.close()
    runtime.stop()


def test_a_port_nobody_listens_on_is_said_within_the_callers_time() -> None:
    runtime = Runtime("test")
    bus = rabbit_bus.connect(
        settings(f"rabbit://guest:guest@127.0.0.1:{free_port()}/"), runtime, "client"
    )
    begun = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="refused"):
        bus.call(ANY_MANAGER, "vm_list", {}, 2.0)
    assert time.monotonic() - begun < SOON_S
    bus.close()
    runtime.stop()


def test_an_agent_on_green_threads_serves_calls_and_reports(fleet: RabbitFleet, vhost: str) -> None:
    manager = fleet.bus("manager")
    got: dict[str, Any] = {}
    word = unique("w")
    manager.serve(
        Address(ANY_MANAGER.topic, "m1"),
        lambda method, kwargs: {"session": 7, **kwargs},
    )
    manager.consume(
        {unique("stream"): f"heartbeat.{word}.*", unique("stream"): f"result.{word}.*"},
        lambda key, body, sender: got.__setitem__(key.partition(".")[0], json.loads(body)),
        lambda reason: None,
        30.0,
    )
    process = subprocess.Popen(
        [sys.executable, "-W", "error::RuntimeWarning", "-m", "tests.functional.green_agent"],
        env={"URL": vhost, "WORD": word, "HOST": f"{word}.green.example.org", "PYTHONPATH": "."},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: {"heartbeat", "result"} <= set(got), 60, "both kinds of report")
        assert got["result"] == {"session": 7, "hello_id": "h1"}
        at = agent_at(f"{word}.green.example.org")
        assert manager.call(at, "ping", {"n": 1}, 10) == {"method": "ping", "n": 1}
        manager.cast(at, "quit", {})
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors


def test_a_backlog_that_arrives_while_subscribing_is_no_standstill(fleet: RabbitFleet) -> None:
    """A consumer that took it for one reconnected, ever later, to find the same again, for ever."""
    word, bus = unique("w"), fleet.bus("manager")
    streams = {unique("one"): f"heartbeat.{word}.*", unique("two"): f"result.{word}.*"}
    early: list[str] = []
    first = bus.consume(streams, lambda key, _b, _s: early.append(key), lambda _r: None, 30.0)

    def heard() -> bool:
        bus.publish(f"heartbeat.{word}.h", b"{}")
        return bool(early)

    wait_until(heard, 30, "the queues are there")
    first.stop()
    for n in range(300):
        bus.publish(f"heartbeat.{word}.h{n}", b"{}")
    got: set[str] = set()
    gaps: list[str] = []
    bus.consume(streams, lambda key, _b, _s: got.add(key), gaps.append, 30.0)
    wait_until(lambda: f"heartbeat.{word}.h299" in got, 30, "the backlog")
    assert gaps == []

"""The bus port: what every adapter must do, proven on the memory bus and on RabbitMQ."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from common.bus.base import Address, Bus, Handle
from common.errors import BadMessage, BrokerUnavailable, MusterError, NoManager, NotOurs
from devstack.parts.rabbitmq import RabbitMQ
from tests.functional.busfleet import Fleet, MemoryFleet, RabbitFleet, unique
from tests.wait import wait_until

HOST = "rack-1.site-2.example.org"
# Far more than an idle machine needs, far less than the minute that oslo.messaging waits by itself.
SOON_S = 25.0


@pytest.fixture(scope="module")
def vhost(request: pytest.FixtureRequest) -> str:
    part: RabbitMQ = request.getfixturevalue("rabbit")
    return part.new_vhost()


@pytest.fixture(params=["memory", pytest.param("rabbit", marks=pytest.mark.real)])
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    made: Fleet
    if request.param == "memory":
        made = MemoryFleet()
    else:
        made = RabbitFleet(request.getfixturevalue("rabbit"), request.getfixturevalue("vhost"))
    yield made
    made.close()


@pytest.fixture
def topic() -> str:
    return unique("topic-")


class Reports:
    """A consumer of one shared stream that remembers what it was given."""

    def __init__(self, bus: Bus, stall_s: float = 30.0, private: str | None = None) -> None:
        self.word = unique("w")
        self.pattern = f"heartbeat.{self.word}.*"
        self.got: list[tuple[str, bytes, str | None]] = []
        self.gaps: list[str] = []
        self.failures: list[Exception] = []
        streams = {unique("stream"): self.pattern}
        if private:
            streams = {f"beats.{self.word}": private}
        self.handle: Handle = bus.consume(streams, self._take, self.gaps.append, stall_s)

    def key(self, host: str = HOST) -> str:
        return f"heartbeat.{self.word}.{host}"

    def bodies(self) -> list[bytes]:
        return [body for _, body, _ in self.got]

    def _take(self, key: str, body: bytes, sender: str | None) -> None:
        if body != b"ready?" and self.failures:
            raise self.failures.pop(0)
        self.got.append((key, body, sender))

    def begun(self, bus: Bus, key: str | None = None) -> Reports:
        """Return once the consumer hears what is published."""

        def heard() -> bool:
            bus.publish(key or self.key(), b"ready?", 5.0)
            return bool(self.got)

        wait_until(heard, 30, "the consumer hears a first report")
        return self


def echo(method: str, kwargs: dict[str, Any]) -> Any:
    return {"method": method, "kwargs": kwargs}


def test_a_call_brings_back_the_answer_of_a_server(fleet: Fleet, topic: str) -> None:
    fleet.bus("manager").serve(Address(topic, "m1"), echo)
    answer = fleet.bus("client").call(Address(topic), "vm_list", {"host": None, "n": [1]}, 10)
    assert answer == {"method": "vm_list", "kwargs": {"host": None, "n": [1]}}


@pytest.mark.parametrize("method", ["no_such_verb", "_private", "dispatch", "target"])
def test_every_method_reaches_the_endpoint_also_an_unknown_one(
    fleet: Fleet, topic: str, method: str
) -> None:
    fleet.bus("manager").serve(Address(topic, "m1"), echo)
    assert fleet.bus("client").call(Address(topic), method, {}, 10)["method"] == method


def test_an_error_travels_with_its_code_remedy_and_data(fleet: Fleet, topic: str) -> None:
    def refuse(method: str, kwargs: dict[str, Any]) -> Any:
        raise NotOurs("web-1 carries no mark", "adopt it first", vm="web-1")

    fleet.bus("manager").serve(Address(topic, "m1"), refuse)
    with pytest.raises(MusterError) as caught:
        fleet.bus("client").call(Address(topic), "vm_delete", {}, 10)
    error = caught.value
    assert (error.code, error.message, error.remedy, error.data, error.exit_code) == (
        "NOT_OURS",
        "web-1 carries no mark",
        "adopt it first",
        {"vm": "web-1"},
        4,
    )


def test_a_mistake_in_an_endpoint_is_an_internal_error_and_the_server_goes_on(
    fleet: Fleet, topic: str
) -> None:
    def clumsy(method: str, kwargs: dict[str, Any]) -> Any:
        if method == "bad":
            raise ZeroDivisionError("by zero")
        return "fine"

    fleet.bus("manager").serve(Address(topic, "m1"), clumsy)
    client = fleet.bus("client")
    with pytest.raises(MusterError, match="ZeroDivisionError: by zero") as caught:
        client.call(Address(topic), "bad", {}, 10)
    assert caught.value.code == "INTERNAL_ERROR"
    assert client.call(Address(topic), "good", {}, 10) == "fine"


def test_nobody_serving_is_no_manager_within_the_time(fleet: Fleet, topic: str) -> None:
    begun = time.monotonic()
    with pytest.raises(NoManager):
        fleet.bus("client").call(Address(topic), "vm_list", {}, 2.0)
    assert time.monotonic() - begun < SOON_S


def test_a_server_that_has_stopped_answers_no_more(fleet: Fleet, topic: str) -> None:
    handle = fleet.bus("manager").serve(Address(topic, "m1"), echo)
    client = fleet.bus("client")
    assert client.call(Address(topic), "ping", {}, 10)
    handle.stop()
    with pytest.raises(NoManager):
        client.call(Address(topic), "ping", {}, 1.0)


def test_stopping_a_server_finishes_what_is_in_hand(fleet: Fleet, topic: str) -> None:
    begun, finish, done = threading.Event(), threading.Event(), threading.Event()

    def slow(method: str, kwargs: dict[str, Any]) -> Any:
        begun.set()
        finish.wait(30.0)
        done.set()

    handle = fleet.bus("manager").serve(Address(topic, "m1"), slow)
    fleet.bus("client").cast(Address(topic, "m1"), "work", {})
    assert begun.wait(30.0)
    stopper = threading.Thread(target=handle.stop)
    stopper.start()
    finish.set()
    stopper.join(30.0)
    assert done.wait(30.0)


def test_a_cast_reaches_the_one_server_it_names(fleet: Fleet, topic: str) -> None:
    heard: dict[str, list[str]] = {"host-1.example.org": [], "host-2.example.org": []}
    for name, into in heard.items():
        fleet.bus("agent").serve(
            Address(topic, name), lambda method, kwargs, into=into: into.append(method)
        )
    manager = fleet.bus("manager")
    for n in range(4):
        manager.cast(Address(topic, "host-2.example.org"), f"start_vm_{n}", {})
    wait_until(lambda: len(heard["host-2.example.org"]) == 4, 30, "four casts")
    assert heard["host-1.example.org"] == []


def test_a_cast_to_nobody_is_lost_in_silence(fleet: Fleet, topic: str) -> None:
    fleet.bus("manager").cast(Address(topic, "nobody"), "start_vm", {})


def test_reports_of_all_hosts_come_together_whatever_dots_their_names_have(fleet: Fleet) -> None:
    reports = Reports(fleet.bus("manager"))
    hosts = ["alone", "two.words", HOST]
    buses = [fleet.bus("agent") for _ in hosts]
    reports.begun(buses[0])
    for bus, host in zip(buses, hosts, strict=True):
        bus.publish(reports.key(host), host.encode(), 30.0)
    wait_until(lambda: {h.encode() for h in hosts} <= set(reports.bodies()), 30, "all three")
    keys = {body: key for key, body, _ in reports.got}
    assert keys[HOST.encode()] == reports.key(HOST)


def test_two_consumers_of_a_shared_stream_get_each_report_once(fleet: Fleet) -> None:
    word = unique("w")
    name, pattern = unique("stream"), f"heartbeat.{word}.*"
    got: list[bytes] = []
    for _ in range(2):
        fleet.bus("manager").consume(
            {name: pattern}, lambda key, body, sender: got.append(body), lambda reason: None, 30.0
        )
    agent = fleet.bus("agent")

    def heard() -> bool:
        agent.publish(f"heartbeat.{word}.h", b"ready?", 5.0)
        return bool(got)

    wait_until(heard, 30, "a first report")
    for n in range(20):
        agent.publish(f"heartbeat.{word}.h", str(n).encode(), 30.0)
    wait_until(lambda: len([b for b in got if b != b"ready?"]) >= 20, 30, "twenty reports")
    assert sorted(int(b) for b in got if b != b"ready?") == list(range(20))


def test_a_private_queue_hears_its_own_beat_only(fleet: Fleet) -> None:
    one, two = unique("beat.m"), unique("beat.m")
    bus = fleet.bus("manager")
    first = Reports(bus, private=one).begun(bus, one)
    second = Reports(bus, private=two).begun(bus, two)
    bus.publish(one, b"mine", 30.0)
    wait_until(lambda: b"mine" in first.bodies(), 30, "its own beat")
    assert b"mine" not in second.bodies()


def test_a_report_that_can_not_be_read_is_kept_with_the_reason_and_the_next_is_taken(
    fleet: Fleet,
) -> None:
    agent = fleet.bus("agent")
    reports = Reports(fleet.bus("manager")).begun(agent)
    reports.failures = [BadMessage("Heartbeat: field seq is missing")]
    agent.publish(reports.key(), b"\xff not json", 30.0)
    agent.publish(reports.key(), b"good", 30.0)
    wait_until(lambda: b"good" in reports.bodies(), 30, "the next report")
    dead = wait_until(lambda: fleet.dead(reports.key()), 30, "the dead letter")
    assert dead[0] == b"\xff not json"
    assert "field seq is missing" in dead[1]


def test_a_report_whose_handler_fails_comes_again(fleet: Fleet) -> None:
    agent = fleet.bus("agent")
    reports = Reports(fleet.bus("manager")).begun(agent)
    reports.failures = [RuntimeError("the database is away")] * 3
    agent.publish(reports.key(), b"stubborn", 60.0)
    wait_until(lambda: b"stubborn" in reports.bodies(), 30, "the fourth try")
    assert reports.failures == []


def test_a_loop_that_stood_still_tells_of_the_gap_and_goes_on(fleet: Fleet) -> None:
    agent = fleet.bus("agent")
    reports = Reports(fleet.bus("manager"), stall_s=20.0).begun(agent)
    fleet.runtime.ahead += 60
    wait_until(lambda: any("stood still" in gap for gap in reports.gaps), 30, "the gap")
    reports.got.clear()
    reports.begun(agent)


def test_a_stopped_consumer_takes_nothing_new(fleet: Fleet) -> None:
    agent = fleet.bus("agent")
    reports = Reports(fleet.bus("manager")).begun(agent)
    reports.handle.stop()
    taken = len(reports.got)
    other = Reports(fleet.bus("manager"))
    agent.publish(reports.key(), b"late", 5.0)
    other.begun(agent)
    assert b"late" not in reports.bodies()[taken:]


def test_a_broker_that_is_away_is_a_clear_error_soon(fleet: Fleet, topic: str) -> None:
    fleet.down()
    bus = fleet.bus("client")
    for attempt in (
        lambda: bus.call(Address(topic), "vm_list", {}, 3.0),
        lambda: bus.cast(Address(topic, "h"), "start_vm", {}),
        lambda: bus.publish("heartbeat.h", b"{}", 5.0),
        lambda: bus.publish("result.h", b"{}"),
    ):
        begun = time.monotonic()
        with pytest.raises(BrokerUnavailable) as caught:
            attempt()
        assert time.monotonic() - begun < SOON_S
        assert "\n" not in str(caught.value)


def test_servers_and_consumers_outlive_a_restart_of_the_broker(fleet: Fleet, topic: str) -> None:
    manager, agent = fleet.bus("manager"), fleet.bus("agent")
    manager.serve(Address(topic, "m1"), echo)
    reports = Reports(manager).begun(agent)
    assert agent.call(Address(topic), "hello", {}, 10)
    fleet.down()
    wait_until(lambda: reports.gaps, 30, "the gap")
    fleet.up()
    reports.got.clear()

    def answered() -> bool:
        try:
            return bool(agent.call(Address(topic), "hello", {}, 5))
        except (BrokerUnavailable, NoManager):
            return False

    def reported() -> bool:
        # Again and again: nobody keeps a report longer than it lives.
        with contextlib.suppress(BrokerUnavailable):
            agent.publish(reports.key(), b"back", 5.0)
        return b"back" in reports.bodies()

    wait_until(answered, 60, "calls work again")
    wait_until(reported, 60, "reports come again")


class Gatherer:
    """A handler that takes what has come together, unless `refuses` is among it."""

    def __init__(self) -> None:
        self.one_by_one: list[bytes] = []
        self.together_: list[list[bytes]] = []
        self.refuses = b"no body"
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self, key: str, body: bytes, sender: str | None, /) -> None:
        if not self.begun.is_set():
            self.begun.set()
            self.go_on.wait(30.0)
        self.one_by_one.append(body)

    def together(self, reports: Sequence[tuple[str, bytes, str | None]], /) -> None:
        bodies = [body for _key, body, _sender in reports]
        if self.refuses in bodies:
            raise ValueError("one of them can not be taken so")
        self.together_.append(bodies)

    @property
    def bodies(self) -> list[bytes]:
        return self.one_by_one + [body for bodies in self.together_ for body in bodies]


def _gathering(fleet: Fleet, gatherer: Gatherer, bodies: list[bytes]) -> None:
    """While the handler is busy with one report, `bodies` come."""
    word, agent = unique("g"), fleet.bus("agent")
    fleet.bus("manager").consume({unique("s"): f"result.{word}"}, gatherer, lambda _: None, 60.0)

    def begun() -> bool:
        agent.publish(f"result.{word}", b"first", 60.0)
        return gatherer.begun.wait(0.1)

    wait_until(begun, 30, "a first report")
    for body in bodies:
        agent.publish(f"result.{word}", body, 60.0)
    gatherer.go_on.set()
    wait_until(lambda: set(bodies) <= set(gatherer.bodies), 30, "all of them")


def test_reports_that_have_come_together_are_taken_together(fleet: Fleet) -> None:
    gatherer, bodies = Gatherer(), [str(n).encode() for n in range(12)]
    _gathering(fleet, gatherer, bodies)
    assert [b for b in gatherer.bodies if b != b"first"] == bodies
    assert max(len(each) for each in gatherer.together_) > 1


def test_one_that_can_not_be_taken_together_loses_none_of_the_others(fleet: Fleet) -> None:
    gatherer, bodies = Gatherer(), [str(n).encode() for n in range(12)]
    gatherer.refuses = b"5"
    _gathering(fleet, gatherer, bodies)
    assert sorted(b for b in gatherer.bodies if b != b"first") == sorted(bodies)
    assert b"5" in gatherer.one_by_one

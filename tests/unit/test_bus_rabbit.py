"""The parts of the RabbitMQ adapter that need no broker."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from common.bus import rabbit
from common.conf import Settings
from common.conf.default import Default
from common.errors import BadConfig
from common.runtime import Runtime
from tests.functional.busfleet import MovableRuntime


def connect(url: str) -> Any:
    return rabbit.connect(Settings(default=Default(transport_url=url)), Runtime("test"), "client")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("memory://", "make demo"),
        ("http://127.0.0.1/", "rabbit://USER"),
        ("rabbit:///", "names no host"),
        ("rabbit://guest:guest@127.0.0.1:port/", "rabbit://USER"),
    ],
)
def test_an_impossible_transport_url_is_refused_with_the_remedy(url: str, words: str) -> None:
    with pytest.raises(BadConfig, match=r"transport_url") as caught:
        connect(url)
    assert words in str(caught.value)


def test_connecting_reaches_nobody_yet() -> None:
    connect("rabbit://guest:guest@127.0.0.1:1/").close()


@pytest.mark.parametrize(
    ("pattern", "binding"),
    [("heartbeat.*", "heartbeat.#"), ("result.*", "result.#"), ("beat.m1", "beat.m1")],
)
def test_a_pattern_covers_host_names_with_dots(pattern: str, binding: str) -> None:
    from common.bus.rabbit_streams import queue_for

    assert queue_for("heartbeats", pattern).routing_key == binding


def test_only_results_are_kept_without_a_bound_and_only_private_queues_go_away() -> None:
    from common.bus.rabbit_streams import queue_for

    heartbeats, results = queue_for("heartbeats", "heartbeat.*"), queue_for("results", "result.*")
    private = queue_for("beats.m1", "beat.m1")
    assert heartbeats.queue_arguments["x-max-length"] == 20_000
    assert not results.queue_arguments
    assert (heartbeats.durable, results.durable, private.durable) == (True, True, False)
    assert (heartbeats.exclusive, private.exclusive, private.auto_delete) == (False, True, True)


def test_an_outage_is_told_once_and_its_end_once(caplog: pytest.LogCaptureFixture) -> None:
    from common.bus.rabbit_link import Outage

    def told() -> list[str]:
        return ["away" if "is away" in r.getMessage() else "back" for r in caplog.records]

    runtime = MovableRuntime("test")
    outage = Outage(runtime, "127.0.0.1:5672")
    with caplog.at_level(logging.INFO):
        outage.back()
        for _ in range(5):
            outage.lost(ConnectionRefusedError(111, "Connection refused"))
        assert outage.reason
        outage.back()
        outage.back()
        assert told() == ["away", "back"]
        outage.lost("flickers while it starts")
        outage.back()
        assert told() == ["away", "back"]
        outage.lost("and stays away")
        runtime.ahead += 60
        outage.lost("and stays away")
        assert told() == ["away", "back", "away"]

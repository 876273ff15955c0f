"""Notices on a real broker, by oslo.messaging's notifier."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from common.bus import notifier
from common.bus import rabbit as rabbit_bus
from common.bus.base import Notice
from common.conf import notifications
from common.runtime import Runtime
from devstack.parts.rabbitmq import RabbitMQ
from tests.functional.busfleet import raw, settings, unique
from tests.wait import wait_until

pytestmark = pytest.mark.real


def test_a_notice_comes_to_the_queue_of_its_priority_with_who_told_it(rabbit: RabbitMQ) -> None:
    url, topic, runtime = rabbit.new_vhost(), unique("notices"), Runtime("test")
    bus = rabbit_bus.connect(settings(url), runtime, "manager")
    wanted = notifications.Notifications(driver=["messagingv2"], topics=[topic])
    teller = notifier.connect(msgspec.structs.replace(settings(url), notifications=wanted))
    assert teller is not None
    teller.take(
        [
            Notice("instance.delete.start", "INFO", {"name": "web-1"}),
            Notice("instance.delete.error", "ERROR", {"name": "web-1"}),
        ]
    )
    teller.turn()

    def message(queue: str) -> dict[str, Any]:
        with raw(url) as connection:
            got = wait_until(lambda: connection.default_channel.basic_get(queue), 20, queue)
        found: dict[str, Any] = json.loads(json.loads(got.body)["oslo.message"])
        return found

    started, failed = message(f"{topic}.info"), message(f"{topic}.error")
    assert started["event_type"] == "instance.delete.start"
    assert started["payload"] == {"name": "web-1"}
    assert started["publisher_id"] == "muster-manager.test"
    assert (failed["event_type"], failed["priority"]) == ("instance.delete.error", "ERROR")
    bus.close()

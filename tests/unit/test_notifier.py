"""Notices: told in order, each at most once, and nobody waits for them."""

from __future__ import annotations

import logging

import pytest

from common.bus import notifier
from common.bus.base import Notice
from common.conf import Settings, default, notifications
from common.errors import BadConfig


def notices(count: int) -> list[Notice]:
    return [Notice(f"event {n}", "INFO", {"n": n}) for n in range(count)]


def test_what_was_taken_is_sent_once_and_in_order() -> None:
    sent: list[Notice] = []
    teller = notifier.Notifier(sent.append)
    assert teller.take(notices(3))
    assert not teller.take([])
    teller.turn()
    teller.turn()
    assert sent == notices(3)


def test_one_that_fails_is_not_sent_again_and_does_not_hold_up_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried: list[str] = []

    def send(notice: Notice) -> None:
        tried.append(notice.event)
        if notice.event == "event 0":
            raise OSError("no route to the broker")

    teller = notifier.Notifier(send)
    teller.take(notices(2))
    with caplog.at_level(logging.ERROR):
        teller.turn()
        teller.turn()
    assert tried == ["event 0", "event 1"]
    assert "event 0 was not told" in caplog.text


def test_the_oldest_go_when_too_many_wait(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notifier, "WAITING", 2)
    sent: list[Notice] = []
    teller = notifier.Notifier(sent.append)
    teller.take(notices(3))
    teller.turn()
    assert [notice.event for notice in sent] == ["event 1", "event 2"]
    assert "nobody is told of event 0" in caplog.text


def test_without_a_driver_nobody_is_told() -> None:
    assert notifier.connect(Settings()) is None


def test_a_driver_that_is_not_there_is_refused_by_its_name() -> None:
    wanted = notifications.Notifications(driver=["log", "carrier-pigeon"])
    at = default.Default(transport_url="rabbit://127.0.0.1:1/")
    with pytest.raises(BadConfig, match="there is no carrier-pigeon") as caught:
        notifier.connect(Settings(default=at, notifications=wanted))
    assert "messagingv2" in caught.value.remedy


def test_an_address_that_is_none_is_refused() -> None:
    wanted = notifications.Notifications(driver=["log"], transport_url="pigeon://roof")
    with pytest.raises(BadConfig, match="transport_url") as caught:
        notifier.connect(Settings(notifications=wanted))
    assert "rabbit://" in caught.value.remedy

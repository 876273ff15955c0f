"""Notifications: what became of VMs, told through oslo.messaging to whoever wants to know.

Nobody waits for them and nothing depends on them: they are sent after the commit, in order, by a
loop of their own, each at most once.
"""

from __future__ import annotations

import collections
import logging
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from common.bus.base import Notice
from common.conf import Settings
from common.errors import BadConfig

LOG = logging.getLogger(__name__)
WAITING = 10_000  # notices, while their broker is away
GROUP = "oslo_messaging_notifications"


class Notifier:
    """Sends what it has taken, one after the other; the oldest go when too many wait."""

    def __init__(self, send: Callable[[Notice], None]) -> None:
        self._send = send
        self._waiting: collections.deque[Notice] = collections.deque()

    def take(self, notices: Iterable[Notice]) -> bool:
        """Remember what a transaction that has been committed tells; True for anything."""
        told = list(notices)
        self._waiting.extend(told)
        while len(self._waiting) > WAITING:
            lost = self._waiting.popleft()
            LOG.warning("nobody is told of %s: %d notices wait", lost.event, WAITING)
        return bool(told)

    def turn(self) -> None:
        """Send all that waits. One that is being sent is not sent again, whatever becomes of it."""
        while True:
            try:
                notice = self._waiting.popleft()
            except IndexError:
                return
            try:
                self._send(notice)
            except Exception:
                LOG.exception("%s was not told", notice.event)


def connect(settings: Settings) -> Notifier | None:
    """The notifier that the configuration asks for, on the bus's own configuration; None for none.

    Raises BadConfig for a driver that is not there or an address that is none.
    """
    wanted = settings.notifications
    if not wanted.driver:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as for the bus, which says why
        # Late: half a second.
        import oslo_messaging
        from oslo_config import cfg
    conf = cfg.CONF
    url = wanted.transport_url or settings.default.transport_url
    try:
        transport = oslo_messaging.get_notification_transport(conf, url=url)
    except (oslo_messaging.MessagingException, ValueError, RuntimeError) as exc:
        raise BadConfig(
            f"[{GROUP}] transport_url: {exc}", "write it as rabbit://USER:PASSWORD@HOST:PORT/VHOST"
        ) from exc
    conf.set_override("driver", wanted.driver, group=GROUP)
    publisher = f"muster-manager.{settings.default.host}"
    notifier = oslo_messaging.Notifier(transport, publisher_id=publisher, topics=wanted.topics)
    missing = set(wanted.driver) - set(notifier._driver_mgr.names())
    if missing:
        raise BadConfig(
            f"[{GROUP}] driver: there is no {', '.join(sorted(missing))}",
            "messagingv2, messaging, log or noop",
        )

    def send(notice: Notice) -> None:
        tell: Any = {"ERROR": notifier.error, "INFO": notifier.info}[notice.priority]
        tell({}, notice.event, notice.payload)

    return Notifier(send)

"""[oslo_messaging_notifications]: who is told when a VM is deleted."""

import msgspec
from oslo_config import cfg

GROUP = "oslo_messaging_notifications"

OPTIONS = [
    cfg.MultiStrOpt(
        "driver",
        default=[],
        help="How managers send notifications: messagingv2, messaging, log or noop; may be"
        " repeated. None: not at all.",
    ),
    cfg.StrOpt(
        "transport_url",
        default=None,
        secret=True,
        help="The broker that notifications are sent to; else that of [DEFAULT] transport_url.",
    ),
    cfg.ListOpt(
        "topics",
        default=["notifications"],
        help="The queues that they are put into, with their priority: notifications.info.",
    ),
]


class Notifications(msgspec.Struct, frozen=True, kw_only=True):
    """The values of [oslo_messaging_notifications]."""

    driver: list[str] = []
    transport_url: str | None = None
    topics: list[str] = msgspec.field(default_factory=lambda: ["notifications"])


SETTINGS = Notifications

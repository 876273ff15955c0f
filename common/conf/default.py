"""[DEFAULT]: who we are and how we reach the others."""

import socket

import msgspec
from oslo_config import cfg

GROUP = "DEFAULT"

OPTIONS = [
    cfg.StrOpt(
        "transport_url",
        default="rabbit://guest:guest@127.0.0.1:5672/",
        secret=True,
        help="The broker, as oslo.messaging writes it: rabbit://USER:PASSWORD@HOST:PORT/VHOST.",
    ),
    cfg.StrOpt(
        "fleet_id",
        default="default",
        regex=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
        help="The fleet's name. Guests marked with another fleet's are never touched.",
    ),
    cfg.StrOpt(
        "host",
        default=socket.gethostname(),
        sample_default="<this machine's name>",
        regex=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
        help="The name under which this manager or agent is known. Unique in the fleet.",
    ),
    cfg.StrOpt(
        "executor",
        default="threading",
        choices=["threading", "eventlet"],
        help="What an agent runs its work on. Managers always use threads.",
    ),
    cfg.FloatOpt(
        "report_interval",
        default=10.0,
        min=0.1,
        max=3600.0,
        help="Seconds between two heartbeats of an agent. Managers check it against"
        " service_down_time, so set it alike everywhere.",
    ),
    cfg.StrOpt(
        "log_level",
        default="INFO",
        choices=["DEBUG", "INFO", "WARNING", "ERROR"],
        help="The least level that is logged to standard error.",
    ),
    cfg.BoolOpt("log_json", default=False, help="Log one JSON object a line."),
]


class Default(msgspec.Struct, frozen=True, kw_only=True):
    """The values of [DEFAULT]."""

    transport_url: str = "memory://"
    fleet_id: str = "default"
    host: str = "localhost"
    executor: str = "threading"
    report_interval: float = 10.0
    log_level: str = "INFO"
    log_json: bool = False


SETTINGS = Default

"""[client]: the operators' command line."""

import msgspec
from oslo_config import cfg

GROUP = "client"

OPTIONS = [
    cfg.FloatOpt(
        "rpc_timeout",
        default=10.0,
        min=0.1,
        max=3600.0,
        help="Seconds that `muster` waits for a manager's answer.",
    ),
    cfg.FloatOpt(
        "wait_timeout",
        default=900.0,
        min=0.1,
        max=86400.0,
        help="Seconds that --wait follows a job.",
    ),
]


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """The values of [client]; times are seconds."""

    rpc_timeout: float = 10.0
    wait_timeout: float = 900.0


SETTINGS = Client

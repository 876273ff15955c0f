"""[database]: the managers' store."""

import msgspec
from oslo_config import cfg

GROUP = "database"

OPTIONS = [
    cfg.StrOpt(
        "connection",
        default="sqlite:////var/lib/muster/muster.db",
        secret=True,
        help="SQLAlchemy URL: sqlite:///PATH for one machine, postgresql+psycopg://... for a"
        " cluster. Surviving a failover of PostgreSQL needs synchronous replicas"
        " (synchronous_standby_names): with asynchronous ones the last commands can be lost.",
    ),
    cfg.BoolOpt(
        "auto_upgrade",
        default=None,
        help="Bring the schema up to date when a manager starts. Unset: yes on SQLite, no"
        " elsewhere (use `muster db upgrade`).",
    ),
    cfg.IntOpt(
        "pool_size",
        default=10,
        min=1,
        max=200,
        help="A manager opens up to twice so many connections, as it needs them, and keeps them.",
    ),
]


class Database(msgspec.Struct, frozen=True, kw_only=True):
    """The values of [database]."""

    connection: str = "sqlite://"
    auto_upgrade: bool | None = None
    pool_size: int = 10


SETTINGS = Database

"""[rbd]: how an agent reaches Ceph for the disks of pools of kind rbd."""

import msgspec
from oslo_config import cfg

GROUP = "rbd"

OPTIONS = [
    cfg.StrOpt("user", default="muster", help="The cephx user, without `client.` before it."),
    cfg.StrOpt(
        "keyring",
        default="",
        help="The file with the user's key, as `ceph auth get-or-create` prints it; without one"
        " this host has no disks in Ceph. The managers never see it.",
    ),
    cfg.StrOpt(
        "conf",
        default="",
        help="A ceph.conf with whatever else clients of the cluster need; the monitors are those of"
        " the pool.",
    ),
    cfg.IntOpt(
        "timeout",
        default=30,
        min=1,
        max=3600,
        help="Seconds that the cluster's monitors and OSDs get for each answer.",
    ),
]


class Rbd(msgspec.Struct, frozen=True, kw_only=True):
    """The values of [rbd]; `timeout` is in seconds."""

    user: str = "muster"
    keyring: str = ""
    conf: str = ""
    timeout: int = 30


SETTINGS = Rbd

"""[simulated]: hypervisors that exist only on disk."""

import msgspec
from oslo_config import cfg

GROUP = "simulated"

OPTIONS = [
    cfg.StrOpt(
        "state_dir",
        default="/var/lib/muster/simulated",
        help="The folder of the simulated hypervisors; each host has its own below it.",
    ),
    cfg.IntOpt("vcpus", default=16, min=1, max=4096, help="Virtual CPUs a host offers."),
    cfg.IntOpt(
        "memory_mib", default=65536, min=64, max=2**31, help="Memory a host offers, in MiB."
    ),
    cfg.FloatOpt(
        "latency", default=0.0, min=0.0, max=3600.0, help="Seconds that each changing call takes."
    ),
    cfg.FloatOpt(
        "failure_rate",
        default=0.0,
        min=0.0,
        max=1.0,
        help="The share of changing calls that fail, chosen at random.",
    ),
    cfg.FloatOpt(
        "watch_interval",
        default=0.2,
        min=0.01,
        max=60.0,
        help="Seconds between two looks for changes made by hand.",
    ),
]


class Simulated(msgspec.Struct, frozen=True, kw_only=True):
    """The values of [simulated]; times are seconds."""

    state_dir: str = ""
    vcpus: int = 16
    memory_mib: int = 65536
    latency: float = 0.0
    failure_rate: float = 0.0
    watch_interval: float = 0.2


SETTINGS = Simulated

"""[agent]: one host's agent."""

import msgspec
from oslo_config import cfg

GROUP = "agent"

OPTIONS = [
    cfg.StrOpt(
        "driver",
        default="libvirt",
        help="The hypervisor driver, a name of the entry point group muster.drivers"
        " (libvirt, simulated).",
    ),
    cfg.StrOpt(
        "state_dir",
        default="/var/lib/muster/agent",
        help="Where the agent keeps its journal. Losing it is safe but slower.",
    ),
    cfg.IntOpt(
        "max_parallel", default=8, min=1, max=256, help="Commands that run at the same time."
    ),
    cfg.FloatOpt(
        "full_report_interval",
        default=300.0,
        min=0.1,
        max=86400.0,
        help="Seconds between two full inventories; the ones between tell what changed.",
    ),
    cfg.FloatOpt(
        "call_timeout",
        default=60.0,
        min=0.1,
        max=3600.0,
        help="Seconds that one look at the hypervisor may take before it counts as failed.",
    ),
]


class Agent(msgspec.Struct, frozen=True, kw_only=True):
    """The values of [agent]; times are seconds."""

    driver: str = "simulated"
    state_dir: str = ""
    max_parallel: int = 8
    full_report_interval: float = 300.0
    call_timeout: float = 60.0


SETTINGS = Agent

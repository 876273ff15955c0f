"""CPU shares and caps from the speed that an offering promises."""

from __future__ import annotations

import os

from agent.drivers.libvirt.xml import CPU_PERIOD_US, Cpu
from common.messages import GuestSpec

# One vCPU of this speed weighs as much as what the kernel gives whoever asks for nothing.
USUAL_MHZ = 2000
# Default, least and most: cpu.shares of cgroup v1, cpu.weight of v2. libvirt calls both shares.
SHARES_V1 = (1024, 2, 262_144)
SHARES_V2 = (100, 1, 10_000)
# The kernel refuses less.
QUOTA_LEAST_US = 1000


def tuning(spec: GuestSpec, host_mhz: int, *, version: int) -> Cpu | None:
    """The weight, and the cap if there is one; None for a guest without a speed.

    A cap is a share of the host's own speed; a host that does not tell its speed caps nothing.
    """
    if spec.cpu_mhz is None:
        return None
    usual, least, most = SHARES_V1 if version == 1 else SHARES_V2
    shares = min(most, max(least, round(spec.vcpus * spec.cpu_mhz * usual / USUAL_MHZ)))
    if not spec.cpu_cap or host_mhz <= 0:
        return Cpu(shares)
    return Cpu(shares, max(QUOTA_LEAST_US, round(CPU_PERIOD_US * spec.cpu_mhz / host_mhz)))


def cgroup_version() -> int:
    """Of this machine."""
    return 2 if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else 1

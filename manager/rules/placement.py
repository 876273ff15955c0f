"""Which host takes a new VM: the named one, or the one with the most free memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.states import HostState


@dataclass(frozen=True)
class Candidate:
    """A host as placement sees it.

    What is used counts everything the hypervisor runs, strangers' guests included; `claimed` is
    what was promised here and is not running yet.
    """

    name: str
    state: HostState
    enabled: bool
    maintenance: bool
    memory_mib_total: int
    memory_mib_used: int
    memory_mib_claimed: int = 0

    @property
    def memory_mib_free(self) -> int:
        return self.memory_mib_total - self.memory_mib_used - self.memory_mib_claimed


@dataclass(frozen=True)
class Placement:
    """The chosen host (None: none fits), and for every host looked at why or why not."""

    host: str | None
    reasons: tuple[tuple[str, str], ...]

    def explain(self) -> str:
        return "; ".join(f"{name}: {reason}" for name, reason in self.reasons) or "no host is known"


def place(hosts: Sequence[Candidate], *, memory_mib: int, named: str | None = None) -> Placement:
    """The UP, enabled host with the most free memory, or the named one if it can take the VM."""
    fitting: list[Candidate] = []
    reasons: list[tuple[str, str]] = []
    for host in hosts:
        if named is not None and host.name != named:
            continue
        reason = _unfit(host, memory_mib)
        if reason:
            reasons.append((host.name, reason))
        else:
            fitting.append(host)
            reasons.append((host.name, f"{host.memory_mib_free} MiB free"))
    if not fitting:
        return Placement(None, tuple(reasons))
    best = max(fitting, key=lambda h: (h.memory_mib_free, h.name))
    return Placement(best.name, tuple(reasons))


def _unfit(host: Candidate, memory_mib: int) -> str:
    if host.state is not HostState.UP:
        return f"is {host.state}"
    if not host.enabled:
        return "is disabled (muster host enable)"
    if host.maintenance:
        return "is in maintenance"
    if host.memory_mib_free < memory_mib:
        return f"has {host.memory_mib_free} MiB free of {memory_mib} wanted"
    return ""

"""Which host takes a VM, and which of its pools its disks (decision tables, section 8, step 4)."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from common.model import PoolScope
from common.states import HostState

TOLD = 20  # hosts named in one sentence; the rest are counted


class Order(enum.StrEnum):
    """Which of the hosts that fit is taken."""

    FIRST_FIT = "first_fit"
    SPREAD = "spread"
    SPREAD_BY_PROJECT = "spread_by_project"
    PACK = "pack"


@dataclass(frozen=True, slots=True)
class Pool:
    """A storage pool as placement sees it: `at` names the host, cluster or zone that reaches it.

    `free_gib` is what may still be promised, after overprovisioning.
    """

    name: str
    scope: PoolScope
    at: str
    free_gib: float
    tags: frozenset[str] = frozenset()
    enabled: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A host as placement sees it.

    `used` is what its hypervisor runs and `claimed` what was promised here; both count strangers'
    guests, so the larger of the two is what is taken. `closed`: why its cluster, pod or zone takes
    no VMs. `of_project`: how many VMs of the asking project are here.
    """

    name: str
    state: HostState
    enabled: bool
    maintenance: bool
    driver: str = ""
    zone: str | None = None
    pod: str | None = None
    cluster: str | None = None
    closed: str = ""
    tags: frozenset[str] = frozenset()
    vcpus_total: int
    vcpus_used: int
    vcpus_claimed: int
    memory_mib_total: int
    memory_mib_used: int
    memory_mib_claimed: int
    cpu_overcommit: float = 16.0
    memory_overcommit: float = 1.0
    cpu_threshold: float = 1.0
    memory_threshold: float = 1.0
    of_project: int = 0
    clash: bool = False
    fenced: bool = False


@dataclass(frozen=True, slots=True)
class DiskDemand:
    """A disk to be placed. `local`: True on the host alone, False on shared storage alone."""

    size_gib: int
    tags: frozenset[str] = frozenset()
    local: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a VM needs. Only an operator names a pod, cluster, host or pool.

    `avoid`: the hosts that refused it, and with what. `beside`: where its affinity group is (None:
    nowhere yet). `apart`: where its anti-affinity groups are. Its own ratios win over a cluster's.
    """

    vcpus: int
    memory_mib: int
    zone: str | None = None
    pod: str | None = None
    cluster: str | None = None
    host: str | None = None
    pool: str | None = None
    hypervisors: frozenset[str] = frozenset()
    host_tags: frozenset[str] = frozenset()
    cpu_overcommit: float | None = None
    memory_overcommit: float | None = None
    disks: tuple[DiskDemand, ...] = ()
    avoid: Mapping[str, str] = field(default_factory=dict)
    beside: frozenset[str] | None = None
    apart: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Placement:
    """The chosen host (None: none fits) and a pool for each disk (None: no pools are used)."""

    host: str | None
    pools: tuple[str | None, ...]
    tell: Callable[[], tuple[tuple[str, str], ...]] = field(repr=False, compare=False)

    @functools.cached_property
    def reasons(self) -> tuple[tuple[str, str], ...]:
        """For every host that was looked at: why it was chosen, that it fits, or why not.

        Put into words only when asked for: there may be ten thousand of them.
        """
        return self.tell()

    def explain(self) -> str:
        """The reasons in one line."""
        told = [f"{name}: {reason}" for name, reason in self.reasons[:TOLD]]
        if len(self.reasons) > TOLD:
            told.append(f"and {len(self.reasons) - TOLD} more hosts")
        return "; ".join(told) or "no host is known"


def place(
    hosts: Iterable[Candidate],
    demand: Demand,
    *,
    order: Order = Order.SPREAD,
    pools: Sequence[Pool] = (),
) -> Placement:
    """The first of the hosts that fit, in `order`. Without pools disks need nothing."""
    asked = [host for host in hosts if demand.host is None or host.name == demand.host]
    why_not = _Filter(demand, pools).why_not
    fitting = [host for host in asked if not why_not(host)]
    best = _best(fitting, demand, order)
    chosen = "" if best is None else best.name

    def reasons() -> tuple[tuple[str, str], ...]:
        return tuple(
            (
                host.name,
                why_not(host)
                or f"{_memory_free(host, demand)} MiB free"
                + (f", chosen ({order})" if host.name == chosen else ""),
            )
            for host in asked
        )

    if best is None:
        return Placement(None, (None,) * len(demand.disks), reasons)
    return Placement(best.name, _Filter(demand, pools).pools_at(best), reasons)


def unfit(host: Candidate, demand: Demand, pools: Sequence[Pool] = ()) -> str:
    """Why this host can not take it, in words; "" when it can."""
    return _Filter(demand, pools).why_not(host)


def _best(fitting: Sequence[Candidate], demand: Demand, order: Order) -> Candidate | None:
    """The same one whatever the order in which the hosts came."""
    if not fitting:
        return None
    if order is Order.FIRST_FIT:
        return min(fitting, key=lambda h: (h.pod or "", h.cluster or "", h.name))
    if order is Order.PACK:
        return min(fitting, key=lambda h: (_memory_free(h, demand), h.name))
    if order is Order.SPREAD_BY_PROJECT:
        fewest = min(h.of_project for h in fitting)
        fitting = [h for h in fitting if h.of_project == fewest]
    most = max(_memory_free(h, demand) for h in fitting)
    return max((h for h in fitting if _memory_free(h, demand) == most), key=lambda h: h.name)


def _memory_free(host: Candidate, demand: Demand) -> int:
    ratio = demand.memory_overcommit or host.memory_overcommit
    used, claimed = host.memory_mib_used, host.memory_mib_claimed
    return int(host.memory_mib_total * ratio) - (claimed if claimed > used else used)


class _Filter:
    """One demand, asked of many hosts."""

    def __init__(self, demand: Demand, pools: Sequence[Pool]) -> None:
        self.demand = demand
        self.stores = bool(pools) and bool(demand.disks)
        self.at: dict[PoolScope, dict[str | None, list[Pool]]] = {scope: {} for scope in PoolScope}
        # Where one pool alone could take every disk: no need to share them out to know it.
        ample: dict[PoolScope, set[str | None]] = {scope: set() for scope in PoolScope}
        wanted = sum(disk.size_gib for disk in demand.disks)
        for pool in pools:
            self.at[pool.scope].setdefault(pool.at, []).append(pool)
            if pool.free_gib >= wanted and all(self._suits(pool, d) for d in demand.disks):
                ample[pool.scope].add(pool.at)
        self.ample_host = ample[PoolScope.HOST]
        self.ample_cluster = ample[PoolScope.CLUSTER]
        self.ample_zone = ample[PoolScope.ZONE]
        self.choosy = bool(
            demand.pod
            or demand.cluster
            or demand.host
            or demand.hypervisors
            or demand.host_tags
            or demand.avoid
            or demand.apart
            or demand.beside is not None
        )

    def why_not(self, host: Candidate) -> str:
        # Ten thousand hosts go through here for one VM: only attributes are looked at.
        demand = self.demand
        if host.state is not HostState.UP or not host.enabled or host.maintenance:
            return _not_ready(host)
        if host.fenced or host.clash or host.closed:
            return _not_ready(host)
        if host.zone != demand.zone:
            stands = f"zone {host.zone}" if host.zone else "no zone"
            return f"is in {stands}, not in {f'zone {demand.zone}' if demand.zone else 'none'}"
        if self.choosy and (why := self._not_wanted(host)):
            return why
        used, claimed = host.memory_mib_used, host.memory_mib_claimed
        taken = claimed if claimed > used else used
        room = host.memory_mib_total * (demand.memory_overcommit or host.memory_overcommit)
        if room - taken < demand.memory_mib:
            return f"has {int(room) - taken} MiB free of {demand.memory_mib} wanted"
        if taken >= room * host.memory_threshold:
            return f"has {taken / room:.0%} of its memory used, and {_limit(host.memory_threshold)}"
        used, claimed = host.vcpus_used, host.vcpus_claimed
        taken = claimed if claimed > used else used
        room = host.vcpus_total * (demand.cpu_overcommit or host.cpu_overcommit)
        if room - taken < demand.vcpus:
            return f"has {int(room) - taken} vCPUs free of {demand.vcpus} wanted"
        if taken >= room * host.cpu_threshold:
            return f"has {taken / room:.0%} of its vCPUs used, and {_limit(host.cpu_threshold)}"
        if (
            not self.stores
            or host.cluster in self.ample_cluster
            or host.name in self.ample_host
            or host.zone in self.ample_zone
        ):
            return ""
        return self._disks(host)[1]

    def pools_at(self, host: Candidate) -> tuple[str | None, ...]:
        """A pool for each disk on a host that fits."""
        return self._disks(host)[0] if self.stores else (None,) * len(self.demand.disks)

    def _not_wanted(self, host: Candidate) -> str:
        demand = self.demand
        for what in ("pod", "cluster"):
            wanted, found = getattr(demand, what), getattr(host, what)
            if wanted is not None and found != wanted:
                return f"is in {f'{what} {found}' if found else f'no {what}'}, not in {wanted}"
        if demand.host is not None and host.name != demand.host:
            return f"is not {demand.host}"
        if demand.hypervisors and host.driver not in demand.hypervisors:
            return f"runs {host.driver or 'nothing known'}, not {_words(demand.hypervisors)}"
        if missing := demand.host_tags - host.tags:
            return f"lacks tag {_words(missing)}"
        if host.name in demand.avoid:
            return f"refused it: {demand.avoid[host.name]}"
        if host.name in demand.apart:
            return "has a VM of its anti-affinity group"
        if demand.beside is not None and host.name not in demand.beside:
            return f"is not where its affinity group is ({_words(demand.beside) or 'nowhere'})"
        return ""

    def _disks(self, host: Candidate) -> tuple[tuple[str | None, ...], str]:
        """A pool for each disk, or why there is none.

        Disks with the fewest pools to choose from go first, then the larger ones, each into the
        pool with the most space left.
        """
        reached = [
            *self.at[PoolScope.HOST].get(host.name, ()),
            *self.at[PoolScope.CLUSTER].get(host.cluster, ()),
            *self.at[PoolScope.ZONE].get(host.zone, ()),
        ]
        if not reached:
            return (), "reaches no storage pool"
        disks = self.demand.disks
        choices = [[pool for pool in reached if self._suits(pool, disk)] for disk in disks]
        left = {pool.name: pool.free_gib for pool in reached}
        found: list[str | None] = [None] * len(disks)
        for n in sorted(range(len(disks)), key=lambda n: (len(choices[n]), -disks[n].size_gib)):
            if not choices[n]:
                return (), f"reaches no pool for {self._described(disks[n])}"
            name = max((pool.name for pool in choices[n]), key=lambda name: (left[name], name))
            if left[name] < disks[n].size_gib:
                return (), (
                    f"has {max(0, int(left[name]))} GiB free in pool {name}"
                    f" of {disks[n].size_gib} wanted"
                )
            left[name] -= disks[n].size_gib
            found[n] = name
        return tuple(found), ""

    def _suits(self, pool: Pool, disk: DiskDemand) -> bool:
        return (
            pool.enabled
            and self.demand.pool in (None, pool.name)
            and disk.tags <= pool.tags
            and disk.local in (None, pool.scope is PoolScope.HOST)
        )

    def _described(self, disk: DiskDemand) -> str:
        kind = {None: "a", True: "a local", False: "a shared"}[disk.local]
        tags = f" with tag {_words(disk.tags)}" if disk.tags else ""
        pool = f" in pool {self.demand.pool}" if self.demand.pool else ""
        return f"{kind} disk{tags}{pool}"


def _not_ready(host: Candidate) -> str:
    if host.state is not HostState.UP:
        return f"is {host.state}"
    if not host.enabled:
        return "is disabled (muster host enable)"
    if host.maintenance:
        return "is in maintenance"
    if host.fenced:
        return "is fenced"
    if host.clash:
        return "is reported by two agents of one name"
    return host.closed


def _limit(threshold: float) -> str:
    return f"its cluster takes no more from {threshold:.0%} on"


def _words(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))

"""Topology: zones, pods, clusters and pools, as far as a placement has to know them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from common import model
from common.model import NOUNS, Kind, PoolScope
from manager.flows import model as nouns
from manager.rules import placement as rule
from manager.store.engine import Tx
from manager.store.model import Object
from manager.store.statements import among

O = Object.__table__.c  # noqa: E741 - columns
# What is read of a host to make a candidate of it.
COLUMNS = (
    "name",
    "state",
    "enabled",
    "maintenance",
    "driver",
    "cluster",
    "tags",
    "vcpus_total",
    "vcpus_used",
    "vcpus_claimed",
    "memory_mib_total",
    "memory_mib_used",
    "memory_mib_claimed",
    "clash",
    "fenced",
)
# As text: a Row of each would take longer than the decision.
STORES = sa.select(O.kind, O.name, sa.type_coerce(O.spec, sa.Text)).where(
    among(O.kind, (Kind.ZONE, Kind.POD, Kind.CLUSTER, Kind.POOL))
)


class Site(msgspec.Struct, frozen=True):
    """Where the hosts of a cluster stand. `closed`: why they take no VMs."""

    zone: str | None
    pod: str | None
    closed: str
    cluster: model.Cluster


class Topology:
    """Zones, pods, clusters and pools, as far as a decision has to know them."""

    def __init__(self, tx: Tx, zone: str | None) -> None:
        self._tx, self.zone = tx, zone
        self.sites: dict[str, Site] = {}
        # Those that others reach as well, and those of each host.
        self.shared: dict[str, model.Pool] = {}
        self._local: dict[str, list[tuple[str, model.Pool]]] = {}
        if zone is not None:
            self._read()

    def _read(self) -> None:
        found: dict[Kind, dict[str, Any]] = {kind: {} for kind in Kind}
        for kind, name, spec in self._tx.rows(STORES, (Object,)):
            found[kind][name] = msgspec.json.decode(spec, type=NOUNS[kind])
        for name, cluster in found[Kind.CLUSTER].items():
            pod = found[Kind.POD].get(cluster.pod)
            zone = found[Kind.ZONE].get(pod.zone) if pod is not None else None
            closed = ""
            for word, there, what in (
                ("cluster", name, cluster),
                ("pod", cluster.pod, pod),
                ("zone", pod and pod.zone, zone),
            ):
                if what is not None and not what.enabled:
                    closed = f"is in {word} {there}, which is disabled"
            self.sites[name] = Site(pod.zone if pod else None, cluster.pod, closed, cluster)
        for name, pool in found[Kind.POOL].items():
            if pool.scope is PoolScope.HOST:
                self._local.setdefault(pool.host, []).append((name, pool))
            elif self.zone == (pool.zone or self._zone_at(pool.cluster)):
                self.shared[name] = pool

    def _zone_at(self, cluster: str | None) -> str | None:
        site = self.sites.get(cluster) if cluster is not None else None
        return site.zone if site is not None else None

    def candidate(self, row: Sequence[object], of_project: Mapping[str, int]) -> rule.Candidate:
        """A host, with what its cluster makes of it."""
        (name, state, enabled, maintenance, driver, at, tags, *sizes, clash, fenced) = row
        site = self.sites.get(str(at), _ELSEWHERE) if at is not None else NOWHERE
        vcpus_total, vcpus_used, vcpus_claimed, total, used, claimed = sizes
        ratios = site.cluster
        return rule.Candidate(
            name=name,  # type: ignore[arg-type]
            state=state,  # type: ignore[arg-type]
            enabled=bool(enabled),
            maintenance=bool(maintenance),
            driver=driver,  # type: ignore[arg-type]
            zone=site.zone,
            pod=site.pod,
            cluster=at,  # type: ignore[arg-type]
            closed=site.closed,
            tags=frozenset(tags),  # type: ignore[call-overload]
            vcpus_total=vcpus_total,  # type: ignore[arg-type]
            vcpus_used=vcpus_used,  # type: ignore[arg-type]
            vcpus_claimed=vcpus_claimed,  # type: ignore[arg-type]
            memory_mib_total=total,  # type: ignore[arg-type]
            memory_mib_used=used,  # type: ignore[arg-type]
            memory_mib_claimed=claimed,  # type: ignore[arg-type]
            cpu_overcommit=ratios.cpu_overcommit,
            memory_overcommit=ratios.memory_overcommit,
            cpu_threshold=ratios.cpu_threshold,
            memory_threshold=ratios.memory_threshold,
            of_project=of_project.get(str(name), 0),
            clash=bool(clash),
            fenced=bool(fenced),
        )

    def pools(self, hosts: Iterable[rule.Candidate]) -> dict[str, model.Pool]:
        """What any of these hosts reaches in the zone."""
        found = dict(self.shared)
        if self._local:
            for host in hosts:
                if host.zone == self.zone:
                    found.update(self._local.get(host.name, ()))
        return found

    def has_pools(self) -> bool:
        """True when the disks of its VMs are kept in pools, be they of hosts never heard of."""
        if self.shared or not self._local:
            return bool(self.shared)
        places = self._tx.ask(nouns.THESE, kinds=[Kind.HOST], names=list(self._local))
        return any(self._zone_at(row.spec["cluster"]) == self.zone for row in places)


NOWHERE = Site(None, None, "", model.Cluster(pod="none"))
_ELSEWHERE = msgspec.structs.replace(NOWHERE, zone="elsewhere")

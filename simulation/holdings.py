"""What VMs hold of their projects, networks, pools and hosts, counted by the simulator itself.

All of it is read from the tables as they were committed, by queries of its own.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Any

Problem = tuple[str, str | None]  # what is wrong, and the instance or host that it is about

DISK = "v.kind != 'snapshot'"
HOLDS = "i.reserved AND i.vm_state != 'DELETED'"
NICS = f"""
    SELECT i.uuid, i.name, json_extract(n.value, '$.network'), json_extract(n.value, '$.{{}}')
    FROM instances i, json_each(i.nics) n
    WHERE {HOLDS} AND json_extract(n.value, '$.{{}}') IS NOT NULL
"""  # noqa: S608 - all of it is ours
# What was deleted softly does not count, also when its deletion is owed by now.
RUNS = "(i.vm_state != 'SOFT_DELETED' AND NOT (i.deletion_owed AND i.reclaim_at IS NOT NULL))"
USED = f"""
    SELECT i.project, sum({RUNS}), sum({RUNS} * i.vcpus), sum({RUNS} * i.memory_mib),
        sum((SELECT count(*) FROM volumes v WHERE v.instance = i.uuid AND {DISK})),
        sum((SELECT coalesce(sum(v.size_gib), 0) FROM volumes v
            WHERE v.instance = i.uuid AND {DISK})),
        sum((SELECT count(a.number) FROM addresses a WHERE a.instance = i.uuid))
    FROM instances i WHERE {HOLDS} GROUP BY i.project
"""  # noqa: S608
RESOURCES = ("instances", "vcpus", "memory_mib", "volumes", "storage_gib", "addresses")
POOLED = "SELECT pool, sum(size_gib) FROM volumes WHERE pool IS NOT NULL GROUP BY pool"
ON_HOSTS = """
    SELECT h.name, h.vcpus_claimed, h.memory_mib_claimed, h.vcpus_total, h.memory_mib_total,
        coalesce(sum(i.vcpus), 0), coalesce(sum(i.memory_mib), 0), group_concat(i.uuid)
    FROM hosts h LEFT JOIN instances i ON i.host = h.name AND i.vm_state != 'DELETED'
    GROUP BY h.name
"""
# Space of snapshots that no VM has, and that no clean-up stands for.
LOST_SNAPSHOTS = f"""
    SELECT v.instance, v.n FROM volumes v LEFT JOIN instances i ON i.uuid = v.instance
    WHERE NOT {DISK} AND v.cleanup IS NULL
        AND v.n IS NOT json_extract(i.snapshot, '$.volume')
"""  # noqa: S608
OPEN_STONES = "SELECT instance FROM tombstones WHERE state = 'OPEN'"


class Holdings:
    """The account of one fleet."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def broken(self, moved: AbstractSet[str], *, limited: bool = True) -> Iterator[Problem]:
        """What may not be after any commit; `moved` are VMs that are not where we put them.

        Not `limited`: a restored database may tell of more than was ever granted.
        """
        yield from self._limits() if limited else ()
        yield from self._owners()
        yield from self._pools()
        yield from self._crowded(moved)

    def unbalanced(self, moved: AbstractSet[str]) -> Iterator[Problem]:
        """What has to be true once everything has come to an end."""
        yield from self._leaks()
        for name, vcpus, memory, _vt, _mt, has_vcpus, has_memory, _ in self._rows(ON_HOSTS):
            if (vcpus, memory) != (has_vcpus, has_memory):
                text = (
                    f"{name} claims {vcpus} vCPUs, {memory} MiB; its VMs: {has_vcpus}, {has_memory}"
                )
                yield text, None

    def nobody_has(self, address: str) -> bool:
        """True for a MAC or IP address that is neither in use nor in quarantine."""
        query = "SELECT 1 FROM macs WHERE mac = ? UNION ALL SELECT 1 FROM addresses WHERE ip = ?"
        return not self._rows(query, address, address)

    def command(self, id_: str) -> tuple[str, str] | None:
        """The state of a command, and the instance that it is about; None for an unknown one."""
        rows = self._rows("SELECT state, instance FROM commands WHERE id = ?", id_)
        return rows[0] if rows else None

    def tried_again(self, command: str) -> Iterator[Problem]:
        """A start that makes a guest, where or while it may not be."""
        query = """
            SELECT n.instance, n.host, o.host, o.state, coalesce(o.error_code, ''),
                h.fenced OR coalesce(t.state, '') = 'CLOSED'
            FROM commands n JOIN commands o ON o.instance = n.instance AND o.id != n.id
                AND o.generation < n.generation AND o.kind = 'start_vm'
                AND json_extract(o.spec, '$.create') AND o.job = n.job
                LEFT JOIN hosts h ON h.name = o.host
                LEFT JOIN tombstones t ON t.host = o.host AND t.instance = o.instance
            WHERE n.id = ? AND n.kind = 'start_vm' AND json_extract(n.spec, '$.create')
        """
        for instance, host, before, state, code, clean in self._rows(query, command):
            if host == before and code != "STALE_COMMAND":
                yield f"{instance} is tried again on {host}, which refused it: {code}", instance
            elif state not in ("FAILED", "NOT_RUN") and not clean:
                text = f"{instance} is tried on {host} while its start on {before} is {state}"
                yield text, instance

    def used(self) -> dict[str, dict[str, int]]:
        """What each project's VMs hold, by resource."""
        return {
            project: dict(zip(RESOURCES, used, strict=True)) for project, *used in self._rows(USED)
        }

    def _limits(self) -> Iterator[Problem]:
        projects = "SELECT name, spec FROM model WHERE kind = 'project'"
        limits = {name: json.loads(spec) for name, spec in self._rows(projects)}
        for project, used in self.used().items() if limits else ():
            for resource, has in used.items():
                limit = limits.get(project, {}).get(resource)
                if limit is not None and has > limit:
                    yield f"project {project} has {has} {resource} of {limit}", None

    def _owners(self) -> Iterator[Problem]:
        """Every address that a VM was promised is its own, and nobody else's."""
        owners = "SELECT network, ip, instance FROM addresses"
        rows = {(network, ip): vm for network, ip, vm in self._rows(owners)}
        for field in ("address", "address6"):
            for vm, name, network, ip in self._rows(NICS.format(field, field)):
                owner = rows.get((network, ip))
                if owner != vm:
                    yield f"{ip} in {network} of {name} belongs to {owner or 'nobody'}", vm

    def _pools(self) -> Iterator[Problem]:
        pools = "SELECT name, spec FROM model WHERE kind = 'pool'"
        specs = {name: json.loads(spec) for name, spec in self._rows(pools)}
        for pool, taken in self._rows(POOLED) if specs else ():
            spec = specs.get(pool, {"capacity_gib": 0, "overprovisioning": 1.0})
            if taken > spec["capacity_gib"] * spec["overprovisioning"]:
                yield f"pool {pool} holds {taken} GiB of {spec['capacity_gib']}", None

    def _crowded(self, moved: AbstractSet[str]) -> Iterator[Problem]:
        for name, _v, _m, vcpus, memory, has_vcpus, has_memory, vms in self._rows(ON_HOSTS):
            if not memory or not moved.isdisjoint((vms or "").split(",")):
                continue
            if has_memory > memory or has_vcpus > vcpus * OVERCOMMIT:
                yield f"{name} holds {has_memory} MiB of {memory}, {has_vcpus} vCPUs", None

    def _leaks(self) -> Iterator[Problem]:
        stones = {instance for (instance,) in self._rows(OPEN_STONES)}
        live = {
            uuid: len(json.loads(wishes)["disks"])
            for uuid, wishes in self._rows(
                f"SELECT i.uuid, i.wishes FROM instances i WHERE {HOLDS}"  # noqa: S608
            )
        }
        for instance, n in self._rows(LOST_SNAPSHOTS):
            yield f"volume {n} of {instance} is of a snapshot that nobody has", instance
        for table in ("addresses", "hostnames", "volumes"):
            # What an item stands for goes with the item.
            owed = f" v WHERE {DISK} AND cleanup IS NULL" if table == "volumes" else ""
            query = f"SELECT instance, count(*) FROM {table}{owed} GROUP BY instance"  # noqa: S608
            held = dict(self._rows(query))
            for instance in held.keys() - live.keys() - stones:
                yield f"{held[instance]} {table} of {instance} were never given back", instance
            for instance, wanted in live.items() if table == "volumes" else ():
                if held.get(instance, 0) != wanted:
                    yield f"{instance} has {held.get(instance, 0)} of {wanted} volumes", instance

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._database.execute(query, values).fetchall()


OVERCOMMIT = 16  # of vCPUs, where no cluster says otherwise

"""The model of a seed: a zone with pools and networks, and a project that may have little of it.

Everything is scarce: a few VMs, one too many of which meets each of the limits now and then.
"""

from __future__ import annotations

from typing import Any

from simulation.world import World

MODELLED = 0.6  # of the seeds have their hosts in a zone
ZONE, NETWORKS, APART, TOGETHER = "z1", ("net1", "net2"), "apart", "together"
SCARCE_MIB = 512  # memory of a host, and what a VM takes of it
VM_MIB = 128
FIELDS = ("instances", "vcpus", "memory_mib", "volumes", "storage_gib", "addresses")


class Nouns:
    """What is made at the beginning, and what creates then ask for."""

    def __init__(self, world: World, hosts: list[str]) -> None:
        self._world, self._hosts = world, hosts
        self.there = world.chance(MODELLED)
        self.keeps = world.chance(0.5)  # a pool for snapshots, which all hosts reach
        # Of a host; None: enough for all.
        self.memory_mib = SCARCE_MIB if self.there and world.chance(0.5) else None

    def objects(self) -> dict[str, Any]:
        """All of it, as an apply file holds it."""
        world = self._world
        limits = {
            "instances": 5,
            "vcpus": 6,
            "memory_mib": 6 * VM_MIB,
            "volumes": 6,
            "storage_gib": 14,
            "addresses": 7,
        }
        chosen = world.random.sample(FIELDS, 2)
        near, far = self._hosts[:2], self._hosts[2:]
        return {
            "projects": [{"name": "tight", **{each: limits[each] for each in chosen}}],
            "zones": [{"name": ZONE}],
            "pods": [{"name": "p1", "zone": ZONE}],
            "clusters": [{"name": "c1", "pod": "p1"}, {"name": "c2", "pod": "p1"}],
            "hosts": [
                *({"name": host, "cluster": "c1"} for host in near),
                *({"name": host, "cluster": "c2"} for host in far),
            ],
            "pools": [
                _pool(
                    "shared", 9, in_ceph=len(self._hosts) % 2 == 0, scope="cluster", cluster="c1"
                ),
                *(_pool(f"own-{host}", 5, scope="host", host=host) for host in far),
                *([_pool("kept", 6, scope="zone", zone=ZONE, snapshots=True)] * self.keeps),
            ],
            "networks": [
                # Eight addresses for VMs, and three.
                _network("net1", "10.1.0.0/28", first="10.1.0.2", last="10.1.0.9"),
                _network("net2", "10.2.0.0/28", last="10.2.0.4", cidr6="fd00:2::/64"),
            ],
            "affinity_groups": [
                {"name": APART, "kind": "anti_affinity"},
                {"name": TOGETHER, "kind": "affinity"},
            ],
        }

    def of_create(self) -> dict[str, Any]:
        """What one create asks for beside its name and size."""
        world = self._world
        # An operator may name the host: no other is tried then.
        asked: dict[str, Any] = {}
        if world.chance(0.2):
            asked["host"] = world.random.choice(self._hosts)
        if not self.there:
            if world.chance(0.5):
                asked["disks"] = [{"size_gib": 1}]
            return asked
        if world.chance(0.8):
            asked["project"] = "tight"
        networks = world.random.choice((("net1",), ("net1",), ("net2",), NETWORKS))
        asked["networks"] = [{"network": each, "default": each == networks[0]} for each in networks]
        if world.chance(0.2):
            last = world.random.randrange(2, 7)
            asked["networks"][0]["address"] = f"10.{networks[0][-1]}.0.{last}"
        if world.chance(0.6):
            sizes = world.random.choice(((1,), (2,), (3,), (1, 2)))
            asked["disks"] = [{"size_gib": size} for size in sizes]
        if world.chance(0.3):
            asked["affinity_groups"] = [world.random.choice((APART, APART, TOGETHER))]
        if world.chance(0.3):
            asked["order"] = world.random.choice(("first_fit", "pack", "spread_by_project"))
        if world.chance(0.15):
            asked["start"] = False
        return asked


def _pool(name: str, capacity_gib: int, *, in_ceph: bool = False, **where: Any) -> dict[str, Any]:
    place: dict[str, Any] = {"path": f"/pools/{name}"}
    if in_ceph:
        place = {"kind": "rbd", "rbd_pool": name, "monitors": ["10.0.0.1"]}
    return {"name": name, "capacity_gib": capacity_gib, **place, **where}


def _network(name: str, cidr: str, **more: str) -> dict[str, Any]:
    return {
        "name": name,
        "zone": ZONE,
        "backend": "bridge",
        "source": f"br-{name}",
        "cidr": cidr,
        "gateway": cidr.replace(".0/28", ".1"),
        **more,
    }

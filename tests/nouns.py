"""A zone with something of every kind, and one more noun of each kind that fits into it."""

from __future__ import annotations

import base64
from typing import Any

from common.model import Kind

KEY = base64.b64encode(b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20" + bytes(32)).decode()

WORLD: dict[str, list[dict[str, Any]]] = {
    "projects": [{"name": "shop"}],
    "zones": [{"name": "z1"}],
    "pods": [{"name": "p1", "zone": "z1"}],
    "clusters": [{"name": "c1", "pod": "p1"}],
    "hosts": [{"name": "h1", "cluster": "c1"}],
    "networks": [
        {
            "name": "n1",
            "zone": "z1",
            "backend": "bridge",
            "source": "br0",
            "cidr": "10.1.0.0/24",
        }
    ],
}

# Every field of each, as none of them is by default.
WHOLE: dict[Kind, dict[str, Any]] = {
    Kind.PROJECT: {
        "enabled": False,
        "instances": 10,
        "vcpus": 20,
        "memory_mib": 4096,
        "volumes": 0,
        "storage_gib": 100,
        "addresses": 10,
    },
    Kind.ZONE: {
        "kind": "basic",
        "enabled": False,
        "project": "shop",
        "local_storage": False,
        "security_groups": True,
        "domain": "one.example.org",
    },
    Kind.POD: {"zone": "z1", "enabled": False},
    Kind.CLUSTER: {
        "pod": "p1",
        "enabled": False,
        "cpu_overcommit": 4.0,
        "memory_overcommit": 1.5,
        "cpu_threshold": 0.5,
        "memory_threshold": 0.9,
    },
    Kind.HOST: {"cluster": "c1", "tags": ["ssd", "gpu"]},
    Kind.POOL: {
        "scope": "zone",
        "host": None,
        "cluster": None,
        "zone": "z1",
        "kind": "dir",
        "path": "/srv/disks",
        "rbd_pool": None,
        "monitors": [],
        "capacity_gib": 100,
        "overprovisioning": 2.0,
        "tags": ["ssd"],
        "snapshots": False,
        "enabled": False,
    },
    Kind.OFFERING: {
        "vcpus": 2,
        "vcpus_min": 2,
        "vcpus_max": 8,
        "memory_mib": 1024,
        "memory_mib_min": 512,
        "memory_mib_max": 4096,
        "cpu_mhz": 2400,
        "cpu_cap": True,
        "root_gib": 10,
        "ha": True,
        "local_storage": True,
        "host_tags": ["gpu"],
        "storage_tags": ["ssd"],
        "cpu_overcommit": 1.0,
        "memory_overcommit": 1.0,
    },
    Kind.DISK_OFFERING: {
        "size_gib": 10,
        "size_gib_min": 5,
        "size_gib_max": 50,
        "local_storage": True,
        "storage_tags": ["ssd"],
    },
    Kind.TEMPLATE: {
        "format": "kernel",
        "url": "https://images.example.org/vmlinuz",
        "sha256": "0" * 64,
        "initrd_url": "file:///srv/initrd",
        "initrd_sha256": "f" * 64,
        "cmdline": "console=ttyS0",
        "min_disk_gib": 1,
        "min_memory_mib": 64,
        "hypervisors": ["libvirt"],
        "zones": ["z1"],
        "project": "shop",
        "public": False,
        "system": True,
        "enabled": False,
    },
    Kind.NETWORK: {
        "zone": "z1",
        "kind": "vlan",
        "backend": "ovs",
        "source": "ovs0",
        "vlan": 7,
        "cidr": "10.2.0.0/24",
        "gateway": "10.2.0.1",
        "first": "10.2.0.10",
        "last": "10.2.0.99",
        "cidr6": "2001:db8::/64",
        "gateway6": "2001:db8::1",
        "dns": ["10.2.0.2", "2001:db8::2"],
        "security_groups": True,
        "project": "shop",
        "enabled": False,
    },
    Kind.SECURITY_GROUP: {
        "project": "shop",
        "rules": [
            {
                "direction": "egress",
                "protocol": "tcp",
                "port_first": 1,
                "port_last": 2,
                "cidr": "10.0.0.0/8",
            }
        ],
    },
    Kind.AFFINITY_GROUP: {"kind": "affinity", "project": "shop"},
    Kind.SSH_KEY: {"public_key": f"ssh-ed25519 {KEY} ann@desk", "project": "shop"},
    Kind.USER_DATA: {"data": "#cloud-config\n", "project": "shop"},
}

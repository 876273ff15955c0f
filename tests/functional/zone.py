"""A zone to deploy VMs in, and one more beside it: what the tests of deploying begin with."""

from __future__ import annotations

from typing import Any

from common import messages as m
from tests.functional.fleet import Fleet, ScriptedAgent
from tests.nouns import KEY

SHA = "0" * 64
IMAGE = {"format": "qcow2", "url": "https://images.example.org/a.qcow2", "sha256": SHA}
BRIDGE = {"backend": "bridge", "source": "br0"}
WEB = [{"direction": "ingress", "protocol": "tcp", "port_first": 80, "port_last": 80}]

ZONE: dict[str, list[dict[str, Any]]] = {
    "projects": [{"name": "shop"}, {"name": "other"}],
    "zones": [{"name": "z1", "domain": "example.org"}],
    "pods": [{"name": "p1", "zone": "z1"}],
    "clusters": [{"name": "c1", "pod": "p1"}, {"name": "c2", "pod": "p1"}],
    "hosts": [
        {"name": "h1", "cluster": "c1"},
        {"name": "h2", "cluster": "c1"},
        {"name": "h3", "cluster": "c2", "tags": ["ssd"]},
    ],
    "offerings": [
        {"name": "small", "vcpus": 1, "memory_mib": 256, "root_gib": 5},
        {"name": "open", "vcpus_max": 4, "memory_mib_min": 128, "memory_mib_max": 1024},
    ],
    "templates": [{"name": "img", **IMAGE, "min_disk_gib": 2}],
    "networks": [
        {"name": "n1", "zone": "z1", **BRIDGE, "cidr": "10.1.0.0/24", "gateway": "10.1.0.1"}
    ],
}

# Beside it, what most requests have no business with.
MORE: dict[str, list[dict[str, Any]]] = {
    "zones": [
        {"name": "off", "enabled": False},
        {"name": "theirs", "project": "other"},
        {"name": "shared", "local_storage": False},
        {"name": "flat", "kind": "basic"},
        {"name": "walled", "security_groups": True},
    ],
    "pods": [{"name": "p2", "zone": "shared"}],
    "clusters": [{"name": "c9", "pod": "p2"}],
    "offerings": [{"name": "local", "vcpus": 1, "memory_mib": 256, "local_storage": True}],
    "disk_offerings": [
        {"name": "ten", "size_gib": 10},
        {"name": "range", "size_gib_min": 5, "size_gib_max": 50},
        {"name": "near", "size_gib": 1, "local_storage": True},
    ],
    "pools": [
        {"name": "far", "scope": "zone", "zone": "shared", "path": "/far", "capacity_gib": 100}
    ],
    "templates": [
        {"name": "stopped", **IMAGE, "enabled": False},
        {"name": "inner", **IMAGE, "system": True},
        {"name": "elsewhere", **IMAGE, "zones": ["shared"]},
        {"name": "private", **IMAGE, "public": False, "project": "other"},
        {"name": "big", **IMAGE, "min_disk_gib": 50, "min_memory_mib": 2048},
        {"name": "bare", **IMAGE},
        {"name": "xen", **IMAGE, "hypervisors": ["xapi"]},
        {"name": "cd", "format": "iso", "url": "file:///cd.iso", "sha256": SHA, "min_disk_gib": 1},
        {"name": "linux", "format": "kernel", "url": "file:///vmlinuz", "sha256": SHA},
    ],
    "networks": [
        {
            "name": "n2",
            "zone": "z1",
            **BRIDGE,
            "cidr": "10.2.0.0/24",
            "gateway": "10.2.0.1",
            "dns": ["10.2.0.2"],
            "cidr6": "2001:db8:2::/64",
            "gateway6": "2001:db8:2::1",
        },
        {"name": "kept", "zone": "z1", **BRIDGE, "cidr": "10.3.0.0/24", "project": "other"},
        {"name": "shut", "zone": "z1", **BRIDGE, "cidr": "10.4.0.0/24", "enabled": False},
        {"name": "away", "zone": "shared", **BRIDGE, "cidr": "10.5.0.0/24"},
        {"name": "only", "zone": "flat", **BRIDGE, "cidr": "10.6.0.0/24", "security_groups": True},
        {
            "name": "wall",
            "zone": "walled",
            **BRIDGE,
            "cidr": "10.7.0.0/24",
            "security_groups": True,
        },
        {"name": "open", "zone": "walled", **BRIDGE, "cidr": "10.8.0.0/24"},
    ],
    "security_groups": [
        {"name": "web", "rules": WEB},
        {"name": "secret", "project": "other"},
    ],
    "affinity_groups": [
        {"name": "together", "kind": "affinity"},
        {"name": "apart"},
        {"name": "foreign", "project": "other"},
    ],
    "ssh_keys": [
        {"name": "ann", "public_key": f"ssh-ed25519 {KEY} ann@desk"},
        {"name": "bob", "public_key": f"ssh-ed25519 {KEY} bob@desk", "project": "other"},
    ],
    "user_data": [
        {"name": "hello", "data": "#!/bin/sh\necho hello\n"},
        {"name": "hidden", "data": "#!/bin/sh\n", "project": "other"},
    ],
}


def make(fleet: Fleet, **objects: list[dict[str, Any]]) -> None:
    """More nouns, or other values for those that are there."""
    fleet.ask("model_apply", objects=objects)


def deploy(fleet: Fleet, name: str = "web-1", **asked: Any) -> dict[str, Any]:
    """A create in zone z1, of a small VM unless told otherwise."""
    given = {"zone": "z1", "offering": "small", "template": "img", **asked}
    return fleet.ask("vm_create", name=name, **{k: v for k, v in given.items() if v is not None})


def started(fleet: Fleet, host: str | None = None) -> m.Command:
    """The one start that was cast since the last look."""
    (cast,) = fleet.wire.take("start_vm", host)
    return cast.command


def refuse(fleet: Fleet, *agents: ScriptedAgent, code: str = "HYPERVISOR_ERROR") -> str:
    """The host that was asked says no, and shows that nothing is there; which one it was."""
    command = started(fleet)
    agent = next(agent for agent in agents if agent.host == command.host)
    look = agent.look(command.instance)
    agent.fail(command, error_code=code, error="no room in the stable", look=look)
    return agent.host

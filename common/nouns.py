"""The nouns of the model in words: what each is for, and a line for each field.

For `muster NOUN create --help` and the pages that are generated from it; what a field may hold is
told by its type.
"""

from __future__ import annotations

from collections.abc import Mapping

from common.model import Kind

ABOUT: Mapping[Kind, str] = {
    Kind.PROJECT: "whose VMs are counted together; those of no other project are of `default`",
    Kind.ZONE: "a site, with networks, templates and storage of its own",
    Kind.POD: "a rack or row of a zone",
    Kind.CLUSTER: "hosts that are alike, with the ratios and thresholds of their use",
    Kind.HOST: "where a host stands; may be said before its agent was ever heard",
    Kind.POOL: "where disks are kept: a folder or a pool in Ceph, of one host or shared by several",
    Kind.OFFERING: "what a VM gets of CPUs, memory and root disk, and what its host must have",
    Kind.DISK_OFFERING: "what a data disk gets, and what its pool must have",
    Kind.TEMPLATE: "an image that root disks are made from, or a kernel and its initrd",
    Kind.NETWORK: "what NICs are plugged into, and the addresses that VMs are given there",
    Kind.SECURITY_GROUP: "what may reach the VMs that are in it",
    Kind.AFFINITY_GROUP: "VMs that must share a host, or must not",
    Kind.SSH_KEY: "a public key that may log in",
    Kind.USER_DATA: "what cloud-init is told in a guest",
}

_ENABLED = "no: nothing new is made in or from it"
_PROJECT = "whose alone it is"
_TAGS = "words that an offering may ask for"

FIELDS: Mapping[Kind, Mapping[str, str]] = {
    Kind.PROJECT: {
        "enabled": "no: it gets no new VMs",
        "instances": "how many VMs it may have",
        "vcpus": "how many CPUs they may have together",
        "memory_mib": "how much memory they may have together",
        "volumes": "how many disks in pools they may have",
        "storage_gib": "the size of all those disks together",
        "addresses": "how many addresses they may have, IPv4 and IPv6",
    },
    Kind.ZONE: {
        "kind": "basic: one flat shared network; advanced: VMs choose among several",
        "enabled": _ENABLED,
        "project": "the only project that may make VMs here",
        "local_storage": "disks may be in pools of a single host",
        "security_groups": "an advanced zone that filters; a basic one always does",
        "domain": "the domain of its guests' hostnames",
    },
    Kind.POD: {"zone": "where it is", "enabled": _ENABLED},
    Kind.CLUSTER: {
        "pod": "where it is",
        "enabled": _ENABLED,
        "cpu_overcommit": "how many vCPUs a CPU may be promised as",
        "memory_overcommit": "how many MiB a MiB may be promised as",
        "cpu_threshold": "a host takes no more VMs beyond this share of its CPUs",
        "memory_threshold": "a host takes no more VMs beyond this share of its memory",
    },
    Kind.HOST: {"cluster": "where it stands", "tags": _TAGS},
    Kind.POOL: {
        "scope": "who can reach it: one host, or those of a cluster or zone",
        "host": "with scope host",
        "cluster": "with scope cluster",
        "zone": "with scope zone",
        "kind": "dir: files in a folder; rbd: images in Ceph",
        "path": "the folder, the same on every host that reaches it; with kind dir",
        "rbd_pool": "the pool's name in Ceph; with kind rbd",
        "monitors": "the monitors of that Ceph, as host:port; with kind rbd",
        "capacity_gib": "how much of it may be used",
        "overprovisioning": "how many GiB a GiB may be promised as",
        "tags": _TAGS,
        "snapshots": "keeps the snapshots of shelved VMs too",
        "enabled": _ENABLED,
    },
    Kind.OFFERING: {
        "vcpus": "how many; left open: the VM says, within the bounds",
        "vcpus_min": "the least, where that is left open",
        "vcpus_max": "the most, where that is left open",
        "memory_mib": "how much; left open: the VM says, within the bounds",
        "memory_mib_min": "the least, where that is left open",
        "memory_mib_max": "the most, where that is left open",
        "cpu_mhz": "the speed of each vCPU, which makes its weight",
        "cpu_cap": "and not a cycle more than that speed",
        "root_gib": "the root disk; else as large as the template",
        "ha": "start it elsewhere when its host is proven dead",
        "local_storage": "disks in pools of its own host",
        "host_tags": "the host must have all of them",
        "storage_tags": "the pool of the root disk must have all of them",
        "cpu_overcommit": "instead of the cluster's",
        "memory_overcommit": "instead of the cluster's",
    },
    Kind.DISK_OFFERING: {
        "size_gib": "the size; left open: the VM says, within the bounds",
        "size_gib_min": "the least, where that is left open",
        "size_gib_max": "the most, where that is left open",
        "local_storage": "in pools of the VM's own host",
        "storage_tags": "its pool must have all of them",
    },
    Kind.TEMPLATE: {
        "format": "of the file; kernel: a kernel and its initrd, booted without a disk",
        "url": "where hosts fetch it, once a pool",
        "sha256": "of the file; what does not match is not used",
        "initrd_url": "the initrd of a kernel",
        "initrd_sha256": "of that file",
        "cmdline": "the command line of a kernel",
        "min_disk_gib": "the smallest root disk",
        "min_memory_mib": "the least memory",
        "hypervisors": "the drivers that can run it; none: all",
        "zones": "where it is offered; none: everywhere",
        "project": _PROJECT,
        "public": "other projects may use it too",
        "system": "for Muster's own use, not for VMs",
        "enabled": _ENABLED,
    },
    Kind.NETWORK: {
        "zone": "where it is",
        "kind": "how it is kept apart: not at all, by a VLAN tag, or by its own wire",
        "backend": "what `source` is: a libvirt network, a bridge, an Open vSwitch bridge",
        "source": "what NICs are plugged into, the same on every host",
        "vlan": "the tag, with kind vlan",
        "cidr": "the IPv4 subnet, as in 10.1.0.0/24",
        "gateway": "the guests' default route",
        "first": "the first address for VMs; else the first of the subnet",
        "last": "the last address for VMs; else the last of the subnet",
        "cidr6": "the IPv6 subnet, a /64: each guest makes its address from its MAC",
        "gateway6": "the guests' default route of IPv6",
        "dns": "the guests' name servers",
        "security_groups": "NICs here can be filtered",
        "project": _PROJECT,
        "enabled": _ENABLED,
    },
    Kind.SECURITY_GROUP: {
        "project": _PROJECT,
        "rules": "what is let through",
    },
    Kind.AFFINITY_GROUP: {"kind": "together or apart", "project": _PROJECT},
    Kind.SSH_KEY: {"public_key": "the line that OpenSSH wrote", "project": _PROJECT},
    Kind.USER_DATA: {"data": "a script or a #cloud-config document", "project": _PROJECT},
}

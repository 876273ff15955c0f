"""A VM from a template, through managers, RabbitMQ and an agent, onto a hypervisor and away."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("libvirt")

from devstack.fleet import Times
from devstack.image import Image, bootable
from devstack.parts.libvirtd import Libvirtd
from devstack.parts.postgres import Postgres
from devstack.parts.rabbitmq import RabbitMQ
from tests.faults.stage import staged
from tests.functional.libvirt_rig import filtering
from tests.functional.neighbour import beside
from tests.wait import wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow]

BOOT_S = 120.0  # three seconds on an idle machine
# libvirt holds a guest while it makes or removes its filters; on busy machines that takes seconds.
TIMES = Times(report_interval=2.0, service_down_time=30.0)
KEY = base64.b64encode(b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20" + bytes(32)).decode()


def zone(pool: Path, template: Path, checksum: str, network: str) -> dict[str, Any]:
    web = {"protocol": "tcp", "port_first": 80, "port_last": 80}
    return {
        "zones": [{"name": "z", "security_groups": True}],
        "pods": [{"name": "p", "zone": "z"}],
        "clusters": [{"name": "c", "pod": "p"}],
        "hosts": [{"name": "alpha", "cluster": "c"}],
        "pools": [
            {"name": "d", "scope": "host", "host": "alpha", "path": str(pool), "capacity_gib": 9}
        ],
        "offerings": [
            {"name": "small", "vcpus": 1, "memory_mib": 128, "root_gib": 1, "cpu_mhz": 1000}
        ],
        "templates": [
            {"name": "t", "format": "qcow2", "url": template.as_uri(), "sha256": checksum}
        ],
        "networks": [
            {
                "name": "n",
                "zone": "z",
                "kind": "isolated",
                "backend": "libvirt",
                "source": network,
                "cidr": "10.9.0.0/24",
                "security_groups": True,
            }
        ],
        "security_groups": [{"name": "web", "rules": [web]}],
        "ssh_keys": [{"name": "ann", "public_key": f"ssh-ed25519 {KEY} ann"}],
    }


def qemu_io(what: str, image: Path) -> str:
    """Read or write what an image holds, also while a guest has it."""
    words = ["qemu-io", *(["-r", "-U"] if what.startswith("read") else []), "-c", what]
    done = subprocess.run([*words, str(image)], check=True, capture_output=True, text=True)
    return done.stdout


@filtering
def test_a_vm_has_the_name_address_and_disks_it_was_promised_and_they_are_gone_after_it(
    rabbit: RabbitMQ, postgres: Postgres, libvirt_qemu: Libvirtd, image: Image, tmp_path: Path
) -> None:
    pool, template = tmp_path / "pool", tmp_path / "template.qcow2"
    pool.mkdir()
    template.write_bytes(bootable(image).read_bytes())
    checksum = hashlib.sha256(template.read_bytes()).hexdigest()
    file, network = tmp_path / "zone.yaml", f"net-{os.getpid()}"
    uris = {"alpha": libvirt_qemu.qemu_uri}
    parts = (rabbit.new_vhost(), postgres.new_database(), TIMES)
    with staged(["alpha"], *parts, connection_uris=uris) as stage:
        # A checksum that is wrong is told, and found out nowhere else.
        file.write_text(json.dumps(zone(pool, template, "0" * 64, network)))
        assert stage.fleet.muster("apply", str(file)).code == 0
        options = ["--offering", "small", "--network", "n,address=10.9.0.5", "--template", "t"]
        options += ["--security-group", "web", "--ssh-key", "ann", "--data-disk", "2"]
        refused = stage.fleet.muster("vm", "create", "bad", *options, "--wait")
        assert refused.code == 1
        assert f"TEMPLATE_INVALID: {template.as_uri()}: expected sha256" in refused.err
        stage.done("vm", "delete", "bad")

        file.write_text(json.dumps(zone(pool, template, checksum, network)))
        assert stage.fleet.muster("apply", str(file)).code == 0
        stage.done("vm", "create", "web-1", *options)
        vm = stage.vm("web-1")
        folder = stage.fleet.folder / "instances" / "alpha" / vm["uuid"]

        def console() -> str:
            return (folder / "serial.log").read_text(errors="replace")

        wait_until(lambda: "MUSTER GUEST UP" in console(), BOOT_S, "the guest is up")
        for line in (
            "NAME web-1",
            "ADDRESS eth0 10.9.0.5/24",
            "DISK vda 1024 MiB",
            "DISK vdb 2048 MiB",
            "KEYS 1",
        ):
            assert f"MUSTER GUEST {line}" in console()
        bridge = libvirt_qemu.virsh("net-info", network).split("Bridge:")[1].split()[0]
        with beside(libvirt_qemu, bridge, "10.9.0.9/24") as near:
            wait_until(lambda: near.reads("10.9.0.5", 80) == "web-1", 30, "its web page")
            assert near.reads("10.9.0.5", 81) is None
        assert len(list(pool.glob("*/*.disk*"))) == 2

        # Shelved, and gone from its host, it is what it was when it is unshelved.
        stage.done("vm", "stop", "web-1")
        disks = sorted(pool.glob("*/*.disk*"))
        for n, disk in enumerate(disks):
            qemu_io(f"write -q -P {0x50 + n} 900M 64k", disk)
        stage.done("vm", "shelve", "web-1", "--reason", "quiet season")
        assert stage.vm("web-1")["vm_state"] == "SHELVED_OFFLOADED"
        assert stage.vm("web-1")["snapshot"]["unshelve_on"] == "alpha"
        assert not folder.exists()
        assert {path.name for path in pool.iterdir()} == {"templates", ".muster-pool"}
        store = folder.parent / "snapshots" / vm["uuid"]
        assert len(list(store.glob("*/disk*.qcow2"))) == 2
        wait_until(lambda: stage.host("alpha")["state"] == "UP", 30, "a host that may take it")
        stage.done("vm", "unshelve", "web-1")
        wait_until(lambda: "MUSTER GUEST UP" in console(), BOOT_S, "the guest is up again")
        assert "MUSTER GUEST ADDRESS eth0 10.9.0.5/24" in console()
        for n, disk in enumerate(sorted(pool.glob("*/*.disk*"))):
            assert "failed" not in qemu_io(f"read -P {0x50 + n} 900M 64k", disk)
        wait_until(lambda: not store.exists(), 30, "its snapshot is gone")

        stage.done("vm", "delete", "web-1")
        assert not folder.exists()
        assert {path.name for path in pool.iterdir()} == {"templates", ".muster-pool"}
        assert "muster-" not in libvirt_qemu.virsh("nwfilter-list")
        wait_until(
            lambda: not [f for f in stage.ask("doctor") if f["level"] != "INFO"],
            30,
            "the doctor finds nothing",
        )
    libvirt_qemu.virsh("net-destroy", network)
    libvirt_qemu.virsh("net-undefine", network)

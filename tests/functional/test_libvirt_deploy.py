"""Guests deployed from templates: they boot as they were promised, and leave nothing behind."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("libvirt")

from agent.drivers.libvirt.disks import SIGN
from agent.effects import Mode
from common import messages as m
from common.errors import BadRequest, HypervisorError, TemplateInvalid
from common.messages import DiskSpec, GuestSpec, ImageSource, NicSpec
from common.model import Backend, Direction, Protocol, Rule, TemplateFormat
from common.states import PowerState
from devstack.image import Image
from devstack.parts.libvirtd import Libvirtd
from devstack.parts.openvswitch import OpenVSwitch
from tests.conftest import started
from tests.functional.dying_agent import Host
from tests.functional.libvirt_rig import FLEET, Rig, at_work, filtering
from tests.functional.neighbour import beside
from tests.wait import wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow]

BOOT_S = 120.0  # three seconds on an idle machine
MAC = "52:54:00:12:34:56"


@pytest.fixture
def rig(libvirt_qemu: Libvirtd, tmp_path: Path) -> Iterator[Rig]:
    with at_work(libvirt_qemu.qemu_uri, tmp_path) as rig:
        yield rig


@pytest.fixture(autouse=True)
def filters(libvirt_qemu: Libvirtd) -> Iterator[None]:
    """Those of guests that a test has left running go with them."""
    yield
    for name in libvirt_qemu.virsh("list", "--name").split():
        libvirt_qemu.virsh("destroy", name)
    for name in filters_of_ours(libvirt_qemu):
        libvirt_qemu.virsh("nwfilter-undefine", name)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    folder = tmp_path / "pool"
    folder.mkdir()
    return folder


@pytest.fixture
def network(libvirt_qemu: Libvirtd) -> Iterator[str]:
    """The name of a libvirt network that is not there yet."""
    name = f"net-{uuid.uuid4().hex[:8]}"
    yield name
    if name in libvirt_qemu.virsh("net-list", "--name").split():
        libvirt_qemu.virsh("net-destroy", name)
        libvirt_qemu.virsh("net-undefine", name)


@pytest.fixture
def template(tmp_path: Path) -> ImageSource:
    """A qcow2 image of 64 MiB."""
    path = tmp_path / "template.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "64M"], check=True)
    return source(path, TemplateFormat.QCOW2)


def source(path: Path, kind: TemplateFormat) -> ImageSource:
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    return ImageSource(url=f"file://{path}", sha256=checksum, format=kind)


def boots(image: Image) -> dict[str, Any]:
    """What a spec needs to boot the tiny guest from templates."""
    return {
        "kernel_source": source(image.kernel, TemplateFormat.KERNEL),
        "initrd_source": source(image.initrd, TemplateFormat.KERNEL),
        "cmdline": "console=ttyS0 quiet",
    }


def plugged(network: str, **changes: Any) -> NicSpec:
    plain = {"mac": MAC, "network": network, "backend": Backend.LIBVIRT, "ensure": True}
    return NicSpec(**{**plain, "address": "10.9.0.5/24", **changes})


def up(rig: Rig, guest: Any) -> str:
    """Its console, once it says that it is up."""
    rig.driver.start(guest)
    wait_until(lambda: "MUSTER GUEST UP" in rig.serial(guest), BOOT_S, "the guest is up")
    return rig.serial(guest)


def files_of(folder: Path) -> list[str]:
    """Everything below a folder but the cache of templates, and what tells that it is mounted."""
    found = (p.relative_to(folder) for p in folder.rglob("*"))
    return sorted(str(path) for path in found if path.parts[0] not in ("templates", SIGN))


def filters_of_ours(libvirtd: Libvirtd) -> list[str]:
    return [w for w in libvirtd.virsh("nwfilter-list").split() if w.startswith("muster-")]


@filtering
def test_a_guest_is_what_its_spec_promised_and_leaves_nothing_behind(
    rig: Rig,
    image: Image,
    libvirt_qemu: Libvirtd,
    network: str,
    pool: Path,
    template: ImageSource,
) -> None:
    guest = rig.create(
        disks=(
            DiskSpec(source=template, size_gib=1, folder=str(pool)),
            DiskSpec(size_gib=2),
        ),
        nics=(plugged(network, gateway="10.9.0.1", rules=()),),
        hostname="web-1",
        domain="example.org",
        ssh_keys=("ssh-ed25519 AAAA a", "ssh-rsa BBBB b"),
        user_data="#!/bin/sh\ntrue\n",
        cpu_mhz=1000,
        cpu_cap=True,
        **boots(image),
    )
    assert rig.phases == [
        *("template", "network", "define", "root disk", "data disks", "seed", "filters")
    ]
    console = up(rig, guest)
    for line in (
        "NAME web-1",
        "ADDRESS eth0 10.9.0.5/24",
        "DISK vda 1024 MiB",
        "DISK vdb 2048 MiB",
        "KEYS 2",
    ):
        assert f"MUSTER GUEST {line}" in console
    assert rig.look(guest).macs == (MAC,)
    assert len(filters_of_ours(libvirt_qemu)) == 1

    rig.driver.destroy(guest)
    assert rig.driver.look(guest.hypervisor_uuid) is None
    assert files_of(pool) == files_of(rig.instances) == []
    assert filters_of_ours(libvirt_qemu) == []
    assert len(list((pool / "templates").iterdir())) == 1, "the template waits for the next one"
    assert network in libvirt_qemu.virsh("net-list", "--name"), "so does its network"


def test_two_guests_of_a_template_fetch_it_once_and_have_a_disk_each(
    rig: Rig, pool: Path, template: ImageSource
) -> None:
    root = DiskSpec(source=template, folder=str(pool))
    first = rig.create("one", disks=(root,))
    Path(template.url.removeprefix("file://")).unlink()
    second = rig.create("two", disks=(root,))
    assert len([name for name in files_of(pool) if name.endswith(".qcow2")]) == 2
    rig.driver.start(second)
    rig.driver.destroy(first)
    assert rig.look(second).power_state is PowerState.RUNNING
    assert len([name for name in files_of(pool) if name.endswith(".qcow2")]) == 1


def test_a_guest_is_installed_from_a_disc_that_stays(rig: Rig, pool: Path, tmp_path: Path) -> None:
    disc = tmp_path / "install.iso"
    disc.write_bytes(b"\0" * 32769 + b"CD001" + b"\0" * (1 << 20))
    guest = rig.create(
        disks=(
            DiskSpec(size_gib=1, folder=str(pool)),
            DiskSpec(source=source(disc, TemplateFormat.ISO), folder=str(pool)),
        )
    )
    rig.driver.start(guest)
    with rig.hand() as conn:
        running = conn.lookupByUUIDString(guest.hypervisor_uuid).XMLDesc()
    assert "device='cdrom'" in running
    assert "<boot order='2'/>" in running
    rig.driver.destroy(guest)
    assert files_of(pool) == []
    assert [p.suffix for p in (pool / "templates").iterdir()] == [".iso"]


@pytest.mark.parametrize("fault", ["checksum", "format", "backing file", "too small", "no pool"])
def test_a_template_that_is_not_what_it_should_be_leaves_nothing_behind(
    rig: Rig, pool: Path, template: ImageSource, tmp_path: Path, fault: str
) -> None:
    path = Path(template.url.removeprefix("file://"))
    disk: dict[str, Any] = {"folder": str(pool)}
    refusal: type[Exception] = TemplateInvalid
    if fault == "checksum":
        path.write_bytes(b"x")
    elif fault == "format":
        template = source(path, TemplateFormat.RAW)
    elif fault == "backing file":
        attack = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/shadow", "-F", "raw"]
        subprocess.run([*attack, str(path)], check=True)
        template = source(path, TemplateFormat.QCOW2)
    elif fault == "too small":
        subprocess.run(["qemu-img", "resize", "-q", str(path), "3G"], check=True)
        template, refusal = source(path, TemplateFormat.QCOW2), HypervisorError
        disk["size_gib"] = 2
    else:
        disk["folder"], refusal = str(tmp_path / "away"), HypervisorError
    with pytest.raises(refusal):
        rig.create(
            disks=(DiskSpec(source=template, **disk), DiskSpec(size_gib=1)), hostname="web-1"
        )
    assert rig.driver.list_guests().guests == ()
    assert files_of(pool) == []
    assert not rig.instances.exists() or files_of(rig.instances) == []


def test_a_spec_that_no_host_can_make_is_refused_before_anything_is_touched(rig: Rig) -> None:
    with pytest.raises(BadRequest, match="hostname"):
        rig.create(hostname="not a name", disks=(DiskSpec(size_gib=1),))
    assert not rig.instances.exists()


# networks


def test_a_network_or_bridge_that_is_missing_is_named_with_the_remedy(
    rig: Rig, libvirt_qemu: Libvirtd
) -> None:
    with pytest.raises(HypervisorError, match=r"no network nowhere.*virsh net-define"):
        rig.create(nics=(plugged("nowhere", ensure=False),))
    for backend, remedy in ((Backend.BRIDGE, "ip link add"), (Backend.OVS, "ovs-vsctl add-br")):
        with pytest.raises(HypervisorError, match=f"no bridge nowhere.*{remedy} nowhere"):
            rig.create(nics=(plugged("nowhere", ensure=False, backend=backend),))
    assert rig.driver.list_guests().guests == ()


def test_a_network_of_that_name_is_started_and_otherwise_left_as_it_is(
    rig: Rig, libvirt_qemu: Libvirtd, network: str, tmp_path: Path
) -> None:
    made = tmp_path / "net.xml"
    made.write_text(f"<network><name>{network}</name><domain name='theirs'/></network>")
    libvirt_qemu.virsh("net-define", str(made))
    before = libvirt_qemu.virsh("net-dumpxml", "--inactive", network)
    rig.driver.start(rig.create(nics=(plugged(network),)))
    assert network in libvirt_qemu.virsh("net-list", "--name").split()
    assert libvirt_qemu.virsh("net-dumpxml", "--inactive", network) == before


@filtering
def test_a_port_that_is_allowed_answers_and_one_that_is_not_does_not(
    rig: Rig, image: Image, libvirt_qemu: Libvirtd, network: str
) -> None:
    web = [
        Rule(protocol=Protocol.TCP, port_first=80, port_last=80, cidr=cidr)
        for cidr in ("10.9.0.0/24", "2001:db8::/64")
    ]
    nic = plugged(network, address6="2001:db8::5/64", rules=tuple(web))
    guest = rig.create(nics=(nic,), hostname="web-1", **boots(image))
    bridge = libvirt_qemu.virsh("net-info", network).split("Bridge:")[1].split()[0]
    card = {"mac": "52:54:00:12:34:57", "address": "10.9.0.6/24"}
    on_bridge = plugged(bridge, backend=Backend.BRIDGE, ensure=False, **card)
    open_one = rig.create("open", nics=(on_bridge,), hostname="web-2", **boots(image))
    up(rig, guest)
    up(rig, open_one)
    with beside(libvirt_qemu, bridge, "10.9.0.9/24") as near:
        wait_until(lambda: near.reads("10.9.0.5", 80) == "web-1", 30, "what is allowed answers")
        assert near.reads("10.9.0.5", 81) is None
        assert not near.pings("10.9.0.5"), "no rule lets echo requests in"
        near.run("ip", "addr", "add", "2001:db8::9/64", "dev", "eth0", "nodad")
        wait_until(lambda: near.reads("2001:db8::5", 80) == "web-1", 30, "its IPv6 answers")
        assert near.reads("2001:db8::5", 81) is None
        assert near.reads("10.9.0.6", 81) == "web-2", "a card without rules is not filtered"
        near.run("ip", "addr", "add", "10.8.0.9/24", "dev", "eth0")
        near.run("ip", "addr", "del", "10.9.0.9/24", "dev", "eth0")
        near.run("ip", "route", "add", "10.9.0.0/24", "dev", "eth0")
        assert near.reads("10.9.0.5", 80) is None, "the rule names another subnet"


@filtering
def test_a_filter_that_another_guest_uses_stays(
    rig: Rig, libvirt_qemu: Libvirtd, network: str
) -> None:
    allow = Rule(direction=Direction.EGRESS, protocol=Protocol.UDP)
    guest = rig.create(nics=(plugged(network, rules=(allow,)),))
    [name] = filters_of_ours(libvirt_qemu)
    theirs = rig.stranger("theirs", running=False)
    with rig.hand() as conn:
        body = conn.lookupByUUIDString(theirs).XMLDesc()
        card = f"<interface type='network'><source network='{network}'/>"
        card += f"<filterref filter='{name}'/></interface></devices>"
        conn.defineXML(body.replace("</devices>", card))
    before = rig.picture(theirs)
    rig.driver.destroy(guest)
    assert filters_of_ours(libvirt_qemu) == [name]
    assert rig.picture(theirs) == before


@pytest.fixture
def switch(libvirt_qemu: Libvirtd) -> Iterator[OpenVSwitch]:
    yield from started(lambda: OpenVSwitch(libvirt_qemu))  # type: ignore[misc]


def test_a_port_of_open_vswitch_carries_its_tag_and_no_other(
    rig: Rig, image: Image, libvirt_qemu: Libvirtd, switch: OpenVSwitch
) -> None:
    switch.add_bridge("br-guests")
    nic = plugged("br-guests", backend=Backend.OVS, ensure=False, vlan=100)
    guest = rig.create(nics=(nic,), hostname="web-1", **boots(image))
    assert "ADDRESS eth0 10.9.0.5/24" in up(rig, guest)
    for tag, reached in ((100, True), (200, False)):
        with beside(libvirt_qemu, "br-guests", "10.9.0.9/24", switch=switch, tag=tag) as neighbour:
            assert neighbour.pings("10.9.0.5") is reached, f"from VLAN {tag}"
    rig.driver.destroy(guest)
    assert "vnet" not in switch.vsctl("list-ports", "br-guests")


# agents that die


def command(kind: str, generation: int, guest: GuestSpec | None, instance: str) -> m.Command:
    spec = {} if guest is None else {"guest": m.builtins(guest), "create": True}
    return m.Command(
        id=str(uuid.uuid4()),
        kind=m.CommandKind(kind),
        fleet=FLEET,
        host="host-1",
        session=1,
        instance=instance,
        generation=generation,
        timeout_s=120.0,
        spec=spec,
    )


PHASES = ["template", "network", "define", "root disk", "data disks", "seed", "filters", "start"]


@filtering
@pytest.mark.parametrize(
    ("phase", "wanted"),
    [
        *((phase, False) for phase in PHASES),
        *((phase, True) for phase in ("define", "data disks", "start")),
    ],
)
def test_an_agent_that_dies_in_any_phase_leaves_nothing_that_is_not_found(
    libvirt_qemu: Libvirtd,
    tmp_path: Path,
    pool: Path,
    network: str,
    template: ImageSource,
    phase: str,
    wanted: bool,
) -> None:
    instance = str(uuid.uuid4())
    spec = GuestSpec(
        name="web-1",
        vcpus=1,
        memory_mib=64,
        disks=(
            DiskSpec(source=template, folder=str(pool)),
            DiskSpec(size_gib=1, folder=str(pool)),
        ),
        nics=(plugged(network, rules=()),),
        hostname="web-1",
    )
    start = command("start_vm", 1, spec, instance)
    program = [sys.executable, "-m", "tests.functional.dying_agent"]
    dying = subprocess.Popen(
        [*program, libvirt_qemu.qemu_uri, str(tmp_path), phase],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert dying.stdin is not None
        assert dying.stdout is not None
        dying.stdin.write(m.encode(start).decode())
        dying.stdin.close()
        assert dying.stdout.readline() == f"{phase}\n"
    finally:
        dying.kill()
        dying.wait()

    host = Host(libvirt_qemu.qemu_uri, tmp_path)
    try:
        again = host.carry_out(start, Mode.RESUME if wanted else Mode.ABANDON)
        if wanted:
            assert again.outcome is m.Outcome.SUCCEEDED, again.error
            assert again.look is not None
            assert again.look.guest is not None
            assert again.look.guest.power_state is PowerState.RUNNING
            assert again.phases[-1].name == "start"
        gone = host.carry_out(command("terminate_instance", 2, None, instance))
        assert gone.outcome is m.Outcome.SUCCEEDED, gone.error
    finally:
        host.close()
    assert libvirt_qemu.virsh("list", "--all", "--name").split() == []
    assert files_of(pool) == []
    assert not (tmp_path / "instances").exists() or files_of(tmp_path / "instances") == []
    assert filters_of_ours(libvirt_qemu) == []

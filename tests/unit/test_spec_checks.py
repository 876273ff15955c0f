"""What no host could make a guest from is refused by every driver, field by field, at once."""

from __future__ import annotations

from typing import Any

import pytest

from agent.drivers.checks import check
from common.errors import BadRequest
from common.messages import DiskSpec, GuestSpec, ImageSource, NicSpec
from common.model import Backend, Rule, TemplateFormat

MAC = "52:54:00:12:34:56"
SOURCE = ImageSource(url="file:///t", sha256="0" * 64, format=TemplateFormat.QCOW2)
KERNEL = ImageSource(url="file:///k", sha256="0" * 64, format=TemplateFormat.KERNEL)


def spec(**changes: Any) -> GuestSpec:
    return GuestSpec(**{"name": "web-1", "vcpus": 1, "memory_mib": 128, **changes})


def nic(**changes: Any) -> dict[str, Any]:
    return {"nics": (NicSpec(**{"mac": MAC, **changes}),)}


def disk(**changes: Any) -> dict[str, Any]:
    return {"disks": (DiskSpec(**changes),)}


@pytest.mark.parametrize(
    "good",
    [
        {},
        disk(size_gib=1),
        disk(path="/images/a"),
        disk(source=SOURCE, folder="/pool"),
        nic(),
        nic(network="default"),
        nic(network="n", backend=Backend.LIBVIRT, ensure=True, address="10.0.0.5/24", rules=()),
        nic(network="b", backend=Backend.OVS, vlan=7, address="10.0.0.5/24", gateway="10.0.0.1"),
        nic(address6="2001:db8::5/64", gateway6="fe80::1", dns=("1.1.1.1", "2001:db8::1")),
        {"kernel_source": KERNEL, "initrd_source": KERNEL, "cmdline": "quiet"},
        {"hostname": "web-1", "domain": "a.example.org", "cpu_mhz": 2000, "cpu_cap": True},
    ],
)
def test_what_a_guest_can_be_made_from_passes(good: dict[str, Any]) -> None:
    check(spec(**good))


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("disks[0].source", disk(path="/a", source=SOURCE)),
        ("disks[0].path", disk(path="a/b")),
        ("disks[0].source.format", disk(source=KERNEL)),
        *(("nics[0].mac", nic(mac=mac)) for mac in ("", "52:54:00", "01:00:5e:00:00:01", "x" * 17)),
        ("nics[0].network", nic(backend=Backend.BRIDGE)),
        ("nics[0].ensure", nic(network="br0", backend=Backend.BRIDGE, ensure=True)),
        ("nics[0].vlan", nic(network="br0", backend=Backend.BRIDGE, vlan=3)),
        *(
            ("nics[0].address", nic(address=address))
            for address in ("10.0.0.5", "10.0.0.5/33", "x/24", "2001:db8::5/64")
        ),
        ("nics[0].address6", nic(address6="10.0.0.5/24")),
        ("nics[0].gateway", nic(address="10.0.0.5/24", gateway="10.0.1.1")),
        ("nics[0].gateway", nic(address="10.0.0.5/24", gateway="router")),
        ("nics[0].gateway", nic(gateway="10.0.0.1")),
        ("nics[0].dns", nic(dns=("1.1.1.1", "dns.example.org"))),
        ("nics[0].rules", nic(network="b", backend=Backend.OVS, address="10.0.0.5/24", rules=())),
        ("nics[0].rules", nic(address="10.0.0.5/24", rules=())),
        ("nics[0].rules", nic(network="n", rules=())),
        ("nics[0].rules", nic(network="n", address="10.0.0.5/24", rules=(Rule(cidr="all"),))),
        ("nics", {"nics": (NicSpec(mac=MAC), NicSpec(mac=MAC.upper()))}),
        ("kernel_source", {"kernel_source": SOURCE}),
        ("initrd", {"initrd": "/boot/initrd", "initrd_source": KERNEL}),
        ("cpu_cap", {"cpu_cap": True}),
        *(("hostname", {"hostname": name}) for name in ("-a", "a_b", "a.b", "a" * 64, "")),
        ("domain", {"domain": "a..b"}),
    ],
)
def test_what_no_host_could_make_is_refused_by_its_field(field: str, bad: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as refused:
        check(spec(**bad))
    assert refused.value.data["field"] == field
    assert refused.value.message.startswith(f"{field}: ")
    assert refused.value.remedy


def test_all_that_is_wrong_is_in_one_answer() -> None:
    with pytest.raises(BadRequest, match=r"disks\[0\].path.*nics\[0\].mac.*hostname"):
        check(spec(**disk(path="a"), **nic(mac="x"), hostname="a b"))

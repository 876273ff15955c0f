"""What goes into a domain's XML comes out of it again, and damaged marks count as none."""

from __future__ import annotations

import uuid
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.drivers.libvirt import xml
from common.messages import DiskSpec, GuestReport, GuestSpec, NicSpec, RbdTarget
from common.ownership import Mark, is_ours
from common.states import PowerState

BEARER = "6f1d2c3b-0000-4000-8000-00000000000a"
MARK = Mark(fleet="fleet-1", instance="i-1", generation=7, bearer=BEARER)

# What XML 1.0 can carry: marks are made from ids that came through validation.
xml_text = st.text(
    st.characters(
        min_codepoint=0x20, blacklist_categories=("Cs", "Cc"), blacklist_characters="\ufffe\uffff"
    ),
    min_size=1,
    max_size=60,
)


def defined(spec: GuestSpec, mark: Mark = MARK, **changed: object) -> str:
    values = {
        "name": xml.domain_name(spec.name),
        "virt_type": "qemu",
        "disks": [xml.Disk("/images/a.qcow2", "qcow2")],
        "nics": [xml.Nic(nic.mac, "user") for nic in spec.nics],
        "serial_log": "/instances/i-1/serial.log",
        **changed,
    }
    return xml.define(spec, mark, **values)  # type: ignore[arg-type]


def spec(**changed: object) -> GuestSpec:
    return GuestSpec(**{"name": "web-1", "vcpus": 2, "memory_mib": 256, **changed})  # type: ignore[arg-type]


@given(
    name=st.text(min_size=1, max_size=253),
    vcpus=st.integers(1, 512),
    memory_mib=st.integers(16, 1 << 24),
    fleet=xml_text,
    instance=xml_text,
    generation=st.integers(1, 2**53),
    macs=st.lists(st.sampled_from(["52:54:00:00:00:01", "52:54:00:aa:bb:cc"]), max_size=3),
)
def test_a_definition_says_what_was_asked_for(
    name: str,
    vcpus: int,
    memory_mib: int,
    fleet: str,
    instance: str,
    generation: int,
    macs: list[str],
) -> None:
    mark = Mark(fleet=fleet, instance=instance, generation=generation, bearer=str(uuid.uuid4()))
    wanted = spec(
        name=name, vcpus=vcpus, memory_mib=memory_mib, nics=tuple(NicSpec(mac=m) for m in macs)
    )
    assert xml.report(defined(wanted, mark), PowerState.SHUTOFF) == GuestReport(
        hypervisor_uuid=mark.bearer,
        name=xml.domain_name(name),
        power_state=PowerState.SHUTOFF,
        vcpus=vcpus,
        memory_mib=memory_mib,
        mark=mark,
        macs=tuple(macs),
    )


@given(st.text(max_size=300))
def test_every_name_becomes_one_that_libvirt_can_make_a_file_of(name: str) -> None:
    made = xml.domain_name(name)
    assert made.strip() == made
    assert made not in ("", ".", "..")
    assert len(made.encode()) <= 200
    assert not set(made) & set("/\n\0")
    assert xml.domain_name(made) == made
    ET.fromstring(f"<name>{made.replace('&', '&amp;').replace('<', '&lt;')}</name>")  # noqa: S314


@pytest.mark.parametrize("name", ["web-1", "гость ✓", "a&b <c>", "-", "instance-00000001"])
def test_names_that_can_be_kept_are_kept(name: str) -> None:
    assert xml.domain_name(name) == name


@given(
    mark=st.builds(
        Mark,
        fleet=xml_text,
        instance=xml_text,
        generation=st.integers(0, 2**53),
        bearer=st.uuids().map(str),
    )
)
def test_the_mark_that_is_set_later_reads_like_the_one_defined(mark: Mark) -> None:
    # libvirt puts the namespace in by itself.
    element = xml.mark_element(mark).replace("<mark", f'<m:mark xmlns:m="{xml.MARK_URI}"', 1)
    assert _mark_in(element) == mark


def test_a_copied_mark_is_read_and_proves_nothing() -> None:
    copy = xml.report(
        defined(spec()).replace(f"<uuid>{BEARER}</uuid>", f"<uuid>{uuid.uuid4()}</uuid>"),
        PowerState.RUNNING,
    )
    assert copy.mark == MARK
    assert not is_ours(copy.mark, fleet="fleet-1", hypervisor_uuid=copy.hypervisor_uuid)


GOOD = f'fleet="f" instance="i" generation="3" bearer="{BEARER}"'


@pytest.mark.parametrize(
    ("case", "metadata"),
    [
        ("no metadata at all", None),
        ("empty metadata", ""),
        ("no attributes", f'<m:mark xmlns:m="{xml.MARK_URI}"/>'),
        ("no namespace", f"<mark {GOOD}/>"),
        ("another namespace", f'<m:mark xmlns:m="{xml.MARK_URI}0" {GOOD}/>'),
        ("another element", f'<m:sign xmlns:m="{xml.MARK_URI}" {GOOD}/>'),
        ("two marks", f'<m:mark xmlns:m="{xml.MARK_URI}" {GOOD}/>' * 2),
        ("a mark within another's", f'<x><m:mark xmlns:m="{xml.MARK_URI}" {GOOD}/></x>'),
        *(
            (f"{field} {value!r}", GOOD.replace(old, f'{field}="{value}"'))
            for field, old, values in (
                (
                    "generation",
                    'generation="3"',
                    ["", "x", "-1", "3.0", "1e3", " 3", "٣", "9" * 17],
                ),
                ("fleet", 'fleet="f"', ["", "f" * 300]),
                ("instance", 'instance="i"', ["", "i" * 300]),
                ("bearer", f'bearer="{BEARER}"', [""]),
            )
            for value in values
        ),
    ],
)
def test_a_damaged_mark_counts_as_none(case: str, metadata: str | None) -> None:
    if metadata is not None and metadata and not metadata.startswith("<"):
        metadata = f'<m:mark xmlns:m="{xml.MARK_URI}" {metadata}/>'
    assert _mark_in(metadata) is None


def _mark_in(metadata: str | None) -> Mark | None:
    inner = "" if metadata is None else f"<metadata>{metadata}</metadata>"
    domain = f"<domain><name>x</name><uuid>{BEARER}</uuid>{inner}</domain>"
    return xml.report(domain, PowerState.SHUTOFF).mark


def test_a_running_strangers_definition_is_read_as_it_is() -> None:
    seen = xml.report(
        f"""<domain type='kvm' id='12'>
          <name>hand-made</name><uuid>{BEARER}</uuid>
          <memory unit='GiB'>2</memory><vcpu current='3'>8</vcpu>
          <devices>
            <interface type='bridge'><mac address='52:54:00:AA:00:01'/></interface>
            <interface type='network'/>
            <disk type='network'><source protocol='rbd' name='p/i'/></disk>
          </devices>
        </domain>""",
        PowerState.RUNNING,
    )
    assert (seen.name, seen.domain_id, seen.vcpus, seen.memory_mib) == ("hand-made", 12, 3, 2048)
    assert seen.macs == ("52:54:00:aa:00:01",)
    assert seen.mark is None


@pytest.mark.parametrize("body", ["", "<domain/>", "<pool><uuid>x</uuid></pool>", "not xml"])
def test_what_is_no_domain_is_refused(body: str) -> None:
    with pytest.raises(ValueError, match="XML"):
        xml.report(body, PowerState.RUNNING)


def test_a_guest_boots_a_kernel_or_its_disk() -> None:
    from_disk = ET.fromstring(defined(spec()))  # noqa: S314
    assert from_disk.find("os/boot[@dev='hd']") is not None
    assert from_disk.find("os/kernel") is None
    direct = ET.fromstring(  # noqa: S314
        defined(spec(kernel="/k", initrd="/i", cmdline="console=ttyS0 a=<b>&c"))
    )
    assert direct.find("os/boot") is None
    assert [direct.findtext(f"os/{t}") for t in ("kernel", "initrd", "cmdline")] == [
        "/k",
        "/i",
        "console=ttyS0 a=<b>&c",
    ]


def test_disks_cards_and_the_serial_log_are_where_they_were_planned() -> None:
    domain = ET.fromstring(  # noqa: S314
        defined(
            spec(disks=(DiskSpec(size_gib=1),)),
            disks=[xml.Disk(f"/d/{n}", "raw") for n in range(28)],
            nics=[
                xml.Nic("52:54:00:00:00:01", "user"),
                xml.Nic("52:54:00:00:00:02", "network", "default"),
                xml.Nic("52:54:00:00:00:03", "bridge", "br0"),
            ],
        )
    )
    names = [target.get("dev") for target in domain.iterfind("devices/disk/target")]
    assert (names[0], names[25], names[26], names[27]) == ("vda", "vdz", "vdaa", "vdab")
    sources = [card.find("source") for card in domain.iterfind("devices/interface")]
    assert [None if s is None else s.attrib for s in sources] == [
        None,
        {"network": "default"},
        {"bridge": "br0"},
    ]
    log = domain.find("devices/serial/source")
    assert log is not None
    assert log.get("path") == "/instances/i-1/serial.log"


def test_a_guest_is_installed_from_its_disc_while_its_root_disk_is_empty() -> None:
    disks = [xml.Disk("/d/cd", "raw", "cdrom"), xml.Disk("/d/0", "qcow2"), xml.Disk("/d/1", "raw")]
    for virt_type, drive in (("qemu", ("hda", "ide")), ("kvm", ("sda", "sata"))):
        domain = ET.fromstring(defined(spec(), disks=disks, virt_type=virt_type))  # noqa: S314
        assert domain.find("os/boot") is None
        disc, root, data = domain.findall("devices/disk")
        assert _attributes(disc, "target") == {"dev": drive[0], "bus": drive[1]}
        assert (disc.get("device"), disc.find("readonly") is not None) == ("cdrom", True)
        assert _attributes(root, "boot") == {"order": "1"}
        assert _attributes(disc, "boot") == {"order": "2"}
        assert data.find("boot") is None


def test_a_seed_is_a_disc_that_kernels_of_clouds_can_read() -> None:
    disks = [xml.Disk("/d/seed", "raw", "seed"), xml.Disk("/d/cd", "raw", "cdrom")]
    domain = ET.fromstring(defined(spec(), disks=disks, virt_type="kvm"))  # noqa: S314
    found = {
        str(d.find("source").get("file")): _attributes(d, "target")  # type: ignore[union-attr]
        for d in domain.iterfind("devices/disk")
    }
    assert found["/d/cd"] == {"dev": "sda", "bus": "sata"}
    assert found["/d/seed"] == {"dev": "sdb", "bus": "scsi"}
    assert domain.find("devices/controller[@model='virtio-scsi']") is not None


def test_a_port_of_open_vswitch_has_its_tag_and_a_filter_its_address() -> None:
    nics = [
        xml.Nic("52:54:00:00:00:01", "ovs", "br-int", vlan=100),
        xml.Nic("52:54:00:00:00:02", "bridge", "br0", filter="f-1", address="10.0.0.5"),
    ]
    domain = ET.fromstring(defined(spec(), nics=nics))  # noqa: S314
    port, card = domain.findall("devices/interface")
    assert (port.get("type"), _attributes(port, "source")) == ("bridge", {"bridge": "br-int"})
    assert _attributes(port, "virtualport") == {"type": "openvswitch"}
    assert _attributes(port, "vlan/tag") == {"id": "100"}
    assert _attributes(card, "filterref") == {"filter": "f-1"}
    assert _attributes(card, "filterref/parameter") == {"name": "IP", "value": "10.0.0.5"}


def test_a_definition_names_all_that_was_made_for_its_guest() -> None:
    disks = (DiskSpec(folder="/b"), DiskSpec(folder="/a"), DiskSpec(), DiskSpec(folder="/a"))
    body = defined(
        spec(disks=disks), nics=[xml.Nic("52:54:00:00:00:02", "bridge", "br0", filter="f-1")]
    )
    assert xml.belongings(body) == xml.Belongings(frozenset({"/a", "/b"}), frozenset({"f-1"}))
    assert xml.report(body, PowerState.SHUTOFF).mark == MARK
    assert xml.belongings(defined(spec())) == xml.Belongings()


def test_a_disk_in_ceph_is_opened_by_user_and_secret_and_is_found_again() -> None:
    target = RbdTarget(
        pool="vms",
        image=f"muster-{BEARER}-disk0",
        monitors=("10.0.0.1:6789", "ceph-1.example.org", "[fd00::1]:3300", "[fd00::2]"),
    )
    text = defined(
        spec(disks=(DiskSpec(size_gib=1, rbd=target),)),
        disks=[xml.Disk("", "raw", access=xml.Access(target, "muster", "s-1"))],
    )
    [disk] = ET.fromstring(text).iterfind("devices/disk")  # noqa: S314 - our own
    assert disk.get("type") == "network"
    assert disk.find("auth").attrib == {"username": "muster"}  # type: ignore[union-attr]
    assert disk.find("auth/secret").attrib == {"type": "ceph", "uuid": "s-1"}  # type: ignore[union-attr]
    source = disk.find("source")
    assert source is not None
    assert source.attrib == {"protocol": "rbd", "name": f"vms/muster-{BEARER}-disk0"}
    assert [host.attrib for host in source] == [
        {"name": "10.0.0.1", "port": "6789"},
        {"name": "ceph-1.example.org"},
        {"name": "fd00::1", "port": "3300"},
        {"name": "fd00::2"},
    ]
    assert xml.belongings(text) == xml.Belongings(images=frozenset({target}))


def test_weight_and_cap_are_there_and_can_be_left_out() -> None:
    body = defined(spec(), cpu=xml.Cpu(512, 25_000))
    tune = ET.fromstring(body).find("cputune")  # noqa: S314
    assert tune is not None
    assert {child.tag: child.text for child in tune} == {
        "shares": "512",
        "period": "100000",
        "quota": "25000",
    }
    plain = xml.without_cpu_tuning(body)
    assert plain is not None
    assert xml.report(plain, PowerState.SHUTOFF) == xml.report(body, PowerState.SHUTOFF)
    assert xml.without_cpu_tuning(plain) is None


def _attributes(element: ET.Element, path: str) -> dict[str, str]:
    found = element.find(path)
    assert found is not None, path
    return dict(found.attrib)


@pytest.mark.parametrize("virt_type", ["qemu", "kvm", "test"])
def test_the_mock_driver_is_told_of_no_architecture(virt_type: str) -> None:
    domain = ET.fromstring(defined(spec(), virt_type=virt_type))  # noqa: S314
    os_type = domain.find("os/type")
    assert domain.get("type") == virt_type
    assert os_type is not None
    assert ("arch" in os_type.attrib) == (virt_type != "test")

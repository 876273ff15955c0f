"""What a create may ask for (decision tables, section 8, step 1): all that is wrong, at once."""

from __future__ import annotations

from typing import Any

import pytest

from common.errors import BadRequest, MusterError, NameTaken, NoAddress, NotFound
from common.model import USER_DATA_LIMIT_BYTES, Kind
from manager.store.instances import Instance
from manager.store.model import Object, Use
from manager.store.volumes import Volume
from tests.functional.fleet import Fleet, ScriptedAgent
from tests.functional.zone import MORE, ZONE, deploy, make

TWO = [{"network": "n1"}, {"network": "n2"}]


@pytest.fixture
def zone(fleet: Fleet) -> Fleet:
    make(fleet, **ZONE)
    make(fleet, **MORE)
    for host in ("h1", "h2", "h3"):
        ScriptedAgent(fleet, host).up()
    return fleet


def asking(fleet: Fleet, **asked: Any) -> dict[str, Any]:
    return deploy(fleet, **{"networks": [{"network": "n1"}], **asked})


def problems(fleet: Fleet, **asked: Any) -> list[tuple[str, str]]:
    """What is said of each field that is wrong; nothing was made, with --dry-run neither."""
    said = []
    for dry_run in (True, False):
        with pytest.raises(BadRequest) as caught:
            asking(fleet, dry_run=dry_run, **asked)
        said.append([(e["field"], e["message"]) for e in caught.value.data["errors"]])
        assert all(e["remedy"] for e in caught.value.data["errors"])
        assert caught.value.data["field"] == said[0][0][0]
    assert said[0] == said[1]
    assert fleet.rows(Instance) == []
    return said[0]


ALONE: list[tuple[str, str, dict[str, Any]]] = [
    ("project", "no project none", {"project": "none"}),
    ("zone", "there are several", {"zone": None}),
    ("zone", "no zone nowhere", {"zone": "nowhere", "networks": []}),
    ("zone", "disabled", {"zone": "off", "networks": []}),
    ("zone", "for project other alone", {"zone": "theirs", "networks": []}),
    ("offering", "no offering none", {"offering": "none", "vcpus": 1, "memory_mib": 256}),
    ("vcpus", "fixes it at 1", {"vcpus": 2}),
    ("vcpus", "missing", {"offering": "open", "memory_mib": 128, "root_gib": 5}),
    ("vcpus", "5 is not possible", {"offering": "open", "vcpus": 5, "memory_mib": 128}),
    ("memory_mib", "fixes it at 256", {"memory_mib": 256}),
    ("memory_mib", "127 is not", {"offering": "open", "vcpus": 1, "memory_mib": 127}),
    ("memory_mib", "1025 is not", {"offering": "open", "vcpus": 1, "memory_mib": 1025}),
    ("template", "no template none", {"template": "none"}),
    ("template", "disabled", {"template": "stopped"}),
    ("template", "system", {"template": "inner"}),
    ("template", "not in zone z1", {"template": "elsewhere"}),
    ("template", "not for project default", {"template": "private"}),
    ("root_gib", "1 GiB is too small", {"root_gib": 1}),
    ("full_copy", "nothing to copy", {"template": None, "full_copy": True}),
    ("full_copy", "nothing to copy", {"template": "linux", "full_copy": True}),
    ("full_copy", "nothing to copy", {"template": "cd", "full_copy": True}),
    ("kernel", "not with a template", {"kernel": "/boot/vmlinuz"}),
    ("offering", "local storage", {"offering": "local", "zone": "shared", "networks": []}),
    ("data_disks", "local storage", {**{"zone": "shared", "networks": []}, "data_disks": "near"}),
    ("data_disks", "no disk-offering none", {"data_disks": [{"offering": "none"}]}),
    ("data_disks", "fixes it at 10", {"data_disks": [{"offering": "ten", "size_gib": 11}]}),
    ("data_disks", "51 GiB is not", {"data_disks": [{"offering": "range", "size_gib": 51}]}),
    ("data_disks", "no size", {"data_disks": [{"offering": "range"}]}),
    ("data_disks", "no size", {"data_disks": [{}]}),
    ("disks", "a size or a path", {"disks": [{}]}),
    ("disks", "not absolute", {"disks": [{"path": "images/one"}]}),
    ("hostname", "is no hostname", {"hostname": "not_a_host"}),
    ("hostname", "is no hostname", {"hostname": "-web"}),
    ("hostname", "is no hostname", {"hostname": "a" * 64}),
    ("networks", "no network none", {"networks": [{"network": "none"}]}),
    ("networks", "is in zone shared, not in z1", {"networks": [{"network": "away"}]}),
    ("networks", "not for project default", {"networks": [{"network": "kept"}]}),
    ("networks", "or disabled", {"networks": [{"network": "shut"}]}),
    ("networks", "named twice", {"networks": [{**TWO[0], "default": True}, TWO[0]]}),
    ("networks", "none of 2 is the default one", {"networks": TWO}),
    ("networks", "2 are the default one", {"networks": [{**n, "default": True} for n in TWO]}),
    ("networks", "there are several", {"networks": []}),
    ("networks", "one network, for all", {"zone": "flat", "networks": [{"network": "only"}]}),
    ("networks", "is not in 10.1.0.0/24", {"address": "10.9.0.1"}),
    ("networks", "is no IPv4 address", {"address": "10.1.0.300"}),
    ("networks", "is the gateway", {"address": "10.1.0.1"}),
    ("networks", "the network itself", {"address": "10.1.0.0"}),
    ("networks", "the broadcast address", {"address": "10.1.0.255"}),
    ("networks", "no IPv6", {"address6": "2001:db8::5"}),
    ("networks", "is no IPv6 address", {"network": "n2", "address6": "10.2.0.5"}),
    ("networks", "is not in 2001", {"network": "n2", "address6": "2001:db8:3::5"}),
    ("networks", "is the gateway", {"network": "n2", "address6": "2001:db8:2::1"}),
    ("networks", "is the gateway", {"network": "n2", "address6": "2001:DB8:2:0::1"}),
    ("networks", "is the address of the network", {"network": "n2", "address6": "2001:db8:2::"}),
    ("networks", "has a scope", {"network": "n2", "address6": "2001:db8:2::5%eth0"}),
    ("security_groups", "zone z1 has none", {"security_groups": ["web"]}),
    (
        "security_groups",
        "none of the networks filters",
        {"zone": "walled", "networks": [{"network": "open"}], "security_groups": ["web"]},
    ),
    (
        "security_groups",
        "no security-group none",
        {"zone": "walled", "networks": [{"network": "wall"}], "security_groups": ["none"]},
    ),
    (
        "security_groups",
        "belongs to project other",
        {"zone": "walled", "networks": [{"network": "wall"}], "security_groups": ["secret"]},
    ),
    (
        "security_groups",
        "none of the template's hypervisors can filter",
        {"zone": "walled", "networks": [{"network": "wall"}], "template": "xen"},
    ),
    ("affinity_groups", "no affinity-group none", {"affinity_groups": ["none"]}),
    ("affinity_groups", "belongs to project other", {"affinity_groups": ["foreign"]}),
    ("ssh_keys", "no ssh-key none", {"ssh_keys": ["none"]}),
    ("ssh_keys", "belongs to project other", {"ssh_keys": ["bob"]}),
    ("user_data", "65537 bytes", {"user_data": "x" * (USER_DATA_LIMIT_BYTES + 1)}),
    ("user_data", "65538 bytes", {"user_data": "\u00e9" * (USER_DATA_LIMIT_BYTES // 2 + 1)}),
    ("user_data", "given twice", {"user_data": "x", "user_data_name": "hello"}),
    ("user_data_name", "no user-data none", {"user_data_name": "none"}),
    ("user_data_name", "belongs to project other", {"user_data_name": "hidden"}),
    ("pod", "no pod none", {"pod": "none"}),
    ("pod", "not in zone z1", {"pod": "p2"}),
    ("cluster", "no cluster none", {"cluster": "none"}),
    ("cluster", "not in zone z1", {"cluster": "c9"}),
    ("pool", "no pool none", {"pool": "none"}),
    ("pool", "not in zone z1", {"pool": "far"}),
    ("initrd", "needs a kernel", {"initrd": "/boot/initrd"}),
    ("cmdline", "needs a kernel", {"cmdline": "quiet"}),
]


@pytest.mark.parametrize(("field", "said", "asked"), ALONE)
def test_8_1_a_field_that_is_wrong_is_named_alone(
    zone: Fleet, field: str, said: str, asked: dict[str, Any]
) -> None:
    asked = dict(asked)
    if isinstance(asked.get("data_disks"), str):
        asked["data_disks"] = [{"offering": asked["data_disks"]}]
    network = {k: asked.pop(k) for k in ("network", "address", "address6") if k in asked}
    if network:
        asked["networks"] = [{"network": "n1", **network}]
    found = problems(zone, **asked)
    assert [field] == [name for name, _ in found], found
    assert said in found[0][1]


def test_8_1_every_field_that_is_wrong_is_told_in_one_answer(zone: Fleet) -> None:
    found = problems(
        zone,
        project="none",
        zone="off",
        offering="none",
        template="inner",
        root_gib=1,
        full_copy=True,
        kernel="/boot/vmlinuz",
        disks=[{}],
        data_disks=[{"offering": "none"}],
        hostname="not_a_host",
        networks=[{"network": "none"}],
        affinity_groups=["none"],
        ssh_keys=["none"],
        user_data="x",
        user_data_name="none",
        pod="none",
        cluster="none",
        pool="none",
        host="none",
    )
    assert {name for name, _ in found} == {
        "project",
        "zone",
        "offering",
        "vcpus",
        "memory_mib",
        "template",
        "kernel",
        "disks",
        "data_disks",
        "hostname",
        "networks",
        "affinity_groups",
        "ssh_keys",
        "user_data",
        "user_data_name",
        "pod",
        "cluster",
        "pool",
        "host",
    }


def test_8_1_what_cannot_be_read_is_told_with_the_field(zone: Fleet) -> None:
    for field, value in (("vcpus", "two"), ("memory_mib", 3), ("order", "best")):
        with pytest.raises(BadRequest) as caught:
            asking(zone, **{field: value})
        assert caught.value.data["field"] == field


def test_8_1_what_is_taken_is_told_among_the_other_problems(zone: Fleet) -> None:
    asking(zone, name="web-0", hostname="www", networks=[{"network": "n1", "address": "10.1.0.9"}])
    taken = {"hostname": "www", "networks": [{"network": "n1", "address": "10.1.0.9"}]}
    with pytest.raises(BadRequest) as caught:
        asking(zone, **taken, ssh_keys=["none"])
    said = {e["field"]: e["message"] for e in caught.value.data["errors"]}
    assert set(said) == {"hostname", "networks", "ssh_keys"}
    assert "www is taken in network n1" in said["hostname"]
    assert "10.1.0.9 of network n1 is taken" in said["networks"]


def test_8_1_a_create_that_is_repeated_is_not_refused_for_what_it_has_taken_itself(
    zone: Fleet,
) -> None:
    """Nor for what it named and another operator has changed since."""
    job = "11111111-0000-4000-8000-000000000001"
    networks = [{"network": "n1", "address": "10.1.0.9"}]
    first = asking(zone, job=job, hostname="www", networks=networks)
    assert asking(zone, job=job, hostname="www", networks=networks)["uuid"] == first["uuid"]
    zone.ask("model_set", kind="template", name="img", fields={"enabled": False})
    assert asking(zone, job=job, hostname="www", networks=networks)["uuid"] == first["uuid"]
    with pytest.raises(BadRequest, match="img is disabled"):
        asking(zone)


@pytest.mark.parametrize("dry_run", [False, True])
def test_8_1_a_hostname_or_an_address_that_is_taken_is_refused_by_its_rule(
    zone: Fleet, dry_run: bool
) -> None:
    asking(zone, name="web-0", hostname="www", networks=[{"network": "n1", "address": "10.1.0.9"}])
    with pytest.raises(NameTaken, match="www is taken in network n1"):
        asking(zone, hostname="WWW", dry_run=dry_run)
    with pytest.raises(NoAddress, match=r"10\.1\.0\.9 of network n1 is taken"):
        asking(zone, networks=[{"network": "n1", "address": "10.1.0.9"}], dry_run=dry_run)
    (left,) = zone.rows(Instance)
    assert left.name == "web-0"


def test_8_1_an_ipv6_address_is_one_however_it_is_written(zone: Fleet) -> None:
    asked = {"network": "n2", "address6": "2001:DB8:2:0:0::5"}
    vm = zone.row(Instance, asking(zone, networks=[asked])["instance"])
    assert vm.nics[0].address6 == "2001:db8:2::5"
    with pytest.raises(NoAddress, match="is taken"):
        asking(zone, name="web-2", networks=[{**asked, "address6": "2001:db8:2::5"}])


def test_8_1_a_host_that_there_is_not_is_not_found(zone: Fleet) -> None:
    with pytest.raises(NotFound, match="no host none"):
        asking(zone, host="none")


def test_8_1_a_name_that_several_vms_have_makes_a_hostname_for_each(zone: Fleet) -> None:
    """Names of VMs are not unique, the hostnames of a network are."""
    first = zone.row(Instance, asking(zone, name="Web.1")["instance"])
    other = zone.row(Instance, asking(zone, name="Web.1")["instance"])
    assert first.hostname == "web-1"
    assert other.hostname == f"web-1-{other.uuid[:8]}"


def test_8_1_the_same_hostname_may_be_in_another_network(zone: Fleet) -> None:
    asking(zone, name="web-1", hostname="www")
    asking(zone, name="web-2", hostname="www", networks=[{"network": "n2"}])
    assert [vm.hostname for vm in zone.rows(Instance)] == ["www", "www"]


def test_8_1_a_basic_zone_gives_its_network_and_the_projects_own_group(fleet: Fleet) -> None:
    make(fleet, **ZONE)
    make(fleet, **MORE)
    make(
        fleet,
        pods=[{"name": "pf", "zone": "flat"}],
        clusters=[{"name": "cf", "pod": "pf"}],
        hosts=[{"name": "hf", "cluster": "cf"}],
    )
    ScriptedAgent(fleet, "hf").up()
    for name in ("web-1", "web-2"):
        fleet.wire.take()
        deploy(fleet, name, zone="flat", project="shop")
        (cast,) = fleet.wire.take("start_vm")
        (nic,) = cast.command.spec["guest"]["nics"]
        assert (nic["network"], nic["rules"]) == ("br0", [])
    (made,) = fleet.rows(Object, kind=Kind.SECURITY_GROUP, name="shop-default")
    assert made.spec["project"] == "shop"
    used = fleet.rows(Use, kind=Kind.SECURITY_GROUP, name="shop-default")
    assert len(used) == 2
    # What an operator says of it counts for those that come after.
    make(fleet, security_groups=[{"name": "shop-default", "rules": [{"protocol": "icmp"}]}])
    deploy(fleet, "web-3", zone="flat", project="shop")
    (cast,) = fleet.wire.take("start_vm")
    assert [r["protocol"] for r in cast.command.spec["guest"]["nics"][0]["rules"]] == ["icmp"]


def test_8_1_a_default_group_that_belongs_to_another_project_is_not_used(fleet: Fleet) -> None:
    make(fleet, **ZONE)
    make(fleet, **MORE)
    make(fleet, security_groups=[{"name": "shop-default", "project": "other"}])
    with pytest.raises(BadRequest, match="shop-default belongs to project other"):
        deploy(fleet, zone="flat", project="shop")


def test_8_1_named_groups_filter_where_the_network_does(zone: Fleet) -> None:
    make(
        zone,
        pods=[{"name": "pw", "zone": "walled"}],
        clusters=[{"name": "cw", "pod": "pw"}],
        hosts=[{"name": "hw", "cluster": "cw"}],
    )
    ScriptedAgent(zone, "hw").up()
    nets = [{"network": "open"}, {"network": "wall", "default": True}]
    deploy(zone, zone="walled", networks=nets, security_groups=["web", "web"])
    (cast,) = zone.wire.take("start_vm")
    wall, plain = cast.command.spec["guest"]["nics"]
    assert [rule["port_first"] for rule in wall["rules"]] == [80]
    assert plain.get("rules") is None
    assert not zone.rows(Object, kind=Kind.SECURITY_GROUP, name="default-default")


def test_8_1_a_zone_without_groups_filters_nothing(zone: Fleet) -> None:
    make(zone, networks=[{"name": "n1", "security_groups": True}])
    asking(zone)
    (cast,) = zone.wire.take("start_vm")
    assert cast.command.spec["guest"]["nics"][0].get("rules") is None
    assert not zone.rows(Object, kind=Kind.SECURITY_GROUP, name="default-default")


def test_8_1_what_a_vm_is_made_of_comes_from_all_that_was_named(zone: Fleet) -> None:
    deploy(
        zone,
        networks=[
            {"network": "n1", "address": "10.1.0.77"},
            {"network": "n2", "default": True},
        ],
        data_disks=[{"offering": "ten"}, {"size_gib": 3}],
        full_copy=True,
        hostname="WWW",
        ssh_keys=["ann"],
        user_data_name="hello",
    )
    (cast,) = zone.wire.take("start_vm")
    guest = cast.command.spec["guest"]
    assert (guest["vcpus"], guest["memory_mib"]) == (1, 256)
    assert (guest["hostname"], guest["domain"]) == ("www", "example.org")
    assert [disk["size_gib"] for disk in guest["disks"]] == [5, 10, 3]
    assert guest["disks"][0]["copy"] is True
    assert guest["disks"][0]["source"]["url"] == ZONE["templates"][0]["url"]
    assert guest["ssh_keys"][0].endswith("ann@desk")
    assert guest["user_data"] == "#!/bin/sh\necho hello\n"
    default, other = guest["nics"]
    assert default["gateway"] == "10.2.0.1"
    assert default["gateway6"] == "2001:db8:2::1"
    assert default["dns"] == ["10.2.0.2"]
    assert (other["address"], other.get("gateway")) == ("10.1.0.77/24", None)
    vm = zone.vm()
    kinds = [(v.kind, v.size_gib) for v in zone.rows(Volume, instance=vm.uuid)]
    assert kinds == [("root", 5), ("data", 10), ("data", 3)]


def test_8_1_an_iso_is_booted_beside_an_empty_root_disk(zone: Fleet) -> None:
    asking(zone, template="cd")
    (cast,) = zone.wire.take("start_vm")
    root, cd = cast.command.spec["guest"]["disks"]
    assert (root["size_gib"], root.get("source")) == (5, None)
    assert cd["source"]["format"] == "iso"


def test_8_1_a_kernel_template_needs_no_disk(zone: Fleet) -> None:
    make(zone, offerings=[{"name": "tiny", "vcpus": 1, "memory_mib": 64}])
    asking(zone, template="linux", offering="tiny", cmdline="quiet")
    (cast,) = zone.wire.take("start_vm")
    guest = cast.command.spec["guest"]
    assert guest["disks"] == []
    assert (guest["kernel_source"]["url"], guest["cmdline"]) == ("file:///vmlinuz", "quiet")


def test_8_1_a_template_goes_only_to_hypervisors_that_can_run_it(zone: Fleet) -> None:
    with pytest.raises(MusterError, match="h1: runs simulated, not xapi") as caught:
        asking(zone, template="xen")
    assert caught.value.code == "NO_VALID_HOST"


@pytest.mark.parametrize("told", [{"user_data": "#!/bin/sh\n"}, {"ssh_keys": ["ann"]}])
def test_8_1_a_guest_without_a_network_is_named_when_it_is_told_something(
    fleet: Fleet, h1: ScriptedAgent, told: dict[str, Any]
) -> None:
    """Only a guest with a hostname is given a seed: keys and user data would be lost in silence."""
    make(fleet, ssh_keys=[each for each in MORE["ssh_keys"] if each["name"] == "ann"])
    fleet.ask("vm_create", name="Web_1", vcpus=1, memory_mib=64, **told)
    fleet.ask("vm_create", name="Web_1", vcpus=1, memory_mib=64, **told)
    assert {vm.spec["hostname"] for vm in fleet.rows(Instance)} == {"web-1"}
    fleet.ask("vm_create", name="plain", vcpus=1, memory_mib=64)
    assert [vm.hostname for vm in fleet.rows(Instance) if vm.name == "plain"] == [None]

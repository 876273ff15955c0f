"""The nouns of the model: made, changed, kept while something needs them, or all of one file."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.errors import BadRequest, InUse, NameTaken, NotFound
from common.model import Kind
from common.states import TaskState, VmState
from manager.store.addresses import Address
from manager.store.engine import Tx
from manager.store.events import Event
from manager.store.instances import Instance
from manager.store.model import Object, Use
from tests.functional.fleet import Fleet, ScriptedAgent
from tests.functional.test_flow_races import at_once
from tests.nouns import WHOLE, WORLD

SAMPLE = Path(__file__).parents[2] / "etc" / "muster" / "zone.yaml.sample"
NETWORK = {"zone": "z1", "backend": "bridge", "source": "br9", "cidr": "10.9.0.0/24"}


@pytest.fixture
def world(fleet: Fleet) -> Fleet:
    fleet.ask("model_apply", objects=WORLD)
    return fleet


def make(fleet: Fleet, kind: str, name: str, /, **fields: Any) -> dict[str, Any]:
    return fleet.ask("model_create", kind=kind, name=name, fields=fields)


def put(fleet: Fleet, kind: str, name: str, /, **fields: Any) -> dict[str, Any]:
    return fleet.ask("model_set", kind=kind, name=name, fields=fields)


def drop(fleet: Fleet, kind: str, name: str, **more: Any) -> dict[str, Any]:
    return fleet.ask("model_delete", kind=kind, name=name, **more)


def vm(fleet: Fleet, name: str = "web-1", host: str = "h1") -> Instance:
    """A VM that is there, and was made from nothing."""
    row = Instance(
        uuid=fleet.clock.new_id(),
        name=name,
        host=host,
        vm_state=VmState.ACTIVE,
        task_state=TaskState.NONE,
        spec={},
        vcpus=1,
        memory_mib=64,
        mac="0a:4d:75:00:00:01",
        created_at=fleet.clock.now(),
    )
    fleet.store.run(lambda tx: tx.insert(row))
    return row


def use(fleet: Fleet, kind: Kind, name: str) -> Instance:
    """A VM on h1 that was made from a noun."""
    made = vm(fleet)
    fleet.store.run(lambda tx: tx.insert(Use(kind=kind, name=name, instance=made.uuid)))
    return made


def wrong(error: Any) -> list[str]:
    return [each["field"] for each in error.value.data["errors"]]


# one noun


def test_a_noun_that_is_there_is_not_made_again(world: Fleet) -> None:
    with pytest.raises(NameTaken, match="zone z1") as caught:
        make(world, "zone", "z1")
    assert "muster zone set z1" in caught.value.remedy
    # A name is taken within its kind alone.
    assert make(world, "pod", "z1", zone="z1")["action"] == "create"


def test_a_request_that_is_repeated_has_done_its_work_before(world: Fleet) -> None:
    for _ in range(2):
        made = world.ask("model_create", kind="zone", name="z2", fields={}, request="r-1")
        assert made["object"]["name"] == "z2"
    for _ in range(2):
        assert drop(world, "zone", "z2", request="r-2")["name"] == "z2"
    assert len(world.events("model.delete")) == 1
    with pytest.raises(NotFound):
        drop(world, "zone", "z2", request="r-3")
    # What has come and gone meanwhile is another one.
    world.clock.move(1)
    world.ask("model_create", kind="zone", name="z2", fields={}, request="r-4")
    with pytest.raises(NameTaken):
        world.ask("model_create", kind="zone", name="z2", fields={}, request="r-1")


def test_a_set_changes_what_is_given_and_tells_it(world: Fleet) -> None:
    before = world.row(Object, Kind.ZONE, "z1")
    world.clock.move(5)
    done = put(world, "zone", "z1", domain="a.org", enabled=False)
    assert done["action"] == "change"
    assert list(done["changes"]) == [
        {"field": "enabled", "old": True, "new": False},
        {"field": "domain", "old": None, "new": "a.org"},
    ]
    after = world.row(Object, Kind.ZONE, "z1")
    assert after.spec == {**before.spec, "domain": "a.org", "enabled": False}
    assert (after.created_at, after.changed_at) == (before.created_at, world.clock.now())
    (event,) = world.events("model.set")
    assert (event.object, event.source) == ("zone/z1", "unknown")
    assert event.text == "enabled: true -> false; domain: null -> 'a.org'"


def test_a_set_of_what_it_is_already_changes_nothing(world: Fleet) -> None:
    before = world.row(Object, Kind.ZONE, "z1")
    world.clock.move(5)
    done = put(world, "zone", "z1", enabled=True)
    assert (done["action"], list(done["changes"])) == ("none", [])
    assert world.row(Object, Kind.ZONE, "z1") == before
    assert world.events("model.set") == []


def test_a_field_is_unset_by_none(world: Fleet) -> None:
    put(world, "zone", "z1", project="shop")
    assert put(world, "zone", "z1", project=None)["object"]["project"] is None


def test_a_set_is_checked_with_what_it_leaves_as_it_is(world: Fleet) -> None:
    make(world, "offering", "o", vcpus_min=2, vcpus_max=4)
    with pytest.raises(BadRequest) as caught:
        put(world, "offering", "o", vcpus_max=1)
    assert wrong(caught) == ["vcpus_min"]


@pytest.mark.parametrize("method", ["model_show", "model_set", "model_delete"])
def test_what_is_not_there_is_not_found(world: Fleet, method: str) -> None:
    more = {"fields": {}} if method == "model_set" else {}
    with pytest.raises(NotFound, match="no security group web") as caught:
        world.ask(method, kind="security_group", name="web", **more)
    assert "muster security-group list" in caught.value.remedy


def test_a_listing_has_the_objects_of_a_kind_by_name(world: Fleet) -> None:
    make(world, "zone", "a")
    listed = world.ask("model_list", kind="zone")["objects"]
    assert [one["name"] for one in listed] == ["a", "z1"]
    assert listed[0]["kind"] == "advanced"
    assert listed[0]["created_at"]


def test_the_default_project_can_be_named_and_shown_before_it_is_made(world: Fleet) -> None:
    assert world.ask("model_show", kind="project", name="default")["instances"] is None
    make(world, "zone", "z2", project="default")
    assert put(world, "project", "default", instances=3)["action"] == "create"
    assert world.ask("model_show", kind="project", name="default")["instances"] == 3


def test_what_guests_are_told_is_not_written_into_events(world: Fleet) -> None:
    make(world, "user_data", "u", data="password: one")
    put(world, "user_data", "u", data="password: two")
    assert not [event for event in world.rows(Event) if "password" in event.text]


# what needs it


@pytest.mark.parametrize(
    ("kind", "name", "by"),
    [
        ("project", "shop", "zone z2"),
        ("zone", "z1", "pod p1, network n1"),
        ("pod", "p1", "cluster c1"),
        ("cluster", "c1", "host h1"),
        ("host", "h1", "pool d1"),
    ],
)
def test_what_another_noun_names_is_not_deleted(
    world: Fleet, kind: str, name: str, by: str
) -> None:
    make(world, "zone", "z2", project="shop")
    make(world, "pool", "d1", scope="host", host="h1", path="/d", capacity_gib=1)
    with pytest.raises(InUse) as caught:
        drop(world, kind, name)
    assert set(caught.value.data["by"]) == set(by.split(", "))
    for one in by.split(", "):
        assert one in caught.value.message


def test_five_of_many_that_need_it_are_named(world: Fleet) -> None:
    for n in range(7):
        make(world, "pod", f"q{n}", zone="z1")
    with pytest.raises(InUse) as caught:
        drop(world, "zone", "z1")
    assert caught.value.message.endswith(" and 4 more")
    assert caught.value.message.count(",") == 4


@pytest.mark.parametrize("kind", [Kind.NETWORK, Kind.TEMPLATE, Kind.OFFERING, Kind.ZONE])
def test_what_a_vm_uses_is_not_deleted(world: Fleet, kind: Kind) -> None:
    make(world, kind, "new", **WHOLE[kind])
    use(world, kind, "new")
    with pytest.raises(InUse, match="VM web-1"):
        drop(world, kind, "new")
    (used,) = world.rows(Use)
    world.store.run(lambda tx: tx.delete(used))
    drop(world, kind, "new")
    assert world.rows(Object, kind=kind, name="new") == []


FIXED = [
    (Kind.NETWORK, {"zone": "z2"}),
    (Kind.NETWORK, {"vlan": 8}),
    (Kind.NETWORK, {"source": "ovs1"}),
    (Kind.NETWORK, {"kind": "isolated", "vlan": None}),
    (Kind.NETWORK, {"security_groups": False}),
    (Kind.POOL, {"scope": "cluster", "cluster": "c1", "zone": None}),
    (Kind.POOL, {"path": "/elsewhere"}),
    (Kind.TEMPLATE, {"sha256": "1" * 64}),
    (Kind.TEMPLATE, {"format": "raw", "initrd_url": None, "initrd_sha256": None, "cmdline": None}),
    (Kind.AFFINITY_GROUP, {"kind": "anti_affinity"}),
    (Kind.ZONE, {"security_groups": False}),
]


@pytest.mark.parametrize(("kind", "change"), FIXED, ids=str)
def test_what_vms_were_made_by_can_not_change_while_they_are_there(
    world: Fleet, kind: Kind, change: dict[str, Any]
) -> None:
    make(world, "zone", "z2")
    make(world, kind, "new", **WHOLE[kind])
    use(world, kind, "new")
    with pytest.raises(BadRequest, match="VM web-1") as caught:
        put(world, kind, "new", **change)
    assert wrong(caught)[0] == next(iter(change))
    (used,) = world.rows(Use)
    world.store.run(lambda tx: tx.delete(used))
    assert put(world, kind, "new", **change)["action"] == "change"


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (Kind.NETWORK, {"dns": ["10.2.0.3"], "first": "10.2.0.20", "enabled": True}),
        (Kind.TEMPLATE, {"url": "https://mirror.example.org/vmlinuz"}),
        (Kind.POOL, {"capacity_gib": 200, "tags": []}),
        (Kind.OFFERING, {"vcpus": 4}),
        (Kind.ZONE, {"enabled": True}),
    ],
    ids=str,
)
def test_other_fields_may_change_under_vms(
    world: Fleet, kind: Kind, change: dict[str, Any]
) -> None:
    make(world, kind, "new", **WHOLE[kind])
    use(world, kind, "new")
    assert put(world, kind, "new", **change)["action"] == "change"


def test_the_kind_of_a_zone_can_not_change_once_something_is_in_it(world: Fleet) -> None:
    with pytest.raises(BadRequest, match="pod p1") as caught:
        put(world, "zone", "z1", kind="basic")
    assert wrong(caught) == ["kind"]
    make(world, "zone", "z2")
    assert put(world, "zone", "z2", kind="basic")["action"] == "change"


@pytest.mark.parametrize(
    ("kind", "name", "field"),
    [("host", "h1", "cluster"), ("cluster", "c1", "pod"), ("pod", "p1", "zone")],
)
def test_what_stands_under_vms_of_a_zone_does_not_move_and_is_not_deleted(
    world: Fleet, kind: str, name: str, field: str
) -> None:
    make(world, "zone", "other")
    make(world, "pod", "other", zone="other")
    make(world, "cluster", "other", pod="other")
    ScriptedAgent(world, "h1").up()
    vm(world, "older")  # made before there were zones: it minds nothing
    assert put(world, kind, name, **{field: "other"})["action"] == "change"
    put(world, kind, name, **{field: {"host": "c1", "cluster": "p1", "pod": "z1"}[kind]})
    use(world, Kind.ZONE, "z1")
    with pytest.raises(BadRequest, match="VM web-1") as caught:
        put(world, kind, name, **{field: "other"})
    assert wrong(caught) == [field]
    with pytest.raises(InUse, match="VM web-1"):
        drop(world, kind, name)


# networks of a zone


@pytest.fixture
def given(world: Fleet) -> Fleet:
    """Network `new`, and the addresses that a VM has there."""
    make(world, "network", "new", **WHOLE[Kind.NETWORK])
    made = use(world, Kind.NETWORK, "new")
    for ip in ("10.2.0.20", "2001:db8::20"):
        row = Address(
            network="new",
            ip=ip,
            number=None,
            instance=made.uuid,
            mac=made.mac,
            since=world.clock.now(),
        )
        world.store.run(partial(Tx.insert, row=row))
    return world


def test_a_network_stays_while_an_address_of_it_is_in_quarantine(given: Fleet) -> None:
    (used,) = given.rows(Use)
    given.store.run(lambda tx: tx.delete(used))
    for change in (
        partial(drop, given, "network", "new"),
        partial(put, given, "network", "new", source="ovs1"),
    ):
        with pytest.raises((InUse, BadRequest), match="VM web-1"):
            change()
    gone = given.vm()
    given.store.run(lambda tx: tx.delete(gone))
    with pytest.raises(InUse, match="instance "):
        drop(given, "network", "new")
    given.store.run(lambda tx: tx.delete_where(Address))
    drop(given, "network", "new")


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"cidr": "10.2.0.0/16"}, []),
        ({"cidr": "10.2.0.0/28", "first": None, "last": None}, ["cidr"]),
        ({"cidr": "10.3.0.0/24", "gateway": None, "first": None, "last": None}, ["cidr"]),
        ({"first": "10.2.0.50"}, []),
        ({"cidr6": "2001:db8:1::/64", "gateway6": None}, ["cidr6"]),
        ({"cidr6": None, "gateway6": None}, ["cidr6"]),
        ({"gateway": "10.2.0.20"}, ["gateway"]),
        ({"gateway6": "2001:db8::20"}, ["gateway6"]),
        ({"gateway": "10.2.0.2"}, []),
    ],
    ids=str,
)
def test_a_subnet_keeps_the_addresses_that_were_given(
    given: Fleet, change: dict[str, Any], refused: list[str]
) -> None:
    if not refused:
        assert put(given, "network", "new", **change)["action"] == "change"
        return
    with pytest.raises(BadRequest) as caught:
        put(given, "network", "new", **change)
    assert wrong(caught) == refused


@pytest.mark.parametrize(
    ("first", "second", "fields"),
    [
        ({}, {"cidr": "10.9.0.128/25"}, ["cidr"]),
        ({}, {"cidr": "10.0.0.0/8"}, ["cidr", "cidr"]),  # n1 as well
        ({}, {"cidr": "10.9.1.0/24"}, []),
        ({"kind": "isolated"}, {"source": "br8"}, ["cidr"]),
        ({"kind": "isolated"}, {"kind": "isolated", "source": "br8"}, []),
        ({"kind": "isolated"}, {"kind": "isolated"}, ["cidr"]),  # one wire
        (
            {"cidr6": "2001:db8::/64"},
            {"cidr": "10.8.0.0/24", "cidr6": "2001:db8::/64"},
            ["cidr6"],
        ),
        (
            {"kind": "vlan", "vlan": 5, "backend": "ovs"},
            {"kind": "vlan", "vlan": 5, "backend": "ovs", "cidr": "10.8.0.0/24"},
            ["vlan"],
        ),
        (
            {"kind": "vlan", "vlan": 5, "backend": "ovs"},
            {"kind": "vlan", "vlan": 6, "backend": "ovs", "cidr": "10.8.0.0/24"},
            [],
        ),
        (
            {"kind": "vlan", "vlan": 5, "backend": "ovs"},
            {"kind": "vlan", "vlan": 5, "backend": "ovs", "source": "x", "cidr": "10.8.0.0/24"},
            [],
        ),
        ({"zone": "z2"}, {}, []),
    ],
    ids=str,
)
def test_networks_of_one_zone_are_kept_apart(
    world: Fleet, first: dict[str, Any], second: dict[str, Any], fields: list[str]
) -> None:
    make(world, "zone", "z2")
    make(world, "network", "one", **{**NETWORK, **first})
    if not fields:
        make(world, "network", "two", **{**NETWORK, **second})
        return
    with pytest.raises(BadRequest) as caught:
        make(world, "network", "two", **{**NETWORK, **second})
    assert wrong(caught) == fields


def test_a_network_may_be_set_beside_itself(world: Fleet) -> None:
    assert put(world, "network", "n1", cidr="10.1.0.0/23")["action"] == "change"


def test_a_basic_zone_has_one_network_and_it_is_shared(world: Fleet) -> None:
    make(world, "zone", "flat", kind="basic")
    with pytest.raises(BadRequest, match="basic") as caught:
        make(world, "network", "n2", **{**NETWORK, "zone": "flat", "kind": "isolated"})
    assert wrong(caught) == ["kind"]
    make(world, "network", "n2", **{**NETWORK, "zone": "flat"})
    with pytest.raises(BadRequest, match="n2") as caught:
        make(world, "network", "n3", **{**NETWORK, "zone": "flat", "cidr": "10.8.0.0/24"})
    assert wrong(caught) == ["zone"]


# hosts


def test_a_host_is_placed_before_or_after_it_is_heard(world: Fleet) -> None:
    put(world, "host", "h1", tags=["ssd"])
    first = ScriptedAgent(world, "h1").up()
    assert (first.row.cluster, first.row.tags) == ("c1", ("ssd",))
    second = ScriptedAgent(world, "h2").up()
    assert (second.row.cluster, second.row.tags) == (None, ())
    assert put(world, "host", "h2", cluster="c1")["action"] == "create"
    assert second.row.cluster == "c1"
    put(world, "host", "h2", tags=["gpu"])
    assert second.row.tags == ("gpu",)
    shown = world.ask("host_show", host="h2")
    assert (shown["cluster"], list(shown["tags"])) == ("c1", ["gpu"])
    world.ask("model_apply", objects={"hosts": [{"name": "h2", "tags": []}]})
    assert second.row.tags == ()
    drop(world, "host", "h2")
    assert (second.row.cluster, second.row.tags) == (None, ())


def test_a_host_that_is_placed_nowhere_needs_a_cluster(world: Fleet) -> None:
    with pytest.raises(BadRequest) as caught:
        put(world, "host", "h9", tags=["ssd"])
    assert wrong(caught) == ["cluster"]


def test_a_pool_on_a_host_that_stands_nowhere_is_told_how_to_place_it(world: Fleet) -> None:
    ScriptedAgent(world, "h2").up()
    with pytest.raises(BadRequest) as caught:
        make(world, "pool", "d", scope="host", host="h2", path="/d", capacity_gib=1)
    assert "muster host set" in caught.value.remedy


# a file


def actions(answer: dict[str, Any]) -> dict[str, str]:
    return {f"{one['kind']} {one['name']}": one["action"] for one in answer["objects"]}


def test_a_file_makes_all_that_is_in_it_and_changes_nothing_the_second_time(fleet: Fleet) -> None:
    sample = yaml.safe_load(SAMPLE.read_text())
    first = fleet.ask("model_apply", objects=sample)
    assert set(actions(first).values()) == {"create"}
    assert {one["kind"] for one in first["objects"]} == set(Kind)
    kinds = [Kind(one["kind"]) for one in first["objects"]]
    assert kinds == sorted(kinds, key=list(Kind).index)
    rows, events = fleet.rows(Object), fleet.rows(Event)
    again = fleet.ask("model_apply", objects=sample)
    assert set(actions(again).values()) == {"none"}
    assert (fleet.rows(Object), fleet.rows(Event)) == (rows, events)


@pytest.mark.parametrize("kind", Kind)
def test_every_field_of_a_file_is_kept_and_compared(world: Fleet, kind: Kind) -> None:
    file = {kind.plural: [{"name": "new", **WHOLE[kind]}]}
    assert actions(world.ask("model_apply", objects=file)) == {f"{kind} new": "create"}
    assert actions(world.ask("model_apply", objects=file)) == {f"{kind} new": "none"}
    assert world.row(Object, kind, "new").spec == WHOLE[kind]


def test_a_file_tells_what_it_changes_and_leaves_the_rest(world: Fleet) -> None:
    put(world, "zone", "z1", domain="a.org")
    make(world, "zone", "z2")
    file = {"zones": [{"name": "z1", "enabled": False}], "pods": [{"name": "p1", "zone": "z2"}]}
    (zone, pod) = world.ask("model_apply", objects=file, operator="ann")["objects"]
    assert list(zone["changes"]) == [{"field": "enabled", "old": True, "new": False}]
    assert list(pod["changes"]) == [{"field": "zone", "old": "z1", "new": "z2"}]
    assert world.row(Object, Kind.ZONE, "z1").spec["domain"] == "a.org"
    assert world.row(Object, Kind.ZONE, "z2").version == 0
    assert {event.source for event in world.events("model.set")} == {"unknown", "ann"}


def test_a_dry_run_says_the_same_and_does_nothing(world: Fleet) -> None:
    file = {
        "clusters": [{"name": "c2", "pod": "p2"}],
        "pods": [{"name": "p2", "zone": "z2"}],
        "zones": [{"name": "z2"}, {"name": "z1", "enabled": False}],
        "hosts": [{"name": "h1", "cluster": "c2"}],
    }
    agent = ScriptedAgent(world, "h1").up()
    before = (world.rows(Object), world.rows(Event), agent.row)
    foreseen = world.ask("model_apply", objects=file, dry_run=True)
    assert (world.rows(Object), world.rows(Event), agent.row) == before
    assert world.ask("model_apply", objects=file) == foreseen
    assert agent.row.cluster == "c2"


def test_all_that_is_wrong_with_a_file_is_told_with_its_place(world: Fleet) -> None:
    file = {
        "zones": [{"name": "z2", "kind": "round"}, {"name": "z2"}, {}, 5],
        "pods": [{"name": "p2", "zone": "nowhere"}, {"name": "p3", "zone": "z2"}],
        "networks": [
            {"name": "n2", **NETWORK},
            {"name": "n3", **NETWORK, "gateway": "x", "vlans": 5},
            {"name": "b d"},
            {"name": 5},
        ],
        "hosts": {"h1": {}},
        "racks": [],
        "pools": None,
    }
    before = world.rows(Object)
    with pytest.raises(BadRequest) as caught:
        world.ask("model_apply", objects=file)
    assert sorted(wrong(caught)) == [
        "hosts",
        "networks[1].cidr",
        "networks[1].gateway",
        "networks[1].vlans",
        "networks[2].name",
        "networks[3].name",
        "pods[0].zone",
        "racks",
        "zones[0].kind",
        "zones[1].name",
        "zones[2]",
        "zones[3]",
    ]
    assert world.rows(Object) == before


def test_a_file_is_refused_what_vms_do_not_allow(world: Fleet) -> None:
    use(world, Kind.NETWORK, "n1")
    file = {"networks": [{"name": "n1", "source": "br7"}]}
    with pytest.raises(BadRequest, match="VM web-1") as caught:
        world.ask("model_apply", objects=file)
    assert wrong(caught) == ["networks[0].source"]


# quota


def test_a_quota_tells_what_the_vms_of_a_project_hold(world: Fleet, h1: ScriptedAgent) -> None:
    put(world, "project", "shop", instances=5, vcpus=8)
    put(world, "cluster", "c1", cpu_overcommit=16)
    world.create("web-1", vcpus=2, memory_mib=128, project="shop")
    world.create("web-2", vcpus=1, memory_mib=64)
    rows = {r["resource"]: r for r in world.ask("quota_show", project="shop")["quota"]}
    assert (rows["instances"]["used"], rows["instances"]["limit"]) == (1, 5)
    assert (rows["vcpus"]["used"], rows["memory_mib"]["used"]) == (2, 128)
    assert (rows["addresses"]["used"], rows["addresses"]["limit"]) == (1, None)
    default = {r["resource"]: r["used"] for r in world.ask("quota_show")["quota"]}
    assert (default["instances"], default["vcpus"]) == (1, 1)


# two managers


@pytest.fixture
def managers(fleet: Fleet) -> list[Fleet]:
    return [Fleet(copy.copy(fleet.store), fleet.clock, wire=fleet.wire) for _ in range(4)]


ROUNDS = 10


def test_there_is_never_a_pod_without_its_zone(fleet: Fleet, managers: list[Fleet]) -> None:
    one, two = managers[:2]
    for n in range(ROUNDS):
        zone, pod = f"z{n}", f"p{n}"
        make(fleet, "zone", zone)
        made, gone = at_once(
            [partial(make, one, "pod", pod, zone=zone), partial(drop, two, "zone", zone)]
        )
        zones = fleet.rows(Object, kind=Kind.ZONE, name=zone)
        pods = fleet.rows(Object, kind=Kind.POD, name=pod)
        assert len(zones) == len(pods)
        assert isinstance(gone, InUse) is bool(pods)
        assert isinstance(made, BadRequest) is not bool(pods)


def test_there_is_never_a_vm_without_its_network(
    world: Fleet, managers: list[Fleet], h1: ScriptedAgent
) -> None:
    one, two = managers[:2]
    for n in range(ROUNDS):
        name = f"m{n}"
        make(world, "network", name, **{**NETWORK, "cidr": f"10.{n + 9}.0.0/24"})
        created, gone = at_once(
            [
                partial(one.create, f"web-{n}", memory_mib=16, networks=[{"network": name}]),
                partial(drop, two, "network", name),
            ]
        )
        vms = world.rows(Instance, name=f"web-{n}")
        assert len(world.rows(Object, kind=Kind.NETWORK, name=name)) == len(vms)
        assert isinstance(gone, InUse) is bool(vms), (created, gone)
        assert isinstance(created, BadRequest) is not bool(vms), (created, gone)


def test_a_vm_gets_no_address_that_its_network_does_not_have_any_more(
    world: Fleet, managers: list[Fleet], h1: ScriptedAgent
) -> None:
    one, two = managers[:2]
    for n in range(ROUNDS):
        name, old, new = f"m{n}", f"10.{n + 9}.0", f"10.{n + 109}.0"
        make(world, "network", name, **{**NETWORK, "cidr": f"{old}.0/24"})
        wanted = {"network": name, "address": f"{old}.77"}
        created, moved = at_once(
            [
                partial(one.create, f"web-{n}", memory_mib=16, networks=[wanted]),
                partial(put, two, "network", name, cidr=f"{new}.0/24"),
            ]
        )
        assert sorted(type(r).__name__ for r in (created, moved)) == ["BadRequest", "dict"]


def test_two_networks_do_not_come_to_overlap_at_once(fleet: Fleet, managers: list[Fleet]) -> None:
    make(fleet, "zone", "z1")
    for n in range(ROUNDS):
        spec = {**NETWORK, "cidr": f"10.{n}.0.0/16"}
        results = at_once(
            [partial(make, m, "network", f"n{n}-{k}", **spec) for k, m in enumerate(managers)]
        )
        assert sorted(type(r).__name__ for r in results) == ["BadRequest"] * 3 + ["dict"]


def test_a_zone_does_not_become_basic_while_a_network_that_it_can_not_have_is_made(
    fleet: Fleet, managers: list[Fleet]
) -> None:
    one, two = managers[:2]
    for n in range(ROUNDS):
        spec = {**NETWORK, "zone": f"z{n}", "kind": "isolated"}
        make(fleet, "zone", f"z{n}")
        results = at_once(
            [
                partial(put, one, "zone", f"z{n}", kind="basic"),
                partial(make, two, "network", f"n{n}", **spec),
            ]
        )
        assert sorted(type(r).__name__ for r in results) == ["BadRequest", "dict"]


def test_one_of_several_makes_a_name(fleet: Fleet, managers: list[Fleet]) -> None:
    for n in range(ROUNDS):
        results = at_once([partial(make, m, "zone", f"z{n}") for m in managers])
        assert sorted(type(r).__name__ for r in results) == ["NameTaken"] * 3 + ["dict"]


def test_one_file_at_several_managers_is_applied_once(fleet: Fleet, managers: list[Fleet]) -> None:
    sample = yaml.safe_load(SAMPLE.read_text())
    results = at_once([partial(m.ask, "model_apply", objects=sample) for m in managers])
    done = [set(actions(r).values()) for r in results]
    assert sorted(done, key=sorted) == [{"create"}, {"none"}, {"none"}, {"none"}]
    assert {row.version for row in fleet.rows(Object)} == {0}


def test_a_fleet_without_a_zone_works_as_ever(fleet: Fleet, h1: ScriptedAgent) -> None:
    vm = fleet.deploy(h1)
    assert fleet.rows(Object) == fleet.rows(Use) == []
    assert fleet.row(Instance, vm.uuid).host == "h1"

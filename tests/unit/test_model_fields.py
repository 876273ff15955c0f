"""Every field of every noun: what it may not be is refused by its name and in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from msgspec import inspect

from common import fields, nouns
from common.errors import BadRequest
from common.model import NOUNS, USER_DATA_LIMIT_BYTES, Kind
from tests.nouns import WHOLE, WORLD
from tests.unit.test_api_endpoint import Desk

EACH = [(kind, name) for kind, noun in NOUNS.items() for name in noun.__struct_fields__]


@pytest.fixture(scope="module")
def desk() -> Desk:
    """One fleet for all: what is refused leaves nothing."""
    desk = Desk()
    desk.ask("model_apply", objects=WORLD)
    return desk


def plain(type_: inspect.Type) -> inspect.Type:
    if isinstance(type_, inspect.Metadata):
        return plain(type_.type)
    if isinstance(type_, inspect.UnionType):
        return plain(next(t for t in type_.types if not isinstance(t, inspect.NoneType)))
    return type_


def wrong(type_: inspect.Type) -> Iterator[Any]:
    """Values that no field of this type may have: of other types, and beyond its bounds."""
    yield {"a": 1}
    match plain(type_):
        case inspect.BoolType():
            yield from ("yes", 1, None, [])
        case inspect.IntType(ge=low, le=high):
            yield from ("4", 1.5, True, [1], low - 1, high + 1)
        case inspect.FloatType(ge=low, gt=above, le=high):
            least = low - 0.01 if low is not None else above
            yield from ("4", True, [1.0], least, high + 0.01, float("nan"), float("inf"))
        case inspect.EnumType():
            yield from ("nothing", "", 1, True, ["basic"])
        case inspect.StrType(max_length=limit, pattern=pattern):
            yield from (5, True, ["a"], b"")
            if limit is not None:
                yield "/" + "x" * limit
            if pattern is not None:
                yield from ("", " ", "a b", "ü", "a\n", "https://x/\n", "0" * 64 + "\n", "/a\x00")
        case inspect.VarTupleType(item_type=item, max_length=limit):
            yield from ("a", 5, True, None)
            yield from ([value] for value in wrong(item))
            if limit is not None:
                yield [{}] * (limit + 1)
        case inspect.StructType(fields=within):
            yield from (5, "a", {"nothing": 1})
            for field in within:
                yield from ({field.name: value} for value in wrong(field.type))


CASES = [
    pytest.param(kind, name, value, id=f"{kind}.{name}={value!r:.40}")
    for kind, name in EACH
    for value in wrong(fields.types(NOUNS[kind])[name])
]


def refused(
    desk: Desk, kind: Kind, spec: dict[str, Any], name: str = "new"
) -> list[dict[str, str]]:
    with pytest.raises(BadRequest) as caught:
        desk.ask("model_create", kind=kind, name=name, fields=spec)
    errors: list[dict[str, str]] = caught.value.data["errors"]
    assert caught.value.data["field"] == errors[0]["field"]
    for error in errors:
        assert error["message"]
        assert error["remedy"]
        assert error["message"] in caught.value.message
        for jargon in ("^", "\\Z", "Expected", "regex", "NoneType"):
            assert jargon not in error["message"] + error["remedy"]
    return errors


def test_a_pool_is_in_a_folder_or_in_ceph() -> None:
    desk = Desk()
    desk.ask("model_apply", objects=WORLD)
    made = desk.ask("model_create", kind=Kind.POOL, name="ceph", fields=CEPH)["object"]
    assert {field: made[field] for field in CEPH} == CEPH
    assert made["path"] is None


@pytest.mark.parametrize("kind", Kind)
def test_the_examples_of_these_tests_have_every_field(kind: Kind) -> None:
    assert list(WHOLE[kind]) == list(NOUNS[kind].__struct_fields__)


@pytest.mark.parametrize("kind", Kind)
def test_every_field_is_kept_as_it_was_given(kind: Kind) -> None:
    desk = Desk()
    desk.ask("model_apply", objects=WORLD)
    made = desk.ask("model_create", kind=kind, name="new", fields=WHOLE[kind])
    assert made["action"] == "create"
    for shown in (made["object"], desk.ask("model_show", kind=kind, name="new")):
        assert {k: shown[k] for k in WHOLE[kind]} == WHOLE[kind]
        assert shown["name"] == "new"


@pytest.mark.parametrize(("kind", "name", "value"), CASES)
def test_a_value_that_a_field_can_not_have_is_refused_by_its_name(
    desk: Desk, kind: Kind, name: str, value: Any
) -> None:
    errors = refused(desk, kind, {**WHOLE[kind], name: value})
    # Others may be at fault too, once this one is not what they go by; not the other way round.
    assert any(error["field"].split("[")[0].split(".")[0] == name for error in errors)
    assert [e["field"] for e in errors if not e["field"].startswith(name)] == []


def deep() -> Any:
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(("kind", "name"), EACH)
@pytest.mark.parametrize(
    "value",
    [10**30, -(10**30), "\ud800", [["\ud800"]], {1: {2: 3}}, {None: None}, object(), deep()],
    ids=lambda value: f"{type(value).__name__}",
)
def test_what_no_field_could_be_does_no_harm(desk: Desk, kind: Kind, name: str, value: Any) -> None:
    (error,) = refused(desk, kind, {**WHOLE[kind], name: value})
    assert error["field"].startswith(name)


@pytest.mark.parametrize(("kind", "name"), EACH)
def test_a_field_without_a_default_must_be_there(desk: Desk, kind: Kind, name: str) -> None:
    spec = {field: value for field, value in WHOLE[kind].items() if field != name}
    if name in fields.defaults(NOUNS[kind]):
        noun, _ = fields.checked(NOUNS[kind], spec)
        assert getattr(noun, name) == fields.defaults(NOUNS[kind])[name]
        return
    (error,) = refused(desk, kind, spec)
    assert (error["field"], error["message"]) == (name, "missing")


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, n in EACH if n in NOUNS[k].refs])
def test_a_reference_to_what_is_not_there_is_refused(desk: Desk, kind: Kind, name: str) -> None:
    several = isinstance(WHOLE[kind][name], list)
    spec = {**WHOLE[kind], name: ["z1", "nowhere"] if several else "nowhere"}
    if kind is Kind.POOL:
        spec = {**spec, "scope": name, "zone": "nowhere" if name == "zone" else None}
    (error,) = refused(desk, kind, spec)
    assert error["field"] == (f"{name}[1]" if several else name)
    assert error["message"] == f"no {NOUNS[kind].refs[name].words} nowhere"
    assert "muster" in error["remedy"]


@pytest.mark.parametrize("kind", Kind)
def test_a_field_that_is_not_there_is_refused_with_those_that_are(desk: Desk, kind: Kind) -> None:
    (error,) = refused(desk, kind, {**WHOLE[kind], "colour": "blue"})
    assert error["field"] == "colour"
    for name in NOUNS[kind].__struct_fields__:
        assert name in error["remedy"]


@pytest.mark.parametrize("kind", Kind)
def test_all_wrong_fields_are_told_in_one_answer(desk: Desk, kind: Kind) -> None:
    spec = {name: {"a": 1} for name in NOUNS[kind].__struct_fields__}
    errors = refused(desk, kind, {**spec, "colour": "blue"}, name="no name!")
    assert {e["field"] for e in errors} == {*NOUNS[kind].__struct_fields__, "colour", "name"}


@pytest.mark.parametrize("name", ["", " ", "a b", "-a", "a-", "a\n", "ü", "a/b", "x" * 64, "../a"])
def test_an_illegal_name_is_refused(desk: Desk, name: str) -> None:
    with pytest.raises(BadRequest, match="name"):
        desk.ask("model_create", kind="zone", name=name, fields={})


def test_a_name_like_a_uuid_is_refused_but_for_hosts(desk: Desk) -> None:
    name = "5f0c1b0e-0000-4000-8000-000000000001"
    (error,) = refused(desk, Kind.ZONE, {}, name=name)
    assert error["field"] == "name"
    assert desk.ask("model_create", kind="host", name=name, fields={"cluster": "c1"})


@pytest.mark.parametrize(
    "domain", ["-a.org", "a-.org", "a..org", ".org", "a.org.", "a_b.org", "x" * 64, "a b", "ä.org"]
)
def test_an_illegal_domain_is_refused(desk: Desk, domain: str) -> None:
    (error,) = refused(desk, Kind.ZONE, {"domain": domain})
    assert error["field"] == "domain"


CEPH = {
    "scope": "zone",
    "zone": "z1",
    "kind": "rbd",
    "rbd_pool": "vms",
    "monitors": ["10.0.0.1:6789", "ceph-1", "[fd00::1]:3300"],
    "capacity_gib": 1,
}
NETWORK = {"zone": "z1", "backend": "bridge", "source": "br9", "cidr": "10.9.0.0/24"}


@pytest.mark.parametrize(
    ("kind", "spec", "field"),
    [
        (Kind.NETWORK, {**NETWORK, "cidr": "10.9.0.1/24"}, "cidr"),
        (Kind.NETWORK, {**NETWORK, "cidr": "10.9.0.0"}, "cidr"),
        (Kind.NETWORK, {**NETWORK, "cidr": "2001:db8::/64"}, "cidr"),
        (Kind.NETWORK, {**NETWORK, "cidr": "8.0.0.0/7"}, "cidr"),
        (Kind.NETWORK, {**NETWORK, "cidr": "10.9.0.0/31"}, "cidr"),
        (Kind.NETWORK, {**NETWORK, "gateway": "10.8.0.1"}, "gateway"),
        (Kind.NETWORK, {**NETWORK, "gateway": "10.9.0.0"}, "gateway"),
        (Kind.NETWORK, {**NETWORK, "last": "10.9.0.255"}, "last"),
        (Kind.NETWORK, {**NETWORK, "first": "ten"}, "first"),
        (Kind.NETWORK, {**NETWORK, "first": "10.9.0.9", "last": "10.9.0.8"}, "first"),
        (Kind.NETWORK, {**NETWORK, "cidr6": "2001:db8::/48"}, "cidr6"),
        (Kind.NETWORK, {**NETWORK, "cidr6": "10.0.0.0/8"}, "cidr6"),
        (Kind.NETWORK, {**NETWORK, "gateway6": "2001:db8::1"}, "gateway6"),
        (Kind.NETWORK, {**NETWORK, "cidr6": "2001:db8::/64", "gateway6": "fd::1"}, "gateway6"),
        (Kind.NETWORK, {**NETWORK, "dns": ["10.9.0.2", "dns"]}, "dns"),
        (Kind.NETWORK, {**NETWORK, "kind": "vlan", "backend": "ovs"}, "vlan"),
        (Kind.NETWORK, {**NETWORK, "vlan": 5, "backend": "ovs"}, "vlan"),
        (Kind.NETWORK, {**NETWORK, "kind": "vlan", "vlan": 5}, "backend"),
        (Kind.POOL, {"scope": "host", "path": "/a", "capacity_gib": 1}, "host"),
        (
            Kind.POOL,
            {"scope": "zone", "zone": "z1", "cluster": "c1", "path": "/a", "capacity_gib": 1},
            "cluster",
        ),
        (Kind.POOL, {**CEPH, "kind": "dir", "path": "/a", "monitors": []}, "rbd_pool"),
        (Kind.POOL, {**CEPH, "path": "/a"}, "path"),
        (Kind.POOL, {**CEPH, "monitors": []}, "monitors"),
        (Kind.POOL, {**CEPH, "monitors": ["[fd00::1"]}, "monitors[0]"),
        (Kind.POOL, {**CEPH, "rbd_pool": "a/b"}, "rbd_pool"),
        (Kind.POOL, {**CEPH, "scope": "host", "host": "h1", "zone": None}, "scope"),
        (Kind.POOL, {"scope": "zone", "zone": "z1", "capacity_gib": 1}, "path"),
        (Kind.OFFERING, {"vcpus_min": 5, "vcpus_max": 4}, "vcpus_min"),
        (Kind.OFFERING, {"memory_mib_min": 65, "memory_mib_max": 64}, "memory_mib_min"),
        (Kind.OFFERING, {"cpu_cap": True}, "cpu_cap"),
        (Kind.DISK_OFFERING, {"size_gib_min": 5, "size_gib_max": 4}, "size_gib_min"),
        (
            Kind.TEMPLATE,
            {"format": "raw", "url": "file:///a", "sha256": "0" * 64, "cmdline": "x"},
            "cmdline",
        ),
        (
            Kind.TEMPLATE,
            {
                "format": "kernel",
                "url": "file:///a",
                "sha256": "0" * 64,
                "initrd_url": "file:///b",
            },
            "initrd_sha256",
        ),
        (Kind.TEMPLATE, {"format": "raw", "url": "ftp://a/b", "sha256": "0" * 64}, "url"),
        (Kind.TEMPLATE, {"format": "raw", "url": "file:///a", "sha256": "0" * 63}, "sha256"),
        (Kind.TEMPLATE, {"format": "raw", "url": "file:///a", "sha256": "A" * 64}, "sha256"),
        (Kind.SECURITY_GROUP, {"rules": [{"protocol": "icmp", "port_first": 1}]}, "rules"),
        (
            Kind.SECURITY_GROUP,
            {"rules": [{"protocol": "tcp", "port_first": 2, "port_last": 1}]},
            "rules",
        ),
        (Kind.SECURITY_GROUP, {"rules": [{"cidr": "10.0.0.1/8"}]}, "rules"),
        (Kind.SECURITY_GROUP, {"rules": [{}, {"port_first": "ssh"}]}, "rules[1].port_first"),
        (Kind.SSH_KEY, {"public_key": "ssh-ed25519 AAAA"}, "public_key"),
        (Kind.SSH_KEY, {"public_key": "-----BEGIN PRIVATE KEY-----"}, "public_key"),
        (Kind.USER_DATA, {"data": "x" * (USER_DATA_LIMIT_BYTES + 1)}, "data"),
        (Kind.USER_DATA, {"data": "ü" * (USER_DATA_LIMIT_BYTES // 2 + 1)}, "data"),
    ],
    ids=lambda value: f"{value!r:.60}",
)
def test_what_fields_can_not_be_together_is_told_of_the_one_to_correct(
    desk: Desk, kind: Kind, spec: dict[str, Any], field: str
) -> None:
    (error,) = refused(desk, kind, spec)
    assert error["field"] == field


def test_a_field_that_can_not_be_read_hides_no_other_contradiction(desk: Desk) -> None:
    spec = {**NETWORK, "kind": "flat", "vlan": "x", "gateway": "10.8.0.1", "dns": ["a"], "last": 4}
    assert {e["field"] for e in refused(desk, Kind.NETWORK, spec)} == {
        *("kind", "vlan", "gateway", "dns", "last"),
    }


@pytest.mark.parametrize("kind", Kind)
def test_every_field_has_its_line_of_help(kind: Kind) -> None:
    assert list(nouns.FIELDS[kind]) == list(NOUNS[kind].__struct_fields__)
    assert nouns.ABOUT[kind]


def test_a_pool_of_one_host_is_none_for_snapshots(desk: Desk) -> None:
    pool = {"scope": "host", "host": "h", "path": "/a", "capacity_gib": 1, "snapshots": True}
    assert "snapshots" in [error["field"] for error in refused(desk, Kind.POOL, pool)]

"""What holds between nouns: pure rules, values in and problems out."""

from __future__ import annotations

from typing import Any

import pytest

from common.model import NOUNS, Backend, Kind, Network, Pod, Template, Zone
from manager.rules import model as rules

UUID = "5f0c1b0e-0000-4000-8000-00000000000f"


def network(cidr: str = "10.1.0.0/24", **fields: Any) -> Network:
    return Network(zone="z1", backend=Backend.BRIDGE, source="br0", cidr=cidr, **fields)


def fields_of(problems: Any) -> list[str]:
    return [field for field, _message, _remedy in problems]


@pytest.mark.parametrize(
    ("name", "wrong"), [(UUID, True), (UUID.upper(), True), (f"a{UUID}", False)]
)
def test_a_name_is_no_uuid(name: str, wrong: bool) -> None:
    assert fields_of(rules.bad_name(Kind.ZONE, name)) == (["name"] if wrong else [])
    assert fields_of(rules.bad_name(Kind.HOST, name)) == []


def test_who_may_name_a_kind_is_known_from_the_structs() -> None:
    assert rules.REFERRERS[Kind.CLUSTER] == (Kind.HOST, Kind.POOL)
    assert rules.REFERRERS[Kind.POD] == (Kind.CLUSTER,)
    assert rules.REFERRERS[Kind.SSH_KEY] == ()


@pytest.mark.parametrize("kind", Kind)
def test_fixed_fields_are_fields(kind: Kind) -> None:
    for table in (rules.FIXED_BY_VMS, rules.FIXED_BY_NOUNS):
        assert set(table.get(kind, ())) <= set(NOUNS[kind].__struct_fields__)


def test_an_order_of_kinds_has_everything_after_what_it_may_name() -> None:
    order = list(Kind)
    for kind, noun in NOUNS.items():
        assert all(order.index(named) < order.index(kind) for named in noun.refs.values())


def test_each_unknown_name_of_a_list_is_told() -> None:
    there = {(Kind.ZONE, "z1")}
    found = rules.unknown(Template, {"zones": ["z1", "z2", "z3"]}, lambda *key: key in there)
    assert fields_of(found) == ["zones[1]", "zones[2]"]


def test_referrers_are_found_by_kind_and_name() -> None:
    nouns = {(Kind.POD, "p1"): Pod(zone="a"), (Kind.POD, "a"): Pod(zone="b")}
    assert rules.referrers((Kind.ZONE, "a"), nouns) == ["pod p1"]
    assert rules.referrers((Kind.POD, "a"), nouns) == []


def test_subnets_that_can_not_be_read_overlap_nothing() -> None:
    assert fields_of(rules.clashes(network("none"), Zone(), {"n": network()})) == []
    assert fields_of(rules.clashes(network(), Zone(), {"n": network("none")})) == []


def test_addresses_of_the_other_version_do_not_hold_a_subnet() -> None:
    wide = network("10.0.0.0/8", cidr6="2001:db8::/64")
    given = ["10.1.0.5", "2001:db8::5"]
    assert fields_of(rules.lost(wide, ["cidr", "cidr6"], given)) == []
    assert fields_of(rules.lost(wide, ["cidr", "cidr6"], ["11.0.0.1", "::1"])) == ["cidr", "cidr6"]
    assert fields_of(rules.lost(network("11.0.0.0/24"), ["dns"], given)) == []


@pytest.mark.parametrize(
    ("cidr", "fits"),
    [("10.1.0.0/28", True), ("10.1.0.0/29", False), ("10.1.0.7/32", False)],
)
def test_an_address_of_a_vm_does_not_become_one_that_no_vm_may_have(cidr: str, fits: bool) -> None:
    """It stays inside a smaller subnet, and would be its broadcast address."""
    found = fields_of(rules.lost(network(cidr), ["cidr"], ["10.1.0.7"]))
    assert found == ([] if fits else ["cidr"])


def test_the_own_address_of_a_smaller_subnet_is_not_one_that_a_vm_has() -> None:
    given = ["10.1.0.8", "2001:db8::"]
    narrow = network("10.1.0.8/29", cidr6="2001:db8::/64")
    assert fields_of(rules.lost(narrow, ["cidr", "cidr6"], given)) == ["cidr", "cidr6"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a"], "a"),
        (list("abcde"), "a, b, c, d, e"),
        (list("abcdefg"), "a, b, c, d, e and 2 more"),
    ],
)
def test_five_of_several_are_said(names: list[str], said: str) -> None:
    assert rules.some(names) == said

"""A security group becomes a filter that lets its rules through, replies back, and nothing else."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import pytest

pytest.importorskip("libvirt")

from agent.drivers.libvirt import filters
from common.messages import NicSpec
from common.model import Direction, Protocol, Rule

NAME = "muster-i-b-0"


def made(*rules: Rule, **changes: Any) -> ET.Element:
    nic = NicSpec(mac="52:54:00:00:00:01", network="n", address="10.0.0.5/24", **changes)
    return ET.fromstring(filters.body(NAME, msgspec.structs.replace(nic, rules=rules)))  # noqa: S314


def accepted(root: ET.Element, direction: str) -> list[tuple[str, dict[str, str]]]:
    """The new connections that are let through."""
    return [
        (match.tag, {k: v for k, v in match.attrib.items() if k != "state"})
        for rule in root.iterfind(f"rule[@action='accept'][@direction='{direction}']")
        for match in rule
        if match.get("state") == "NEW"
    ]


def test_a_card_speaks_for_itself_alone() -> None:
    root = made()
    assert root.get("name") == NAME
    assert [ref.get("filter") for ref in root.iterfind("filterref")] == list(filters.BASE)


def test_a_group_without_rules_lets_nothing_in_and_everything_out() -> None:
    root = made()
    assert accepted(root, "in") == []
    assert accepted(root, "out") == [("all", {}), ("all-ipv6", {})]


def test_replies_come_back_and_what_no_rule_names_is_dropped_last() -> None:
    root = made(Rule(protocol=Protocol.TCP, port_first=22, port_last=22))
    replies = [
        rule for rule in root.iterfind("rule") if rule[0].get("state") == "ESTABLISHED,RELATED"
    ]
    assert {rule[0].tag for rule in replies} == {"all", "all-ipv6"}
    drops = root.findall("rule[@action='drop'][@direction='inout']")
    assert {rule[0].tag for rule in drops} == {"all", "all-ipv6"}
    others = [int(str(r.get("priority"))) for r in root.iterfind("rule") if r not in drops]
    assert all(int(str(drop.get("priority"))) > max(others) for drop in drops)


@pytest.mark.parametrize(
    ("rule", "tag", "match"),
    [
        (Rule(), "all", {}),
        (Rule(cidr="::/0"), "all-ipv6", {}),
        (Rule(protocol=Protocol.ICMP), "icmp", {}),
        (
            Rule(protocol=Protocol.TCP, port_first=80, port_last=81, cidr="10.0.0.0/8"),
            "tcp",
            {
                "srcipaddr": "10.0.0.0",
                "srcipmask": "8",
                "dstportstart": "80",
                "dstportend": "81",
            },
        ),
        (
            Rule(protocol=Protocol.UDP, port_first=53, cidr="2001:db8::/32"),
            "udp-ipv6",
            {
                "srcipaddr": "2001:db8::",
                "srcipmask": "32",
                "dstportstart": "53",
                "dstportend": "65535",
            },
        ),
        (Rule(protocol=Protocol.TCP, port_last=5), "tcp", {"dstportstart": "0", "dstportend": "5"}),
        (Rule(protocol=Protocol.TCP), "tcp", {}),
    ],
)
def test_a_rule_lets_in_what_it_says(rule: Rule, tag: str, match: dict[str, str]) -> None:
    assert accepted(made(rule), "in") == [(tag, match)]


def test_with_an_egress_rule_only_that_goes_out() -> None:
    out = Rule(direction=Direction.EGRESS, protocol=Protocol.TCP, port_first=443, cidr="1.2.3.0/24")
    root = made(out)
    assert accepted(root, "in") == []
    [(tag, match)] = accepted(root, "out")
    assert tag == "tcp"
    assert (match["dstipaddr"], match["dstipmask"]) == ("1.2.3.0", "24")


def test_ipv6_needs_an_address_of_its_own() -> None:
    assert made().find("rule/ipv6") is None
    root = made(address6="2001:db8::5/64")
    own = [rule[0].get("srcipaddr") for rule in root.iterfind("rule") if rule[0].tag == "ipv6"]
    assert own == ["2001:db8::5", "fe80::", "::"]
    assert root.find("rule[@action='drop']/mac[@protocolid='ipv6']") is not None


def test_a_guest_that_speaks_ipv6_is_heard_by_its_neighbours_and_is_no_router() -> None:
    told = {
        direction: [
            rule[0].get("type")
            for rule in made(address6="2001:db8::5/64").iterfind("rule[@action='accept']")
            if rule[0].tag == "icmpv6" and rule.get("direction") == direction
        ]
        for direction in ("in", "out", "inout")
    }
    assert told == {"in": ["134", "135", "136"], "out": ["133", "135", "136"], "inout": []}


def test_a_filter_is_named_by_its_guest_and_made_only_where_there_are_rules() -> None:
    bare = NicSpec(mac="52:54:00:00:00:01")
    ruled = NicSpec(mac="52:54:00:00:00:01", rules=())
    bearer = "aaaaaaaa-0000-4000-8000-000000000001"
    assert filters.name("i-1", bearer, 0, bare) is None
    assert filters.name("i-1", bearer, 3, ruled) == "muster-i-1-aaaaaaaa-3"
    assert filters.prefix("i-1", bearer) != filters.prefix("i-11", bearer)
    assert not "muster-i-11-aaaaaaaa-0".startswith(filters.prefix("i-1", bearer))

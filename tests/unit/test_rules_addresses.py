"""Section 8 of the decision tables, steps 1 and 3: addresses and hostnames."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.model import Backend, Network
from manager.rules.addresses import (
    LABEL_LIMIT,
    eui64,
    free,
    hostname_from,
    is_hostname,
    reserved,
    why_not,
)

UUID = "1b4e28ba-2fa1-11d2-883f-0016d3cca427"
NETWORK = Network(
    zone="z1",
    backend=Backend.BRIDGE,
    source="br0",
    cidr="10.1.0.0/24",
    gateway="10.1.0.1",
    first="10.1.0.10",
    last="10.1.0.20",
    dns=("10.1.0.2", "9.9.9.9", "2001:db8::53"),
)


@pytest.mark.parametrize(
    ("taken", "held", "found"),
    [
        ([], [], 10),
        ([10, 11, 13], [], 12),
        ([13, 11, 10], [12], 14),
        (range(10, 20), [], 20),
        (range(10, 20), [20], None),
        ([9, 21], [], 10),
    ],
)
def test_section8_step_3_the_lowest_free_address_is_given(
    taken: list[int], held: list[int], found: int | None
) -> None:
    assert free(10, 20, taken, held) == found


@given(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)))
def test_section8_step_3_no_address_is_given_twice(taken: set[int], held: set[int]) -> None:
    found = free(5, 25, taken, held)
    left = set(range(5, 26)) - taken - held
    assert found == (min(left) if left else None)


def test_section8_step_3_gateway_and_dns_servers_are_never_given() -> None:
    held = {str(ipaddress.IPv4Address(number)) for number in reserved(NETWORK)}
    assert held == {"10.1.0.1", "10.1.0.2"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("10.1.0.10", ""),
        ("10.1.0.200", ""),
        ("10.1.0.0", "the network itself"),
        ("10.1.0.255", "broadcast"),
        ("10.1.0.1", "gateway"),
        ("10.1.0.2", "DNS"),
        ("10.1.1.10", "not in 10.1.0.0/24"),
        ("9.9.9.9", "not in 10.1.0.0/24"),
        ("10.1.0", "no IPv4 address"),
        ("10.1.0.010", "no IPv4 address"),
        ("2001:db8::1", "no IPv4 address"),
        ("", "no IPv4 address"),
    ],
)
def test_section8_step_1_a_requested_address_must_be_a_vms_in_its_network(
    text: str, why: str
) -> None:
    found = why_not(NETWORK, text)
    assert why in found
    assert bool(found) is bool(why)


@pytest.mark.parametrize(
    ("mac", "address"),
    [
        # RFC 4291, appendix A: 34-56-78-9A-BC-DE becomes 36:56:78:FF:FE:9A:BC:DE.
        ("34:56:78:9a:bc:de", "fd00::3656:78ff:fe9a:bcde"),
        ("52:54:00:12:34:56", "fd00::5054:ff:fe12:3456"),
        ("02:00:00:00:00:01", "fd00::ff:fe00:1"),
    ],
)
def test_section8_step_3_the_ipv6_address_is_the_one_the_guest_makes_itself(
    mac: str, address: str
) -> None:
    assert eui64("fd00::/64", mac) == address


@pytest.mark.parametrize(
    ("text", "legal"),
    [
        ("a", True),
        ("web-1", True),
        ("1web", True),
        ("a" * 63, True),
        ("a" * 64, False),
        ("", False),
        ("-web", False),
        ("web-", False),
        ("Web", False),
        ("web_1", False),
        ("web.example", False),
        ("web\n", False),
        ("wéb", False),
    ],
)
def test_section8_step_1_a_hostname_is_one_label_of_rfc_1123(text: str, legal: bool) -> None:
    assert is_hostname(text) is legal


@pytest.mark.parametrize(
    ("name", "taken", "made"),
    [
        ("web-1", False, "web-1"),
        ("Web_1.prod", False, "web-1-prod"),
        ("  My  VM ", False, "my-vm"),
        ("日本", False, "vm-1b4e28ba"),
        ("---", True, "vm-1b4e28ba"),
        ("web-1", True, "web-1-1b4e28ba"),
        ("a" * 80, False, "a" * 63),
        ("a" * 62 + "-b", False, "a" * 62),
    ],
)
def test_section8_step_1_a_hostname_is_made_from_the_name(
    name: str, taken: bool, made: str
) -> None:
    assert hostname_from(name, UUID, taken=taken) == made


@given(st.text(max_size=100), st.booleans())
def test_section8_step_1_a_made_hostname_is_legal(name: str, taken: bool) -> None:
    made = hostname_from(name, UUID, taken=taken)
    assert is_hostname(made)
    assert len(made) <= LABEL_LIMIT

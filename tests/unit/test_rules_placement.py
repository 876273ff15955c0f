"""Which host takes a new VM, and why the others do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.states import HostState
from manager.rules.placement import Candidate, place


def host(name: str = "h1", **changes: object) -> Candidate:
    found = Candidate(
        name=name,
        state=HostState.UP,
        enabled=True,
        maintenance=False,
        memory_mib_total=1000,
        memory_mib_used=0,
    )
    return replace(found, **changes)  # type: ignore[arg-type]


def test_the_host_with_the_most_free_memory_is_taken() -> None:
    hosts = [host("h1", memory_mib_used=500), host("h2", memory_mib_used=100), host("h3")]
    assert place(hosts[:2], memory_mib=100).host == "h2"
    assert place(hosts, memory_mib=100).host == "h3"


def test_what_strangers_use_and_what_is_promised_is_not_free() -> None:
    busy = host("h1", memory_mib_total=4000, memory_mib_used=3000, memory_mib_claimed=500)
    assert busy.memory_mib_free == 500
    assert place([busy, host("h2", memory_mib_total=600)], memory_mib=100).host == "h2"


@pytest.mark.parametrize(("wanted", "found"), [(400, "h1"), (401, None)])
def test_exactly_enough_is_enough(wanted: int, found: str | None) -> None:
    assert place([host(memory_mib_used=600)], memory_mib=wanted).host == found


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"state": HostState.SUSPECT}, "SUSPECT"),
        ({"state": HostState.DOWN}, "DOWN"),
        ({"enabled": False}, "disabled"),
        ({"maintenance": True}, "maintenance"),
        ({"memory_mib_used": 990}, "10 MiB free of 100 wanted"),
    ],
)
@pytest.mark.parametrize("named", ["h1", None])
def test_an_unfit_host_is_not_taken_and_the_reason_is_told(
    changes: dict[str, object], why: str, named: str | None
) -> None:
    found = place([host(**changes)], memory_mib=100, named=named)
    assert found.host is None
    assert "h1" in found.explain()
    assert why in found.explain()


def test_a_named_host_is_taken_however_free_the_others_are() -> None:
    hosts = [host("h1", memory_mib_used=800), host("h2")]
    assert place(hosts, memory_mib=100, named="h1").host == "h1"


def test_a_named_host_that_can_not_take_it_is_not_replaced_by_another() -> None:
    hosts = [host("h1", enabled=False), host("h2")]
    found = place(hosts, memory_mib=100, named="h1")
    assert found.host is None
    assert "h2" not in found.explain()


def test_a_fleet_without_hosts_says_so() -> None:
    assert place([], memory_mib=100).explain() == "no host is known"


def test_two_managers_choose_alike_between_equals() -> None:
    hosts = [host("h1"), host("h2"), host("h3")]
    assert place(hosts, memory_mib=1).host == place(hosts[::-1], memory_mib=1).host


@given(
    st.lists(
        st.builds(
            Candidate,
            name=st.uuids().map(str),
            state=st.sampled_from(HostState),
            enabled=st.booleans(),
            maintenance=st.booleans(),
            memory_mib_total=st.integers(0, 100),
            memory_mib_used=st.integers(0, 100),
            memory_mib_claimed=st.integers(0, 50),
        ),
        max_size=6,
    ),
    st.integers(1, 100),
)
def test_no_host_is_ever_overfilled_and_every_host_has_a_reason(
    hosts: list[Candidate], wanted: int
) -> None:
    found = place(hosts, memory_mib=wanted)
    assert {name for name, _ in found.reasons} == {h.name for h in hosts}
    fit = [
        h
        for h in hosts
        if h.state is HostState.UP
        and h.enabled
        and not h.maintenance
        and h.memory_mib_total - h.memory_mib_used - h.memory_mib_claimed >= wanted
    ]
    assert (found.host is None) == (not fit)
    assert found.host is None or found.host in {h.name for h in fit}

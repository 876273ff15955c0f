"""Creates at several managers at once: one has the last of anything, and nothing is overfilled."""

from __future__ import annotations

import collections
import copy
from functools import partial
from typing import Any

import pytest

from common.errors import MusterError
from manager.store.addresses import Address
from manager.store.engine import Store
from manager.store.hosts import Host
from manager.store.instances import Instance
from manager.store.volumes import Volume
from tests.functional.fleet import Fleet, ScriptedAgent
from tests.functional.test_flow_races import MANAGERS, ROUNDS, at_once
from tests.functional.zone import MORE, ZONE, deploy, make

# SQLite lets one in at a time.
POSTGRESQL = pytest.mark.parametrize(
    "store", [pytest.param("postgresql", marks=pytest.mark.real)], indirect=True
)
N1: dict[str, Any] = {"networks": [{"network": "n1"}]}


@pytest.fixture
def zone(fleet: Fleet) -> Fleet:
    make(fleet, **ZONE)
    make(fleet, **MORE)
    for n in (1, 2, 3):
        ScriptedAgent(fleet, f"h{n}").up(memory_mib=8192)
    return fleet


@pytest.fixture
def managers(zone: Fleet, monkeypatch: pytest.MonkeyPatch) -> list[Fleet]:
    """Managers that run a handler once more at most: a deadlock is no way to take turns."""
    monkeypatch.setattr("manager.store.engine.RETRIES", 3)
    return [Fleet(copy.copy(zone.store), zone.clock, wire=zone.wire) for _ in range(MANAGERS)]


def race(managers: list[Fleet], name: str, **asked: Any) -> tuple[list[str], collections.Counter]:
    """One create at each manager: the hosts that took one, and the codes of the others."""
    work = [partial(deploy, m, f"{name}-{n}", **{**N1, **asked}) for n, m in enumerate(managers)]
    results = at_once(work)
    refused = [r.code for r in results if isinstance(r, MusterError)]
    return [r["host"] for r in results if isinstance(r, dict)], collections.Counter(refused)


def deadlocks(store: Store) -> int:
    """How many the database has had to break; SQLite lets one in at a time."""
    if store.dialect != "postgresql":
        return 0
    query = "SELECT pg_stat_clear_snapshot(), pg_stat_force_next_flush(), deadlocks"
    query += " FROM pg_stat_database WHERE datname = current_database()"
    with store.engine.connect() as conn:
        return int(conn.exec_driver_sql(query).one()[-1])


def test_the_last_address_is_given_once(zone: Fleet, managers: list[Fleet]) -> None:
    for round_ in range(ROUNDS):
        last = f"10.1.0.{10 + round_}"
        make(zone, networks=[{"name": "n1", "first": "10.1.0.10", "last": last}])
        won, refused = race(managers, f"web-{round_}")
        assert len(won) == 1
        assert refused == {"NO_ADDRESS": MANAGERS - 1}
    assert len(zone.rows(Address)) == ROUNDS


def test_a_requested_address_or_hostname_is_given_once(zone: Fleet, managers: list[Fleet]) -> None:
    won, refused = race(managers, "a", networks=[{"network": "n1", "address": "10.1.0.5"}])
    assert (len(won), refused) == (1, {"NO_ADDRESS": MANAGERS - 1})
    won, refused = race(managers, "b", hostname="www")
    assert (len(won), refused) == (1, {"NAME_TAKEN": MANAGERS - 1})


def test_the_last_memory_of_a_host_is_given_once(zone: Fleet, managers: list[Fleet]) -> None:
    make(zone, offerings=[{"name": "two", "vcpus": 1, "memory_mib": 2048, "root_gib": 5}])
    for n in (1, 2, 3):
        zone.put(zone.host(f"h{n}"), memory_mib_total=2048 * (n == 2))
    won, refused = race(managers, "web", offering="two")
    assert (won, refused) == (["h2"], {"NO_VALID_HOST": MANAGERS - 1})
    assert {h.name: h.memory_mib_claimed for h in zone.rows(Host)} == {"h1": 0, "h2": 2048, "h3": 0}


def test_one_that_finds_its_host_full_takes_the_next(zone: Fleet, managers: list[Fleet]) -> None:
    make(zone, offerings=[{"name": "two", "vcpus": 1, "memory_mib": 2048, "root_gib": 5}])
    for host in zone.rows(Host):
        zone.put(host, memory_mib_total=2048)
    won, refused = race(managers, "web", offering="two")
    assert sorted(won) == ["h1", "h2", "h3"]
    assert refused == {"NO_VALID_HOST": MANAGERS - 3}


@POSTGRESQL
def test_vms_that_are_spread_do_not_stand_in_line_for_the_best_host(zone: Fleet) -> None:
    zone.put(zone.host("h2"), memory_mib_total=16384)
    with zone.store.engine.begin() as other:
        other.exec_driver_sql("SELECT * FROM hosts WHERE name = 'h2' FOR UPDATE")
        job = deploy(zone, "web-1", **N1)
        assert job["host"] == "h3"
        place = zone.shown(job)["steps"][1]
        assert place["hosts"]["h2"] == "is being decided about for another VM"
    assert deploy(zone, "web-2", **N1)["host"] == "h2"


@pytest.mark.parametrize("named", [{}, {"host": "h1"}])
def test_a_pool_that_has_filled_up_leaves_the_others_of_its_host(
    zone: Fleet, managers: list[Fleet], named: dict[str, str]
) -> None:
    """All choose the same pool of the only host that has any; there is one for each of them."""
    pool = {"scope": "host", "host": "h1", "capacity_gib": 5}
    names = [f"near-{n}" for n in range(MANAGERS)]
    make(zone, pools=[{**pool, "name": name, "path": f"/{name}"} for name in names])
    won, refused = race(managers, "web", **named)
    assert (won, refused) == (["h1"] * MANAGERS, {})
    assert {volume.pool for volume in zone.rows(Volume)} == set(names)


def test_the_last_space_of_a_pool_is_given_once(zone: Fleet, managers: list[Fleet]) -> None:
    pool = {"name": "wide", "scope": "zone", "zone": "z1", "path": "/wide", "capacity_gib": 9}
    make(zone, pools=[pool])
    for named in ({}, {"pool": "wide"}):
        won, refused = race(managers, f"web{len(named)}", **named)
        assert (len(won), refused) == (1, {"NO_VALID_HOST": MANAGERS - 1})
        make(zone, pools=[{"name": "wide", "capacity_gib": 14}])
    assert [v.pool for v in zone.rows(Volume)] == ["wide", "wide"]


def test_the_last_space_of_a_pool_is_given_to_one_of_its_hosts(
    zone: Fleet, managers: list[Fleet]
) -> None:
    pool = {"name": "wide", "scope": "zone", "zone": "z1", "path": "/wide", "capacity_gib": 9}
    make(zone, pools=[pool])
    for round_ in range(ROUNDS):
        make(zone, pools=[{"name": "wide", "capacity_gib": 9 + 5 * round_}])
        results = at_once(
            [
                partial(deploy, m, f"web-{round_}-{n}", **N1, host=f"h{n}")
                for n, m in enumerate(managers[:3], 1)
            ]
        )
        assert sum(isinstance(r, dict) for r in results) == 1, results
    assert len(zone.rows(Volume)) == ROUNDS


def test_the_last_of_a_limit_is_given_once(zone: Fleet, managers: list[Fleet]) -> None:
    for round_ in range(ROUNDS):
        make(zone, projects=[{"name": "shop", "instances": round_ + 1}])
        won, refused = race(managers, f"web-{round_}", project="shop")
        assert (len(won), refused) == (1, {"QUOTA_EXCEEDED": MANAGERS - 1})
    assert len(zone.rows(Instance)) == ROUNDS


def test_members_of_an_anti_affinity_group_are_never_placed_together(
    zone: Fleet, managers: list[Fleet]
) -> None:
    before = deadlocks(zone.store)
    won, refused = race(managers, "web", affinity_groups=["apart"])
    assert sorted(won) == ["h1", "h2", "h3"]
    assert refused == {"NO_VALID_HOST": MANAGERS - 3}
    assert deadlocks(zone.store) == before


def test_members_of_an_affinity_group_are_never_placed_apart(
    zone: Fleet, managers: list[Fleet]
) -> None:
    before = deadlocks(zone.store)
    won, refused = race(managers, "web", affinity_groups=["together", "apart"], start=False)
    assert (len(won), refused) == (MANAGERS, {})
    starts = at_once([partial(m.ask, "vm_start", vm=f"web-{n}") for n, m in enumerate(managers)])
    # Both at once is more than a second VM can have.
    assert sorted(getattr(r, "code", "") for r in starts) == ["", *["NO_VALID_HOST"] * 3]
    assert deadlocks(zone.store) == before


def test_the_default_group_is_made_once(zone: Fleet, managers: list[Fleet]) -> None:
    make(
        zone,
        pods=[{"name": "pf", "zone": "flat"}],
        clusters=[{"name": "cf", "pod": "pf"}],
        hosts=[{"name": "hf", "cluster": "cf"}],
    )
    ScriptedAgent(zone, "hf").up()
    won, refused = race(managers, "web", zone="flat", networks=[])
    assert (won, refused) == (["hf"] * MANAGERS, {})


def test_creates_and_deletes_of_what_they_name_never_meet(
    zone: Fleet, managers: list[Fleet]
) -> None:
    """Either the noun was there, and is used; or it is gone, and the create is told so."""
    for round_ in range(ROUNDS):
        make(zone, affinity_groups=[{"name": "brief"}])
        one, two = managers[:2]
        made, gone = at_once(
            [
                partial(deploy, one, f"web-{round_}", **N1, affinity_groups=["brief"]),
                partial(two.ask, "model_delete", kind="affinity_group", name="brief"),
            ]
        )
        assert isinstance(made, dict) is not isinstance(gone, dict), (made, gone)
        if isinstance(made, dict):
            assert gone.code == "IN_USE"
            zone.delete(f"web-{round_}", force=True, reason="a test")
        else:
            assert made.data["field"] == "affinity_groups"

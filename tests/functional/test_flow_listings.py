"""What operators can look at: tombstones, who holds which address, managers and agents."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from common.errors import BadRequest, NotFound
from common.states import HostState, TombstoneState
from manager.store.addresses import Address, Mac
from manager.store.volumes import Volume
from tests.functional.fleet import DOWN_S, INTERVAL_S, Fleet, ScriptedAgent
from tests.functional.zone import ZONE, deploy, make, started

OPEN, CLOSED = TombstoneState.OPEN, TombstoneState.CLOSED
POOLS = [
    {"name": f"own-{host}", "scope": "host", "host": host, "path": "/own", "capacity_gib": 20}
    for host in ("h1", "h2", "h3")
]
N1 = [{"network": "n1"}]


@pytest.fixture
def agents(fleet: Fleet) -> dict[str, ScriptedAgent]:
    """Three hosts of a zone, so that one silent host is no mass."""
    make(fleet, **ZONE, pools=POOLS)
    return {name: ScriptedAgent(fleet, name).up() for name in ("h1", "h2", "h3")}


def db_only(fleet: Fleet, agents: dict[str, ScriptedAgent], host: str = "h1") -> str:
    """A VM with an address and a disk that was deleted while its host was DOWN; its uuid."""
    instance: str = deploy(fleet, host=host, networks=N1)["instance"]
    agents[host].carry_out(started(fleet, host))
    agents[host].beat(full=True)
    fleet.pass_(DOWN_S + INTERVAL_S, *(a for name, a in agents.items() if name != host))
    assert agents[host].row.state is HostState.DOWN
    assert fleet.delete()["state"] == "SUCCEEDED"
    return instance


def held(fleet: Fleet, **asked: Any) -> list[tuple[Any, ...]]:
    rows = fleet.ask("address_list", **asked)["addresses"]
    return [(row["ip"], row["network"], row["vm"], row["why"]) for row in rows]


# tombstones


def forget(fleet: Fleet, stone: str) -> dict[str, Any]:
    return fleet.ask("tombstone_forget", tombstone=stone, operator="ann", reason="scrapped")


def test_section3_tombstone_forget_gives_back_all_that_it_holds_and_nothing_else(
    fleet: Fleet, agents: dict[str, ScriptedAgent]
) -> None:
    instance = db_only(fleet, agents)
    before = fleet.stone()
    assert fleet.rows(Volume, instance=instance)
    shown = forget(fleet, before.uuid)
    assert (shown["state"], shown["holds"]) == ("OPEN", [])
    after = fleet.stone()
    assert (after.state, after.holds, after.generation) == (OPEN, (), before.generation)
    for kind in (Address, Mac, Volume):
        assert fleet.rows(kind, instance=instance) == []
    (event,) = fleet.events("tombstone.released")
    assert (event.object, event.source) == (instance, "ann")
    assert event.text.endswith("gives back mac, address, disk: scrapped")


def test_section3_tombstone_one_that_is_forgotten_still_reaps(
    fleet: Fleet, agents: dict[str, ScriptedAgent]
) -> None:
    db_only(fleet, agents)
    forget(fleet, fleet.stone().uuid)
    agents["h1"].restart().hello()
    (cast,) = [c for c in fleet.publish() if c.method == "terminate_instance"]
    agents["h1"].carry_out(cast.command)
    assert fleet.stone().state is CLOSED


def test_section3_tombstone_one_that_is_forgotten_holds_again_what_a_running_guest_uses(
    fleet: Fleet, agents: dict[str, ScriptedAgent]
) -> None:
    instance = db_only(fleet, agents)
    (address,) = fleet.rows(Address, instance=instance)
    forget(fleet, fleet.stone().uuid)
    agents["h1"].restart().hello()
    agents["h1"].beat(full=True)
    assert set(fleet.stone().holds) == {"mac", "address"}
    assert fleet.one(Address, ip=address.ip).instance == instance


def test_forgetting_a_tombstone_once_more_changes_nothing(
    fleet: Fleet, agents: dict[str, ScriptedAgent]
) -> None:
    db_only(fleet, agents)
    stone = fleet.stone().uuid
    forget(fleet, stone)
    before = fleet.stone()
    assert forget(fleet, stone)["holds"] == []
    assert fleet.stone() == before


def test_a_tombstone_that_is_not_there_is_not_found_and_forgetting_needs_a_reason(
    fleet: Fleet, agents: dict[str, ScriptedAgent]
) -> None:
    nobody = str(uuid.uuid4())
    for method, more in (("tombstone_show", {}), ("tombstone_forget", {"reason": "x"})):
        with pytest.raises(NotFound, match=nobody):
            fleet.ask(method, tombstone=nobody, **more)
    with pytest.raises(BadRequest, match="reason"):
        fleet.ask("tombstone_forget", tombstone=nobody)
    with pytest.raises(BadRequest, match="tombstone"):
        fleet.ask("tombstone_show", tombstone="web-1")


def test_tombstone_show_tells_what_it_waits_for_and_what_is_kept(
    fleet: Fleet, agents: dict[str, ScriptedAgent]
) -> None:
    instance = db_only(fleet, agents)
    (address,) = fleet.rows(Address, instance=instance)
    shown = fleet.ask("tombstone_show", tombstone=fleet.stone().uuid.upper())
    assert (shown["host"], shown["host_state"], shown["tries"]) == ("h1", "DOWN", 0)
    assert shown["quarantined"] == [address.mac, f"{address.ip} in n1"]
    forget(fleet, shown["uuid"])
    assert fleet.ask("tombstone_show", tombstone=shown["uuid"])["quarantined"] == []


def test_doctor_does_not_warn_of_a_tombstone_that_holds_nothing(
    fleet: Fleet, agents: dict[str, ScriptedAgent]
) -> None:
    db_only(fleet, agents)

    def level() -> str:
        found = {f["code"]: f for f in fleet.ask("doctor")["findings"]}
        return str(found["TOMBSTONE_OPEN"]["level"])

    assert level() == "WARNING"
    forget(fleet, fleet.stone().uuid)
    assert level() == "INFO"


# addresses


def test_addresses_are_in_use_reserved_or_quarantined_by_a_tombstone(
    fleet: Fleet, agents: dict[str, ScriptedAgent]
) -> None:
    db_only(fleet, agents)
    stone = fleet.stone()
    deploy(fleet, "web-2", host="h2", networks=[{"network": "n1", "address": "10.1.0.77"}])
    agents["h2"].carry_out(started(fleet, "h2"))
    waiting = [{"network": "n1", "address": "10.1.0.78"}]
    deploy(fleet, "web-3", networks=waiting, start=False)
    found = {vm: (ip, network, why) for ip, network, vm, why in held(fleet)}
    assert found["web-2"] == ("10.1.0.77", "n1", "in use")
    assert found["web-3"] == ("10.1.0.78", "n1", "reserved")
    assert found["web-1"][1:] == ("n1", f"quarantined by tombstone {stone.uuid} on h1")
    assert [row[2] for row in held(fleet, vm="web-2")] == ["web-2"]
    assert [row[2] for row in held(fleet, vm=stone.instance)] == ["web-1"]


def test_a_mac_without_an_address_is_listed_but_not_of_a_network(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    vm = fleet.deploy(h1)
    make(fleet, zones=ZONE["zones"], networks=ZONE["networks"])
    (row,) = fleet.ask("address_list")["addresses"]
    assert (row["ip"], row["mac"], row["network"]) == (None, vm.mac, None)
    assert (row["instance"], row["vm"], row["why"]) == (vm.uuid, "web-1", "in use")
    assert fleet.ask("address_list", network="n1")["addresses"] == []


def test_a_mac_that_an_orphan_shows_says_so(fleet: Fleet, h1: ScriptedAgent) -> None:
    h1.ours(str(uuid.uuid4()), name="lost", macs=("0a:4d:75:00:00:01",))
    h1.beat(full=True)
    (row,) = fleet.ask("address_list")["addresses"]
    assert (row["mac"], row["vm"], row["why"]) == (
        "0a:4d:75:00:00:01",
        None,
        "seen on an orphan on h1",
    )


def test_addresses_of_what_is_not_there_are_not_found(fleet: Fleet, h1: ScriptedAgent) -> None:
    for asked in ({"network": "n9"}, {"vm": "web-9"}):
        with pytest.raises(NotFound):
            fleet.ask("address_list", **asked)


# services


def test_services_are_the_managers_by_what_they_hear_and_the_agents(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.tick()
    manager, agent = fleet.ask("service_list")["services"]
    assert (manager["service"], manager["id"], manager["host"]) == ("manager", "m-1", "manager-1")
    assert (manager["state"], manager["blind"]) == ("HEARS", False)
    assert manager["heard_since"] < manager["heard_until"]
    assert (agent["service"], agent["host"], agent["version"]) == ("agent", "h1", "1")
    assert (agent["state"], agent["id"]) == ("UP", h1.run)
    fleet.hearing = False
    fleet.pass_(DOWN_S)
    manager, agent = fleet.ask("service_list")["services"]
    assert (manager["state"], manager["blind"]) == ("BLIND", True)

"""`muster freeze`: nothing is destroyed by itself until `muster unfreeze` (design, section 6)."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from common import messages as m
from common.errors import BadRequest
from common.states import PowerState, TombstoneState, VmState
from manager.store.commands import CommandRow
from tests.functional.fleet import INTERVAL_S, Fleet, ScriptedAgent, db_only, fall_silent

OPEN, CLOSED = TombstoneState.OPEN, TombstoneState.CLOSED


def freeze(fleet: Fleet) -> None:
    fleet.ask("freeze", operator="ann", reason="something reaps what it should not")


def unfreeze(fleet: Fleet) -> None:
    fleet.ask("unfreeze", operator="ann", reason="found it")


def terminates(fleet: Fleet, host: str = "h1") -> list[m.Command]:
    casts = [c for c in fleet.publish() if c.host == host]
    return [c.command for c in casts if c.method == "terminate_instance"]


def test_a_freeze_is_told_by_every_listing_and_by_doctor_until_it_ends(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    listings = ("vm_list", "host_list", "job_list", "alien_list", "tombstone_list")
    freeze(fleet)
    told = [fleet.ask(listing)["notices"][0] for listing in listings]
    told += fleet.ask("model_list", kind="network")["notices"]
    assert len(set(told)) == 1
    assert told[0].startswith("FROZEN since 2026-11-20T12:00:")
    assert "by ann: something reaps what it should not" in told[0]
    finding = next(f for f in fleet.ask("doctor")["findings"] if f["code"] == "FROZEN")
    assert (finding["level"], finding["remedy"]) == ("WARNING", "muster unfreeze")
    unfreeze(fleet)
    assert not any("FROZEN" in n for listing in listings for n in fleet.ask(listing)["notices"])
    assert "FROZEN" not in {f["code"] for f in fleet.ask("doctor")["findings"]}


def test_a_freeze_needs_a_reason_and_the_first_one_stays(fleet: Fleet) -> None:
    with pytest.raises(BadRequest, match="reason"):
        fleet.ask("freeze")
    freeze(fleet)
    again = fleet.ask("freeze", operator="bob", reason="me too")
    assert (again["frozen"], again["operator"]) == (True, "ann")
    assert len(fleet.events("fleet.frozen")) == 1
    unfreeze(fleet)
    unfreeze(fleet)
    (event,) = fleet.events("fleet.unfrozen")
    assert (event.source, event.text) == ("ann", "found it")


def test_a_frozen_fleet_does_not_reap_at_hello_nor_at_a_sighting_nor_by_the_clock(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    db_only(fleet, h1, others)
    freeze(fleet)
    h1.restart().hello()
    h1.beat(full=True)
    fleet.pass_(3 * INTERVAL_S, h1, *others)
    assert terminates(fleet) == []
    assert h1.terminates() == []
    assert fleet.stone().state is OPEN
    unfreeze(fleet)
    fleet.tick()
    (command,) = terminates(fleet)
    h1.carry_out(command)
    assert fleet.stone().state is CLOSED


def test_a_terminate_that_was_issued_before_the_freeze_is_not_sent_any_more(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    """Issued for a delete whose job has ended since: nobody waits for it but the tombstone."""
    fleet.deploy(h1)
    h1.beat(full=True)
    fleet.delete()
    assert len(terminates(fleet)) == 1
    fall_silent(fleet, h1, others)
    fleet.tick()
    assert fleet.stone().state is OPEN
    fleet.wire.take()
    freeze(fleet)
    h1.restart().hello()
    fleet.pass_(3 * INTERVAL_S, h1, *others)
    assert terminates(fleet) == []
    unfreeze(fleet)
    fleet.pass_(INTERVAL_S, h1, *others)
    assert terminates(fleet)
    assert len(fleet.rows(CommandRow, kind="terminate_instance")) == 1


def test_a_frozen_fleet_still_deletes_by_its_agents(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1)
    freeze(fleet)
    job = fleet.delete()
    (command,) = terminates(fleet)
    h1.fail(command)
    fleet.pass_(INTERVAL_S, h1)
    (again,) = terminates(fleet)
    h1.carry_out(again)
    assert fleet.shown(job)["state"] == "SUCCEEDED"


def test_section3_row_9_waits_and_says_frozen(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    fleet.deploy(h1)
    fall_silent(fleet, h1, others)
    freeze(fleet)
    (foreseen,) = fleet.delete(dry_run=True)["decisions"]
    assert (foreseen["row"], foreseen["decision"]) == (9, "FROZEN")
    job = fleet.delete()
    assert job["state"] == "RUNNING"
    assert job["waiting_for"].startswith("FROZEN since")
    assert "h1 is DOWN" in job["waiting_for"]
    assert fleet.stones() == []
    unfreeze(fleet)
    fleet.pass_(INTERVAL_S, *others)
    assert fleet.shown(job)["state"] == "SUCCEEDED"
    assert fleet.stone().state is OPEN


def test_section3_row_6_waits_and_says_frozen(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    fleet.deploy(h1)
    fall_silent(fleet, h1, others)
    fleet.ask("host_set_down", host="h1", reason="it burns")
    fleet.ask("host_delete", host="h1", reason="it burnt")
    freeze(fleet)
    assert fleet.delete()["waiting_for"].startswith("FROZEN since")
    assert fleet.delete(force=True, reason="ashes")["state"] == "SUCCEEDED"


def test_a_delete_that_a_freeze_holds_up_does_not_time_out(
    fleet_of: Callable[..., Fleet],
) -> None:
    fleet = fleet_of(delete_timeout=60.0)
    h1, *others = (ScriptedAgent(fleet, f"h{n}").up() for n in (1, 2, 3))
    fleet.deploy(h1)
    fall_silent(fleet, h1, others)
    freeze(fleet)
    job = fleet.delete()
    fleet.pass_(300.0, *others, step=20.0)
    assert fleet.shown(job)["state"] == "RUNNING"
    assert fleet.vm().vm_state is VmState.ACTIVE
    unfreeze(fleet)
    fleet.pass_(INTERVAL_S, *others)
    assert fleet.shown(job)["state"] == "SUCCEEDED"


def test_force_with_a_reason_takes_row_9_in_a_frozen_fleet(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    fleet.deploy(h1)
    fall_silent(fleet, h1, others)
    freeze(fleet)
    waiting = fleet.delete()
    forced = fleet.delete(force=True, reason="I have looked")
    assert (forced["uuid"], forced["state"]) == (waiting["uuid"], "SUCCEEDED")
    assert fleet.stone().state is OPEN


def test_a_deletion_that_is_owed_is_not_ended_by_a_frozen_fleet(
    fleet_of: Callable[..., Fleet],
) -> None:
    fleet = fleet_of(delete_timeout=60.0)
    h1, *others = (ScriptedAgent(fleet, f"h{n}").up() for n in (1, 2, 3))
    fleet.deploy(h1)
    fleet.delete()
    fleet.pass_(70.0, h1, *others)
    assert fleet.vm().deletion_owed
    freeze(fleet)
    fall_silent(fleet, h1, others)
    fleet.pass_(2 * INTERVAL_S, *others)
    assert fleet.vm().deletion_owed
    unfreeze(fleet)
    fleet.pass_(INTERVAL_S, *others)
    assert fleet.vm().vm_state is VmState.DELETED


@pytest.mark.parametrize("whole", [True, False])
def test_a_frozen_fleet_stops_nothing_again(fleet_of: Callable[..., Fleet], whole: bool) -> None:
    fleet = fleet_of(on_unexpected_running="stop")
    h1 = ScriptedAgent(fleet).up()
    vm = fleet.deploy(h1)
    h1.power(vm.uuid, PowerState.SHUTOFF)
    h1.beat()
    assert fleet.vm().vm_state is VmState.SHUTOFF
    freeze(fleet)
    h1.power(vm.uuid, PowerState.RUNNING)
    h1.beat(full=whole)
    for _ in itertools.repeat(None, 3):
        h1.beat(full=whole)
    assert h1.commands("stop_vm") == []
    assert fleet.events("instance.stop_again") == []
    assert (fleet.vm().vm_state, fleet.vm().power_state) == (VmState.SHUTOFF, PowerState.RUNNING)
    fleet.wire.take()
    unfreeze(fleet)
    assert "report_inventory" in {c.method for c in fleet.wire.take()}
    h1.beat(full=True)
    assert len(h1.commands("stop_vm")) == 1

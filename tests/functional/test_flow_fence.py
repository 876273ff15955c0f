"""What operators say of hosts: fenced, in maintenance, or gone for good (sections 2 and 3)."""

from __future__ import annotations

import pytest

from common import messages as m
from common.errors import BadRequest, NotFound, NoValidHost, WrongState
from common.states import HostState, PowerState, TombstoneState, VmState
from manager.store.addresses import Mac
from manager.store.hosts import Host
from manager.store.sightings import Sighting
from tests.functional.fleet import DOWN_S, INTERVAL_S, Fleet, ScriptedAgent, db_only, fall_silent

OPEN, CLOSED = TombstoneState.OPEN, TombstoneState.CLOSED


def fence(fleet: Fleet, host: str = "h1", **more: object) -> dict[str, object]:
    return fleet.ask("host_fence", host=host, reason="its power is cut", operator="ann", **more)


def give_to_another(fleet: Fleet, mac: str) -> None:
    """As a create of another VM would, which found it free."""
    assert fleet.rows(Mac, mac=mac) == []
    other = Mac(mac=mac, instance="another", since=fleet.clock.now())
    fleet.store.run(lambda tx: tx.insert(other))


# section 2, row 1


def test_section2_row_1_a_fenced_host_is_down_and_no_heartbeat_clears_it(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    assert fence(fleet)["host"]["state"] == "DOWN"  # type: ignore[index]
    h1.hello()
    fleet.pass_(3 * INTERVAL_S, h1)
    assert (h1.row.state, h1.row.fenced) == (HostState.DOWN, True)
    assert "fenced by an operator" in h1.row.reason
    fleet.ask("host_unfence", host="h1")
    assert (h1.row.state, h1.row.fenced) == (HostState.UP, False)


def test_fencing_ends_the_session_of_its_agent(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.ask("host_set_down", host="h1", reason="smoke")
    h1.hello()
    assert h1.row.session_open
    fence(fleet)
    assert not h1.row.session_open


def test_fencing_needs_a_reason_and_is_told_once(fleet: Fleet, h1: ScriptedAgent) -> None:
    with pytest.raises(BadRequest, match="reason"):
        fleet.ask("host_fence", host="h1")
    fence(fleet)
    fence(fleet)
    (event,) = fleet.events("host.fenced")
    assert (event.object, event.source, event.text) == ("h1", "ann", "its power is cut")


def test_a_fenced_host_ends_the_wait_of_deletes(fleet: Fleet, h1: ScriptedAgent) -> None:
    """As a host that was set down: the doubt is about silence, and the operator has spoken."""
    fleet.deploy(h1)
    fleet.hearing = False
    fleet.pass_(2 * DOWN_S)
    job = fleet.delete()
    assert "blind" in job["waiting_for"]
    fence(fleet)
    fleet.tick()
    assert fleet.shown(job)["state"] == "SUCCEEDED"


# section 3, quarantine


def test_section3_quarantine_fencing_gives_back_identities_and_keeps_disks(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    vm = db_only(fleet, h1, others)
    assert fleet.one(Mac, mac=vm.mac).instance == vm.uuid
    fence(fleet)
    stone = fleet.stone()
    assert (stone.state, stone.holds) == (OPEN, ("disk",))
    assert fleet.rows(Mac, mac=vm.mac) == []
    (event,) = fleet.events("tombstone.released")
    assert event.object == vm.uuid


def test_section3_quarantine_a_vm_that_is_deleted_on_a_fenced_host_holds_its_disk_alone(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    vm = fleet.deploy(h1)
    fall_silent(fleet, h1, others)
    fence(fleet)
    assert fleet.delete()["state"] == "SUCCEEDED"
    assert fleet.stone().holds == ("disk",)
    assert fleet.rows(Mac, mac=vm.mac) == []


def test_section3_quarantine_a_host_that_was_heard_just_before_its_fence_has_time_to_object(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    vm = fleet.deploy(h1)
    fence(fleet)
    assert fleet.delete()["state"] == "SUCCEEDED"
    assert set(fleet.stone().holds) == {"mac", "address", "disk"}
    fleet.pass_(DOWN_S - INTERVAL_S, *others)
    assert fleet.one(Mac, mac=vm.mac).instance == vm.uuid
    # It has said nothing: it is the right one.
    fleet.pass_(2 * INTERVAL_S, *others)
    assert (fleet.stone().state, fleet.stone().holds) == (OPEN, ("disk",))
    assert fleet.rows(Mac, mac=vm.mac) == []
    assert h1.row.fence_due is None


def test_section3_quarantine_a_fenced_host_that_objects_in_time_keeps_its_addresses(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    """Fenced by mistake: its agent asks for a session, as its next report is answered."""
    vm = fleet.deploy(h1)
    fence(fleet)
    assert fleet.delete(force=True, reason="it burns")["state"] == "SUCCEEDED"
    h1.hello()
    fleet.pass_(3 * DOWN_S, h1, *others)
    assert set(fleet.stone().holds) == {"mac", "address", "disk"}
    assert fleet.one(Mac, mac=vm.mac).instance == vm.uuid


def test_a_fence_is_taken_back_before_it_counts(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    vm = fleet.deploy(h1)
    fence(fleet)
    assert fleet.delete()["state"] == "SUCCEEDED"
    fleet.ask("host_unfence", host="h1")
    fleet.pass_(2 * DOWN_S, *others)
    assert set(fleet.stone().holds) == {"mac", "address", "disk"}
    assert fleet.one(Mac, mac=vm.mac).instance == vm.uuid


def test_section3_quarantine_an_agent_that_speaks_shows_that_a_fenced_host_may_run_guests(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    vm = fleet.deploy(h1)
    fence(fleet)
    h1.hello()
    assert fleet.delete()["state"] == "SUCCEEDED"
    assert set(fleet.stone().holds) == {"mac", "address", "disk"}
    assert fleet.one(Mac, mac=vm.mac).instance == vm.uuid


def test_section3_tombstone_a_fenced_host_reaps_all_the_same(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    vm = db_only(fleet, h1, others)
    fence(fleet)
    h1.power(vm.uuid, PowerState.SHUTOFF)
    h1.restart().hello()
    (cast,) = [c for c in fleet.publish() if c.host == "h1"]
    h1.carry_out(cast.command)
    assert (fleet.stone().state, fleet.stone().holds) == (CLOSED, ())
    assert fleet.events("ADDRESS_CONFLICT") == []


def test_section3_quarantine_unfencing_holds_again_what_is_still_free(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    vm = db_only(fleet, h1, others)
    fence(fleet)
    fleet.ask("host_unfence", host="h1", reason="it was the wrong rack")
    assert set(fleet.stone().holds) == {"mac", "address", "disk"}
    assert fleet.one(Mac, mac=vm.mac).instance == vm.uuid


def test_section3_quarantine_unfencing_does_not_take_back_what_was_given_to_another(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    vm = db_only(fleet, h1, others)
    fence(fleet)
    give_to_another(fleet, vm.mac)
    fleet.ask("host_unfence", host="h1")
    assert fleet.one(Mac, mac=vm.mac).instance == "another"
    assert fleet.stone().holds == ("address", "disk")
    assert fleet.events("ADDRESS_CONFLICT") == []
    h1.restart().hello()
    h1.beat(full=True)
    h1.beat(full=True)
    (event,) = fleet.events("ADDRESS_CONFLICT")
    assert event.data == {"address": vm.mac, "owner": "another"}


def test_section3_quarantine_a_doomed_guest_that_runs_holds_its_identity_again(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    vm = db_only(fleet, h1, others)
    fence(fleet)
    h1.restart().hello()
    h1.beat(full=True)
    assert set(fleet.stone().holds) == {"mac", "address", "disk"}
    assert fleet.one(Mac, mac=vm.mac).instance == vm.uuid


def test_section3_quarantine_a_doomed_guest_that_is_off_uses_no_address(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    vm = db_only(fleet, h1, others)
    fence(fleet)
    give_to_another(fleet, vm.mac)
    h1.power(vm.uuid, PowerState.SHUTOFF)
    h1.restart().hello()
    h1.beat(full=True)
    assert fleet.stone().holds == ("disk",)
    assert fleet.events("ADDRESS_CONFLICT") == []


def test_a_dry_run_of_fence_tells_of_vms_and_tombstones_and_changes_nothing(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    fleet.deploy(h1, "web-2")
    db_only(fleet, h1, others)
    before = fleet.everything()
    decisions = fence(fleet, dry_run=True)["decisions"]
    told = [(d["name"], d["row"], d["decision"]) for d in decisions]  # type: ignore[attr-defined]
    assert told == [("web-2", 9, "DB-only"), ("web-1", 9, "given back")]
    assert fleet.everything() == before
    assert not h1.row.fenced


def test_a_dry_run_of_fence_says_that_the_fleet_is_frozen(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1)
    fleet.ask("freeze", operator="ann", reason="counting")
    (decision,) = fence(fleet, dry_run=True)["decisions"]  # type: ignore[misc,attr-defined]
    assert (decision["row"], decision["decision"]) == (9, "FROZEN")
    assert "by ann: counting" in decision["reason"]


@pytest.mark.parametrize(
    ("others_word", "speaks", "decision"),
    [(False, True, "remote"), (False, False, "as its state"), (True, True, "DB-only")],
)
def test_a_dry_run_of_unfence_judges_by_the_state_that_comes(
    fleet: Fleet, h1: ScriptedAgent, *, others_word: bool, speaks: bool, decision: str
) -> None:
    fleet.deploy(h1)
    fence(fleet)
    if others_word:
        fleet.ask("host_set_down", host="h1", reason="smoke")
    if speaks:
        h1.restart().hello()
    (found,) = fleet.ask("host_unfence", host="h1", dry_run=True)["decisions"]
    assert found["decision"] == decision


# maintenance


@pytest.mark.parametrize("verb", ["host_enable", "host_disable", "host_maintenance"])
def test_a_dry_run_of_a_switch_changes_nothing(fleet: Fleet, h1: ScriptedAgent, verb: str) -> None:
    fleet.put(h1.row, enabled=verb != "host_enable")
    more = {"on": True} if verb == "host_maintenance" else {}
    before = fleet.everything()
    assert fleet.ask(verb, host="h1", dry_run=True, **more)["decisions"] == []
    assert fleet.everything() == before


def test_a_host_in_maintenance_takes_no_new_vms_and_keeps_those_it_has(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    fleet.ask("host_maintenance", host="h1", on=True, reason="new fans")
    with pytest.raises(NoValidHost, match="h1: is in maintenance"):
        fleet.create("web-2")
    assert h1.row.state is HostState.UP
    assert fleet.ask("vm_stop", vm="web-1")["state"] == "RUNNING"
    assert "HOST_MAINTENANCE" in {f["code"] for f in fleet.ask("doctor")["findings"]}
    fleet.ask("host_maintenance", host="h1", on=False)
    assert fleet.create("web-2")["state"] == "RUNNING"


def test_the_silence_of_a_host_in_maintenance_is_no_error(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    fleet.ask("host_maintenance", host="h1", on=True)
    fall_silent(fleet, h1, others)
    levels = [f["level"] for f in fleet.ask("doctor")["findings"] if f["code"] == "HOST_DOWN"]
    assert levels == ["INFO"]


# gone for good


def remove(fleet: Fleet, **more: object) -> dict[str, object]:
    return fleet.ask("host_delete", host="h1", reason="sold", operator="ann", **more)


def test_a_host_is_not_deleted_while_its_agent_has_a_session(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.ask("host_set_down", host="h1", reason="smoke")
    h1.hello()
    with pytest.raises(WrongState, match="session"):
        remove(fleet)
    assert h1.row.name == "h1"


def test_a_host_that_was_set_down_and_then_died_can_be_deleted_though_its_session_is_open(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    fleet.ask("host_set_down", host="h1", reason="smoke")
    h1.hello()
    fleet.pass_(DOWN_S / 2, *others)
    with pytest.raises(WrongState, match="session"):
        remove(fleet)
    fleet.pass_(DOWN_S, *others)
    assert h1.row.session_open
    remove(fleet)
    assert fleet.rows(Host, name="h1") == []
    h1.restart().hello()
    assert (h1.row.session_open, h1.row.forced_down) == (True, False)


def test_a_host_with_vms_is_not_deleted_unless_it_is_fenced_or_set_down(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    fleet.deploy(h1)
    fall_silent(fleet, h1, others)
    with pytest.raises(WrongState, match="has 1 VM: web-1"):
        remove(fleet)
    (decision,) = remove(fleet, dry_run=True)["decisions"]  # type: ignore[misc,attr-defined]
    assert decision["decision"] == "refused"
    fleet.ask("host_set_down", host="h1", reason="it burns")
    (decision,) = remove(fleet, dry_run=True)["decisions"]  # type: ignore[misc,attr-defined]
    assert (decision["row"], decision["decision"]) == (6, "DB-only")
    assert h1.row.forced_down
    remove(fleet)
    assert fleet.rows(Host, name="h1") == []
    (event,) = fleet.events("host.deleted")
    assert (event.object, event.source, event.text) == ("h1", "ann", "sold")
    with pytest.raises(NotFound):
        remove(fleet)


def test_section3_row_6_a_vm_whose_host_was_deleted_is_db_only_and_reaped_at_its_return(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    fleet.deploy(h1)
    h1.beat(full=True)
    fall_silent(fleet, h1, others)
    fleet.ask("host_set_down", host="h1", reason="it burns")
    remove(fleet)
    assert fleet.vm().host == "h1"
    assert fleet.delete()["state"] == "SUCCEEDED"
    assert "record of host h1 is gone" in fleet.stone().reason
    h1.restart().hello()
    (cast,) = [c for c in fleet.publish() if c.host == "h1"]
    h1.carry_out(cast.command)
    assert fleet.stone().state is CLOSED


def test_section3_tombstone_has_no_foreign_key_to_its_host(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    db_only(fleet, h1, others)
    before = fleet.stone()
    remove(fleet)
    assert fleet.stone() == before
    assert fleet.one(Mac, mac=before.mac).instance == before.instance


def test_a_deleted_host_that_returns_without_its_journal_is_believed(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    """Its new sessions are above those of before, or all that it shows would pass for old."""
    vm = fleet.deploy(h1)
    last = h1.row.session
    h1.beat(full=True)
    fall_silent(fleet, h1, others)
    fleet.ask("host_set_down", host="h1", reason="it burns")
    remove(fleet)
    h1.known_session = 0
    h1.restart().up()
    assert h1.row.session > last
    assert h1.row.vcpus_claimed == vm.vcpus
    h1.power(vm.uuid, PowerState.SHUTOFF)
    h1.beat()
    assert fleet.vm().vm_state is VmState.SHUTOFF


def test_strangers_on_a_deleted_host_are_not_listed_any_more(
    fleet: Fleet, h1: ScriptedAgent, others: list[ScriptedAgent]
) -> None:
    vm = fleet.deploy(h1)
    h1.guest(name="theirs")
    h1.beat(full=True)
    fall_silent(fleet, h1, others)
    fleet.ask("host_set_down", host="h1", reason="it burns")
    assert len(fleet.ask("alien_list")["aliens"]) == 1
    remove(fleet)
    assert fleet.ask("alien_list")["aliens"] == []
    assert [s.instance for s in fleet.rows(Sighting, host="h1")] == [vm.uuid]


def test_a_start_of_unknown_outcome_is_tried_elsewhere_once_its_host_is_fenced(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    """Section 8, step 6, in the hands of an operator."""
    job = fleet.create()
    (cast,) = fleet.publish()
    h2 = ScriptedAgent(fleet, "h2").up()
    others = [ScriptedAgent(fleet, f"other-{n}").up() for n in range(2)]
    for other in others:
        fleet.ask("host_disable", host=other.host)
    fleet.pass_(DOWN_S / 2, h2, *others)
    fence(fleet)
    fleet.pass_(2 * fleet.cfg.manager.command_timeout, h2, *others)
    starts = [c for c in fleet.publish() if c.method == "start_vm" and c.host == "h2"]
    assert starts[-1].command.instance == cast.command.instance
    h2.carry_out(starts[-1].command)
    assert fleet.shown(job)["state"] == "SUCCEEDED"
    assert (fleet.vm().host, fleet.vm().vm_state) == ("h2", VmState.ACTIVE)
    assert {c.kind for c in h1.commands()} == {m.CommandKind.START_VM}

"""What hypervisors show: order, absence, strangers, orphans; and what it does to a VM's state."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import messages as m
from common.errors import BadMessage, DatabaseUnavailable
from common.ownership import Mark
from common.states import GuestKind, HostState, PowerState, TaskState, TombstoneState, VmState
from manager.flows import reports
from manager.store.addresses import Mac
from manager.store.instances import Instance
from manager.store.sightings import Sighting
from tests.functional.fleet import FLEET, INTERVAL_S, Fleet, ScriptedAgent

P = PowerState


# order: old never overwrites new


def test_an_older_heartbeat_that_arrives_later_changes_nothing(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    vm = fleet.deploy(h1)
    old = h1.heartbeat(full=True)
    h1.power(vm.uuid, P.SHUTOFF)
    h1.beat(full=True)
    h1.send(old)
    assert (fleet.vm().power_state, fleet.vm().vm_state) == (P.SHUTOFF, VmState.SHUTOFF)


def test_an_older_heartbeat_is_older_even_if_its_guest_is_not_remembered(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    vm = fleet.deploy(h1)
    old = h1.heartbeat(full=True)
    h1.power(vm.uuid, P.SHUTOFF)
    h1.beat(full=True)
    fleet.store.run(lambda tx: tx.delete_where(Sighting))
    h1.send(old)
    assert (fleet.vm().power_state, fleet.vm().vm_state) == (P.SHUTOFF, VmState.SHUTOFF)


def test_a_result_that_overtakes_a_heartbeat_wins_by_its_pair(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    looked_before = h1.heartbeat(full=True)
    fleet.ask("vm_stop", vm="web-1")
    (stop,) = fleet.publish()
    h1.carry_out(stop.command)
    h1.send(looked_before)
    assert (fleet.vm().power_state, fleet.vm().vm_state) == (P.SHUTOFF, VmState.SHUTOFF)


def test_a_result_that_is_sent_again_carries_its_old_pair(fleet: Fleet, h1: ScriptedAgent) -> None:
    vm = fleet.deploy(h1)
    fleet.ask("vm_stop", vm="web-1")
    (stop,) = fleet.publish()
    result = h1.carry_out(stop.command)
    h1.power(vm.uuid, P.RUNNING)
    h1.beat()
    h1.say(results=(result,))
    assert (fleet.vm().power_state, fleet.vm().vm_state) == (P.RUNNING, VmState.ACTIVE)


def test_a_later_session_is_newer_whatever_its_numbers(fleet: Fleet, h1: ScriptedAgent) -> None:
    vm = fleet.deploy(h1)
    h1.beat(full=True, seq=1_000_000)
    h1.hello()
    h1.power(vm.uuid, P.SHUTOFF)
    h1.beat(full=True, seq=1)
    assert fleet.vm().power_state is P.SHUTOFF


def test_the_same_pair_twice_is_not_newer(fleet: Fleet, h1: ScriptedAgent) -> None:
    vm = fleet.deploy(h1)
    seen = h1.beat(full=True)
    h1.power(vm.uuid, P.CRASHED)
    h1.send(h1.heartbeat(full=True, seq=seen.seq))
    assert fleet.vm().power_state is P.RUNNING


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_whatever_the_order_of_arrival_the_newest_look_is_what_is_held(
    fleet: Fleet, h1: ScriptedAgent, data: st.DataObject
) -> None:
    for vm in fleet.rows(Instance):
        fleet.put(vm, vm_state=VmState.DELETED)
    name = f"web-{len(fleet.rows(Instance))}"
    vm = fleet.deploy(h1, name)
    looks = []
    for state in data.draw(st.lists(st.sampled_from([P.RUNNING, P.SHUTOFF, P.PAUSED]), min_size=2)):
        h1.power(vm.uuid, state)
        looks.append(h1.heartbeat(full=data.draw(st.booleans())))
    for heartbeat in data.draw(st.permutations(looks)):
        h1.send(heartbeat)
    assert fleet.vm(name).power_state is looks[-1].inventory.guests[-1].power_state


def test_an_older_full_report_does_not_take_away_who_came_after_it(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    before = h1.heartbeat(full=True)
    h1.guest(name="byhand")
    h1.beat()
    h1.send(before)
    assert [s.name for s in h1.sightings()] == ["byhand"]


# deltas and digests


def test_a_delta_changes_only_whom_it_names(fleet: Fleet, h1: ScriptedAgent) -> None:
    one, two = fleet.deploy(h1, "one"), fleet.deploy(h1, "two")
    h1.beat(full=True)
    h1.power(one.uuid, P.SHUTOFF)
    told = h1.beat()
    assert [g.name for g in told.inventory.guests] == ["one"]
    assert (fleet.vm("one").vm_state, fleet.vm("two").vm_state) == (VmState.SHUTOFF, VmState.ACTIVE)
    assert fleet.vm("two").power_seq < fleet.vm("one").power_seq
    assert two.power_state is P.RUNNING


def test_a_lost_delta_shows_in_the_digest_and_the_inventory_is_asked_for(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    vm = fleet.deploy(h1)
    h1.beat(full=True)
    fleet.wire.take()
    h1.power(vm.uuid, P.SHUTOFF)
    h1.send(h1.heartbeat())
    lost = h1.guest(name="byhand")
    h1._told = {u: g.fingerprint() for u, g in h1.guests.items()}
    h1.beat()
    assert [c.host for c in fleet.wire.take("report_inventory")] == ["h1"]
    assert h1.sightings(GuestKind.ALIEN) == []
    h1.beat(full=True)
    assert fleet.wire.take("report_inventory") == []
    assert [s.hypervisor_uuid for s in h1.sightings(GuestKind.ALIEN)] == [lost]


def test_an_agreed_digest_confirms_the_age_of_every_power_state(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    h1.beat(full=True)
    fleet.clock.move(INTERVAL_S)
    assert fleet.ask("vm_list")["vms"][0]["power_age_s"] == INTERVAL_S
    h1.beat()
    assert fleet.ask("vm_list")["vms"][0]["power_age_s"] == 0


def test_a_guest_named_twice_in_one_report_does_not_lose_the_others(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    vm = fleet.deploy(h1)
    h1.power(vm.uuid, P.SHUTOFF)
    twice = h1.guests[h1.guest(name="byhand")]
    inventory = h1.inventory(full=True)
    guests = (twice, twice, *inventory.guests)
    h1.beat(inventory=msgspec.structs.replace(inventory, guests=guests))
    assert fleet.vm().vm_state is VmState.SHUTOFF
    assert [s.name for s in h1.sightings(GuestKind.ALIEN)] == ["byhand"]


# failed and partial listings; missing


@pytest.mark.parametrize("full", [True, False])
def test_section4_row_11_a_partial_listing_changes_nothing_for_whom_it_does_not_name(
    fleet: Fleet, h1: ScriptedAgent, full: bool
) -> None:
    one = fleet.deploy(h1, "one")
    fleet.deploy(h1, "two")
    h1.guest(name="byhand")
    h1.beat(full=True)
    shown = {s.name for s in h1.sightings()}
    fleet.wire.take()
    h1.power(one.uuid, P.SHUTOFF)
    partial = m.Inventory(
        full=full,
        complete=False,
        digest="?",
        guests=(h1.of(one.uuid),),
        errors={"two": "unreadable"},
    )
    for _ in range(6):
        fleet.clock.move(INTERVAL_S)
        h1.beat(inventory=partial)
        fleet.tick()
    assert fleet.vm("one").vm_state is VmState.SHUTOFF
    two = fleet.vm("two")
    assert (two.vm_state, two.power_state, two.missing) == (VmState.ACTIVE, P.RUNNING, False)
    assert {s.name for s in h1.sightings()} == shown
    assert (h1.row.state, h1.row.judged) == (HostState.SUSPECT, "5 driver")
    assert fleet.wire.take("report_inventory") == []


def test_section4_row_11_a_failed_listing_is_no_empty_host(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1)
    h1.beat(full=True)
    sick = m.DriverReport(name="simulated", healthy=False, message="libvirtd is away")
    before = fleet.everything()
    for _ in range(12):
        fleet.clock.move(INTERVAL_S)
        h1.beat(inventory=None, driver=sick)
        fleet.tick()
    assert fleet.everything() == before
    assert h1.row.state is HostState.SUSPECT
    assert "libvirtd is away" in h1.row.reason
    fleet.pass_(INTERVAL_S, h1)
    assert h1.row.state is HostState.UP


def test_section4_row_10_missing_after_two_complete_reports_and_the_grace(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    vm = fleet.deploy(h1)
    h1.beat(full=True)
    guest = h1.lose(vm.uuid)
    seen = []
    for _ in range(5):
        fleet.pass_(INTERVAL_S, h1)
        seen.append(fleet.vm().missing)
    assert seen == [False, False, False, True, True]
    gone = fleet.vm()
    assert (gone.power_state, gone.vm_state) == (P.NOSTATE, VmState.ACTIVE)
    assert len(fleet.events("instance.missing")) == 1
    assert "VM_MISSING" in {f["code"] for f in fleet.ask("doctor")["findings"]}

    h1.guests[guest.hypervisor_uuid] = guest
    h1.beat()
    back = fleet.vm()
    assert (back.missing, back.power_state, back.vm_state) == (False, P.RUNNING, VmState.ACTIVE)
    assert len(fleet.events("instance.found")) == 1


def test_section4_row_10_two_reports_at_once_are_not_the_grace(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    vm = fleet.deploy(h1)
    h1.lose(vm.uuid)
    for _ in range(5):
        h1.beat(full=True)
    assert not fleet.vm().missing


def test_section4_row_10_a_return_in_between_starts_the_count_anew(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    vm = fleet.deploy(h1)
    h1.beat(full=True)
    guest = h1.lose(vm.uuid)
    fleet.pass_(2 * INTERVAL_S, h1)
    h1.guests[guest.hypervisor_uuid] = guest
    fleet.pass_(INTERVAL_S, h1)
    h1.lose(vm.uuid)
    fleet.pass_(3 * INTERVAL_S, h1)
    assert not fleet.vm().missing


# strangers


def stranger_kinds() -> dict[str, Callable[[ScriptedAgent, Instance], str]]:
    def copied(agent: ScriptedAgent, vm: Instance) -> str:
        return agent.guest(name="clone", mark=agent.of(vm.uuid).mark)

    def other_fleet(agent: ScriptedAgent, vm: Instance) -> str:
        uuid_ = agent.guest(name="theirs")
        mark = Mark(fleet="fleet-2", instance=vm.uuid, generation=1, bearer=uuid_)
        return agent.guest(uuid_, name="theirs", mark=mark)

    def template(agent: ScriptedAgent, vm: Instance) -> str:
        uuid_ = agent.guest(name="golden")
        mark = Mark(fleet=FLEET, instance=vm.uuid, generation=1, bearer=uuid_)
        return agent.guest(uuid_, name="golden", mark=mark, template=True)

    def same_name(agent: ScriptedAgent, vm: Instance) -> str:
        return agent.guest(name=vm.name)

    return {"copied": copied, "other": other_fleet, "template": template, "same name": same_name}


STRANGERS = stranger_kinds()


@pytest.mark.parametrize("kind", STRANGERS)
@pytest.mark.parametrize("path", ["full", "delta", "result"])
def test_section5_row_1_an_alien_is_one_on_every_path_and_is_never_asked_for(
    fleet: Fleet, h1: ScriptedAgent, kind: str, path: str
) -> None:
    vm = fleet.deploy(h1)
    h1.beat(full=True)
    job = fleet.ask("vm_stop", vm="web-1")
    (stop,) = fleet.publish()
    uuid_ = STRANGERS[kind](h1, vm)
    if path == "result":
        look = m.Look(session=h1.session or 0, seq=h1.draw(), guest=h1.guests[uuid_])
        h1.succeed(stop.command, look=look)
    else:
        h1.beat(full=path == "full")
        h1.fail(stop.command)
    (seen,) = h1.sightings(GuestKind.ALIEN)
    assert (seen.hypervisor_uuid, seen.instance) == (uuid_, None)
    assert [a["hypervisor_uuid"] for a in fleet.ask("alien_list")["aliens"]] == [uuid_]
    assert len(fleet.events("alien.seen")) == 1
    # Nothing of it reaches the VM, and nothing is cast because of it.
    assert fleet.vm().power_state is P.RUNNING
    assert fleet.shown(job)["state"] in ("SUCCEEDED", "FAILED")
    fleet.pass_(3 * INTERVAL_S, h1)
    assert fleet.publish() == []
    assert len(fleet.events("alien.seen")) == 1


def test_section5_row_1_a_stranger_survives_the_delete_of_the_vm_it_is_a_copy_of(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    vm = fleet.deploy(h1)
    h1.guest(name="clone", mark=h1.of(vm.uuid).mark)
    h1.beat(full=True)
    fleet.delete(force=True, reason="test")
    h1.hello()
    h1.beat(full=True)
    (cast,) = fleet.publish()
    h1.lose(vm.uuid)
    h1.succeed(cast.command)
    fleet.pass_(5 * INTERVAL_S, h1)
    assert fleet.publish() == []
    assert [s.name for s in h1.sightings(GuestKind.ALIEN)] == ["clone"]


def test_an_alien_has_its_first_and_last_time_and_is_told_when_it_goes(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    uuid_ = h1.guest(name="byhand")
    h1.beat()
    first = fleet.clock.now()
    fleet.pass_(3 * INTERVAL_S, h1)
    (alien,) = fleet.ask("alien_list")["aliens"]
    assert (alien["first_seen"], alien["last_seen"]) == (
        f"{first:%Y-%m-%dT%H:%M:%SZ}",
        f"{fleet.clock.now():%Y-%m-%dT%H:%M:%SZ}",
    )
    del h1.guests[uuid_]
    h1.beat()
    assert fleet.ask("alien_list")["aliens"] == []
    assert len(fleet.events("alien.gone")) == 1


def test_aliens_use_the_memory_that_placement_counts(fleet: Fleet, h1: ScriptedAgent) -> None:
    ScriptedAgent(fleet, "h2").up(memory_mib=2048)
    h1.guest(name="byhand", memory_mib=3500)
    h1.beat(full=True, capacity_mib=4096)
    vm = fleet.row(Instance, fleet.create(memory_mib=1024)["instance"])
    assert vm.host == "h2"


# orphans


def test_section1_an_orphan_is_left_alone_and_its_addresses_are_quarantined(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    h1.ours("of-a-lost-record", name="old", macs=("0a:4d:75:00:00:01",))
    h1.beat(full=True)
    fleet.pass_(6 * INTERVAL_S, h1)
    assert [s.name for s in h1.sightings(GuestKind.ORPHAN)] == ["old"]
    assert fleet.publish() == []
    assert fleet.one(Mac, mac="0a:4d:75:00:00:01").instance == "of-a-lost-record"
    assert "ORPHAN" in {f["code"] for f in fleet.ask("doctor")["findings"]}
    assert len(fleet.events("orphan.seen")) == 1


def test_an_orphan_that_uses_anothers_address_is_an_alarm(fleet: Fleet, h1: ScriptedAgent) -> None:
    vm = fleet.deploy(h1)
    h1.ours("of-a-lost-record", macs=(vm.mac,))
    h1.beat()
    assert len(fleet.events("ADDRESS_CONFLICT")) == 1
    assert fleet.one(Mac, mac=vm.mac).instance == vm.uuid


# section 4 on the way to the database


def test_section4_row_2_a_vm_seen_on_two_hosts_is_an_alarm_and_stays_where_it_is(
    fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent
) -> None:
    vm = fleet.deploy(h1)
    h2.ours(vm.uuid, power_state=P.SHUTOFF, name="web-1")
    h2.beat(full=True)
    assert fleet.vm() == fleet.row(Instance, vm.uuid) == vm
    assert len(fleet.events("instance.duplicate")) == 1
    assert {s.host for s in fleet.rows(Sighting, instance=vm.uuid)} == {"h1", "h2"}


def test_section4_row_3_while_a_task_is_under_way_only_the_power_state_changes(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    vm = fleet.deploy(h1)
    fleet.ask("vm_reboot", vm="web-1")
    h1.power(vm.uuid, P.SHUTOFF)
    h1.beat()
    held = fleet.vm()
    assert (held.power_state, held.vm_state, held.task_state) == (
        P.SHUTOFF,
        VmState.ACTIVE,
        TaskState.REBOOTING,
    )


def test_section4_when_a_task_ends_the_table_runs_on_what_is_stored(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    vm = fleet.deploy(h1)
    fleet.ask("vm_reboot", vm="web-1")
    (reboot,) = fleet.publish()
    h1.power(vm.uuid, P.SHUTOFF)
    h1.beat()
    h1.fail(reboot.command)
    held = fleet.vm()
    assert (held.vm_state, held.task_state) == (VmState.SHUTOFF, TaskState.NONE)


def test_section4_row_6_a_guest_that_is_stopped_from_inside_is_followed(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    vm = fleet.deploy(h1)
    h1.power(vm.uuid, P.CRASHED)
    h1.beat()
    assert fleet.vm().vm_state is VmState.SHUTOFF
    assert "crashed" in fleet.events("instance.state")[0].text


def test_section4_row_7_an_unexpected_runner_is_accepted(fleet: Fleet, h1: ScriptedAgent) -> None:
    vm = fleet.deploy(h1)
    for state, expected in ((P.SHUTOFF, VmState.SHUTOFF), (P.RUNNING, VmState.ACTIVE)):
        h1.power(vm.uuid, state)
        h1.beat()
        assert fleet.vm().vm_state is expected
    assert fleet.publish() == []


def test_section4_row_7_or_stopped_again_where_that_is_the_policy(
    fleet_of: Callable[..., Fleet],
) -> None:
    fleet = fleet_of(on_unexpected_running="stop")
    h1 = ScriptedAgent(fleet).up()
    vm = fleet.deploy(h1)
    for state in (P.SHUTOFF, P.RUNNING):
        h1.power(vm.uuid, state)
        h1.beat()
    held = fleet.vm()
    assert (held.vm_state, held.task_state) == (VmState.SHUTOFF, TaskState.POWERING_OFF)
    (stop,) = fleet.publish()
    h1.carry_out(stop.command)
    held = fleet.vm()
    assert (held.vm_state, held.task_state, held.power_state) == (
        VmState.SHUTOFF,
        TaskState.NONE,
        P.SHUTOFF,
    )
    assert "stopped" in fleet.shown({"uuid": stop_job(fleet)})["reason"][0][1]


def test_section4_row_7_a_stop_that_fails_is_not_repeated_without_a_pause(
    fleet_of: Callable[..., Fleet],
) -> None:
    fleet = fleet_of(on_unexpected_running="stop")
    h1 = ScriptedAgent(fleet).up()
    vm = fleet.deploy(h1)
    for state in (P.SHUTOFF, P.RUNNING):
        h1.power(vm.uuid, state)
        h1.beat()
    (stop,) = fleet.publish()
    h1.fail(stop.command, look=h1.look(vm.uuid))
    assert fleet.publish() == []
    assert (fleet.vm().vm_state, fleet.vm().task_state) == (VmState.SHUTOFF, TaskState.NONE)
    h1.beat(full=True)  # it is tried again when it is seen again
    assert [c.method for c in fleet.publish()] == ["stop_vm"]


def stop_job(fleet: Fleet) -> str:
    return next(j["uuid"] for j in fleet.ask("job_list", all=True)["jobs"] if j["kind"] == "stop")


def test_section4_row_8_a_pause_is_followed_once_it_lasts(fleet: Fleet, h1: ScriptedAgent) -> None:
    vm = fleet.deploy(h1)
    h1.power(vm.uuid, P.PAUSED)
    h1.beat()
    fleet.pass_(INTERVAL_S, h1)
    assert (fleet.vm().power_state, fleet.vm().vm_state) == (P.PAUSED, VmState.ACTIVE)
    fleet.pass_(1, h1)
    assert fleet.vm().vm_state is VmState.PAUSED
    h1.power(vm.uuid, P.RUNNING)
    h1.beat()
    assert fleet.vm().vm_state is VmState.ACTIVE


def test_section4_row_8_a_paused_vm_that_is_saved_to_disk_by_hand_is_suspended(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    vm = fleet.deploy(h1)
    h1.power(vm.uuid, P.PAUSED)
    h1.beat()
    fleet.pass_(10 * INTERVAL_S, h1)
    h1.power(vm.uuid, P.SUSPENDED)
    h1.beat()
    assert fleet.vm().vm_state is VmState.PAUSED, "its time begins anew"
    fleet.pass_(INTERVAL_S + 1, h1)
    assert fleet.vm().vm_state is VmState.SUSPENDED


def test_section4_row_8_a_moment_of_pause_is_not(fleet: Fleet, h1: ScriptedAgent) -> None:
    vm = fleet.deploy(h1)
    for _ in range(3):
        h1.power(vm.uuid, P.PAUSED)
        h1.beat()
        fleet.pass_(INTERVAL_S, h1)
        h1.power(vm.uuid, P.RUNNING)
        h1.beat()
    assert fleet.vm().vm_state is VmState.ACTIVE
    assert fleet.events("instance.state") == []


# the door of the streams


@pytest.mark.parametrize(
    ("key", "body"),
    [
        ("heartbeat.h1", b"{"),
        ("heartbeat.h1", b"\x00\x01 not even text \xff"),
        ("heartbeat.h1", b"[" * 100_000),
        ("result.h1", b'{"fleet": "fleet-1", "host": "h1"}'),
        ("gossip.h1", b"{}"),
        ("heartbeat.h1", b" " * (8 * 1024 * 1024 + 1)),
    ],
)
def test_a_report_that_can_not_be_read_is_a_dead_letter_and_the_next_one_counts(
    fleet: Fleet, h1: ScriptedAgent, key: str, body: bytes
) -> None:
    before = fleet.everything()
    with pytest.raises(BadMessage):
        fleet.intake(key, body, "rabbit-user")
    assert fleet.letters() == ["BAD_MESSAGE"]
    assert fleet.everything() == before
    assert "DEAD_LETTER" in {f["code"] for f in fleet.ask("doctor")["findings"]}
    fleet.clock.move(5)
    fleet.intake("heartbeat.h1", m.encode(h1.heartbeat()), None)
    assert h1.row.heard_at == fleet.clock.now()


def test_a_report_that_names_another_host_than_its_key_is_a_forgery(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    with pytest.raises(BadMessage, match="h1"):
        fleet.intake("heartbeat.h2", m.encode(h1.heartbeat()), None)
    with pytest.raises(BadMessage, match="h1"):
        fleet.intake("result.h2", m.encode(h1.answers()), None)


def test_another_fleets_report_is_a_dead_letter(fleet: Fleet, h1: ScriptedAgent) -> None:
    with pytest.raises(BadMessage):
        fleet.intake("heartbeat.h1", m.encode(h1.heartbeat(fleet="fleet-2")), None)
    assert fleet.letters() == ["WRONG_FLEET"]


def test_a_report_that_nobody_thought_of_does_not_stand_in_the_way(
    fleet: Fleet, h1: ScriptedAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr(reports, "heartbeat", broken)
    with pytest.raises(BadMessage, match="nobody thought of this"):
        fleet.intake("heartbeat.h1", m.encode(h1.heartbeat()), None)
    assert fleet.letters() == ["INTERNAL_ERROR"]


def test_a_report_comes_again_when_it_was_the_database_that_failed(
    fleet: Fleet, h1: ScriptedAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise DatabaseUnavailable("it is away", "wait")

    monkeypatch.setattr(reports, "heartbeat", away)
    with pytest.raises(DatabaseUnavailable):
        fleet.intake("heartbeat.h1", m.encode(h1.heartbeat()), None)
    assert fleet.letters() == []


def test_a_guest_with_an_unspeakable_name_is_kept(fleet: Fleet, h1: ScriptedAgent) -> None:
    """PostgreSQL has no NUL in its texts."""
    h1.guest(name="by\x00hand")
    beat = h1.heartbeat(full=True)
    fleet.intake("heartbeat.h1", m.encode(beat), None)
    assert len(h1.sightings(GuestKind.ALIEN)) == 1
    fleet.wire.take()
    h1._told = {u: g.fingerprint() for u, g in h1.guests.items()}
    h1.beat()
    assert fleet.wire.take("report_inventory") == []


def test_answers_through_the_door_end_their_commands(fleet: Fleet, h1: ScriptedAgent) -> None:
    job = fleet.create(host="h1")
    (start,) = fleet.publish()
    answers = h1.answers(results=(h1.result(start.command),))
    fleet.intake("result.h1", m.encode(answers), None)
    assert fleet.shown(job)["state"] == "SUCCEEDED"


def test_a_cast_that_an_agent_refused_is_a_letter_for_the_doctor(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    refusal = m.Refusal(id="x-1", code="WRONG_HOST", message="meant for h2", body='{"a": 1}')
    for _ in range(2):  # repeated until confirmed
        h1.say(refusals=(refusal,))
        assert fleet.wire.take("confirm")[0].kwargs == {"ids": ["x-1"]}
    assert fleet.letters() == ["WRONG_HOST"]


def test_a_mark_from_the_future_is_told_once_and_changes_nothing(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    vm = fleet.deploy(h1)
    before = fleet.vm()
    bearer = h1.of(vm.uuid).hypervisor_uuid
    ahead = Mark(fleet=FLEET, instance=vm.uuid, generation=2**62, bearer=bearer)
    h1.change(vm.uuid, mark=ahead)
    for _ in range(3):
        h1.beat(full=True)
    after = fleet.vm()
    assert (after.vm_state, after.generation, after.host) == (
        before.vm_state,
        before.generation,
        before.host,
    )
    (event,) = fleet.events("GENERATION_AHEAD")
    assert event.object == vm.uuid
    found = [f for f in fleet.ask("doctor")["findings"] if f["code"] == "GENERATION_AHEAD"]
    assert [f["level"] for f in found] == ["WARNING"]
    fleet.delete()
    (cast,) = fleet.publish()
    h1.carry_out(cast.command)
    assert fleet.stone().state is TombstoneState.CLOSED
    h1.beat(full=True)
    assert fleet.events("tombstone.reopened") == []


def test_a_look_from_before_a_guests_end_takes_no_mac_back(fleet: Fleet, h1: ScriptedAgent) -> None:
    """The first sighting of a guest, drawn before its terminate was answered, comes after it."""
    vm = fleet.deploy(h1)
    fleet.store.run(lambda tx: tx.delete_where(Sighting))
    early = h1.heartbeat(inventory=h1.inventory(full=False, guests=(h1.of(vm.uuid),)))
    fleet.delete()
    (cast,) = fleet.publish()
    h1.carry_out(cast.command)
    assert fleet.rows(Mac) == []
    h1.send(early)
    assert fleet.rows(Mac) == []
    assert fleet.rows(Sighting, present=True) == []

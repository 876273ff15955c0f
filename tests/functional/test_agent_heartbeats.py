"""What a host tells of itself, and what it tells when it can not look."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common import messages as m
from tests.functional.agent_rig import INTERVAL_S, Rig, eventually


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


def _beat(rig: Rig, fits: Callable[[m.Heartbeat], bool], since: int = 0) -> m.Heartbeat:
    """The first heartbeat after the first `since` that fits."""
    return eventually(lambda: next((h for h in rig.manager.heartbeats[since:] if fits(h)), None))


def _full(beat: m.Heartbeat) -> bool:
    return beat.inventory is not None and beat.inventory.full


def test_the_first_report_of_a_session_is_full_and_the_next_tell_nothing_new(rig: Rig) -> None:
    stranger = rig.by_hand(power_state="RUNNING", vcpus=2, memory_mib=512)
    rig.up()
    first = _beat(rig, lambda h: h.inventory is not None)
    assert first.session == 1
    assert first.inventory is not None
    assert (first.inventory.full, first.inventory.complete) == (True, True)
    assert [g.hypervisor_uuid for g in first.inventory.guests] == [stranger.uuid]
    assert first.inventory.digest == m.digest(g.fingerprint() for g in first.inventory.guests)
    assert first.capacity is not None
    assert (first.capacity.vcpus_used, first.capacity.memory_mib_used) == (2, 512)
    seen = rig.manager.heartbeats.index(first) + 1
    later = _beat(rig, lambda h: h.inventory is not None, seen)
    assert later.inventory is not None
    assert (later.inventory.full, later.inventory.guests) == (False, ())
    assert later.inventory.digest == first.inventory.digest
    assert later.seq > first.seq


def test_a_change_made_by_hand_is_told_at_once(rig: Rig) -> None:
    rig.interval_s = 30.0
    guest = rig.by_hand(power_state="RUNNING")
    rig.up()
    _beat(rig, _full)
    guest.power_state = "CRASHED"
    rig.store.write(guest)
    told = _beat(rig, lambda h: bool(h.inventory and not h.inventory.full))
    assert told.inventory is not None
    assert [g.power_state.name for g in told.inventory.guests] == ["CRASHED"]
    rig.store.remove(guest.uuid)
    gone = _beat(rig, lambda h: bool(h.inventory and h.inventory.gone))
    assert gone.inventory is not None
    assert gone.inventory.gone == (guest.uuid,)
    assert gone.inventory.digest == "0:0000000000000000"


def test_a_full_report_is_sent_when_it_is_asked_for(rig: Rig) -> None:
    rig.by_hand()
    rig.up()
    seen = rig.manager.heartbeats.index(_beat(rig, _full)) + 1
    rig.manager.cast("report_inventory")
    again = _beat(rig, _full, seen)
    assert again.inventory is not None
    assert len(again.inventory.guests) == 1


def test_a_failed_listing_is_an_unhealthy_host_and_never_an_empty_one(rig: Rig) -> None:
    rig.by_hand()
    rig.up()
    _beat(rig, _full)
    rig.fault(list="fail")
    sick = _beat(rig, lambda h: not h.driver.healthy)
    assert sick.inventory is None
    assert "fault" in sick.driver.message
    rig.fault()
    seen = len(rig.manager.heartbeats)
    well = _beat(rig, lambda h: h.driver.healthy, seen)
    assert well.inventory is not None
    assert well.inventory.full
    assert all(not (h.inventory and h.inventory.gone) for h in rig.manager.heartbeats)


def test_a_partial_listing_names_its_errors_and_lets_nothing_vanish(rig: Rig) -> None:
    guests = [rig.by_hand(f"g{n}") for n in range(3)]
    rig.up()
    full = _beat(rig, _full)
    rig.fault(list="partial")
    partial = _beat(rig, lambda h: bool(h.inventory and not h.inventory.complete))
    assert partial.inventory is not None
    assert full.inventory is not None
    assert len(partial.inventory.errors) == 2
    assert partial.inventory.gone == ()
    assert partial.inventory.digest == full.inventory.digest
    assert {g.uuid for g in guests} == {g.hypervisor_uuid for g in full.inventory.guests}


def test_a_guest_whose_file_can_not_be_read_is_an_error_and_not_gone(rig: Rig) -> None:
    guest = rig.by_hand()
    rig.up()
    _beat(rig, _full)
    (rig.store.guests / f"{guest.uuid}.json").write_text("{")
    partial = _beat(rig, lambda h: bool(h.inventory and h.inventory.errors))
    assert partial.inventory is not None
    assert list(partial.inventory.errors) == [guest.uuid]
    assert partial.inventory.gone == ()


def test_a_hypervisor_that_vanishes_is_away_and_not_empty(rig: Rig) -> None:
    rig.by_hand()
    rig.up()
    _beat(rig, _full)
    rig.store.guests.rename(rig.store.guests.with_name("elsewhere"))
    sick = _beat(rig, lambda h: not h.driver.healthy)
    assert sick.inventory is None
    rig.store.guests.with_name("elsewhere").rename(rig.store.guests)
    well = _beat(rig, lambda h: h.driver.healthy, len(rig.manager.heartbeats))
    assert well.inventory is not None
    assert len(well.inventory.guests) == 1


def test_a_hung_listing_does_not_silence_the_host(rig: Rig) -> None:
    rig.by_hand()
    rig.up()
    _beat(rig, _full)
    rig.fault(list="hang")
    _beat(rig, lambda h: "hung" in h.driver.message)
    seen = len(rig.manager.heartbeats)
    eventually(lambda: len(rig.manager.heartbeats) >= seen + 5, "more of them")
    assert {h.driver.healthy for h in rig.manager.heartbeats[seen:]} == {False}
    assert {h.inventory for h in rig.manager.heartbeats[seen:]} == {None}
    rig.fault()
    well = _beat(rig, lambda h: h.driver.healthy, len(rig.manager.heartbeats))
    assert _full(well)
    seqs = [h.seq for h in rig.manager.heartbeats]
    assert seqs == sorted(set(seqs))


def test_heartbeats_name_what_is_under_way(rig: Rig) -> None:
    rig.up()
    rig.fault(create="hang")
    start = rig.create("i-1")
    beat = _beat(rig, lambda h: any(r.command == start for r in h.receipts))
    assert beat.interval_s == INTERVAL_S
    rig.fault()
    rig.manager.result(start)
    _beat(rig, lambda h: not h.receipts, len(rig.manager.heartbeats))


def test_a_look_begun_before_a_commands_effect_can_not_outrank_its_result(rig: Rig) -> None:
    rig.up()
    guest = rig.running("i-1")
    stop = rig.manager.result(rig.manager.send("stop_vm", "i-1", 2))
    assert stop.look is not None
    newest = stop.look.seq

    def told_running(h: m.Heartbeat) -> bool:
        seen = h.inventory.guests if h.inventory else ()
        return any(g.hypervisor_uuid == guest.uuid and g.power_state == 1 for g in seen)

    _beat(rig, lambda h: h.seq > newest, len(rig.manager.heartbeats))
    assert all(h.seq < newest for h in rig.manager.heartbeats if told_running(h))


def test_a_guest_that_a_result_has_shown_is_in_no_delta(rig: Rig) -> None:
    rig.interval_s = 60.0
    driver = rig.up()._driver
    _beat(rig, _full)
    rig.running("i-1")
    capacity, looks = driver.capacity, []  # the last question of each look for a heartbeat

    def looked() -> m.Capacity:
        looks.append(1)
        return capacity()

    driver.capacity = looked  # type: ignore[method-assign]
    rig.manager.result(rig.manager.send("stop_vm", "i-1", 2))
    looks.clear()
    eventually(lambda: looks, "the change was looked at")
    seen = len(rig.manager.heartbeats)
    rig.manager.result(rig.manager.send("terminate_instance", "i-1", 3))
    looks.clear()
    eventually(lambda: looks, "the end was looked at")
    stranger = rig.by_hand()
    _beat(rig, lambda h: bool(h.inventory and h.inventory.guests), seen)
    told = [h.inventory for h in rig.manager.heartbeats[seen:] if h.inventory]
    assert [[g.hypervisor_uuid for g in i.guests] for i in told if i.guests] == [[stranger.uuid]]
    assert [i.gone for i in told if i.gone] == []
    assert told[-1].digest == m.digest(g.fingerprint() for g in driver.list_guests().guests)

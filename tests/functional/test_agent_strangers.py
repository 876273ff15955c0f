"""Promise 1: no command, however forged, touches a guest that is not ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.drivers.simulated.store import Guest
from common.messages import Command, convert
from tests.functional.agent_rig import FLEET, Rig, bearer_of, eventually, mark

VERBS = ["start_vm", "stop_vm", "reboot_vm", "terminate_instance"]
UUID = "11111111-1111-4111-8111-111111111111"
OTHER = "22222222-2222-4222-8222-222222222222"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


STRANGERS: dict[str, Guest] = {
    "unmarked": Guest(uuid=UUID, name="vm-i-1", power_state="RUNNING", domain_id=3),
    "another fleet's": Guest(
        uuid=UUID, name="vm-i-1", power_state="RUNNING", mark=mark("i-1", UUID, fleet="other")
    ),
    "a copy": Guest(uuid=UUID, name="vm-i-1", power_state="RUNNING", mark=mark("i-1", OTHER)),
    "a template": Guest(uuid=UUID, name="vm-i-1", template=True, mark=mark("i-1", UUID)),
    "halted, another fleet's": Guest(
        uuid=UUID, name="vm-i-1", mark=mark("i-1", UUID, fleet="other")
    ),
}


@pytest.mark.parametrize("spec", [{}, {"force": True}, {"create": True}], ids=str)
@pytest.mark.parametrize("kind", VERBS)
@pytest.mark.parametrize("whose", STRANGERS)
def test_a_stranger_is_left_alone_whatever_the_command_says(
    rig: Rig, whose: str, kind: str, spec: dict[str, Any]
) -> None:
    stranger = STRANGERS[whose]
    rig.store.write(stranger)
    if spec.get("create"):
        guest = {"name": "vm-i-1", "vcpus": 1, "memory_mib": 64}
        spec = {**spec, "guest": guest}
    rig.up()
    result = rig.manager.result(rig.manager.send(kind, "i-1", 9, spec=spec))
    assert rig.store.read(UUID) == stranger
    if whose == "unmarked":
        missing = kind != "terminate_instance" and not (kind == "start_vm" and "create" in spec)
        assert result.error_code == ("GUEST_MISSING" if missing else None)
    elif kind == "terminate_instance" and whose in ("a copy", "a template"):
        assert result.outcome == "succeeded"
        assert result.look is not None
        assert result.look.guest is None
    else:
        assert (result.outcome, result.error_code) == ("failed", "NOT_OURS")


@pytest.mark.parametrize("kind", VERBS)
def test_a_command_addressed_by_a_strangers_uuid_does_not_reach_it(rig: Rig, kind: str) -> None:
    stranger = STRANGERS["unmarked"]
    rig.store.write(stranger)
    rig.up()
    rig.manager.result(rig.manager.send(kind, UUID, 1))
    assert rig.store.read(UUID) == stranger


def test_our_guest_goes_and_its_copy_stays(rig: Rig) -> None:
    rig.up()
    guest = rig.running("i-1")
    copy = rig.by_hand("clone", power_state="RUNNING", mark=guest.mark)
    end = rig.manager.result(rig.manager.send("terminate_instance", "i-1", 2))
    assert end.outcome == "succeeded"
    assert rig.guests() == [copy]


def test_a_guest_that_lost_its_mark_is_a_stranger_from_then_on(rig: Rig) -> None:
    rig.up()
    guest = rig.running("i-1")
    guest.mark = None
    rig.store.write(guest)
    result = rig.manager.result(rig.manager.send("stop_vm", "i-1", 2))
    assert (result.outcome, result.error_code) == ("failed", "GUEST_MISSING")
    assert rig.store.read(guest.uuid) == guest


def test_a_mark_that_goes_between_the_look_and_the_change_is_seen_by_the_driver(rig: Rig) -> None:
    rig.up()
    guest = rig.running("i-1")
    rig.fault(stop="hang")
    stop = rig.manager.send("stop_vm", "i-1", 2)

    def remarked() -> bool:
        now = rig.store.read(guest.uuid)
        return now is not None and now.mark is not None and now.mark.generation == 2

    eventually(remarked)
    guest.mark = mark("i-1", guest.uuid, fleet="other")
    rig.store.write(guest)
    rig.fault()
    result = rig.manager.result(stop)
    assert (result.outcome, result.error_code) == ("failed", "NOT_OURS")
    assert rig.store.read(guest.uuid) == guest


def test_the_uuid_we_would_give_is_taken_by_a_stranger(rig: Rig) -> None:
    rig.up()
    command = rig.manager.command("start_vm", "i-1", 1)
    taken = Guest(uuid=bearer_of(convert(command, Command)), name="mine", power_state="RUNNING")
    rig.store.write(taken)
    spec = {"guest": {"name": "vm", "vcpus": 1, "memory_mib": 64}, "create": True}
    result = rig.manager.result(rig.manager.send("start_vm", "i-1", 1, spec=spec))
    assert (result.outcome, result.error_code) == ("failed", "HYPERVISOR_ERROR")
    assert rig.guests() == [taken]


def test_two_guests_of_ours_for_one_instance_are_refused_but_deleted_both(rig: Rig) -> None:
    rig.store.write(Guest(uuid=UUID, name="a", mark=mark("i-1", UUID)))
    rig.store.write(Guest(uuid=OTHER, name="b", mark=mark("i-1", OTHER)))
    rig.up()
    result = rig.manager.result(rig.manager.send("start_vm", "i-1", 2))
    assert (result.outcome, result.error_code) == ("failed", "AMBIGUOUS")
    assert {g.power_state for g in rig.guests()} == {"SHUTOFF"}
    end = rig.manager.result(rig.manager.send("terminate_instance", "i-1", 3))
    assert end.outcome == "succeeded"
    assert rig.guests() == []


def test_strangers_are_reported_as_they_are(rig: Rig) -> None:
    for n, stranger in enumerate(STRANGERS.values()):
        uuid = f"{n}" * 8 + UUID[8:]
        rig.store.write(Guest(uuid=uuid, name=stranger.name, mark=stranger.mark))
    rig.up()
    full = eventually(
        lambda: next((h for h in rig.manager.heartbeats if h.inventory and h.inventory.full), None)
    )
    assert full.inventory is not None
    marks = [g.mark for g in full.inventory.guests]
    assert marks == [s.mark for s in STRANGERS.values()]
    assert FLEET in {mk.fleet for mk in marks if mk}

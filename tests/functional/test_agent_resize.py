"""An agent that resizes a guest: switched off, changed, started; finished or undone, if it dies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common import messages as m
from tests.functional.agent_rig import Rig, eventually

SMALL = {"name": "vm-i-1", "vcpus": 1, "memory_mib": 128}
LARGE = {"name": "vm-i-1", "vcpus": 2, "memory_mib": 256}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


def send(
    rig: Rig,
    kind: str,
    generation: int,
    guest: dict[str, Any],
    *,
    on: bool = True,
    of: str = "",
    undo: bool = False,
) -> str:
    spec = {"guest": guest, "on": on, "timeout_s": 1, "key": of, "undo": undo}
    return rig.manager.send(kind, "i-1", generation, spec=spec)


def size(rig: Rig) -> tuple[int, int]:
    guest = rig.guest_of("i-1")
    assert guest is not None
    return guest.vcpus, guest.memory_mib


def keeps(rig: Rig) -> bool:
    guest = rig.guest_of("i-1")
    assert guest is not None
    return guest.before is not None


def acts(rig: Rig, before: int) -> list[str]:
    return [act.verb for act in rig.store.account()[before:]]


@pytest.mark.parametrize("on", [True, False])
def test_a_guest_is_switched_off_changed_and_started_if_it_ran(rig: Rig, on: bool) -> None:
    rig.up()
    rig.running("i-1")
    if not on:
        rig.manager.result(rig.manager.send("stop_vm", "i-1", 2, spec={"force": True}))
    before = len(rig.store.account())
    result = rig.manager.result(send(rig, "resize_vm", 3, LARGE, on=on))
    assert (result.outcome, result.error) == ("succeeded", None)
    assert acts(rig, before) == (["stop", "resize", "start"] if on else ["resize"])
    assert result.look is not None
    assert result.look.guest is not None
    assert (result.look.guest.vcpus, result.look.guest.memory_mib) == size(rig) == (2, 256)
    assert keeps(rig)


@pytest.mark.parametrize("fault", ["fail", "fail_after"])
@pytest.mark.parametrize("op", ["stop", "resize"])
def test_a_resize_that_fails_leaves_the_guest_as_it_was(rig: Rig, op: str, fault: str) -> None:
    rig.up()
    rig.running("i-1")
    rig.fault(**{op: fault})
    if (op, fault) == ("stop", "fail_after"):
        rig.fault(resize="fail")
    result = rig.manager.result(send(rig, "resize_vm", 2, LARGE))
    assert (result.outcome, result.error_code) == ("failed", "HYPERVISOR_ERROR")
    assert (size(rig), keeps(rig), rig.state_of("i-1")) == ((1, 128), False, "RUNNING")


def test_a_guest_that_does_not_start_with_its_new_size_is_what_it_was(rig: Rig) -> None:
    rig.up()
    rig.running("i-1")
    rig.fault(start="fail")
    resize = send(rig, "resize_vm", 2, LARGE)
    result = rig.manager.result(resize)
    assert (result.outcome, size(rig), keeps(rig)) == ("failed", (1, 128), False)
    rig.fault()
    again = rig.manager.result(send(rig, "revert_resize", 3, SMALL, of=resize, undo=True))
    assert (again.outcome, rig.state_of("i-1")) == ("succeeded", "RUNNING")


def killed_in(rig: Rig, op: str, mode: str, command: str) -> None:
    """Kill the agent while the command hangs in `op`, before or after its effect."""
    eventually(lambda: m.Step.STARTED in rig.manager.receipts(command), "started")
    if mode == "hang_after":
        eventually(lambda: rig.store.account()[-1].verb == op, f"the effect of {op}")
    rig.kill()
    rig.fault()


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("mode", ["hang", "hang_after"])
@pytest.mark.parametrize("op", ["stop", "resize", "start"])
def test_killed_in_a_resize_it_is_finished_if_it_is_wanted_and_can_be_undone_if_not(
    rig: Rig, op: str, mode: str, wanted: bool
) -> None:
    rig.up()
    rig.running("i-1")
    rig.fault(**{op: mode})
    resize = send(rig, "resize_vm", 2, LARGE)
    killed_in(rig, op, mode, resize)
    rig.manager.wanted = lambda _id: wanted
    rig.up()
    result = rig.manager.result(resize)
    if wanted:
        assert (result.outcome, size(rig), keeps(rig)) == ("succeeded", (2, 256), True)
        assert rig.state_of("i-1") == "RUNNING"
    else:
        assert (result.outcome, result.error_code) == ("failed", "OUTCOME_UNKNOWN")
    undo = rig.manager.result(send(rig, "revert_resize", 3, SMALL, of=resize, undo=True))
    assert (undo.outcome, size(rig), keeps(rig)) == ("succeeded", (1, 128), False)
    assert rig.state_of("i-1") == "RUNNING"


@pytest.mark.parametrize("mode", ["hang", "hang_after"])
@pytest.mark.parametrize(("kind", "after"), [("revert_resize", SMALL), ("confirm_resize", LARGE)])
def test_killed_in_a_confirm_or_a_revert_it_is_finished(
    rig: Rig, kind: str, after: dict[str, Any], mode: str
) -> None:
    rig.up()
    rig.running("i-1")
    resize = send(rig, "resize_vm", 2, LARGE)
    rig.manager.result(resize)
    rig.fault(**{kind: mode})
    command = send(rig, kind, 3, after, of=resize)
    killed_in(rig, kind, mode, command)
    rig.up()
    result = rig.manager.result(command)
    assert (result.outcome, result.error) == ("succeeded", None)
    assert (size(rig), keeps(rig)) == ((after["vcpus"], after["memory_mib"]), False)
    assert rig.state_of("i-1") == "RUNNING"


@pytest.mark.parametrize("kind", ["revert_resize", "confirm_resize"])
def test_a_copy_of_a_guest_is_not_the_guest_which_is_gone(rig: Rig, kind: str) -> None:
    rig.up()
    guest = rig.running("i-1")
    rig.store.remove(guest.uuid)
    copy = rig.by_hand("copy", mark=guest.mark)
    assert rig.manager.result(send(rig, kind, 2, SMALL)).error_code == "GUEST_MISSING"
    assert rig.store.read(copy.uuid) == copy


@pytest.mark.parametrize("undo", [True, False])
def test_what_another_resize_has_kept_is_not_put_back(rig: Rig, undo: bool) -> None:
    rig.up()
    rig.running("i-1")
    rig.manager.result(send(rig, "resize_vm", 2, LARGE))
    before = len(rig.store.account())
    result = rig.manager.result(send(rig, "revert_resize", 3, SMALL, of="another", undo=undo))
    assert result.error_code == (None if undo else "RESIZE_OVER")
    assert (acts(rig, before), size(rig), keeps(rig)) == ([], (2, 256), True)

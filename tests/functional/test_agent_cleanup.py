"""A whole agent removes what guests have left behind: told by a terminate, or asked by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common import messages as m
from common.ownership import new_bearer
from tests.functional.agent_rig import FLEET, Rig, eventually

FOLDER = "/pools/shared"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


def files(instance: str, generation: int = 1) -> m.GuestFiles:
    bearer = new_bearer(FLEET, instance, generation)
    return m.GuestFiles(instance=instance, bearer=bearer, folders=(FOLDER,))


def made(*of: m.GuestFiles) -> dict[str, Any]:
    return {"made": [m.builtins(each) for each in of]}


def removal(of: m.GuestFiles) -> dict[str, Any]:
    return {"cleanup": "c-1", "remains": m.builtins(of)}


def start(rig: Rig, instance: str) -> str:
    """A guest with a disk in a pool, that runs; the uuid that its files are known by."""
    disks = [{"size_gib": 1, "folder": FOLDER}]
    guest = {"name": "web", "vcpus": 1, "memory_mib": 128, "disks": disks}
    spec = {"guest": guest, "create": True}
    rig.manager.result(rig.manager.send("start_vm", instance, 1, spec=spec))
    found = rig.guest_of(instance)
    assert found is not None
    assert rig.store.disks.left() == [found.uuid]
    return found.uuid


def test_a_terminate_removes_what_an_undefined_guest_has_left(rig: Rig) -> None:
    rig.up()
    rig.store.remove(start(rig, "i-1"))
    spec = made(files("i-1"))
    end = rig.manager.result(rig.manager.send("terminate_instance", "i-1", 2, spec=spec))
    assert end.outcome == "succeeded"
    assert rig.store.disks.left() == []


def test_a_terminate_tells_of_files_that_could_not_go_and_a_clean_up_removes_them(
    rig: Rig,
) -> None:
    rig.up()
    bearer = start(rig, "i-1")
    rig.store.remove(bearer)
    rig.fault(clean_up="fail")
    spec = made(files("i-1"))
    end = rig.manager.result(rig.manager.send("terminate_instance", "i-1", 2, spec=spec))
    assert end.outcome == "succeeded"
    assert [left.files for left in end.left] == [files("i-1")]
    assert rig.store.disks.left() == [bearer]
    rig.fault()
    (left,) = end.left
    done = rig.manager.result(rig.manager.send("clean_up", "i-1", 3, spec=removal(left.files)))
    assert done.outcome == "succeeded"
    assert rig.store.disks.left() == []


def test_what_a_guest_without_our_mark_uses_is_left_alone_and_the_terminate_says_so(
    rig: Rig,
) -> None:
    rig.up()
    bearer = start(rig, "i-1")
    guest = rig.store.read(bearer)
    assert guest is not None
    guest.mark = None
    rig.store.write(guest)
    spec = made(files("i-1"))
    end = rig.manager.result(rig.manager.send("terminate_instance", "i-1", 2, spec=spec))
    assert end.outcome == "failed"
    assert "may be using its files" in (end.error or "")
    assert rig.store.disks.left() == [bearer]
    assert rig.store.read(bearer) == guest


def test_a_clean_up_removes_files_of_a_guest_that_was_never_here_and_shows_none(rig: Rig) -> None:
    rig.up()
    elsewhere = files("i-1")
    rig.store.disks.make(elsewhere.bearer, [FOLDER])
    done = rig.manager.result(rig.manager.send("clean_up", "i-1", 2, spec=removal(elsewhere)))
    assert (done.outcome, done.look) == ("succeeded", None)
    assert rig.store.disks.left() == []
    again = rig.manager.result(rig.manager.send("clean_up", "i-1", 3, spec=removal(elsewhere)))
    assert again.outcome == "succeeded"


def test_a_clean_up_of_a_guest_that_is_here_is_refused(rig: Rig) -> None:
    rig.up()
    bearer = start(rig, "i-1")
    done = rig.manager.result(rig.manager.send("clean_up", "i-1", 2, spec=removal(files("i-1"))))
    assert done.outcome == "failed"
    assert rig.store.disks.left() == [bearer]
    assert rig.state_of("i-1") == "RUNNING"


@pytest.mark.parametrize("wanted", [True, False])
def test_killed_in_a_clean_up_the_next_agent_finishes_it_if_it_is_wanted(
    rig: Rig, wanted: bool
) -> None:
    rig.up()
    left = files("i-1")
    rig.store.disks.make(left.bearer, [FOLDER])
    rig.fault(clean_up="hang")
    command = rig.manager.send("clean_up", "i-1", 2, spec=removal(left))
    eventually(lambda: m.Step.STARTED in rig.manager.receipts(command), "it has begun")
    rig.kill()
    rig.fault()
    rig.manager.wanted = lambda _id: wanted
    rig.up()
    result = rig.manager.result(command)
    assert result.error_code == (None if wanted else "OUTCOME_UNKNOWN")
    assert rig.store.disks.left() == ([] if wanted else [left.bearer])


def test_a_start_that_was_cut_short_and_is_refused_then_leaves_no_files(rig: Rig) -> None:
    rig.up()
    rig.fault(create="hang_after")
    command = rig.create("i-1")
    eventually(lambda: rig.guest_of("i-1") is not None, "it is made")
    rig.kill()
    rig.store.remove(new_bearer(FLEET, "i-1", 1))  # by hand
    rig.fault(create="fail")
    rig.up()
    assert rig.manager.result(command).outcome == "failed"
    assert rig.store.disks.left() == []

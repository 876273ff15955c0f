"""Section 6 of the decision tables: which verb is possible when."""

from __future__ import annotations

import re

import pytest

from common.errors import EXIT_REFUSED, TaskUnderWay, WrongState
from common.messages import CommandKind
from common.states import SettableState, TaskState, VmState
from manager.rules.verbs import VERBS, Admission, admit, admit_state

FROM = {
    "start": {VmState.SHUTOFF, VmState.ERROR},
    "stop": {VmState.ACTIVE, VmState.PAUSED, VmState.ERROR},
    "reboot": {VmState.ACTIVE},
    "pause": {VmState.ACTIVE},
    "unpause": {VmState.PAUSED},
    "suspend": {VmState.ACTIVE},
    "resume": {VmState.SUSPENDED},
    "shelve": {VmState.ACTIVE, VmState.SHUTOFF},
    "unshelve": {VmState.SHELVED, VmState.SHELVED_OFFLOADED},
    "resize": {VmState.ACTIVE, VmState.SHUTOFF},
    "confirm-resize": {VmState.RESIZED},
    "revert-resize": {VmState.RESIZED},
    "restore": {VmState.SOFT_DELETED},
}
ALREADY = {
    "start": {VmState.ACTIVE},
    "stop": {VmState.SHUTOFF},
    "reboot": set(),
    "pause": {VmState.PAUSED},
    "unpause": {VmState.ACTIVE},
    "suspend": {VmState.SUSPENDED},
    "resume": {VmState.ACTIVE},
    "shelve": {VmState.SHELVED, VmState.SHELVED_OFFLOADED},
    "unshelve": {VmState.ACTIVE},
    "resize": set(),
    "confirm-resize": set(),
    "revert-resize": set(),
    "restore": {VmState.SHUTOFF},
}
TASKS = [t for t in TaskState if t is not TaskState.NONE]

CASES = [(verb, state) for verb in FROM for state in VmState]
ALLOWED = [(v, s) for v, s in CASES if s in FROM[v]]
DONE = [(v, s) for v, s in CASES if s in ALREADY[v]]
WRONG = [(v, s) for v, s in CASES if s not in FROM[v] | ALREADY[v]]


@pytest.mark.parametrize(
    ("verb", "task", "success", "command"),
    [
        ("create", TaskState.SPAWNING, VmState.ACTIVE, CommandKind.START_VM),
        ("start", TaskState.POWERING_ON, VmState.ACTIVE, CommandKind.START_VM),
        ("stop", TaskState.POWERING_OFF, VmState.SHUTOFF, CommandKind.STOP_VM),
        ("reboot", TaskState.REBOOTING, VmState.ACTIVE, CommandKind.REBOOT_VM),
        ("pause", TaskState.PAUSING, VmState.PAUSED, CommandKind.PAUSE_VM),
        ("unpause", TaskState.UNPAUSING, VmState.ACTIVE, CommandKind.UNPAUSE_VM),
        ("suspend", TaskState.SUSPENDING, VmState.SUSPENDED, CommandKind.SUSPEND_VM),
        ("resume", TaskState.RESUMING, VmState.ACTIVE, CommandKind.RESUME_VM),
        ("shelve", TaskState.SHELVING, VmState.SHELVED, CommandKind.SHELVE_VM),
        ("unshelve", TaskState.UNSHELVING, VmState.ACTIVE, CommandKind.START_VM),
        ("resize", TaskState.RESIZING, VmState.RESIZED, CommandKind.RESIZE_VM),
        ("confirm-resize", TaskState.RESIZING, VmState.ACTIVE, CommandKind.CONFIRM_RESIZE),
        ("revert-resize", TaskState.RESIZING, VmState.ACTIVE, CommandKind.REVERT_RESIZE),
        ("restore", TaskState.RESTORING, VmState.SHUTOFF, None),
    ],
)
def test_what_a_verb_sets_casts_and_ends_in(
    verb: str, task: TaskState, success: VmState, command: CommandKind | None
) -> None:
    row = VERBS[verb]
    assert (row.name, row.task, row.success, row.command) == (verb, task, success, command)


@pytest.mark.parametrize(("verb", "state"), ALLOWED)
def test_a_verb_is_cast_from_each_of_its_states(verb: str, state: VmState) -> None:
    assert admit(VERBS[verb], "web-1", state, TaskState.NONE, None) is Admission.CAST


@pytest.mark.parametrize(("verb", "state"), DONE)
def test_already_there_is_success_without_a_cast(verb: str, state: VmState) -> None:
    assert admit(VERBS[verb], "web-1", state, TaskState.NONE, None) is Admission.ALREADY_THERE


@pytest.mark.parametrize(("verb", "state"), WRONG)
def test_a_wrong_state_names_the_states_that_would_do(verb: str, state: VmState) -> None:
    with pytest.raises(WrongState) as caught:
        admit(VERBS[verb], "web-1", state, TaskState.NONE, None)
    error = caught.value
    assert (error.code, error.exit_code) == ("WRONG_STATE", EXIT_REFUSED)
    assert "web-1" in error.message
    assert state in error.message
    would_do = re.split(r";|, which", error.remedy)[0].removeprefix("possible in: ")
    assert set(would_do.split(", ")) == FROM[verb]


@pytest.mark.parametrize(
    ("verb", "state", "way"),
    [
        ("start", VmState.SUSPENDED, "resume"),
        ("start", VmState.SHELVED_OFFLOADED, "unshelve"),
        ("start", VmState.PAUSED, "unpause"),
        ("unpause", VmState.SUSPENDED, "resume"),
        ("resume", VmState.PAUSED, "unpause"),
        ("resume", VmState.SHUTOFF, "start"),
        ("reboot", VmState.SHUTOFF, "start"),
    ],
)
def test_a_wrong_state_names_the_verb_that_leads_to_the_same_end(
    verb: str, state: VmState, way: str
) -> None:
    with pytest.raises(WrongState) as caught:
        admit(VERBS[verb], "web-1", state, TaskState.NONE, None)
    assert caught.value.remedy.endswith(f"; here: muster vm {way} web-1")


@pytest.mark.parametrize("verb", [verb for verb in FROM if "-resize" not in verb])
def test_a_resized_vm_does_nothing_before_its_size_is_confirmed_or_reverted(verb: str) -> None:
    with pytest.raises(WrongState) as caught:
        admit(VERBS[verb], "web-1", VmState.RESIZED, TaskState.NONE, None)
    way = "; here: muster vm confirm-resize web-1, or revert-resize"
    assert caught.value.remedy.endswith(way)


@pytest.mark.parametrize("state", [VmState.SUSPENDED, VmState.BUILDING])
def test_where_no_verb_leads_to_the_same_end_none_is_named(state: VmState) -> None:
    with pytest.raises(WrongState) as caught:
        admit(VERBS["stop"], "web-1", state, TaskState.NONE, None)
    assert "here:" not in caught.value.remedy


@pytest.mark.parametrize("verb", [verb for verb in FROM if verb != "restore"])
def test_of_a_soft_deleted_vm_every_other_verb_names_the_restore(verb: str) -> None:
    with pytest.raises(WrongState) as caught:
        admit(VERBS[verb], "web-1", VmState.SOFT_DELETED, TaskState.NONE, None)
    assert caught.value.remedy.endswith("; here: muster vm restore web-1")


@pytest.mark.parametrize("verb", list(FROM))
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("state", [VmState.ACTIVE, VmState.SHUTOFF])
def test_a_task_under_way_refuses_and_names_its_job(
    verb: str, task: TaskState, state: VmState
) -> None:
    with pytest.raises(TaskUnderWay) as caught:
        admit(VERBS[verb], "web-1", state, task, "job-7")
    assert caught.value.code == "TASK_UNDER_WAY"
    assert "job-7" in caught.value.message
    assert caught.value.data == {"job": "job-7"}


SETTABLE = [VmState(state) for state in SettableState]
KEPT = (VmState.DELETED, VmState.SOFT_DELETED)
FREE = [state for state in VmState if state not in KEPT]


@pytest.mark.parametrize("wanted", SETTABLE)
@pytest.mark.parametrize("state", FREE)
def test_a_state_is_set_from_any_other_with_nothing_in_flight(
    state: VmState, wanted: VmState
) -> None:
    admit_state(wanted, "web-1", state, TaskState.NONE, None, on_host=True)


@pytest.mark.parametrize("task", TASKS)
def test_no_state_is_set_while_a_task_is_under_way(task: TaskState) -> None:
    with pytest.raises(TaskUnderWay, match="job-7"):
        admit_state(VmState.ERROR, "web-1", VmState.ACTIVE, task, "job-7", on_host=True)


def test_what_is_deleted_stays_deleted() -> None:
    with pytest.raises(WrongState, match="web-1 is DELETED"):
        admit_state(VmState.ERROR, "web-1", VmState.DELETED, TaskState.NONE, None, on_host=False)


@pytest.mark.parametrize("wanted", SETTABLE)
def test_what_is_on_no_host_is_off_or_in_error(wanted: VmState) -> None:
    if wanted in (VmState.SHUTOFF, VmState.ERROR):
        admit_state(wanted, "web-1", VmState.SHUTOFF, TaskState.NONE, None, on_host=False)
        return
    with pytest.raises(WrongState, match="on no host"):
        admit_state(wanted, "web-1", VmState.SHUTOFF, TaskState.NONE, None, on_host=False)


@pytest.mark.parametrize("wanted", SETTABLE)
def test_setting_a_state_is_no_way_around_the_restore(wanted: VmState) -> None:
    with pytest.raises(WrongState, match="web-1 is SOFT_DELETED") as caught:
        admit_state(wanted, "web-1", VmState.SOFT_DELETED, TaskState.NONE, None, on_host=True)
    assert caught.value.remedy == "muster vm restore web-1"


@pytest.mark.parametrize("wanted", SETTABLE)
def test_what_was_never_made_is_nothing_but_deleted(wanted: VmState) -> None:
    at = {"on_host": False, "made": False}
    with pytest.raises(WrongState, match="creation of web-1 has failed") as caught:
        admit_state(wanted, "web-1", VmState.ERROR, TaskState.NONE, None, **at)
    assert "muster vm delete web-1" in caught.value.remedy

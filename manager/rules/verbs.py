"""Which verb is possible when, and what it makes of a VM (decision tables, section 6)."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from common.errors import TaskUnderWay, WrongState
from common.messages import CommandKind
from common.states import TaskState, VmState


@dataclass(frozen=True)
class Verb:
    """A row of the table. `already` are the states in which there is nothing to do.

    `command` None: no agent is asked. `moves_memory`: it takes as long as the guest's memory needs
    to its host's disk, or back.
    """

    name: str
    sources: frozenset[VmState]
    task: TaskState
    success: VmState
    command: CommandKind | None
    already: frozenset[VmState] = frozenset()
    moves_memory: bool = False


VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            "create",
            frozenset({VmState.BUILDING}),
            TaskState.SPAWNING,
            VmState.ACTIVE,
            CommandKind.START_VM,
        ),
        Verb(
            "start",
            frozenset({VmState.SHUTOFF, VmState.ERROR}),
            TaskState.POWERING_ON,
            VmState.ACTIVE,
            CommandKind.START_VM,
            already=frozenset({VmState.ACTIVE}),
        ),
        Verb(
            "stop",
            frozenset({VmState.ACTIVE, VmState.PAUSED, VmState.ERROR}),
            TaskState.POWERING_OFF,
            VmState.SHUTOFF,
            CommandKind.STOP_VM,
            already=frozenset({VmState.SHUTOFF}),
        ),
        Verb(
            "reboot",
            frozenset({VmState.ACTIVE}),
            TaskState.REBOOTING,
            VmState.ACTIVE,
            CommandKind.REBOOT_VM,
        ),
        Verb(
            "pause",
            frozenset({VmState.ACTIVE}),
            TaskState.PAUSING,
            VmState.PAUSED,
            CommandKind.PAUSE_VM,
            already=frozenset({VmState.PAUSED}),
        ),
        Verb(
            "unpause",
            frozenset({VmState.PAUSED}),
            TaskState.UNPAUSING,
            VmState.ACTIVE,
            CommandKind.UNPAUSE_VM,
            already=frozenset({VmState.ACTIVE}),
        ),
        Verb(
            "suspend",
            frozenset({VmState.ACTIVE}),
            TaskState.SUSPENDING,
            VmState.SUSPENDED,
            CommandKind.SUSPEND_VM,
            already=frozenset({VmState.SUSPENDED}),
            moves_memory=True,
        ),
        Verb(
            "resume",
            frozenset({VmState.SUSPENDED}),
            TaskState.RESUMING,
            VmState.ACTIVE,
            CommandKind.RESUME_VM,
            already=frozenset({VmState.ACTIVE}),
            moves_memory=True,
        ),
        Verb(
            "shelve",
            frozenset({VmState.ACTIVE, VmState.SHUTOFF}),
            TaskState.SHELVING,
            VmState.SHELVED,
            CommandKind.SHELVE_VM,
            already=frozenset({VmState.SHELVED, VmState.SHELVED_OFFLOADED}),
        ),
        Verb(
            "unshelve",
            frozenset({VmState.SHELVED, VmState.SHELVED_OFFLOADED}),
            TaskState.UNSHELVING,
            VmState.ACTIVE,
            CommandKind.START_VM,
            already=frozenset({VmState.ACTIVE}),
        ),
        Verb(
            "resize",
            frozenset({VmState.ACTIVE, VmState.SHUTOFF}),
            TaskState.RESIZING,
            VmState.RESIZED,
            CommandKind.RESIZE_VM,
        ),
        # Their success is what the VM was before: ACTIVE or SHUTOFF.
        Verb(
            "confirm-resize",
            frozenset({VmState.RESIZED}),
            TaskState.RESIZING,
            VmState.ACTIVE,
            CommandKind.CONFIRM_RESIZE,
        ),
        Verb(
            "revert-resize",
            frozenset({VmState.RESIZED}),
            TaskState.RESIZING,
            VmState.ACTIVE,
            CommandKind.REVERT_RESIZE,
        ),
        Verb(
            "restore",
            frozenset({VmState.SOFT_DELETED}),
            TaskState.RESTORING,
            VmState.SHUTOFF,
            None,
            already=frozenset({VmState.SHUTOFF}),
        ),
    )
}


class Admission(enum.Enum):
    """What becomes of a verb that is not refused."""

    CAST = "cast"
    ALREADY_THERE = "already there"


def admit(verb: Verb, vm: str, state: VmState, task: TaskState, job: str | None) -> Admission:
    """Cast it or find it done; raises TaskUnderWay naming the job, or WrongState."""
    _idle(vm, task, job)
    if state in verb.already:
        return Admission.ALREADY_THERE
    if state not in verb.sources:
        raise WrongState(
            f"{verb.name} is not possible while {vm} is {state}", _remedy(verb, vm, state)
        )
    return Admission.CAST


def admit_state(
    wanted: VmState,
    vm: str,
    state: VmState,
    task: TaskState,
    job: str | None,
    *,
    on_host: bool,
    made: bool = True,
) -> None:
    """Row set-state: from any state, with nothing in flight; raises TaskUnderWay or WrongState.

    `made` False: its creation has failed. What a SOFT_DELETED VM is hangs together with the limits
    of its project: only a restore looks at them.
    """
    if state is VmState.DELETED:
        raise WrongState(f"{vm} is DELETED, and stays so", "create it again")
    _idle(vm, task, job)
    if not made:
        raise WrongState(
            f"the creation of {vm} has failed, and it holds nothing that could be {wanted}",
            f"muster vm delete {vm}, and create it again",
        )
    if state is VmState.SOFT_DELETED:
        raise WrongState(f"{vm} is SOFT_DELETED: no other state is set", f"muster vm restore {vm}")
    if not on_host and wanted not in (VmState.SHUTOFF, VmState.ERROR):
        raise WrongState(f"{vm} is on no host: it can not be {wanted}", "possible: SHUTOFF, ERROR")


def _idle(vm: str, task: TaskState, job: str | None) -> None:
    if task is not TaskState.NONE:
        raise TaskUnderWay(
            f"{vm} is {task}, by job {job}", f"wait for it: muster job wait {job}", job=job
        )


def _remedy(verb: Verb, vm: str, state: VmState) -> str:
    """The states that would do, and the verb that leads from this one to the same end."""
    would_do = f"possible in: {', '.join(sorted(verb.sources))}"
    if state is VmState.RESIZED:
        # What it is to be comes first, whatever else it is to do.
        return f"{would_do}; here: muster vm confirm-resize {vm}, or revert-resize"
    if state is VmState.SOFT_DELETED:
        return f"{would_do}; here: muster vm restore {vm}"
    if VmState.RESIZED in verb.sources:
        return f"{would_do}, which comes of: muster vm resize {vm}"
    for other in VERBS.values():
        if other.success is verb.success and state in other.sources and other.name != "create":
            return f"{would_do}; here: muster vm {other.name} {vm}"
    return would_do

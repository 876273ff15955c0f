"""A guest of a VM that this database has on no host: where it is, there the VM belongs.

A database that was put back has forgotten where a VM was started. It must not be started once more,
and what it holds must not be given to another.
"""

from __future__ import annotations

from common.errors import OutcomeUnknown
from common.messages import CommandKind, GuestReport
from common.states import CommandEvent, CommandState, JobEvent, PowerState, TaskState, VmState
from manager.flows import commands, jobs, placing
from manager.store.commands import CommandRow
from manager.store.engine import Tx
from manager.store.instances import Instance
from manager.store.jobs import Job
from manager.store.sightings import Sighting
from manager.store.statements import Query, ask

C = CommandRow.__table__.c
SENT = Query(
    CommandRow,
    C.instance == ask("instance"),
    C.host == ask("host"),
    C.generation >= ask("generation"),
    C.kind != CommandKind.CLEAN_UP.value,
    limit=1,
)
STATES = {
    PowerState.RUNNING: VmState.ACTIVE,
    PowerState.BLOCKED: VmState.ACTIVE,
    PowerState.PAUSED: VmState.PAUSED,
    PowerState.SHUTDOWN: VmState.SHUTOFF,
    PowerState.SHUTOFF: VmState.SHUTOFF,
    PowerState.CRASHED: VmState.SHUTOFF,
    PowerState.SUSPENDED: VmState.SUSPENDED,
}


def is_nowhere(vm: Instance) -> bool:
    """True for a VM that holds what a guest needs and is on no host: none that was given up."""
    return vm.live and vm.reserved and vm.host is None and vm.task_state is not TaskState.DELETING


def is_leftover(vm: Instance, generation: int) -> bool:
    """True for a guest from before its VM has left its host, all of which were to go."""
    kept = vm.snapshot
    offloaded = vm.vm_state is VmState.SHELVED_OFFLOADED
    return offloaded and kept is not None and generation <= kept.generation


def is_on_record(tx: Tx, instance: str, host: str, generation: int) -> bool:
    """True when a command is known that may have made a guest of this generation there.

    What is seen of it then is late, or about to be undone.
    """
    return tx.ask_first(SENT, instance=instance, host=host, generation=generation) is not None


def take(
    tx: Tx,
    vm: Instance,
    host: str,
    why: str,
    seen: GuestReport | Sighting | None = None,
    pair: tuple[int, int] = (0, 0),
) -> Instance:
    """The VM is on this host; a job that would have started it elsewhere ends there.

    `seen` at `pair`: its guest; None where only its agent's word tells of one.
    """
    state = VmState.ERROR if seen is None else STATES.get(seen.power_state, VmState.ERROR)
    if vm.vm_state is VmState.SOFT_DELETED:
        state = vm.vm_state  # it is stopped again when it runs
    said = f"{why}: it was started there, and this database has no record of it"
    generation = vm.generation
    if seen is not None and seen.mark is not None:
        generation = max(generation, seen.mark.generation)
    if vm.job is not None:
        _end(tx, vm.job, said)
    placing.move_claim(tx, vm, host)
    tx.event("instance.taken_over", vm.uuid, f"host {host}", f"{vm.name} is on {host}: {said}")
    return tx.swap(
        vm,
        host=host,
        last_host=vm.host or vm.last_host,
        generation=generation,
        vm_state=state,
        task_state=TaskState.NONE,
        power_state=PowerState.NOSTATE if seen is None else seen.power_state,
        power_session=pair[0],
        power_seq=pair[1],
        power_at=None if seen is None else tx.now,
        job=None,
        error="" if seen is not None else f"{OutcomeUnknown.code}: {said}",
    )


def _end(tx: Tx, uuid: str, said: str) -> None:
    job = tx.find(Job, uuid)
    if job is None or job.state not in jobs.OPEN:
        return
    for row in commands.open_of_job(tx, job.uuid):
        if row.state is CommandState.ACCEPTED:
            commands.move(tx, row, CommandEvent.NOT_RUN, error_code=OutcomeUnknown.code, error=said)
        else:
            commands.owe_void(tx, row)
            tx.commands_due = True
    job = jobs.end_steps(tx, job, JobEvent.FAIL, f"{OutcomeUnknown.code}: {said}")
    jobs.end(tx, job, JobEvent.FAIL, code=OutcomeUnknown.code, error=said)

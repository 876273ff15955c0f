"""What an operator says of a VM's record: no host is asked, and the job ends at once."""

from __future__ import annotations

from typing import Any

from common.errors import WrongState
from common.states import VmState
from manager.flows import jobs, resize, restore, shelve
from manager.flows.jobs import Wish
from manager.flows.power import require_wanted
from manager.rules import deletion, verbs
from manager.store.engine import Tx
from manager.store.instances import Instance, Phase
from manager.store.jobs import Job


def set_state(tx: Tx, wish: Wish, vm: Instance, wanted: VmState) -> Job:
    """The VM is what the operator says, until its host reports otherwise.

    A deletion that is owed stays owed. Raises TaskUnderWay, WrongState or DbRolledBack.
    """
    on_host = vm.host is not None
    verbs.admit_state(
        wanted,
        vm.name,
        vm.vm_state,
        vm.task_state,
        vm.job,
        on_host=on_host,
        made=vm.reserved,
    )
    restore.require_none(tx, (vm.host,) if vm.host else ())
    if vm.vm_state is VmState.SHELVED_OFFLOADED:
        raise WrongState(
            f"all that there is of {vm.name} is its snapshot: it can not be {wanted}",
            f"muster vm unshelve {vm.name}",
        )
    if shelve.leaving(tx, vm) is not None:
        raise WrongState(f"{vm.host} is removing the guest of {vm.name}", "wait until it has")
    text = f"{vm.vm_state} -> {wanted}"
    if on_host:
        text += f"; {vm.host} last said {vm.power_state.name}"
    changes: dict[str, Any] = {"vm_state": wanted, "paused_since": None}
    if not vm.deletion_owed:
        said = f"set by {wish.operator}: {wish.reason}"
        changes["error"] = said if wanted is VmState.ERROR else ""
    if vm.resize is not None and vm.resize.phase is Phase.RESIZED:
        # What it was is not wanted any more by whoever says that it is something else.
        vm = resize.confirm_by_state(tx, vm)
        text += "; its resize is confirmed by that"
    tx.swap(vm, **changes)
    return _done(tx, wish, "set-state", vm, "instance.state", text)


def set_protected(tx: Tx, wish: Wish, vm: Instance, wanted: bool) -> Job:
    """A delete of the VM is refused from now on, forced or not; or no longer.

    Raises TaskUnderWay or WrongState where a delete has begun.
    """
    deletion.admit_protection(vm.name, vm.vm_state, vm.task_state, vm.job)
    require_wanted(vm)
    word = "protected from deletion" if wanted else "not protected from deletion"
    if vm.protected is wanted:
        return _done(tx, wish, "set", vm, "instance.protection", f"{word} already")
    tx.swap(vm, protected=wanted)
    return _done(tx, wish, "set", vm, "instance.protection", word)


def _done(tx: Tx, wish: Wish, kind: str, vm: Instance, event: str, text: str) -> Job:
    """A job that has ended at once, and an event with who wanted it and why."""
    job = jobs.accept(tx, wish, kind, instance=vm.uuid, host=vm.host)
    tx.event(event, vm.uuid, wish.operator, f"{vm.name}: {text} ({wish.reason})", job=job.uuid)
    return jobs.end_at_once(tx, job, text, None, "done")

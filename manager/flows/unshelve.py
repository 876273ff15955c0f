"""Unshelve: a shelved VM runs again, where its guest still is or on whichever host takes it.

What has left its host is placed and made as at its first start (first_start), its disks copies of
its snapshot. What fails leaves the VM shelved as it was: it keeps its snapshot and its addresses.
"""

from __future__ import annotations

import datetime as dt

from common.conf import Settings
from common.errors import WrongState
from common.messages import CommandKind, Result
from common.states import CommandState, PowerState, TombstoneState, VmState
from manager.flows import (
    commands,
    first_start,
    inventory,
    jobs,
    made,
    power,
    reap,
    restore,
    shelve,
    snapshots,
)
from manager.flows.jobs import Wish
from manager.rules import verbs
from manager.store.commands import CommandRow
from manager.store.engine import Tx
from manager.store.instances import Instance
from manager.store.jobs import Job


def request(tx: Tx, cfg: Settings, wish: Wish, vm: Instance) -> Job:
    """Accept an unshelve; raises what the verb table refuses, and NoValidHost."""
    verb = verbs.VERBS["unshelve"]
    restore.require_none(tx, (vm.host,) if vm.host else ())
    power.require_wanted(vm)
    if verbs.admit(verb, vm.name, vm.vm_state, vm.task_state, vm.job) is not verbs.Admission.CAST:
        return _nothing_to_do(tx, wish, vm, f"{vm.name} is {vm.vm_state} already")
    if vm.vm_state is VmState.SHELVED and not _may_be_given_up(tx, vm):
        return _on_its_host(tx, cfg, wish, vm)
    if vm.vm_state is VmState.SHELVED:
        vm = _give_up_its_host(tx, vm)
    elif vm.host is None:
        restore.require_not_noticed(tx)
    if inventory.take_found(tx, vm):
        vm = tx.get(Instance, vm.uuid)
        return _nothing_to_do(tx, wish, vm, f"{vm.name} is {vm.vm_state} on {vm.host}")
    return _anew(tx, cfg, wish, vm)


def _nothing_to_do(tx: Tx, wish: Wish, vm: Instance, why: str) -> Job:
    job = jobs.accept(tx, wish, "unshelve", instance=vm.uuid, host=vm.host)
    return jobs.end_at_once(tx, job, why, vm.host)


def _may_be_given_up(tx: Tx, vm: Instance) -> bool:
    """True for a guest that is off, by an operator's word, with the host that it is on."""
    kept = vm.snapshot
    if vm.host is None or kept is None or kept.host is not None or kept.overtaken:
        return False
    return kept.taken_at is not None and reap.is_or_was_fenced(tx, vm.host)


def _give_up_its_host(tx: Tx, vm: Instance) -> Instance:
    """Its disks are elsewhere: the guest on a fenced host goes when that is back."""
    host = vm.host or ""
    reason = f"{host} is fenced, and {vm.name} is unshelved elsewhere"
    up_to = vm.snapshot.generation if vm.snapshot is not None else None
    reap.bury(tx, vm, host, state=TombstoneState.OPEN, reason=reason, pair=(0, 0), up_to=up_to)
    tx.event("instance.offloaded", vm.uuid, "manager", reason)
    return shelve.let_go(tx, tx.get(Instance, vm.uuid))


def _on_its_host(tx: Tx, cfg: Settings, wish: Wish, vm: Instance) -> Job:
    """Its guest is where it was, with its disks."""
    host = vm.host or ""
    if shelve.leaving(tx, vm) is not None:
        raise WrongState(
            f"{host} is removing the guest of {vm.name}, and has not answered yet",
            f"unshelve it once it has: muster vm show {vm.name}",
        )
    _require_alone(tx, vm)
    job = jobs.accept(tx, wish, "unshelve", instance=vm.uuid, host=host)
    generation = vm.generation + 1
    verb = verbs.VERBS["unshelve"]
    vm = tx.swap(vm, task_state=verb.task, job=job.uuid, generation=generation, offload_at=None)
    # Where it is not, after all, it is made again; not from a snapshot that it has outrun.
    make = vm.snapshot is not None and not vm.snapshot.overtaken
    if make:
        vm = made.record(tx, cfg, vm, host)
    command = commands.issue(
        tx,
        cfg,
        kind=CommandKind.START_VM,
        instance=vm.uuid,
        host=host,
        generation=generation,
        job=job.uuid,
        trail=job.trail,
        spec={"guest": snapshots.spec_from(vm), "create": True} if make else {},
        timeout_s=cfg.manager.create_timeout,
    )
    job = jobs.add_step(tx, job, f"{CommandKind.START_VM} on {host}", host, command.id)
    return jobs.start(tx, job, deadline_at=command.deadline_at)


def _require_alone(tx: Tx, vm: Instance) -> None:
    """Raise WrongState for a VM that another host shows a later guest of than its snapshot."""
    kept = vm.snapshot
    newer = {
        seen.host
        for seen in inventory.sightings(tx, vm.uuid)
        if seen.host != vm.host
        and seen.mark is not None
        and kept is not None
        and seen.mark.generation > kept.generation
        and not reap.is_or_was_fenced(tx, seen.host)
    }
    if newer:
        raise WrongState(
            f"a guest of {vm.name} that was made after its snapshot is on"
            f" {', '.join(sorted(newer))}",
            f"it becomes the VM when the older one is gone: muster vm shelve {vm.name} --offload",
        )


def _anew(tx: Tx, cfg: Settings, wish: Wish, vm: Instance) -> Job:
    """It is on no host: placed like a new one, where its snapshot can be read."""
    shown = [h for h in inventory.hosts_showing(tx, vm.uuid) if not reap.is_or_was_fenced(tx, h)]
    unclean = first_start.unclean(tx, vm.uuid)
    if shown and not unclean:
        raise WrongState(
            f"a guest of {vm.name} is on {', '.join(shown)}, which nobody has asked for",
            "see what it holds that the snapshot has not before you remove it there",
        )
    if vm.host is not None:  # where a start was withdrawn before anybody was told of it
        vm = shelve.let_go(tx, vm)
    job = jobs.start(tx, jobs.accept(tx, wish, "unshelve", instance=vm.uuid, host=None))
    task = verbs.VERBS["unshelve"].task
    vm = tx.swap(vm, task_state=task, job=job.uuid, error="")
    if not unclean:
        return first_start.place(tx, cfg, job, vm, {})
    patience = tx.now + dt.timedelta(seconds=cfg.manager.command_timeout)
    told = f"{unclean} to answer that nothing of {vm.name} is left there"
    return tx.swap(job, check_at=tx.now, deadline_at=patience, waiting_for=told)


def command_ended(
    tx: Tx, cfg: Settings, job: Job, command: CommandRow, result: Result | None
) -> None:
    """The guest runs on its host, or is as it was; what was placed anew goes its own way."""
    vm = tx.find(Instance, job.instance) if job.instance else None
    if vm is None or vm.vm_state is not VmState.SHELVED:
        first_start.command_ended(tx, cfg, job, command, result)
        return
    mine = vm.job == job.uuid
    power.command_ended(tx, cfg, job, command, result)
    if not mine:
        return
    vm = tx.get(Instance, vm.uuid)
    if command.state is CommandState.SUCCEEDED:
        snapshots.drop(tx, cfg, vm, f"{vm.name} runs again")
        return
    if command.state is CommandState.UNKNOWN:
        vm = tx.swap(vm, vm_state=VmState.SHELVED)
    if command.state is CommandState.NOT_RUN:
        return
    if _may_have_run(result):
        snapshots.overtaken(tx, vm, "manager")
    else:
        snapshots.renewed(tx, vm)


def lost(tx: Tx, cfg: Settings, job: Job, command: CommandRow, *, code: str, error: str) -> None:
    """Nobody says whether it runs: it is shelved as before, and no copy of it is to be made."""
    vm = tx.find(Instance, job.instance) if job.instance else None
    if vm is None or vm.vm_state is not VmState.SHELVED:
        first_start.lost(tx, cfg, job, command, code=code, error=error)
        return
    mine = vm.job == job.uuid
    power.lost(tx, cfg, job, command, code=code, error=error)
    if mine:
        snapshots.overtaken(tx, tx.get(Instance, vm.uuid), "manager")


def _may_have_run(result: Result | None) -> bool:
    """False when the agent has looked, and the guest is off and was not switched on before that."""
    if result is None or result.look is None:
        return True
    guest = result.look.guest
    if guest is None:
        return False  # what it may have written is gone: its snapshot is all that there is
    begun = any(phase.name == "start" for phase in result.phases)
    return begun or guest.power_state not in (PowerState.SHUTOFF, PowerState.NOSTATE)

"""Power: start, stop, pause and the like by an operator's wish, and what reports do to a VM."""

from __future__ import annotations

from typing import Any

import msgspec

from common.conf import Settings
from common.errors import WrongState
from common.messages import CommandKind, GuestReport, Result
from common.states import CommandState, JobEvent, PowerState, TaskState, VmState
from manager.flows import commands, freeze, jobs, restore, snapshots
from manager.flows.jobs import Wish
from manager.rules import power as rule
from manager.rules import verbs
from manager.store.commands import CommandRow
from manager.store.engine import Tx
from manager.store.instances import Instance, Phase
from manager.store.jobs import Job

Pair = tuple[int, int]
_HELD = {PowerState.PAUSED, PowerState.SUSPENDED}
# They are stopped again when they run, and stay what they are however that ends.
_STAY = {VmState.SOFT_DELETED, VmState.SHELVED_OFFLOADED}


# an operator's wish


def request(
    tx: Tx, cfg: Settings, wish: Wish, verb_name: str, vm: Instance, *, force: bool = False
) -> Job:
    """Accept one of the verbs but create; raises what the verb table refuses."""
    verb = verbs.VERBS[verb_name]
    restore.require_none(tx, (vm.host,) if vm.host else ())
    require_wanted(vm)
    require_settled(vm)
    admission = verbs.admit(verb, vm.name, vm.vm_state, vm.task_state, vm.job)
    job = jobs.accept(tx, wish, verb_name, instance=vm.uuid, host=vm.host)
    if admission is verbs.Admission.ALREADY_THERE:
        return jobs.end_at_once(tx, job, f"{vm.name} is {vm.vm_state} already", vm.host)
    return _cast(tx, cfg, job, verb, vm, vm.host, force=force)


def require_wanted(vm: Instance) -> None:
    """Raise WrongState for a VM whose deletion is owed."""
    if vm.deletion_owed:
        raise WrongState(
            f"{vm.name} is owed a deletion: it can not be used any more",
            "muster tombstone list shows what it waits for",
        )


def require_settled(vm: Instance) -> None:
    """Raise WrongState for a VM whose resize is being undone, confirmed or reverted."""
    settled = vm.resize is None or vm.resize.phase is Phase.RESIZED
    if not settled and vm.task_state is TaskState.NONE and vm.resize is not None:
        raise WrongState(
            f"the resize of {vm.name} is {vm.resize.phase}, which {vm.host} has still to answer"
            f" ({vm.resize.error})",
            f"it is tried again by itself: see muster host show {vm.host}, or delete {vm.name}",
        )


def _cast(
    tx: Tx,
    cfg: Settings,
    job: Job,
    verb: verbs.Verb,
    vm: Instance,
    host: str | None,
    *,
    force: bool,
) -> Job:
    if host is None:
        return jobs.end(
            tx, job, JobEvent.FAIL, code="NO_HOST", error=f"{vm.name} is on no host: delete it"
        )
    if verb.command is None:
        raise AssertionError(f"{verb.name} asks no agent")
    generation = vm.generation + 1
    tx.swap(vm, task_state=verb.task, job=job.uuid, generation=generation)
    spec: dict[str, Any] = {}
    if verb.command in (CommandKind.STOP_VM, CommandKind.REBOOT_VM):
        spec = {"force": force, "timeout_s": cfg.libvirt.stop_timeout}
    command = commands.issue(
        tx,
        cfg,
        kind=verb.command,
        instance=vm.uuid,
        host=host,
        generation=generation,
        job=job.uuid,
        trail=job.trail,
        spec=spec,
        timeout_s=cfg.manager.create_timeout if verb.moves_memory else None,
    )
    job = jobs.add_step(tx, job, verb.command.value, host, command.id)
    return jobs.start(tx, job, deadline_at=command.deadline_at)


def command_ended(
    tx: Tx, cfg: Settings, job: Job, command: CommandRow, result: Result | None
) -> None:
    """The end of a verb's command ends its job and the VM's task."""
    vm = tx.find(Instance, job.instance) if job.instance else None
    if vm is not None and vm.job != job.uuid:
        if result is not None and result.floor is not None and result.floor > vm.generation:
            tx.swap(vm, generation=result.floor)
        superseded(tx, job, command)
        return
    verb = verbs.VERBS[job.kind]
    done = command.state is CommandState.SUCCEEDED
    event, code, error = ending(job, command)
    floor = result.floor if result is not None else None
    if vm is not None and floor is not None and floor > vm.generation:
        # The agent has heard of a newer command than we remember: the next one goes above it.
        vm = tx.swap(vm, generation=floor)
    job = jobs.end_steps(tx, job, event, "done" if done else f"{code}: {error}")
    jobs.end(tx, job, event, code=code, error=error)
    if vm is None or not vm.live:
        return
    looked = result is not None and result.look is not None
    stays = vm.vm_state if vm.vm_state in _STAY else None
    if done:
        settle(tx, cfg, vm, stays or verb.success, looked=looked)
    elif command.state is CommandState.UNKNOWN:
        reason = f"{code}: {error}"
        settle(tx, cfg, vm, stays or VmState.ERROR, looked=False, error=reason)
    else:
        # A stop that failed is tried again when the guest is reported again, not in a circle.
        settle(tx, cfg, vm, vm.vm_state, looked=True, stop_again=job.kind != "stop")


def ending(job: Job, command: CommandRow) -> tuple[JobEvent, str | None, str | None]:
    """What the end of its command is for a job: the event, the code and the error."""
    done = command.state is CommandState.SUCCEEDED
    event = {
        CommandState.SUCCEEDED: JobEvent.SUCCEED,
        CommandState.FAILED: JobEvent.FAIL,
        CommandState.UNKNOWN: JobEvent.FAIL,
        CommandState.NOT_RUN: JobEvent.EXPIRE
        if command.error_code in ("VOIDED", "EXPIRED")
        else JobEvent.FAIL,
    }[command.state]
    code, error = (None, None) if done else (command.error_code, command.error)
    if code == "STALE_COMMAND":
        error = (
            f"{command.host} has heard of later commands of this VM than this database knows (was"
            f" it restored from a backup?): nothing was done, ask again ({error})"
        )
    if command.state is CommandState.NOT_RUN and job.cancelling:
        event, code = JobEvent.CANCEL, "CANCELLED"
        begun = f"{command.host} had begun to carry it out"
        error = (
            f"{jobs.cancelled_by(job)} before {begun if command.published_at else 'it was sent'}"
        )
    return event, code, error


def superseded(tx: Tx, job: Job, command: CommandRow) -> None:
    """End the job of a VM that is gone or in the hands of another job, as its command ended."""
    done = command.state is CommandState.SUCCEEDED
    event = {
        CommandState.SUCCEEDED: JobEvent.SUCCEED,
        CommandState.NOT_RUN: JobEvent.CANCEL,
    }.get(command.state, JobEvent.FAIL)
    code, error = (None, None) if done else (command.error_code, command.error)
    job = jobs.end_steps(tx, job, event, "done" if done else f"{code}: {error}")
    jobs.end(tx, job, event, code=code, error=error)


def settle(
    tx: Tx,
    cfg: Settings,
    vm: Instance,
    state: VmState,
    *,
    looked: bool,
    error: str = "",
    stop_again: bool = True,
) -> Instance:
    """End the VM's task; then the power table runs once on what the hypervisor last said."""
    vm = tx.swap(vm, vm_state=state, task_state=TaskState.NONE, job=None, error=error)
    if not looked or vm.power_at is None:
        return vm
    reaction = rule.react(_held(cfg, vm), rule.Seen(power=vm.power_state), _policy(cfg))
    if reaction.act is rule.Act.STOP_AGAIN and not stop_again:
        return vm
    return _carry_out(tx, cfg, vm, reaction, "manager")


# what hypervisors report


def report(
    tx: Tx,
    cfg: Settings,
    host: str,
    vm: Instance,
    guest: GuestReport,
    pair: Pair,
    *,
    whole: bool = False,
) -> None:
    """Apply one guest's reported power state, if its pair is newer than what is held.

    In a `whole` report its host keeps the pair: a state that is known is not written again.
    """
    on_its_host = vm.host == host
    if on_its_host and pair <= (vm.power_session, vm.power_seq):
        return
    held = guest.power_state in _HELD
    since = vm.paused_since if vm.power_state is guest.power_state else None
    held_since = (since or tx.now) if held else None
    seen = rule.Seen(
        power=guest.power_state,
        on_its_host=on_its_host,
        held_s=(tx.now - held_since).total_seconds() if held_since else 0.0,
    )
    reaction = rule.react(_held(cfg, vm), seen, _policy(cfg))
    steady = (
        vm.power_state is guest.power_state
        and vm.power_at is not None
        and vm.paused_since == held_since
        and vm.missing_since is None
        and not vm.missing
    )
    if reaction.keep_power and not (whole and steady):
        if vm.power_state is not guest.power_state:
            tx.event(
                "power",
                vm.uuid,
                f"host {host}",
                f"{vm.name} is {guest.power_state.name}",
                session=pair[0],
                seq=pair[1],
            )
        if vm.missing:
            tx.event("instance.found", vm.uuid, f"host {host}", f"{vm.name} is there again")
        vm = tx.swap(
            vm,
            power_state=guest.power_state,
            power_session=pair[0],
            power_seq=pair[1],
            power_at=tx.now,
            paused_since=held_since,
            missing=False,
            missing_since=None,
            missing_reports=0,
        )
    vm = _carry_out(tx, cfg, vm, reaction, f"host {host}")
    if on_its_host and vm.snapshot is not None:
        snapshots.seen(tx, cfg, vm, guest, host)


def left_over(tx: Tx, cfg: Settings, host: str, vm: Instance, guest: GuestReport) -> None:
    """A guest of a VM that has left every host: it may lie there, and must not run."""
    seen = rule.Seen(power=guest.power_state)
    _carry_out(tx, cfg, vm, rule.react(_held(cfg, vm), seen, _policy(cfg)), f"host {host}", host)


def held_long_enough(tx: Tx, cfg: Settings, vm: Instance) -> None:
    """An unchanged PAUSED or SUSPENDED guest, looked at again because time has passed."""
    if vm.paused_since is None or not vm.live:
        return
    seen = rule.Seen(power=vm.power_state, held_s=(tx.now - vm.paused_since).total_seconds())
    _carry_out(tx, cfg, vm, rule.react(_held(cfg, vm), seen, _policy(cfg)), "manager")


def absent(tx: Tx, cfg: Settings, vm: Instance, pair: Pair) -> None:
    """A complete report of the VM's host does not list it."""
    if pair <= (vm.power_session, vm.power_seq) or vm.missing:
        return
    since = vm.missing_since or tx.now
    seen = rule.Seen(
        power=None,
        absent_reports=vm.missing_reports + 1,
        absent_s=(tx.now - since).total_seconds(),
    )
    reaction = rule.react(_held(cfg, vm), seen, _policy(cfg))
    if vm.task_state is not TaskState.NONE:
        return
    vm = tx.swap(vm, missing_since=since, missing_reports=vm.missing_reports + 1)
    if reaction.act is rule.Act.FLAG_MISSING:
        tx.event("instance.missing", vm.uuid, f"host {vm.host}", f"{vm.name}: {reaction.text}")
        tx.swap(
            vm,
            missing=True,
            power_state=PowerState.NOSTATE,
            power_session=pair[0],
            power_seq=pair[1],
            power_at=tx.now,
        )


def _held(cfg: Settings, vm: Instance) -> rule.Held:
    return rule.Held(
        vm_state=vm.vm_state,
        task_state=vm.task_state,
        interval_s=cfg.default.report_interval,
        missing=vm.missing,
        host_caused_error=not vm.deletion_owed and vm.resize is None,
    )


def _policy(cfg: Settings) -> rule.Policy:
    return rule.Policy(cfg.manager.on_unexpected_running, cfg.manager.missing_grace)


def _carry_out(
    tx: Tx,
    cfg: Settings,
    vm: Instance,
    reaction: rule.Reaction,
    source: str,
    host: str | None = None,
) -> Instance:
    """`host`: where the guest is, when its VM is on none."""
    if reaction.act is rule.Act.SET_STATE and reaction.vm_state is not None:
        tx.event("instance.state", vm.uuid, source, f"{vm.name}: {reaction.text}")
        return tx.swap(vm, vm_state=reaction.vm_state, error="")
    if reaction.act is rule.Act.ALARM_DUPLICATE:
        tx.event(
            "instance.duplicate",
            vm.uuid,
            source,
            f"DUPLICATE: {vm.name} belongs to {vm.host} and is seen by {source}; nothing changed",
        )
    if reaction.act is rule.Act.STOP_AGAIN and not freeze.why(tx):
        tx.event("instance.stop_again", vm.uuid, source, f"{vm.name}: {reaction.text}")
        _stop_again(tx, cfg, vm, reaction.text, host or vm.host)
        return tx.get(Instance, vm.uuid)
    return vm


def _stop_again(tx: Tx, cfg: Settings, vm: Instance, why: str, host: str | None) -> None:
    """A stop of our own making: no operator asked, so the wish carries the rule's reason."""
    wish = Wish(
        job=tx.new_id(),
        operator="manager",
        reason=why,
        request={"verb": "stop", "vm": vm.uuid, "by": "on_unexpected_running"},
    )
    job = jobs.accept(tx, wish, "stop", instance=vm.uuid, host=host)
    _cast(tx, cfg, job, verbs.VERBS["stop"], vm, host, force=False)
    vm = tx.get(Instance, vm.uuid)
    if vm.host is None and vm.snapshot is not None:
        # With the stop in its mark it is still one from before its VM has left.
        kept = msgspec.structs.replace(vm.snapshot, generation=vm.generation)
        tx.swap(vm, snapshot=kept)


def lost(tx: Tx, cfg: Settings, job: Job, _command: CommandRow, *, code: str, error: str) -> None:
    """End a verb whose host is not there to say what became of it: unconfirmed, void owed."""
    job = jobs.end_steps(tx, job, JobEvent.EXPIRE, f"{code}: {error}")
    jobs.end(tx, job, JobEvent.EXPIRE, code=code, error=error, unconfirmed=True)
    vm = tx.find(Instance, job.instance) if job.instance else None
    if vm is not None and vm.job == job.uuid and vm.live:
        settle(tx, cfg, vm, vm.vm_state, looked=True, stop_again=job.kind != "stop")

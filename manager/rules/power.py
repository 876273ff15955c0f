"""What a report of a guest's power state changes (decision tables, section 4)."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from common.states import PowerState, TaskState, VmState

_OFF = {PowerState.SHUTOFF, PowerState.SHUTDOWN, PowerState.CRASHED}
_ON = {PowerState.RUNNING, PowerState.BLOCKED}
_HELD = {PowerState.PAUSED, PowerState.SUSPENDED}


class Act(enum.Enum):
    """What has to be done besides writing the power state down."""

    NOTHING = "nothing"
    IGNORE = "ignore"
    REAP = "reap"
    ALARM_DUPLICATE = "alarm: duplicate"
    SET_STATE = "set the VM state"
    STOP_AGAIN = "stop it again"
    FLAG_MISSING = "flag it missing"


@dataclass(frozen=True)
class Seen:
    """What a report says of one VM. `power` None: absent from a complete report.

    `readable` False: the listing failed or was partial and does not name this VM.
    `held_s`: for how long it has been reported PAUSED or SUSPENDED.
    """

    power: PowerState | None
    readable: bool = True
    doomed: bool = False
    on_its_host: bool = True
    held_s: float = 0.0
    absent_reports: int = 0
    absent_s: float = 0.0


@dataclass(frozen=True)
class Held:
    """What we hold true of that VM."""

    vm_state: VmState
    task_state: TaskState
    interval_s: float
    missing: bool = False
    host_caused_error: bool = True


@dataclass(frozen=True)
class Policy:
    """[manager] on_unexpected_running and missing_grace (seconds)."""

    on_unexpected_running: str = "accept"
    missing_grace_s: float = 30.0


@dataclass(frozen=True)
class Reaction:
    """The row that decided. `keep_power` False: the reported state is not written down."""

    row: int
    act: Act
    vm_state: VmState | None = None
    text: str = ""
    keep_power: bool = True


def react(held: Held, seen: Seen, policy: Policy) -> Reaction:
    """The first row that fits."""
    power = seen.power
    if seen.doomed and power is not None:
        return Reaction(1, Act.REAP, text="it is doomed here", keep_power=False)
    if not seen.on_its_host:
        if held.vm_state is VmState.MIGRATING:
            return Reaction(2, Act.IGNORE, keep_power=False)
        return Reaction(
            2, Act.ALARM_DUPLICATE, text="the VM is seen on two hosts", keep_power=False
        )
    if not seen.readable:
        return Reaction(11, Act.IGNORE, keep_power=False)
    if held.task_state is not TaskState.NONE:
        return Reaction(3, Act.NOTHING, keep_power=power is not None)
    if held.vm_state is VmState.MIGRATING:
        if power is None:
            return Reaction(4, Act.IGNORE, keep_power=False)
        return Reaction(5, Act.NOTHING)
    if power is None:
        return _absent(held, seen, policy)
    if held.vm_state in {VmState.ACTIVE, VmState.PAUSED, VmState.SUSPENDED} and power in _OFF:
        word = "crashed" if power is PowerState.CRASHED else "was shut down"
        return Reaction(
            6, Act.SET_STATE, VmState.SHUTOFF, f"the guest {word} outside of Muster's commands"
        )
    stopped = {VmState.SHUTOFF, VmState.PAUSED, VmState.SUSPENDED}
    if power in _ON and (
        held.vm_state in stopped or (held.vm_state is VmState.ERROR and held.host_caused_error)
    ):
        if policy.on_unexpected_running == "stop" and held.vm_state is not VmState.ERROR:
            return Reaction(7, Act.STOP_AGAIN, text="the guest runs although it was stopped")
        return Reaction(
            7, Act.SET_STATE, VmState.ACTIVE, "the guest was started outside of Muster's commands"
        )
    state = VmState.PAUSED if power is PowerState.PAUSED else VmState.SUSPENDED
    followed = {VmState.ACTIVE, VmState.PAUSED, VmState.SUSPENDED} - {state}
    if held.vm_state in followed and power in _HELD:
        if seen.held_s <= held.interval_s:
            return Reaction(8, Act.NOTHING)
        return Reaction(
            8, Act.SET_STATE, state, f"the guest has been {power.shown} for {seen.held_s:.0f} s"
        )
    if held.vm_state in {VmState.SOFT_DELETED, VmState.SHELVED_OFFLOADED} and power in _ON:
        return Reaction(9, Act.STOP_AGAIN, text=f"the guest runs although it is {held.vm_state}")
    return Reaction(12, Act.NOTHING)


def _absent(held: Held, seen: Seen, policy: Policy) -> Reaction:
    if held.vm_state in {VmState.DELETED, VmState.SHELVED_OFFLOADED}:
        return Reaction(12, Act.IGNORE, keep_power=False)
    if held.missing or seen.absent_reports < 2 or seen.absent_s < policy.missing_grace_s:
        return Reaction(10, Act.IGNORE, keep_power=False)
    return Reaction(
        10,
        Act.FLAG_MISSING,
        text=f"absent from {seen.absent_reports} complete reports over {seen.absent_s:.0f} s",
    )

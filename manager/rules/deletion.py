"""What a delete comes out as (decision tables, section 3).

`admit` answers the request as a whole (rows 1-5), `at_host` decides for one host where the VM may
be (rows 6-9). The two together are the table, first match wins. `soft_at_host` says how row 5 is
carried out, and `admit_protection` when row 2 can be set.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from common.errors import TaskUnderWay, WrongState
from common.states import HostState, TaskState, VmState

SOFT, HARD, FORCED = 1, 2, 3  # strength of a delete
# A restore leads to SHUTOFF: what is only the half of a VM on its host, it could not bring back.
NOT_SOFTLY = (VmState.SHELVED, VmState.SHELVED_OFFLOADED, VmState.RESIZED, VmState.MIGRATING)
NOT_DURING = (
    TaskState.SHELVING,
    TaskState.UNSHELVING,
    TaskState.RESIZING,
    TaskState.MIGRATING,
    TaskState.ADOPTING,
)


class Outcome(enum.Enum):
    """What a row of the table asks for."""

    NOT_FOUND = "not found"
    ALREADY_DELETED = "already deleted"
    PROTECTED = "refused"
    SAME_JOB = "same job"
    TAKE_OVER = "take over"
    CANCEL_DEPLOY = "cancel the deploy"
    SOFT = "soft delete"
    SOFT_ALREADY = "soft-deleted already"
    STOP = "soft, remote"
    MARK = "soft, DB-only"
    GO_ON = "go on to the hosts"
    WAIT = "remote, and wait"
    REMOTE = "remote"
    DB_ONLY = "DB-only"
    FROZEN = "FROZEN"


@dataclass(frozen=True)
class Decision:
    """The row that decided, what it asks for, and why in an operator's words."""

    row: int
    outcome: Outcome
    reason: str


@dataclass(frozen=True)
class Wish:
    """A delete as it was asked for, and the VM as it is.

    `vm_state` None: no such VM. `in_flight` is the strength of a delete under way.
    `hosts` counts the places where the VM may be; `last_host`: where it was, if it is on none.
    `keepable` False: its creation has failed or has not come to a host yet, or it is owed a
    deletion, and there is nothing that could be restored.
    """

    vm_state: VmState | None
    strength: int = HARD
    protected: bool = False
    in_flight: int | None = None
    any_host_down: bool = False
    hosts: int = 1
    last_host: str | None = None
    keepable: bool = True


def strength(state: VmState | None, *, force: bool, soft: bool, interval_s: float) -> int:
    """How strong a delete is that was asked for in these words.

    `interval_s`: [manager] reclaim_interval; above 0 deletes are soft by themselves, but for that
    of a VM which is SOFT_DELETED already.
    """
    if force:
        return FORCED
    by_itself = interval_s > 0 and state is not VmState.SOFT_DELETED
    return SOFT if soft or by_itself else HARD


def admit(wish: Wish) -> Decision:
    """Rows 1 to 5 for the request as a whole; GO_ON when the hosts decide."""
    if wish.vm_state is None:
        return Decision(1, Outcome.NOT_FOUND, "no such VM")
    if wish.vm_state is VmState.DELETED:
        return Decision(1, Outcome.ALREADY_DELETED, "the VM is deleted already")
    if wish.protected:
        return Decision(2, Outcome.PROTECTED, "delete protection is on")
    if wish.in_flight is not None:
        if wish.strength > wish.in_flight:
            return Decision(3, Outcome.TAKE_OVER, "a stronger delete takes the job over")
        if not wish.any_host_down:
            return Decision(3, Outcome.SAME_JOB, "a delete is under way already")
    softly = wish.strength == SOFT and wish.in_flight in (None, SOFT)
    if softly and wish.vm_state is VmState.SOFT_DELETED:
        return Decision(5, Outcome.SOFT_ALREADY, "the VM is SOFT_DELETED already")
    if softly and wish.keepable:
        return Decision(5, Outcome.SOFT, "it can be restored for a while")
    if wish.hosts == 0 and wish.vm_state is VmState.SHELVED_OFFLOADED:
        text = f"it is on no host, its network was released at {wish.last_host}; its snapshot goes"
        return Decision(6, Outcome.DB_ONLY, text)
    if wish.hosts == 0 and wish.in_flight is None:
        return Decision(4, Outcome.CANCEL_DEPLOY, "the VM was never placed on a host")
    return Decision(9, Outcome.GO_ON, "its hosts decide")


def admit_soft(vm: str, state: VmState, task: TaskState, job: str | None) -> None:
    """Row 5 is for VMs that are wholly on their host; raises WrongState or TaskUnderWay."""
    otherwise = f"delete it for good: muster vm delete {vm} --force --reason TEXT"
    if task in NOT_DURING:
        raise TaskUnderWay(
            f"{vm} is {task}, by job {job}: it can not be kept for a restore",
            f"wait for it: muster job wait {job}; or {otherwise}",
            job=job,
        )
    if state in NOT_SOFTLY:
        shelved = state in (VmState.SHELVED, VmState.SHELVED_OFFLOADED)
        first = "unshelve" if shelved else "confirm-resize"
        raise WrongState(
            f"{vm} is {state}: it can not be kept for a restore",
            f"muster vm {first} {vm} first; or {otherwise}",
        )


def admit_protection(vm: str, state: VmState, task: TaskState, job: str | None) -> None:
    """Protection is about deletes to come; raises WrongState or TaskUnderWay once one has begun."""
    if state is VmState.DELETED:
        raise WrongState(f"{vm} is DELETED: there is nothing to protect", "muster vm list")
    if task in (TaskState.DELETING, TaskState.SOFT_DELETING):
        raise TaskUnderWay(
            f"{vm} is deleting, by job {job}: it is too late",
            f"to take it back before it is sent: muster job cancel {job}",
            job=job,
        )


@dataclass(frozen=True)
class Place:
    """One host where the VM may be. `known` False: the host's record is gone."""

    host: str
    known: bool
    state: HostState
    reason: str
    blind: bool = False
    mass_silence: bool = False
    forced: bool = False
    operator_down: bool = False


def at_host(place: Place) -> Decision:
    """Rows 6 to 9 for one host.

    A host that an operator has named down is DOWN however little the managers hear: the doubt of
    row 7 is about silence, and the operator has spoken.
    """
    if not place.known:
        return Decision(6, Outcome.DB_ONLY, f"the record of host {place.host} is gone")
    if place.forced:
        return Decision(9, Outcome.DB_ONLY, f"forced by an operator; {place.host} gets a tombstone")
    if (place.blind or place.mass_silence) and not place.operator_down:
        doubt = "the managers are blind" if place.blind else "mass silence"
        return Decision(
            7,
            Outcome.WAIT,
            f"{doubt}: {place.host} may be alive, so its agent must answer first ({place.reason})",
        )
    if place.state is not HostState.DOWN:
        return Decision(8, Outcome.REMOTE, f"{place.host} is {place.state}: its agent destroys it")
    return Decision(
        9,
        Outcome.DB_ONLY,
        f"{place.host} is DOWN ({place.reason}): the record goes, a tombstone stays",
    )


def soft_at_host(place: Place | None) -> Decision:
    """Row 5 at the VM's host: its guest is stopped first, or once the host is back. None: no host.

    To mark a VM destroys nothing, so that neither doubt nor a freeze holds it up.
    """
    if place is None:
        return Decision(5, Outcome.MARK, "it is on no host")
    if not place.known:
        return Decision(5, Outcome.MARK, f"the record of host {place.host} is gone")
    later = "it is marked now, and its guest stopped when the host is back"
    if place.mass_silence:
        return Decision(5, Outcome.MARK, f"mass silence, of {place.host} too: {later}")
    if place.state is HostState.DOWN:
        return Decision(5, Outcome.MARK, f"{place.host} is DOWN ({place.reason}): {later}")
    return Decision(5, Outcome.STOP, f"{place.host} is {place.state}: its agent stops the guest")


def unless_frozen(decision: Decision, frozen: str) -> Decision:
    """What becomes of a decision that nobody has forced while the fleet is `frozen`, in words."""
    if not frozen or decision.outcome is not Outcome.DB_ONLY:
        return decision
    wait = f"{frozen}; no record goes by itself until muster unfreeze ({decision.reason})"
    return Decision(decision.row, Outcome.FROZEN, wait)

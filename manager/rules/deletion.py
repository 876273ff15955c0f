"""What a delete comes out as (decision tables, section 3).

`admit` answers the request as a whole (rows 1-5), `at_host` decides for one host where the VM may
be (rows 6-9). The two together are the table, first match wins. `admit_protection` says when row 2
can be set.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from common.errors import TaskUnderWay, WrongState
from common.states import HostState, TaskState, VmState

SOFT, HARD, FORCED = 1, 2, 3  # strength of a delete


class Outcome(enum.Enum):
    """What a row of the table asks for."""

    NOT_FOUND = "not found"
    ALREADY_DELETED = "already deleted"
    PROTECTED = "refused"
    SAME_JOB = "same job"
    TAKE_OVER = "take over"
    CANCEL_DEPLOY = "cancel the deploy"
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
    """

    vm_state: VmState | None
    strength: int = HARD
    protected: bool = False
    in_flight: int | None = None
    any_host_down: bool = False
    hosts: int = 1
    last_host: str | None = None


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
    if wish.hosts == 0 and wish.vm_state is VmState.SHELVED_OFFLOADED:
        text = f"it is on no host, its network was released at {wish.last_host}; its snapshot goes"
        return Decision(6, Outcome.DB_ONLY, text)
    if wish.hosts == 0 and wish.in_flight is None:
        return Decision(4, Outcome.CANCEL_DEPLOY, "the VM was never placed on a host")
    return Decision(9, Outcome.GO_ON, "its hosts decide")


def admit_protection(vm: str, state: VmState, task: TaskState, job: str | None) -> None:
    """Protection is about deletes to come; raises WrongState or TaskUnderWay once one has begun."""
    if state is VmState.DELETED:
        raise WrongState(f"{vm} is DELETED: there is nothing to protect", "muster vm list")
    if task is TaskState.DELETING:
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


def unless_frozen(decision: Decision, frozen: str) -> Decision:
    """What becomes of a decision that nobody has forced while the fleet is `frozen`, in words."""
    if not frozen or decision.outcome is not Outcome.DB_ONLY:
        return decision
    wait = f"{frozen}; no record goes by itself until muster unfreeze ({decision.reason})"
    return Decision(decision.row, Outcome.FROZEN, wait)

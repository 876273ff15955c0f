"""What follows when a start that creates a VM has not succeeded (section 8, steps 6 and 7).

A VM is tried on another host only when it is certain that this one does not and will not run it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from common.states import CommandState

# No other host would make anything else of it.
FINAL = frozenset({"TEMPLATE_INVALID", "BAD_MESSAGE", "BAD_REQUEST"})
# The call may still be under way: what a look shows is only how things stand meanwhile.
DOUBTFUL = frozenset({"CALL_TIMEOUT", "OUTCOME_UNKNOWN"})
STALE_TRIES = 2
UNKNOWN = "OUTCOME_UNKNOWN"


class Seen(enum.Enum):
    """What the agent's look said of the guest after the command; NOTHING: there was none."""

    ABSENT = "absent"
    PRESENT = "present"
    NOTHING = "nothing"


class Next(enum.Enum):
    """What the job does now."""

    NEXT_HOST = "the next host is tried"
    SAME_HOST_AGAIN = "the same host, above its floor"
    FAIL = "given back, ERROR"
    FAIL_KEEPING_HOLD = "tombstone and quarantine, ERROR"
    CANCELLED = "given back, as was asked for"


@dataclass(frozen=True)
class Ending:
    """How a start ended. `tries`: hosts tried so far, this one included; `stale`: how often this
    host has answered STALE_COMMAND, this time included; `limit`: more hosts than the first;
    `named`: an operator named the host; `superseded`: a delete has taken the VM over."""

    host: str
    state: CommandState
    code: str | None = None
    error: str | None = None
    seen: Seen = Seen.NOTHING
    tries: int = 1
    limit: int = 10
    stale: int = 0
    named: bool = False
    fenced: bool = False
    cancelling: bool = False
    superseded: bool = False


@dataclass(frozen=True)
class Decision:
    """The row that decided, what it asks for, the code of the failure and why in words.

    `hold`: a guest is, or may be, left on this host, which gets a tombstone for it.
    """

    row: int
    next: Next
    reason: str
    code: str | None = None
    hold: bool = False


def after(end: Ending) -> Decision:
    """First row that fits. Raises ValueError for a start that succeeded or has not ended."""
    if end.state not in (CommandState.FAILED, CommandState.NOT_RUN, CommandState.UNKNOWN):
        raise ValueError(f"a start that is {end.state} needs no other host")
    said = _said(end)
    left = _left(end)
    if end.superseded:
        text = f"a delete has taken it over and sees to {end.host} ({said})"
        return Decision(1, Next.CANCELLED, text, end.code)
    if left and not end.fenced:
        code = UNKNOWN if end.state is CommandState.UNKNOWN else end.code
        text = f"{said}; {left}, so no other host is tried"
        return Decision(2, Next.FAIL_KEEPING_HOLD, text, code, hold=True)
    hold = bool(left)
    if end.cancelling:
        return Decision(3, Next.CANCELLED, f"cancelled; {said}", end.code, hold)
    if end.code in FINAL:
        return Decision(4, Next.FAIL, f"{said}; no other host would take it", end.code, hold)
    stale = end.state is CommandState.NOT_RUN and end.code == "STALE_COMMAND"
    if stale and 0 < end.stale <= STALE_TRIES:
        text = f"{said}; asked again above its floor"
        return Decision(5, Next.SAME_HOST_AGAIN, text, end.code)
    if end.named:
        text = f"{said}; {end.host} was named, so no other is tried"
        return Decision(6, Next.FAIL, text, end.code, hold)
    if end.tries > end.limit:
        text = f"{said}; {end.tries} hosts were tried, no more are ([manager] start_retries)"
        return Decision(7, Next.FAIL, text, end.code, hold)
    return Decision(8, Next.NEXT_HOST, f"{said}; the next host is tried", end.code, hold)


def _left(end: Ending) -> str:
    """What may be left on the host, in words; "" when its agent has said that nothing is."""
    if end.state is CommandState.UNKNOWN:
        return f"a guest may run on {end.host}"
    if end.seen is Seen.PRESENT and end.state is CommandState.FAILED:
        return f"its guest is on {end.host}"
    if end.code in DOUBTFUL:
        return f"{end.host} may yet make its guest"
    if end.state is CommandState.NOT_RUN or end.seen is Seen.ABSENT:
        return ""
    return f"a guest may be left on {end.host}"


def _said(end: Ending) -> str:
    verb = {
        CommandState.FAILED: "refused it",
        CommandState.NOT_RUN: "did not run it",
        CommandState.UNKNOWN: "never told what became of it",
    }[end.state]
    why = ": ".join(text for text in (end.code, end.error) if text)
    return f"{end.host} {verb}" + (f" ({why})" if why else "")

"""What a tombstone still holds back from reuse (decision tables, section 3, quarantine)."""

from __future__ import annotations

from common.states import TombstoneState

IDENTITY = ("mac", "address")
DISK = ("disk",)


def held(state: TombstoneState, *, fenced: bool) -> tuple[str, ...]:
    """The guest may run until the agent has answered, or its host is fenced; its disk stays."""
    if state is TombstoneState.CLOSED:
        return ()
    return DISK if fenced else IDENTITY + DISK


def after_fence(holds: tuple[str, ...]) -> tuple[str, ...]:
    """What an open tombstone still holds once its guest is known not to run: not who it was."""
    return tuple(what for what in holds if what not in IDENTITY)


def holds_identity(holds: tuple[str, ...]) -> bool:
    """True when any of it is held."""
    return any(what in IDENTITY for what in holds)


def holds_all_identity(holds: tuple[str, ...]) -> bool:
    """False for one that gave some of it up, or found it given to another."""
    return all(what in holds for what in IDENTITY)


def awaits_identity(holds: tuple[str, ...]) -> bool:
    """True for an open one that gave its identity up for a fence, and not by `forget`."""
    return holds == DISK


def back_off_s(tries: int, base_s: float) -> float:
    """Seconds until a failed terminate is issued again: doubled each time, at most 5 minutes."""
    return float(min(300.0, base_s * 2 ** min(tries, 10)))

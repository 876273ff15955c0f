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


def back_off_s(tries: int, base_s: float) -> float:
    """Seconds until a failed terminate is issued again: doubled each time, at most 5 minutes."""
    return float(min(300.0, base_s * 2 ** min(tries, 10)))

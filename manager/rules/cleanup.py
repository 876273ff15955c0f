"""When what a guest has left behind may go (decision tables, section 3, row 9 and quarantine)."""

from __future__ import annotations

from dataclasses import dataclass

from common.states import TombstoneState
from manager.rules import quarantine

# How long an item waits before it is looked at again when nobody can do it now.
LOOK_AGAIN_S = 30.0


@dataclass(frozen=True)
class Guest:
    """What is known of the guest whose files they are, on the host that it was on.

    `speaks`: its agent has a session; `holds`: what its tombstone keeps.
    """

    host: str
    state: TombstoneState
    speaks: bool
    holds: tuple[str, ...]


def no_access_s(tries: int, hosts: int, base_s: float) -> float:
    """Seconds until the next host of a pool is asked after one that has no access to it.

    What keeps one from it says nothing of the next, so it is only waited longer, up to 5 minutes,
    after each round of all hosts.
    """
    rounds, left = divmod(tries + 1, max(hosts, 1))
    return base_s if left else quarantine.back_off_s(rounds, base_s)


def in_use(guest: Guest) -> str:
    """Why its files have to wait, in words; empty when they may go.

    A directory can not be taken away from a host that is cut off, so somebody has to vouch that
    nothing runs there: its agent, or an operator who forgets the tombstone. A fence vouches for
    now, and keeps the disk: who is switched on again finds it until then. A tombstone that was
    forgotten and holds something again has seen its guest run.
    """
    if guest.state is TombstoneState.CLOSED:
        return ""
    if guest.speaks:
        return f"{guest.host} to answer its terminate, which removes them"
    if guest.holds:
        return (
            f"somebody to vouch that it does not run on {guest.host}: bring its agent back, or:"
            " muster tombstone forget"
        )
    return ""

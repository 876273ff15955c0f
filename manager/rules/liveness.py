"""Is a host up, suspect or down? (Decision tables, section 2.)

Silence is not evidence: a cluster of managers that could not hear calls nobody dead, and when too
many hosts fall silent together it doubts itself first.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from common.states import HostState

LATE = 2.5  # intervals of silence after which a host is late
MASS_LEAST = 3  # silent hosts that can be a mass
MASS_WINDOW = 10  # service_down_times within which a silence must have begun to count as new


class HostFacts(msgspec.Struct, frozen=True):
    """What is known of one host. Ages are seconds by the database's clock.

    `reported`: its session has brought an inventory, so that its capacity is known.
    `has_consumer` and `canary_overdue` None: not looked at, which counts as healthy.
    `owes_fate`: a command was given up, and its agent has not said yet what became of it.
    `rolled_back`: its agent was refused, because it knows another state of the database.
    """

    name: str
    state: HostState
    age_s: float
    interval_s: float
    enabled: bool = True
    forced_down: bool = False
    fenced: bool = False
    driver_healthy: bool = True
    driver_message: str = ""
    session_open: bool = True
    reported: bool = True
    clash: bool = False
    mass_silent: bool = False
    has_consumer: bool | None = None
    canary_overdue: bool | None = None
    owes_fate: bool = False
    rolled_back: bool = False

    @property
    def late(self) -> bool:
        return self.age_s > LATE * self.interval_s

    @property
    def named(self) -> bool:
        """An operator has said what this silence is."""
        return self.forced_down or self.fenced


class Hearing(msgspec.Struct, frozen=True):
    """What the cluster of managers itself could hear.

    `gapless_s`: for how long the best-hearing manager has consumed reports without a gap; None
    when none hears at all.
    """

    gapless_s: float | None


class Limits(msgspec.Struct, frozen=True):
    """[manager] service_down_time in seconds and silence_budget (0-1)."""

    service_down_time_s: float
    silence_budget: float


class Verdict(msgspec.Struct, frozen=True):
    """What a host is; `row` of the table that decided, `reason` with the numbers behind it.

    `doubt` tells the reasons of row 5 apart.
    """

    row: int
    state: HostState
    reason: str
    doubt: str = ""
    blind: bool = False
    mass_silent: bool = False

    @property
    def cause(self) -> str:
        """What decided, without its numbers."""
        return f"{self.row} {self.doubt}".strip()


def is_blind(hearing: Hearing, limits: Limits) -> bool:
    """True when no manager has heard without a gap for long enough to judge a silence."""
    return hearing.gapless_s is None or hearing.gapless_s < limits.service_down_time_s


def mass_silence(fleet: Sequence[HostFacts], limits: Limits) -> frozenset[str]:
    """The names of the silent hosts when they are too many to be believed; else empty.

    A host that an operator has named is explained and counts on neither side. Once a host is part
    of a mass (`mass_silent`, stored) its silence counts however old it grows.
    """
    counted = [h for h in fleet if h.enabled and not h.named]
    silent = [
        h
        for h in counted
        if h.late and (h.mass_silent or h.age_s <= MASS_WINDOW * limits.service_down_time_s)
    ]
    many = len(silent) >= MASS_LEAST and len(silent) > limits.silence_budget * len(counted)
    everyone = len(silent) >= 2 and len(silent) == len(counted)
    if not (many or everyone):
        return frozenset()
    return frozenset(h.name for h in silent)


def judge(host: HostFacts, *, hearing: Hearing, mass: frozenset[str], limits: Limits) -> Verdict:
    """One host's state: the first row of the table that fits.

    Row 3 is left by each host for itself, when it speaks or an operator names it.

    Row 2 is about silence: a host that is heard while the managers are blind is judged by what it
    says (rows 5 and 6), and only marked.
    """
    down_s = limits.service_down_time_s
    if host.fenced or host.forced_down:
        word = "fenced" if host.fenced else "set down"
        return Verdict(1, HostState.DOWN, f"{word} by an operator")
    blind = is_blind(hearing, limits)
    if blind and host.late:
        heard = "nothing" if hearing.gapless_s is None else f"only {hearing.gapless_s:.1f} s"
        return Verdict(
            2,
            host.state,
            f"blind: the managers have heard {heard} of the last {down_s:g} s without a gap",
            blind=True,
            mass_silent=host.mass_silent,
        )
    if host.age_s > down_s and (mass or host.mass_silent):
        # Of those that fell silent together the last is as doubtful as the first: each stays
        # SUSPECT until it speaks or is named. A host that was dead long before is held up while
        # the mass lasts, and must not keep it alive.
        return Verdict(
            3,
            HostState.SUSPECT,
            f"mass silence: it fell silent together with others, {host.age_s:.1f} s ago"
            " (name those that are really down: muster host set-down)",
            mass_silent=host.mass_silent or host.name in mass,
        )
    if host.age_s > down_s:
        return Verdict(
            4,
            HostState.DOWN,
            f"silent for {host.age_s:.1f} s, more than service_down_time ({down_s:g} s)",
        )
    doubt, words = _doubt(host)
    if doubt:
        return Verdict(
            5, HostState.SUSPECT, words, doubt, blind=blind, mass_silent=host.name in mass
        )
    return Verdict(6, HostState.UP, "it reports in time", blind=blind)


def _doubt(host: HostFacts) -> tuple[str, str]:
    """The first doubt of row 5, as a word and in words."""
    if host.late:
        return "late", (
            f"silent for {host.age_s:.1f} s, more than {LATE:g} intervals of {host.interval_s:g} s"
        )
    if host.has_consumer is False:
        return "deaf", "nobody consumes its command queue"
    if host.canary_overdue:
        return "canary", "its agent speaks and does not answer commands: its canary is overdue"
    if host.owes_fate:
        return "fate", "a command was given up and its agent has not said what became of it"
    if not host.driver_healthy:
        return "driver", f"its hypervisor does not answer: {host.driver_message}"
    if host.clash:
        return "clash", "HOST_NAME_CLASH: two agents report under this name"
    if host.rolled_back and not host.session_open:
        return "rolled back", (
            "DB_ROLLED_BACK: its agent knows another state of the database, and gets no session"
            " (muster doctor)"
        )
    if not host.session_open:
        return "session", "it has no session yet"
    if not host.reported:
        return "inventory", "it has not told its guests in this session yet"
    return "", ""

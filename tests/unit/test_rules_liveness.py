"""Section 2 of the decision tables: up, suspect or down, row by row."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from common.states import HostState
from manager.rules.liveness import Hearing, HostFacts, Limits, Verdict, judge, mass_silence

INTERVAL_S = 10.0
DOWN_S = 60.0
LATE_S = 2.5 * INTERVAL_S
LIMITS = Limits(service_down_time_s=DOWN_S, silence_budget=1 / 3)
HEARING = Hearing(gapless_s=DOWN_S)


def host(name: str = "h1", age_s: float = 1.0, **changes: object) -> HostFacts:
    facts = HostFacts(name=name, state=HostState.UP, age_s=age_s, interval_s=INTERVAL_S)
    return replace(facts, **changes)  # type: ignore[arg-type]


def verdict(facts: HostFacts, *others: HostFacts, hearing: Hearing = HEARING) -> Verdict:
    mass = mass_silence([facts, *others], LIMITS)
    return judge(facts, hearing=hearing, mass=mass, limits=LIMITS)


def talkers(count: int) -> list[HostFacts]:
    return [host(f"up-{n}") for n in range(count)]


def silent(count: int, age_s: float = DOWN_S + 1, **changes: object) -> list[HostFacts]:
    return [host(f"silent-{n}", age_s, **changes) for n in range(count)]


# rows 1 to 6


@pytest.mark.parametrize("flag", ["fenced", "forced_down"])
def test_section2_row_1_what_an_operator_called_down_stays_down_however_loud_it_is(
    flag: str,
) -> None:
    found = verdict(host(age_s=0.0, **{flag: True}))
    assert (found.row, found.state) == (1, HostState.DOWN)
    assert "by an operator" in found.reason


def test_section2_row_1_comes_before_blindness() -> None:
    found = verdict(host(age_s=999.0, forced_down=True), hearing=Hearing(None))
    assert (found.row, found.state, found.blind) == (1, HostState.DOWN, False)


@pytest.mark.parametrize("state", list(HostState))
@pytest.mark.parametrize("gapless_s", [None, 0.0, DOWN_S - 0.1])
def test_section2_row_2_blind_managers_keep_the_last_known_state_of_a_silent_host(
    state: HostState, gapless_s: float | None
) -> None:
    found = verdict(host(age_s=10 * DOWN_S, state=state), hearing=Hearing(gapless_s))
    assert (found.row, found.state, found.blind) == (2, state, True)
    assert "blind" in found.reason


def test_section2_row_2_ends_when_somebody_has_heard_for_a_whole_service_down_time() -> None:
    found = verdict(host(age_s=DOWN_S + 1), *talkers(5), hearing=Hearing(DOWN_S))
    assert (found.row, found.blind) == (4, False)


def test_section2_row_2_is_about_silence_who_speaks_is_judged_by_what_it_says() -> None:
    up = verdict(host(age_s=1.0, state=HostState.SUSPECT), hearing=Hearing(None))
    assert (up.row, up.state, up.blind) == (6, HostState.UP, True)
    sick = verdict(host(age_s=1.0, driver_healthy=False), hearing=Hearing(None))
    assert (sick.row, sick.state, sick.blind) == (5, HostState.SUSPECT, True)


def test_section2_row_2_keeps_the_mark_of_mass_silence() -> None:
    found = verdict(host(age_s=999.0, mass_silent=True), hearing=Hearing(None))
    assert (found.blind, found.mass_silent) == (True, True)


def test_section2_row_3_many_silent_at_once_are_suspect_and_marked() -> None:
    group = silent(3)
    found = verdict(*group, *talkers(3))
    assert (found.row, found.state, found.mass_silent) == (3, HostState.SUSPECT, True)
    assert "set-down" in found.reason


def test_section2_row_3_takes_back_a_down_that_came_before_the_mass() -> None:
    early = host("silent-0", 3 * DOWN_S, state=HostState.DOWN)
    found = verdict(early, *silent(3)[1:], *talkers(3))
    assert (found.row, found.state) == (3, HostState.SUSPECT)


def test_section2_row_3_marks_a_late_host_of_the_mass_that_is_not_yet_silent_for_long() -> None:
    young = host("silent-0", LATE_S + 1)
    found = verdict(young, *silent(3)[1:], *talkers(3))
    assert (found.row, found.state, found.mass_silent) == (5, HostState.SUSPECT, True)


def test_section2_row_4_silent_for_longer_than_service_down_time_is_down() -> None:
    found = verdict(host(age_s=DOWN_S + 0.1), *talkers(5))
    assert (found.row, found.state) == (4, HostState.DOWN)
    assert "60.1 s" in found.reason
    assert "60 s" in found.reason


def test_section2_row_4_not_at_exactly_service_down_time() -> None:
    assert verdict(host(age_s=DOWN_S), *talkers(5)).row == 5


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"age_s": LATE_S + 0.1}, "25.1 s"),
        ({"has_consumer": False}, "command queue"),
        ({"canary_overdue": True}, "canary"),
        ({"owes_fate": True}, "has not said what became of it"),
        ({"driver_healthy": False, "driver_message": "libvirtd is away"}, "libvirtd is away"),
        ({"clash": True}, "HOST_NAME_CLASH"),
        ({"session_open": False}, "it has no session yet"),
        ({"session_open": False, "rolled_back": True}, "DB_ROLLED_BACK"),
    ],
)
def test_section2_row_5_each_doubt_makes_suspect_and_is_named(
    changes: dict[str, object], word: str
) -> None:
    found = verdict(host(**changes), *talkers(5))  # type: ignore[arg-type]
    assert (found.row, found.state) == (5, HostState.SUSPECT)
    assert word in found.reason


def test_section2_row_5_not_at_exactly_two_and_a_half_intervals() -> None:
    assert verdict(host(age_s=LATE_S)).row == 6


def test_section2_row_6_otherwise_up() -> None:
    found = verdict(host())
    assert (found.row, found.state, found.blind, found.mass_silent) == (
        6,
        HostState.UP,
        False,
        False,
    )


def test_section2_row_6_what_was_not_looked_at_counts_as_healthy() -> None:
    assert verdict(host(has_consumer=None, canary_overdue=None)).state is HostState.UP


@pytest.mark.parametrize("state", list(HostState))
def test_section2_row_6_whoever_speaks_is_up_again(state: HostState) -> None:
    assert verdict(host(state=state, mass_silent=True)).state is HostState.UP


# mass silence


def test_mass_silence_in_a_fleet_of_one_does_not_exist() -> None:
    assert verdict(host(age_s=DOWN_S + 1)).row == 4


def test_mass_silence_in_a_fleet_of_two_is_both() -> None:
    assert mass_silence([*silent(1), *talkers(1)], LIMITS) == frozenset()
    assert mass_silence(silent(2), LIMITS) == {"silent-0", "silent-1"}


def test_mass_silence_in_a_fleet_of_three_is_all_three() -> None:
    assert mass_silence([*silent(2), *talkers(1)], LIMITS) == frozenset()
    assert len(mass_silence(silent(3), LIMITS)) == 3


@pytest.mark.parametrize(
    ("count_silent", "count", "mass"),
    [
        (2, 4, False),  # fewer than three
        (3, 8, True),  # 3 > 8/3
        (3, 9, False),  # 3 is not more than 9/3
        (4, 12, False),
        (5, 12, True),
    ],
)
def test_mass_silence_is_at_least_three_and_more_than_the_budget(
    count_silent: int, count: int, mass: bool
) -> None:
    fleet = silent(count_silent) + talkers(count - count_silent)
    assert bool(mass_silence(fleet, LIMITS)) is mass


@pytest.mark.parametrize(
    ("budget", "fleet", "mass"),
    [
        (0.0, silent(3) + talkers(97), True),
        (0.0, silent(2) + talkers(98), False),
        (1.0, silent(9) + talkers(1), False),
        (1.0, silent(10), True),  # all of them
    ],
)
def test_mass_silence_at_the_edges_of_the_budget(
    budget: float, fleet: list[HostFacts], mass: bool
) -> None:
    limits = Limits(DOWN_S, budget)
    assert bool(mass_silence(fleet, limits)) is mass


def test_mass_silence_begins_when_hosts_are_late_before_one_is_down() -> None:
    assert len(mass_silence(silent(3, LATE_S + 0.1) + talkers(3), LIMITS)) == 3
    assert mass_silence(silent(3, LATE_S) + talkers(3), LIMITS) == frozenset()


def test_mass_silence_adds_up_hosts_that_fell_silent_one_after_the_other() -> None:
    staggered = [
        host("silent-0", 5 * DOWN_S, state=HostState.DOWN),
        host("silent-1", 2 * DOWN_S, state=HostState.DOWN),
        host("silent-2", LATE_S + 1, state=HostState.SUSPECT),
    ]
    assert len(mass_silence(staggered + talkers(3), LIMITS)) == 3


@pytest.mark.parametrize(("windows", "mass"), [(10.0, True), (10.01, False)])
def test_mass_silence_counts_silences_of_the_last_ten_service_down_times(
    windows: float, mass: bool
) -> None:
    fleet = [host("old", windows * DOWN_S, state=HostState.DOWN), *silent(2), *talkers(3)]
    assert bool(mass_silence(fleet, LIMITS)) is mass


def test_mass_silence_once_entered_lasts_however_old_it_grows() -> None:
    group = silent(3, 100 * DOWN_S, mass_silent=True)
    assert len(mass_silence(group + talkers(3), LIMITS)) == 3
    assert verdict(*group, *talkers(3)).state is HostState.SUSPECT


def test_mass_silence_is_left_by_each_host_when_it_speaks() -> None:
    rest = silent(2, 20 * DOWN_S, mass_silent=True)
    found = verdict(*rest, *talkers(4))
    assert (found.row, found.state, found.mass_silent) == (3, HostState.SUSPECT, True)
    spoke = verdict(replace(rest[0], age_s=0.0), rest[1], *talkers(4))
    assert (spoke.row, spoke.state, spoke.mass_silent) == (6, HostState.UP, False)


@pytest.mark.parametrize("flag", ["forced_down", "fenced"])
def test_mass_silence_does_not_count_hosts_that_an_operator_named(flag: str) -> None:
    named = [replace(h, **{flag: True}) for h in silent(3)]
    assert mass_silence(named + talkers(3), LIMITS) == frozenset()
    rest = host("rest", DOWN_S + 1)
    assert verdict(rest, *named, *talkers(3)).row == 4


def test_mass_silence_is_left_by_each_host_when_an_operator_names_it() -> None:
    group = silent(4, mass_silent=True)
    named = [replace(group[0], forced_down=True), replace(group[1], forced_down=True)]
    assert verdict(named[0], named[1], *group[2:], *talkers(3)).row == 1
    assert verdict(group[2], group[3], *named, *talkers(3)).row == 3


def test_mass_silence_does_not_count_disabled_hosts_on_either_side() -> None:
    disabled = silent(5, enabled=False)
    assert mass_silence(disabled + talkers(2), LIMITS) == frozenset()
    # Three silent of four enabled, whatever the number of disabled ones that speak.
    quiet = [replace(t, enabled=False) for t in talkers(90)]
    assert len(mass_silence([*silent(3), host("one"), *quiet], LIMITS)) == 3


def test_mass_silence_holds_up_disabled_hosts_too_but_does_not_mark_them() -> None:
    disabled = host("disabled", DOWN_S + 1, enabled=False)
    found = verdict(disabled, *silent(3), *talkers(3))
    assert (found.row, found.state, found.mass_silent) == (3, HostState.SUSPECT, False)


def test_mass_silence_is_not_kept_alive_by_hosts_that_were_dead_long_before() -> None:
    dead = [host(f"dead-{n}", 20 * DOWN_S, state=HostState.DOWN) for n in range(4)]
    during = verdict(dead[0], *dead[1:], *silent(4), *talkers(2))
    assert (during.row, during.state) == (3, HostState.SUSPECT)
    assert not during.mass_silent
    after = verdict(*dead, *talkers(6))
    assert (after.row, after.state) == (4, HostState.DOWN)

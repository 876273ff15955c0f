"""What simulated agents and managers write on: it outlives them, and no other fleet sees it."""

from __future__ import annotations

import pytest

from manager.store.mapping import metadata
from simulation.fleet import SimFleet
from simulation.journals import Disk, SimJournal
from simulation.runtime import SimRuntime
from simulation.world import World

FLOOR = "INSERT INTO floors VALUES ('vm-1', 3)"


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def runtime() -> SimRuntime:
    return SimRuntime(World(1), "h1")


def test_what_an_agent_wrote_outlives_it(disk: Disk, runtime: SimRuntime) -> None:
    first = disk.open(runtime)
    first.execute(FLOOR)
    first.close()
    assert disk.open(runtime).execute("SELECT * FROM floors").fetchall() == [("vm-1", 3)]


def test_what_was_not_committed_goes_with_the_agent(disk: Disk, runtime: SimRuntime) -> None:
    first = disk.open(runtime)
    first.execute("BEGIN")
    first.execute(FLOOR)
    first.close()
    assert disk.open(runtime).execute("SELECT * FROM floors").fetchall() == []


def test_a_lost_journal_is_followed_by_one_of_another_name(disk: Disk, runtime: SimRuntime) -> None:
    name = "SELECT value FROM meta WHERE key = 'journal_id'"
    first = disk.open(runtime)
    (old,) = first.execute(name).fetchone()
    first.execute(FLOOR)
    disk.lose()
    assert disk.is_empty
    second = disk.open(runtime)
    assert second.execute(name).fetchone() != (old,)
    assert second.execute("SELECT * FROM floors").fetchall() == []


def test_a_journal_is_rolled_back_to_its_copy(disk: Disk, runtime: SimRuntime) -> None:
    journal = disk.open(runtime)
    disk.keep()
    journal.execute(FLOOR)
    disk.roll_back()
    assert disk.open(runtime).execute("SELECT * FROM floors").fetchall() == []


def test_a_simulated_journal_is_a_journal(
    disk: Disk, runtime: SimRuntime, tmp_path: object
) -> None:
    first = SimJournal(str(tmp_path), runtime, disk)
    first.void("vm-1", 3)
    first.close()
    assert SimJournal(str(tmp_path), runtime, disk).floor("vm-1") == 3


def test_a_fleet_finds_no_row_of_the_one_before_and_tells_it_nothing() -> None:
    before, told = SimFleet(1), []
    before.database.watches.told = lambda *what: told.append(what)
    before.database.raw.execute("INSERT INTO macs VALUES ('0a:4d', 'vm-1', '2026-01-01')")
    assert told == [("given", "0a:4d", "vm-1")]
    before.close()
    fleet = SimFleet(2)
    tables = [fleet.database.raw.execute(f"SELECT count(*) FROM {t}") for t in metadata.tables]  # noqa: S608
    assert {counted.fetchone() for counted in tables} == {(0,)}
    fleet.close()
    assert len(told) == 1

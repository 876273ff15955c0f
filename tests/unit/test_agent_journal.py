"""The journal: what is written is there after a kill -9, and a floor never sinks."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from agent.journal import KEEP_CONFIRMED, KEEP_REFUSALS, Journal, Reception, State, not_run
from common import messages as m
from common.errors import BadConfig, IdReused, JournalUnavailable
from common.runtime import Runtime, Stopped


def command(
    command_id: str = "c-1",
    instance: str = "i-1",
    generation: int = 1,
    kind: m.CommandKind = m.CommandKind.STOP_VM,
) -> m.Command:
    return m.Command(
        id=command_id,
        kind=kind,
        fleet="f",
        host="h",
        session=1,
        instance=instance,
        generation=generation,
        timeout_s=10,
    )


def done(given: m.Command, outcome: m.Outcome = m.Outcome.SUCCEEDED) -> m.Result:
    return m.Result(
        id=given.id,
        command=given.id,
        kind=given.kind,
        instance=given.instance,
        generation=given.generation,
        outcome=outcome,
    )


def results(journal: Journal) -> dict[str, m.Result]:
    return {r.command: r for r in journal.pending(0, 10_000).results}


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(str(tmp_path), Runtime())
    yield journal
    journal.close()


def reopened(journal: Journal, folder: Path) -> Journal:
    journal.close()
    return Journal(str(folder), Runtime())


def test_a_command_is_new_once(journal: Journal) -> None:
    assert journal.receive(command()).reception is Reception.NEW
    assert journal.receive(command()).reception is Reception.KNOWN
    assert journal.start("c-1")
    assert not journal.start("c-1")
    assert journal.receive(command()).reception is Reception.KNOWN
    journal.finish(done(command()))
    assert journal.receive(command()).reception is Reception.FINISHED


def test_receiving_raises_the_floor_and_the_floor_refuses(journal: Journal) -> None:
    journal.receive(command(generation=4))
    assert journal.floor("i-1") == 4
    assert journal.receive(command("c-2", generation=4)).reception is Reception.STALE
    assert journal.receive(command("c-3", generation=3)).reception is Reception.STALE
    assert journal.receive(command("c-4", generation=5)).reception is Reception.NEW
    assert journal.receive(command("c-5", "i-2", 1)).reception is Reception.NEW
    refused = results(journal)
    assert {k: (r.outcome, r.error_code, r.floor) for k, r in refused.items()} == {
        "c-2": ("not_run", "STALE_COMMAND", 4),
        "c-3": ("not_run", "STALE_COMMAND", 4),
    }


def test_all_of_it_is_there_after_the_file_is_opened_again(
    journal: Journal, tmp_path: Path
) -> None:
    journal.receive(command("c-1", "i-1"))
    journal.receive(command("c-2", "i-2"))
    journal.start("c-2")
    journal.note("c-2", "17")
    journal.receive(command("c-3", "i-3", 7))
    journal.finish(done(command("c-3", "i-3", 7)))
    before = journal.meta()
    again = reopened(journal, tmp_path)
    held = {e.command.id: (e.state, e.note) for e in again.unfinished()}
    assert held == {"c-1": (State.RECEIVED, None), "c-2": (State.STARTED, "17")}
    assert list(results(again)) == ["c-3"]
    assert again.floor("i-3") == 7
    assert again.meta() == before
    again.close()


def test_the_sequence_rises_with_each_write_and_with_nothing_else(journal: Journal) -> None:
    first = journal.meta().journal_seq
    journal.receive(command())
    second = journal.meta().journal_seq
    journal.unfinished()
    assert first < second == journal.meta().journal_seq


def test_confirming_drops_the_answer_and_the_body_but_neither_id_nor_floor(
    journal: Journal, tmp_path: Path
) -> None:
    journal.receive(command())
    journal.start("c-1")
    journal.finish(done(command()))
    journal.confirm(["c-1", "never-heard-of"])
    assert not journal.pending(0, 10)
    journal.tidy()
    assert not journal.pending(0, 10)
    with sqlite3.connect(tmp_path / "journal.db") as db:
        assert db.execute("SELECT body FROM commands").fetchall() == [(None,)]
    assert journal.receive(command()).reception is Reception.FINISHED
    assert results(journal) == {"c-1": done(command())}
    assert journal.floor("i-1") == 1


def test_a_confirmation_that_was_not_written_yet_is_lost_with_the_agent_and_nothing_else(
    tmp_path: Path,
) -> None:
    runtime = Runtime()
    first = Journal(str(tmp_path), runtime)
    first.receive(command())
    first.finish(done(command()))
    first.confirm(["c-1"])
    runtime.kill()
    first.close()
    second = Journal(str(tmp_path), Runtime())
    assert results(second) == {"c-1": done(command())}
    second.confirm(["c-1"])
    second.receive(command("c-2", "i-2"))
    third = reopened(second, tmp_path)
    assert results(third) == {}
    third.confirm(["c-2"])
    third.close()


def test_a_confirmation_costs_no_write_of_its_own(journal: Journal) -> None:
    journal.receive(command())
    journal.finish(done(command()))
    before = journal.meta().journal_seq
    journal.confirm(["c-1"])
    assert journal.meta().journal_seq == before
    journal.receive(command("c-2", "i-2"))
    assert journal.meta().journal_seq == before + 1
    journal.tidy()
    assert journal.meta().journal_seq == before + 1


def test_confirmations_do_not_pile_up(journal: Journal) -> None:
    before = journal.meta().journal_seq
    for n in range(KEEP_CONFIRMED + 1):
        journal.confirm([f"c-{n}"])
    assert journal.meta().journal_seq == before + 1
    assert journal._confirmed == set()


def test_a_confirmation_outlives_a_write_that_fails(journal: Journal) -> None:
    journal.receive(command())
    journal.finish(done(command()))
    journal.confirm(["c-1"])
    with pytest.raises(IdReused):
        journal.receive(command(generation=7))
    journal._read(lambda db: db.execute("PRAGMA query_only = ON"))
    with pytest.raises(JournalUnavailable):
        journal.receive(command("c-2", "i-2"))
    journal._read(lambda db: db.execute("PRAGMA query_only = OFF"))
    assert results(journal) == {}
    journal.receive(command("c-3", "i-3"))
    assert results(journal) == {}
    assert journal._confirmed == set()


def test_what_is_written_together_is_one_write_that_nobody_sees_half_of(
    journal: Journal, tmp_path: Path
) -> None:
    before = journal.meta().journal_seq
    with journal.together():
        journal.receive(command())
        assert journal.start("c-1")
        with sqlite3.connect(tmp_path / "journal.db") as db:
            assert db.execute("SELECT count(*) FROM commands").fetchone() == (0,)
    assert journal.meta().journal_seq == before + 1
    assert [e.state for e in journal.unfinished()] == [State.STARTED]


def test_of_what_is_written_together_nothing_is_left_when_a_part_is_refused(
    journal: Journal,
) -> None:
    journal.receive(command())

    def both() -> None:
        with journal.together():
            journal.receive(command("c-2", "i-2"))
            journal.receive(command(generation=9))

    with pytest.raises(IdReused):
        both()
    assert [e.command.id for e in journal.unfinished()] == ["c-1"]
    assert journal.floor("i-2") is None
    journal.receive(command("c-3", "i-3"))
    assert [e.command.id for e in journal.unfinished()] == ["c-1", "c-3"]


def test_an_unfinished_command_keeps_its_body_whatever_is_confirmed(journal: Journal) -> None:
    journal.receive(command())
    journal.confirm(["c-1"])
    assert [e.command for e in journal.unfinished()] == [command()]


def test_an_id_that_was_forgotten_long_ago_is_refused_by_its_floor(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.journal.KEEP_RESULTS", 2)
    for n in range(1, 6):
        journal.receive(command(f"c-{n}", generation=n))
        journal.finish(done(command(f"c-{n}", generation=n)))
        journal.confirm([f"c-{n}"])
    assert journal.receive(command("c-5", generation=5)).reception is Reception.FINISHED
    assert journal.receive(command("c-1", generation=1)).reception is Reception.STALE


def test_a_terminate_ends_what_has_not_started_and_only_that(journal: Journal) -> None:
    journal.receive(command("c-1", generation=1))
    journal.start("c-1")
    journal.receive(command("c-2", generation=2))
    journal.receive(command("c-9", "i-9", 1))
    kind = m.CommandKind.TERMINATE_INSTANCE
    received = journal.receive(command("c-3", generation=3, kind=kind))
    assert received.ended == ("c-2",)
    assert [e.command.id for e in journal.unfinished()] == ["c-1", "c-9", "c-3"]
    assert results(journal)["c-2"].error_code == "SUPERSEDED"
    assert not journal.start("c-2")


def test_a_stop_supersedes_nothing(journal: Journal) -> None:
    journal.receive(command("c-1", generation=1))
    assert journal.receive(command("c-2", generation=2)).ended == ()


@pytest.mark.parametrize(
    ("steps", "asked", "answer", "left"),
    [
        ([], 3, "not_run", None),
        (["receive"], 3, "not_run", "VOIDED"),
        (["receive", "start"], 3, "running", None),
        (["receive", "start", "finish"], 3, "done", None),
        (["receive", "drop"], 3, "not_run", "NOT_WANTED"),
        (["receive", "start", "finish"], 4, "not_run", None),
        (["receive", "start"], 4, "running", None),
    ],
)
def test_what_a_void_answers(
    journal: Journal, steps: list[str], asked: int, answer: str, left: str | None
) -> None:
    given = command(generation=3)
    for step in steps:
        {
            "receive": lambda: journal.receive(given),
            "start": lambda: journal.start("c-1"),
            "finish": lambda: journal.finish(done(given)),
            "drop": lambda: journal.drop_unstarted("c-1", "NOT_WANTED", ""),
        }[step]()
    said, _ = journal.void("i-1", asked)
    assert said.answer == answer
    assert journal.floor("i-1") == asked
    code = results(journal)["c-1"].error_code if "c-1" in results(journal) else None
    assert code == left
    assert journal.receive(command("late", generation=asked)).reception is Reception.STALE


def test_a_void_asked_twice_has_one_answer_the_newest(journal: Journal) -> None:
    journal.receive(command())
    journal.start("c-1")
    journal.void("i-1", 1)
    journal.finish(done(command()))
    last, _ = journal.void("i-1", 1)
    assert journal.pending(0, 10).voids == (last,)
    assert last.answer is m.VoidOutcome.DONE


def test_a_void_that_finds_the_command_done_tells_its_result_again(journal: Journal) -> None:
    journal.receive(command())
    journal.finish(done(command()))
    journal.confirm(["c-1"])
    journal.void("i-1", 1)
    assert results(journal) == {"c-1": done(command())}


def test_a_void_of_an_older_generation_does_not_sink_the_floor(journal: Journal) -> None:
    journal.receive(command(generation=5))
    journal.void("i-1", 2)
    assert journal.floor("i-1") == 5
    assert [e.command.id for e in journal.unfinished()] == ["c-1"]


def test_a_flood_of_refusals_is_bounded(journal: Journal) -> None:
    for n in range(KEEP_REFUSALS + 20):
        journal.refuse(m.Refusal(id=f"r-{n}", code="BAD_MESSAGE", message="", body=""))
    kept = [r.id for r in journal.pending(0, 10_000).refusals]
    assert kept == [f"r-{n}" for n in range(20, KEEP_REFUSALS + 20)]


def test_answers_are_read_on_from_where_one_stopped(journal: Journal) -> None:
    for n in range(5):
        journal.answer(not_run(command(f"c-{n}"), "X", ""))
    first = journal.pending(0, 2)
    rest = journal.pending(first.last, 10)
    told = [r.id for r in first.results + rest.results]
    assert told == [f"c-{n}" for n in range(5)]
    assert journal.pending(rest.last, 10).last == rest.last


def test_a_welcome_raises_floors_and_is_remembered(journal: Journal, tmp_path: Path) -> None:
    journal.receive(command(generation=9))
    journal.welcome(
        m.Welcome(
            session=3,
            floors=(m.FloorEntry("i-1", 4), m.FloorEntry("i-2", 6)),
            store_timeline="t",
            store_mark=12,
        )
    )
    again = reopened(journal, tmp_path)
    assert (again.floor("i-1"), again.floor("i-2")) == (9, 6)
    meta = again.meta()
    assert (meta.session, meta.store_timeline, meta.store_mark) == (3, "t", 12)
    again.close()


def test_a_mark_below_the_known_one_is_not_followed_but_for_what_was_just_overtaken(
    journal: Journal, tmp_path: Path
) -> None:
    assert journal.follow("t", 12)
    assert journal.follow("t", 11)  # cast before the mark rose
    assert not journal.follow("t", 10)
    assert not journal.follow("another", 99)
    assert journal.meta().store_mark == 12
    again = reopened(journal, tmp_path)
    assert not again.follow("t", 11)  # that was not just now
    assert again.follow("t", 12)
    again.close()


def test_a_broken_file_is_set_aside_and_a_new_journal_begins(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Journal(str(tmp_path), Runtime())
    old = first.meta().journal_id
    first.close()
    (tmp_path / "journal.db").write_bytes(b"this was a database once" * 1000)
    second = Journal(str(tmp_path), Runtime())
    assert second.meta().journal_id != old
    assert [p.name for p in tmp_path.glob("journal.db.broken-*")]
    assert "set aside" in caplog.text
    second.close()


def test_a_journal_of_tomorrow_is_set_aside_too(tmp_path: Path) -> None:
    Journal(str(tmp_path), Runtime()).close()
    with sqlite3.connect(tmp_path / "journal.db") as db:
        db.execute("PRAGMA user_version = 99")
    Journal(str(tmp_path), Runtime()).close()
    assert len(list(tmp_path.glob("journal.db.broken-*"))) >= 1


def test_a_folder_has_one_agent(journal: Journal, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="in use by another agent"):
        Journal(str(tmp_path), Runtime())


def test_a_folder_that_can_not_be_made_is_a_matter_of_configuration(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadConfig, match="state_dir"):
        Journal(str(tmp_path / "file" / "below"), Runtime())


def test_a_killed_agent_writes_nothing_more(tmp_path: Path) -> None:
    runtime = Runtime()
    journal = Journal(str(tmp_path), runtime)
    runtime.kill()
    with pytest.raises(Stopped):
        journal.receive(command())
    journal.close()
    with pytest.raises(Stopped):
        journal.unfinished()


def test_what_is_committed_is_synced(journal: Journal) -> None:
    def pragma(name: str) -> Any:
        return journal._read(lambda db: db.execute(f"PRAGMA {name}").fetchone()[0])

    assert (pragma("journal_mode"), pragma("synchronous")) == ("wal", 2)


class JournalMachine(RuleBasedStateMachine):
    """Any order of casts, starts, ends, voids and kills: a command starts at most once."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.runtime = Runtime()
        self.journal = Journal(self._folder.name, self.runtime)
        self.commands: dict[str, m.Command] = {}
        self.floors: dict[str, int] = {}
        self.starts: dict[str, int] = {}
        self.ends: dict[str, m.Outcome] = {}

    @rule(
        target=ids,
        instance=st.sampled_from(["i-1", "i-2"]),
        generation=st.integers(1, 6),
        kind=st.sampled_from(list(m.CommandKind)),
    )
    def new(self, instance: str, generation: int, kind: m.CommandKind) -> str:
        given = command(f"c-{len(self.commands)}", instance, generation, kind)
        self.commands[given.id] = given
        return given.id

    @rule(command_id=ids)
    def receive(self, command_id: str) -> None:
        given = self.commands[command_id]
        received = self.journal.receive(given)
        if received.reception is Reception.NEW:
            assert given.generation > self.floors.get(given.instance, 0)
            self.floors[given.instance] = given.generation

    @rule(command_id=ids)
    def receive_and_start(self, command_id: str) -> None:
        with self.journal.together():
            self.receive(command_id)
            self.start(command_id)

    @rule(command_id=ids)
    def start(self, command_id: str) -> None:
        if self.journal.start(command_id):
            self.starts[command_id] = self.starts.get(command_id, 0) + 1

    @rule(command_id=ids)
    def finish(self, command_id: str) -> None:
        if self.starts.get(command_id):
            self.journal.finish(done(self.commands[command_id]))

    @rule(instance=st.sampled_from(["i-1", "i-2"]), generation=st.integers(1, 6))
    def void(self, instance: str, generation: int) -> None:
        answer, _ = self.journal.void(instance, generation)
        self.floors[instance] = max(generation, self.floors.get(instance, 0))
        if answer.answer is m.VoidOutcome.NOT_RUN:
            for given in self.commands.values():
                if (given.instance, given.generation) == (instance, generation):
                    assert given.id not in self.starts
                    assert not self.journal.start(given.id)

    @rule(command_id=ids)
    def confirm(self, command_id: str) -> None:
        self.journal.confirm([command_id])

    @rule(killed=st.booleans())
    def ended_and_opened_again(self, killed: bool) -> None:
        if killed:
            self.runtime.kill()
        self.journal.close()
        self.runtime = Runtime()
        self.journal = Journal(self._folder.name, self.runtime)

    @invariant()
    def nothing_runs_twice_and_no_end_is_taken_back(self) -> None:
        assert set(self.starts.values()) <= {1}
        for instance, floor in self.floors.items():
            assert self.journal.floor(instance) == floor
        for result in results(self.journal).values():
            if result.error_code != "STALE_COMMAND":
                assert self.ends.setdefault(result.command, result.outcome) == result.outcome

    def teardown(self) -> None:
        self.journal.close()
        self._folder.cleanup()


TestAnyOrder = JournalMachine.TestCase
TestAnyOrder.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)

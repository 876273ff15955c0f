"""The agent's durable memory: what it was told, what it has done, what it still has to tell.

One SQLite file. Every write is a transaction, on disk before the call returns, so that a kill -9
between any two calls leaves a state that the next agent can go on from. Only confirmations wait.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from agent import journal_file
from common import messages as m
from common.errors import IdReused, JournalUnavailable, MusterError
from common.ownership import is_stale
from common.runtime import Runtime, Stopped

T = TypeVar("T")

KEEP_RESULTS = 10_000
KEEP_REFUSALS = 200
KEEP_CONFIRMED = 200

OVERTAKEN_S = 5.0
KEEP = "INSERT OR REPLACE INTO meta VALUES (?, ?)"
RAISE_FLOOR = (
    "INSERT INTO floors VALUES (?, ?) ON CONFLICT (instance)"
    " DO UPDATE SET generation = max(generation, excluded.generation)"
)


class State(enum.StrEnum):
    """How far a journalled command has come."""

    RECEIVED = "RECEIVED"
    STARTED = "STARTED"
    FINISHED = "FINISHED"


class Reception(enum.Enum):
    """What `receive` made of a command."""

    NEW = "new"
    KNOWN = "known"
    FINISHED = "finished"
    STALE = "stale"


class Received(msgspec.Struct, frozen=True, kw_only=True):
    """`ended`: the ids of commands that this one superseded, their results journalled."""

    reception: Reception
    ended: tuple[str, ...] = ()

    @property
    def told(self) -> bool:
        """True when there is a new answer to tell."""
        return bool(self.ended) or self.reception in (Reception.STALE, Reception.FINISHED)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """An unfinished command as the journal has it; `note` is what its effect left there."""

    command: m.Command
    state: State
    note: str | None


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """Answers not confirmed yet; `last` is the number of the newest of them."""

    last: int
    results: tuple[m.Result, ...] = ()
    voids: tuple[m.VoidAnswer, ...] = ()
    refusals: tuple[m.Refusal, ...] = ()

    def __len__(self) -> int:
        return len(self.results) + len(self.voids) + len(self.refusals)


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """What a hello tells of the journal."""

    journal_id: str
    journal_seq: int
    store_timeline: str | None
    store_mark: int
    session: int | None


class _Write:
    """One caller's writing; several that come at once share a transaction."""

    def __init__(self, act: Callable[[sqlite3.Connection], Any]) -> None:
        self._act = act
        self.done = False
        self.value: Any = None
        self.error: BaseException | None = None

    def alone(self, db: sqlite3.Connection) -> None:
        self.value = self._act(db)

    def among_others(self, db: sqlite3.Connection) -> None:
        """What it refuses to write takes nothing of the others with it."""
        db.execute("SAVEPOINT one")
        try:
            self.value = self._act(db)
        except MusterError as exc:
            db.execute("ROLLBACK TO one")
            self.error = exc
        db.execute("RELEASE one")


class Journal:
    """The file `journal.db` of one state_dir; safe from several threads.

    Raises BadConfig when the folder can not be used or another agent uses it, JournalUnavailable
    when a write fails. Once closed, or when the runtime has been killed, every call raises
    Stopped: what a killed agent had not written yet stays unwritten.
    """

    def __init__(self, state_dir: str, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = runtime.lock()
        self._folder = Path(state_dir)
        self._confirmed: set[str] = set()
        # The managers' timeline, mark and when it was heard first, once they were looked up.
        self._store: tuple[str, int, float] | None = None
        self._grouped = False
        self._waiting: collections.deque[_Write] = collections.deque()
        self._guard = journal_file.claim(self._folder)
        try:
            self._db: sqlite3.Connection | None = self._open()
        except BaseException:
            os.close(self._guard)
            raise

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What is written inside is one transaction, on disk at the end: all of it or nothing."""
        with self._lock:
            try:
                self._read(self._begin)
                self._grouped = True
                yield
                self._read(self._commit)
            except BaseException:
                if self._db is not None:
                    _roll_back(self._db)
                raise
            finally:
                self._grouped = False

    # what arrives

    def receive(self, command: m.Command) -> Received:
        """Take a command: once by its id, never at or below its instance's floor.

        A terminate ends what it supersedes: older commands that have not started. IdReused when
        the id is that of another command, of which nothing changes.
        """

        def act(db: sqlite3.Connection) -> Received:
            row = db.execute(
                "SELECT state, result, body, instance, generation FROM commands WHERE id = ?",
                (command.id,),
            ).fetchone()
            if row is not None:
                _same(command, *row[1:])
                if row[0] != State.FINISHED:
                    return Received(reception=Reception.KNOWN)
                self._answer(db, msgspec.json.decode(row[1], type=m.Result))
                return Received(reception=Reception.FINISHED)
            floor = self._floor(db, command.instance)
            if is_stale(command.generation, floor):
                text = f"generation {command.generation} is not above the floor {floor}"
                self._answer(db, not_run(command, "STALE_COMMAND", text, floor))
                return Received(reception=Reception.STALE)
            db.execute(
                "INSERT INTO commands (id, instance, generation, state, body)"
                " VALUES (?, ?, ?, ?, ?)",
                (
                    command.id,
                    command.instance,
                    command.generation,
                    State.RECEIVED,
                    m.encode(command),
                ),
            )
            db.execute(RAISE_FLOOR, (command.instance, command.generation))
            ended: tuple[str, ...] = ()
            if command.kind is m.CommandKind.TERMINATE_INSTANCE:
                text = f"superseded by the terminate {command.id}"
                below = command.generation - 1
                ended = self._end_unstarted(db, command.instance, below, "SUPERSEDED", text)
            return Received(reception=Reception.NEW, ended=ended)

        return self._write(act)

    def void(self, instance: str, generation: int) -> tuple[m.VoidAnswer, tuple[str, ...]]:
        """Raise the floor, end what has not started; the answer and the ids of what it ended.

        A command that ran to its end is answered again beside it.
        """

        def act(db: sqlite3.Connection) -> tuple[m.VoidAnswer, tuple[str, ...]]:
            db.execute(RAISE_FLOOR, (instance, generation))
            text = f"voided up to generation {generation}"
            ended = self._end_unstarted(db, instance, generation, "VOIDED", text)
            outcome = m.VoidOutcome.NOT_RUN
            for seen, state, body in db.execute(
                "SELECT generation, state, result FROM commands"
                " WHERE instance = ? AND generation <= ? ORDER BY generation",
                (instance, generation),
            ).fetchall():
                if state == State.STARTED:
                    outcome = m.VoidOutcome.RUNNING
                    break
                # Older ones that finished long ago say nothing of the one that is asked about.
                if seen == generation:
                    result = msgspec.json.decode(body, type=m.Result)
                    if result.outcome is not m.Outcome.NOT_RUN:
                        outcome = m.VoidOutcome.DONE
                    self._answer(db, result)
            answer = m.VoidAnswer(
                id=self._runtime.new_id(),
                instance=instance,
                generation=generation,
                answer=outcome,
            )
            # Asked again before the last answer was confirmed: one answer, the newest.
            db.execute(
                "DELETE FROM answers WHERE kind = 'void' AND body ->> 'instance' = ?"
                " AND body ->> 'generation' = ?",
                (instance, generation),
            )
            self._answer(db, answer)
            return answer, ended

        return self._write(act)

    def refuse(self, refusal: m.Refusal) -> None:
        """Keep a refusal until a manager has it; of a flood only the newest are kept."""

        def act(db: sqlite3.Connection) -> None:
            self._answer(db, refusal)
            db.execute(
                "DELETE FROM answers WHERE kind = 'refusal' AND n <= (SELECT n FROM answers"
                " WHERE kind = 'refusal' ORDER BY n DESC LIMIT 1 OFFSET ?)",
                (KEEP_REFUSALS,),
            )

        self._write(act)

    def canary(self, command: m.Command) -> None:
        """Answer a command without effect, on disk like any other answer; it leaves no floor."""

        def act(db: sqlite3.Connection) -> None:
            taken = db.execute(
                "SELECT result, body, instance, generation FROM commands WHERE id = ?",
                (command.id,),
            ).fetchone()
            if taken is not None:
                _same(command, *taken)
            result = m.Result(
                id=command.id,
                command=command.id,
                kind=command.kind,
                instance=command.instance,
                generation=command.generation,
                outcome=m.Outcome.SUCCEEDED,
            )
            self._answer(db, result)

        self._write(act)

    def answer(self, result: m.Result) -> None:
        """Keep the result of a command that was never taken."""
        self._write(lambda db: self._answer(db, result))

    # what is done

    def start(self, command_id: str) -> bool:
        """Write down that the first effect comes next; False when the command has ended."""

        def act(db: sqlite3.Connection) -> bool:
            found = db.execute(
                "UPDATE commands SET state = ? WHERE id = ? AND state = ?",
                (State.STARTED, command_id, State.RECEIVED),
            )
            return found.rowcount == 1

        return self._write(act)

    def note(self, command_id: str, note: str) -> None:
        """Write down what the next agent must know should this one die in the effect."""
        self._write(
            lambda db: db.execute("UPDATE commands SET note = ? WHERE id = ?", (note, command_id))
        )

    def finish(self, *results: m.Result) -> None:
        """Commands have ended; each result is kept for its id and told until confirmed."""

        def act(db: sqlite3.Connection) -> None:
            for result in results:
                self._finish(db, result)

        self._write(act)

    def drop_unstarted(self, command_id: str, code: str, text: str) -> bool:
        """End a command that has not started as not run; False when it had."""

        def act(db: sqlite3.Connection) -> bool:
            row = db.execute(
                "SELECT body FROM commands WHERE id = ? AND state = ?",
                (command_id, State.RECEIVED),
            ).fetchone()
            if row is None:
                return False
            command = msgspec.json.decode(row[0], type=m.Command)
            self._finish(db, not_run(command, code, text))
            return True

        return self._write(act)

    def unfinished(self) -> tuple[Entry, ...]:
        """The commands that have no result yet, oldest first."""

        def act(db: sqlite3.Connection) -> tuple[Entry, ...]:
            rows = db.execute(
                "SELECT body, state, note FROM commands WHERE state != 'FINISHED' ORDER BY n"
            )
            return tuple(
                Entry(command=msgspec.json.decode(body, type=m.Command), state=State(s), note=note)
                for body, s, note in rows
            )

        return self._read(act)

    # what is told

    def pending(self, after: int, limit: int) -> Pending:
        """Unconfirmed answers numbered above `after`, oldest first."""

        def act(db: sqlite3.Connection) -> Pending:
            confirmed = msgspec.json.encode(self._confirmed)
            rows = db.execute(
                "SELECT n, kind, body FROM answers WHERE n > ?"
                " AND id NOT IN (SELECT value FROM json_each(?)) ORDER BY n LIMIT ?",
                (after, confirmed.decode(), limit),
            ).fetchall()
            return Pending(
                last=rows[-1][0] if rows else after,
                results=_of(rows, m.Result),
                voids=_of(rows, m.VoidAnswer),
                refusals=_of(rows, m.Refusal),
            )

        return self._read(act)

    def confirm(self, ids: Iterable[str]) -> None:
        """A manager has these answers: forget them, and the bodies of their commands.

        It is written down with the next write, or by `tidy`: who loses a confirmation tells once
        more. Floors stay for ever; a command's id stays with its result while it is among the
        last KEEP_RESULTS, and is refused by its floor after that.
        """
        with self._lock:
            self._confirmed.update(ids)
            many = len(self._confirmed) > KEEP_CONFIRMED
        if many:
            self.tidy()

    def tidy(self) -> None:
        """Write down what was confirmed since the last write."""
        if self._confirmed:
            self._write(lambda _db: None)

    # who we are

    def meta(self) -> Meta:
        """The journal's identity and what the last welcome left in it."""

        def act(db: sqlite3.Connection) -> Meta:
            kept = dict(db.execute("SELECT key, value FROM meta"))
            return Meta(
                journal_id=kept["journal_id"],
                journal_seq=int(kept["journal_seq"]),
                store_timeline=kept.get("store_timeline"),
                store_mark=int(kept.get("store_mark", 0)),
                session=int(kept["session"]) if "session" in kept else None,
            )

        return self._read(act)

    def welcome(self, welcome: m.Welcome) -> None:
        """Keep what a manager's welcome says of itself, and raise the floors it gives."""

        def act(db: sqlite3.Connection) -> None:
            db.executemany(
                KEEP,
                [
                    ("store_timeline", welcome.store_timeline),
                    ("store_mark", str(welcome.store_mark)),
                    ("session", str(welcome.session)),
                ],
            )
            db.executemany(RAISE_FLOOR, [(f.instance, f.generation) for f in welcome.floors])

        with self._lock:
            self._write(act)
            self._store = (welcome.store_timeline, welcome.store_mark, self._runtime.monotonic())

    def follow(self, timeline: str, mark: int) -> bool:
        """Keep how far the managers' store is; False when it is older than we know, or another.

        For a moment after it has risen, what was cast just before may still come in.
        """
        with self._lock:
            known = self._store
            if known is None:
                meta = self.meta()
                known = (meta.store_timeline or timeline, meta.store_mark, -OVERTAKEN_S)
            now = self._runtime.monotonic()
            least = known[1] - (now - known[2] < OVERTAKEN_S)
            if known[0] != timeline or mark < least:
                return False
            if mark > known[1]:
                self._write(lambda db: db.execute(KEEP, ("store_mark", str(mark))))
                known = (timeline, mark, now)
            self._store = known
            return True

    def floors(self) -> tuple[m.FloorEntry, ...]:
        """Every floor, for managers that have forgotten what they gave out."""

        def act(db: sqlite3.Connection) -> tuple[m.FloorEntry, ...]:
            rows = db.execute("SELECT instance, generation FROM floors ORDER BY instance")
            return tuple(m.FloorEntry(instance, generation) for instance, generation in rows)

        return self._read(act)

    def floor(self, instance: str) -> int | None:
        """The highest generation received or voided for an instance."""
        return self._read(lambda db: self._floor(db, instance))

    def close(self) -> None:
        """Release the file and the folder; safe to call twice."""
        with self._lock:
            with contextlib.suppress(JournalUnavailable, Stopped):
                self.tidy()
            if self._db is not None:
                self._db.close()
                self._db = None
                os.close(self._guard)

    # inside

    def _floor(self, db: sqlite3.Connection, instance: str) -> int | None:
        row = db.execute("SELECT generation FROM floors WHERE instance = ?", (instance,)).fetchone()
        return int(row[0]) if row else None

    def _finish(self, db: sqlite3.Connection, result: m.Result) -> None:
        done = db.execute(
            "UPDATE commands SET state = ?, result = ? WHERE id = ? AND state != ?",
            (State.FINISHED, m.encode(result), result.command, State.FINISHED),
        )
        if done.rowcount:
            self._answer(db, result)

    def _end_unstarted(
        self, db: sqlite3.Connection, instance: str, upto: int, code: str, text: str
    ) -> tuple[str, ...]:
        rows = db.execute(
            "SELECT body FROM commands WHERE instance = ? AND generation <= ? AND state = ?",
            (instance, upto, State.RECEIVED),
        ).fetchall()
        commands = [msgspec.json.decode(body, type=m.Command) for (body,) in rows]
        for command in commands:
            self._finish(db, not_run(command, code, text))
        return tuple(c.id for c in commands)

    def _answer(self, db: sqlite3.Connection, answer: m.Result | m.VoidAnswer | m.Refusal) -> None:
        # Replacing gives a new number, so that an answer asked for again goes out at once.
        db.execute(
            "INSERT OR REPLACE INTO answers (id, kind, body) VALUES (?, ?, ?)",
            (answer.id, _KINDS[type(answer)], m.encode(answer).decode()),
        )

    def _open(self) -> sqlite3.Connection:
        return journal_file.open_or_renew(self._folder, self._runtime)

    def _begin(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")
        keys = [(i,) for i in self._confirmed]
        if keys:
            db.executemany("DELETE FROM answers WHERE id = ?", keys)
            db.executemany(
                "UPDATE commands SET body = NULL, note = NULL WHERE id = ? AND state = 'FINISHED'",
                keys,
            )
            db.execute(
                "DELETE FROM commands WHERE body IS NULL"
                " AND n <= (SELECT max(n) FROM commands) - ?",
                (KEEP_RESULTS,),
            )

    def _commit(self, db: sqlite3.Connection) -> None:
        db.execute("UPDATE meta SET value = value + 1 WHERE key = 'journal_seq'")
        db.execute("COMMIT")
        self._confirmed.clear()

    def _write(self, act: Callable[[sqlite3.Connection], T]) -> T:
        """On disk when this returns. Whoever comes first writes for all that wait."""
        write = _Write(act)
        self._waiting.append(write)
        with self._lock:
            if self._grouped:
                self._waiting.remove(write)
                return self._read(act)
            if not write.done:
                self._write_all()
        if write.error is not None:
            raise write.error
        return write.value  # type: ignore[no-any-return]

    def _write_all(self) -> None:
        writes = []
        while self._waiting:
            writes.append(self._waiting.popleft())

        def transaction(db: sqlite3.Connection) -> None:
            try:
                self._begin(db)
                for write in writes:
                    write.alone(db) if len(writes) == 1 else write.among_others(db)
                self._commit(db)
            except BaseException:
                _roll_back(db)
                raise

        try:
            self._read(transaction)
        except BaseException as exc:  # noqa: BLE001 - each of the callers raises it
            for write in writes:
                write.error = exc
        finally:
            for write in writes:
                write.done = True

    def _read(self, act: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            if self._db is None or self._runtime.killed:
                raise Stopped
            try:
                return self._runtime.offload(act, self._db)
            except sqlite3.Error as exc:
                raise JournalUnavailable(
                    f"{self._folder / 'journal.db'}: {exc}", "check the disk of [agent] state_dir"
                ) from exc


def _roll_back(db: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):
        db.execute("ROLLBACK")


_KINDS: dict[type[Any], str] = {m.Result: "result", m.VoidAnswer: "void", m.Refusal: "refusal"}
M = TypeVar("M", bound=msgspec.Struct)


def _of(rows: Iterable[tuple[int, str, str]], kind: type[M]) -> tuple[M, ...]:
    return tuple(msgspec.json.decode(b, type=kind) for _, k, b in rows if k == _KINDS[kind])


def _same(
    command: m.Command, result: bytes | None, body: bytes | None, instance: str, generation: int
) -> None:
    """IdReused unless the command is the one that was journalled under its id.

    What belongs to the cast changes when it is cast again. Of one whose end was confirmed, less
    is kept.
    """
    known = (instance, generation)
    if body is not None:
        first = msgspec.json.decode(body, type=m.Command)
        cast = {name: getattr(first, name) for name in ("session", "store_timeline", "store_mark")}
        same = msgspec.structs.replace(command, **cast) == first
    else:
        ended = msgspec.json.decode(result or b"{}", type=m.Result)
        same = (command.instance, command.generation, command.kind) == (*known, ended.kind)
    if not same:
        raise IdReused(
            f"{command.kind} came under id {command.id}, which is that of another command of"
            f" instance {instance}, generation {generation}",
            "find who sends this",
        )


def not_run(command: m.Command, code: str, text: str, floor: int | None = None) -> m.Result:
    """The result of a command that had no effect; a result has its command's id."""
    return m.Result(
        id=command.id,
        command=command.id,
        kind=command.kind,
        instance=command.instance,
        generation=command.generation,
        outcome=m.Outcome.NOT_RUN,
        error_code=code,
        error=text,
        floor=floor,
    )

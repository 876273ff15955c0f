"""Agents' journals in memory: what a host's disk keeps from one life of its agent to the next."""

from __future__ import annotations

import sqlite3

from agent import journal_file
from agent.journal import Journal
from common.runtime import Runtime

TABLES = ("meta", "commands", "floors", "answers", "sqlite_sequence")


class _Database(sqlite3.Connection):
    """Closing it does to it what the end of its process would do."""

    def close(self) -> None:
        if self.in_transaction:
            self.rollback()


_SPARE: list[_Database] = []


class Disk:
    """Where one host's journal is."""

    def __init__(self) -> None:
        self._database: _Database | None = None
        self._kept: sqlite3.Connection | None = None

    @property
    def is_empty(self) -> bool:
        """True when there is no journal on it."""
        return self._database is None

    def open(self, runtime: Runtime) -> sqlite3.Connection:
        """The journal that is there, or a new one."""
        if self._database is None:
            self._database = _SPARE.pop() if _SPARE else _made()
            journal_file.name(self._database, runtime)
        return self._database

    def lose(self) -> None:
        """Its journal is gone; the agent has to be dead."""
        if self._database is not None:
            self._database.close()
            for table in TABLES:
                self._database.execute(f"DELETE FROM {table}")  # noqa: S608 - ours
            _SPARE.append(self._database)
            self._database = None

    def keep(self) -> None:
        """Put a copy of the journal aside, as it is now."""
        if self._database is not None:
            self._kept = sqlite3.connect(":memory:", check_same_thread=False)
            self._database.backup(self._kept)

    def roll_back(self) -> None:
        """The copy that was put aside takes its place; the agent has to be dead."""
        if self._kept is not None:
            self._database = self._database or _made()
            self._kept.backup(self._database)


def _made() -> _Database:
    made = sqlite3.connect(
        ":memory:", isolation_level=None, check_same_thread=False, factory=_Database
    )
    made.executescript(journal_file.SCHEMA)
    return made


class SimJournal(Journal):
    """The agent's journal on a disk that is no file."""

    def __init__(self, state_dir: str, runtime: Runtime, disk: Disk) -> None:
        self._disk = disk
        super().__init__(state_dir, runtime)

    def _open(self) -> sqlite3.Connection:
        return self._disk.open(self._runtime)

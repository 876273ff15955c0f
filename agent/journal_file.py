"""The journal's file: one agent has it, a broken one is set aside, a new one is made."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
from pathlib import Path

from common.errors import BadConfig
from common.runtime import Runtime

LOG = logging.getLogger(__name__)

VERSION = 1
BUSY_S = 10.0

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE commands (
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    instance TEXT NOT NULL,
    generation INTEGER NOT NULL,
    state TEXT NOT NULL,
    body BLOB,
    note TEXT,
    result BLOB
);
CREATE INDEX commands_instance ON commands (instance, generation);
CREATE INDEX commands_unfinished ON commands (n) WHERE state != 'FINISHED';
CREATE TABLE floors (instance TEXT PRIMARY KEY, generation INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE answers (
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    body BLOB NOT NULL
);
"""


def claim(folder: Path) -> int:
    """A lock that goes with the process, so that no two agents share a journal.

    Raises BadConfig when the folder can not be used, or is.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        guard = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as exc:
        raise BadConfig(
            f"[agent] state_dir {folder}: {exc.strerror}", "name a folder we may write"
        ) from exc
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(guard)
        raise BadConfig(
            f"[agent] state_dir {folder} is in use by another agent",
            "stop it, or give this one a folder of its own",
        ) from exc
    return guard


def open_or_renew(folder: Path, runtime: Runtime) -> sqlite3.Connection:
    """The journal of a folder that was claimed; a new one when it can not be read.

    Raises BadConfig when that can not be made either.
    """
    path = folder / "journal.db"
    try:
        return _connect(path, runtime)
    except sqlite3.Error as exc:
        aside = f"{path.name}.broken-{runtime.now():%Y%m%dT%H%M%S}"
        LOG.warning(
            "%s can not be read (%s): set aside as %s, a new journal begins; the managers"
            " give back the floors",
            path,
            exc,
            aside,
        )
    try:
        for tail in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{path}{tail}", folder / f"{aside}{tail}")
        return _connect(path, runtime)
    except (OSError, sqlite3.Error) as exc:
        raise BadConfig(
            f"[agent] state_dir: no journal can be made at {path}: {exc}", "check the disk"
        ) from exc


def _connect(path: Path, runtime: Runtime) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version not in (0, VERSION):
            raise sqlite3.DatabaseError(f"schema {version}, this agent knows {VERSION}")
        if version == 0:
            _make(db, runtime)
    except BaseException:
        db.close()
        raise
    return db


def _make(db: sqlite3.Connection, runtime: Runtime) -> None:
    db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {VERSION};")
    name(db, runtime)
    db.execute("COMMIT")


def name(db: sqlite3.Connection, runtime: Runtime) -> None:
    """What tells a new journal from all others."""
    db.executemany(
        "INSERT INTO meta VALUES (?, ?)",
        [("journal_id", runtime.new_id()), ("journal_seq", "0")],
    )

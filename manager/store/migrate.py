"""Schema migrations by alembic, whose scripts travel with this package."""

from __future__ import annotations

import logging
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from common.conf.database import Database
from common.errors import DatabaseUnavailable
from manager.store.engine import Store

LOG = logging.getLogger(__name__)
_ADVISORY_LOCK = 0x6D757374  # "must": one upgrade at a time on PostgreSQL


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def head() -> str:
    """The revision that this code works with."""
    found = ScriptDirectory.from_config(_config()).get_current_head()
    if found is None:
        raise AssertionError("no migrations are packaged")
    return found


def current(store: Store) -> str | None:
    """The revision that the database has; None for an empty one."""
    with store.engine.connect() as conn:
        return MigrationContext.configure(conn).get_current_revision()


def upgrade(store: Store) -> tuple[str | None, str]:
    """Bring the schema up to date; returns the revisions before and after."""
    try:
        with store.engine.begin() as conn:
            if store.dialect == "postgresql":
                conn.execute(sa.text("SELECT pg_advisory_xact_lock(:n)"), {"n": _ADVISORY_LOCK})
            before = MigrationContext.configure(conn).get_current_revision()
            config = _config()
            config.attributes["connection"] = conn
            command.upgrade(config, "head")
    except sa.exc.OperationalError as exc:
        reason = str(exc.orig).strip().splitlines()[0]
        raise DatabaseUnavailable(
            f"the database does not answer: {reason}", "check [database] connection"
        ) from exc
    return before, head()


def at_start(store: Store, settings: Database) -> None:
    """What a manager does about the schema when it starts."""
    wanted = settings.auto_upgrade
    if wanted is None:
        wanted = store.dialect == "sqlite"
    if wanted:
        before, after = upgrade(store)
        if before != after:
            LOG.info("schema upgraded from %s to %s", before or "nothing", after)
        return
    has = current(store)
    if has != head():
        raise DatabaseUnavailable(
            f"the database's schema is {has or 'missing'}, this manager needs {head()}",
            "run: muster db upgrade",
        )

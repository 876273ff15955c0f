"""A private PostgreSQL: its own cluster, socket and loopback port."""

from __future__ import annotations

import os
import pathlib
import signal
import uuid

from devstack.parts.base import (
    Part,
    PartError,
    as_user,
    children_of,
    find_binary,
    free_port,
    give_to,
    run,
    wait_for,
)

PACKAGE = "postgresql"
USER = "postgres"
PLACES = ("/usr/lib/postgresql/*/bin",)


class Postgres(Part):
    """A server with the superuser muster and the database muster.

    `durable` False trades surviving a power cut (not a kill -9) for speed. `count_statements`: each
    new database has the view pg_stat_statements.
    """

    name = "postgres"
    # "Fast": ends sessions instead of waiting for them.
    stop_signal = signal.SIGINT

    def __init__(
        self,
        folder: pathlib.Path | None = None,
        *,
        durable: bool = False,
        count_statements: bool = False,
    ) -> None:
        super().__init__(folder)
        self.port = free_port()
        self._durable = durable
        self._count_statements = count_statements

    @property
    def url(self) -> str:
        """SQLAlchemy URL of the database muster."""
        return self.url_of("muster")

    def url_of(self, database: str) -> str:
        return f"postgresql+psycopg://muster@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The SQLAlchemy URL of a fresh, empty database."""
        name = f"muster_{uuid.uuid4().hex[:12]}"
        self.sql(f"CREATE DATABASE {name}")
        if self._count_statements:
            self.sql("CREATE EXTENSION pg_stat_statements", name)
        return self.url_of(name)

    def sql(self, statement: str, database: str = "muster") -> str:
        """Run a statement as psql does; its output, unaligned."""
        return run(
            [
                *self._as_user,
                self._binary("psql"),
                f"--host={self._sockets}",
                f"--port={self.port}",
                "--username=muster",
                f"--dbname={database}",
                "--no-psqlrc",
                "--quiet",
                "--tuples-only",
                "--no-align",
                f"--command={statement}",
            ]
        )

    def prepare(self) -> None:
        give_to(USER, self._data, self._sockets)
        if (self._data / "PG_VERSION").exists():
            return
        run(
            [
                *self._as_user,
                self._binary("initdb"),
                f"--pgdata={self._data}",
                "--username=muster",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
                "--no-instructions",
            ]
        )

    def command(self) -> tuple[list[str], dict[str, str]]:
        sync = "on" if self._durable else "off"
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self._sockets),
            "fsync": sync,
            "full_page_writes": sync,
            # Without it a commit may wait in shared memory, which goes with a kill -9.
            "synchronous_commit": "on",
            "max_connections": "200",
            "shared_buffers": "64MB",
            "log_min_messages": "warning",
        }
        if self._count_statements:
            options["shared_preload_libraries"] = "pg_stat_statements"
        settings = [arg for key, value in options.items() for arg in ("-c", f"{key}={value}")]
        argv = [*self._as_user, self._binary("postgres"), "-D", str(self._data), *settings]
        return argv, dict(os.environ)

    def ready(self) -> bool:
        try:
            self.sql("SELECT 1", "postgres")
            if not self.sql("SELECT 1 FROM pg_database WHERE datname = 'muster'", "postgres"):
                self.sql("CREATE DATABASE muster", "postgres")
        except PartError:
            return False
        return True

    def kill(self) -> None:
        """kill -9 of the postmaster; returns when its children have noticed and gone."""
        backends = children_of(self.pid) if self.process is not None else set()
        super().kill()
        wait_for(
            lambda: not any(os.path.exists(f"/proc/{pid}") for pid in backends),
            self.stop_timeout_s,
            lambda: PartError("postgres: backends outlive their postmaster"),
        )

    @property
    def _data(self) -> pathlib.Path:
        return self.folder / "data"

    @property
    def _sockets(self) -> pathlib.Path:
        return self.folder / "sockets"

    @property
    def _as_user(self) -> list[str]:
        return as_user(USER)

    def _binary(self, name: str) -> str:
        return find_binary(name, PACKAGE, *PLACES)

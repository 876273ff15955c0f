"""The field of the storm: a real fleet with its own broker and database, and strangers on it."""

from __future__ import annotations

import contextlib
import datetime as dt
import random
import shutil
import sqlite3
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from common import conf
from common.bus import rabbit as rabbit_bus
from common.messages import GuestReport
from common.ownership import is_ours
from common.runtime import Runtime
from devstack.consoles import FLEET, MockConsole, SimulatedConsole, Witness
from devstack.faults.network import Network
from devstack.fleet import Real, Scratch, Times, all_up
from devstack.parts.base import Part, PartError, PartMissing
from devstack.parts.libvirtd import Libvirtd
from devstack.parts.postgres import Postgres
from devstack.parts.rabbitmq import RabbitMQ

MOCK_HOST = "mock"
JOURNAL = "journal.db"
# Short times, so that minutes hold what hours bring; all in proportion to the defaults.
TIMES = Times(
    report_interval=1.0,
    service_down_time=6.0,
    resend_after=2.0,
    command_timeout=20.0,
    missing_grace=5.0,
    tick_interval=0.3,
    stop_timeout=2.0,
)
OPTIONS: dict[str, dict[str, Any]] = {
    "manager": {"delete_timeout": 40.0},
    "agent": {"full_report_interval": 20.0},
    "libvirt": {"keepalive_interval": 2},
    # Effects take a moment, so that faults fall into the middle of them; some fail by themselves.
    "simulated": {"memory_mib": 262144, "latency": 0.05, "failure_rate": 0.003},
}


class Field:
    """Everything that runs; `close` ends it."""

    def __init__(self, agents: int, managers: int, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._ending = contextlib.ExitStack()
        self.manager_names = [f"manager-{n}" for n in range(1, managers + 1)]
        self.hosts = (*(f"host-{n}" for n in range(1, agents)), MOCK_HOST)
        self.locks = {name: threading.Lock() for name in (*self.manager_names, *self.hosts)}
        self.consoles = threading.Lock()
        self.strangers: dict[tuple[str, str], GuestReport] = {}
        # When an agent's journal was lost or rolled back, by the clock that the database has too.
        self.forgot: dict[str, list[dt.datetime]] = defaultdict(list)
        self.network: Network | None = None
        try:
            self._start(managers)
        except BaseException:
            self.close()
            raise

    def _start(self, managers: int) -> None:
        scratch = Scratch()
        self.folder = scratch.path
        self._ending.callback(self._sweep, scratch)
        self.keep = False
        prefixes = self._namespaces()
        at = self.network.address if self.network is not None else "127.0.0.1"
        self._tell("starting a private RabbitMQ, PostgreSQL and libvirtd")
        self.rabbit = RabbitMQ(also_at=[at] if self.network is not None else ())
        self.postgres = Postgres()
        mock = Libvirtd()
        # Side by side: each of them mostly waits.
        with ThreadPoolExecutor(3) as starting:
            begun = [starting.submit(self._begin, p) for p in (self.rabbit, self.postgres, mock)]
        for future in begun[:2]:
            future.result()
        daemon: Libvirtd | None = mock
        try:
            begun[2].result()
        except PartMissing as exc:
            self._tell(f"{exc}; all hypervisors are simulated")
            daemon = None
        connection_uris = {} if daemon is None else {MOCK_HOST: daemon.mock_uri}
        self._tell(f"starting {managers} managers and agents on {', '.join(self.hosts)}")
        self.fleet = Real(
            self.folder,
            self.hosts,
            managers=managers,
            times=TIMES,
            rabbit_url=self.rabbit.url,
            database_url=self.postgres.url,
            agents_rabbit_url=self.rabbit.url.replace("127.0.0.1", at),
            connection_uris=connection_uris,
            prefixes=prefixes,
            options=OPTIONS,
        )
        self._ending.callback(self.fleet.close)
        self.hypervisors: dict[str, Witness] = {
            host: SimulatedConsole(self.folder / "hypervisors", host)
            for host in self.hosts
            if host not in connection_uris
        }
        if daemon is not None:
            self.hypervisors[MOCK_HOST] = MockConsole(daemon)
        self.settings = conf.load("muster", ["--config-file", str(self.fleet.muster_config)])
        self.runtime = Runtime("operators")
        self.bus = rabbit_bus.connect(self.settings, self.runtime, "client")
        self._ending.callback(self.bus.close)
        self._engine = sa.create_engine(
            self.settings.database.connection,
            poolclass=sa.pool.NullPool,
            isolation_level="AUTOCOMMIT",
        )
        all_up(self.fleet, 120.0)

    def _namespaces(self) -> dict[str, Sequence[str]]:
        network = Network(self.hosts)
        try:
            network.up()
        except PartError as exc:
            self._tell(f"{exc}; hosts are frozen instead of cut off")
            return {}
        self._ending.callback(network.down)
        self.network = network
        return {host: network.prefix(host) for host in self.hosts}

    def _begin(self, part: Part) -> None:
        self._ending.callback(part.close)
        part.start()

    def rows(self, query: str, **parameters: Any) -> list[Any]:
        """What the database holds."""
        with self._engine.connect() as conn:
            return list(conn.execute(sa.text(query), parameters).all())

    # strangers

    def make_stranger(self, host: str, name: str) -> None:
        """A guest made by hand."""
        with self.consoles:
            made = self.hypervisors[host].make_stranger(name)
        self.strangers[host, made.hypervisor_uuid] = made

    def make_clone(self, host: str, name: str, dice: random.Random) -> None:
        """A copy of a guest of ours, its mark included; nothing when there is none to copy."""
        with self.consoles:
            ours = [g for g in self.hypervisors[host].guests().values() if of_ours(g)]
            if not ours:
                return
            # Kept before an agent can have a look at it.
            made = self.hypervisors[host].make_stranger(name, dice.choice(ours).mark)
        self.strangers[host, made.hypervisor_uuid] = made

    # journals

    @contextlib.contextmanager
    def kept_aside(self, host: str) -> Iterator[Path]:
        """A copy of an agent's journal as it is now, as a snapshot of its machine would hold it."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            aside = Path(folder) / JOURNAL
            with (
                contextlib.closing(sqlite3.connect(self._state_dir(host) / JOURNAL)) as journal,
                contextlib.closing(sqlite3.connect(aside)) as copy,
            ):
                journal.backup(copy)
            yield aside

    def forget(self, host: str, aside: Path | None = None) -> None:
        """An agent, which is dead now, comes back without its journal or with this copy of it."""
        self.forgot[host].append(dt.datetime.now(dt.UTC))
        shutil.rmtree(self._state_dir(host))
        if aside is not None:
            self._state_dir(host).mkdir()
            shutil.copy(aside, self._state_dir(host) / JOURNAL)

    def _state_dir(self, host: str) -> Path:
        return self.folder / "agents" / host

    # after the storm

    def calm(self) -> None:
        """Everything runs, answers and is reachable again."""
        self.rabbit.start()
        self.postgres.start()
        for host in self.hosts:
            self.hypervisors[host].mend()
            if self.network is not None:
                self.network.mend(host)
        for host in self.hosts:
            # Also one that an operator had set down and died in our storm without taking back.
            self.until_done("host", "unset-down", host)
        all_up(self.fleet, 120.0)

    def until_done(self, *args: str, limit_s: float = 60.0) -> None:
        """A `muster` command, again until it is done."""
        deadline = time.monotonic() + limit_s
        while (answer := self.fleet.muster(*args)).code != 0:
            if time.monotonic() > deadline:
                raise PartError(f"muster {' '.join(args)}: {answer.err}")

    def close(self) -> None:
        """End all that was started here."""
        self._ending.close()

    def _sweep(self, scratch: Scratch) -> None:
        if self.keep:
            self._tell(f"logs and configurations are kept in {scratch.path}")
        else:
            scratch.remove()


def of_ours(guest: GuestReport) -> bool:
    """True for a guest that carries this fleet's mark, written to that very guest."""
    return is_ours(
        guest.mark,
        fleet=FLEET,
        hypervisor_uuid=guest.hypervisor_uuid,
        template=guest.template,
    )

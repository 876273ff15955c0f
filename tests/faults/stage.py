"""A real fleet on the stage: its processes, an operator beside them, and the truth of each part.

The operator is the `muster` command run in this process on the fleet's own broker, because waiting
means asking often; `stage.fleet.muster` is the command as a process of its own. What Muster says is
checked against the hypervisors' own consoles and, where no command shows it, against its tables.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from agent.drivers.simulated.store import Faults, Store
from client import main as client_main
from common import conf
from common.bus import rabbit as rabbit_bus
from common.messages import GuestReport
from common.runtime import Runtime
from devstack.consoles import Console
from devstack.fleet import Answer, Real, Scratch, Times, all_up
from tests.wait import wait_until

OPEN = ("PENDING", "RUNNING")
GATE = 4711


class Stage:
    """One fleet under test."""

    def __init__(self, fleet: Real) -> None:
        self.fleet, self.hosts = fleet, fleet.hosts
        self.settings = conf.load("muster", ["--config-file", str(fleet.muster_config)])
        self.runtime = Runtime("operator")
        self.bus = rabbit_bus.connect(self.settings, self.runtime, "client")
        self._engine = sa.create_engine(
            self.settings.database.connection,
            poolclass=sa.pool.NullPool,
            isolation_level="AUTOCOMMIT",
        )

    def close(self) -> None:
        self.bus.close()
        self.runtime.stop(2.0)
        self._engine.dispose()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """A failure inside shows the ends of all logs."""
        try:
            yield
        except BaseException as exc:
            exc.add_note(self.fleet.log_tails())
            raise

    # the operator

    def muster(self, *args: str) -> Answer:
        out, err = io.StringIO(), io.StringIO()
        code = client_main.run(
            list(args), bus=self.bus, settings=self.settings, stdout=out, stderr=err
        )
        return Answer(code, out.getvalue(), err.getvalue())

    def ask(self, *args: str) -> Any:
        answer = self.muster(*args, "-f", "json")
        assert answer.out, f"muster {' '.join(args)}: exit {answer.code}: {answer.err}"
        return answer.json()

    def accept(self, *args: str) -> str:
        """The job of a wish that a manager has accepted."""
        answer = self.muster(*args, "-f", "json")
        assert answer.code == 0, f"muster {' '.join(args)}: exit {answer.code}: {answer.err}"
        return str(answer.json()["uuid"])

    def insist(self, *wish: str, job: str | None = None) -> str:
        """The job of a wish, made as an operator makes it who is told to repeat what got no answer.

        A manager that has died, or stands still, may have taken it.
        """
        job = job or self.runtime.new_id()
        again = [*wish, "--job", job]
        wait_until(lambda: self.muster(*again).code == 0, 60, f"{' '.join(wish)} is accepted")
        return job

    def done(self, *args: str) -> dict[str, Any]:
        """A wish that is followed to its success."""
        return self.ended(self.accept(*args), "SUCCEEDED")

    def create(self, name: str, *options: str) -> dict[str, Any]:
        """A VM that runs."""
        self.done("vm", "create", name, "--vcpus", "1", "--memory", "96", *options)
        return self.vm(name)

    def vm(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("vm", "show", name)
        return found

    def host(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("host", "show", name)
        return found

    def job(self, uuid: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("job", "show", uuid)
        return found

    def ended(self, job: str, *states: str, within_s: float = 30.0) -> dict[str, Any]:
        """The job, once it has ended in one of `states` (any final one if none is named)."""
        try:
            found = wait_until(
                lambda: (now := self.job(job))["state"] not in OPEN and now,
                within_s,
                f"job {job} ends",
            )
        except AssertionError as exc:
            exc.add_note(str(self.job(job)))
            raise
        assert isinstance(found, dict)
        assert not states or found["state"] in states, found
        return found

    def becomes(self, host: str, *states: str, within_s: float = 30.0) -> dict[str, Any]:
        """The host, once it is in one of `states`."""
        found = wait_until(
            lambda: (now := self.host(host))["state"] in states and now,
            within_s,
            f"{host} becomes {' or '.join(states)}",
        )
        assert isinstance(found, dict)
        return found

    def tombstone(self, name: str) -> dict[str, Any]:
        stones = self.ask("tombstone", "list")
        return next((t for t in stones if t["name"] == name), {})

    def findings(self, code: str) -> list[dict[str, Any]]:
        return [f for f in self.ask("doctor") if f["code"] == code]

    # the truth of the parts

    def rows(self, query: str, **parameters: Any) -> list[Any]:
        """What Muster's own tables hold."""
        with self._engine.connect() as conn:
            found = conn.execute(sa.text(query), parameters)
            return list(found.all()) if found.returns_rows else []

    def connect(self) -> sa.engine.Connection:
        """A session of our own on the fleet's database."""
        return self._engine.connect()

    def became(self, kind: str) -> list[str]:
        """The texts of all events of a kind, oldest first."""
        found = self.rows("SELECT text FROM events WHERE kind = :kind ORDER BY at", kind=kind)
        return [row[0] for row in found]

    def became_down(self) -> list[str]:
        """Every time that a host was called DOWN."""
        return [text for text in self.became("host.state") if "-> DOWN" in text]

    def console(self, host: str) -> Console:
        return self.fleet.console(host)

    def guest(self, host: str, name: str) -> GuestReport | None:
        """The one guest of this name by its hypervisor's own account; None when there is none."""
        found = [g for g in self.console(host).guests().values() if g.name == name]
        assert len(found) <= 1, found
        return found[0] if found else None

    def fault(self, host: str, **ops: str | float) -> None:
        """Break operations of a simulated hypervisor: a mode, or the seconds that each takes.

        Those that are not named work again.
        """
        store = Store(str(self.fleet.folder / "hypervisors"), host)
        store.make()
        store.set_faults(
            Faults(
                ops={op: mode for op, mode in ops.items() if isinstance(mode, str)},
                latency_s={op: s for op, s in ops.items() if isinstance(s, float)},
            )
        )

    def starts(self, host: str) -> int:
        """How often a simulated hypervisor has started guests, strangers' included."""
        counter = self.fleet.folder / "hypervisors" / host / "domain_id"
        return int(counter.read_text()) if counter.exists() else 0

    def log(self, process: str) -> str:
        """All that a manager or agent has logged."""
        return (self.fleet.folder / f"{process}.log").read_text(errors="replace")

    def live_managers(self) -> None:
        """Return once every manager that was started has opened its doors."""
        for name in self.fleet.managers:
            wait_until(lambda name=name: "is up" in self.log(name), 30, f"{name} is up")


@contextlib.contextmanager
def staged(
    hosts: Sequence[str],
    rabbit_url: str,
    database_url: str,
    times: Times | None = None,
    **more: Any,
) -> Iterator[Stage]:
    """A fleet of simulated hypervisors (or what `more` says), every host UP."""
    scratch = Scratch()
    try:
        fleet = Real(
            scratch.path,
            hosts,
            times=times,
            rabbit_url=rabbit_url,
            database_url=database_url,
            **more,
        )
        stage = Stage(fleet)
        try:
            with stage.watched():
                stage.live_managers()
                all_up(stage)  # type: ignore[arg-type] # it asks for hosts and `muster` only
                yield stage
        finally:
            stage.close()
            fleet.close()
    finally:
        scratch.remove()


def never(what: Callable[[], Any], for_s: float, of: str) -> None:
    """Fail as soon as `what()` is true within the next `for_s` seconds."""
    deadline = time.monotonic() + for_s
    while time.monotonic() < deadline:
        found = what()
        assert not found, f"{of}: {found}"
        time.sleep(0.1)


@contextlib.contextmanager
def publishing_stalled(stage: Stage) -> Iterator[sa.engine.Connection]:
    """The transaction that claims a command waits at a gate in the database, which we hold closed.

    It is the one that accepts the wish, too: whoever asks waits with it.
    """
    stage.rows(
        "CREATE OR REPLACE FUNCTION muster_gate() RETURNS trigger AS $$ BEGIN"
        f" PERFORM pg_advisory_xact_lock({GATE}); RETURN NEW; END $$ LANGUAGE plpgsql"
    )
    stage.rows("DROP TRIGGER IF EXISTS gate ON commands")
    stage.rows(
        "CREATE TRIGGER gate BEFORE INSERT OR UPDATE ON commands FOR EACH ROW"
        " WHEN (NEW.state = 'PUBLISHED' AND NEW.kind <> 'noop') EXECUTE FUNCTION muster_gate()"
    )
    with stage.connect() as gate:
        gate.execute(sa.text(f"SELECT pg_advisory_lock({GATE})"))
        try:
            yield gate
        finally:
            gate.execute(sa.text("SELECT pg_advisory_unlock_all()"))


def waiting_at_the_gate(stage: Stage) -> int:
    """How many transactions."""
    query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    return int(stage.rows(query)[0][0])

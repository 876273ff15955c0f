"""What a piece of work has cost: SQL statements, commits, AMQP publishes and CPU time.

Everything is read where it is spent - PostgreSQL's own view, RabbitMQ's own counters, the kernel's
account of each process - so that nothing has to be counted by the programs that are measured.
"""

from __future__ import annotations

import os
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import psycopg

from devstack.parts.base import children_of
from devstack.parts.postgres import Postgres
from devstack.parts.rabbitmq import RabbitMQ

OBSERVER = "observer"
"""The database role of those who only look: nothing of theirs is counted."""

CLIENT = "client"
TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")

# Of the managers' role, which is `muster`; each sum is a whole number.
_CALLS = """
SELECT coalesce(sum(calls) FILTER (WHERE query !~* '^(begin|commit|rollback)'), 0)::bigint,
       coalesce(sum(calls) FILTER (WHERE query ~* '^commit'), 0)::bigint,
       pg_snapshot_xmax(pg_current_snapshot())::text::bigint
FROM pg_stat_statements
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND userid = 'muster'::regrole
"""
_STATEMENTS = """
SELECT queryid::text, query, calls, total_exec_time FROM pg_stat_statements
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND userid = 'muster'::regrole
"""
_RECEIPTS = "SELECT accepted_at, coalesce(published_at, accepted_at) FROM commands WHERE job = %s"
_PUBLISHED = (
    "maps:get(messages_received_total,"
    " maps:get([{protocol, amqp091}], rabbit_global_counters:overview()))"
)


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What was spent within `seconds`: counts, and CPU seconds by who spent them."""

    seconds: float
    statements: float
    """SQL statements without BEGIN, COMMIT and ROLLBACK."""
    commits: float
    """COMMIT statements, those of transactions that only read included."""
    writes: float
    """Transactions that changed something."""
    publishes: float
    """AMQP messages that the broker was given, an operator's request and its answer included."""
    cpu_s: Mapping[str, float]

    def less(self, idle: Cost, count: float) -> Cost:
        """The cost of one of `count`, without what an idle fleet costs in the same time."""

        def each(whole: float, background: float) -> float:
            return (whole - background * self.seconds / idle.seconds) / count

        return Cost(
            seconds=self.seconds / count,
            statements=each(self.statements, idle.statements),
            commits=each(self.commits, idle.commits),
            writes=each(self.writes, idle.writes),
            publishes=each(self.publishes, idle.publishes),
            cpu_s={who: each(s, idle.cpu_s.get(who, 0.0)) for who, s in self.cpu_s.items()},
        )

    def each(self, count: float) -> Cost:
        """The share of one of `count`."""
        return self.less(_NOTHING, count)

    @property
    def fleet_cpu_s(self) -> float:
        """CPU seconds of everyone but the operators."""
        return sum(s for who, s in self.cpu_s.items() if who != CLIENT)


_NOTHING = Cost(seconds=1, statements=0, commits=0, writes=0, publishes=0, cpu_s={})


def mean(costs: Sequence[Cost]) -> Cost:
    """The mean of some costs, of which there is one at least."""
    n = len(costs)
    return Cost(
        seconds=sum(c.seconds for c in costs) / n,
        statements=sum(c.statements for c in costs) / n,
        commits=sum(c.commits for c in costs) / n,
        writes=sum(c.writes for c in costs) / n,
        publishes=sum(c.publishes for c in costs) / n,
        cpu_s={who: sum(c.cpu_s[who] for c in costs) / n for who in costs[0].cpu_s},
    )


def allow_observers(postgres: Postgres) -> None:
    """Make their role, which is the whole server's."""
    if OBSERVER not in postgres.sql("SELECT rolname FROM pg_roles").split():
        postgres.sql(f"CREATE ROLE {OBSERVER} SUPERUSER LOGIN")


def observer(url: str) -> psycopg.Connection[Any]:
    """A connection of the role whose statements and processor time are nobody's."""
    address = url.replace("postgresql+psycopg://muster@", f"postgresql://{OBSERVER}@")
    return psycopg.connect(address, autocommit=True)


class Counters:
    """Reads all counters of a fleet; `processes` names its process ids, by group."""

    def __init__(
        self,
        broker: RabbitMQ,
        postgres: Postgres,
        database_url: str,
        processes: Callable[[], Mapping[str, Iterable[int]]],
    ) -> None:
        self._broker, self._postgres, self._processes = broker, postgres, processes
        self._db = observer(database_url)

    def close(self) -> None:
        self._db.close()

    def measure(self, work: Callable[[], Any]) -> Cost:
        """Do a piece of work; what it has cost."""
        before = self._read()
        begun = time.monotonic()
        work()
        seconds = time.monotonic() - begun
        after = self._read()
        return Cost(
            seconds=seconds,
            statements=after[0] - before[0],
            commits=after[1] - before[1],
            writes=after[2] - before[2],
            publishes=after[3] - before[3],
            cpu_s={who: s - before[4].get(who, 0.0) for who, s in after[4].items()},
        )

    def statements(self) -> dict[str, tuple[str, int, float]]:
        """{statement's id: (its text, calls, milliseconds in the server)} since the beginning."""
        rows = self._db.execute(_STATEMENTS).fetchall()
        return {key: (re.sub(r"\s+", " ", text), calls, ms) for key, text, calls, ms in rows}

    def receipts(self, job: str) -> tuple[float, float]:
        """When a job's command was accepted and published, in seconds since 1970."""
        row = self._db.execute(_RECEIPTS, (job,)).fetchone()
        if row is None:
            raise LookupError(f"job {job} has no command")
        return row[0].timestamp(), row[1].timestamp()

    def _read(self) -> tuple[int, int, int, int, dict[str, float]]:
        statements, commits, xids = self._db.execute(_CALLS).fetchone() or (0, 0, 0)
        published = int(self._broker.evaluate(_PUBLISHED))
        lookers = {
            int(pid)
            for (pid,) in self._db.execute(
                "SELECT pid FROM pg_stat_activity WHERE usename = %s", (OBSERVER,)
            )
        }
        cpu = {who: cpu_of(pids) for who, pids in self._processes().items()}
        cpu["RabbitMQ"] = cpu_of([self._broker.pid])
        cpu["PostgreSQL"] = cpu_of([self._postgres.pid], without=lookers)
        return int(statements), int(commits), int(xids), published, cpu


def cpu_of(pids: Iterable[int], without: Iterable[int] = ()) -> float:
    """CPU seconds of processes and all their descendants, also those that have ended."""
    total, left, passed = 0.0, list(pids), set(without)
    while left:
        pid = left.pop()
        if pid in passed:
            continue
        passed.add(pid)
        try:
            stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
            left += children_of(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
        # utime, stime, cutime, cstime; the program's name, in brackets, may hold anything.
        total += sum(int(ticks) for ticks in stat.rpartition(")")[2].split()[11:15]) * TICK_S
    return total

"""Does a manager hear? Promise 5 rests on it: silence is evidence only for one who could hear."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from common import messages as m
from common.bus.memory import Broker
from common.conf import Settings, database, default, manager
from common.conf.database import Database
from common.errors import BadMessage, DatabaseUnavailable
from common.runtime import Runtime
from common.states import HostState
from devstack.parts.postgres import Postgres
from manager.flows import hello, liveness
from manager.intake.reports import Intake
from manager.service import Manager
from manager.store import migrate
from manager.store.engine import Store, create_all, wait_ready
from manager.store.hosts import Host, ManagerRow
from manager.store.instances import Instance
from tests.functional.fleet import DOWN_S, FLEET, INTERVAL_S, Clock
from tests.wait import wait_until

GREETING = m.Hello(
    hello_id="x",
    fleet=FLEET,
    host="h1",
    agent_run="r",
    agent_version="1",
    driver="simulated",
    interval_s=INTERVAL_S,
    host_boot="b",
    journal_id="j",
    journal_seq=0,
    store_timeline=None,
    store_mark=0,
)


class Ear:
    """A manager that is not started: its beats and echoes come when the test says so."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.broker = Broker(self.clock)
        settings = Settings(
            default=default.Default(fleet_id=FLEET, host="m", report_interval=INTERVAL_S),
            manager=manager.Manager(service_down_time=DOWN_S),
            database=database.Database(connection="sqlite://"),
        )
        self.manager = Manager(settings, self.broker.bus(self.clock), self.clock)
        create_all(self.manager.store)
        self.hearing = self.manager._hearing
        self.handle = self.hearing.listening(Intake(self.manager.store, settings))

    def echo(self) -> None:
        self.handle(f"beat.{self.manager.id}", b"{}", None)

    def listen(self, seconds: float) -> None:
        """Beats go out and come back, once a second."""
        for _ in range(int(seconds)):
            self.clock.move(1.0)
            self.hearing.beat()
            self.echo()

    @property
    def gapless_s(self) -> float | None:
        return self.manager.store.run(liveness.hearing, self.manager.settings).gapless_s

    @property
    def gap(self) -> str:
        (row,) = self.manager.store.run(lambda tx: tx.all(ManagerRow))
        return row.gap


@pytest.fixture
def ear() -> Ear:
    return Ear()


def test_a_manager_that_has_heard_nothing_yet_has_heard_nothing(ear: Ear) -> None:
    assert ear.gapless_s is None
    ear.hearing.beat()
    assert ear.gapless_s is None


def test_what_it_hears_without_a_gap_adds_up(ear: Ear) -> None:
    ear.echo()
    ear.listen(90)
    assert ear.gapless_s == 90
    assert "started" in ear.gap


def test_a_beat_that_does_not_come_back_is_a_gap(ear: Ear) -> None:
    ear.listen(90)
    for _ in range(15):
        ear.clock.move(1.0)
        ear.hearing.beat()
    assert ear.gapless_s is None
    ear.echo()
    assert ear.gapless_s == 0
    assert "no echo" in ear.gap


def test_a_loop_that_stood_still_is_a_gap_even_if_the_echo_is_there_at_once(ear: Ear) -> None:
    ear.listen(90)
    ear.clock.move(55)
    ear.echo()
    assert ear.gapless_s == 0
    assert "came 55.0 s after" in ear.gap


def test_a_connection_that_was_lost_is_a_gap(ear: Ear) -> None:
    ear.listen(90)
    ear.hearing.gap("the broker is away")
    ear.listen(5)
    assert ear.gapless_s == 4
    assert ear.gap == "the broker is away"


@pytest.mark.parametrize("jump_s", [120.0, -120.0])
def test_a_database_clock_that_jumped_is_a_gap(ear: Ear, jump_s: float) -> None:
    ear.listen(90)
    monotonic = ear.clock.monotonic
    ear.clock.monotonic = lambda: monotonic() - jump_s  # type: ignore[method-assign]
    ear.hearing._last = ear.clock.monotonic()
    ear.hearing._write_at = float("-inf")
    ear.clock.move(1.0)
    ear.echo()
    assert ear.gapless_s == 0
    assert "clock jumped" in ear.gap


def test_a_database_that_was_away_is_a_gap(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    ear.listen(90)
    store = ear.manager.store

    def away(*_: object) -> None:
        raise DatabaseUnavailable("it is away", "wait")

    with monkeypatch.context() as patch:
        patch.setattr(store, "run", away)
        ear.clock.move(1.0)
        ear.echo()
    ear.listen(5)
    assert ear.gapless_s == 4
    assert "it is away" in ear.gap


def test_a_database_that_has_gone_back_is_a_gap(ear: Ear) -> None:
    """Its hosts were heard long ago by what it says, and nobody has been silent."""
    store, cfg = ear.manager.store, ear.manager.settings
    ear.listen(90)
    store.run(hello.welcome, cfg, GREETING)
    store.run(liveness.judge_all, cfg)
    with store.engine.begin() as conn:
        backup = {
            kind: [dict(row._mapping) for row in conn.execute(sa.select(kind.__table__))]
            for kind in (Host, ManagerRow)
        }
    ear.listen(2 * DOWN_S)
    with store.engine.begin() as conn:
        for kind, rows in backup.items():
            conn.execute(sa.delete(kind.__table__))
            conn.execute(sa.insert(kind.__table__), rows)
    for _ in range(int(DOWN_S) - 1):
        ear.listen(1)
        store.run(liveness.judge_all, cfg)
        assert store.run(lambda tx: tx.get(Host, "h1")).state is not HostState.DOWN
    assert "gone back" in ear.gap
    # And of one that is silent from now on, that is seen in its time.
    ear.listen(10)
    store.run(liveness.judge_all, cfg)
    assert store.run(lambda tx: tx.get(Host, "h1")).state is HostState.DOWN


def test_a_row_that_was_lost_with_the_database_is_a_gap_too(ear: Ear) -> None:
    ear.listen(90)
    ear.manager.store.run(lambda tx: tx.delete_where(ManagerRow))
    ear.listen(5)
    assert ear.gapless_s == 4
    assert "gone back" in ear.gap


def test_reports_go_through_beside_the_beats(ear: Ear) -> None:
    with pytest.raises(BadMessage):
        ear.handle("heartbeat.h1", b"{", None)


def test_an_outage_of_the_broker_kills_no_host(ear: Ear) -> None:
    store, cfg = ear.manager.store, ear.manager.settings
    ear.listen(90)
    store.run(hello.welcome, cfg, GREETING)
    ear.hearing.gap("the broker is away")
    ear.clock.move(55.0)
    ear.listen(DOWN_S - 1)
    store.run(liveness.judge_all, cfg)
    host = store.run(lambda tx: tx.get(Host, "h1"))
    assert (host.state, host.blind) == (HostState.SUSPECT, True)
    ear.listen(2)
    store.run(liveness.judge_all, cfg)
    assert store.run(lambda tx: tx.get(Host, "h1")).state is HostState.DOWN


def test_a_running_manager_hears_its_own_beats() -> None:
    runtime, operator = Runtime("manager"), Runtime("operator")
    settings = Settings(
        default=default.Default(fleet_id=FLEET, report_interval=0.2),
        manager=manager.Manager(service_down_time=1.0, tick_interval=0.1),
        database=database.Database(connection="sqlite://"),
    )
    broker = Broker(operator)
    one = Manager(settings, broker.bus(runtime), runtime)
    one.start()
    try:
        wait_until(
            lambda: (one.store.run(liveness.hearing, settings).gapless_s or 0) > 1.0, 30, "hearing"
        )
    finally:
        one.stop(5.0)
        operator.stop(1.0)
    assert one.ready.is_set()


# the real database


@pytest.mark.real
def test_a_postgresql_without_a_schema_says_what_to_do(postgres: Postgres) -> None:
    store = Store(Database(connection=postgres.new_database()), Runtime("test"))
    assert wait_ready(store, lambda: False)
    with pytest.raises(DatabaseUnavailable, match="no schema") as caught:
        store.run(lambda tx: tx.all(Instance))
    assert "muster db upgrade" in caught.value.remedy
    with pytest.raises(DatabaseUnavailable, match="missing"):
        migrate.at_start(store, Database())
    assert migrate.upgrade(store) == (None, migrate.head())
    assert store.run(lambda tx: tx.all(Instance)) == []
    store.close()


@pytest.mark.real
def test_a_postgresql_that_does_not_answer_is_told_in_one_line(postgres: Postgres) -> None:
    port = postgres.port
    url = postgres.url.replace(f":{port}/", ":1/")
    store = Store(Database(connection=url), Clock())
    for work in (lambda: store.run(lambda tx: tx.all(Instance)), lambda: migrate.upgrade(store)):
        with pytest.raises(DatabaseUnavailable) as caught:
            work()
        assert "\n" not in str(caught.value)
    looks: list[int] = []
    assert not wait_ready(store, lambda: len(looks) > 1 or bool(looks.append(1)))
    store.close()


@pytest.mark.real
def test_postgresql_tells_the_time_of_the_moment(postgres: Postgres) -> None:
    """clock_timestamp(), not the start of the transaction, and not this machine's clock."""
    store = Store(Database(connection=postgres.new_database()), Clock())
    create_all(store)
    assert store.run(lambda tx: tx.now) != Clock().now()
    assert store.run(lambda tx: tx.now).tzinfo is not None
    store.close()

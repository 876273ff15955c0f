"""Broker and database: away at the start, restarted under a fleet, lost with their queues."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from devstack.consoles import runs
from devstack.fleet import Scratch, Service
from devstack.parts.postgres import Postgres
from devstack.parts.rabbitmq import RabbitMQ
from tests.faults.stage import Stage, publishing_stalled, staged, waiting_at_the_gate
from tests.wait import wait_until

pytestmark = pytest.mark.real

STOP_S = 10.0


@pytest.fixture(scope="module")
def own_rabbit() -> Iterator[RabbitMQ]:
    """A broker that may be killed."""
    with RabbitMQ() as part:
        yield part


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[Postgres]:
    """A database that may be killed."""
    with Postgres() as part:
        yield part


def no_traceback(log: str) -> None:
    assert "Traceback" not in log, log
    assert 'File "' not in log, log


def stops_in_time(service: Service) -> None:
    began = time.monotonic()
    service.signal(signal.SIGTERM)
    assert service.popen.wait(STOP_S + 5.0) == 0
    assert time.monotonic() - began < STOP_S


# at the start


@pytest.fixture
def late() -> Iterator[tuple[Path, RabbitMQ, Postgres]]:
    """A folder, and a broker and a database that do not run yet but have their ports."""
    scratch, broker, database = Scratch(), RabbitMQ(), Postgres()
    try:
        yield scratch.path, broker, database
    finally:
        broker.close()
        database.close()
        scratch.remove()


def test_a_start_without_broker_and_database_says_so_once_and_works_when_they_come(
    late: tuple[Path, RabbitMQ, Postgres],
) -> None:
    folder, broker, database = late
    config = folder / "muster.conf"
    config.write_text(
        f"[DEFAULT]\ntransport_url = {broker.url}\nfleet_id = demo\nhost = alpha\n"
        f"report_interval = 0.5\n[database]\nconnection = {database.url}\nauto_upgrade = true\n"
        "[manager]\nservice_down_time = 5\nauto_enable_hosts = true\ntick_interval = 0.2\n"
        f"[agent]\ndriver = simulated\nstate_dir = {folder}/agent\n"
        f"[simulated]\nstate_dir = {folder}/hypervisors\n"
    )
    logs = {name: folder / f"{name}.log" for name in ("manager", "agent", "early")}
    services = {
        name: Service(f"muster-{name}", config, logs[name]) for name in ("manager", "agent")
    }

    def said(name: str, *words: str) -> bool:
        return all(word in logs[name].read_text() for word in words)

    try:
        port = f"127.0.0.1:{broker.port}"
        wait_until(lambda: said("manager", "DATABASE_UNAVAILABLE", "again in 0.4 s"), 30, "manager")
        wait_until(lambda: said("agent", f"the broker at {port} is away"), 30, "agent")
        # One that is not wanted any more while it waits.
        early = Service("muster-manager", config, logs["early"])
        wait_until(lambda: said("early", "DATABASE_UNAVAILABLE"), 30, "early")
        stops_in_time(early)
        with database, contextlib.ExitStack() as later:
            wait_until(lambda: said("manager", f"the broker at {port} is away"), 30, "manager")
            assert all(service.running() for service in services.values())
            later.enter_context(broker)
            wait_until(lambda: said("manager", f"the broker at {port} is back"), 60, "manager")
            wait_until(lambda: said("agent", "session 1"), 60, "the agent has its session")
            for name in services:
                log = logs[name].read_text()
                no_traceback(log)
                # Once as an outage, not once per try.
                assert log.count("is away") == 1, log
                stops_in_time(services[name])
    except BaseException as exc:
        for name, log in logs.items():
            exc.add_note(f"--- {name}\n{log.read_text() if log.exists() else ''}")
        raise
    finally:
        for service in services.values():
            service.kill()


# under a running fleet


def test_a_fleet_outlives_its_broker_and_its_database(
    own_rabbit: RabbitMQ, own_postgres: Postgres
) -> None:
    with staged(["alpha", "beta"], own_rabbit.url, own_postgres.new_database()) as stage:
        for name in ("restarted", "stopped"):
            stage.create(name, "--host", "alpha")

        _restart_of_the_broker(stage, own_rabbit)
        _loss_of_all_queues(stage, own_rabbit)
        _kill_of_the_database(stage, own_postgres)

        for process in ("manager-1", "manager-2", "alpha", "beta"):
            no_traceback(stage.log(process))
        assert not stage.became_down()
        assert stage.rows("SELECT count(*) FROM jobs WHERE state <> 'SUCCEEDED'") == [(0,)]


def _restart_of_the_broker(stage: Stage, broker: RabbitMQ) -> None:
    """kill -9 with commands under way: they end, and each ran once."""
    stage.fault("alpha", start=2.0, reboot=2.0)
    jobs = [
        stage.accept("vm", "reboot", "restarted", "--force"),
        stage.accept("vm", "create", "made", "--vcpus", "1", "--memory", "96", "--host", "alpha"),
    ]
    started = "SELECT count(*) FROM commands WHERE state = 'STARTED'"
    wait_until(lambda: stage.rows(started) == [(2,)], 30, "both are under way")
    broker.kill()
    # Their results find no broker.
    wait_until(lambda: stage.starts("alpha") == 4, 30, "both had their effect")
    broker.start()
    for job in jobs:
        stage.ended(job, "SUCCEEDED")
    assert stage.starts("alpha") == 4
    stage.fault("alpha")
    _all_up(stage)


def _loss_of_all_queues(stage: Stage, broker: RabbitMQ) -> None:
    """Commands accepted while the broker dies, which comes back as new; the manager dies too."""
    wishes = {
        stage.runtime.new_id(): wish
        for wish in (
            ["vm", "stop", "stopped", "--force"],
            ["vm", "create", "kept", "--vcpus", "1", "--memory", "96"],
            ["vm", "delete", "made"],
        )
    }
    with ThreadPoolExecutor(len(wishes)) as operators:
        with publishing_stalled(stage):
            for job, wish in wishes.items():
                operators.submit(stage.muster, *wish, "--job", job)
            all_wait = "the commands are being claimed"
            wait_until(lambda: waiting_at_the_gate(stage) == len(wishes), 30, all_wait)
            broker.kill()
        published = "SELECT count(*) FROM commands WHERE state = 'PUBLISHED' AND kind <> 'noop'"
        wait_until(lambda: stage.rows(published)[0][0] == 3, 30, "cast into the void")
        stage.fleet.managers.pop("manager-1").kill()
        shutil.rmtree(broker.folder / "data")
        broker.start()
        stage.fleet.start_manager("manager-2")
    for job, wish in wishes.items():
        stage.insist(*wish, job=job)
        stage.ended(job, "SUCCEEDED")
    stopped = stage.guest("alpha", "stopped")
    assert stopped is not None
    assert not runs(stopped)
    assert stage.guest("alpha", "made") is None
    _all_up(stage)


def _kill_of_the_database(stage: Stage, database: Postgres) -> None:
    """kill -9 while an agent works: its result waits until the managers can store it."""
    stage.fault("alpha", start=2.0)
    starts = stage.starts("alpha")
    job = stage.accept("vm", "start", "stopped")
    started = "SELECT count(*) FROM commands WHERE state = 'STARTED'"
    wait_until(lambda: stage.rows(started) == [(1,)], 30, "it is under way")
    database.kill()
    answer = stage.muster("vm", "list")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.startswith("muster: DATABASE_UNAVAILABLE: "), answer.err
    assert answer.err.count("\n") == 1
    wait_until(lambda: stage.starts("alpha") == starts + 1, 30, "it had its effect")
    database.start()
    stage.ended(job, "SUCCEEDED")
    assert stage.vm("stopped")["vm_state"] == "ACTIVE"
    assert stage.starts("alpha") == starts + 1
    stage.fault("alpha")
    _all_up(stage)


def _all_up(stage: Stage) -> None:
    for host in stage.hosts:
        stage.becomes(host, "UP")


def test_the_processes_reload_their_log_level_and_stop_in_time(
    own_rabbit: RabbitMQ, postgres: Postgres
) -> None:
    """Also with a command in hand, and while the broker is frozen."""
    with staged(["alpha", "beta"], own_rabbit.new_vhost(), postgres.new_database()) as stage:
        services = {**stage.fleet.managers, **stage.fleet.agents}

        def reload(level: str) -> None:
            for name, service in services.items():
                config = stage.fleet.folder / f"{name}.conf"
                lines = [x for x in config.read_text().splitlines() if "log_level" not in x]
                lines.insert(lines.index("[DEFAULT]") + 1, f"log_level = {level}")
                config.write_text("\n".join(lines))
                service.signal(signal.SIGHUP)

        reload("LOUD")
        for name in services:
            wait_until(lambda name=name: "BAD_CONFIG" in stage.log(name), 30, f"{name} refuses")
        reload("ERROR")
        wait_until(lambda: not _tells(stage, services), 30, "all are quiet")
        reload("INFO")
        wait_until(lambda: _tells(stage, services) == set(services), 30, "all tell again")

        stage.create("web-1", "--host", "alpha")
        stage.fault("alpha", reboot=60.0)
        stage.accept("vm", "reboot", "web-1", "--force")
        started = "SELECT count(*) FROM commands WHERE state = 'STARTED'"
        wait_until(lambda: stage.rows(started) == [(1,)], 30, "it is under way")
        own_rabbit.freeze()
        try:
            began = time.monotonic()
            for service in services.values():
                service.signal(signal.SIGTERM)
            for name, service in services.items():
                assert service.popen.wait(STOP_S + 5.0) == 0, name
            assert time.monotonic() - began < STOP_S
        finally:
            own_rabbit.thaw()
        for name in services:
            no_traceback(stage.log(name))


def _tells(stage: Stage, services: dict[str, Service]) -> set[str]:
    """Make every process work; those that tell of it in their logs."""
    before = {name: len(stage.log(name)) for name in services}
    for host in stage.hosts:
        stage.create(f"vm-{host}", "--host", host)
        stage.done("vm", "delete", f"vm-{host}")
    return {name for name in services if len(stage.log(name)) > before[name]}

"""The delete of a VM whose agent was killed a moment ago ends by itself, whatever happens then."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from devstack.fleet import Times
from devstack.parts.postgres import Postgres
from devstack.parts.rabbitmq import RabbitMQ
from tests.faults.stage import Stage, staged
from tests.wait import wait_until

pytestmark = pytest.mark.real

TIMES = Times(report_interval=0.5, service_down_time=3.0)
DELETE_TIMEOUT_S = 6.0
# Those that fall silent are never so many at once that the managers doubt themselves.
HOSTS = ("alpha", "beta", "gamma", "delta", "bystander")


@pytest.fixture(scope="module")
def stage(rabbit: RabbitMQ, postgres: Postgres) -> Iterator[Stage]:
    with staged(
        HOSTS,
        rabbit.new_vhost(),
        postgres.new_database(),
        TIMES,
        options={"manager": {"delete_timeout": DELETE_TIMEOUT_S, "canary_interval": 1.0}},
    ) as stage:
        yield stage


@pytest.fixture(autouse=True)
def watched(stage: Stage) -> Iterator[None]:
    with stage.watched():
        yield


def made(stage: Stage, name: str, host: str) -> None:
    stage.becomes(host, "UP")
    stage.create(name, "--host", host)


def is_gone(stage: Stage, name: str, host: str) -> None:
    """The record, the guest and all that was kept from others."""
    wait_until(lambda: stage.tombstone(name)["state"] == "CLOSED", 30, f"{host} has answered")
    assert stage.guest(host, name) is None
    assert stage.muster("vm", "delete", name, "--idempotent").code == 0
    held = "SELECT name FROM macs JOIN instances ON uuid = instance WHERE name = :name"
    assert stage.rows(held, name=name) == []


def test_section3_row_3_two_operators_delete_at_once_one_job_and_both_see_its_end(
    stage: Stage,
) -> None:
    made(stage, "twice", "alpha")
    stage.fault("alpha", destroy=1.0)
    together = threading.Barrier(2)

    def delete(operator: str) -> tuple[int, str]:
        together.wait(30)
        wish = ("vm", "delete", "twice", "--wait", "--reason", operator, "-f", "json")
        answer = stage.muster(*wish)
        return answer.code, answer.json()["uuid"]

    with ThreadPoolExecutor(2) as operators:
        (first, job), (second, same) = operators.map(delete, ("ann", "ben"))
    stage.fault("alpha")
    assert (first, second) == (0, 0)
    assert job == same
    cast = "SELECT count(*) FROM commands WHERE kind = 'terminate_instance' AND job = :job"
    assert stage.rows(cast, job=job)[0][0] == 1
    is_gone(stage, "twice", "alpha")


def test_section3_row_8_the_agent_was_killed_and_returns(stage: Stage) -> None:
    made(stage, "returns", "alpha")
    stage.fleet.kill_agent("alpha")
    job = stage.accept("vm", "delete", "returns")
    stage.fleet.start_agent("alpha")
    stage.ended(job, "SUCCEEDED")
    is_gone(stage, "returns", "alpha")


def test_section3_row_9_the_agent_was_killed_and_does_not_return(stage: Stage) -> None:
    made(stage, "dead", "beta")
    stage.fleet.kill_agent("beta")
    job = stage.accept("vm", "delete", "dead")
    assert stage.job(job)["state"] == "RUNNING"
    stage.ended(job, "SUCCEEDED")
    assert "DB-only" in str(stage.job(job)["steps"])
    assert stage.tombstone("dead")["state"] == "OPEN"
    # It was to stay away for ever, and is reaped all the same should it not.
    assert stage.guest("beta", "dead") is not None
    stage.fleet.start_agent("beta")
    is_gone(stage, "dead", "beta")


def test_section3_row_8_the_agent_stands_still_and_goes_on(stage: Stage) -> None:
    made(stage, "stopped", "gamma")
    stage.fleet.agents["gamma"].signal(signal.SIGSTOP)
    job = stage.accept("vm", "delete", "stopped")
    stage.ended(job, "SUCCEEDED")
    assert stage.tombstone("stopped")["state"] == "OPEN"
    stage.fleet.agents["gamma"].signal(signal.SIGCONT)
    is_gone(stage, "stopped", "gamma")


def test_section3_row_8_a_host_looks_up_but_is_dead(stage: Stage) -> None:
    """Somebody goes on sending its heartbeats, word for word; nobody takes its commands."""
    for name in ("haunted", "owed"):
        made(stage, name, "delta")
    stage.fleet.kill_agent("delta")
    with heartbeats_of(stage, "delta"):
        jobs = [stage.accept("vm", "delete", name) for name in ("haunted", "owed")]
        for job in jobs:
            ended = stage.ended(job, "FAILED")
            assert ended["error_code"] == "DELETE_TIMEOUT"
        # It was heard all the time, and its canary told that it is deaf.
        host = stage.host("delta")
        assert (host["state"], "canary" in host["reason"]) == ("SUSPECT", True), host
        found = stage.vm("owed")
        assert (found["vm_state"], found["task_state"]) == ("ERROR", "none")
        assert stage.tombstone("owed")["state"] == "OPEN"
    # Silent at last: the deletions that were owed end without it.
    gone = "SELECT count(*) FROM instances WHERE name IN ('haunted', 'owed') AND host IS NULL"
    wait_until(lambda: stage.rows(gone)[0][0] == 2, 30, "the records are gone")
    stage.fleet.start_agent("delta")
    for name in ("haunted", "owed"):
        is_gone(stage, name, "delta")


@contextlib.contextmanager
def heartbeats_of(stage: Stage, host: str) -> Iterator[None]:
    """The signs of life of an agent that is dead, in its own session."""
    ((session, run),) = stage.rows("SELECT session, agent_run FROM hosts WHERE name = :h", h=host)
    fields = {
        "schema": 1,
        "fleet": stage.settings.default.fleet_id,
        "host": host,
        "session": session,
        "agent_run": run,
        "seq": 10**6,
        "interval_s": TIMES.report_interval,
        "driver": {"name": "simulated", "healthy": True},
    }
    enough = threading.Event()

    def speak() -> None:
        while not enough.wait(TIMES.report_interval):
            said = {**fields, "sent_at": stage.runtime.now().isoformat()}
            stage.bus.publish(f"heartbeat.{host}", json.dumps(said).encode())

    ghost = threading.Thread(target=speak, name="ghost", daemon=True)
    ghost.start()
    try:
        yield
    finally:
        enough.set()
        ghost.join()

"""What holds every delete that nobody can be sure of.

Hosts that fall silent one after the other, a broker that stands still, and `muster freeze`.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from devstack.fleet import Times
from devstack.parts.postgres import Postgres
from devstack.parts.rabbitmq import RabbitMQ
from tests.faults.stage import OPEN, Stage, never, staged
from tests.wait import wait_until

pytestmark = pytest.mark.real

TIMES = Times(report_interval=0.5, service_down_time=2.5)
HOSTS = ("alpha", "beta", "gamma", "delta")
LONG_S = 2 * TIMES.service_down_time


@pytest.fixture(scope="module")
def stage(rabbit: RabbitMQ, postgres: Postgres) -> Iterator[Stage]:
    with staged(HOSTS, rabbit.new_vhost(), postgres.new_database(), TIMES) as stage:
        yield stage


@pytest.fixture(autouse=True)
def watched(stage: Stage) -> Iterator[None]:
    with stage.watched():
        for host in HOSTS:
            stage.becomes(host, "UP")
        yield


def gone(stage: Stage, name: str) -> bool:
    """The record is deleted, or a tombstone was left: by the database's own account."""
    deleted = "SELECT 1 FROM instances WHERE name = :name AND vm_state = 'DELETED'"
    buried = "SELECT 1 FROM tombstones WHERE name = :name"
    return bool(stage.rows(deleted, name=name) or stage.rows(buried, name=name))


def send(stage: Stage, number: signal.Signals, *hosts: str) -> None:
    for host in hosts:
        stage.fleet.agents[host].signal(number)


def test_section3_row_7_hosts_that_fall_silent_one_after_the_other_are_a_mass_too(
    stage: Stage,
) -> None:
    stage.create("early", "--host", "alpha")
    silent = ("alpha", "beta", "gamma")
    send(stage, signal.SIGSTOP, "alpha")
    stage.becomes("alpha", "DOWN")
    send(stage, signal.SIGSTOP, "beta", "gamma")
    for host in silent:
        wait_until(lambda host=host: stage.host(host)["mass_silence"], 30, f"{host} in the mass")
    # Also of the one that had been called DOWN before.
    assert stage.host("alpha")["state"] == "SUSPECT"
    (foreseen,) = stage.ask("vm", "delete", "early", "--dry-run")
    assert foreseen["row"] == 7, foreseen
    job = stage.accept("vm", "delete", "early")
    downs = len(stage.became_down())
    never(lambda: gone(stage, "early"), LONG_S, "deleted in mass silence")
    assert stage.job(job)["state"] in OPEN

    send(stage, signal.SIGCONT, *silent)
    stage.ended(job, "SUCCEEDED")
    assert stage.guest("alpha", "early") is None
    assert len(stage.became_down()) == downs


def test_section3_row_7_a_broker_that_stands_still_proves_nothing_of_any_host(
    stage: Stage, rabbit: RabbitMQ
) -> None:
    stage.create("unheard", "--host", "beta")
    downs = len(stage.became_down())
    send(stage, signal.SIGSTOP, "beta")
    job = stage.accept("vm", "delete", "unheard")
    rabbit.freeze()
    try:
        never(lambda: gone(stage, "unheard"), LONG_S, "deleted by managers that hear nothing")
    finally:
        rabbit.thaw()
        send(stage, signal.SIGCONT, "beta")
    stage.ended(job, "SUCCEEDED")
    assert stage.guest("beta", "unheard") is None
    assert len(stage.became_down()) == downs


def test_a_frozen_fleet_holds_every_automatic_destruction(stage: Stage) -> None:
    for name in ("doomed", "wanted-gone"):
        stage.create(name, "--host", "alpha")
    stage.fleet.kill_agent("alpha")
    stage.becomes("alpha", "DOWN")
    stage.done("vm", "delete", "doomed")
    doomed = stage.guest("alpha", "doomed")
    assert stage.muster("freeze", "--reason", "something is odd").code == 0
    job = stage.accept("vm", "delete", "wanted-gone")
    never(lambda: gone(stage, "wanted-gone"), LONG_S, "deleted in a frozen fleet")
    assert "FROZEN" in stage.job(job)["waiting_for"]

    # What an operator wants and an agent can do is done; what nobody asked for now is not.
    stage.fleet.start_agent("alpha")
    stage.ended(job, "SUCCEEDED")
    assert stage.guest("alpha", "wanted-gone") is None
    stage.becomes("alpha", "UP")
    reports = 4 * TIMES.report_interval
    never(lambda: stage.guest("alpha", "doomed") != doomed, reports, "reaped in a frozen fleet")
    assert stage.muster("unfreeze").code == 0
    wait_until(lambda: stage.tombstone("doomed")["state"] == "CLOSED", 30, "it is reaped")
    assert stage.guest("alpha", "doomed") is None

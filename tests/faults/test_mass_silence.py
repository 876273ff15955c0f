"""All agents silent at once: no VM is deleted DB-only before an operator has said what is down."""

from __future__ import annotations

import signal

import pytest

from devstack.fleet import Times
from devstack.parts.postgres import Postgres
from devstack.parts.rabbitmq import RabbitMQ
from tests.faults.stage import OPEN, Stage, never, staged
from tests.wait import wait_until

pytestmark = pytest.mark.real

TIMES = Times(report_interval=0.5, service_down_time=2.5)
HOSTS = ("alpha", "beta", "gamma")


def test_mass_silence_suspends_db_only_deletes_until_it_ends_or_an_operator_speaks(
    rabbit: RabbitMQ, postgres: Postgres
) -> None:
    vhost = rabbit.new_vhost()
    login = f"agents-{vhost.rpartition('-')[2]}"
    let_in(rabbit, login, vhost)
    with staged(
        HOSTS,
        vhost,
        postgres.new_database(),
        TIMES,
        agents_rabbit_url=vhost.replace("guest:guest@", f"{login}:secret@"),
    ) as stage:
        for host in HOSTS:
            stage.create(f"vm-{host}", "--host", host)
        guest = stage.guest("beta", "vm-beta")

        # The broker throws all agents out: the managers hear nobody but themselves.
        rabbit.control("change_password", login, "another")
        rabbit.control("close_all_user_connections", login, "shut out")
        job = waits_in_mass_silence(stage, "alpha")
        downs = len(stage.became_down())
        # The silence ends by itself, and with it the doubt: the delete goes on, remotely.
        rabbit.control("change_password", login, "secret")
        stage.ended(job, "SUCCEEDED")
        wait_until(lambda: stage.tombstone("vm-alpha")["state"] == "CLOSED", 30, "alpha answered")
        assert stage.guest("alpha", "vm-alpha") is None
        for host in HOSTS:
            stage.becomes(host, "UP")
            # They had said why, and not a line for each try.
            assert "ACCESS_REFUSED" in stage.log(host)
            assert "Traceback" not in stage.log(host)
            assert stage.log(host).count("\n") < 50
        # Some came back a moment before the rest, and of the rest nobody was called dead.
        assert len(stage.became_down()) == downs

        for agent in stage.fleet.agents.values():
            agent.signal(signal.SIGSTOP)
        job = waits_in_mass_silence(stage, "beta")
        # An operator names what is down; that host's VM goes DB-only, the others wait on.
        waiting = stage.accept("vm", "delete", "vm-gamma")
        named = stage.muster("host", "set-down", "beta", "--reason", "its rack burns")
        assert named.code == 0, named.err
        stage.ended(job, "SUCCEEDED")
        assert stage.tombstone("vm-beta")["state"] == "OPEN"
        assert stage.guest("beta", "vm-beta") == guest
        assert stage.job(waiting)["state"] in OPEN
        assert {stage.host(h)["state"] for h in ("alpha", "gamma")} == {"SUSPECT"}

        for agent in stage.fleet.agents.values():
            agent.signal(signal.SIGCONT)
        stage.ended(waiting, "SUCCEEDED")
        assert stage.guest("gamma", "vm-gamma") is None
        wait_until(lambda: stage.tombstone("vm-beta")["state"] == "CLOSED", 30, "beta is reaped")
        assert stage.guest("beta", "vm-beta") is None
        for host in ("alpha", "gamma"):
            stage.becomes(host, "UP")
        # What an operator has set, no heartbeat clears.
        assert stage.host("beta")["state"] == "DOWN"


def waits_in_mass_silence(stage: Stage, host: str) -> str:
    """The job of a delete that must wait, once it has waited long enough to be believed."""
    downs = len(stage.became_down())
    for each in HOSTS:
        wait_until(lambda each=each: stage.host(each)["mass_silence"], 30, f"{each} in the mass")
    assert stage.findings("MASS_SILENCE")
    foreseen = stage.ask("vm", "delete", f"vm-{host}", "--dry-run")
    assert "mass silence" in foreseen[0]["reason"], foreseen
    job = stage.accept("vm", "delete", f"vm-{host}")

    def decided() -> list[str]:
        gone = [] if stage.job(job)["state"] in OPEN else ["the delete has ended"]
        return gone + [h for h in HOSTS if stage.host(h)["state"] != "SUSPECT"]

    never(decided, 2 * TIMES.service_down_time, "decided in mass silence")
    assert "mass silence" in stage.job(job)["waiting_for"], stage.job(job)
    assert len(stage.became_down()) == downs
    assert stage.tombstone(f"vm-{host}") == {}
    assert stage.guest(host, f"vm-{host}") is not None
    return job


def let_in(rabbit: RabbitMQ, login: str, vhost: str) -> None:
    rabbit.control("add_user", login, "secret")
    name = vhost.rpartition("/")[2]
    rabbit.control("set_permissions", "-p", name, login, ".*", ".*", ".*")

"""The whole path, told once with agents on threads and once on eventlet: every part a process."""

from __future__ import annotations

import pytest

from devstack.consoles import runs
from devstack.fleet import Times
from devstack.parts.postgres import Postgres
from devstack.parts.rabbitmq import RabbitMQ
from tests.faults.stage import Stage, staged
from tests.wait import wait_until

pytestmark = pytest.mark.real

TIMES = Times(report_interval=0.5, service_down_time=3.0)


@pytest.mark.parametrize("executor", ["threading", "eventlet"])
def test_a_vm_lives_and_dies_beside_a_stranger_and_a_dying_agent(
    rabbit: RabbitMQ, postgres: Postgres, executor: str
) -> None:
    with staged(
        ["alpha", "beta"],
        rabbit.new_vhost(),
        postgres.new_database(),
        TIMES,
        executor=executor,
    ) as stage:
        assert f"executor = {executor}" in (stage.fleet.folder / "alpha.conf").read_text()
        stranger = stage.console("alpha").make_stranger("web-1")
        stranger_uuid = stranger.hypervisor_uuid
        wait_until(
            lambda: [a["hypervisor_uuid"] for a in stage.ask("alien", "list")] == [stranger_uuid],
            30,
            "the stranger is listed",
        )

        _power(stage)
        _power_off_by_hand(stage)
        _delete_with_a_dead_agent(stage, executor)

        assert stage.console("alpha").guests() == {stranger_uuid: stranger}
        assert stage.console("beta").guests() == {}
        assert stage.rows("SELECT count(*) FROM jobs WHERE state <> 'SUCCEEDED'") == [(0,)]
        assert not [f for f in stage.ask("doctor") if f["level"] != "INFO"]


def state(stage: Stage, name: str) -> tuple[str, str, str]:
    vm = stage.vm(name)
    return vm["vm_state"], vm["task_state"], vm["power_state"]


def _power(stage: Stage) -> None:
    """create, stop, start, both reboots and delete, through the command as its own process."""
    # Its name is taken on the hypervisor, by somebody else's guest.
    muster = stage.fleet.muster
    options = ["--vcpus", "1", "--memory", "96", "--host", "alpha", "--reason", "a test", "--wait"]
    made = muster("vm", "create", "web-1", *options, "-f", "json")
    assert made.code == 0, made.err
    assert stage.job(made.json()["uuid"])["reason"][0][1] == "a test"
    ours = [g for g in stage.console("alpha").guests().values() if g.name != "web-1"]
    assert [g.name.startswith("web-1-") for g in ours] == [True]
    assert state(stage, "web-1") == ("ACTIVE", "none", "RUNNING")

    stage.done("vm", "stop", "web-1")
    assert state(stage, "web-1") == ("SHUTOFF", "none", "SHUTOFF")
    assert not runs(stage.console("alpha").guests()[ours[0].hypervisor_uuid])
    stage.done("vm", "start", "web-1")
    assert state(stage, "web-1") == ("ACTIVE", "none", "RUNNING")
    started = stage.console("alpha").guests()[ours[0].hypervisor_uuid]
    stage.done("vm", "reboot", "web-1")
    stage.done("vm", "reboot", "web-1", "--force")
    rebooted = stage.console("alpha").guests()[ours[0].hypervisor_uuid]
    assert runs(started)
    assert runs(rebooted)
    assert rebooted.domain_id != started.domain_id
    stage.done("vm", "delete", "web-1")
    assert ours[0].hypervisor_uuid not in stage.console("alpha").guests()
    assert stage.tombstone("web-1")["state"] == "CLOSED"


def _power_off_by_hand(stage: Stage) -> None:
    """What the hypervisor says is shown within a second or two, though nobody asked."""
    stage.create("web-2", "--host", "beta")
    guest = stage.guest("beta", "web-2")
    assert guest is not None
    stage.console("beta").power_off(guest.hypervisor_uuid)
    wait_until(lambda: state(stage, "web-2") == ("SHUTOFF", "none", "SHUTOFF"), 30, "it is shown")
    stage.done("vm", "delete", "web-2")


def _delete_with_a_dead_agent(stage: Stage, executor: str) -> None:
    stage.create("web-3", "--host", "beta")
    guest = stage.guest("beta", "web-3")
    assert guest is not None
    mac = stage.vm("web-3")["mac"]
    stage.fleet.kill_agent("beta")
    stage.becomes("beta", "SUSPECT")
    stage.becomes("beta", "DOWN")
    assert stage.host("alpha")["state"] == "UP"
    assert stage.ask("vm", "delete", "web-3", "--dry-run")[0]["row"] == 9
    stage.done("vm", "delete", "web-3")
    stone = stage.tombstone("web-3")
    assert stone["state"] == "OPEN"
    assert [held for held in stone["holds"] if mac in held], stone
    assert stage.guest("beta", "web-3") == guest
    stage.fleet.start_agent("beta")
    wait_until(lambda: stage.tombstone("web-3")["state"] == "CLOSED", 30, "reaped")
    assert stage.guest("beta", "web-3") is None
    assert stage.tombstone("web-3")["holds"] == []
    stage.becomes("beta", "UP")

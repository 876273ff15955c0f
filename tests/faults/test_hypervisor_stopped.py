"""libvirtd stopped under QEMU guests that run: no VM changes state, the host is SUSPECT at most.

And an agent killed in the middle of a start on the same hypervisors.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from devstack.fleet import Times
from devstack.parts.postgres import Postgres
from devstack.parts.rabbitmq import RabbitMQ
from tests.faults.stage import Stage, staged
from tests.wait import wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow]

FROZEN, STOPPED = "iron", "steel"
TIMES = Times(report_interval=1.0, service_down_time=5.0)
# "A minute" is one service_down_time as it is set by default. With short times the same point is
# made sooner, and better: three of them.
OUTAGE_S = 3 * TIMES.service_down_time


@pytest.fixture(scope="module")
def stage(rabbit: RabbitMQ, postgres: Postgres) -> Iterator[Stage]:
    with staged(
        [FROZEN, STOPPED],
        rabbit.new_vhost(),
        postgres.new_database(),
        TIMES,
        driver="libvirt",
        options={"libvirt": {"keepalive_interval": 1}},
    ) as made:
        yield made


def boot(stage: Stage, name: str, host: str) -> str:
    """The job of a create of a real guest."""
    options = [*stage.fleet.boot_options(), "--cmdline", "console=ttyS0 quiet", "--host", host]
    return stage.accept("vm", "create", name, "--vcpus", "1", "--memory", "96", *options)


def shown(stage: Stage) -> dict[str, tuple[str, str, str, bool]]:
    vms = stage.ask("vm", "list", "--long")
    return {
        v["name"]: (v["vm_state"], v["task_state"], v["power_state"], v["missing"]) for v in vms
    }


def test_an_agent_killed_in_the_middle_of_a_start_leaves_an_active_vm(stage: Stage) -> None:
    """On one host at the first sight of the guest; on the other while libvirtd does not answer."""
    with stage.watched():
        daemons = stage.fleet.daemons
        daemons[STOPPED].freeze()
        jobs = {host: boot(stage, f"web-{host}", host) for host in (FROZEN, STOPPED)}
        wait_until(lambda: daemons[FROZEN].virsh("list", "--all", "--name").split(), 30, "defined")
        stage.fleet.kill_agent(FROZEN)
        started = "SELECT 1 FROM commands WHERE host = :host AND started_at IS NOT NULL"
        wait_until(lambda: stage.rows(started, host=STOPPED), 30, "started at the frozen daemon")
        stage.fleet.kill_agent(STOPPED)
        daemons[STOPPED].thaw()
        for host in jobs:
            stage.fleet.start_agent(host)

        for host, job in jobs.items():
            stage.ended(job, "SUCCEEDED", within_s=60)
            name = f"web-{host}"
            assert shown(stage)[name] == ("ACTIVE", "none", "RUNNING", False)
            assert list(daemons[host].qemu_pids()) == [name]
            stage.becomes(host, "UP")


def test_libvirtd_stopped_for_long_changes_no_vm_and_downs_no_host(stage: Stage) -> None:
    with stage.watched():
        daemons = stage.fleet.daemons
        before, guests = shown(stage), {h: daemons[h].qemu_pids() for h in daemons}
        assert len(before) == 2
        events = stage.rows("SELECT count(*) FROM events")[0][0]

        daemons[FROZEN].freeze()
        daemons[STOPPED].stop()
        began, suspected = time.monotonic(), dict.fromkeys(daemons, False)
        while time.monotonic() - began < OUTAGE_S:
            for host in stage.ask("host", "list"):
                assert host["state"] in ("UP", "SUSPECT"), host
                suspected[host["name"]] |= host["state"] == "SUSPECT"
            assert shown(stage) == before
        assert suspected == {FROZEN: True, STOPPED: True}
        assert {h: daemons[h].qemu_pids() for h in daemons} == guests

        daemons[FROZEN].thaw()
        daemons[STOPPED].start()
        for host in (FROZEN, STOPPED):
            stage.becomes(host, "UP", within_s=60)
        assert shown(stage) == before
        assert {h: daemons[h].qemu_pids() for h in daemons} == guests
        told = stage.rows("SELECT kind, text FROM events ORDER BY at, id OFFSET :n", n=events)
        # All that happened: each host was doubted and believed again; nothing about any VM.
        assert {kind for kind, _ in told} == {"host.state"}, told
        assert not [text for _, text in told if "DOWN" in text.split(":")[0]], told
        # Muster can act on these guests again.
        for host in (FROZEN, STOPPED):
            stage.done("vm", "delete", f"web-{host}")
            assert stage.console(host).guests() == {}

"""Two managers on one database and broker: one killed in the middle of its work, one frozen."""

from __future__ import annotations

import contextlib
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from devstack.consoles import runs
from devstack.fleet import Service, Times
from devstack.parts.postgres import Postgres
from devstack.parts.rabbitmq import RabbitMQ
from tests.faults.stage import Stage, never, staged
from tests.wait import wait_until

pytestmark = pytest.mark.real

VMS = 30
SMALL = ("--vcpus", "1", "--memory", "64")
TIMES = Times(report_interval=0.5, service_down_time=3.0)


def test_one_of_two_managers_killed_amid_thirty_creates_loses_and_doubles_none(
    rabbit: RabbitMQ, postgres: Postgres
) -> None:
    with staged(
        ["alpha", "beta", "gamma"],
        rabbit.new_vhost(),
        postgres.new_database(),
        TIMES,
        managers=2,
        # A question that a dead or frozen manager took is asked again soon.
        options={"client": {"rpc_timeout": 4.0}},
    ) as stage:
        with ThreadPoolExecutor(8) as operators:
            jobs = [operators.submit(create, stage, n) for n in range(VMS)]
            done = "SELECT count(*) FROM instances WHERE vm_state = 'ACTIVE'"
            wait_until(lambda: stage.rows(done)[0][0] >= VMS // 4, 30, "in the middle")
            stage.fleet.managers.pop("manager-1").kill()
            accepted = [job.result() for job in jobs]
        for job in accepted:
            stage.ended(job, "SUCCEEDED", within_s=60)
        vms = stage.ask("vm", "list")
        assert sorted(vm["name"] for vm in vms) == sorted(f"vm-{n}" for n in range(VMS))
        assert {(vm["vm_state"], vm["task_state"]) for vm in vms} == {("ACTIVE", "none")}
        guests = [g for host in stage.hosts for g in stage.console(host).guests().values()]
        assert sorted(g.name for g in guests) == sorted(f"vm-{n}" for n in range(VMS))
        assert all(runs(g) for g in guests)
        assert sum(stage.starts(host) for host in stage.hosts) == VMS
        assert not stage.became_down()

        _a_frozen_manager_is_missed_by_nobody(stage)


def create(stage: Stage, n: int) -> str:
    return stage.accept("vm", "create", f"vm-{n}", *SMALL)


def _a_frozen_manager_is_missed_by_nobody(stage: Stage) -> None:
    """SIGSTOP in the middle of a transaction, for longer than service_down_time; then SIGCONT."""
    stage.fleet.start_manager("manager-3")
    wait_until(lambda: "is up" in stage.log("manager-3"), 30, "manager-3 is up")
    victim = stage.fleet.managers["manager-2"]
    hold_one_back(stage, victim)
    try:
        never(stage.became_down, 2 * TIMES.service_down_time, "a host became DOWN")
        # The other one does the work meanwhile, on the very hosts that were being written.
        for host in stage.hosts:
            stage.becomes(host, "UP")
        stage.ended(stage.insist("vm", "create", "meanwhile", *SMALL), "SUCCEEDED")
        starts = {host: stage.starts(host) for host in stage.hosts}
    finally:
        victim.signal(signal.SIGCONT)
    wait_until(lambda: "not hearing" in stage.log("manager-2"), 30, "it knows that it was away")
    never(stage.became_down, TIMES.service_down_time, "a host became DOWN")
    assert {host: stage.starts(host) for host in stage.hosts} == starts
    assert {vm["vm_state"] for vm in stage.ask("vm", "list")} == {"ACTIVE"}
    # It works again: alone, it is the one that answers.
    stage.fleet.managers.pop("manager-3").kill()
    stage.create("afterwards")
    assert victim.running()


def hold_one_back(stage: Stage, manager: Service) -> None:
    """Freeze a manager that is in the middle of a transaction, with a host's row held."""
    function = (
        "CREATE OR REPLACE FUNCTION dawdle() RETURNS trigger AS $$ BEGIN {}; RETURN NEW;"
        " END $$ LANGUAGE plpgsql"
    )
    stage.rows(function.format("PERFORM pg_sleep(0.15)"))
    stage.rows(
        "CREATE TRIGGER dawdle BEFORE UPDATE ON hosts FOR EACH ROW EXECUTE FUNCTION dawdle()"
    )
    # Nobody else waits so long between two statements.
    held = (
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
        " AND state = 'idle in transaction' AND clock_timestamp() - state_change > '0.3 s'"
        " AND EXISTS (SELECT 1 FROM pg_locks WHERE pid = pg_stat_activity.pid"
        "  AND relation = 'hosts'::regclass AND mode = 'RowExclusiveLock')"
    )
    try:
        for _ in range(30):
            manager.signal(signal.SIGSTOP)
            with contextlib.suppress(AssertionError):
                wait_until(lambda: stage.rows(held), 0.8)
                return
            manager.signal(signal.SIGCONT)
            wait_until(lambda: not stage.rows(held), 30)
        raise AssertionError("it was never met inside a transaction")
    finally:
        stage.rows(function.format("NULL"))

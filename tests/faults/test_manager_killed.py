"""kill -9 of the only manager between accepting a command and casting it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest

from devstack.consoles import runs
from devstack.parts.postgres import Postgres
from devstack.parts.rabbitmq import RabbitMQ
from tests.faults.stage import Stage, publishing_stalled, staged, waiting_at_the_gate
from tests.wait import wait_until

pytestmark = pytest.mark.real


def one_host(rabbit: RabbitMQ, postgres: Postgres) -> AbstractContextManager[Stage]:
    """A fleet of one host, whose operators soon give up on an answer."""
    return staged(
        ["alpha"],
        rabbit.new_vhost(),
        postgres.new_database(),
        options={"client": {"rpc_timeout": 4.0}},
    )


def test_a_command_that_was_accepted_and_not_published_runs_once_a_manager_is_back(
    rabbit: RabbitMQ, postgres: Postgres
) -> None:
    """It was for a host without a session: nobody could be sent it."""
    with staged(["alpha"], rabbit.new_vhost(), postgres.new_database()) as stage:
        stage.create("web-1")
        stage.fleet.kill_agent("alpha")
        down = stage.muster("host", "set-down", "alpha", "--reason", "its agent was killed")
        assert down.code == 0, down.err
        job = stage.accept("vm", "reboot", "web-1", "--force")
        stage.fleet.managers.pop("manager-1").kill()
        command = "SELECT state, publishes FROM commands WHERE kind = 'reboot_vm'"
        assert stage.rows(command) == [("ACCEPTED", 0)]

        stage.fleet.start_manager("manager-2")
        wait_until(lambda: stage.muster("host", "unset-down", "alpha").code == 0, 30, "it is back")
        assert stage.rows(command) == [("ACCEPTED", 0)]
        stage.fleet.start_agent("alpha")

        stage.ended(job, "SUCCEEDED")
        assert stage.vm("web-1")["vm_state"] == "ACTIVE"
        guest = stage.guest("alpha", "web-1")
        # The hypervisor counts its starts: the create's, and this one's.
        assert guest is not None
        assert (runs(guest), guest.domain_id) == (True, 2)


def test_a_command_that_was_not_accepted_yet_is_accepted_when_it_is_asked_for_again(
    rabbit: RabbitMQ, postgres: Postgres
) -> None:
    """The manager dies with all of it written and nothing committed."""
    with one_host(rabbit, postgres) as stage:
        wish = ("vm", "create", "web-1", "--vcpus", "1", "--memory", "96")
        job = stage.runtime.new_id()
        with ThreadPoolExecutor(1) as operator:
            with publishing_stalled(stage):
                operator.submit(stage.muster, *wish, "--job", job)
                wait_until(lambda: waiting_at_the_gate(stage), 30, "it is being accepted")
                stage.fleet.managers.pop("manager-1").kill()
            wait_until(lambda: not waiting_at_the_gate(stage), 30, "its transaction is over")
            assert stage.rows("SELECT count(*) FROM jobs") == [(0,)]
            assert stage.rows("SELECT count(*) FROM commands WHERE kind <> 'noop'") == [(0,)]
            assert stage.console("alpha").guests() == {}
            stage.fleet.start_manager("manager-2")

        stage.insist(*wish, job=job)
        stage.ended(job, "SUCCEEDED")
        assert [vm["name"] for vm in stage.ask("vm", "list")] == ["web-1"]
        assert stage.starts("alpha") == 1


def test_a_command_that_was_published_and_not_cast_runs_once(
    rabbit: RabbitMQ, postgres: Postgres
) -> None:
    """The row says PUBLISHED, and the manager dies with the cast on its lips."""
    with one_host(rabbit, postgres) as stage:
        stage.create("web-1")
        wish, job = ("vm", "reboot", "web-1", "--force"), stage.runtime.new_id()
        with ThreadPoolExecutor(1) as operator:
            with publishing_stalled(stage):
                operator.submit(stage.muster, *wish, "--job", job)
                wait_until(lambda: waiting_at_the_gate(stage), 30, "it is being claimed")
                # A frozen broker takes no cast.
                rabbit.freeze()
            try:
                command = "SELECT state, publishes FROM commands WHERE kind = 'reboot_vm'"
                committed = [("PUBLISHED", 1)]
                wait_until(lambda: stage.rows(command) == committed, 30, "the row is committed")
                stage.fleet.managers.pop("manager-1").kill()
            finally:
                rabbit.thaw()

            stage.fleet.start_manager("manager-2")

        # Who asked got no answer; asking again is asking for the same job.
        stage.insist(*wish, job=job)
        stage.ended(job, "SUCCEEDED")
        guest = stage.guest("alpha", "web-1")
        assert guest is not None
        # Started once, rebooted once - also if the broker had taken the first cast after all.
        assert (runs(guest), guest.domain_id) == (True, 2)
        (published,) = stage.rows(command)
        assert published[1] >= 1

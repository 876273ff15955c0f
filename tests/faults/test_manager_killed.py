"""kill -9 of the only manager between accepting a command and publishing it."""

from __future__ import annotations

import pytest

from devstack.consoles import runs
from devstack.parts.postgres import Postgres
from devstack.parts.rabbitmq import RabbitMQ
from tests.faults.stage import publishing_stalled, staged, waits_at_the_gate
from tests.wait import wait_until

pytestmark = pytest.mark.real


def test_a_command_that_was_accepted_and_not_published_runs_once_a_manager_is_back(
    rabbit: RabbitMQ, postgres: Postgres
) -> None:
    with staged(["alpha"], rabbit.new_vhost(), postgres.new_database()) as stage:
        with publishing_stalled(stage):
            job = stage.accept("vm", "create", "web-1", "--vcpus", "1", "--memory", "96")
            wait_until(lambda: waits_at_the_gate(stage), 30, "publishing has begun")
            stage.fleet.managers.pop("manager-1").kill()
        wait_until(lambda: not waits_at_the_gate(stage), 30, "the dead manager's session is over")
        assert stage.rows("SELECT state, publishes FROM commands") == [("ACCEPTED", 0)]
        assert stage.console("alpha").guests() == {}

        stage.fleet.start_manager("manager-2")

        stage.ended(job, "SUCCEEDED")
        assert stage.vm("web-1")["vm_state"] == "ACTIVE"
        guest = stage.guest("alpha", "web-1")
        # The hypervisor counts its starts: this was the first and only one.
        assert guest is not None
        assert (runs(guest), guest.domain_id) == (True, 1)


def test_a_command_that_was_published_and_not_cast_runs_once(
    rabbit: RabbitMQ, postgres: Postgres
) -> None:
    """The row says PUBLISHED, and the manager dies with the cast on its lips."""
    with staged(["alpha"], rabbit.new_vhost(), postgres.new_database()) as stage:
        stage.create("web-1")
        with publishing_stalled(stage):
            job = stage.accept("vm", "reboot", "web-1", "--force")
            wait_until(lambda: waits_at_the_gate(stage), 30, "publishing has begun")
            # A frozen broker takes no cast.
            rabbit.freeze()
        try:
            states = "SELECT state FROM commands WHERE kind = 'reboot_vm'"
            wait_until(lambda: stage.rows(states) == [("PUBLISHED",)], 30, "the row is committed")
            stage.fleet.managers.pop("manager-1").kill()
        finally:
            rabbit.thaw()

        stage.fleet.start_manager("manager-2")

        stage.ended(job, "SUCCEEDED")
        guest = stage.guest("alpha", "web-1")
        assert guest is not None
        # Started once, rebooted once - also if the broker had taken the first cast after all.
        assert (runs(guest), guest.domain_id) == (True, 2)
        published = stage.rows("SELECT publishes FROM commands WHERE kind = 'reboot_vm'")
        assert published[0][0] >= 1

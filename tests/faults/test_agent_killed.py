"""kill -9 of an agent in the middle of a command: the job ends, and the VM is never stuck."""

from __future__ import annotations

import pytest

from devstack.consoles import runs
from devstack.fleet import Times
from devstack.parts.postgres import Postgres
from devstack.parts.rabbitmq import RabbitMQ
from tests.faults.stage import Stage, staged
from tests.wait import wait_until

pytestmark = pytest.mark.real

SIZE = ("--vcpus", "1", "--memory", "96")
# An agent that dies before its driver's call had an effect, and one that dies after it.
BEFORE, AFTER = "before", "after"


class Scene:
    """One host with a stranger and a command of each kind, all of them in the middle."""

    def __init__(self, stage: Stage, host: str) -> None:
        self.stage, self.host = stage, host
        stage.console(host).make_stranger("payroll")
        self.stranger = stage.guest(host, "payroll")
        for verb in ("stop", "reboot", "soft", "delete"):
            stage.create(f"{host}-{verb}", "--host", host)
        self.starts = stage.starts(host)
        how: str | float = "hang_after" if host == AFTER else 60.0
        stage.fault(host, start=how, stop=how, reboot=how, destroy=how)
        self.jobs = {
            "create": stage.accept("vm", "create", f"{host}-create", "--host", host, *SIZE),
            "stop": stage.accept("vm", "stop", f"{host}-stop", "--force"),
            "reboot": stage.accept("vm", "reboot", f"{host}-reboot", "--force"),
            "soft": stage.accept("vm", "reboot", f"{host}-soft"),
            "delete": stage.accept("vm", "delete", f"{host}-delete"),
        }

    def in_the_middle(self) -> bool:
        """Every command has started, and had its effect exactly where it should have."""
        started = self.stage.rows(
            "SELECT count(*) FROM commands WHERE host = :host AND state = 'STARTED'", host=self.host
        )
        created, stopped = self.running("create"), self.running("stop")
        effects = [
            created,
            stopped is False,
            self.running("delete") is None,
            self.stage.starts(self.host) == self.starts + 2,
        ]
        if started[0][0] < len(self.jobs) or created is None:
            return False
        return all(effects) if self.host == AFTER else not any(effects)

    def kill(self) -> None:
        wait_until(self.in_the_middle, 30, f"all commands at {self.host} are in the middle")
        self.stage.fleet.kill_agent(self.host)
        self.stage.fault(self.host)

    def ends(self) -> dict[str, tuple[str, str | None, bool]]:
        ended = {verb: self.stage.ended(job) for verb, job in self.jobs.items()}
        return {v: (e["state"], e["error_code"], e["unconfirmed"]) for v, e in ended.items()}

    def running(self, verb: str) -> bool | None:
        """Does the verb's guest run? None: there is no such guest."""
        guest = self.stage.guest(self.host, f"{self.host}-{verb}")
        return None if guest is None else runs(guest)

    def states(self) -> dict[str, tuple[str, str]]:
        """VM state and task state of what Muster still knows of."""
        vms = self.stage.ask("vm", "list", "--host", self.host)
        return {
            vm["name"].removeprefix(f"{self.host}-"): (vm["vm_state"], vm["task_state"])
            for vm in vms
        }

    def stranger_is_untouched(self) -> bool:
        return self.stage.guest(self.host, "payroll") == self.stranger


def test_an_agent_that_was_killed_and_returns_ends_what_it_had_begun(
    rabbit: RabbitMQ, postgres: Postgres
) -> None:
    with staged([BEFORE, AFTER], rabbit.new_vhost(), postgres.new_database()) as stage:
        scenes = [Scene(stage, BEFORE), Scene(stage, AFTER)]
        for scene in scenes:
            scene.kill()
        for scene in scenes:
            stage.fleet.start_agent(scene.host)

        for scene in scenes:
            assert scene.ends() == {
                "create": ("SUCCEEDED", None, False),
                "stop": ("SUCCEEDED", None, False),
                "reboot": ("SUCCEEDED", None, False),
                # Nothing tells whether the guest has rebooted when asked politely.
                "soft": ("FAILED", "OUTCOME_UNKNOWN", False),
                "delete": ("SUCCEEDED", None, False),
            }
            assert scene.states() == {
                "create": ("ACTIVE", "none"),
                "stop": ("SHUTOFF", "none"),
                "reboot": ("ACTIVE", "none"),
                "soft": ("ACTIVE", "none"),
            }
            verbs = ("create", "stop", "reboot", "soft", "delete")
            assert [scene.running(v) for v in verbs] == [True, False, True, True, None]
            # One start by the create and one by the reboot, and none of them twice.
            assert stage.starts(scene.host) == scene.starts + 2
            assert scene.stranger_is_untouched()


def test_an_agent_that_was_killed_and_stays_away_leaves_no_job_behind(
    rabbit: RabbitMQ, postgres: Postgres
) -> None:
    times = Times(report_interval=0.5, service_down_time=3.0, command_timeout=5.0)
    with staged([BEFORE, "bystander"], rabbit.new_vhost(), postgres.new_database(), times) as stage:
        scene = Scene(stage, BEFORE)
        scene.kill()

        assert scene.ends() == {
            "create": ("FAILED", "OUTCOME_UNKNOWN", True),
            "stop": ("EXPIRED", "OUTCOME_UNKNOWN", True),
            "reboot": ("EXPIRED", "OUTCOME_UNKNOWN", True),
            "soft": ("EXPIRED", "OUTCOME_UNKNOWN", True),
            # Its host is DOWN: the record goes, the tombstone stays.
            "delete": ("SUCCEEDED", None, False),
        }
        ended = {
            # Not the VM that was being made: it is on no host, and a tombstone waits here.
            "stop": ("ACTIVE", "none"),
            "reboot": ("ACTIVE", "none"),
            "soft": ("ACTIVE", "none"),
        }
        assert scene.states() == ended
        assert stage.tombstone("before-delete")["state"] == "OPEN"
        assert scene.running("delete") is True

        # It comes back after all: nothing that has ended here is carried further there.
        stage.fleet.start_agent(scene.host)
        wait_until(lambda: stage.tombstone("before-delete")["state"] == "CLOSED", 30, "reaped")
        wait_until(lambda: not stage.rows("SELECT 1 FROM voids"), 30, "every void is answered")
        stage.becomes(scene.host, "UP")
        assert scene.states() == ended
        verbs = ("create", "stop", "reboot", "soft", "delete")
        assert [scene.running(v) for v in verbs] == [None, True, True, True, None]
        assert stage.starts(scene.host) == scene.starts
        assert scene.stranger_is_untouched()

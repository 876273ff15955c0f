"""Bad input by every door: the command line, the report streams, and casts forged onto the bus."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from common.bus.base import ANY_MANAGER, agent_at
from common.errors import MusterError
from devstack.fleet import BIN
from devstack.parts.postgres import Postgres
from devstack.parts.rabbitmq import RabbitMQ
from tests.faults.stage import Stage, staged
from tests.functional.busfleet import raw
from tests.wait import wait_until

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def vhost(rabbit: RabbitMQ) -> str:
    return rabbit.new_vhost()


@pytest.fixture(scope="module")
def stage(vhost: str, postgres: Postgres) -> Iterator[Stage]:
    with staged(["alpha", "beta"], vhost, postgres.new_database()) as made:
        yield made


def goes_on(stage: Stage, host: str, name: str) -> None:
    """Whatever was thrown at them, manager and agent do their work."""
    stage.create(name, "--host", host)
    stage.done("vm", "delete", name)
    for service in (*stage.fleet.managers.values(), *stage.fleet.agents.values()):
        assert service.running()
    for each in stage.hosts:
        stage.becomes(each, "UP")


# the command line

SIZE = ["--vcpus", "1", "--memory", "96"]
WISHES: dict[str, tuple[list[str], int, str]] = {
    "an unknown VM is not shown": (["vm", "show", "nobody"], 3, "NOT_FOUND"),
    "an unknown VM is not stopped": (["vm", "stop", "nobody"], 3, "NOT_FOUND"),
    "an unknown VM is not deleted": (["vm", "delete", "nobody", "--wait"], 3, "NOT_FOUND"),
    "an unknown host": (["vm", "create", "x", *SIZE, "--host", "nowhere"], 3, "NOT_FOUND"),
    "no virtual CPU": (["vm", "create", "x", "--vcpus", "0", "--memory", "96"], 2, "BAD_REQUEST"),
    "half a CPU": (["vm", "create", "x", "--vcpus", "0.5", "--memory", "96"], 2, "BAD_REQUEST"),
    "too little memory": (["vm", "create", "x", "--vcpus", "1", "--memory", "1"], 2, "BAD_REQUEST"),
    "memory in words": (["vm", "create", "x", "--vcpus", "1", "--memory", "1G"], 2, "BAD_REQUEST"),
    "an empty disk": (["vm", "create", "x", *SIZE, "--disk", "0"], 2, "BAD_REQUEST"),
    "an immense disk": (["vm", "create", "x", *SIZE, "--disk", "99999999"], 2, "BAD_REQUEST"),
    "more than any host has": (
        ["vm", "create", "x", "--vcpus", "1", "--memory", "1000000"],
        4,
        "NO_VALID_HOST",
    ),
    "no size at all": (["vm", "create", "x"], 2, "USAGE"),
}


def test_a_bad_wish_is_one_line_and_its_exit_code(stage: Stage) -> None:
    with stage.watched():
        config = ["--config-file", str(stage.fleet.muster_config)]
        running = {
            what: subprocess.Popen(
                [str(BIN / "muster"), *config, *wish],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for what, (wish, _, _) in WISHES.items()
        }
        said = {what: process.communicate(timeout=60) for what, process in running.items()}
        for what, (_, code, name) in WISHES.items():
            out, err = said[what]
            assert running[what].returncode == code, f"{what}: {err}"
            assert out == "", what
            assert err.startswith(f"muster: {name}: "), f"{what}: {err}"
            assert err.count("\n") == 1, f"{what}: {err}"
        assert stage.ask("vm", "list") == []
        assert not [
            j for j in stage.ask("job", "list", "--all") if j["state"] in ("PENDING", "RUNNING")
        ]


# the report streams


def heartbeat(**changes: Any) -> bytes:
    body = {
        "schema": 1,
        "fleet": "demo",
        "host": "alpha",
        "session": 1,
        "agent_run": "00000000-0000-4000-8000-000000000000",
        "seq": 10**6,
        "interval_s": 0.5,
        "driver": {"name": "simulated", "healthy": True},
        "sent_at": "2026-01-01T00:00:00Z",
        # Believed, this would make every guest of the host missing.
        "inventory": {"full": True, "complete": True, "digest": "0:0000000000000000"},
    }
    return json.dumps(body | changes).encode()


MALFORMED = {
    "no JSON": (b"\xff\xfe no JSON at all", "BAD_MESSAGE: Heartbeat"),
    "not an object": (b"[1, 2, 3]", "BAD_MESSAGE: Heartbeat"),
    "a field is missing": (b'{"schema": 1, "host": "alpha"}', "BAD_MESSAGE: Heartbeat"),
    "a wrong type": (heartbeat(seq="many"), "$.seq"),
    "a wrong power state": (
        heartbeat(inventory={"full": True, "complete": True, "digest": "", "guests": [{}]}),
        "$.inventory.guests[0]",
    ),
    "an impossible interval": (heartbeat(interval_s=-1), "$.interval_s"),
    "another host's": (heartbeat(host="beta"), "the body says beta, its routing key alpha"),
    "another fleet's": (heartbeat(fleet="theirs"), "WRONG_FLEET"),
    "of a later schema": (heartbeat(schema=99), "schema 99"),
}


def test_a_malformed_heartbeat_is_buried_with_its_reason_and_the_manager_goes_on(
    stage: Stage, vhost: str
) -> None:
    with stage.watched():
        vm = stage.create("web-1", "--host", "alpha")
        for body, _ in MALFORMED.values():
            stage.bus.publish("heartbeat.alpha", body)
        stage.bus.publish("result.alpha", b'{"results": 7}')
        stage.bus.publish("heartbeat.alpha", b"x" * 20_000_000)
        count = len(MALFORMED) + 2

        found = wait_until(
            lambda: len(f := stage.findings("DEAD_LETTER")) >= count and f, 30, "all are found"
        )

        assert isinstance(found, list)
        assert {f["object"] for f in found} == {"heartbeat.alpha", "result.alpha"}
        reasons: list[str] = []

        def buried() -> bool:
            # After the doctor was told of it.
            reasons.extend(dead_letters(vhost))
            return len(reasons) >= count

        wait_until(buried, 30, "all are buried")
        for what, (_, reason) in MALFORMED.items():
            assert [f for f in found if reason in f["message"]], f"{what}: {found}"
            assert [r for r in reasons if reason in r], f"{what}: {reasons}"
        assert len(reasons) == count
        assert not [r for r in reasons if r.count("BAD_MESSAGE") != 1]
        assert stage.vm("web-1")["vm_state"] == vm["vm_state"] == "ACTIVE"
        assert stage.vm("web-1")["missing"] is False
        assert stage.host("beta")["state"] == "UP"
        goes_on(stage, "alpha", "after-heartbeats")
        stage.done("vm", "delete", "web-1")


def dead_letters(vhost: str) -> list[str]:
    """The reasons that the dead-letter queue holds; empties it."""
    reasons = []
    with raw(vhost) as connection:
        while (
            letter := connection.default_channel.basic_get("muster.dead", no_ack=True)
        ) is not None:
            if "x-death" in letter.headers:
                reasons.append(f"rejected by {letter.headers['x-death'][0]['queue']}")
            else:
                reasons.append(letter.headers["x-muster-reason"])
    return reasons


# casts forged onto the bus


def forged(stage: Stage, at: str, instance: str, **changes: Any) -> dict[str, Any]:
    """A terminate as only a manager could have sent it, but for `changes`."""
    command = {
        "schema": 1,
        "id": stage.runtime.new_id(),
        "kind": "terminate_instance",
        "fleet": "demo",
        "host": at,
        "session": stage.rows("SELECT session FROM hosts WHERE name = :h", h=at)[0][0],
        "instance": instance,
        "generation": 99,
        "timeout_s": 10.0,
    }
    return command | changes


def test_a_command_that_is_not_for_this_agent_is_refused_and_reported(stage: Stage) -> None:
    with stage.watched():
        beta = stage.console("beta")
        stranger = beta.make_stranger("payroll")
        stranger_uuid = stranger.hypervisor_uuid
        ours = stage.create("web-2", "--host", "beta")
        guest = stage.guest("beta", "web-2")
        forgeries = {
            "WRONG_FLEET": forged(stage, "beta", ours["uuid"], fleet="theirs"),
            "WRONG_HOST": forged(stage, "beta", ours["uuid"], host="alpha"),
            "BAD_MESSAGE": forged(stage, "beta", ours["uuid"], generation="high"),
            "UNKNOWN_KIND": forged(stage, "beta", ours["uuid"], kind="burn_down"),
        }
        for command in forgeries.values():
            stage.bus.cast(agent_at("beta"), command["kind"], {"command": command})
        # Of the right form, about a guest that never was ours; and of a session that is over.
        alien = forged(stage, "beta", stranger_uuid)
        stage.bus.cast(agent_at("beta"), "terminate_instance", {"command": alien})
        old = forged(stage, "beta", ours["uuid"], session=10**6)
        stage.bus.cast(agent_at("beta"), "terminate_instance", {"command": old})
        stage.bus.cast(agent_at("beta"), "self_destruct", {"now": True})

        def reported() -> set[str]:
            letters = [f for f in stage.findings("DEAD_LETTER") if f["object"] == "host beta"]
            return {f["message"].partition(":")[0] for f in letters}

        wanted = {"WRONG_FLEET", "WRONG_HOST", "BAD_MESSAGE", "UNKNOWN_KIND", "UNKNOWN_COMMAND"}
        wait_until(lambda: reported() >= wanted, 30, f"reported are {reported()}")
        wait_until(
            lambda: stage.rows("SELECT dropped_casts FROM hosts WHERE name = 'beta'")[0][0] > 0,
            30,
            "the cast of another session is counted",
        )
        assert beta.guests()[stranger_uuid] == stranger
        assert stage.guest("beta", "web-2") == guest
        assert stage.vm("web-2")["vm_state"] == "ACTIVE"
        goes_on(stage, "beta", "after-forgeries")
        stage.done("vm", "delete", "web-2")
        assert beta.guests() == {stranger_uuid: stranger}


def test_what_is_no_rpc_at_all_stops_neither_agent_nor_manager(stage: Stage, vhost: str) -> None:
    with stage.watched(), raw(vhost) as connection:
        dead_letters(vhost)
        producer = connection.Producer()
        queues = ("muster-agent.beta", "muster-manager")
        for queue in queues:
            for body, kind in (
                (b"\xff\xfe", "application/octet-stream"),
                (b"{", "application/json"),
            ):
                producer.publish(
                    body,
                    exchange="muster",
                    routing_key=queue,
                    content_type=kind,
                    content_encoding="utf-8",
                )
        buried: list[str] = []

        def all_buried() -> bool:
            buried.extend(dead_letters(vhost))
            return sorted(buried) == sorted(2 * [f"rejected by {queue}" for queue in queues])

        wait_until(all_buried, 30, f"what could not be read is kept: {buried}")
        goes_on(stage, "beta", "after-garbage")


def test_ten_megabytes_by_rpc_are_refused_by_agent_and_manager(stage: Stage) -> None:
    with stage.watched():
        huge = forged(stage, "beta", stage.runtime.new_id(), kind="start_vm")
        huge["spec"] = {"guest": "x" * 10_000_000}
        stage.bus.cast(agent_at("beta"), "start_vm", {"command": huge})
        with pytest.raises(MusterError) as refused:
            stage.bus.call(ANY_MANAGER, "vm_show", {"vm": "x" * 10_000_000}, 30.0)
        assert refused.value.code == "BAD_MESSAGE"
        assert "bytes are more than" in refused.value.message
        wait_until(
            lambda: [
                f
                for f in stage.findings("DEAD_LETTER")
                if f["object"] == "host beta" and "bytes are more than" in f["message"]
            ],
            30,
            "the agent has refused it",
        )
        goes_on(stage, "beta", "after-ten-megabytes")

"""`vm history`, `host history`, `event list`: what is stored of what happened, oldest first."""

from __future__ import annotations

from typing import Any

import pytest

from common import messages as m
from common.errors import BadRequest, NotFound
from common.states import PowerState
from manager.flows import retention
from manager.store.jobs import Job
from tests.functional.fleet import START, Fleet, ScriptedAgent


def told(fleet: Fleet, method: str = "vm_history", **asked: Any) -> list[dict[str, Any]]:
    asked = asked or {"vm": "web-1"}
    history: list[dict[str, Any]] = fleet.ask(method, **asked)["history"]
    assert all(list(line) == ["at", "source", "what", "detail"] for line in history)
    assert [line["at"] for line in history] == sorted(line["at"] for line in history)
    return history


def stopped(fleet: Fleet, h1: ScriptedAgent) -> str:
    """A VM that is stopped, with a second between all that happens; the job."""
    fleet.deploy(h1)
    fleet.clock.move(1)
    job = fleet.ask("vm_stop", vm="web-1", reason="night")
    (cast,) = fleet.publish()
    fleet.clock.move(1)
    h1.receipt(cast.command.id, m.Step.RECEIVED)
    fleet.clock.move(1)
    h1.receipt(cast.command.id, m.Step.STARTED)
    fleet.clock.move(1)
    h1.carry_out(cast.command)
    return str(job["uuid"])


def test_a_command_is_told_from_the_wish_to_the_end_with_who_said_so(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    job = stopped(fleet, h1)
    cmd, wish = "stop_vm of web-1 at generation 2 on h1", f"stop of web-1, job {job}"
    lines = [(e["source"], e["what"], e["detail"]) for e in told(fleet)]
    assert lines[-8:] == [
        ("ann", "job.accepted", f"{wish}: night"),
        ("manager", "command.accepted", cmd),
        ("manager", "command.published", cmd),
        ("host h1", "command.received", cmd),
        ("host h1", "command.started", cmd),
        ("host h1", "command.succeeded", cmd),
        ("host h1", "power", "web-1 is SHUTOFF"),
        ("manager", "job.succeeded", wish),
    ]
    assert lines[0][:2] == ("ann", "job.accepted")
    assert "create of web-1" in lines[0][2]


def test_what_another_hand_has_done_is_told_with_its_host(fleet: Fleet, h1: ScriptedAgent) -> None:
    vm = fleet.deploy(h1)
    fleet.clock.move(1)
    h1.power(vm.uuid, PowerState.CRASHED)
    h1.beat()
    assert [(e["source"], e["what"], e["detail"]) for e in told(fleet)][-2:] == [
        ("host h1", "power", "web-1 is CRASHED"),
        ("host h1", "instance.state", "web-1: the guest crashed outside of Muster's commands"),
    ]


def test_a_failure_and_what_was_taken_back_say_why(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1)
    fleet.clock.move(1)
    fleet.ask("vm_stop", vm="web-1")
    (cast,) = fleet.publish()
    fleet.clock.move(1)
    h1.fail(cast.command, error_code="HYPERVISOR_ERROR", error="qemu is stuck")
    failed = {e["what"]: e["detail"] for e in told(fleet)}
    assert failed["command.failed"].endswith("on h1: HYPERVISOR_ERROR: qemu is stuck")
    assert failed["job.failed"].endswith(": HYPERVISOR_ERROR: qemu is stuck")
    h1.end_session()
    fleet.clock.move(1)
    job = fleet.ask("vm_stop", vm="web-1")
    fleet.clock.move(1)
    fleet.ask("job_cancel", job=job["uuid"], operator="bob", reason="a mistake")
    ended = [(e["source"], e["what"], e["detail"]) for e in told(fleet)][-3:]
    assert [line[:2] for line in ended] == [
        ("bob", "job.said"),
        ("manager", "command.not_run"),
        ("manager", "job.cancelled"),
    ]
    assert ended[0][2].endswith(": cancel: a mistake")


def test_the_newest_are_told_and_that_there_are_older_ones(fleet: Fleet, h1: ScriptedAgent) -> None:
    stopped(fleet, h1)
    whole = told(fleet)
    for limit in range(1, len(whole)):
        answer = fleet.ask("vm_history", vm="web-1", limit=limit)
        assert answer["history"] == whole[-limit:]
        assert answer["notices"] == ["only the newest are shown; more with --limit"]
    assert fleet.ask("vm_history", vm="web-1", limit=len(whole))["notices"] == []


def test_since_leaves_out_what_came_before(fleet: Fleet, h1: ScriptedAgent) -> None:
    stopped(fleet, h1)
    whole = told(fleet)
    for since in ("2s", (fleet.clock.now()).isoformat(), START.isoformat()):
        some = told(fleet, vm="web-1", since=since)
        assert some == [e for e in whole if e["at"] >= some[0]["at"]]
    assert len(told(fleet, vm="web-1", since="2s")) == 5
    assert told(fleet, vm="web-1", since="2027-01-01") == []


def test_a_deleted_vm_has_its_history_and_the_end_of_a_forgotten_job_stays(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    job = stopped(fleet, h1)
    uuid = fleet.vm().uuid
    fleet.delete()
    (cast,) = fleet.publish()
    h1.carry_out(cast.command)
    assert [e["what"] for e in told(fleet, vm=uuid)][-1] == "job.succeeded"
    ends = [e for e in told(fleet) if e["what"] == "job.succeeded"]
    assert len(ends) == 3, "create, stop and delete, each once"
    fleet.put(fleet.vm(), deleted_at=None)  # the record is kept, its jobs are not
    fleet.clock.move(fleet.cfg.manager.retention + 1)
    fleet.run(retention.prune)
    assert fleet.rows(Job, uuid=job) == []
    kept = [e["detail"] for e in told(fleet, vm=uuid) if e["what"] == "job.succeeded"]
    assert sorted(kept) == ["create SUCCEEDED", "delete SUCCEEDED", "stop SUCCEEDED"]


def test_a_host_tells_its_own_events_and_what_was_asked_of_it(
    fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent
) -> None:
    stopped(fleet, h1)
    fleet.deploy(h2, "web-2")
    fleet.clock.move(1)
    fleet.ask("host_disable", host="h1", operator="bob", reason="disks")
    lines = [(e["source"], e["what"]) for e in told(fleet, "host_history", host="h1")]
    assert ("manager", "command.accepted") in lines
    assert ("host h1", "command.succeeded") in lines
    assert ("ann", "job.accepted") in lines
    assert lines[-1] == ("bob", "host.disabled")
    details = " ".join(e["detail"] for e in told(fleet, "host_history", host="h1"))
    assert "stop_vm of web-1 at generation 2 on h1" in details
    assert "web-2" not in details
    fleet.pass_(100, h1, h2)
    assert "noop" not in str(fleet.ask("host_history", host="h1")), "canaries are left out"


def test_events_are_listed_by_object_and_kind(fleet: Fleet, h1: ScriptedAgent) -> None:
    stopped(fleet, h1)
    uuid = fleet.vm().uuid

    def listed(**asked: Any) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = fleet.ask("event_list", **asked)["events"]
        return events

    everything = listed()
    assert list(everything[0]) == ["at", "kind", "object", "source", "text"]
    assert [e["at"] for e in everything] == sorted(e["at"] for e in everything)
    assert listed(object="web-1") == listed(object=uuid) == listed(object=uuid.upper()) != []
    assert {e["object"] for e in listed(object="web-1")} == {uuid}
    assert {e["object"] for e in listed(object="h1")} == {"h1"}
    assert {e["kind"] for e in listed(kind="job")} == {"job.succeeded"}
    assert listed(kind="job.succeeded") == listed(kind="job")
    assert listed(kind="jo") == listed(object="nobody") == []
    assert listed(limit=2) == everything[-2:]
    assert fleet.ask("event_list", limit=2)["notices"] != []


def test_events_of_one_moment_come_as_they_happened(fleet: Fleet, h1: ScriptedAgent) -> None:
    vm = fleet.deploy(h1)
    fleet.clock.move(1)
    h1.power(vm.uuid, PowerState.SHUTOFF)
    h1.beat()
    assert [e["kind"] for e in fleet.ask("event_list", object="web-1")["events"]][-2:] == [
        "power",
        "instance.state",
    ]


@pytest.mark.parametrize(
    ("method", "asked", "field"),
    [
        ("vm_history", {"vm": "web-1", "since": "yesterday"}, "since"),
        ("vm_history", {"vm": "web-1", "since": 5}, "since"),
        ("host_history", {"host": "h1", "limit": 0}, "limit"),
        ("event_list", {"limit": 1001}, "limit"),
        ("event_list", {"limit": "many"}, "limit"),
    ],
)
def test_a_wrong_field_is_named(
    fleet: Fleet, h1: ScriptedAgent, method: str, asked: dict[str, Any], field: str
) -> None:
    fleet.deploy(h1)
    with pytest.raises(BadRequest, match=field):
        fleet.ask(method, **asked)


def test_who_is_not_there_has_no_history(fleet: Fleet, h1: ScriptedAgent) -> None:
    with pytest.raises(NotFound):
        fleet.ask("vm_history", vm="web-9")
    with pytest.raises(NotFound):
        fleet.ask("host_history", host="h9")

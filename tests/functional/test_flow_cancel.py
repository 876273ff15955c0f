"""`muster job cancel`: what its host has not begun can be taken back, and nothing else."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from common import messages as m
from common.errors import NotFound, WrongState
from common.states import CommandState, JobState, PowerState, TaskState, VmState
from manager.store.addresses import Mac
from manager.store.commands import CommandRow, Void
from tests.functional.fleet import INTERVAL_S, Fleet, ScriptedAgent


def cancel(fleet: Fleet, job: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    return fleet.ask("job_cancel", job=job["uuid"], operator="ann", reason="a mistake", **kwargs)


def voided(agent: ScriptedAgent, fleet: Fleet, answer: m.VoidOutcome) -> None:
    """The agent gets the void and answers it."""
    fleet.clock.move(0.001)
    fleet.publish()
    (owed,) = fleet.rows(Void)
    said = m.VoidAnswer(id="v-1", instance=owed.instance, generation=owed.generation, answer=answer)
    agent.say(voids=(said,))


@pytest.mark.parametrize(("verb", "state"), [("vm_stop", "ACTIVE"), ("vm_reboot", "ACTIVE")])
def test_what_was_not_sent_is_withdrawn_at_once(
    fleet: Fleet, h1: ScriptedAgent, verb: str, state: str
) -> None:
    fleet.deploy(h1)
    h1.end_session()
    job = fleet.ask(verb, vm="web-1")
    assert cancel(fleet, job)["state"] == "CANCELLED"
    h1.hello()
    assert fleet.publish() == []
    vm = fleet.vm()
    assert (vm.vm_state, vm.task_state, vm.job) == (state, TaskState.NONE, None)
    assert fleet.one(CommandRow, job=job["uuid"]).state is CommandState.NOT_RUN
    shown = fleet.shown(job)
    assert (shown["error_code"], shown["error"]) == (
        "CANCELLED",
        "cancelled by ann before it was sent",
    )
    assert [entry[:2] for entry in shown["reason"]][-1] == ["ann", "cancel: a mistake"]
    assert cancel(fleet, job)["state"] == "CANCELLED"
    assert fleet.ask("vm_stop", vm="web-1")["state"] == "RUNNING"


def test_a_create_that_was_not_sent_leaves_a_vm_that_can_only_be_deleted(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    h1.end_session()
    job = fleet.create(host="h1")
    assert cancel(fleet, job)["state"] == "CANCELLED"
    h1.hello()
    assert fleet.publish() == []
    vm = fleet.vm()
    assert (vm.vm_state, vm.task_state) == (VmState.ERROR, TaskState.NONE)
    assert "CANCELLED" in vm.error
    assert (vm.host, fleet.rows(Mac)) == (None, [])  # no host has heard of it
    assert fleet.delete()["state"] == "SUCCEEDED"
    assert fleet.publish() == []


def test_a_create_that_was_sent_holds_its_address_until_its_host_has_looked(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    """An agent whose journal was lost says of every command that it did not run."""
    job = fleet.create(host="h1")
    fleet.publish()
    assert cancel(fleet, job)["state"] == "RUNNING"
    voided(h1, fleet, m.VoidOutcome.NOT_RUN)
    assert fleet.job(job).state is JobState.CANCELLED
    vm = fleet.vm()
    assert (vm.vm_state, vm.host) == (VmState.ERROR, None)
    assert [mac.mac for mac in fleet.rows(Mac)] == [vm.mac]
    fleet.pass_(1.0, h1)
    (terminate,) = fleet.publish()
    assert (terminate.command.kind, terminate.command.instance) == ("terminate_instance", vm.uuid)
    h1.succeed(terminate.command)
    assert fleet.rows(Mac) == []


def test_what_was_sent_is_cancelled_when_its_agent_says_that_it_did_not_run(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    job = fleet.ask("vm_stop", vm="web-1")
    (stop,) = fleet.publish()
    h1.receipt(stop.command.id)
    asked = cancel(fleet, job)
    assert asked["state"] == "RUNNING"
    assert "to be cancelled" in asked["waiting_for"]
    assert cancel(fleet, job)["uuid"] == job["uuid"]
    voided(h1, fleet, m.VoidOutcome.NOT_RUN)
    assert fleet.job(job).state is JobState.CANCELLED
    assert fleet.rows(Void) == []
    assert (fleet.vm().vm_state, fleet.vm().task_state) == (VmState.ACTIVE, TaskState.NONE)
    # What is left of it in a queue is stale, and says so to nobody's surprise.
    h1.say(results=(h1.result(stop.command, m.Outcome.NOT_RUN, error_code="STALE_COMMAND"),))
    assert fleet.job(job).state is JobState.CANCELLED


def test_the_result_of_the_voided_command_may_come_before_the_answer_to_the_void(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    job = fleet.ask("vm_stop", vm="web-1")
    (stop,) = fleet.publish()
    cancel(fleet, job)
    h1.say(results=(h1.result(stop.command, m.Outcome.NOT_RUN, error_code="VOIDED"),))
    assert fleet.job(job).state is JobState.CANCELLED
    assert fleet.job(job).error == "cancelled by ann before h1 had begun to carry it out"
    assert fleet.rows(Void) == []


def test_a_job_that_is_being_cancelled_tells_that_its_host_is_not_up(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    job = fleet.ask("vm_stop", vm="web-1")
    fleet.publish()
    assert cancel(fleet, job)["waiting_for"] == "h1 to say whether it has begun, to be cancelled"
    fleet.pass_(3 * INTERVAL_S)
    assert "to be cancelled (SUSPECT: silent for" in fleet.shown(job)["waiting_for"]


def test_an_earlier_command_that_runs_is_not_taken_for_the_cancelled_one(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    h2 = ScriptedAgent(fleet, "h2").up()
    given_up = fleet.ask("vm_stop", vm="web-1")
    (stop,) = fleet.publish()
    fleet.pass_(stop.command.timeout_s, h2)
    assert fleet.job(given_up).state is JobState.EXPIRED
    h1.hello(unfinished=(stop.command.id,))
    h1.beat(full=True)
    job = fleet.ask("vm_reboot", vm="web-1")
    fleet.publish()
    cancel(fleet, job)
    voided(h1, fleet, m.VoidOutcome.RUNNING)
    assert fleet.events("job.not_cancelled") == []
    voided(h1, fleet, m.VoidOutcome.NOT_RUN)
    assert fleet.job(job).state is JobState.CANCELLED


def test_what_was_running_or_done_ends_as_it_ends(fleet: Fleet, h1: ScriptedAgent) -> None:
    vm = fleet.deploy(h1)
    job = fleet.ask("vm_stop", vm="web-1")
    (stop,) = fleet.publish()
    cancel(fleet, job)
    voided(h1, fleet, m.VoidOutcome.RUNNING)
    assert fleet.rows(Void) == []
    assert fleet.job(job).state is JobState.RUNNING
    assert len(fleet.events("job.not_cancelled")) == 1
    h1.receipt(stop.command.id, m.Step.STARTED)
    with pytest.raises(WrongState, match="begun to carry out"):
        cancel(fleet, job)
    h1.power(vm.uuid, PowerState.SHUTOFF)
    h1.succeed(stop.command)
    assert fleet.job(job).state is JobState.SUCCEEDED
    with pytest.raises(WrongState, match="SUCCEEDED already"):
        cancel(fleet, job)
    again = fleet.ask("vm_start", vm="web-1")
    (start,) = fleet.publish()
    cancel(fleet, again)
    voided(h1, fleet, m.VoidOutcome.DONE)
    h1.power(vm.uuid, PowerState.RUNNING)
    h1.succeed(start.command)
    assert fleet.job(again).state is JobState.SUCCEEDED


def test_a_delete_is_taken_back_only_before_it_was_sent(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1)
    h1.end_session()
    job = fleet.delete()
    assert cancel(fleet, job)["state"] == "CANCELLED"
    assert fleet.job(job).error == "cancelled by ann before it was sent"
    vm = fleet.vm()
    assert (vm.vm_state, vm.task_state, vm.job) == (VmState.ACTIVE, TaskState.NONE, None)
    h1.hello()
    assert fleet.publish() == []
    assert fleet.stones() == []
    fleet.tick()
    again = fleet.delete()
    (terminate,) = fleet.publish()
    before = fleet.everything()
    with pytest.raises(WrongState, match="once it has been sent"):
        cancel(fleet, again)
    assert fleet.everything() == before
    h1.carry_out(terminate.command)
    assert fleet.job(again).state is JobState.SUCCEEDED


def test_a_delete_that_took_another_jobs_place_is_not_taken_back(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    fleet.ask("vm_stop", vm="web-1")
    fleet.publish()
    with pytest.raises(WrongState):
        cancel(fleet, fleet.delete())


@pytest.mark.parametrize("softly", [False, True])
def test_a_delete_that_has_withdrawn_a_create_is_not_taken_back(
    fleet: Fleet, h1: ScriptedAgent, softly: bool
) -> None:
    h1.end_session()
    fleet.create()
    job = fleet.delete(soft=softly)
    before = fleet.everything()
    with pytest.raises(WrongState, match="another job's place"):
        cancel(fleet, job)
    assert fleet.everything() == before


def test_a_job_that_nobody_knows(fleet: Fleet) -> None:
    with pytest.raises(NotFound):
        cancel(fleet, {"uuid": "00000000-0000-4000-8000-000000000000"})


def test_a_job_that_stands_for_two_wishes_is_not_taken_back_by_either(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    h1.end_session()
    anns = fleet.delete(operator="ann")
    bobs = str(uuid.uuid4())
    assert fleet.delete(operator="bob", job=bobs)["uuid"] == anns["uuid"]
    for asked in (anns["uuid"], bobs):
        with pytest.raises(WrongState, match="another wish"):
            cancel(fleet, {"uuid": asked})
    h1.hello()
    (terminate,) = fleet.publish()
    h1.carry_out(terminate.command)
    assert fleet.job(anns).state is JobState.SUCCEEDED

"""The outbox, receipts, results and voids: every accepted command ends."""

from __future__ import annotations

import copy
import datetime as dt
from typing import Any

import pytest
import sqlalchemy as sa

from common import messages as m
from common.errors import BadMessage, BrokerUnavailable, IdReused, TaskUnderWay
from common.states import CommandState as C
from common.states import HostState, JobState, PowerState, TaskState, TombstoneState, VmState
from manager import ticks
from manager.flows import publish
from manager.store.addresses import Mac
from manager.store.commands import CommandRow, Void
from manager.store.instances import Instance
from manager.store.jobs import Job
from manager.store.tombstones import Tombstone
from tests.functional.fleet import DOWN_S, INTERVAL_S, Cast, Fleet, ScriptedAgent

RESEND_S = 5.0
TIMEOUT_S = 120.0
V = m.VoidOutcome


def command(fleet: Fleet, answer: dict[str, Any]) -> CommandRow:
    return fleet.one(CommandRow, job=answer["uuid"])


def stopping(fleet: Fleet, h1: ScriptedAgent) -> tuple[dict[str, Any], Cast]:
    """A VM whose stop has been published."""
    fleet.deploy(h1)
    h1.beat(full=True)
    job = fleet.ask("vm_stop", vm="web-1")
    (cast,) = fleet.publish()
    fleet.wire.take()
    return job, cast


# accepting


@pytest.mark.parametrize("session", [True, False])
def test_the_command_is_in_the_outbox_with_the_state_it_changes(
    fleet: Fleet, h1: ScriptedAgent, session: bool
) -> None:
    """Claimed at once for the manager that accepts it, if there is somebody to take it."""
    vm = fleet.deploy(h1)
    if not session:
        h1.end_session()
    job = fleet.ask("vm_stop", vm="web-1", reason="night")
    row, now = command(fleet, job), fleet.clock.now()
    if session:
        assert (row.state, row.publishes, row.session) == (C.PUBLISHED, 1, h1.session)
        assert (row.published_at, row.publish_at) == (now, now + dt.timedelta(seconds=RESEND_S))
    else:
        assert (row.state, row.publishes, row.session) == (C.ACCEPTED, 0, None)
        assert (row.published_at, row.publish_at) == (None, now)
    held = fleet.vm()
    assert (held.task_state, held.job) == (TaskState.POWERING_OFF, job["uuid"])
    assert held.generation == row.generation == vm.generation + 1
    assert [(e.source, e.text) for e in row.trail] == [("ann", "night")]
    assert [c.command.id for c in fleet.wire.take()] == ([row.id] if session else [])


def test_a_wish_that_is_refused_leaves_nothing_behind(fleet: Fleet, h1: ScriptedAgent) -> None:
    stopping(fleet, h1)
    before = fleet.everything()
    with pytest.raises(TaskUnderWay, match=str(fleet.vm().job)):
        fleet.ask("vm_reboot", vm="web-1")
    assert fleet.everything() == before


def test_already_there_succeeds_without_a_command(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1)
    job = fleet.ask("vm_start", vm="web-1")
    assert job["state"] == "SUCCEEDED"
    assert fleet.rows(CommandRow, job=job["uuid"]) == []
    assert "already" in fleet.shown(job)["steps"][0]["name"]


@pytest.mark.parametrize(
    ("verb", "fields"),
    [
        ("vm_create", {"name": "web-2", "vcpus": 1, "memory_mib": 64}),
        ("vm_stop", {"vm": "web-1"}),
        ("vm_reboot", {"vm": "web-1"}),
        ("vm_delete", {"vm": "web-1"}),
    ],
)
def test_a_repeated_request_is_the_same_job_and_another_one_is_refused(
    fleet: Fleet, h1: ScriptedAgent, verb: str, fields: dict[str, Any]
) -> None:
    fleet.deploy(h1)
    uuid_ = "11111111-0000-4000-8000-000000000001"
    first = fleet.ask(verb, job=uuid_, **fields)
    before = fleet.everything()
    assert fleet.ask(verb, job=uuid_, **fields)["uuid"] == first["uuid"]
    # Who repeats it, and why, does not make it another wish.
    again = fleet.ask(verb, job=uuid_, operator="bob", reason="again", **fields)
    assert again["uuid"] == first["uuid"]
    assert fleet.everything() == before
    with pytest.raises(IdReused, match=uuid_):
        fleet.ask("vm_stop", job=uuid_, vm="another")
    assert fleet.everything() == before


@pytest.mark.parametrize(
    ("verb", "fields"),
    [
        ("vm_create", {"name": "web-2", "vcpus": 1, "memory_mib": 64}),
        ("vm_start", {"vm": "web-1"}),
        ("vm_stop", {"vm": "web-1"}),
        ("vm_delete", {"vm": "web-1"}),
        ("vm_delete", {"vm": "gone", "idempotent": True}),
        ("vm_delete", {"vm": "nobody"}),
    ],
)
def test_the_uuid_of_another_job_is_refused_whatever_the_new_request_would_come_to(
    fleet: Fleet, h1: ScriptedAgent, verb: str, fields: dict[str, Any]
) -> None:
    """Also for one that would be done already, is refused, or writes no job of its own."""
    fleet.deploy(h1)
    fleet.deploy(h1, "gone")
    fleet.delete("gone")
    h1.carry_out(fleet.publish()[-1].command)
    fleet.deploy(h1, "web-3")
    uuid_ = "11111111-0000-4000-8000-000000000002"
    first = fleet.ask("vm_reboot", job=uuid_, vm="web-3")
    fleet.wire.take()
    before = fleet.everything()
    with pytest.raises(IdReused, match=uuid_):
        fleet.ask(verb, job=uuid_, **fields)
    assert fleet.everything() == before
    assert fleet.wire.casts == []
    assert fleet.ask("vm_reboot", job=uuid_, vm="web-3")["uuid"] == first["uuid"]


def test_a_request_that_is_repeated_when_all_is_over_still_has_its_job(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    """Its VM is gone meanwhile, and its own doing is what it would be refused for."""
    fleet.deploy(h1)
    stop = fleet.ask("vm_stop", vm="web-1")
    h1.carry_out(fleet.publish()[-1].command)
    gone = fleet.delete()
    h1.carry_out(fleet.publish()[-1].command)
    before = fleet.everything()
    assert fleet.ask("vm_stop", vm="web-1", job=stop["uuid"])["uuid"] == stop["uuid"]
    assert fleet.ask("vm_delete", vm="web-1", job=gone["uuid"])["state"] == "SUCCEEDED"
    assert fleet.everything() == before
    assert [c for c in fleet.wire.take() if "command" in c.kwargs] == []


# publishing


def test_the_row_says_published_before_the_cast_is_made(fleet: Fleet, h1: ScriptedAgent) -> None:
    seen: list[CommandRow] = []
    fleet.wire.before = lambda: seen.append(fleet.one(CommandRow))
    fleet.create(host="h1")
    (cast,) = fleet.publish()
    assert [(row.state, row.publishes) for row in seen] == [(C.PUBLISHED, 1)]
    assert (cast.host, cast.method, cast.command.session) == ("h1", "start_vm", h1.session)
    assert cast.command.fleet == "fleet-1"
    assert cast.command.spec["create"] is True


def test_it_is_cast_again_under_the_same_id_after_resend_after(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.create(host="h1")
    (first,) = fleet.publish()
    fleet.clock.move(RESEND_S - 0.1)
    assert fleet.publish() == []
    fleet.clock.move(0.1)
    (again,) = fleet.publish()
    assert again.command == first.command


def test_it_is_not_cast_again_once_it_was_received(fleet: Fleet, h1: ScriptedAgent) -> None:
    job, cast = stopping(fleet, h1)
    h1.receipt(cast.command.id, age_s=1.5)
    fleet.clock.move(10 * RESEND_S)
    assert fleet.publish() == []
    row = command(fleet, job)
    assert row.state is C.RECEIVED
    assert row.received_at is not None
    assert (fleet.clock.now() - row.received_at).total_seconds() == 10 * RESEND_S + 1.5


def test_a_cast_that_the_broker_did_not_take_is_made_again(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.wire.up = False
    job = fleet.create(host="h1")
    row = command(fleet, job)
    # Given back at once; PUBLISHED, as a broker that broke off may have taken it all the same.
    assert (row.state, row.publish_at) == (C.PUBLISHED, fleet.clock.now())
    assert fleet.publish() == []
    fleet.wire.up = True
    (cast,) = fleet.publish()
    assert cast.command.id == row.id
    assert fleet.publish() == []


def test_commands_and_confirmations_for_one_host_leave_in_a_cast_of_each(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    h2 = ScriptedAgent(fleet, "h2").up()
    for name, host in (("one", h1), ("two", h2), ("three", h1)):
        fleet.deploy(host, name)
    said: list[tuple[str, str, dict[str, Any]]] = []

    class Bus:
        def cast(self, to: Any, method: str, kwargs: dict[str, Any]) -> None:
            said.append((to.server, method, kwargs))

    publisher = publish.Publisher(fleet.store, fleet.cfg, Bus())  # type: ignore[arg-type]
    fleet.store.after_commit = publisher.take
    jobs = [fleet.ask("vm_stop", vm=name) for name in ("one", "two", "three")]
    ids = [command(fleet, job).id for job in jobs]
    for n in (1, 2):
        h1.say(refusals=(m.Refusal(id=f"r-{n}", code="X", message="?", body=""),))
    assert publisher.say()
    assert [(host, method) for host, method, _ in said] == [
        ("h1", "commands"),
        ("h2", "stop_vm"),
        ("h1", "confirm"),
    ]
    assert [each["id"] for each in said[0][2]["commands"]] == [ids[0], ids[2]]
    assert said[2][2] == {"ids": ["r-1", "r-2"]}


def test_a_cast_is_not_made_larger_than_an_agent_takes(
    fleet: Fleet, h1: ScriptedAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    class Bus:
        def cast(self, _to: Any, method: str, kwargs: dict[str, Any]) -> None:
            sizes.append(len(kwargs.get("commands", (1,))))

    monkeypatch.setattr(publish, "TOGETHER_BYTES", 3000)
    publisher = publish.Publisher(fleet.store, fleet.cfg, Bus())  # type: ignore[arg-type]
    fleet.store.after_commit = publisher.take
    for n in range(6):
        fleet.create(f"web-{n}", host="h1", memory_mib=16)
    assert publisher.say()
    assert sum(sizes) == 6
    assert 1 < len(sizes) < 6


def test_what_waits_behind_a_cast_that_the_broker_did_not_take_is_not_sent_either(
    fleet: Fleet, h1: ScriptedAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands are given back; confirms are dropped, the agent repeats what they are for."""
    monkeypatch.setattr(publish, "TOGETHER", 1)
    for name in ("one", "two", "three"):
        fleet.deploy(h1, name)
    casts: list[str] = []

    class Broken:
        def cast(self, _to: object, method: str, _kwargs: object) -> None:
            if casts:
                raise BrokerUnavailable("it broke off", "mend it")
            casts.append(method)

    publisher = publish.Publisher(fleet.store, fleet.cfg, Broken())  # type: ignore[arg-type]
    fleet.store.after_commit = publisher.take
    jobs = [fleet.ask("vm_stop", vm=name) for name in ("one", "two", "three")]
    first = command(fleet, jobs[0])
    failed = m.Result(
        id="r-1",
        command=first.id,
        kind=first.kind,
        instance=first.instance,
        generation=first.generation,
        outcome=m.Outcome.FAILED,
        error_code="HYPERVISOR_ERROR",
        error="it said no",
    )
    h1.say(results=(failed,))
    assert not publisher.say()
    assert casts == ["stop_vm"]
    rows = [command(fleet, job) for job in jobs]
    assert [row.state for row in rows] == [C.FAILED, C.PUBLISHED, C.PUBLISHED]
    assert [row.publish_at for row in rows] == [None, fleet.clock.now(), fleet.clock.now()]
    assert publisher.say(), "and nothing waits any more"


def test_what_a_manager_did_not_live_to_cast_is_cast_by_another_under_the_same_id(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    """It died after the commit that accepted and claimed the command."""
    fleet.deploy(h1)
    dying = Fleet(copy.copy(fleet.store), fleet.clock)
    dying.store.after_commit = lambda _tx: None
    job = dying.ask("vm_stop", vm="web-1")
    row = command(fleet, job)
    assert (row.state, row.publishes) == (C.PUBLISHED, 1)
    fleet.clock.move(RESEND_S - 0.1)
    fleet.tick()
    assert fleet.publish() == []
    fleet.clock.move(0.1)
    fleet.tick()
    (cast,) = fleet.wire.take("stop_vm")
    assert (cast.command.id, cast.command.session) == (row.id, h1.session)
    assert command(fleet, job).publishes == 2
    h1.carry_out(cast.command)
    assert fleet.shown(job)["state"] == "SUCCEEDED"


def test_a_command_that_nobody_could_be_sent_leaves_with_the_hello_of_its_host(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    h1.end_session()
    job = fleet.ask("vm_stop", vm="web-1")
    for _ in range(3):
        fleet.clock.move(RESEND_S)
        assert fleet.publish() == []
    assert command(fleet, job).state is C.ACCEPTED
    h1.hello()
    (cast,) = fleet.publish()
    assert (cast.command.id, cast.command.session) == (command(fleet, job).id, h1.session)
    assert command(fleet, job).publishes == 1


def test_what_one_manager_can_not_send_is_given_back_to_the_others_at_once(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    """Or one that has lost the broker would claim it again and again, and nobody send it."""
    job, _ = stopping(fleet, h1)
    fleet.wire.up = False
    fleet.create(name="web-2", host="h1")
    fleet.clock.move(RESEND_S)
    assert fleet.publish() == []
    assert command(fleet, job).state is C.PUBLISHED
    assert {row.publish_at for row in fleet.rows(CommandRow, ended_at=None)} == {fleet.clock.now()}
    fleet.wire.up = True
    assert len(fleet.publish()) == 2


def test_nothing_is_cast_to_a_host_without_a_session_until_it_has_one(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    job, _ = stopping(fleet, h1)
    ScriptedAgent(fleet, "h2").up()
    fleet.ask("host_set_down", host="h1", reason="to end its session")
    fleet.clock.move(RESEND_S)
    assert fleet.publish() == []
    h1.restart().hello()
    (again,) = fleet.publish()
    assert again.command.id == command(fleet, job).id
    assert again.command.session == h1.session


# receipts


def test_receipts_lead_forward_whatever_their_order(fleet: Fleet, h1: ScriptedAgent) -> None:
    job, cast = stopping(fleet, h1)
    h1.receipt(cast.command.id, m.Step.STARTED)
    assert command(fleet, job).state is C.STARTED
    h1.receipt(cast.command.id, m.Step.RECEIVED)
    row = command(fleet, job)
    assert row.state is C.STARTED
    assert None not in (row.received_at, row.started_at)


def test_a_receipt_after_a_restart_ends_the_casting_again(fleet: Fleet, h1: ScriptedAgent) -> None:
    _, cast = stopping(fleet, h1)
    h1.receipt(cast.command.id)
    h1.restart().hello(journal_id="a-new-one")  # and the old one is lost
    (again,) = fleet.publish()
    assert again.command.id == cast.command.id
    h1.receipt(again.command.id)
    fleet.clock.move(RESEND_S)
    assert fleet.publish() == []


def test_a_receipt_from_another_host_or_for_nothing_counts_for_nothing(
    fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent
) -> None:
    _, cast = stopping(fleet, h1)
    before = fleet.everything()
    h2.receipt(cast.command.id)
    h2.receipt("no-such-command")
    h2.receipt("no-such-command")
    assert fleet.everything() == before
    assert fleet.letters() == 2 * ["UNKNOWN_COMMAND"]


# results


def test_a_result_ends_command_step_job_and_task_and_is_confirmed(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    job, cast = stopping(fleet, h1)
    result = h1.carry_out(cast.command)
    shown = fleet.shown(job)
    assert shown["state"] == "SUCCEEDED"
    assert [s["state"] for s in shown["steps"]] == ["SUCCEEDED"]
    assert [r["state"] for r in shown["receipts"]] == ["SUCCEEDED"]
    held = fleet.vm()
    assert (held.vm_state, held.task_state, held.job, held.power_state) == (
        VmState.SHUTOFF,
        TaskState.NONE,
        None,
        PowerState.SHUTOFF,
    )
    assert fleet.wire.take("confirm")[0].kwargs == {"ids": [result.id]}


def test_a_repeated_result_changes_nothing_and_is_confirmed_again(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    _, cast = stopping(fleet, h1)
    result = h1.carry_out(cast.command)
    fleet.wire.take()
    before = fleet.everything()
    h1.say(results=(result,))
    h1.beat(results=(result,), inventory=None)
    assert fleet.everything() == before
    assert [c.kwargs for c in fleet.wire.take("confirm")] == 2 * [{"ids": [result.id]}]


def test_a_result_for_a_command_nobody_gave_is_kept_confirmed_and_harmless(
    fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent
) -> None:
    _, cast = stopping(fleet, h1)
    before = fleet.everything()
    forged = h2.succeed(cast.command)
    assert fleet.everything() == before
    assert fleet.letters() == ["UNKNOWN_COMMAND"]
    assert fleet.wire.take("confirm")[0].kwargs == {"ids": [forged.id]}


def test_a_result_of_a_generation_that_was_never_issued_counts_and_is_told(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    job, cast = stopping(fleet, h1)
    h1.succeed(cast.command, generation=7)
    assert fleet.job(job).state is JobState.SUCCEEDED
    (event,) = fleet.events("GENERATION_AHEAD")
    assert event.data == {"generation": 7, "issued": 2}
    assert "GENERATION_AHEAD" in {f["code"] for f in fleet.ask("doctor")["findings"]}
    # The agent's word is not raised above: its floors are, when it refuses for one.
    again = fleet.ask("vm_stop", vm="web-1")
    (stop,) = fleet.publish()
    h1.say(results=(h1.result(stop.command, m.Outcome.NOT_RUN, error_code="STALE", floor=2**52),))
    assert fleet.job(again).state is JobState.FAILED
    fleet.ask("vm_stop", vm="web-1")
    (stop,) = fleet.publish()
    assert stop.command.generation == 2**52 + 1
    assert len(fleet.events("GENERATION_AHEAD")) == 2


def test_a_failed_verb_ends_its_job_and_leaves_the_vm_as_it_is_reported(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    job, cast = stopping(fleet, h1)
    h1.fail(cast.command, error_code="HYPERVISOR_ERROR", error="it said no")
    shown = fleet.shown(job)
    assert (shown["state"], shown["error_code"]) == ("FAILED", "HYPERVISOR_ERROR")
    assert "it said no" in shown["error"]
    held = fleet.vm()
    assert (held.vm_state, held.task_state) == (VmState.ACTIVE, TaskState.NONE)


def test_a_verb_for_a_vm_on_no_host_fails_and_says_so(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.put(fleet.deploy(h1), host=None, vm_state=VmState.ERROR)
    job = fleet.ask("vm_stop", vm="web-1")
    assert (job["state"], job["error_code"]) == ("FAILED", "NO_HOST")
    assert fleet.vm().task_state is TaskState.NONE


def test_a_failed_create_is_an_error_with_its_reason_and_can_be_deleted(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.create(host="h1")
    (cast,) = fleet.publish()
    h1.fail(cast.command, error="no space left")
    held = fleet.vm()
    assert (held.vm_state, held.task_state) == (VmState.ERROR, TaskState.NONE)
    assert "no space left" in held.error
    job = fleet.delete()
    (terminate,) = fleet.publish()
    h1.carry_out(terminate.command)
    assert fleet.shown(job)["state"] == "SUCCEEDED"


def test_a_stale_command_names_the_floor_and_the_next_one_goes_above_it(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    job, cast = stopping(fleet, h1)
    h1.fail(cast.command, error_code="STALE_COMMAND", error="below", floor=40)
    shown = fleet.shown(job)
    assert shown["error_code"] == "STALE_COMMAND"
    assert "h1 has heard of later commands of this VM" in shown["error"]
    assert "ask again (below)" in shown["error"]
    fleet.ask("vm_stop", vm="web-1")
    (again,) = fleet.publish()
    assert again.command.generation > 40


# the watchdog


def test_a_command_that_could_never_be_sent_expires(fleet: Fleet, h1: ScriptedAgent) -> None:
    ScriptedAgent(fleet, "h2").up()
    fleet.deploy(h1)
    fleet.ask("host_set_down", host="h1", reason="to end its session")
    job = fleet.ask("vm_stop", vm="web-1")
    fleet.publish()
    fleet.pass_(TIMEOUT_S)
    shown = fleet.shown(job)
    assert (shown["state"], shown["error_code"], shown["unconfirmed"]) == (
        "EXPIRED",
        "EXPIRED",
        False,
    )
    assert "never sent" in shown["error"]
    held = fleet.vm()
    assert (held.vm_state, held.task_state) == (VmState.ACTIVE, TaskState.NONE)
    assert fleet.rows(Void) == []


def past_deadline(fleet: Fleet, h1: ScriptedAgent) -> tuple[dict[str, Any], Cast]:
    """A published stop whose deadline has passed while its host is UP and says nothing of it."""
    job, cast = stopping(fleet, h1)
    h1.receipt(cast.command.id)
    fleet.pass_(TIMEOUT_S, h1)
    assert fleet.shown(job)["state"] == "RUNNING"
    fleet.wire.take("confirm")
    return job, cast


def cast_voids(fleet: Fleet) -> list[Cast]:
    fleet.claim()
    return fleet.wire.take("void")


def answer(h1: ScriptedAgent, cast: Cast, word: V) -> None:
    h1.say(
        voids=(
            m.VoidAnswer(
                id=f"v-{word}",
                instance=cast.command.instance,
                generation=cast.command.generation,
                answer=word,
            ),
        )
    )


def test_at_its_deadline_the_agent_is_asked_and_nobody_else_decides(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    _, cast = past_deadline(fleet, h1)
    (void,) = cast_voids(fleet)
    assert (void.host, void.kwargs) == (
        "h1",
        {
            "instance": cast.command.instance,
            "generation": cast.command.generation,
            "session": h1.session,
        },
    )


def test_an_unanswered_void_is_cast_again_every_resend_after(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    past_deadline(fleet, h1)
    assert len(cast_voids(fleet)) == 1
    assert cast_voids(fleet) == []
    for _ in range(3):
        fleet.clock.move(RESEND_S)
        assert len(cast_voids(fleet)) == 1


def test_a_void_that_one_manager_can_not_send_is_given_back_to_the_others_at_once(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    past_deadline(fleet, h1)
    fleet.wire.up = False
    assert cast_voids(fleet) == []
    fleet.wire.up = True
    assert len(cast_voids(fleet)) == 1


def test_not_run_expires_the_job_and_the_state_is_what_the_hypervisor_says(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    job, cast = past_deadline(fleet, h1)
    h1.power(cast.command.instance, PowerState.SHUTOFF)
    h1.beat()
    answer(h1, cast, V.NOT_RUN)
    shown = fleet.shown(job)
    assert (shown["state"], shown["error_code"], shown["unconfirmed"]) == (
        "EXPIRED",
        "VOIDED",
        False,
    )
    held = fleet.vm()
    assert (held.vm_state, held.task_state) == (VmState.SHUTOFF, TaskState.NONE)
    assert fleet.rows(Void) == []
    assert fleet.wire.take("confirm")[0].kwargs == {"ids": ["v-not_run"]}


def test_running_waits_and_is_asked_again(fleet: Fleet, h1: ScriptedAgent) -> None:
    job, cast = past_deadline(fleet, h1)
    assert cast_voids(fleet)
    answer(h1, cast, V.RUNNING)
    assert fleet.shown(job)["state"] == "RUNNING"
    fleet.clock.move(RESEND_S)
    assert cast_voids(fleet)
    h1.carry_out(cast.command)
    assert fleet.shown(job)["state"] == "SUCCEEDED"
    assert fleet.rows(Void) == []


def test_done_waits_for_the_result(fleet: Fleet, h1: ScriptedAgent) -> None:
    job, cast = past_deadline(fleet, h1)
    answer(h1, cast, V.DONE)
    assert fleet.rows(Void) == []
    assert fleet.shown(job)["state"] == "RUNNING"
    h1.carry_out(cast.command)
    assert fleet.shown(job)["state"] == "SUCCEEDED"


def test_running_for_ten_times_its_limit_is_given_up(fleet: Fleet, h1: ScriptedAgent) -> None:
    job, cast = past_deadline(fleet, h1)
    for _ in range(10):
        answer(h1, cast, V.RUNNING)
        fleet.pass_(TIMEOUT_S, h1, step=TIMEOUT_S / 6)
    shown = fleet.shown(job)
    assert (shown["state"], shown["error_code"]) == ("FAILED", "OUTCOME_UNKNOWN")
    held = fleet.vm()
    assert (held.vm_state, held.task_state) == (VmState.ERROR, TaskState.NONE)


def test_a_host_that_owes_the_fate_of_a_command_given_up_is_suspect_until_it_tells(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    _, cast = past_deadline(fleet, h1)
    h2 = ScriptedAgent(fleet, "h2").up()
    assert h1.row.state is HostState.UP  # asked, and not given up yet
    for _ in range(10):
        answer(h1, cast, V.RUNNING)
        fleet.pass_(TIMEOUT_S, h1, h2, step=TIMEOUT_S / 6)
    assert (h1.row.state, h2.row.state) == (HostState.SUSPECT, HostState.UP)
    assert "what became of it" in h1.row.reason
    h1.restart().hello()
    h1.beat(full=True)
    fleet.tick()
    assert h1.row.state is HostState.SUSPECT
    answer(h1, cast, V.DONE)
    fleet.tick()
    assert h1.row.state is HostState.UP


def test_a_late_result_after_giving_up_is_told_and_rewrites_nothing(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    job, cast = past_deadline(fleet, h1)
    for _ in range(10):
        fleet.pass_(TIMEOUT_S, h1, step=TIMEOUT_S / 6)
    late = h1.carry_out(cast.command)
    assert fleet.shown(job)["state"] == "FAILED"
    assert len(fleet.events("command.late_result")) == 1
    assert fleet.wire.take("confirm")[-1].kwargs == {"ids": [late.id]}
    h1.say(results=(late,))
    assert len(fleet.events("command.late_result")) == 1, "a repeat tells nothing new"
    assert fleet.wire.take("confirm")[-1].kwargs == {"ids": [late.id]}


def unreachable(fleet: Fleet, h1: ScriptedAgent) -> tuple[dict[str, Any], Cast]:
    """A published stop whose host has gone DOWN before its deadline."""
    ScriptedAgent(fleet, "h2").up()
    job, cast = stopping(fleet, h1)
    fleet.pass_(TIMEOUT_S, ScriptedAgent(fleet, "h3").up())
    assert h1.row.state is HostState.DOWN
    fleet.wire.take()
    return job, cast


def test_host_not_up_the_job_ends_unconfirmed_and_the_void_is_owed_in_its_next_hello(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    job, cast = unreachable(fleet, h1)
    shown = fleet.shown(job)
    assert (shown["state"], shown["unconfirmed"]) == ("EXPIRED", True)
    assert (fleet.vm().vm_state, fleet.vm().task_state) == (VmState.ACTIVE, TaskState.NONE)
    welcome = h1.restart().hello(unfinished=(cast.command.id,))
    assert welcome.wanted == ()
    assert welcome.voids == (m.FloorEntry(cast.command.instance, cast.command.generation),)
    answer(h1, cast, V.NOT_RUN)
    assert fleet.rows(Void) == []
    assert h1.hello().voids == ()
    assert fleet.publish() == []


def test_an_owed_void_that_meets_a_done_command_is_told(fleet: Fleet, h1: ScriptedAgent) -> None:
    job, cast = unreachable(fleet, h1)
    h1.restart().hello()
    h1.carry_out(cast.command)
    answer(h1, cast, V.DONE)
    assert fleet.rows(Void) == []
    assert fleet.shown(job)["state"] == "EXPIRED"
    assert len(fleet.events("command.late_result")) == 1


def test_an_unconfirmed_create_fails_outcome_unknown(fleet: Fleet, h1: ScriptedAgent) -> None:
    ScriptedAgent(fleet, "h2").up()
    job = fleet.create(host="h1")
    (cast,) = fleet.publish()
    fleet.pass_(TIMEOUT_S, ScriptedAgent(fleet, "h3").up())
    shown = fleet.shown(job)
    assert (shown["state"], shown["error_code"], shown["unconfirmed"]) == (
        "FAILED",
        "OUTCOME_UNKNOWN",
        True,
    )
    held = fleet.vm()
    assert (held.vm_state, held.task_state) == (VmState.ERROR, TaskState.NONE)
    # It may be running there: nothing is tried elsewhere, and what it uses is not given away.
    assert held.host is None
    (stone,) = fleet.rows(Tombstone)
    assert (stone.host, stone.state) == ("h1", TombstoneState.OPEN)
    assert [mac.mac for mac in fleet.rows(Mac)] == [held.mac]
    h1.restart().hello()
    terminate = fleet.publish()[-1].command
    assert (terminate.kind, terminate.instance) == ("terminate_instance", held.uuid)
    h1.succeed(terminate)
    assert fleet.rows(Mac) == []
    assert cast.command.generation < terminate.generation


def test_an_older_void_does_not_answer_for_a_newer_one(fleet: Fleet, h1: ScriptedAgent) -> None:
    job, cast = past_deadline(fleet, h1)
    h1.say(
        voids=(
            m.VoidAnswer(
                id="v-old",
                instance=cast.command.instance,
                generation=cast.command.generation - 1,
                answer=V.NOT_RUN,
            ),
        )
    )
    assert fleet.shown(job)["state"] == "RUNNING"
    assert len(fleet.rows(Void)) == 1


# what is shown meanwhile


def test_a_job_says_what_it_waits_for(fleet: Fleet, h1: ScriptedAgent) -> None:
    fleet.deploy(h1)
    h1.end_session()
    job = fleet.ask("vm_stop", vm="web-1")
    assert fleet.shown(job)["waiting_for"] == "stop_vm to be sent to h1"
    h1.hello()
    (cast,) = fleet.publish()
    assert fleet.shown(job)["waiting_for"] == "a receipt of stop_vm from h1"
    h1.receipt(cast.command.id)
    assert fleet.shown(job)["waiting_for"] == "h1, which has received stop_vm"
    h1.receipt(cast.command.id, m.Step.STARTED)
    assert fleet.shown(job)["waiting_for"] == "h1, which carries out stop_vm"
    h1.carry_out(cast.command)
    assert fleet.shown(job)["waiting_for"] == ""


# retention


def test_what_is_over_is_forgotten_and_tombstones_are_not(fleet: Fleet, h1: ScriptedAgent) -> None:
    gone = fleet.deploy(h1, "gone")
    fleet.deploy(h1, "kept")
    fleet.delete("gone", force=True, reason="test")
    done = fleet.ask("vm_stop", vm="kept")
    (cast,) = [c for c in fleet.publish() if c.method == "stop_vm"]
    h1.carry_out(cast.command)
    open_job = fleet.ask("vm_start", vm="kept")
    fleet.clock.move(86400 + 1)
    ticks.tidy(fleet.store, fleet.cfg)
    assert [vm.name for vm in fleet.rows(Instance)] == ["kept"]
    uuids = {j.uuid for j in fleet.rows(Job)}
    assert done["uuid"] not in uuids
    assert open_job["uuid"] in uuids
    assert fleet.job(open_job).state is JobState.RUNNING
    assert [s.instance for s in fleet.stones()] == [gone.uuid]
    # And the tombstone still does its work.
    h1.hello()
    assert "terminate_instance" in {c.method for c in fleet.publish()}


def test_the_deadline_is_counted_on_the_clock_of_the_database(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    job, _ = stopping(fleet, h1)
    row = command(fleet, job)
    assert row.deadline_at is not None
    assert (row.deadline_at - fleet.clock.now()).total_seconds() == TIMEOUT_S
    assert INTERVAL_S < DOWN_S < TIMEOUT_S


# answers that come together


def bodies(*told: m.Answers) -> list[tuple[str, bytes, str | None]]:
    return [(f"result.{each.host}", m.encode(each), None) for each in told]


def test_answers_of_several_hosts_are_taken_in_one_transaction(
    fleet: Fleet, h1: ScriptedAgent, h2: ScriptedAgent
) -> None:
    told, jobs = [], []
    for agent, name in ((h1, "a"), (h2, "b"), (h1, "c")):
        fleet.deploy(agent, name)
        jobs.append(fleet.ask("vm_stop", vm=name))
        (cast,) = fleet.publish()
        agent.power(cast.command.instance, PowerState.SHUTOFF)
        told.append(agent.answers(results=(agent.result(cast.command),)))
    commits: list[Any] = []
    sa.event.listen(fleet.store.engine, "commit", commits.append)
    fleet.intake.together(bodies(*told))
    assert len(commits) == 1
    assert {fleet.job(job).state for job in jobs} == {JobState.SUCCEEDED}
    confirms = {c.host: set(c.kwargs["ids"]) for c in fleet.wire.take("confirm")}
    assert confirms == {
        "h1": {r.id for t in (told[0], told[2]) for r in t.results},
        "h2": {r.id for r in told[1].results},
    }


def test_with_one_that_can_not_be_read_none_is_taken_together(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    fleet.deploy(h1)
    job = fleet.ask("vm_stop", vm="web-1")
    (cast,) = fleet.publish()
    good = h1.answers(results=(h1.result(cast.command),))
    for bad in (("result.h1", b"{", None), ("result.h2", m.encode(good), None)):
        with pytest.raises(BadMessage):
            fleet.intake.together([*bodies(good), bad])
    assert fleet.job(job).state is JobState.RUNNING
    assert fleet.letters() == []  # they are looked at one by one then


def test_a_terminate_that_was_received_and_never_answered_is_cast_again_at_its_deadline(
    fleet: Fleet, h1: ScriptedAgent
) -> None:
    """Its answer was confirmed by a database that has been put back since."""
    fleet.deploy(h1)
    job = fleet.delete()
    (cast,) = fleet.publish()
    h1.receipt(cast.command.id, m.Step.STARTED)
    fleet.pass_(fleet.cfg.manager.command_timeout - INTERVAL_S, h1)
    assert not fleet.wire.take("terminate_instance")
    fleet.pass_(2 * INTERVAL_S, h1)
    (again,) = fleet.wire.take("terminate_instance")
    assert again.command.id == cast.command.id
    h1.carry_out(again.command)
    assert fleet.job(job).state is JobState.SUCCEEDED

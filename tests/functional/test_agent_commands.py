"""A whole agent: commands come in over the bus, guests appear and go, answers go out."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.drivers.simulated.driver import SimulatedDriver
from common import messages as m
from tests.functional.agent_rig import FLEET, Rig, eventually


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


def test_a_guest_is_created_reported_and_terminated(rig: Rig) -> None:
    rig.up()
    start = rig.create("i-1")
    result = rig.manager.result(start)
    assert (result.outcome, result.error_code) == ("succeeded", None)
    assert result.look is not None
    assert result.look.guest is not None
    assert result.look.guest.power_state.name == "RUNNING"
    assert rig.manager.receipts(start) == {"received", "started"}
    guest = rig.guest_of("i-1")
    assert guest is not None
    assert guest.mark is not None
    assert (guest.mark.fleet, guest.mark.generation, guest.mark.bearer) == (FLEET, 1, guest.uuid)

    end = rig.manager.result(rig.manager.send("terminate_instance", "i-1", 2))
    assert end.outcome == "succeeded"
    assert end.look is not None
    assert end.look.guest is None
    assert (end.look.session, end.look.seq) > (result.look.session, result.look.seq)
    assert rig.guests() == []


def test_a_start_tells_what_it_took_its_time_for(rig: Rig) -> None:
    rig.up()
    assert [p.name for p in rig.manager.result(rig.create("i-1")).phases] == ["define", "start"]
    stop = rig.manager.send("stop_vm", "i-1", 2, spec={"force": True})
    assert rig.manager.result(stop).phases == ()
    again = rig.manager.result(rig.manager.send("start_vm", "i-1", 3))
    assert [p.name for p in again.phases] == ["start"]
    assert all(p.seconds >= 0 for p in again.phases)


def test_a_spec_that_no_host_can_make_is_refused_by_its_field(rig: Rig) -> None:
    rig.up()
    guest = {"name": "web", "vcpus": 1, "memory_mib": 64, "nics": [{"mac": "52:54:00"}]}
    spec = {"guest": guest, "create": True}
    refused = rig.manager.result(rig.manager.send("start_vm", "i-1", 1, spec=spec))
    assert refused.error_code == "BAD_REQUEST"
    assert "nics[0].mac" in (refused.error or "")
    assert rig.guests() == []


def test_stop_start_and_reboot(rig: Rig) -> None:
    rig.up()
    first = rig.running("i-1").domain_id
    stop = rig.manager.send("stop_vm", "i-1", 2, spec={"force": False, "timeout_s": 1})
    assert rig.manager.result(stop).outcome == "succeeded"
    assert rig.state_of("i-1") == "SHUTOFF"
    assert rig.manager.result(rig.manager.send("start_vm", "i-1", 3)).outcome == "succeeded"
    hard = rig.manager.send("reboot_vm", "i-1", 4, spec={"force": True})
    assert rig.manager.result(hard).outcome == "succeeded"
    guest = rig.guest_of("i-1")
    assert guest is not None
    assert guest.domain_id == (first or 0) + 2
    assert guest.mark is not None
    assert guest.mark.generation == 4


TURNS = [
    ("pause_vm", "RUNNING", "PAUSED"),
    ("unpause_vm", "PAUSED", "RUNNING"),
    ("suspend_vm", "RUNNING", "SUSPENDED"),
    ("suspend_vm", "PAUSED", "SUSPENDED"),
    ("resume_vm", "SUSPENDED", "RUNNING"),
]


def _made(rig: Rig, state: str) -> None:
    """A guest of i-1 in this state, by hand."""
    guest = rig.running("i-1")
    guest.power_state = state
    rig.store.write(guest)


@pytest.mark.parametrize("fault", ["", "fail_after"])
@pytest.mark.parametrize(("kind", "before", "after"), TURNS)
def test_a_guest_is_held_and_let_go_also_when_the_call_reports_an_error_after_its_effect(
    rig: Rig, kind: str, before: str, after: str, fault: str
) -> None:
    rig.up()
    _made(rig, before)
    if fault:
        rig.fault(**{kind.removesuffix("_vm"): fault})
    result = rig.manager.result(rig.manager.send(kind, "i-1", 2))
    assert (result.outcome, result.error_code) == ("succeeded", None)
    assert result.look is not None
    assert result.look.guest is not None
    assert result.look.guest.power_state.name == rig.state_of("i-1") == after
    assert result.look.guest.mark is not None
    assert result.look.guest.mark.generation == 2


@pytest.mark.parametrize(("kind", "before", "after"), TURNS)
def test_what_is_as_it_should_be_is_not_done_again(
    rig: Rig, kind: str, before: str, after: str
) -> None:
    rig.up()
    _made(rig, after)
    acts = len(rig.store.account())
    assert rig.manager.result(rig.manager.send(kind, "i-1", 2)).outcome == "succeeded"
    assert (rig.state_of("i-1"), len(rig.store.account())) == (after, acts)


@pytest.mark.parametrize(("kind", "before", "after"), TURNS)
def test_a_guest_that_is_off_is_neither_held_nor_booted(
    rig: Rig, kind: str, before: str, after: str
) -> None:
    rig.up()
    _made(rig, "SHUTOFF")
    result = rig.manager.result(rig.manager.send(kind, "i-1", 2))
    assert (result.outcome, result.error_code) == ("failed", "HYPERVISOR_ERROR")
    assert "SHUTOFF" in (result.error or "")
    assert rig.state_of("i-1") == "SHUTOFF"


@pytest.mark.parametrize(
    ("kind", "left"), [("stop_vm", "SHUTOFF"), ("terminate_instance", "absent")]
)
def test_stopping_or_deleting_a_suspended_guest_gives_up_its_memory(
    rig: Rig, kind: str, left: str
) -> None:
    rig.up()
    _made(rig, "SUSPENDED")
    assert rig.manager.result(rig.manager.send(kind, "i-1", 2)).outcome == "succeeded"
    assert rig.state_of("i-1") == left


def test_a_start_without_create_does_not_make_a_guest(rig: Rig) -> None:
    rig.up()
    result = rig.manager.result(rig.manager.send("start_vm", "i-1", 1))
    assert (result.outcome, result.error_code) == ("failed", "GUEST_MISSING")
    assert rig.guests() == []


def test_a_failed_start_leaves_nothing_behind(rig: Rig) -> None:
    rig.up()
    rig.fault(start="fail")
    result = rig.manager.result(rig.create("i-1"))
    assert (result.outcome, result.error_code) == ("failed", "HYPERVISOR_ERROR")
    assert result.look is not None
    assert result.look.guest is None
    assert rig.guests() == []


def test_a_failed_start_of_an_older_guest_leaves_it_there(rig: Rig) -> None:
    rig.up()
    rig.running("i-1")
    rig.manager.result(rig.manager.send("stop_vm", "i-1", 2))
    rig.fault(start="fail")
    assert rig.manager.result(rig.manager.send("start_vm", "i-1", 3)).outcome == "failed"
    assert rig.state_of("i-1") == "SHUTOFF"


def test_a_start_that_reports_an_error_but_runs_has_succeeded(rig: Rig) -> None:
    rig.up()
    rig.fault(start="fail_after")
    assert rig.manager.result(rig.create("i-1")).outcome == "succeeded"
    assert rig.state_of("i-1") == "RUNNING"


def test_a_name_that_a_stranger_has_is_left_to_the_stranger(rig: Rig) -> None:
    stranger = rig.by_hand("vm-i-1")
    rig.up()
    guest = rig.running("i-1")
    assert guest.name == f"vm-i-1-{guest.uuid[:8]}"
    assert rig.store.read(stranger.uuid) == stranger


def test_a_terminate_of_what_is_not_there_succeeds_and_raises_the_floor(rig: Rig) -> None:
    rig.up()
    end = rig.manager.result(rig.manager.send("terminate_instance", "i-1", 5))
    assert end.outcome == "succeeded"
    late = rig.manager.result(rig.create("i-1", 4))
    assert (late.outcome, late.error_code, late.floor) == ("not_run", "STALE_COMMAND", 5)
    assert rig.guests() == []


def test_a_terminate_goes_on_when_a_hung_guest_refuses_its_new_mark(rig: Rig) -> None:
    rig.up()
    rig.running("i-1")
    rig.fault(remark="fail")
    end = rig.manager.result(rig.manager.send("terminate_instance", "i-1", 2))
    assert end.outcome == "succeeded"
    assert rig.guests() == []


def test_a_terminate_is_answered_by_the_guest_and_tells_of_files_that_can_not_go(rig: Rig) -> None:
    rig.up()
    files = m.GuestFiles(instance="i-1", bearer=str(uuid.uuid4()), folders=("/wide",))
    spec = {"made": [m.builtins(files)]}
    rig.fault(clean_up="fail")
    end = rig.manager.result(rig.manager.send("terminate_instance", "i-1", 2, spec=spec))
    assert (end.outcome, end.left[0].files) == ("succeeded", files)
    assert end.left[0].why.startswith("HYPERVISOR_ERROR: ")
    rig.fault()
    end = rig.manager.result(rig.manager.send("terminate_instance", "i-1", 3, spec=spec))
    assert (end.outcome, end.left) == ("succeeded", ())


def test_a_terminate_is_not_answered_with_gone_while_a_guest_of_that_uuid_is_there(
    rig: Rig,
) -> None:
    rig.up()
    stranger = rig.by_hand()
    files = m.GuestFiles(instance="i-1", bearer=stranger.uuid)
    spec = {"made": [m.builtins(files)]}
    end = rig.manager.result(rig.manager.send("terminate_instance", "i-1", 2, spec=spec))
    assert (end.outcome, end.error_code) == ("failed", "HYPERVISOR_ERROR")
    assert rig.store.read(stranger.uuid) == stranger


def test_a_terminate_of_an_older_generation_leaves_a_guest_that_was_used_since(rig: Rig) -> None:
    rig.up()
    rig.running("i-1")
    rig.manager.result(rig.manager.send("stop_vm", "i-1", 3))
    end = rig.manager.result(rig.manager.send("terminate_instance", "i-1", 5, spec={"up_to": 2}))
    assert (end.outcome, end.error_code) == ("failed", "GUEST_IS_NEWER")
    assert end.look is not None
    assert end.look.guest is not None
    assert end.look.guest.power_state.name == "SHUTOFF"


def test_a_terminate_up_to_a_generation_can_be_tried_again(rig: Rig) -> None:
    rig.up()
    rig.running("i-1")
    rig.fault(destroy="fail")
    first = rig.manager.send("terminate_instance", "i-1", 2, spec={"up_to": 1})
    assert rig.manager.result(first).outcome == "failed"
    rig.fault()
    again = rig.manager.send("terminate_instance", "i-1", 3, spec={"up_to": 1})
    assert rig.manager.result(again).outcome == "succeeded"
    assert rig.guests() == []


def test_a_partial_listing_is_no_proof_of_absence(rig: Rig) -> None:
    rig.by_hand()
    rig.fault(list="partial")
    rig.up()
    end = rig.manager.result(rig.manager.send("terminate_instance", "i-1", 1))
    assert (end.outcome, end.error_code) == ("failed", "HYPERVISOR_UNAVAILABLE")
    assert end.look is None


def test_a_command_runs_once_however_often_it_comes(rig: Rig) -> None:
    rig.up()
    rig.running("i-1")
    guest = rig.guest_of("i-1")
    assert guest is not None
    reboot = rig.manager.command("reboot_vm", "i-1", 2, spec={"force": True})
    for _ in range(5):
        rig.manager.cast("reboot_vm", command=reboot)
    rig.manager.result(str(reboot["id"]))
    rig.manager.cast("confirm", ids=[reboot["id"]])
    told = len(rig.manager.results(str(reboot["id"])))
    rig.manager.cast("reboot_vm", command=reboot)
    eventually(lambda: len(rig.manager.results(str(reboot["id"]))) > told, "told again")
    assert {r.outcome for r in rig.manager.results(str(reboot["id"]))} == {"succeeded"}
    after = rig.guest_of("i-1")
    assert after is not None
    assert after.domain_id == (guest.domain_id or 0) + 1


def test_a_quick_command_is_told_in_one_message(rig: Rig) -> None:
    rig.up()
    rig.running("i-1")
    stop = rig.manager.send("stop_vm", "i-1", 2)
    assert rig.manager.result(stop).outcome == "succeeded"
    told = [a for a in rig.manager.answers if stop in {r.command for r in a.receipts}]
    assert [[r.step.value for r in a.receipts] for a in told] == [["received", "started"]]
    assert [r.command for r in told[0].results][-1] == stop
    received, started = told[0].receipts
    assert 0.0 <= started.age_s <= received.age_s < 5.0


def test_results_are_repeated_until_they_are_confirmed(rig: Rig) -> None:
    rig.up()
    command = rig.create("i-1")
    eventually(lambda: len(rig.manager.results(command)) >= 3, "repeated")
    rig.manager.cast("confirm", ids=[rig.manager.result(command).id])

    def quiet() -> bool:
        told, beats = len(rig.manager.results(command)), len(rig.manager.heartbeats)
        eventually(lambda: len(rig.manager.heartbeats) >= beats + 4, "four intervals")
        return len(rig.manager.results(command)) == told

    eventually(quiet, "silence after the confirmation")


def test_a_terminate_supersedes_what_has_not_started(rig: Rig) -> None:
    rig.up()
    rig.running("i-1")
    rig.fault(stop="hang")
    stop = rig.manager.send("stop_vm", "i-1", 2)
    eventually(lambda: "started" in rig.manager.receipts(stop))
    start = rig.manager.send("start_vm", "i-1", 3)
    eventually(lambda: rig.manager.receipts(start))
    end = rig.manager.send("terminate_instance", "i-1", 4)
    dropped = rig.manager.result(start)
    assert (dropped.outcome, dropped.error_code) == ("not_run", "SUPERSEDED")
    rig.fault()
    assert rig.manager.result(stop).outcome == "succeeded"
    assert rig.manager.result(end).outcome == "succeeded"
    assert rig.guests() == []


def test_instances_do_not_wait_for_each_other(rig: Rig) -> None:
    rig.up()
    rig.running("i-1")
    rig.fault(stop="hang")
    stop = rig.manager.send("stop_vm", "i-1", 2)
    eventually(lambda: "started" in rig.manager.receipts(stop))
    assert rig.manager.result(rig.create("i-2")).outcome == "succeeded"
    assert rig.manager.results(stop) == []


def test_a_hung_effect_ends_with_its_time(rig: Rig) -> None:
    rig.up()
    rig.running("i-1")
    rig.fault(stop="hang")
    result = rig.manager.result(rig.manager.send("stop_vm", "i-1", 2, timeout_s=0.3))
    assert (result.outcome, result.error_code) == ("failed", "CALL_TIMEOUT")
    assert result.look is not None
    assert result.look.guest is not None
    assert result.look.guest.power_state.name == "RUNNING"


def test_a_terminate_is_not_answered_with_gone_while_a_create_may_yet_make_the_guest(
    rig: Rig,
) -> None:
    rig.up()
    rig.fault(create="hang")
    made = rig.manager.result(rig.create("i-1", timeout_s=0.3))
    assert (made.outcome, made.error_code) == ("failed", "CALL_TIMEOUT")
    end = rig.manager.result(rig.manager.send("terminate_instance", "i-1", 2))
    assert (end.outcome, end.error_code) == ("failed", "CALL_TIMEOUT")
    rig.fault()
    eventually(lambda: rig.guest_of("i-1") is not None, "the guest that came late")
    end = rig.manager.result(rig.manager.send("terminate_instance", "i-1", 3))
    assert end.outcome == "succeeded"
    assert rig.guests() == []


def test_ping_names_the_run_and_the_session(rig: Rig) -> None:
    agent = rig.up()
    assert rig.manager.ping() == {"host": "host-1", "agent_run": agent.agent_run, "session": 1}


def test_void_tells_running_then_done(rig: Rig) -> None:
    rig.up()
    rig.running("i-1")
    rig.fault(stop="hang")
    stop = rig.manager.send("stop_vm", "i-1", 2)
    eventually(lambda: "started" in rig.manager.receipts(stop))
    rig.manager.cast("void", instance="i-1", generation=2, session=1)
    eventually(lambda: [v.answer for v in rig.manager.void_answers()][-1:] == ["running"])
    rig.fault()
    rig.manager.result(stop)
    rig.manager.cast("void", instance="i-1", generation=2, session=1)
    eventually(lambda: [v.answer for v in rig.manager.void_answers()][-1:] == ["done"])


def test_a_canary_is_answered_at_once_also_while_everything_hangs(rig: Rig) -> None:
    rig.up(max_parallel=1)
    rig.running("i-1")
    rig.fault(stop="hang")
    stop = rig.manager.send("stop_vm", "i-1", 2)
    eventually(lambda: "started" in rig.manager.receipts(stop))
    canary = rig.manager.send("noop", "", 1)
    result = rig.manager.result(canary)
    assert (result.outcome, result.kind, result.look) == ("succeeded", "noop", None)
    # Written down like any other answer, and told until a manager has it.
    eventually(lambda: len(rig.manager.results(canary)) > 1, "told again")
    rig.manager.cast("confirm", ids=[canary])
    # It leaves no floor: the next one has the same generation.
    assert rig.manager.result(rig.manager.send("noop", "", 1)).outcome == "succeeded"
    rig.fault()


@pytest.mark.parametrize(("kind", "instance"), [("noop", "i-1"), ("stop_vm", "")])
def test_only_a_canary_is_about_no_instance(rig: Rig, kind: str, instance: str) -> None:
    rig.up()
    rig.manager.send(kind, instance, 1)
    eventually(lambda: rig.manager.refusals().get("BAD_MESSAGE"), "refused")


def test_what_was_voided_before_it_came_never_runs(rig: Rig) -> None:
    rig.up()
    rig.manager.cast("void", instance="i-1", generation=3, session=1)
    eventually(lambda: [v.answer for v in rig.manager.void_answers()][-1:] == ["not_run"])
    late = rig.manager.result(rig.create("i-1", 3))
    assert (late.outcome, late.error_code, late.floor) == ("not_run", "STALE_COMMAND", 3)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"fleet": "another"}, "WRONG_FLEET"),
        ({"host": "host-2"}, "WRONG_HOST"),
        ({"generation": 0}, "BAD_MESSAGE"),
        ({"generation": "1"}, "BAD_MESSAGE"),
        ({"timeout_s": -1}, "BAD_MESSAGE"),
        ({"schema": 99}, "BAD_MESSAGE"),
        ({"kind": "stop_vm"}, "BAD_MESSAGE"),
    ],
)
def test_what_can_not_be_our_command_is_refused_with_its_code(
    rig: Rig, change: dict[str, object], code: str
) -> None:
    rig.up()
    rig.manager.cast("start_vm", command=rig.manager.command("start_vm", "i-1", 1) | change)
    refusal = eventually(lambda: rig.manager.refusals().get(code), code)
    assert "i-1" in refusal.body
    assert rig.guests() == []


def test_an_unknown_kind_is_not_run_and_says_so(rig: Rig) -> None:
    rig.up()
    result = rig.manager.result(rig.manager.send("levitate_vm", "i-1", 1))
    assert (result.outcome, result.error_code) == ("not_run", "UNKNOWN_KIND")
    assert result.kind == "levitate_vm"
    rig.manager.cast("levitate", height=3)
    eventually(lambda: "UNKNOWN_KIND" in rig.manager.refusals())


@pytest.mark.parametrize("finished", [False, True])
def test_an_id_that_comes_again_with_another_command_is_refused_and_not_run(
    rig: Rig, finished: bool
) -> None:
    rig.up()
    rig.running("i-1")
    rig.running("i-2")
    if not finished:
        rig.fault(stop="hang")
    stop = rig.manager.send("stop_vm", "i-1", 2, id="one-id")
    eventually(lambda: "started" in rig.manager.receipts(stop))
    if finished:
        assert rig.manager.result(stop).outcome == "succeeded"
        rig.manager.cast("confirm", ids=[stop])
    for kind, instance, generation in (
        ("terminate_instance", "i-2", 2),
        ("terminate_instance", "i-1", 2),
        ("stop_vm", "i-1", 3),
        ("noop", "", 1),
    ):
        rig.manager.send(kind, instance, generation, id="one-id")

    def reported() -> set[str]:
        said = {r for a in list(rig.manager.answers) for r in a.refusals}
        return {r.message.split()[0] for r in said if r.code == "ID_REUSED"}

    eventually(lambda: reported() == {"terminate_instance", "stop_vm", "noop"}, "reported")
    assert rig.guest_of("i-1") is not None
    assert rig.guest_of("i-2") is not None
    rig.fault()
    # What it is the id of goes on as if nothing had been.
    result = rig.manager.result(stop)
    assert (result.kind, result.generation, result.outcome) == ("stop_vm", 2, "succeeded")
    assert rig.manager.result(rig.manager.send("start_vm", "i-1", 4)).outcome == "succeeded"


def test_of_several_commands_in_one_cast_each_is_judged_by_itself(rig: Rig) -> None:
    rig.up()
    guest = {"name": "web", "vcpus": 1, "memory_mib": 64}
    good = [
        rig.manager.command("start_vm", f"i-{n}", 1, spec={"guest": guest, "create": True})
        for n in (1, 2)
    ]
    foreign = {**rig.manager.command("stop_vm", "i-3", 1), "fleet": "green"}
    unknown = {**rig.manager.command("stop_vm", "i-4", 1), "kind": "teleport_vm"}
    old = {**rig.manager.command("stop_vm", "i-5", 1), "session": 77}
    reused = {**rig.manager.command("stop_vm", "i-6", 1), "id": good[0]["id"]}
    canary = rig.manager.command("noop", "", 1)
    every = [good[0], foreign, "no command", unknown, old, reused, canary, good[1]]
    rig.manager.cast("commands", commands=every)
    for command in good:
        assert rig.manager.result(command["id"]).outcome == "succeeded"
    assert rig.manager.result(unknown["id"]).error_code == "UNKNOWN_KIND"
    assert rig.manager.result(canary["id"]).outcome == "succeeded"
    eventually(lambda: len(rig.manager.refusals()) == 3, "three refusals")
    codes = sorted(refusal.code for refusal in rig.manager.refusals().values())
    assert codes == ["BAD_MESSAGE", "ID_REUSED", "WRONG_FLEET"]
    assert rig.manager.results(old["id"]) == []
    assert {guest.mark.instance for guest in rig.guests() if guest.mark} == {"i-1", "i-2"}


def test_ten_megabytes_are_refused_and_nothing_of_them_is_kept(rig: Rig) -> None:
    agent = rig.up()
    rig.create("i-1", trail=[["ann", "x" * 10_000_000, "2026-01-01T00:00:00Z"]])
    refusal = eventually(lambda: rig.manager.refusals().get("BAD_MESSAGE"), "refused")
    assert "bytes are more than" in refusal.message
    assert len(refusal.body) <= 500
    assert agent._journal.unfinished() == ()
    assert rig.manager.result(rig.create("i-1")).outcome == "succeeded"


def test_a_cast_of_another_session_is_dropped_counted_and_never_answered(rig: Rig) -> None:
    rig.up()
    command = rig.create("i-1", session=7)
    rig.manager.cast("void", instance="i-1", generation=9, session=7)
    eventually(lambda: rig.manager.heartbeats[-1].dropped_casts == 2, "counted")
    assert rig.manager.results(command) == []
    assert rig.manager.void_answers() == []
    assert rig.guests() == []
    assert rig.manager.result(rig.create("i-1", 1)).outcome == "succeeded"


def test_parallel_commands_are_bounded(rig: Rig) -> None:
    rig.up(max_parallel=2)
    rig.fault(create="hang")
    casts = [rig.create(f"i-{n}") for n in range(4)]
    eventually(lambda: all(rig.manager.receipts(c) for c in casts), "all received")
    started = [c for c in casts if "started" in rig.manager.receipts(c)]
    assert len(started) <= 2
    rig.fault()
    assert {rig.manager.result(c).outcome for c in casts} == {"succeeded"}


def test_an_id_of_its_own_kind_can_be_any_text(rig: Rig) -> None:
    rig.up()
    command = f"job/{uuid.uuid4()}"
    rig.create("i-1", id=command)
    assert rig.manager.result(command).outcome == "succeeded"


def test_a_mistake_of_a_driver_ends_the_command_and_not_the_agent(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.up()
    rig.running("i-1")

    def stumble(*_args: object, **_more: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(SimulatedDriver, "stop", stumble)
    result = rig.manager.result(rig.manager.send("stop_vm", "i-1", 2))
    assert (result.outcome, result.error_code) == ("failed", "INTERNAL_ERROR")
    assert result.error == "ZeroDivisionError: oops"
    assert rig.manager.result(rig.manager.send("reboot_vm", "i-1", 3)).outcome == "succeeded"

"""One verb for several VMs: one request, an answer or an error for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from common.errors import AlreadyDeleted, BrokerUnavailable, NotFound, WrongState
from tests.functional.fakemanager import DONE, JOB, Fleet

OTHER = {**JOB, "uuid": "5f0c1b0e-0000-4000-8000-000000000002", "instance": "web-2"}


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    fleet = Fleet()
    yield fleet
    fleet.close()


def answers(*each: Any) -> dict[str, Any]:
    return {
        "answers": [
            {"error": one.to_wire()} if isinstance(one, Exception) else {"answer": one}
            for one in each
        ]
    }


def test_several_vms_are_one_request_with_a_job_each(fleet: Fleet) -> None:
    fleet.answers["wishes"] = answers(JOB, OTHER)
    done = fleet.typed("vm stop web-1 web-2 web-1 --force --reason 'power cut' -f json")
    assert (done.code, done.err) == (0, "")
    assert [job["instance"] for job in done.json] == ["web-1", "web-2"]
    ((method, asked),) = fleet.asked
    assert method == "wishes"
    (one, two) = asked["wishes"]
    assert (one[0], one[1]["vm"], one[1]["force"], one[1]["reason"]) == (
        "vm_stop",
        "web-1",
        True,
        "power cut",
    )
    assert two[1]["vm"] == "web-2"
    assert one[1]["job"] != two[1]["job"]
    assert one[1]["operator"] == two[1]["operator"] != ""


def test_one_that_is_refused_has_its_line_and_the_others_go_on(fleet: Fleet) -> None:
    gone, busy = NotFound("no VM web-9", "muster vm list"), WrongState("web-3 is PAUSED", "unpause")
    fleet.answers["wishes"] = answers(JOB, gone, OTHER, busy)
    done = fleet.typed("vm start web-1 web-9 web-2 web-3 -f json")
    assert [job["instance"] for job in done.json] == ["web-1", "web-2"]
    assert done.err.splitlines() == [
        "muster: NOT_FOUND: no VM web-9 (muster vm list)",
        "muster: WRONG_STATE: web-3 is PAUSED (unpause)",
    ]
    assert done.code == busy.exit_code


@pytest.mark.parametrize(("option", "code"), [("--idempotent", 0), ("", 3)])
def test_what_was_deleted_already_is_an_error_unless_that_is_as_good(
    fleet: Fleet, option: str, code: int
) -> None:
    gone = AlreadyDeleted("web-1 was deleted already", "nothing to do")
    fleet.answers["wishes"] = answers(gone, {**OTHER, "state": "SUCCEEDED"})
    done = fleet.typed(f"vm delete web-1 web-2 {option} -f json")
    assert done.code == code, done.err
    assert "web-1 was deleted already" in done.err
    names = [job["instance"] for job in done.json]
    assert names == (["web-1", "web-2"] if option else ["web-2"])


def test_waiting_for_several_follows_each_and_fails_for_the_one_that_failed(fleet: Fleet) -> None:
    failed = {**OTHER, "state": "FAILED", "error_code": "NO_DISK", "error": "it is full"}
    ended = {JOB["uuid"]: DONE, OTHER["uuid"]: failed}
    fleet.answers["wishes"] = answers(JOB, OTHER)
    fleet.answers["job_show"] = lambda job: ended[job]
    done = fleet.typed("vm delete web-1 web-2 --wait -f json")
    assert [job["state"] for job in done.json] == ["SUCCEEDED", "FAILED"]
    assert "muster: NO_DISK: it is full" in done.err
    assert done.code == 1


def test_a_job_uuid_is_for_one_vm(fleet: Fleet) -> None:
    done = fleet.typed(f"vm stop web-1 web-2 --job {JOB['uuid']}")
    assert (done.code, fleet.asked) == (2, [])
    assert "--job names the job of one VM" in done.err


def test_a_dry_run_of_several_deletes_lists_all_decisions(fleet: Fleet) -> None:
    decision = {"vm": "0d1f", "name": "web-1", "host": "h1", "decision": "remote", "row": 8}
    fleet.answers["wishes"] = answers(
        {"decisions": [decision]}, {"decisions": [{**decision, "name": "web-2"}]}
    )
    done = fleet.typed("vm delete web-1 web-2 --dry-run -f json")
    assert [each["name"] for each in done.json] == ["web-1", "web-2"]
    assert all(wish[1]["dry_run"] for wish in fleet.asked[0][1]["wishes"])


def test_many_are_asked_for_in_requests_of_fifty(fleet: Fleet) -> None:
    def each(wishes: list[Any]) -> Any:
        return answers(*[{**JOB, "instance": asked["vm"]} for _, asked in wishes])

    fleet.answers["wishes"] = each
    names = [f"web-{n}" for n in range(120)]
    done = fleet.muster("vm", "start", *names, "-f", "json")
    assert [job["instance"] for job in done.json] == names
    assert [len(asked["wishes"]) for _, asked in fleet.asked] == [50, 50, 20]


def test_what_nobody_answered_names_its_job_and_what_was_accepted_is_shown(fleet: Fleet) -> None:
    """The broker goes between the first fifty and the rest: the exit code and words of one VM."""

    def first_fifty(wishes: list[Any]) -> Any:
        if wishes[0][1]["vm"] != "web-0":
            raise BrokerUnavailable("the broker is away", "start it")
        return answers(*[{**JOB, "instance": asked["vm"]} for _, asked in wishes])

    fleet.answers["wishes"] = first_fifty
    names = [f"web-{n}" for n in range(52)]
    done = fleet.muster("vm", "stop", *names, "-f", "json")
    assert [job["instance"] for job in done.json] == names[:50]
    asked = {wish["vm"]: wish["job"] for _, all_ in fleet.asked for _, wish in all_["wishes"]}
    lines = done.err.splitlines()
    assert len(lines) == 2
    for line, name in zip(lines, names[50:], strict=True):
        assert line.startswith(f"muster: BROKER_UNAVAILABLE: {name}: the broker is away")
        assert f"--job {asked[name]}" in line
    assert done.code == 5

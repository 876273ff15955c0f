"""--wait follows a job to its end, tells how it goes, and exits 0 only when it succeeded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from common import errors
from tests.functional.fakemanager import DONE, JOB, Fleet, Terminal

RUNNING = {**JOB, "state": "RUNNING", "waiting_for": "h1 to answer"}
ABOUT = f"job {JOB['uuid']} vm_delete web-1"
DELETE = ("vm", "delete", "web-1", "--wait", "-f", "json")


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    fleet = Fleet(answers={"vm_delete": JOB})
    yield fleet
    fleet.close()


def test_a_job_that_succeeds_is_printed_as_it_ended(fleet: Fleet) -> None:
    fleet.answers["job_show"] = [RUNNING, RUNNING, DONE]
    done = fleet.muster(*DELETE)
    assert done.code == 0
    assert done.json == DONE
    assert done.err.splitlines() == [
        f"{ABOUT}: PENDING, waiting: a manager to publish it",
        f"{ABOUT}: RUNNING, waiting: h1 to answer",
        f"{ABOUT}: SUCCEEDED",
    ]


def test_the_line_names_the_step_that_is_under_way(fleet: Fleet) -> None:
    fleet.answers["job_show"] = [{**RUNNING, "step": "place"}, {**DONE, "step": "place"}]
    assert fleet.muster(*DELETE).err.splitlines()[1:] == [
        f"{ABOUT}: RUNNING, place, waiting: h1 to answer",
        f"{ABOUT}: SUCCEEDED",
    ]


def test_on_a_terminal_the_line_is_rewritten(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    fleet.answers["job_show"] = [RUNNING, DONE]
    done = fleet.muster(*DELETE, stderr=Terminal())
    first, *others = done.err.split("\r")[1:]
    assert first == f"{ABOUT}: PENDING, waiting: a manager to publish it"[:79] + "\x1b[K"
    assert others[-1] == f"{ABOUT}: SUCCEEDED\x1b[K\n"
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("end", "line"),
    [
        (
            {"state": "FAILED", "error_code": "NO_VALID_HOST", "error": "h1 is full"},
            "muster: NO_VALID_HOST: h1 is full",
        ),
        (
            {"state": "EXPIRED", "unconfirmed": True},
            "muster: JOB_EXPIRED: the job ended EXPIRED (unconfirmed)",
        ),
        ({"state": "CANCELLED"}, "muster: JOB_CANCELLED: the job ended CANCELLED"),
    ],
)
def test_a_job_that_does_not_succeed_says_why(
    fleet: Fleet, end: dict[str, object], line: str
) -> None:
    fleet.answers["job_show"] = [RUNNING, {**RUNNING, **end}]
    done = fleet.muster(*DELETE)
    assert done.code == 1
    assert done.json["state"] == end["state"]
    assert done.err.splitlines()[-1] == f"{line} (muster job show {JOB['uuid']})"


def test_a_job_that_has_ended_at_once_is_not_asked_for_again(fleet: Fleet) -> None:
    fleet.answers["vm_delete"] = DONE
    assert fleet.muster(*DELETE).code == 0
    assert [method for method, _ in fleet.asked] == ["vm_delete"]


def test_the_waiting_goes_on_while_the_managers_are_away(fleet: Fleet) -> None:
    fleet.answers["job_show"] = [RUNNING, DONE]
    fleet.clock.at(0.06, fleet.stop)
    fleet.clock.at(30.0, fleet.start)
    done = fleet.muster(*DELETE)
    assert done.code == 0
    assert done.json["state"] == "SUCCEEDED"
    assert f"{ABOUT}: RUNNING, waiting: h1 to answer - NO_MANAGER, asking again" in done.err
    assert fleet.clock.slept >= 30.0


def test_a_database_that_is_away_does_not_end_the_waiting(fleet: Fleet) -> None:
    fleet.answers["job_show"] = [errors.DatabaseUnavailable("failing over"), DONE]
    assert fleet.muster(*DELETE).code == 0


def test_an_error_that_will_not_pass_ends_the_waiting(fleet: Fleet) -> None:
    fleet.answers["job_show"] = errors.NotFound("no such job")
    done = fleet.muster(*DELETE)
    assert done.code == 3
    assert done.err.endswith("muster: NOT_FOUND: no such job\n")


def test_a_job_that_takes_too_long_goes_on_without_us(fleet: Fleet) -> None:
    fleet.answers["job_show"] = RUNNING
    done = fleet.muster(*DELETE)
    assert done.code == 1
    assert done.json == RUNNING
    assert done.err.splitlines()[-1] == (
        f"muster: WAIT_TIMEOUT: job {JOB['uuid']} is still RUNNING after 60 s, waiting: h1"
        f" to answer (go on waiting with: muster job wait {JOB['uuid']})"
    )
    assert fleet.clock.slept == pytest.approx(60.0)


def test_a_job_can_be_waited_for_later(fleet: Fleet) -> None:
    fleet.answers["job_show"] = [RUNNING, DONE]
    done = fleet.muster("job", "wait", JOB["uuid"], "-f", "json")
    assert done.code == 0
    assert done.json == DONE
    assert fleet.asked == [("job_show", {"job": JOB["uuid"]})] * 2


def test_waiting_for_a_job_that_failed_fails(fleet: Fleet) -> None:
    fleet.answers["job_show"] = {**DONE, "state": "FAILED", "error_code": "X", "error": "broken"}
    assert fleet.muster("job", "wait", JOB["uuid"]).code == 1


def test_an_operator_who_stops_waiting_is_told_that_the_job_goes_on(fleet: Fleet) -> None:
    def ctrl_c() -> None:
        raise KeyboardInterrupt

    fleet.answers["job_show"] = RUNNING
    fleet.clock.at(5.0, ctrl_c)
    done = fleet.muster(*DELETE)
    assert (done.code, done.out) == (130, "")
    assert done.err.splitlines()[0].startswith(ABOUT)
    uuid = JOB["uuid"]
    assert done.err.splitlines()[-1] == (
        f"muster: INTERRUPTED: job {uuid} goes on (muster job wait {uuid}; to take it back:"
        f" muster job cancel {uuid})"
    )


def test_an_operator_who_does_not_wait_for_the_answer_is_told_which_job_to_look_for(
    fleet: Fleet,
) -> None:
    def ctrl_c() -> None:
        raise KeyboardInterrupt

    fleet.stop()
    fleet.clock.at(1.0, ctrl_c)
    done = fleet.muster("vm", "stop", "web-1", "--job", JOB["uuid"])
    assert (done.code, done.out) == (130, "")
    assert done.err == (
        f"muster: INTERRUPTED: job {JOB['uuid']} may have been accepted"
        f" (see: muster job show {JOB['uuid']})\n"
    )
    fleet.clock.at(1.0, ctrl_c)
    done = fleet.muster("vm", "list")
    assert (done.code, done.out) == (130, "")
    assert done.err == "muster: INTERRUPTED: what a manager was asked may have been done\n"

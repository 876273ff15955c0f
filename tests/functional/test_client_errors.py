"""Every error is one line on standard error and the exit code of the contract."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata

import pytest

from common import errors
from tests.functional.fakemanager import DONE, JOB, Fleet, Ran

LINE = re.compile(r"muster: [A-Z][A-Z_]+: [^\n]+\n")
CREATE = "vm create web-1 --vcpus 1 --memory 128"


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    fleet = Fleet()
    yield fleet
    fleet.close()


def refused(done: Ran, code: int, *words: str) -> None:
    assert done.code == code
    assert done.out == ""
    assert LINE.fullmatch(done.err), done.err
    for word in words:
        assert word in done.err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("bogus", "'bogus' is not a muster command"),
        ("vm", "vm needs a verb (one of "),
        ("vm bogus", "'vm bogus' is not a muster command (one of "),
        ("vm li", "'vm li' is not a muster command"),
        ("help bogus", "'bogus' is not a muster command"),
        ("help vm bogus", "'vm bogus' is not a muster command"),
        ("--bogus vm list", "'--bogus' is not a muster command"),
        ("--config-file", "expected one argument (see: muster --help)"),
        ("vm create web-1", "--vcpus, --memory (see: muster vm create --help)"),
        ("vm show", "required: VM"),
        ("vm list extra", "unrecognized arguments: extra"),
        ("vm list -f xml", "invalid choice: 'xml'"),
        ("vm list -c colour", "there is no column 'colour'"),
        ("vm show web-1 -c colour", "there is no column 'colour'"),
        ("vm delete web-1 -c colour", "there is no column 'colour'"),
        ("vm list --sort-column colour", "there is no column 'colour' (one of uuid, name"),
        ("vm show web-\udcff", r"'web-\xff' is no UTF-8 text"),
        ("job show 42", "job: '42' is not a UUID"),
        ("job wait 42", "job: '42' is not a UUID"),
        ("job cancel 42", "job: '42' is not a UUID"),
        ("vm list --state ajar", "BAD_REQUEST: state: 'ajar'"),
        ("tombstone list --state ajar", "one of OPEN, CLOSED"),
        ("vm create web-1 --vcpus -1 --memory 128", "vcpus: '-1'"),
        ("vm create web-1 --vcpus 1 --memory 12GB", "memory_mib: '12GB'"),
        (f"{CREATE} --disk 0", "size_gib: '0' is not possible (give a whole number from 1 to"),
        (f"{CREATE} --disk 10G", "disk: '10G' is neither"),
        (f"{CREATE} --kernel vmlinuz", "kernel: 'vmlinuz' is not an absolute path"),
        (f"{CREATE} --initrd /initrd", "initrd: has no meaning without a kernel"),
        (f"{CREATE} --job 42", "job: '42' is not a UUID"),
        ("vm delete web-1 --force", "say why with --reason"),
        ("vm delete web-1 --force --reason=", "reason: is empty"),
        ("vm delete web-1 --force --soft", "not allowed with argument --force"),
        ("host set-down h1", "required: --reason"),
        ("host fence h1", "required: --reason"),
        ("host delete h1", "required: --reason"),
        ("host maintenance h1", "required: on|off"),
    ],
)
def test_what_is_wrong_with_a_line_is_said_before_anything_is_asked_of_a_manager(
    fleet: Fleet, line: str, words: str
) -> None:
    fleet.answers["vm_show"] = {"name": "web-1"}
    refused(fleet.muster(*line.split()), errors.EXIT_USAGE, words)
    assert [method for method, _ in fleet.asked] in ([], ["vm_show"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.BadRequest("name: 'a b' is not possible", "use RFC 1123"), 2),
        (errors.NotFound("no VM web-1", "see muster vm list"), 3),
        (errors.AlreadyDeleted("web-1 was deleted at noon", "use --idempotent"), 3),
        (errors.VmProtected("web-1 is protected", "switch it off first"), 4),
        (errors.TaskUnderWay("job 7 works on web-1", "wait for it"), 4),
        (errors.NoValidHost("no host can take it", "add one"), 4),
        (errors.NoManager("silence", "start a manager"), 5),
        (errors.DatabaseUnavailable("no database", "start it"), 1),
        (errors.MusterError("a surprise"), 1),
        (KeyError("a surprise"), 1),
    ],
)
def test_what_a_manager_answers_decides_the_exit_code(
    fleet: Fleet, error: Exception, code: int
) -> None:
    fleet.answers["vm_delete"] = error
    refused(fleet.muster("vm", "delete", "web-1"), code, getattr(error, "message", "KeyError"))


def test_an_ambiguous_name_lists_its_candidates(fleet: Fleet) -> None:
    fleet.answers["vm_show"] = errors.Ambiguous(
        "2 VMs are named web", "give a UUID", candidates=["0d1f", {"uuid": "77aa", "host": "h2"}]
    )
    done = fleet.muster("vm", "show", "web")
    refused(done, 3, "AMBIGUOUS: 2 VMs are named web: 0d1f, 77aa h2 (give a UUID)")


def test_candidates_are_not_said_twice(fleet: Fleet) -> None:
    fleet.answers["vm_show"] = errors.Ambiguous("0d1f or 77aa", "", candidates=["0d1f", "77aa"])
    assert fleet.muster("vm", "show", "web").err == "muster: AMBIGUOUS: 0d1f or 77aa\n"


def test_a_message_of_many_lines_becomes_one_and_can_not_steer_the_terminal(fleet: Fleet) -> None:
    fleet.answers["vm_show"] = errors.NotFound("no VM\n\n  web\x1b[2J", "look\nagain")
    assert fleet.muster("vm", "show", "web").err == (
        "muster: NOT_FOUND: no VM web\\x1b[2J (look again)\n"
    )


def test_without_a_manager_the_jobs_uuid_is_printed(fleet: Fleet) -> None:
    fleet.stop()
    done = fleet.muster("vm", "start", "web-1")
    refused(done, 5, "NO_MANAGER")
    assert re.search(r"\(repeat with --job [0-9a-f-]{36}\)$", done.err.strip())


def test_without_a_broker_the_jobs_uuid_is_printed(fleet: Fleet) -> None:
    fleet.broker.up = False
    job = "0e8f3f0a-0000-4000-8000-00000000000a"
    done = fleet.muster("vm", "start", "web-1", "--job", job)
    refused(done, 5, "BROKER_UNAVAILABLE", f"(repeat with --job {job})")


def test_a_read_without_a_manager_is_not_told_to_repeat_a_job(fleet: Fleet) -> None:
    fleet.stop()
    done = fleet.muster("vm", "list")
    refused(done, 5, "NO_MANAGER")
    assert "--job" not in done.err


def test_a_manager_that_comes_back_in_time_is_asked_with_the_same_job(fleet: Fleet) -> None:
    fleet.answers["vm_start"] = [errors.NoManager("dying"), JOB]
    assert fleet.muster("vm", "start", "web-1").code == 0
    first, second = fleet.asked
    assert first == second


def test_deleting_what_is_deleted_succeeds_when_asked_to_be_idempotent(fleet: Fleet) -> None:
    fleet.answers["vm_delete"] = errors.AlreadyDeleted("web-1 was deleted at noon")
    done = fleet.muster("vm", "delete", "web-1", "--idempotent", "-f", "json")
    assert done.code == 0
    assert done.json["state"] == "SUCCEEDED"
    assert done.err == "notice: web-1 was deleted at noon\n"


def test_a_job_that_had_failed_already_is_printed_and_fails(fleet: Fleet) -> None:
    fleet.answers["vm_start"] = {
        **DONE,
        "state": "FAILED",
        "error_code": "HYPERVISOR_ERROR",
        "error": "no such image",
    }
    done = fleet.muster("vm", "start", "web-1", "-f", "json")
    assert done.code == 1
    assert done.json["state"] == "FAILED"
    assert done.err == (
        f"muster: HYPERVISOR_ERROR: no such image (muster job show {JOB['uuid']})\n"
    )


def test_debug_shows_the_traceback_before_the_line(fleet: Fleet) -> None:
    fleet.answers["vm_show"] = errors.NotFound("no VM web")
    done = fleet.muster("--debug", "vm", "show", "web")
    assert done.code == 3
    assert done.err.startswith("Traceback")
    assert done.err.endswith("\nmuster: NOT_FOUND: no VM web\n")


@pytest.mark.parametrize("line", ["", "help", "--help", "-h"])
def test_without_a_noun_there_is_help(fleet: Fleet, line: str) -> None:
    fleet.stop()
    done = fleet.muster(*line.split())
    assert (done.code, done.err) == (0, "")
    for command in ("vm create", "host set-down", "job wait", "doctor"):
        assert re.search(rf"^  {command} +[A-Z]", done.out, re.M)


@pytest.mark.parametrize("line", ["vm --help", "help vm"])
def test_a_noun_tells_its_verbs(fleet: Fleet, line: str) -> None:
    done = fleet.muster(*line.split())
    assert done.code == 0
    verbs = {line.split()[1] for line in done.out.splitlines()}
    assert verbs == {
        name.removeprefix("vm_")
        for name in metadata.entry_points(group="muster.commands").names
        if name.startswith("vm_")
    }
    assert "delete" in verbs


@pytest.mark.parametrize("line", ["vm delete --help", "help vm delete", "vm delete web-1 -h"])
def test_a_verb_tells_its_arguments(fleet: Fleet, line: str) -> None:
    done = fleet.muster(*line.split())
    assert done.code == 0
    assert "usage: muster vm delete" in done.out
    assert "--idempotent" in done.out

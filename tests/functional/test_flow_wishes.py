"""Many wishes in one request: accepted together, refused one by one."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from common.errors import BadRequest, DatabaseUnavailable
from manager.store.jobs import Job
from tests.functional.fleet import Fleet, ScriptedAgent


def wish(method: str, **fields: Any) -> list[Any]:
    return [method, {"job": str(uuid.uuid4()), "operator": "ann", **fields}]


def ask(fleet: Fleet, *wishes: list[Any]) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = fleet.ask("wishes", wishes=list(wishes))["answers"]
    return answers


@pytest.fixture
def two(fleet: Fleet) -> Fleet:
    """Two running VMs on one host, and nothing left on the wire."""
    agent = ScriptedAgent(fleet).up()
    for name in ("web-1", "web-2"):
        fleet.deploy(agent, name)
    fleet.wire.take()
    return fleet


def test_wishes_are_accepted_together_and_each_is_cast(two: Fleet) -> None:
    first, second = ask(two, wish("vm_stop", vm="web-1"), wish("vm_stop", vm="web-2"))
    jobs = [two.job(each["answer"]) for each in (first, second)]
    assert {job.kind for job in jobs} == {"stop"}
    casts = two.wire.take("stop_vm")
    assert {c.command.instance for c in casts} == {job.instance for job in jobs}


def test_uuids_of_one_request_are_read_by_one_statement(two: Fleet) -> None:
    import sqlalchemy as sa

    said: list[str] = []
    uuids = [two.vm(name).uuid for name in ("web-1", "web-2")]

    def note(_conn: Any, _cursor: Any, text: str, *_rest: Any) -> None:
        said.append(text)

    sa.event.listen(two.store.engine, "before_cursor_execute", note)
    ask(two, *[wish("vm_stop", vm=each) for each in uuids])
    reads = [text for text in said if text.startswith("SELECT") and "FROM instances" in text]
    writes = [text for text in said if text.startswith(("INSERT", "UPDATE", "WITH"))]
    assert len(reads) == 1
    # Jobs, commands, instances.
    assert len(writes) == (1 if two.store.dialect == "postgresql" else 3)


def test_one_that_is_refused_takes_nobody_with_it(two: Fleet) -> None:
    unknown, stop, again, nonsense = ask(
        two,
        wish("vm_stop", vm="web-9"),
        wish("vm_stop", vm="web-1"),
        wish("vm_stop", vm="web-1"),
        wish("vm_stop", vm="web-2", vcpus=3),
    )
    assert unknown["error"]["code"] == "NOT_FOUND"
    assert two.job(stop["answer"]).kind == "stop"
    assert again["error"]["code"] == "TASK_UNDER_WAY"
    assert nonsense["error"]["code"] == "BAD_REQUEST"
    assert [c.command.instance for c in two.wire.take("stop_vm")] == [two.vm("web-1").uuid]


def test_a_request_that_comes_again_has_the_same_jobs(two: Fleet) -> None:
    wishes = [wish("vm_stop", vm="web-1"), wish("vm_delete", vm="web-2")]
    first = ask(two, *wishes)
    again = ask(two, *wishes)
    assert [a["answer"]["uuid"] for a in first] == [a["answer"]["uuid"] for a in again]
    assert len(two.rows(Job)) == 4  # two creates before them
    assert len(two.wire.take("stop_vm")) == 1


def test_only_what_has_a_job_may_be_asked_for_so(two: Fleet) -> None:
    (answer,) = ask(two, ["host_list", {}])
    assert answer["error"]["code"] == "BAD_REQUEST"
    assert "vm_stop" in answer["error"]["remedy"]
    for nothing in ([], [wish("vm_stop", vm="web-1")] * 101):
        with pytest.raises(BadRequest, match="wishes"):
            ask(two, *nothing)


def test_a_database_that_goes_in_between_hides_nothing_that_was_accepted(
    two: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked = two.store.run, []

    def away_at_last(handler: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(handler)
        if len(asked) > 3:
            raise DatabaseUnavailable("it is away", "start it")
        return run(handler, *args, **kwargs)

    # Together, then alone: the first is accepted, the second refused; the third finds no database.
    monkeypatch.setattr(two.store, "run", away_at_last)
    wishes = [wish("vm_stop", vm="web-1"), wish("vm_stop", vm="web-9"), wish("vm_stop", vm="web-2")]
    first, second, third = two.api("wishes", {"wishes": wishes})["answers"]
    assert first["answer"]["kind"] == "stop"
    assert {second["error"]["code"], third["error"]["code"]} == {"DATABASE_UNAVAILABLE"}

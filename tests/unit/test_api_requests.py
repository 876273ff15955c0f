"""Door 1: every wrong field of a request is named, with what it may be."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import fields
from common.errors import EXIT_USAGE, BadRequest
from manager.api import requests as ask
from manager.api.endpoint import METHODS

JOB = "11111111-0000-4000-8000-000000000001"
CREATE: dict[str, Any] = {"job": JOB, "name": "web-1", "vcpus": 1, "memory_mib": 256}
DELETE: dict[str, Any] = {"job": JOB, "vm": "web-1"}


def refusal(kind: type[ask.Request], kwargs: dict[str, Any]) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        ask.parse(kind, kwargs)
    assert caught.value.exit_code == EXIT_USAGE
    return caught.value


@pytest.mark.parametrize(
    ("field", "values", "remedy"),
    [
        (
            "name",
            ["", "-web", "web-", "web\n", "a b", "x" * 64, "web/1", "wéb", 7, None],
            "letters, digits",
        ),
        ("vcpus", [0, 513, -1, 1.5, "2", 10**30], "1 to 512"),
        ("memory_mib", [0, 15, 16 * 1024 * 1024 + 1, "256"], "16 to 16777216"),
        ("kernel", ["vmlinuz", "", "/a\x00b", 7], "absolute path"),
        ("initrd", ["initrd.img", ""], "absolute path"),
        ("job", ["", JOB + "\n", "web-1", "1111", 7, None], "a UUID"),
        ("host", ["", 7, "h" * 254], "a name"),
        ("cmdline", ["x" * 1001, 7], "correct this field"),
        ("operator", ["", 7], "correct this field"),
        ("reason", ["x" * 1001, 7], "1000 characters"),
        ("disks", ["10", [{"size_gib": 0}], [{"size_gib": 65537}], [{}] * 17], "1 to 65536"),
    ],
)
def test_a_create_with_a_wrong_field_names_it_and_what_it_may_be(
    field: str, values: list[Any], remedy: str
) -> None:
    for value in values:
        found = refusal(ask.VmCreate, {**CREATE, "kernel": "/boot/vmlinuz", field: value})
        assert found.data["field"] == field, (field, value, found.message)
        assert field in found.message
        assert remedy in found.remedy


@pytest.mark.parametrize("kind", sorted({k for k, _ in METHODS.values()}, key=lambda k: k.__name__))
def test_what_a_field_may_be_can_be_told_of_every_request(kind: type[ask.Request]) -> None:
    wrong = dict.fromkeys(kind.__struct_fields__, object())
    told = {field for field, _said, remedy in fields.wrong(kind, wrong) if remedy}
    open_ = {
        name for name, type_ in fields.types(kind).items() if fields.may_be(type_) == "any value"
    }
    assert told == set(kind.__struct_fields__) - open_


def test_every_wrong_field_is_told_in_one_answer() -> None:
    wrong = {"name": "no name!", "vcpus": 0, "networks": [{"network": 5}], "color": "red"}
    found = refusal(ask.VmCreate, {**CREATE, **wrong})
    told = [error["field"] for error in found.data["errors"]]
    assert sorted(told) == ["color", "name", "networks[0].network", "vcpus"]
    assert all(error["message"] and error["remedy"] for error in found.data["errors"])


def test_what_is_said_of_a_wrong_value_is_the_value_and_no_regular_expression() -> None:
    assert refusal(ask.VmCreate, {**CREATE, "name": "a b"}).message == (
        "name: 'a b' is not possible"
    )
    assert refusal(ask.VmCreate, {**CREATE, "vcpus": 0}).message == "vcpus: 0 is not possible"
    long = refusal(ask.VmCreate, {**CREATE, "reason": "x" * 1001}).message
    assert len(long) < 120


@pytest.mark.parametrize("name", [JOB, JOB.replace("1", "A")])
def test_a_name_with_the_shape_of_a_uuid_is_refused(name: str) -> None:
    found = refusal(ask.VmCreate, {**CREATE, "name": name})
    assert found.data["field"] == "name"
    assert found.remedy


@pytest.mark.parametrize("field", ["job", "name"])
def test_a_create_without_a_needed_field_names_it(field: str) -> None:
    found = refusal(ask.VmCreate, {k: v for k, v in CREATE.items() if k != field})
    assert found.data["field"] == field


@pytest.mark.parametrize("kind", sorted({k.__name__ for k, _ in METHODS.values()}))
def test_a_field_nobody_knows_is_refused_by_name(kind: str) -> None:
    base = {"job": JOB, "vm": "x", "host": "h", "name": "web-1", "vcpus": 1, "memory_mib": 64}
    base |= {"reason": "a test", "kind": "zone", "objects": {}, "fields": {}, "tombstone": JOB}
    base |= {"cleanup": JOB}
    base |= {"on": True, "protected": True, "vm_state": "SHUTOFF"}
    struct = next(k for k, _ in METHODS.values() if k.__name__ == kind)
    kwargs = {k: v for k, v in base.items() if k in struct.__struct_fields__}
    ask.parse(struct, kwargs)
    assert refusal(struct, {**kwargs, "invented": 1}).data["field"] == "invented"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"name": "a"},
        {"name": "x" * 63},
        {"name": "A.b_c-9"},
        {"vcpus": 512},
        {"memory_mib": 16},
        {"disks": [{"size_gib": 1}, {"path": "/img/a.qcow2"}]},
        {"kernel": "/boot/vmlinuz", "initrd": "/boot/initrd", "cmdline": "quiet"},
        {"host": "h1", "operator": "ann", "reason": ""},
    ],
)
def test_a_good_create_is_taken(changes: dict[str, Any]) -> None:
    assert ask.parse(ask.VmCreate, {**CREATE, **changes}).job == JOB


def test_what_is_stored_of_a_request_is_the_wish_and_not_who_repeats_it() -> None:
    one = ask.parse(ask.VmCreate, {**CREATE, "operator": "ann", "reason": "a"}).wish("create")
    two = ask.parse(ask.VmCreate, {**CREATE, "operator": "bob"}).wish("create")
    assert one.request == two.request
    assert one.request["verb"] == "create"
    assert not {"job", "operator", "reason"} & set(one.request)
    other = ask.parse(ask.VmCreate, {**CREATE, "vcpus": 2}).wish("create")
    assert other.request != one.request


@settings(max_examples=60, deadline=None)
@given(
    field=st.sampled_from([*CREATE, "disks", "kernel", "host", "operator", "nonsense"]),
    value=st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.lists(st.dictionaries(st.sampled_from(["size_gib", "path"]), st.text() | st.integers())),
)
def test_whatever_is_asked_is_taken_or_refused_with_a_field(field: str, value: Any) -> None:
    refused: BadRequest | None = None
    try:
        assert uuid.UUID(ask.parse(ask.VmCreate, {**CREATE, field: value}).job)
    except BadRequest as exc:
        refused = exc
    assert refused is None or (refused.data["field"] and refused.remedy)

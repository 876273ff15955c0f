"""What travels: there and back, newer and older, and whatever else the bus may bring."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import messages as m
from common.errors import BadMessage
from common.ownership import Mark
from common.states import PowerState

NOW = dt.datetime(2026, 11, 20, 12, 0, tzinfo=dt.UTC)

GUEST = m.GuestReport(
    hypervisor_uuid="u-1",
    name="web-1",
    power_state=PowerState.RUNNING,
    vcpus=2,
    memory_mib=512,
    mark=Mark(fleet="f", instance="i-1", generation=3, bearer="u-1"),
    domain_id=7,
    macs=("0a:4d:75:00:00:01",),
)
RECEIPT = m.Receipt(command="c-1", step=m.Step.RECEIVED, age_s=0.5)
RESULT = m.Result(
    id="r-1",
    command="c-1",
    kind="start_vm",
    instance="i-1",
    generation=3,
    outcome=m.Outcome.FAILED,
    error_code="STALE_COMMAND",
    error="below the floor",
    floor=9,
    look=m.Look(session=1, seq=2, guest=GUEST),
)
VOID = m.VoidAnswer(id="v-1", instance="i-1", generation=3, answer=m.VoidOutcome.NOT_RUN)
REFUSAL = m.Refusal(id="x-1", code="UNKNOWN_KIND", message="no such kind", body="{}")

SAMPLES: list[msgspec.Struct] = [
    m.Command(
        id="c-1",
        kind=m.CommandKind.START_VM,
        fleet="f",
        host="h1",
        session=4,
        instance="i-1",
        generation=3,
        timeout_s=120.0,
        spec={"guest": {"name": "web-1", "vcpus": 1, "memory_mib": 64}, "create": True},
        trail=(m.TrailEntry("ann", "because", NOW),),
    ),
    m.Answers(
        fleet="f",
        host="h1",
        session=None,
        agent_run="run-1",
        receipts=(RECEIPT,),
        results=(RESULT,),
        voids=(VOID,),
        refusals=(REFUSAL,),
    ),
    m.Heartbeat(
        fleet="f",
        host="h1",
        session=4,
        agent_run="run-1",
        seq=9,
        interval_s=10.0,
        driver=m.DriverReport(name="simulated", healthy=True),
        sent_at=NOW,
        inventory=m.Inventory(
            full=True, complete=True, digest="1:00", guests=(GUEST,), gone=("u-2",)
        ),
        capacity=m.Capacity(
            vcpus_total=4, memory_mib_total=4096, vcpus_used=2, memory_mib_used=512
        ),
        receipts=(RECEIPT,),
        results=(RESULT,),
    ),
    m.Hello(
        hello_id="h-1",
        fleet="f",
        host="h1",
        agent_run="run-1",
        agent_version="1",
        driver="simulated",
        interval_s=10.0,
        host_boot="b",
        journal_id="j",
        journal_seq=0,
        store_timeline=None,
        store_mark=0,
        unfinished=("c-1",),
    ),
    m.Welcome(
        session=5,
        tombstones=(m.FloorEntry("i-1", 3),),
        floors=(m.FloorEntry("i-2", 4),),
        voids=(m.FloorEntry("i-3", 5),),
        wanted=("c-1",),
        store_timeline="t",
        store_mark=8,
    ),
]
by_name = pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: type(s).__name__)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside a decoded message."""
    if not isinstance(value, dict | list):
        return [at]
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return [at, *(path for key, v in inner for path in paths(v, (*at, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


def refused(body: bytes, kind: type[msgspec.Struct]) -> BadMessage | None:
    """The refusal; anything but a message or a BadMessage fails the test that asks."""
    try:
        m.decode(body, kind)
    except BadMessage as exc:
        return exc
    return None


@by_name
def test_a_message_comes_out_as_it_went_in(sample: msgspec.Struct) -> None:
    assert m.decode(m.encode(sample), type(sample)) == sample
    assert m.convert(m.builtins(sample), type(sample)) == sample


@by_name
def test_a_field_that_a_newer_sender_added_is_ignored(sample: msgspec.Struct) -> None:
    plain = {**m.builtins(sample), "invented_tomorrow": [1, {"a": None}]}
    assert m.convert(plain, type(sample)) == sample
    assert m.decode(msgspec.json.encode(plain), type(sample)) == sample


@pytest.mark.parametrize(
    "sample", [s for s in SAMPLES if hasattr(s, "schema")], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize("schema", [0, m.SCHEMA + 1, -1])
def test_another_schema_is_refused_by_number(sample: msgspec.Struct, schema: int) -> None:
    plain = {**m.builtins(sample), "schema": schema}
    with pytest.raises(BadMessage, match=f"schema {schema} is not one of") as caught:
        m.convert(plain, type(sample))
    assert "upgrade" in caught.value.remedy
    assert refused(msgspec.json.encode(plain), type(sample)) is not None


@by_name
def test_every_required_field_is_missed_by_name(sample: msgspec.Struct) -> None:
    plain = m.builtins(sample)
    required = [f.encode_name for f in msgspec.structs.fields(type(sample)) if f.required]
    for name in required:
        with pytest.raises(BadMessage, match=f"`{name}`"):
            m.convert({k: v for k, v in plain.items() if k != name}, type(sample))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("seq",), -1),
        (("seq",), "9"),
        (("interval_s",), 0),
        (("fleet",), ""),
        (("host",), "h" * 254),
        (("inventory", "guests", 0, "power_state"), 99),
        (("inventory", "guests", 0, "vcpus"), -1),
        (("inventory", "guests", 0, "mark", "generation"), 10**30),
        (("results", 0, "outcome"), "perhaps"),
        (("results", 0, "floor"), 2**60),
        (("receipts", 0, "age_s"), 1e300),
        (("sent_at",), "2026-11-20T12:00:00"),  # whose clock?
        (("sent_at",), "yesterday"),
    ],
)
def test_a_heartbeat_with_a_wrong_value_is_refused_and_the_field_named(
    path: tuple[Any, ...], value: Any
) -> None:
    plain = replaced(m.builtins(SAMPLES[2]), path, value)
    refusal = refused(msgspec.json.encode(plain), m.Heartbeat)
    assert refusal is not None
    assert str(path[-1]) in refusal.message or str(path[0]) in refusal.message


@pytest.mark.parametrize(
    "body", [b"", b"\x00", b"\xff\xfe", b"null", b"[]", b'{"fleet"', b"[" * 100_000]
)
def test_what_is_no_message_at_all_is_refused(body: bytes) -> None:
    assert all(refused(body, type(sample)) is not None for sample in SAMPLES)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_a_bottomless_body_is_refused_like_any_other(opening: str) -> None:
    body = m.encode(SAMPLES[2])[:-1] + b',"deep":' + opening.encode() * 100_000
    assert refused(body, m.Heartbeat) is not None


@by_name
@settings(max_examples=40, deadline=None)
@given(body=st.binary() | st.text().map(str.encode) | json_values.map(msgspec.json.encode))
def test_nothing_that_arrives_raises_anything_but_bad_message(
    sample: msgspec.Struct, body: bytes
) -> None:
    refusal = refused(body, type(sample))
    assert refusal is None or refusal.code == "BAD_MESSAGE"


@by_name
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_one_wrong_value_in_a_good_message_is_refused_or_harmless(
    sample: msgspec.Struct, data: st.DataObject
) -> None:
    plain = msgspec.json.decode(m.encode(sample))
    where = data.draw(st.sampled_from(paths(plain)))
    body = msgspec.json.encode(replaced(plain, where, data.draw(json_values)))
    if refused(body, type(sample)) is None:
        message = m.decode(body, type(sample))
        assert m.decode(m.encode(message), type(sample)) == message


def test_a_digest_is_of_the_set_and_not_of_its_order() -> None:
    one, two = GUEST.fingerprint(), msgspec.structs.replace(GUEST, name="b").fingerprint()
    assert m.digest([one, two]) == m.digest([two, one])
    assert len({m.digest([]), m.digest([one]), m.digest([two]), m.digest([one, two])}) == 4


@pytest.mark.parametrize("field", list(GUEST.__struct_fields__))
def test_a_fingerprint_shows_a_change_of_every_field(field: str) -> None:
    changed: dict[str, Any] = {
        "power_state": PowerState.SHUTOFF,
        "mark": None,
        "template": True,
        "macs": (),
        "domain_id": None,
    }
    value = changed.get(field, "x" if isinstance(getattr(GUEST, field), str) else 99)
    other = msgspec.structs.replace(GUEST, **{field: value})
    assert other.fingerprint() != GUEST.fingerprint()


FIRST_USE = """
import sys, threading
sys.setswitchinterval(1e-6)
from agent.effects import StartSpec
from common import messages
messages.prepare()
spec = {"guest": {"name": "a", "vcpus": 1, "memory_mib": 16, "nics": [{"mac": "x"}]}}
together = threading.Barrier(8)

def use():
    together.wait()
    messages.convert(spec, StartSpec)

threads = [threading.Thread(target=use) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def test_threads_that_use_a_struct_first_at_the_same_time_do_not_crash_the_process() -> None:
    for _ in range(5):  # without `prepare`, about one in four does
        done = subprocess.run([sys.executable, "-c", FIRST_USE], check=False, timeout=60)
        assert done.returncode == 0

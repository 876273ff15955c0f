"""Door 1: names, filters and what operators are shown, on a store in memory."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import pytest

from common.conf import Settings, database, manager
from common.errors import Ambiguous, BadRequest, NotFound, NoValidHost, TaskUnderWay
from common.states import HostState, PowerState, TaskState, VmState
from manager.api.endpoint import METHODS, Api
from manager.flows import jobs
from manager.store.engine import Store, Tx, create_all
from manager.store.hosts import Host
from manager.store.instances import Instance
from tests.functional.fleet import START, Clock


class Desk:
    """An operator's view of a store with rows of the test's making."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.store = Store(database.Database(connection="sqlite://"), self.clock)
        create_all(self.store)
        self.api = Api(self.store, Settings(manager=manager.Manager()))

    def ask(self, method: str, **kwargs: Any) -> Any:
        return self.api(method, kwargs)

    def host(self, name: str = "h1", **fields: Any) -> Host:
        row = Host(
            **{
                "name": name,
                "fleet": "default",
                "driver": "simulated",
                "agent_version": "1",
                "interval_s": 10.0,
                "state": HostState.UP,
                "reason": "heard",
                "state_since": START,
                "enabled": True,
                "session": 1,
                "session_open": True,
                "heard_at": START,
                "inventory_at": START,
                "memory_mib_total": 1024,
                **fields,
            }
        )
        self.store.run(lambda tx: tx.insert(row))
        return row

    def vm(self, name: str = "web-1", host: str | None = "h1", **fields: Any) -> str:
        row = Instance(
            **{
                "uuid": str(uuid.uuid4()),
                "name": name,
                "host": host,
                "vm_state": VmState.ACTIVE,
                "task_state": TaskState.NONE,
                "power_state": PowerState.RUNNING,
                "power_at": START,
                "spec": {},
                "vcpus": 1,
                "memory_mib": 64,
                "mac": "0a:4d:75:00:00:01",
                "generation": 1,
                "created_at": START,
                **fields,
            }
        )
        self.store.run(lambda tx: tx.insert(row))
        return row.uuid

    def names(self, **filters: Any) -> list[str]:
        return [vm["name"] for vm in self.ask("vm_list", **filters)["vms"]]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_method_nobody_has_is_refused(desk: Desk) -> None:
    with pytest.raises(BadRequest, match="vm_explode"):
        desk.ask("vm_explode")


@pytest.mark.parametrize("method", [m for m, (k, _) in METHODS.items() if not k.__struct_fields__])
def test_what_takes_nothing_answers_on_an_empty_fleet(desk: Desk, method: str) -> None:
    assert desk.ask(method)


def test_a_request_that_another_manager_accepts_at_the_same_moment_gets_its_job(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.host()
    desk.vm()
    request = {"vm": "web-1", "job": str(uuid.uuid4())}
    accepted = desk.ask("vm_stop", **request)
    # The first look sees the VM as the other manager has left it, and not its job.
    known, looks = jobs.known, []

    def look(tx: Tx, wish: jobs.Wish) -> Any:
        looks.append(tx.attempt)
        return known(tx, wish)

    monkeypatch.setattr(jobs, "known", look)
    assert desk.ask("vm_stop", **request)["uuid"] == accepted["uuid"]
    assert looks == [0, 1]
    with pytest.raises(TaskUnderWay):
        desk.ask("vm_stop", vm="web-1", job=str(uuid.uuid4()))


def test_a_vm_is_found_by_name_or_uuid_in_any_case(desk: Desk) -> None:
    desk.host()
    uuid_ = desk.vm()
    assert [desk.ask("vm_show", vm=v)["uuid"] for v in ("web-1", uuid_, uuid_.upper())] == (
        [uuid_] * 3
    )


def test_an_ambiguous_name_lists_its_candidates(desk: Desk) -> None:
    uuids = [desk.vm(host=f"h{n}") for n in range(2)]
    with pytest.raises(Ambiguous) as caught:
        desk.ask("vm_show", vm="web-1")
    assert all(u in caught.value.message for u in uuids)
    assert len(caught.value.data["candidates"]) == 2
    assert "uuid" in caught.value.remedy


@pytest.mark.parametrize(
    ("method", "kwargs"),
    [
        ("vm_show", {"vm": "web-9"}),
        ("vm_stop", {"vm": "web-9", "job": str(uuid.uuid4())}),
        ("vm_delete", {"vm": "web-9", "job": str(uuid.uuid4())}),
        ("vm_list", {"host": "h9"}),
        ("alien_list", {"host": "h9"}),
        ("host_show", {"host": "h9"}),
        ("host_enable", {"host": "h9"}),
        ("host_disable", {"host": "h9"}),
        ("host_set_down", {"host": "h9", "reason": "x"}),
        ("host_unset_down", {"host": "h9"}),
        ("host_fence", {"host": "h9", "reason": "x"}),
        ("host_unfence", {"host": "h9"}),
        ("host_maintenance", {"host": "h9", "on": True}),
        ("host_delete", {"host": "h9", "reason": "x"}),
        ("job_show", {"job": str(uuid.uuid4())}),
    ],
)
def test_what_is_not_there_is_not_found_by_name(
    desk: Desk, method: str, kwargs: dict[str, Any]
) -> None:
    with pytest.raises(NotFound) as caught:
        desk.ask(method, **kwargs)
    wanted = kwargs.get("vm") or kwargs.get("host") or kwargs["job"]
    assert wanted in caught.value.message
    assert caught.value.remedy


def test_a_deleted_vm_can_be_shown_but_is_not_listed(desk: Desk) -> None:
    desk.vm(vm_state=VmState.DELETED, host=None, deleted_at=START)
    assert desk.names() == []
    assert desk.ask("vm_show", vm="web-1")["vm_state"] == "DELETED"
    with pytest.raises(NotFound):
        desk.ask("vm_start", vm="web-1", job=str(uuid.uuid4()))


def test_lists_are_filtered(desk: Desk) -> None:
    desk.host("h1")
    desk.host("h2")
    desk.vm("a", "h1")
    desk.vm("b", "h2", vm_state=VmState.SHUTOFF)
    desk.vm("c", "h2", task_state=TaskState.REBOOTING)
    assert desk.names() == ["a", "b", "c"]
    assert desk.names(host="h2") == ["b", "c"]
    assert desk.names(state="shutoff") == ["b"]
    assert desk.names(task_state="REBOOTING") == ["c"]
    assert desk.names(host="h1", state="SHUTOFF") == []
    with pytest.raises(NotFound) as caught:
        desk.names(state="asleep")
    assert "SHUTOFF" in caught.value.remedy
    with pytest.raises(NotFound):
        desk.ask("tombstone_list", state="ajar")


def test_a_power_state_is_stale_once_its_age_exceeds_two_and_a_half_intervals(desk: Desk) -> None:
    desk.host("h1")
    desk.vm("a")
    desk.vm("never-seen", power_at=None, host=None)
    desk.vm("never-placed", power_at=None, host=None, generation=0)
    desk.clock.move(25)
    assert desk.names(stale=True) == ["never-seen"]
    desk.clock.move(1)
    assert desk.names(stale=True) == ["a", "never-seen"]
    assert desk.ask("vm_show", vm="a")["power_age_s"] == 26
    assert desk.ask("vm_show", vm="never-seen")["power_age_s"] is None


def test_a_create_that_fits_nowhere_names_every_host_and_why(desk: Desk) -> None:
    desk.host("full", memory_mib_used=1000)
    desk.host("off", enabled=False)
    desk.host("dead", state=HostState.DOWN)
    with pytest.raises(NoValidHost) as caught:
        desk.ask("vm_create", job=str(uuid.uuid4()), name="web-1", vcpus=1, memory_mib=256)
    for word in ("full: has 24 MiB", "off: is disabled", "dead: is DOWN"):
        assert word in caught.value.message
    with pytest.raises(NotFound, match="h9"):
        desk.ask(
            "vm_create", job=str(uuid.uuid4()), name="web-1", vcpus=1, memory_mib=256, host="h9"
        )


def test_setting_a_host_down_needs_a_reason(desk: Desk) -> None:
    desk.host()
    with pytest.raises(BadRequest) as caught:
        desk.ask("host_set_down", host="h1")
    assert caught.value.data["field"] == "reason"


def test_a_dry_run_of_set_down_changes_nothing(desk: Desk) -> None:
    row = desk.host()
    desk.vm()
    answer = desk.ask("host_set_down", host="h1", reason="x", dry_run=True)
    assert [d["row"] for d in answer["decisions"]] == [9]
    assert desk.store.run(lambda tx: tx.get(Host, "h1")) == row


def test_the_columns_of_the_contract_are_there(desk: Desk) -> None:
    desk.host()
    desk.vm()
    (vm,) = desk.ask("vm_list")["vms"]
    assert set(vm) >= {
        *("uuid", "name", "vm_state", "task_state", "power_state", "power_age_s"),
        *("host", "host_state", "address"),
    }
    assert (vm["power_state"], vm["task_state"], vm["address"]) == ("RUNNING", "none", None)
    (host,) = desk.ask("host_list")["hosts"]
    assert set(host) >= {
        *("name", "driver", "state", "enabled", "last_heard_s", "vms", "aliens", "vcpus_used"),
        *("vcpus_total", "memory_mib_used", "memory_mib_total", "agent_version"),
    }
    assert host["vms"] == 1


def test_times_are_iso_8601_utc(desk: Desk) -> None:
    desk.host()
    uuid_ = desk.vm()
    shown = desk.ask("vm_show", vm=uuid_)["created_at"]
    assert dt.datetime.fromisoformat(shown) == START
    assert shown.endswith("Z")


@pytest.mark.parametrize(
    ("fields", "code", "level"),
    [
        ({"state": HostState.DOWN}, "HOST_DOWN", "ERROR"),
        ({"state": HostState.DOWN, "forced_down": True}, "HOST_DOWN", "INFO"),
        ({"state": HostState.DOWN, "fenced": True}, "HOST_DOWN", "INFO"),
        ({"maintenance": True}, "HOST_MAINTENANCE", "INFO"),
        ({"state": HostState.SUSPECT}, "HOST_SUSPECT", "WARNING"),
        ({"enabled": False}, "HOST_DISABLED", "INFO"),
        ({"clock_skew_s": -9.0}, "CLOCK_SKEW", "WARNING"),
        ({"clash": True}, "HOST_NAME_CLASH", "ERROR"),
        ({"mass_silent": True}, "MASS_SILENCE", "ERROR"),
    ],
)
def test_doctor_finds_each_illness_of_a_host_and_has_a_remedy(
    desk: Desk, fields: dict[str, Any], code: str, level: str
) -> None:
    desk.host(**fields)
    found = {f["code"]: f for f in desk.ask("doctor")["findings"]}
    assert found[code]["level"] == level
    assert found[code]["remedy"]


def test_doctor_tells_errors_first(desk: Desk) -> None:
    desk.host("a", enabled=False)
    desk.host("b", state=HostState.DOWN)
    desk.vm("broken", "b", vm_state=VmState.ERROR, error="it said no")
    desk.vm("gone", "b", missing=True)
    levels = [f["level"] for f in desk.ask("doctor")["findings"]]
    assert levels == sorted(levels, key=["ERROR", "WARNING", "INFO"].index)
    codes = {f["code"] for f in desk.ask("doctor")["findings"]}
    assert {"HOST_DOWN", "VM_MISSING", "VM_ERROR", "HOST_DISABLED", "MANAGERS_BLIND"} <= codes

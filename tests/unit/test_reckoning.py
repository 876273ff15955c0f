"""The reckoning after a storm sees each thing that is not as promised."""

from __future__ import annotations

import datetime as dt
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from common.messages import GuestReport
from common.ownership import Mark
from common.states import PowerState
from devstack.consoles import FLEET, Effect
from devstack.faults.operators import Ledger
from devstack.faults.reckoning import Reckoning

KEPT = "commands: 1 accepted, 1 ended, 0 lost, 0 twice, 0 stuck; strangers touched: 0; leaked: 0"


def guest(uuid: str, instance: str | None, **changes: Any) -> GuestReport:
    mark = (
        Mark(fleet=FLEET, instance=instance, generation=1, bearer=uuid)
        if instance is not None
        else None
    )
    plain = GuestReport(
        hypervisor_uuid=uuid,
        name=f"guest-{uuid}",
        power_state=PowerState.RUNNING,
        vcpus=1,
        memory_mib=16,
        mark=mark,
        domain_id=7,
    )
    return msgspec.structs.replace(plain, **changes)


def at(second: int) -> dt.datetime:
    return dt.datetime(2026, 11, 20, 8, 0, second, tzinfo=dt.UTC)


class Console:
    """A hypervisor that says what the test wants."""

    def __init__(self) -> None:
        self.found: dict[str, GuestReport] = {}
        self.done: list[Effect] = []
        self.files: list[str] = []

    def guests(self) -> dict[str, GuestReport]:
        return self.found

    def effects(self, _instances: object) -> list[Effect]:
        return self.done

    def kept(self) -> list[str]:
        return self.files


class Scene:
    """One VM that was created on host a, and one stranger; then the test spoils something."""

    def __init__(self) -> None:
        self.hosts = ("a", "b")
        self.hypervisors = {"a": Console(), "b": Console()}
        stranger = guest("s", None)
        self.strangers = {("a", "s"): stranger}
        self.forgot: dict[str, list[dt.datetime]] = {}
        self.hypervisors["a"].found = {"s": stranger, "g": guest("g", "vm")}
        self.did("create", 1)
        self.tables: dict[str, list[dict[str, Any]]] = {
            "jobs": [
                {
                    "uuid": "job",
                    "kind": "create",
                    "instance": "vm",
                    "state": "SUCCEEDED",
                    "same_as": None,
                }
            ],
            "instances": [
                {
                    "uuid": "vm",
                    "name": "web",
                    "host": "a",
                    "vm_state": "ACTIVE",
                    "task_state": "none",
                    "power_state": PowerState.RUNNING.value,
                    "mac": "m",
                    "deletion_owed": False,
                    "reserved": True,
                }
            ],
            "commands": [
                {
                    "id": "c",
                    "kind": "start_vm",
                    "host": "a",
                    "instance": "vm",
                    "generation": 1,
                    "state": "SUCCEEDED",
                    "error_code": None,
                    "published_at": at(10),
                    "ended_at": at(20),
                }
            ],
            "voids": [],
            "tombstones": [],
            "cleanups": [],
            "macs": [{"mac": "m", "instance": "vm"}],
        }
        self.ledger = Ledger()
        self.ledger.promise("vm_create", {"job": "job"}, {"uuid": "job", "instance": "vm"})

    def rows(self, query: str) -> list[Any]:
        table = query.partition(" FROM ")[2].split()[0]
        return [SimpleNamespace(**row) for row in self.tables[table]]

    def did(self, verb: str, times: int, generation: int | None = 1) -> None:
        self.hypervisors["a"].done = [
            Effect(verb=verb, instance="vm", generation=generation, times=times)
        ]

    def spoil(self, table: str, **fields: Any) -> None:
        self.tables[table][0].update(fields)

    def reckon(self) -> Reckoning:
        return Reckoning(self, self.ledger)  # type: ignore[arg-type] # what it uses of a field


@pytest.fixture
def scene() -> Scene:
    return Scene()


def kinds(scene: Scene) -> list[str]:
    return [finding.kind for finding in scene.reckon().findings]


def test_a_fleet_that_kept_its_promises(scene: Scene) -> None:
    reckoning = scene.reckon()
    assert reckoning.findings == []
    assert reckoning.last_line() == KEPT


def test_an_accepted_job_that_nobody_knows_is_lost(scene: Scene) -> None:
    scene.tables["jobs"].clear()
    reckoning = scene.reckon()
    assert [finding.kind for finding in reckoning.findings] == ["lost"]
    assert "0 ended, 1 lost" in reckoning.last_line()


@pytest.mark.parametrize(
    ("table", "fields"),
    [
        ("jobs", {"state": "RUNNING"}),
        ("commands", {"state": "PUBLISHED"}),
        ("instances", {"task_state": "deleting"}),
        ("instances", {"deletion_owed": True}),
    ],
)
def test_what_has_not_ended_is_stuck(scene: Scene, table: str, fields: dict[str, Any]) -> None:
    scene.spoil(table, **fields)
    assert kinds(scene) == ["stuck"]


def test_a_void_that_is_owed_is_stuck(scene: Scene) -> None:
    scene.tables["voids"] = [{"host": "a", "instance": "vm", "generation": 1}]
    assert kinds(scene) == ["stuck"]


def test_an_effect_at_one_generation_happens_once(scene: Scene) -> None:
    scene.did("reboot", 2)
    assert kinds(scene) == ["twice"]


def test_no_more_starts_than_commands_where_the_generation_is_not_told(scene: Scene) -> None:
    scene.did("start", 1, None)
    assert kinds(scene) == []
    scene.did("start", 2, None)
    assert kinds(scene) == ["twice"]


@pytest.mark.parametrize("generation", [1, None])
def test_an_effect_comes_again_once_for_each_journal_lost_under_its_command(
    scene: Scene, generation: int | None
) -> None:
    scene.did("start", 2, generation)
    for second in (5, 25):
        scene.forgot = {"a": [at(second)], "b": [at(15)]}
        assert kinds(scene) == ["twice"]
    scene.forgot = {"a": [at(15)]}
    assert kinds(scene) == []
    scene.spoil("commands", ended_at=None)
    assert kinds(scene) == []
    scene.did("start", 3, generation)
    assert kinds(scene) == ["twice"]


def test_an_agent_that_forgot_may_say_not_run_of_what_it_did(scene: Scene) -> None:
    scene.spoil("commands", state="NOT_RUN")
    scene.forgot = {"a": [at(15)]}
    assert kinds(scene) == []
    scene.forgot = {"a": [at(25)]}
    assert kinds(scene) == ["untrue"]


def test_one_instance_in_two_places(scene: Scene) -> None:
    scene.hypervisors["b"].found = {"h": guest("h", "vm")}
    assert sorted(kinds(scene)) == ["leaked", "twice"]


def test_an_effect_without_a_command_or_of_one_called_not_run(scene: Scene) -> None:
    scene.did("stop", 1, 2)
    assert kinds(scene) == ["untrue"]
    scene.did("create", 1)
    scene.spoil("commands", state="NOT_RUN")
    assert kinds(scene) == ["untrue"]


@pytest.mark.parametrize(
    "changes", [{"domain_id": 8}, {"power_state": PowerState.SHUTOFF}, {"name": "other"}]
)
def test_a_stranger_that_is_not_as_it_was_made(scene: Scene, changes: dict[str, Any]) -> None:
    scene.hypervisors["a"].found["s"] = guest("s", None, **changes)
    assert kinds(scene) == ["strangers"]


def test_a_stranger_that_is_gone(scene: Scene) -> None:
    del scene.hypervisors["a"].found["s"]
    assert kinds(scene) == ["strangers"]


def test_a_copy_of_our_guest_is_a_stranger_and_no_second_guest(scene: Scene) -> None:
    ours = scene.hypervisors["a"].found["g"]
    clone = msgspec.structs.replace(ours, hypervisor_uuid="k")
    scene.hypervisors["b"].found = {"k": clone}
    scene.strangers["b", "k"] = clone
    assert kinds(scene) == []


def test_a_guest_of_a_deleted_vm_and_its_address_leak(scene: Scene) -> None:
    scene.spoil("instances", vm_state="DELETED")
    assert kinds(scene) == ["leaked", "leaked"]


def test_a_vm_without_a_guest_leaks_unless_its_create_failed(scene: Scene) -> None:
    del scene.hypervisors["a"].found["g"]
    assert kinds(scene) == ["leaked"]
    scene.spoil("instances", vm_state="ERROR")
    assert kinds(scene) == []


def test_a_lost_address_and_an_open_tombstone_leak(scene: Scene) -> None:
    scene.tables["macs"].clear()
    scene.tables["tombstones"] = [{"name": "web", "host": "b", "instance": "vm"}]
    assert kinds(scene) == ["leaked", "leaked"]


def test_the_address_of_a_vm_whose_creation_has_failed_is_not_lost(scene: Scene) -> None:
    scene.tables["macs"].clear()
    scene.spoil("instances", reserved=False)
    assert kinds(scene) == []


def test_files_of_a_guest_that_is_gone_and_an_open_clean_up_item_leak(scene: Scene) -> None:
    scene.hypervisors["a"].files = ["g", "gone"]
    scene.tables["cleanups"] = [{"kind": "files", "name": "web", "instance": "vm"}]
    assert kinds(scene) == ["leaked", "leaked"]


def test_a_power_state_that_the_hypervisor_does_not_say(scene: Scene) -> None:
    scene.hypervisors["a"].found["g"] = guest("g", "vm", power_state=PowerState.SHUTOFF)
    assert kinds(scene) == ["untrue"]


def test_a_second_answer_that_names_another_job_breaks_the_ledger() -> None:
    ledger = Ledger()
    for job in ("one", "one", "two"):
        ledger.promise("vm_stop", {"job": "asked"}, {"uuid": job, "instance": "vm"})
    assert (ledger.accepted, ledger.repeated) == (1, 2)
    assert ledger.broken == ["vm_stop under job asked was answered one, then two"]

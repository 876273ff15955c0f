"""Every noun's verbs: what they ask of a manager, and what they print."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.functional.fakemanager import DONE, JOB, Fleet

# The columns that scripts rely on: DESIGN section 6.
LISTINGS = {
    "vm list": (
        "vms",
        "uuid name vm_state task_state power_state power_age_s host host_state address",
    ),
    "host list": (
        "hosts",
        "name driver state enabled last_heard_s vms aliens vcpus_used vcpus_total"
        " memory_mib_used memory_mib_total agent_version",
    ),
    "job list": ("jobs", "uuid kind instance host state waiting_for age_s"),
    "alien list": (
        "aliens",
        "host hypervisor_uuid name power_state vcpus memory_mib first_seen last_seen",
    ),
    "tombstone list": (
        "tombstones",
        "uuid name instance host generation state reason age_s holds",
    ),
    "cleanup list": (
        "cleanups",
        "uuid kind name instance host pool state tries age_s next_try_s answer waits_for reason",
    ),
    "event list": ("events", "at kind object source text"),
    "address list": ("addresses", "ip mac network instance vm why since"),
    "service list": ("services", "service id host state version started_at heard_since blind"),
    "doctor": ("findings", "code level object message remedy"),
}
VM = {
    "uuid": "0d1f",
    "name": "web-1",
    "vm_state": "ACTIVE",
    "task_state": "none",
    "power_state": "RUNNING",
    "power_age_s": 1.26,
    "host": "h1",
    "host_state": "UP",
    "address": None,
    "stale": False,
    "missing": False,
    "vcpus": 2,
    "memory_mib": 512,
    "mac": "0a:4d:75:00:00:01",
    "disks": [{"size_gib": 1}],
}
DECISIONS = [
    {
        "vm": "0d1f",
        "name": "web-1",
        "host": "h1",
        "decision": "DB-only",
        "row": 9,
        "reason": "h1 is DOWN",
    }
]


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    fleet = Fleet()
    yield fleet
    fleet.close()


@pytest.mark.parametrize("command", LISTINGS)
def test_a_listing_has_the_keys_of_the_contract_in_every_format(fleet: Fleet, command: str) -> None:
    key, columns = LISTINGS[command]
    names = columns.split()
    row: dict[str, Any] = {name: f"{name}!" for name in names}
    fleet.answers[command.replace(" ", "_")] = {key: [{**row, "other": 1}, row]}

    def ran(output: str) -> str:
        done = fleet.muster(*command.split(), "-f", output)
        assert (done.code, done.err) == (0, "")
        return done.out

    assert list(fleet.muster(*command.split(), "-f", "json").json[0]) == names
    assert yaml.safe_load(ran("yaml")) == [row, row]
    assert ran("csv").splitlines()[0] == ",".join(f'"{name}"' for name in names)
    assert ran("value").splitlines()[0].split() == list(row.values())
    assert ran("table").splitlines()[1].count("|") == len(names) + 1


@pytest.mark.parametrize("command", LISTINGS)
def test_an_empty_listing_is_empty_in_every_format(fleet: Fleet, command: str) -> None:
    fleet.answers[command.replace(" ", "_")] = {LISTINGS[command][0]: []}
    assert fleet.muster(*command.split(), "-f", "json").json == []
    done = fleet.muster(*command.split())
    assert (done.code, done.out) == (0, "")
    assert done.err == ("nothing found\n" if command == "doctor" else "")


def test_a_long_listing_of_hosts_says_where_they_stand(fleet: Fleet) -> None:
    fleet.answers["host_list"] = {"hosts": [{"name": "h1", "cluster": "c1", "tags": ["ssd"]}]}
    (row,) = fleet.typed("host list --long -f json").json
    more = ["cluster", "tags", "maintenance", "fenced", "reason"]
    assert list(row) == [*LISTINGS["host list"][1].split(), *more]
    assert (row["cluster"], row["tags"]) == ("c1", ["ssd"])


def test_tables_have_titles_and_leave_blank_what_is_not_known(fleet: Fleet) -> None:
    fleet.answers["vm_list"] = {"vms": [VM]}
    _, headings, _, row, _ = fleet.muster("vm", "list").out.splitlines()
    assert [h.strip() for h in headings.split("|")[1:-1]] == [
        "UUID",
        "Name",
        "VM state",
        "Task state",
        "Power state",
        "Power age (s)",
        "Host",
        "Host state",
        "Address",
    ]
    assert [c.strip() for c in row.split("|")[6:-1]] == ["1.3", "h1", "UP", ""]


def test_json_says_null_for_what_is_not_known(fleet: Fleet) -> None:
    fleet.answers["vm_list"] = {"vms": [VM, {"uuid": "1"}]}
    first, second = fleet.muster("vm", "list", "-f", "json").json
    assert first["address"] is None
    assert first["power_age_s"] == 1.26
    assert second["name"] is None


def test_columns_are_chosen_by_key_or_title_in_every_format(fleet: Fleet) -> None:
    fleet.answers["vm_list"] = {"vms": [VM]}
    chosen = ("-c", "power_age_s", "-c", "Host state")
    assert fleet.muster("vm", "list", "-f", "json", *chosen).json == [
        {"power_age_s": 1.26, "host_state": "UP"}
    ]
    table = fleet.muster("vm", "list", *chosen).out.splitlines()
    assert table[1].split("|")[1:-1] == [" Power age (s) ", " Host state "]


def test_rows_are_sorted_by_a_column(fleet: Fleet) -> None:
    fleet.answers["vm_list"] = {"vms": [{"name": "b"}, {"name": "a"}, {"name": None}]}
    done = fleet.muster("vm", "list", "-f", "value", "-c", "name", "--sort-column", "name")
    assert done.out.split() == ["a", "b", "None"]


def test_notices_come_before_a_listing_on_standard_error(fleet: Fleet) -> None:
    fleet.answers["vm_list"] = {"vms": [VM], "notices": ["mass silence: 3 of 4 hosts"]}
    done = fleet.muster("vm", "list", "-f", "json")
    assert done.err == "notice: mass silence: 3 of 4 hosts\n"
    assert len(done.json) == 1


def test_vm_list_asks_with_its_filters(fleet: Fleet) -> None:
    fleet.answers["vm_list"] = {"vms": []}
    fleet.muster("vm", "list")
    fleet.typed("vm list --host h1 --state active --task-state DELETING --stale --long")
    assert fleet.asked == [
        ("vm_list", {"host": None, "state": None, "task_state": None, "stale": False}),
        ("vm_list", {"host": "h1", "state": "ACTIVE", "task_state": "deleting", "stale": True}),
    ]


def test_vm_list_long_has_more_columns(fleet: Fleet) -> None:
    fleet.answers["vm_list"] = {"vms": [VM]}
    (row,) = fleet.muster("vm", "list", "--long", "-f", "json").json
    assert list(row)[9:] == ["vcpus", "memory_mib", "mac", "missing", "stale", "protected"]


@pytest.mark.parametrize(
    ("line", "method", "asked"),
    [
        ("job list", "job_list", {"all": False}),
        ("job list --all", "job_list", {"all": True}),
        ("alien list --host h1", "alien_list", {"host": "h1"}),
        ("event list", "event_list", {"object": None, "kind": None, "limit": 100}),
        (
            "event list --object web-1 --kind host --limit 5",
            "event_list",
            {"object": "web-1", "kind": "host", "limit": 5},
        ),
        ("vm history web-1", "vm_history", {"vm": "web-1", "since": None, "limit": 1000}),
        (
            "vm history web-1 --since 2h --limit 7",
            "vm_history",
            {"vm": "web-1", "since": "2h", "limit": 7},
        ),
        (
            "host history h1 --since 2026-11-20T12:00:00Z",
            "host_history",
            {"host": "h1", "since": "2026-11-20T12:00:00Z", "limit": 1000},
        ),
        ("tombstone list", "tombstone_list", {"state": None}),
        ("tombstone list --state closed", "tombstone_list", {"state": "CLOSED"}),
        ("address list", "address_list", {"network": None, "vm": None}),
        (
            "address list --network lan --vm web-1",
            "address_list",
            {"network": "lan", "vm": "web-1"},
        ),
        ("cleanup list", "cleanup_list", {"all": False}),
        ("cleanup list --all", "cleanup_list", {"all": True}),
        ("tombstone list --state open", "tombstone_list", {"state": "OPEN"}),
    ],
)
def test_listings_ask_with_their_filters(
    fleet: Fleet, line: str, method: str, asked: dict[str, Any]
) -> None:
    fleet.answers[method] = {}
    assert fleet.muster(*line.split()).code == 0
    assert fleet.asked == [(method, asked)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--since yesterday", "since: 'yesterday' is no time"),
        ("--since 9w", "since: '9w' is no time"),
        ("--limit 0", "limit: '0' is not possible"),
        ("--limit 1001", "limit: '1001' is not possible"),
    ],
)
def test_a_wrong_word_about_a_history_asks_nothing(fleet: Fleet, options: str, said: str) -> None:
    done = fleet.typed(f"vm history web-1 {options}")
    assert (done.code, fleet.asked) == (2, [])
    assert said in done.err


def test_a_history_is_a_timeline_with_its_notices(fleet: Fleet) -> None:
    line = {"at": "2026-11-20T12:00:00Z", "source": "ann", "what": "job.accepted", "detail": "x"}
    fleet.answers["vm_history"] = {"history": [line], "notices": ["only the newest are shown"]}
    done = fleet.typed("vm history web-1 -f json")
    assert (done.json, done.err) == ([line], "notice: only the newest are shown\n")


def test_show_prints_all_that_the_manager_knows(fleet: Fleet) -> None:
    fleet.answers["vm_show"] = VM
    assert fleet.muster("vm", "show", "web-1", "-f", "json").json == VM
    assert fleet.muster("vm", "show", "web-1", "-f", "value", "-c", "mac").out == f"{VM['mac']}\n"
    assert '"[{""size_gib"": 1}]"' in fleet.muster("vm", "show", "web-1", "-f", "csv").out
    assert fleet.asked[0] == ("vm_show", {"vm": "web-1"})


def test_host_show_asks_for_the_host(fleet: Fleet) -> None:
    fleet.answers["host_show"] = {"name": "h1", "reason": "no heartbeat for 61 s"}
    shown = fleet.muster("host", "show", "h1", "-f", "json").json
    assert shown["reason"] == "no heartbeat for 61 s"
    assert fleet.asked == [("host_show", {"host": "h1"})]


def test_job_show_tells_the_whole_life(fleet: Fleet) -> None:
    at = "2026-11-02T10:00:00Z"
    job = {
        **DONE,
        "unconfirmed": False,
        "steps": [
            {
                "name": "terminate_instance on h1",
                "host": "h1",
                "state": "SUCCEEDED",
                "started_at": at,
                "ended_at": "2026-11-02T10:00:04Z",
                "detail": "destroyed",
            },
            {"name": "release", "host": None, "state": "PENDING"},
        ],
        "receipts": [
            {
                "command": "c-1",
                "kind": "terminate_instance",
                "host": "h1",
                "generation": 4,
                "state": "RECEIVED",
                "accepted_at": at,
                "published_at": at,
                "received_at": at,
                "started_at": None,
                "ended_at": None,
            }
        ],
        "reason": [["ada@desk", "no longer used", at]],
        "error_code": None,
        "error": None,
        "age_s": 4.0,
    }
    fleet.answers["job_show"] = job
    shown = fleet.muster("job", "show", JOB["uuid"], "-f", "json").json
    assert shown == job
    assert " ".join(shown) == (
        "uuid kind instance host state unconfirmed waiting_for steps receipts reason"
        " error_code error age_s"
    )
    table = fleet.muster("job", "show", JOB["uuid"]).out
    for line in (
        f"{at} terminate_instance on h1: SUCCEEDED until 2026-11-02T10:00:04Z - destroyed",
        "(not begun) release: PENDING",
        "terminate_instance to h1, generation 4: RECEIVED (c-1)",
        f"  {at} published",
        f"{at} ada@desk: no longer used",
    ):
        assert line in table


def test_a_step_tells_of_each_host_and_how_long_its_parts_took(fleet: Fleet) -> None:
    step = {
        "name": "place",
        "state": "SUCCEEDED",
        "hosts": {"h1": "has 24 MiB", "h2": "chosen"},
        "phases": [["fetch", 3.25], ["boot", 0.5]],
    }
    fleet.answers["job_show"] = {**DONE, "steps": [step]}
    table = fleet.typed(f"job show {JOB['uuid']}").out
    for line in ("place: SUCCEEDED", "  h1: has 24 MiB", "  h2: chosen", "fetch 3.2 s, boot 0.5 s"):
        assert line in table
    (shown,) = fleet.typed(f"job show {JOB['uuid']} -f json -c steps").json["steps"]
    assert shown == step


def test_vm_create_asks_for_what_was_said(fleet: Fleet) -> None:
    fleet.answers["vm_create"] = JOB
    done = fleet.typed(
        "vm create web-1 --vcpus 2 --memory 512 --disk 10 --disk /i/root.qcow2 --host h1"
        " --kernel /k --initrd /i --cmdline 'console=ttyS0 quiet' -f json"
    )
    assert done.code == 0
    assert done.json == JOB
    ((method, asked),) = fleet.asked
    assert method == "vm_create"
    assert len(asked.pop("job")) == 36
    assert "@" in asked.pop("operator")
    assert asked == {
        "name": "web-1",
        "vcpus": 2,
        "memory_mib": 512,
        "disks": [{"size_gib": 10}, {"path": "/i/root.qcow2"}],
        "kernel": "/k",
        "initrd": "/i",
        "cmdline": "console=ttyS0 quiet",
        "host": "h1",
        "reason": None,
    }


MADE_FROM = [
    ("--offering small", {"offering": "small"}),
    ("--vcpus 1 --memory 64", {"vcpus": 1, "memory_mib": 64}),
    (
        "--offering custom --vcpus 3 --template debian --full-copy --root-disk 20",
        {
            "offering": "custom",
            "vcpus": 3,
            "template": "debian",
            "full_copy": True,
            "root_gib": 20,
        },
    ),
    (
        "--offering s --data-disk 5 --data-disk fast --data-disk open:7",
        {
            "offering": "s",
            "data_disks": [
                {"size_gib": 5},
                {"offering": "fast"},
                {"offering": "open", "size_gib": 7},
            ],
        },
    ),
    (
        "--offering s --zone z1 --network a,address=10.0.0.9,default --network b,address6=fd00::9",
        {
            "offering": "s",
            "zone": "z1",
            "networks": [
                {"network": "a", "address": "10.0.0.9", "default": True},
                {"network": "b", "address6": "fd00::9"},
            ],
        },
    ),
    (
        "--offering s --security-group web --security-group ssh --affinity-group apart"
        " --ssh-key ann --ssh-key bob --project p --hostname www",
        {
            "offering": "s",
            "security_groups": ["web", "ssh"],
            "affinity_groups": ["apart"],
            "ssh_keys": ["ann", "bob"],
            "project": "p",
            "hostname": "www",
        },
    ),
    (
        "--offering s --pod p1 --cluster c1 --host h1 --pool fast --order first-fit"
        " --cpu-overcommit 2.5 --memory-overcommit 1",
        {
            "offering": "s",
            "pod": "p1",
            "cluster": "c1",
            "host": "h1",
            "pool": "fast",
            "order": "first_fit",
            "cpu_overcommit": 2.5,
            "memory_overcommit": 1.0,
        },
    ),
    (
        "--offering s --user-data hello --no-start",
        {"offering": "s", "user_data_name": "hello", "start": False},
    ),
]


@pytest.mark.parametrize(("options", "asked"), MADE_FROM)
def test_only_what_was_said_of_a_new_vm_is_asked(
    fleet: Fleet, options: str, asked: dict[str, Any]
) -> None:
    fleet.answers["vm_create"] = JOB
    assert fleet.typed(f"vm create web-1 {options}").code == 0
    ((_, sent),) = fleet.asked
    assert {k: v for k, v in sent.items() if k not in ("job", "operator", "reason")} == {
        "name": "web-1",
        **asked,
    }


def test_user_data_is_read_from_a_file_here(fleet: Fleet, tmp_path: Path) -> None:
    fleet.answers["vm_create"] = JOB
    file = tmp_path / "init.yaml"
    file.write_text("#cloud-config\n")
    line = f"vm create web-1 --offering s --user-data-file {file}"
    assert fleet.typed(line).code == 0
    assert fleet.asked[0][1]["user_data"] == "#cloud-config\n"
    file.write_bytes(b"\xff\xfe")
    done = fleet.typed(line)
    assert (done.code, len(fleet.asked)) == (2, 1)
    assert "user_data:" in done.err
    assert "no UTF-8 text" in done.err
    file.write_text("x" * (64 * 1024 + 1))
    assert "at most 65536" in fleet.typed(line).err
    file.unlink()
    assert "No such file" in fleet.typed(line).err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--network ''", "networks:"),
        ("--network a,address=", "networks: 'address='"),
        ("--network a,mtu=9000", "networks: 'mtu=9000'"),
        ("--data-disk fast:0", "data_disks: '0'"),
        ("--data-disk :5", "data_disks:"),
        ("--root-disk 0", "root_gib: '0'"),
        ("--cpu-overcommit 0", "cpu_overcommit: '0'"),
        ("--memory-overcommit nan", "memory_overcommit: 'nan'"),
        ("--order random", "--order"),
        ("--user-data a --user-data-file b", "user"),
    ],
)
def test_a_wrong_word_about_a_new_vm_asks_nothing(fleet: Fleet, options: str, said: str) -> None:
    done = fleet.typed(f"vm create web-1 --offering s {options}")
    assert (done.code, fleet.asked) == (2, [])
    assert said in done.err
    assert done.err.count("\n") == 1


def test_every_wrong_field_of_a_create_is_told_at_once(fleet: Fleet) -> None:
    done = fleet.typed("vm create 'bad name!' --vcpus 0 --memory 7 --data-disk 0 --disk x")
    assert (done.code, fleet.asked) == (2, [])
    fields = [
        line.removeprefix("muster: BAD_REQUEST: ").split(":")[0] for line in done.err.splitlines()
    ]
    assert fields == ["name", "vcpus", "memory_mib", "data_disks", "disk"]


def test_a_dry_run_of_a_create_says_why_of_each_host(fleet: Fleet) -> None:
    plan = [
        {"host": "h1", "decision": "chosen", "reason": "most free memory"},
        {"host": "h2", "decision": "left out", "reason": "is disabled"},
    ]
    fleet.answers["vm_create"] = {"decisions": plan, "host": "h1"}
    done = fleet.typed("vm create web-1 --offering s --dry-run -f json")
    assert (done.code, done.json) == (0, plan)
    assert done.err == "notice: it would be made on h1\n"
    assert fleet.asked[0][1]["dry_run"] is True
    fleet.answers["vm_create"] = {"decisions": [], "host": None}
    none = fleet.typed("vm create web-1 --offering s --dry-run")
    assert (none.code, "no host can take it" in none.err) == (4, True)


@pytest.mark.parametrize(
    ("line", "method", "asked"),
    [
        ("vm start web-1", "vm_start", {}),
        ("vm stop web-1", "vm_stop", {"force": False}),
        ("vm stop web-1 --force", "vm_stop", {"force": True}),
        ("vm reboot web-1 --force", "vm_reboot", {"force": True}),
        ("vm pause web-1", "vm_pause", {}),
        ("vm unpause web-1", "vm_unpause", {}),
        ("vm suspend web-1", "vm_suspend", {}),
        ("vm resume web-1", "vm_resume", {}),
        ("vm shelve web-1", "vm_shelve", {"offload": False}),
        ("vm shelve web-1 --offload", "vm_shelve", {"offload": True}),
        ("vm unshelve web-1", "vm_unshelve", {}),
        (
            "vm resize web-1 --offering large --root-gib 8",
            "vm_resize",
            {"offering": "large", "vcpus": None, "memory_mib": None, "root_gib": 8},
        ),
        (
            "vm resize web-1 --vcpus 2 --memory-mib 512",
            "vm_resize",
            {"offering": None, "vcpus": 2, "memory_mib": 512, "root_gib": None},
        ),
        ("vm confirm-resize web-1", "vm_confirm_resize", {}),
        ("vm revert-resize web-1", "vm_revert_resize", {}),
        ("vm set web-1 --protected", "vm_set", {"protected": True}),
        ("vm set web-1 --unprotected", "vm_set", {"protected": False}),
        ("vm set-state web-1 error", "vm_set_state", {"vm_state": "ERROR"}),
        (
            "vm delete web-1 --force --idempotent",
            "vm_delete",
            {"force": True, "soft": False, "idempotent": True, "dry_run": False},
        ),
        (
            "vm delete web-1 --soft",
            "vm_delete",
            {"force": False, "soft": True, "idempotent": False, "dry_run": False},
        ),
        ("vm restore web-1", "vm_restore", {}),
    ],
)
def test_a_verb_prints_its_job_and_returns(
    fleet: Fleet, line: str, method: str, asked: dict[str, Any]
) -> None:
    fleet.answers[method] = JOB
    job = "0e8f3f0a-0000-4000-8000-00000000000a"
    done = fleet.muster(*line.split(), "--reason", "tidying up", "--job", job, "-f", "json")
    assert (done.code, done.err) == (0, "")
    assert list(done.json) == ["uuid", "kind", "instance", "host", "state", "waiting_for"]
    ((called, kwargs),) = fleet.asked
    assert called == method
    assert kwargs.pop("operator")
    assert kwargs == {"job": job, "vm": "web-1", "reason": "tidying up", **asked}


def test_a_dry_run_of_delete_lists_the_decisions(fleet: Fleet) -> None:
    fleet.answers["vm_delete"] = {"decisions": DECISIONS}
    done = fleet.typed("vm delete web-1 --dry-run -f json")
    assert done.json == DECISIONS
    assert fleet.asked[0][1]["dry_run"] is True


VERBS = ("enable", "disable", "set-down", "unset-down", "fence", "unfence", "delete")


@pytest.mark.parametrize("verb", VERBS)
def test_a_dry_run_of_a_host_verb_lists_the_decisions(fleet: Fleet, verb: str) -> None:
    method = f"host_{verb.replace('-', '_')}"
    fleet.answers[method] = {"host": {"name": "h1"}, "decisions": DECISIONS}
    done = fleet.muster("host", verb, "h1", "--reason", "burnt", "--dry-run", "-f", "json")
    assert done.json == DECISIONS
    assert fleet.asked[0][1]["dry_run"] is True


@pytest.mark.parametrize("verb", VERBS)
def test_a_host_verb_prints_the_host(fleet: Fleet, verb: str) -> None:
    method = f"host_{verb.replace('-', '_')}"
    fleet.answers[method] = {"host": {"name": "h1", "enabled": True}, "decisions": DECISIONS}
    done = fleet.muster("host", verb, "h1", "--reason", "rack moved", "-f", "json")
    assert done.code == 0
    assert done.err == "notice: web-1 on h1: DB-only, because h1 is DOWN\n"
    assert list(done.json) == LISTINGS["host list"][1].split()
    ((called, kwargs),) = fleet.asked
    assert called == method
    assert (kwargs["host"], kwargs["reason"]) == ("h1", "rack moved")
    assert "@" in kwargs["operator"]


@pytest.mark.parametrize("switch", ["on", "off"])
def test_maintenance_is_switched_on_and_off(fleet: Fleet, switch: str) -> None:
    fleet.answers["host_maintenance"] = {"host": {"name": "h1"}, "decisions": []}
    done = fleet.muster("host", "maintenance", "h1", switch, "--reason", "new fans")
    assert (done.code, done.err) == (0, "")
    ((called, kwargs),) = fleet.asked
    assert called == "host_maintenance"
    assert (kwargs["host"], kwargs["on"], kwargs["reason"]) == ("h1", switch == "on", "new fans")
    assert fleet.muster("host", "maintenance", "h1", "perhaps").code == 2


def test_freeze_needs_a_reason_and_unfreeze_does_not(fleet: Fleet) -> None:
    frozen = {"frozen": True, "since": "2026-11-20T12:00:00Z", "operator": "ann", "reason": "why"}
    fleet.answers["freeze"], fleet.answers["unfreeze"] = frozen, {"frozen": False}
    assert fleet.muster("freeze").code == 2
    done = fleet.muster("freeze", "--reason", "why", "-f", "json")
    assert (done.code, done.json) == (0, frozen)
    assert fleet.muster("unfreeze", "-f", "value", "-c", "frozen").out.strip() == "False"
    assert [(method, asked["reason"]) for method, asked in fleet.asked] == [
        ("freeze", "why"),
        ("unfreeze", None),
    ]


def test_forgetting_a_tombstone_needs_a_reason_and_shows_it(fleet: Fleet) -> None:
    uuid = "0e8f3f0a-0000-4000-8000-0000000000aa"
    stone = {"uuid": uuid, "name": "web-1", "state": "OPEN", "holds": []}
    fleet.answers["tombstone_forget"] = stone
    assert fleet.muster("tombstone", "forget", uuid).code == 2
    assert fleet.muster("tombstone", "forget", "42", "--reason", "scrapped").code == 2
    assert fleet.asked == []
    done = fleet.muster("tombstone", "forget", uuid, "--reason", "scrapped", "-f", "json")
    assert (done.code, done.json["holds"]) == (0, [])
    ((called, kwargs),) = fleet.asked
    assert called == "tombstone_forget"
    assert (kwargs["tombstone"], kwargs["reason"]) == (uuid, "scrapped")


def test_tombstone_show_prints_all_that_is_known(fleet: Fleet) -> None:
    uuid = "0e8f3f0a-0000-4000-8000-0000000000aa"
    fleet.answers["tombstone_show"] = {"uuid": uuid, "quarantined": ["0a:4d:75:00:00:01"]}
    shown = fleet.muster("tombstone", "show", uuid, "-f", "json").json
    assert shown["quarantined"] == ["0a:4d:75:00:00:01"]
    assert fleet.asked == [("tombstone_show", {"tombstone": uuid})]


@pytest.mark.parametrize("verb", ["retry", "forget"])
def test_a_clean_up_item_is_retried_and_with_a_reason_forgotten(fleet: Fleet, verb: str) -> None:
    uuid = "0e8f3f0a-0000-4000-8000-0000000000aa"
    fleet.answers[f"cleanup_{verb}"] = {"uuid": uuid, "name": "web-1", "state": "OPEN"}
    bare = fleet.muster("cleanup", verb, uuid).code
    assert bare == (2 if verb == "forget" else 0)
    done = fleet.muster("cleanup", verb, uuid, "--reason", "scrapped", "-f", "json")
    assert (done.code, done.json["name"]) == (0, "web-1")
    called, kwargs = fleet.asked[-1]
    assert called == f"cleanup_{verb}"
    assert (kwargs["cleanup"], kwargs["reason"]) == (uuid, "scrapped")


def test_cleanup_show_prints_all_that_is_known(fleet: Fleet) -> None:
    uuid = "0e8f3f0a-0000-4000-8000-0000000000aa"
    fleet.answers["cleanup_show"] = {"uuid": uuid, "waits_for": "h1 to say hello"}
    shown = fleet.muster("cleanup", "show", uuid, "-f", "json").json
    assert shown["waits_for"] == "h1 to say hello"
    assert fleet.asked == [("cleanup_show", {"cleanup": uuid})]


def test_doctor_fails_only_when_there_is_an_error(fleet: Fleet) -> None:
    warning = {"code": "W", "level": "WARNING", "object": "h1", "message": "m", "remedy": "r"}
    fleet.answers["doctor"] = {"findings": [warning]}
    assert fleet.muster("doctor").code == 0
    fleet.answers["doctor"] = {"findings": [warning, {**warning, "level": "ERROR"}]}
    done = fleet.muster("doctor", "-f", "json")
    assert done.code == 1
    assert [finding["level"] for finding in done.json] == ["WARNING", "ERROR"]


def test_job_cancel_sends_the_reason_and_exits_0_unless_the_job_went_on_to_its_end(
    fleet: Fleet,
) -> None:
    job = {
        "uuid": JOB["uuid"],
        "kind": "stop",
        "instance": "i-1",
        "host": "h1",
        "state": "CANCELLED",
    }
    fleet.answers["job_cancel"] = {**job, "error_code": "CANCELLED"}
    done = fleet.muster("job", "cancel", JOB["uuid"], "--reason", "a mistake")
    assert done.code == 0, done.err
    (asked,) = fleet.asked
    assert asked[0] == "job_cancel"
    assert (asked[1]["job"], asked[1]["reason"]) == (JOB["uuid"], "a mistake")
    fleet.answers["job_cancel"] = {**job, "state": "RUNNING", "waiting_for": "h1 to say"}
    assert fleet.muster("job", "cancel", JOB["uuid"]).code == 0
    fleet.answers["job_show"] = {**job, "state": "SUCCEEDED"}
    late = fleet.muster("job", "cancel", JOB["uuid"], "--wait")
    assert late.code == 4
    assert "it ended SUCCEEDED" in late.err


def test_accept_restore_needs_a_reason_and_lists_the_open_tombstones(fleet: Fleet) -> None:
    stone = {"uuid": "t-1", "name": "web-1", "instance": "i-1", "host": "h1", "state": "OPEN"}
    fleet.answers["db_accept_restore"] = {
        "hosts": ["h1"],
        "not_compared": [],
        "raised": {"i-1": 4},
        "open_jobs": 0,
        "tombstones": [stone],
    }
    assert fleet.muster("db", "accept-restore").code == 2
    done = fleet.muster("db", "accept-restore", "--reason", "disk died", "-f", "json")
    assert done.code == 0, done.err
    assert [row["uuid"] for row in done.json] == ["t-1"]
    assert done.err == "notice: accepted for h1; 1 VM got a higher generation\n"


def test_accept_restore_tells_of_hosts_that_were_not_compared_and_of_jobs_that_go_on(
    fleet: Fleet,
) -> None:
    fleet.answers["db_accept_restore"] = {
        "hosts": ["h1"],
        "not_compared": ["h2", "h3"],
        "raised": {},
        "open_jobs": 2,
        "tombstones": [],
    }
    said = fleet.muster("db", "accept-restore", "--reason", "disk died").err
    assert "not compared: h2, h3 (" in said
    assert "2 open jobs of the backup will go on: muster job list" in said

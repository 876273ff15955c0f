"""`muster zone create` and its like: from the operator's words to the managers' answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import inspect

from client import options
from common import fields
from common.conf import Settings, database
from common.model import NOUNS, Kind
from manager.api.endpoint import Api
from manager.store.engine import Store, create_all
from tests.functional import fakemanager
from tests.functional.fleet import Clock
from tests.nouns import KEY, WHOLE, WORLD

SAMPLE = Path(__file__).parents[2] / "etc" / "muster" / "zone.yaml.sample"
VERBS = ("list", "show", "create", "set", "delete")


class Fleet(fakemanager.Fleet):
    """The door of a real manager on a store in memory, asked through the operator's command."""

    def __post_init__(self) -> None:
        store = Store(database.Database(connection="sqlite://"), Clock())
        create_all(store)
        self.api = Api(store, Settings())
        super().__post_init__()

    def _answer(self, method: str, kwargs: dict[str, Any]) -> Any:
        self.asked.append((method, kwargs))
        return self.api(method, kwargs)


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    fleet = Fleet()
    fleet.api("model_apply", {"objects": WORLD})
    yield fleet
    fleet.close()


def words(kind: Kind, spec: dict[str, Any], folder: Path) -> list[str]:
    """The options that say a noun's fields."""
    said: list[str] = []
    for name, value in spec.items():
        option = options.OPTIONS.get((kind, name), f"--{name.replace('_', '-')}")
        if isinstance(value, bool):
            said.append(option if value else option.replace("--", "--no-"))
        elif name == "rules":
            for rule in value:
                ports = f"{rule['port_first']}-{rule['port_last']}"
                said += [
                    option,
                    f"direction={rule['direction']},protocol={rule['protocol']},ports={ports},"
                    f"cidr={rule['cidr']}",
                ]
        elif isinstance(value, list):
            said += [option, ",".join(value)]
        elif option.endswith("file"):
            file = folder / name
            file.write_text(value)
            said += [option, str(file)]
        else:
            said += [option, "" if value is None else str(value)]
    return said


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.HOST])
def test_every_field_of_every_noun_can_be_said(fleet: Fleet, kind: Kind, tmp_path: Path) -> None:
    said = words(kind, WHOLE[kind], tmp_path)
    made = fleet.muster(kind.noun, "create", "new", *said, "-f", "json")
    assert (made.code, made.err) == (0, "")
    assert {key: made.json[key] for key in WHOLE[kind]} == WHOLE[kind]
    shown = fleet.muster(kind.noun, "show", "new", "-f", "json").json
    assert list(shown) == ["name", *WHOLE[kind], "created_at", "changed_at"]
    assert {key: shown[key] for key in made.json} == made.json
    listed = fleet.muster(kind.noun, "list", "--long", "-f", "json").json
    assert made.json in listed
    again = fleet.muster(kind.noun, "set", "new", *said, "-f", "json")
    assert (again.code, again.json) == (0, made.json)
    assert again.err == "notice: nothing had to be changed\n"
    gone = fleet.muster(kind.noun, "delete", "new", "-f", "json")
    assert (gone.code, gone.json) == (0, {"kind": kind, "name": "new", "action": "delete"})
    assert fleet.muster(kind.noun, "show", "new").code == 3


def test_fields_that_were_not_said_have_their_defaults(fleet: Fleet) -> None:
    made = fleet.typed("zone create z2 -f json").json
    assert {k: made[k] for k in fields.defaults(NOUNS[Kind.ZONE])} == fields.defaults(
        NOUNS[Kind.ZONE]
    )


def test_a_set_tells_what_it_changes(fleet: Fleet) -> None:
    done = fleet.typed("zone set z1 --domain a.org --no-enabled --reason moving -f json")
    assert (done.code, done.json["enabled"]) == (0, False)
    assert done.err == "notice: enabled: true -> false; domain: null -> 'a.org'\n"
    assert fleet.asked[-1][1]["reason"] == "moving"


def test_an_empty_value_unsets_a_field(fleet: Fleet) -> None:
    fleet.typed("zone set z1 --domain a.org --project shop")
    done = fleet.typed("zone set z1 --domain '' --project '' -f json").json
    assert (done["domain"], done["project"]) == (None, None)
    fleet.typed("host set h1 --tags a --tags b,c")
    assert fleet.api("model_show", {"kind": "host", "name": "h1"})["tags"] == ["a", "b", "c"]
    assert fleet.typed("host set h1 --tags '' -f json").json["tags"] == []


def test_a_set_of_nothing_is_refused(fleet: Fleet) -> None:
    done = fleet.typed("zone set z1")
    assert (done.code, done.err[:14]) == (2, "muster: USAGE:")


def test_a_host_is_placed_by_name(fleet: Fleet) -> None:
    done = fleet.typed("host set h9 --cluster c1 --tags ssd -f json")
    assert (done.code, done.json["cluster"], done.json["tags"]) == (0, "c1", ["ssd"])


def test_a_host_is_taken_out_of_its_cluster(fleet: Fleet) -> None:
    fleet.typed("host set h9 --cluster c1")
    done = fleet.typed("host set h9 --no-cluster -f json")
    assert (done.code, done.json["cluster"]) == (0, None)
    assert "h9 is in no cluster any more" in done.err
    assert fleet.typed("host set h9 --tags ssd").code != 0, "its tags went with it"


def test_all_wrong_fields_are_told_a_line_each(fleet: Fleet) -> None:
    done = fleet.typed(
        "network create n2 --zone nowhere --kind vlan --backend ovs --source o --vlan 5000"
        " --cidr 10.4.0.0/24 --gateway 10.5.0.1 --first x"
    )
    assert (done.code, done.out) == (2, "")
    lines = done.err.splitlines()
    assert [line.split(":")[2].strip() for line in lines] == ["vlan", "gateway", "first", "zone"]
    assert all(line.startswith("muster: BAD_REQUEST: ") for line in lines)
    assert lines[0].endswith("vlan: 5000 is not possible (give a whole number from 1 to 4094)")
    assert lines[3].endswith("zone: no zone nowhere (muster zone list shows all)")


def test_a_single_wrong_field_is_one_line(fleet: Fleet) -> None:
    done = fleet.typed("pod create p2")
    assert (done.code, done.err) == (
        2,
        "muster: BAD_REQUEST: zone: missing (give the name of a zone)\n",
    )


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("zone create z1", 4, "NAME_TAKEN: there is a zone z1 already"),
        ("zone delete z1", 4, "IN_USE: zone z1 is used by network n1, pod p1"),
        ("zone delete z9", 3, "NOT_FOUND: no zone z9"),
        ("zone show z9", 3, "NOT_FOUND: no zone z9"),
        ("zone set z9 --enabled", 3, "NOT_FOUND: no zone z9"),
        ("zone create", 2, "NAME"),
        ("zone create ''", 2, "name: is empty"),
        ("zone create 'a b'", 2, "name: 'a b' is no name"),
        ("zone create z2 --kind round", 2, "kind: 'round' is not possible (give one of basic,"),
        ("cluster create c2 --pod p1 --cpu-overcommit lots", 2, "cpu_overcommit: 'lots'"),
        ("offering create o --vcpus two", 2, "vcpus: 'two' is not possible"),
        ("offering create o --vcpus 1.5", 2, "vcpus: '1.5' is not possible"),
        ("template create t --image-format qcow3 --url file:///a", 2, "sha256: missing"),
        ("security-group create s --rule tcp", 2, "rules: 'tcp' is not possible"),
        ("security-group create s --rule ports=a", 2, "rules: 'a' is not possible"),
        ("security-group create s --rule protocol=gre", 2, "rules[0].protocol: 'gre'"),
        ("ssh-key create k --public-key-file /nowhere", 2, "No such file"),
        ("host create h2 --cluster c1", 2, "'host create' is not a muster command"),
        ("zone list -c colour", 2, "colour"),
    ],
)
def test_what_can_not_be_done_is_told_with_its_code(
    fleet: Fleet, line: str, code: int, said: str
) -> None:
    done = fleet.typed(line)
    assert (done.code, done.out) == (code, "")
    assert said in done.err


def test_rules_are_said_one_by_one(fleet: Fleet) -> None:
    made = fleet.typed(
        "security-group create web --rule protocol=tcp,ports=80 --rule protocol=icmp"
        " --rule direction=egress,protocol=udp,ports=53-54,cidr=10.0.0.0/8 -f json"
    ).json
    assert [(r["protocol"], r["port_first"], r["port_last"]) for r in made["rules"]] == [
        ("tcp", 80, 80),
        ("icmp", None, None),
        ("udp", 53, 54),
    ]
    assert fleet.typed("security-group set web --rule '' -f json").json["rules"] == []


def test_a_key_file_is_read_here(fleet: Fleet, tmp_path: Path) -> None:
    file = tmp_path / "id.pub"
    file.write_text(f"ssh-ed25519 {KEY} ann@desk\n")
    made = fleet.muster("ssh-key", "create", "ann", "--public-key-file", str(file), "-f", "json")
    assert made.json["public_key"] == f"ssh-ed25519 {KEY} ann@desk"
    assert list(fleet.typed("ssh-key list -f json").json[0]) == ["name", "project"]


@pytest.mark.parametrize("kind", Kind)
def test_help_tells_of_every_field(fleet: Fleet, kind: Kind) -> None:
    verb = "set" if kind is Kind.HOST else "create"
    told = fleet.muster("help", kind.noun, verb).out
    for name, type_ in fields.types(NOUNS[kind]).items():
        assert options.OPTIONS.get((kind, name), f"--{name.replace('_', '-')}") in told
        if isinstance(type_, inspect.EnumType):
            assert "|".join(member.value for member in type_.cls) in told


def test_a_change_that_is_asked_again_is_one_request(fleet: Fleet) -> None:
    """The manager has done it, and its answer is lost."""
    answer, lost = fleet.api, []

    def losing(method: str, kwargs: dict[str, Any]) -> Any:
        done = answer(method, kwargs)
        if not lost:
            lost.append(kwargs["request"])
            fleet.stop()
            fleet.clock.at(fleet.clock.slept + 0.5, fleet.start)
        return done

    fleet.api = losing  # type: ignore[assignment]
    made = fleet.typed("zone create z2 -f json")
    assert (made.code, made.json["name"]) == (0, "z2")
    assert {kwargs["request"] for _, kwargs in fleet.asked} == set(lost)


# apply


def applied(fleet: Fleet, tmp_path: Path, text: str, *more: str) -> fakemanager.Ran:
    file = tmp_path / "zone.yaml"
    file.write_text(text)
    return fleet.muster("apply", str(file), *more)


def test_the_sample_is_applied_and_a_second_time_changes_nothing(fleet: Fleet) -> None:
    fleet.typed("project delete shop")
    dry = fleet.muster("apply", str(SAMPLE), "--dry-run", "-f", "json")
    assert (dry.code, {one["action"] for one in dry.json}) == (0, {"create"})
    assert "dry run" in dry.err
    assert list(dry.json[0]) == ["kind", "name", "action", "changes"]
    first = fleet.muster("apply", str(SAMPLE), "-f", "json")
    assert (first.code, first.json) == (0, dry.json)
    again = fleet.muster("apply", str(SAMPLE), "-f", "json")
    assert (again.code, {one["action"] for one in again.json}) == (0, {"none"})
    assert fleet.typed("zone show north -f json").json["domain"] == "north.example.org"


def test_what_differs_is_told_in_a_line(fleet: Fleet, tmp_path: Path) -> None:
    text = "zones:\n- {name: z1, enabled: no, domain: a.org}\n"
    done = applied(fleet, tmp_path, text, "--reason", "moving")
    assert (done.code, done.err) == (0, "")
    assert "enabled: true -> false; domain: null -> 'a.org'" in done.out
    assert fleet.asked[-1][1]["reason"] == "moving"


def test_all_that_is_wrong_with_a_file_is_told_a_line_each(fleet: Fleet, tmp_path: Path) -> None:
    text = "zones:\n- {name: z2, kind: round}\npods:\n- {name: p2, zone: z9}\nracks: []\n"
    done = applied(fleet, tmp_path, text)
    assert (done.code, done.out) == (2, "")
    assert [line.split(": ")[2] for line in done.err.splitlines()] == [
        "racks",
        "zones[0].kind",
        "pods[0].zone",
    ]


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("zones:\n- name: z2\n  kind: [", "line 3, column 10"),
        ("zones:\n  - name: z2\n - x", "line 3, column 2"),
        ("zones: []\npods: []\nzones: []\n", "line 3, column 1: 'zones' is there twice"),
        ("zones:\n- {name: z2, name: z3}\n", "line 2, column 14: 'name' is there twice"),
        ("zones: !!python/object/apply:os.getcwd []", "line 1, column 8"),
        ("zones: *nothing", "line 1, column 8"),
        ("zones: \x01", "zone.yaml"),
        ("", "holds no nouns"),
        ("- zones", "holds no nouns"),
        ("a: &a [*a]", "its aliases"),
        (BOMB, "its aliases"),
        ("? [a]\n: b", "line 1, column 3: found unhashable key"),
        ("[" * 5000, "recursion"),
        ("user_data:\n- {name: u, data: '" + "x" * 2**20 + "'}", "split it into files"),
        ('user_data:\n- {name: u, data: "\\ud800"}', "no text"),
    ],
    ids=lambda value: f"{value!r:.40}",
)
def test_bad_yaml_is_told_with_its_place(
    fleet: Fleet, tmp_path: Path, text: str, said: str
) -> None:
    done = applied(fleet, tmp_path, text)
    assert (done.code, done.out, fleet.asked) == (2, "", [])
    assert done.err.count("\n") == 1
    assert said in done.err


def test_a_file_that_is_not_there_or_no_text_is_told(fleet: Fleet, tmp_path: Path) -> None:
    done = fleet.muster("apply", str(tmp_path / "none.yaml"))
    assert (done.code, "No such file" in done.err) == (2, True)
    file = tmp_path / "zone.yaml"
    file.write_bytes(b"\xff\xfe\xff")
    done = fleet.muster("apply", str(file))
    assert (done.code, "UTF-8" in done.err) == (2, True)


def test_aliases_and_merges_can_be_used(fleet: Fleet, tmp_path: Path) -> None:
    text = "zones:\n- &z {name: z2, domain: a.org}\n- <<: *z\n  name: z3\n"
    done = applied(fleet, tmp_path, text, "-f", "json")
    assert [one["name"] for one in done.json] == ["z2", "z3"]
    assert fleet.typed("zone show z3 -f json").json["domain"] == "a.org"


def test_dates_and_numbers_for_names_are_told(fleet: Fleet, tmp_path: Path) -> None:
    text = "zones:\n- {name: 2026-01-01}\n- {name: 5}\n- {name: on}\n"
    done = applied(fleet, tmp_path, text)
    assert (done.code, [line.split(": ")[2] for line in done.err.splitlines()]) == (
        2,
        ["zones[1].name", "zones[2].name"],
    )


# quota


def test_a_quota_is_a_row_for_each_limit(fleet: Fleet) -> None:
    shown = fleet.typed("quota show -f json")
    names = [name for name in NOUNS[Kind.PROJECT].__struct_fields__ if name != "enabled"]
    assert (shown.code, [row["resource"] for row in shown.json]) == (0, names)
    assert {(row["used"], row["limit"]) for row in shown.json} == {(0, None)}
    done = fleet.typed("quota set shop --instances 3 --memory-mib 4096 -f json")
    limits = {row["resource"]: row["limit"] for row in done.json}
    assert (limits["instances"], limits["memory_mib"], limits["vcpus"]) == (3, 4096, None)
    assert fleet.typed("quota show shop -f json").json == done.json
    assert fleet.typed("quota set shop --instances '' -f json").json[0]["limit"] is None


def test_the_default_project_is_limited_without_being_made_first(fleet: Fleet) -> None:
    assert fleet.typed("quota set default --vcpus 8 -f json").json[1]["limit"] == 8
    assert fleet.typed("project show default -f json").json["vcpus"] == 8


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("quota show nobody", 3, "NOT_FOUND: no project nobody"),
        ("quota set nobody --instances 1", 3, "NOT_FOUND: no project nobody"),
        ("quota set shop", 2, "USAGE"),
        ("quota set shop --instances many", 2, "instances: 'many' is not possible"),
        ("quota set shop --instances -1", 2, "instances: -1 is not possible"),
    ],
)
def test_a_quota_that_can_not_be_is_told(fleet: Fleet, line: str, code: int, said: str) -> None:
    done = fleet.typed(line)
    assert (done.code, done.out) == (code, "")
    assert said in done.err

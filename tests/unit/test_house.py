"""What the packaging and the documents promise is there."""

import configparser
import importlib.metadata
import pathlib
import re

import pytest

from common.conf import GROUPS
from devstack import docs, lint

ROOT = pathlib.Path(__file__).resolve().parents[2]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")

OURS = [
    point
    for point in importlib.metadata.distribution("musterd").entry_points
    if not point.group.startswith("oslo")
]


@pytest.mark.parametrize("point", OURS, ids=lambda point: f"{point.group}:{point.name}")
def test_every_entry_point_names_something_that_can_be_imported(point):
    if ".libvirt." in point.value:
        pytest.importorskip("libvirt", reason="libvirt-python is not installed: make deps")
    assert callable(point.load())


def test_the_readme_lists_exactly_the_commands_that_exist():
    readme = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \| (.*?) \|$", readme, re.MULTILINE)
    listed = {
        f"{noun} {verb}".strip()
        for noun, what in rows
        for verb in re.findall(r"`([a-z-]+)`", what) or [""]
    }
    assert listed == {
        point.name.replace("_", " ") for point in OURS if point.group == "muster.commands"
    }


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *ROOT.glob("doc/*.md")], ids=lambda page: page.name
)
def test_every_link_between_documents_leads_somewhere(page):
    for target in LINK.findall(page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


def test_the_guide_explains_every_code_of_the_doctor():
    source = (ROOT / "manager" / "api" / "doctor.py").read_text()
    said = set(re.findall(r'_finding\(\s*"([A-Z_]+)"', source)) | {
        "DUPLICATE",
        "ADDRESS_CONFLICT",
        "GENERATION_AHEAD",
    }
    guide = (ROOT / "doc" / "operating.md").read_text()
    assert said == set(re.findall(r"^\| ([A-Z]+(?:_[A-Z]+)*) \| [A-Z]+ \|", guide, re.MULTILINE))


def test_the_sample_configuration_shows_every_option():
    sample = docs.sample()
    for group in GROUPS:
        section = sample.split(f"[{group.GROUP}]", 1)[1].split("\n[", 1)[0]
        for option in group.OPTIONS:
            assert f"\n#{option.name} =" in section, f"[{group.GROUP}] {option.name}"


def test_systemd_gives_every_daemon_longer_to_stop_than_it_takes():
    for unit in (ROOT / "etc" / "muster").glob("*.service"):
        parsed = configparser.ConfigParser(interpolation=None)
        parsed.read(unit)
        assert parsed.getfloat("Service", "TimeoutStopSec") > 10
        assert parsed.get("Service", "Restart") == "always"
        assert parsed.get("Service", "ExecReload") == "/bin/kill -HUP $MAINPID"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see /home" + "/kim/muster/x.py", True),
        ("cd /root" + "/muster/", True),
        ("/var/lib/muster/agent/journal.db", False),
        ("the work/home balance", False),
    ],
)
def test_machine_paths_are_told_from_installed_ones(text, found):
    assert bool(lint.MACHINE_PATH.search(text)) is found

"""Configuration: what is read, what is refused, and that the refusal says what would do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from common import conf
from common.conf import GROUPS, Settings, check, default, list_opts, load, manager
from common.errors import EXIT_USAGE, BadConfig


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("OS_")]:
        monkeypatch.delenv(name)


def read(folder: Path, text: str) -> Settings:
    file = folder / "muster.conf"
    file.write_text(text)
    return load("muster-manager", ["--config-file", str(file)])


def refusal(folder: Path, text: str) -> BadConfig:
    with pytest.raises(BadConfig) as caught:
        read(folder, text)
    assert caught.value.exit_code == EXIT_USAGE
    return caught.value


def bounded() -> list[tuple[str, str, Any, Any]]:
    found = []
    for group in GROUPS:
        for option in group.OPTIONS:
            low, high = getattr(option.type, "min", None), getattr(option.type, "max", None)
            if low is not None or high is not None:
                found.append((group.GROUP, option.name, low, high))
    return found


def test_a_file_and_the_environment_are_read_the_environment_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OS_MANAGER__SERVICE_DOWN_TIME", "90")
    monkeypatch.setenv("OS_DEFAULT__FLEET_ID", "blue")
    found = read(
        tmp_path,
        "[DEFAULT]\nfleet_id = red\nreport_interval = 5\n"
        "[manager]\nservice_down_time = 30\nsilence_budget = 0.5\n"
        "[database]\nconnection = sqlite:///x.db\n",
    )
    assert found.default.fleet_id == "blue"
    assert found.default.report_interval == 5.0
    assert found.manager.service_down_time == 90.0
    assert found.manager.silence_budget == 0.5
    assert found.database.connection == "sqlite:///x.db"
    assert found.config_files == (str(tmp_path / "muster.conf"),)


def test_the_defaults_agree_with_each_other_and_with_the_tables(tmp_path: Path) -> None:
    found = read(tmp_path, "")
    assert (found.default.report_interval, found.manager.service_down_time) == (10.0, 60.0)
    assert found.manager.silence_budget == pytest.approx(1 / 3)
    assert found.manager.missing_grace == 30.0
    assert found.manager.on_unexpected_running == "accept"
    assert not found.manager.auto_enable_hosts
    assert check(found) == found


@pytest.mark.parametrize(("group", "name", "low", "high"), bounded())
def test_a_value_out_of_its_range_names_the_option_and_the_range(
    tmp_path: Path, group: str, name: str, low: Any, high: Any
) -> None:
    for value in ([low - 1] if low is not None else []) + ([high + 1] if high is not None else []):
        found = refusal(tmp_path, f"[{group}]\n{name} = {value}\n")
        assert name in str(found)
        assert f"from {low} to {high}" in found.remedy


@pytest.mark.parametrize(
    ("group", "name", "value", "remedy"),
    [
        ("DEFAULT", "executor", "fibres", "threading, eventlet"),
        ("manager", "on_unexpected_running", "panic", "accept, stop"),
        ("DEFAULT", "report_interval", "soon", "report_interval"),
        ("DEFAULT", "fleet_id", "no spaces please", "fleet_id"),
        ("manager", "mac_prefix", "01:00:5e", "mac_prefix"),  # a multicast one
    ],
)
def test_a_value_of_the_wrong_kind_names_the_option_and_what_would_do(
    tmp_path: Path, group: str, name: str, value: str, remedy: str
) -> None:
    found = refusal(tmp_path, f"[{group}]\n{name} = {value}\n")
    assert name in str(found)
    assert remedy in found.remedy


@pytest.mark.parametrize(
    ("interval_s", "down_s", "good"),
    [(10.0, 25.0, False), (10.0, 25.1, True), (30.0, 60.0, False), (2.0, 5.0, False)],
)
def test_section2_service_down_time_must_exceed_two_and_a_half_intervals(
    tmp_path: Path, interval_s: float, down_s: float, good: bool
) -> None:
    text = f"[DEFAULT]\nreport_interval = {interval_s}\n[manager]\nservice_down_time = {down_s}\n"
    if good:
        assert read(tmp_path, text).manager.service_down_time == down_s
        return
    found = refusal(tmp_path, text)
    assert "service_down_time" in found.message
    assert "report_interval" in found.message
    if down_s == 25.0:
        assert "25 s" in found.message
        assert "above 25" in found.remedy


def test_settings_made_in_code_are_checked_alike() -> None:
    made = Settings(
        default=default.Default(report_interval=10.0),
        manager=manager.Manager(service_down_time=20.0),
    )
    with pytest.raises(BadConfig, match="service_down_time 20 s must exceed"):
        check(made)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(BadConfig, match=r"/nowhere/muster\.conf"):
        load("muster-agent", ["--config-file", "/nowhere/muster.conf"])


def test_an_option_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises((BadConfig, SystemExit)):
        load("muster-agent", ["--no-such-option", "1"])


def test_every_option_has_help_a_default_and_a_field() -> None:
    for name, options in list_opts():
        group = next(g for g in GROUPS if name == g.GROUP)
        fields = {f.name for f in msgspec.structs.fields(group.SETTINGS)}
        assert {o.name for o in options} == fields
        assert all(o.help for o in options)


def test_every_group_is_in_the_settings() -> None:
    names = {g.__name__.rpartition(".")[2] for g in conf.GROUPS}
    assert names | {"config_files"} == set(Settings.__struct_fields__)

"""Every file in simulation/scenarios plays out as its golden log tells; a file is all it takes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulation import scenario
from simulation.play import act_out, differences, main
from simulation.scenario import BadScenario

NAMES = scenario.names()
TOY = "# A toy\n\nhosts: h1\n\n20s  operator: vm create web-1 on h1\n{line}\n40s  end\n---\n"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The warnings of a disaster are of no interest here."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.CRITICAL)
    yield
    root.setLevel(before)


@pytest.mark.parametrize("name", NAMES)
def test_scenario_plays_out_as_its_golden_log_tells(name: str) -> None:
    play = scenario.load(name)
    assert play.golden, "it has no golden log yet: python -m simulation.play NAME --write"
    assert not (found := differences(play, act_out(play))), "\n".join(found)


def test_log_is_the_same_in_every_process(tmp_path: Path) -> None:
    file = tmp_path / "toy.scenario"
    file.write_text(TOY.format(line="25s  anna: vm delete web-1"))
    logs = [
        subprocess.run(
            [sys.executable, "-m", "simulation.play", "-v", str(file)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=False,
        ).stdout.splitlines()[:-1]
        for seed in ("1", "2")
    ]
    assert "delete SUCCEEDED" in "\n".join(logs[0])
    assert logs[0] == logs[1]


def test_golden_log_is_written_and_then_held_against_what_happens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "toy.scenario"
    file.write_text(TOY.format(line="25s  stranger payroll on h1"))
    assert main([str(file)]) == 1
    assert main([str(file), "--write"]) == 0
    assert main([str(file)]) == 0
    file.write_text(file.read_text().replace("payroll on h1, left alone", "payroll is destroyed"))
    assert main([str(file)]) == 1
    assert "alien VM payroll on h1, left alone\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("25s  make it rain", "toy.scenario:6: nobody knows how to: make it rain"),
        ("soon  kill agent h1", "toy.scenario:6: neither a header nor a timed line"),
        ("25s  kill agent h7", "toy.scenario:6: 'h7' is not there"),
        ("25s  web-2 is paused by hand", "toy.scenario:6: 'web-2' is not there"),
    ],
)
def test_line_that_can_not_be_done_is_named(line: str, words: str) -> None:
    with pytest.raises(BadScenario, match=words):
        act_out(scenario.parse(Path("toy.scenario"), TOY.format(line=line)))

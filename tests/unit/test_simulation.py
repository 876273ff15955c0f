"""The simulator: a share of its seeds, one mutant, and that a seed is always the same story.

`make simulate` runs thousands.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulation import mutants
from simulation.run import run_seed

SEEDS = range(24)
ROOT = Path(__file__).parents[2]
TOLD = 5


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """What goes wrong by intention is logged by the thousand; keeping it took most of the time."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("seed", SEEDS)
def test_everything_holds(seed: int) -> None:
    outcome = run_seed(seed)
    assert outcome.broken is None, "\n".join([*outcome.story, outcome.broken])


def test_a_mutant_is_caught_and_gone_afterwards() -> None:
    with mutants.switched_on("address_released_at_once"):
        caught = next((s for s in SEEDS if run_seed(s).broken), None)
    assert caught is not None
    assert run_seed(caught).broken is None


def test_every_mutant_says_what_is_wrong_with_it() -> None:
    assert len(mutants.names()) >= 15
    for name in mutants.names():
        with mutants.switched_on(name):
            assert mutants.about(name).endswith("."), name


def test_a_seed_is_the_same_story_in_any_process() -> None:
    command = [sys.executable, "-m", "simulation", "--seed", str(TOLD)]
    environ = {**os.environ, "PYTHONHASHSEED": "7"}
    ran = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True, timeout=60
    )
    here = run_seed(TOLD, told=True)
    assert "\n".join(here.story) == "\n".join(ran.stdout.splitlines()[:-1])
    assert len(here.story) > 20


def test_another_seed_is_another_story() -> None:
    assert run_seed(TOLD, told=True).story != run_seed(TOLD + 1, told=True).story

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

# CI's share of the seeds: as many as two processors run through in two minutes.
SEEDS = 1000
LIMIT_S = 600.0  # for a machine with better things to do
MUTANT_SEEDS = 24
MET_SEEDS = 24
ROOT = Path(__file__).parents[2]
TOLD = 5


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """What goes wrong by intention is logged by the thousand; keeping it took most of the time."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(LIMIT_S + 30.0)
def test_everything_holds() -> None:
    ran = simulate("--seeds", str(SEEDS), limit_s=LIMIT_S)
    sys.stdout.write(ran.stdout)
    last = ran.stdout.splitlines()[-1]
    assert last.startswith(f"simulate: {SEEDS} seeds, 0 broken"), ran.stdout + ran.stderr
    assert ran.returncode == 0


def simulate(
    *args: str, limit_s: float = 60.0, hash_seed: str = "0"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "simulation", *args],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=False,
        timeout=limit_s,
    )


def test_a_mutant_is_caught_and_gone_afterwards() -> None:
    with mutants.switched_on("address_released_at_once"):
        caught = next((s for s in range(MUTANT_SEEDS) if run_seed(s).broken), None)
    assert caught is not None
    assert run_seed(caught).broken is None


def test_seeds_meet_limits_and_the_ends_of_networks_and_hosts_that_refuse() -> None:
    told = [line for seed in range(MET_SEEDS) for line in run_seed(seed, told=True).story]
    refused = {line.split()[-1] for line in told if "op: vm_create" in line}
    assert {"QUOTA_EXCEEDED", "NO_ADDRESS", "NO_VALID_HOST"} <= refused
    assert any(": create of " in line and not line.endswith("generation 1") for line in told)


def test_every_mutant_says_what_is_wrong_with_it() -> None:
    assert len(mutants.names()) >= 15
    for name in mutants.names():
        with mutants.switched_on(name):
            assert mutants.about(name).endswith("."), name


def test_a_seed_is_the_same_story_in_any_process() -> None:
    ran = simulate("--seed", str(TOLD), hash_seed="7")
    here = run_seed(TOLD, told=True)
    assert "\n".join(here.story) == "\n".join(ran.stdout.splitlines()[:-1])
    assert len(here.story) > 20


def test_another_seed_is_another_story() -> None:
    assert run_seed(TOLD, told=True).story != run_seed(TOLD + 1, told=True).story

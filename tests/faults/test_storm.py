"""A short storm over a fleet of separate processes; `make faults` is the long one."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack.parts.rabbitmq import RabbitMQ

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]
LIMIT_S = 280.0
COMMANDS = 70


@pytest.fixture
def storm(rabbit: RabbitMQ) -> Iterator[subprocess.Popen[str]]:
    """A process of its own, which ends all that it has started when it is told to."""
    running = subprocess.Popen(
        [
            *(sys.executable, "-m", "devstack.faults"),
            # Among the first faults of this seed are lost queues, and journals lost and older.
            *("--commands", str(COMMANDS), "--agents", "3", "--seed", "149", "--limit", "120"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield running
    if running.poll() is None:
        running.terminate()
        running.wait(120.0)


@pytest.mark.timeout(420)
def test_commands_in_a_storm_end_and_touch_no_stranger(
    storm: subprocess.Popen[str],
) -> None:
    out, _ = storm.communicate(timeout=LIMIT_S)
    assert storm.returncode == 0, out
    found = re.fullmatch(
        r"commands: (\d+) accepted, (\d+) ended, 0 lost, 0 twice, 0 stuck;"
        r" strangers touched: 0; leaked: 0",
        out.splitlines()[-1],
    )
    assert found is not None, out
    accepted, ended = map(int, found.groups())
    assert accepted == ended >= COMMANDS, out

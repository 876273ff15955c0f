"""The demo's story as a test: five promises kept, and a broken one names itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from common.messages import GuestReport
from devstack.consoles import Console
from devstack.demo.story import STRANGER, Story
from devstack.fleet import Embedded, Scratch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def demo() -> Iterator[subprocess.Popen[str]]:
    """The demo as `make demo` runs it."""
    running = subprocess.Popen(
        [sys.executable, "-m", "devstack.demo"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield running
    running.kill()
    running.wait(30.0)


class Meddler:
    """A console on which somebody's guest is not what it was: it has been restarted."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._looks = 0

    def guests(self) -> dict[str, GuestReport]:
        found = self._console.guests()
        self._looks += 1
        return {
            uuid: msgspec.structs.replace(guest, domain_id=self._looks)
            if guest.name == STRANGER
            else guest
            for uuid, guest in found.items()
        }

    def __getattr__(self, name: str) -> object:
        return getattr(self._console, name)


class Meddled(Embedded):
    """An embedded fleet whose strangers are touched."""

    def console(self, host: str) -> Console:
        meddlers = self.__dict__.setdefault("meddlers", {})
        found: Console = meddlers.setdefault(host, Meddler(super().console(host)))
        return found


def test_the_demo_keeps_five_promises_and_a_broken_one_names_itself(
    demo: subprocess.Popen[str],
) -> None:
    told: list[str] = []
    scratch = Scratch()
    fleet = Meddled(scratch.path, ["alpha", "beta", "gamma"])
    try:
        code = Story(fleet, told.append).run()
    finally:
        fleet.close()
        scratch.remove()
    assert code == 1
    assert told[-1] == "promises: 4 kept, 1 broken"
    assert [line for line in told if "1. A stranger's VM is never touched: BROKEN" in line]
    assert [line for line in told if line.strip().startswith("BROKEN [promise 1]")]
    assert not [line for line in told if ": BROKEN" in line and "1. " not in line]

    out, err = demo.communicate(timeout=90)
    assert demo.returncode == 0, out + err
    assert out.splitlines()[-1] == "promises: 5 kept, 0 broken"
    assert err == ""

"""The picture of a delete's way through the code matches the way that one really takes."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from devstack.delete_path import STATIONS
from devstack.fleet import Embedded, all_up
from tests.wait import wait_until

PACKAGES = ("client.", "common.bus.", "manager.", "agent.")


@pytest.fixture
def calls() -> Any:
    """Every call into our packages, in order, while `calls.on` is set."""

    class Calls(list[tuple[str, str]]):
        on = False

    found = Calls()

    def profile(frame: FrameType, event: str, _arg: Any) -> None:
        if found.on and event == "call":
            module = frame.f_globals.get("__name__", "")
            if module.startswith(PACKAGES):
                found.append((module, frame.f_code.co_qualname))

    threading.setprofile(profile)
    sys.setprofile(profile)
    yield found
    sys.setprofile(None)
    threading.setprofile(None)


def test_a_delete_passes_the_stations_of_its_picture_in_order(calls: Any, tmp_path: Path) -> None:
    fleet = Embedded(tmp_path, ["alpha"])
    try:
        all_up(fleet)
        made = fleet.muster("vm", "create", "web-1", "--vcpus", "1", "--memory", "64", "--wait")
        assert made.code == 0, made.err
        calls.on = True
        done = fleet.muster("vm", "delete", "web-1", "--wait", "--reason", "to be followed")
        assert done.code == 0, done.err
        last = (STATIONS[-1].module, STATIONS[-1].function)
        wait_until(lambda: last in calls, 30, "the result to be confirmed")
        calls.on = False
    finally:
        fleet.close()
    at = 0
    for number, station in enumerate(STATIONS, start=1):
        wanted = (station.module, station.function)
        assert wanted in calls[at:], (
            f"station {number} {wanted} is not passed after the ones before"
        )
        at = calls.index(wanted, at) + 1

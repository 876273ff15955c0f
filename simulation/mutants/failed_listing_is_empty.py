"""A listing that failed is told as one without guests."""

from __future__ import annotations

from typing import Any

from agent.drivers.base import Listing
from common.errors import HypervisorUnavailable
from simulation.hypervisor import SimDriver


def apply(swap: Any) -> None:
    good = SimDriver.list_guests

    def list_guests(self: SimDriver) -> Listing:
        try:
            return good(self)
        except HypervisorUnavailable:
            return Listing(guests=())

    swap(SimDriver, "list_guests", list_guests)
    swap(SimDriver, "health", lambda _self: "")

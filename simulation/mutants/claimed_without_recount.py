"""A host and its pools are claimed by what was read before they were held."""

from __future__ import annotations

import datetime as dt
from typing import Any

from manager.flows import placing
from simulation.mutants import manager_of

SECONDS = 5.0  # no two steps of the simulator fall between a look and a claim: this is how they do


def apply(swap: Any) -> None:
    decide, release = placing._at_some, placing.RELEASE

    def unseen(tx: Any, *args: Any) -> Any:
        looked: tuple[dt.datetime, Any, Any] | None = vars(manager_of(tx)).get("looked")
        demand = args[3]
        if looked and looked[1] == demand and (tx.now - looked[0]).total_seconds() < SECONDS:
            return looked[2]
        found = decide(tx, *args)
        vars(manager_of(tx))["looked"] = (tx.now, demand, found)
        return found

    def hold(tx: Any, _topology: Any, _demand: Any, found: Any, vm: Any) -> str:
        more = {"vcpus": -vm.vcpus, "memory_mib": -vm.memory_mib}
        tx.conn.execute(release, {"at": found.host, **more})
        return ""

    swap(placing, "_at_some", unseen)
    swap(placing, "_hold", hold)

"""A host and its pools are claimed by what was read before they were held."""

from __future__ import annotations

import datetime as dt
from typing import Any

from manager.flows import placing
from manager.store.hosts import Host
from simulation.mutants import manager_of

SECONDS = 5.0  # no two steps of the simulator fall between a look and a claim: this is how they do


def apply(swap: Any) -> None:
    good = placing.claim

    def claim(tx: Any, cfg: Any, vm: Any, avoid: Any) -> Any:
        asked = (vm.wishes, vm.vcpus, vm.memory_mib, dict(avoid))
        looked: tuple[dt.datetime, Any, Any] | None = vars(manager_of(tx)).get("looked")
        if looked and looked[1] == asked and (tx.now - looked[0]).total_seconds() < SECONDS:
            host = tx.get(Host, looked[2].host)
            claimed = (host.vcpus_claimed + vm.vcpus, host.memory_mib_claimed + vm.memory_mib)
            tx.put(host, vcpus_claimed=claimed[0], memory_mib_claimed=claimed[1])
            return looked[2]
        found = good(tx, cfg, vm, avoid)
        vars(manager_of(tx))["looked"] = (tx.now, asked, found)
        return found

    swap(placing, "claim", claim)

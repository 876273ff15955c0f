"""Reports are applied in the order of their arrival, not of their looks."""

from __future__ import annotations

from typing import Any

import msgspec

from manager.flows import inventory, power


def apply(swap: Any) -> None:
    see, report = inventory.see, power.report

    def see_any(tx: Any, cfg: Any, at: Any, guest: Any, pair: Any, old: Any, **how: Any) -> None:
        if old is not None:
            old = msgspec.structs.replace(old, session=-1, seq=-1)
        see(tx, cfg, at, guest, pair, old, **how)

    def report_any(
        tx: Any, cfg: Any, host: str, vm: Any, guest: Any, pair: Any, **how: Any
    ) -> None:
        vm = msgspec.structs.replace(vm, power_session=-1, power_seq=-1)
        report(tx, cfg, host, vm, guest, pair, **how)

    swap(inventory, "confirmed", lambda _host: (-1, -1))
    swap(inventory, "see", see_any)
    swap(power, "report", report_any)

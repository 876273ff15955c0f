"""A listing that lacks a VM closes its tombstone."""

from __future__ import annotations

from typing import Any

from common.states import TombstoneState
from manager.flows import inventory, reap
from manager.store.sightings import Sighting
from manager.store.tombstones import Tombstone


def apply(swap: Any) -> None:
    good = inventory._look_for_missing

    def look(tx: Any, cfg: Any, host: str, pair: Any) -> None:
        good(tx, cfg, host, pair)
        t, s = Tombstone.__table__.c, Sighting.__table__.c
        for stone in tx.all(Tombstone, t.host == host, t.state == TombstoneState.OPEN):
            if tx.first(Sighting, s.host == host, s.instance == stone.instance, s.present) is None:
                reap.close(tx, stone, pair, "not in the listing")

    swap(inventory, "_look_for_missing", look)

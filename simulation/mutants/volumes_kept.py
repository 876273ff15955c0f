"""The space of a deleted VM's disks is never given back."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from manager.flows import holdings
from manager.store.statements import Removal
from manager.store.volumes import Volume


def apply(swap: Any) -> None:
    swap(holdings, "VOLUMES", Removal(Volume, sa.false()))

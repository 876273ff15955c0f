"""The space of a deleted VM's disks is never given back."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from manager.flows import reap
from manager.store.statements import Removal
from manager.store.volumes import Volume


def apply(swap: Any) -> None:
    swap(reap, "VOLUMES", Removal(Volume, sa.false()))

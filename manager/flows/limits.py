"""Limits: what a project's VMs use, and whether it may have more.

Nothing is counted twice: what is used is what its live VMs hold, read under the lock of the
project, so that no count can drift and two managers can not both grant the last of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from common.errors import QuotaExceeded
from common.model import Kind, Project
from common.states import VmState
from manager.flows import model as nouns
from manager.rules import limits as rule
from manager.store.addresses import Address
from manager.store.engine import Tx
from manager.store.instances import Instance
from manager.store.statements import ask
from manager.store.volumes import SNAPSHOT, Volume

RESOURCES = ("instances", "vcpus", "memory_mib", "volumes", "storage_gib", "addresses")
I = Instance.__table__.c  # noqa: E741 - the table's columns, as A and V
A, V = Address.__table__.c, Volume.__table__.c
# A snapshot stands for disks that are counted.
DISKS = (V.instance == I.uuid, V.kind != SNAPSHOT)
HOLDS = (I.project == ask("project"), I.reserved, I.vm_state != VmState.DELETED)
# A soft delete gives these up, and a restore takes them again; all else is held to the very end.
RUNS = (*HOLDS, I.reclaim_at.is_(None))


def _sum(column: sa.ColumnElement[int], *where: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
    return sa.select(sa.func.coalesce(column, 0)).where(*where).scalar_subquery()


USED = sa.select(
    _sum(sa.func.count(I.uuid), *RUNS),
    _sum(sa.func.sum(I.vcpus), *RUNS),
    _sum(sa.func.sum(I.memory_mib), *RUNS),
    _sum(sa.func.count(V.n), *HOLDS, *DISKS),
    _sum(sa.func.sum(V.size_gib), *HOLDS, *DISKS),
    _sum(sa.func.count(A.number), *HOLDS, A.instance == I.uuid),  # IPv6 ones have none
)


def usage(tx: Tx, project: str) -> dict[str, int]:
    """What the live VMs of a project hold, by resource."""
    (row,) = tx.rows(USED, project=project)
    return dict(zip(RESOURCES, map(int, row), strict=True))


def reserve(tx: Tx, project: str, wanted: Mapping[str, int]) -> bool:
    """Hold a project until the commit, so that `wanted` fits beside all that others were granted.

    Raises QuotaExceeded, which names every limit that would be broken. A project without limits is
    not held: its VMs need not wait for each other. False then.
    """
    if not _limited(nouns.find(tx, Kind.PROJECT, project)):
        return False
    _refuse(tx, project, nouns.lock(tx, Kind.PROJECT, project), wanted)
    return True


def foresee(tx: Tx, project: str, wanted: Mapping[str, int]) -> None:
    """As `reserve`, and nothing is held."""
    _refuse(tx, project, nouns.find(tx, Kind.PROJECT, project), wanted)


def _refuse(tx: Tx, project: str, limits: Project | None, wanted: Mapping[str, int]) -> None:
    if limits is None or not _limited(limits):
        return
    over = rule.over(limits, usage(tx, project), wanted)
    if over:
        raise QuotaExceeded(
            f"project {project}: {'; '.join(over)}",
            f"delete what is not needed, or raise it: muster quota set {project}",
        )


def _limited(limits: Project | None) -> bool:
    return limits is not None and any(getattr(limits, each) is not None for each in RESOURCES)

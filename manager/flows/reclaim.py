"""Reclaim: VMs that were deleted softly, and that nobody has restored in time, are deleted.

Held by a freeze and by delete protection, and while an agent knows a later state of this database,
or may: the VM may have been restored in what was lost.
"""

from __future__ import annotations

import contextlib

import sqlalchemy as sa

from common.conf import Settings
from common.errors import Refused
from common.states import TaskState, VmState
from manager.flows import delete, freeze, restore, soft
from manager.flows.jobs import Wish
from manager.store.engine import Tx
from manager.store.instances import Instance
from manager.store.rollbacks import Rollback
from manager.store.statements import Query, ask

I = Instance.__table__.c  # noqa: E741 - the table's columns, as C, J and T elsewhere
IS_DUE = sa.and_(
    I.vm_state == VmState.SOFT_DELETED,
    I.task_state == TaskState.NONE,
    I.protected.is_(False),
    I.reclaim_at <= ask("now"),
    # Its delete would be refused, and it would keep the others from their turn.
    sa.not_(sa.exists().where(Rollback.__table__.c.host == I.host)),
)
DUE = Query(Instance, IS_DUE, order=[I.reclaim_at], limit=20)


def delete_due(tx: Tx, cfg: Settings) -> int:
    """A hard delete for each of them, nobody's wish but the clock's; returns how many."""
    if freeze.why(tx) or restore.is_doubtful(tx):
        return 0
    due = tx.due(DUE, now=tx.now)
    for vm in due:
        wish = Wish(
            job=tx.new_id(),
            operator="manager",
            reason=f"it could be restored until {vm.reclaim_at:%Y-%m-%dT%H:%M:%SZ}",
            request={"verb": "delete", "vm": vm.uuid, "by": soft.RECLAIM},
        )
        with contextlib.suppress(Refused):  # by its host, which belongs to another database
            delete.request(tx, cfg, wish, vm, force=False)
    return len(due)

"""A reclaim looks at the time alone, and not whether the VM was restored meanwhile."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from common.states import TaskState, VmState
from manager import ticks
from manager.flows import reclaim, soft
from manager.store.instances import Instance
from manager.store.statements import PLANNED_ANEW, Query, ask

I = Instance.__table__.c  # noqa: E741 - the table's columns


def apply(swap: Any) -> None:
    its_time = sa.and_(
        I.vm_state != VmState.DELETED,
        I.task_state == TaskState.NONE,
        I.reclaim_at <= ask("now"),
    )
    rounds = [
        (turn, sa.exists().where(its_time) if turn is reclaim.delete_due else is_due)
        for turn, is_due in ticks.ROUNDS
    ]
    look = sa.select(*[is_due for _, is_due in rounds]).execution_options(**PLANNED_ANEW)
    good = soft.restore_vm

    def restore_vm(tx: Any, wish: Any, vm: Instance) -> Any:
        job = good(tx, wish, vm)
        tx.swap(tx.get(Instance, vm.uuid), reclaim_at=vm.reclaim_at)
        return job

    swap(ticks, "LOOK", look)
    swap(reclaim, "DUE", Query(Instance, its_time, order=[I.reclaim_at], limit=20))
    swap(soft, "restore_vm", restore_vm)

"""A guest leaves its host although its disks could not be copied."""

from __future__ import annotations

from typing import Any

from common.states import CommandState
from manager.flows import shelve
from manager.store.instances import Instance


def apply(swap: Any) -> None:
    good = shelve.command_ended

    def command_ended(tx: Any, cfg: Any, job: Any, command: Any, result: Any) -> None:
        vm = tx.find(Instance, job.instance)
        mine = vm is not None and vm.live and vm.job == job.uuid
        if mine and command.state is CommandState.FAILED:
            shelve._taken(tx, cfg, job, vm, result)
        else:
            good(tx, cfg, job, command, result)

    swap(shelve, "command_ended", command_ended)

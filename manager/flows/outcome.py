"""The end of a command goes to the story that it belongs to."""

from __future__ import annotations

from types import ModuleType

from common.conf import Settings
from common.messages import CommandKind, Result
from manager.flows import cleanup, first_start, power, resize, shelve, soft, unshelve
from manager.store.commands import CommandRow
from manager.store.engine import Tx
from manager.store.jobs import Job

# Of a job's kind; of every other it is a verb on the guest. A delete's terminates are not told
# here: they go to `reap` and `delete`.
STORIES: dict[str, ModuleType] = {
    "delete": soft,
    "shelve": shelve,
    "unshelve": unshelve,
    **dict.fromkeys(resize.KINDS, resize),
}


def command_ended(tx: Tx, cfg: Settings, command: CommandRow, result: Result | None) -> None:
    """What its agent answered, or what is concluded without an answer."""
    if command.kind == CommandKind.CLEAN_UP:
        cleanup.command_ended(tx, command, result)
        return
    if command.job is None:
        return
    job = tx.get(Job, command.job)
    _story(job, command).command_ended(tx, cfg, job, command, result)


def lost(tx: Tx, cfg: Settings, command: CommandRow, *, code: str, error: str) -> None:
    """Nobody is there to say what became of it."""
    if command.job is None:
        return
    job = tx.get(Job, command.job)
    _story(job, command).lost(tx, cfg, job, command, code=code, error=error)


def _story(job: Job, command: CommandRow) -> ModuleType:
    if job.kind in STORIES:
        return STORIES[job.kind]
    return first_start if first_start.is_ours(command) else power

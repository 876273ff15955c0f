"""The end of a command goes to the story that it belongs to."""

from __future__ import annotations

from typing import Any

from common.conf import Settings
from common.messages import Result
from manager.flows import first_start, power, resize
from manager.store.commands import CommandRow
from manager.store.engine import Tx
from manager.store.jobs import Job

# Modules with `command_ended` and `lost`, by the kind of their jobs; all others are verbs of power.
STORIES: dict[str, Any] = dict.fromkeys(resize.KINDS, resize)


def command_ended(tx: Tx, cfg: Settings, command: CommandRow, result: Result | None) -> None:
    """What its agent answered, or what is concluded without an answer."""
    if command.job is None:
        return
    job = tx.get(Job, command.job)
    _story(job, command).command_ended(tx, cfg, job, command, result)


def lost(tx: Tx, cfg: Settings, command: CommandRow, *, code: str, error: str) -> None:
    """Nobody is there to say what became of it."""
    if command.job is None:
        return
    job = tx.get(Job, command.job)
    _story(job, command).lost(tx, cfg, job, command.host, code=code, error=error)


def _story(job: Job, command: CommandRow) -> Any:
    return first_start if first_start.is_ours(command) else STORIES.get(job.kind, power)

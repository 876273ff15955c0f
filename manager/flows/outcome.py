"""The end of a command goes to the story that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.conf import Settings
from common.messages import Result
from manager.flows import first_start, power, shelve, unshelve
from manager.store.commands import CommandRow
from manager.store.engine import Tx
from manager.store.jobs import Job

# Jobs of more than one command, by their kind.
STORIES: Mapping[str, Any] = {"shelve": shelve, "unshelve": unshelve}


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
    story = _story(job, command)
    if story is power:
        power.expired(tx, cfg, job, code=code, error=error)
    else:
        story.lost(tx, cfg, job, command.host, code=code, error=error)


def _story(job: Job, command: CommandRow) -> Any:
    """A module with `command_ended` and, but for power, `lost`."""
    if job.kind in STORIES:
        return STORIES[job.kind]
    return first_start if first_start.is_ours(command) else power

"""The end of a command goes to the story that it belongs to."""

from __future__ import annotations

from common.conf import Settings
from common.messages import CommandKind, Result
from manager.flows import cleanup, first_start, power
from manager.store.commands import CommandRow
from manager.store.engine import Tx
from manager.store.jobs import Job


def command_ended(tx: Tx, cfg: Settings, command: CommandRow, result: Result | None) -> None:
    """What its agent answered, or what is concluded without an answer."""
    if command.kind == CommandKind.CLEAN_UP:
        cleanup.command_ended(tx, command, result)
        return
    if command.job is None:
        return
    story = first_start if first_start.is_ours(command) else power
    story.command_ended(tx, cfg, tx.get(Job, command.job), command, result)


def lost(tx: Tx, cfg: Settings, command: CommandRow, *, code: str, error: str) -> None:
    """Nobody is there to say what became of it."""
    if command.job is None:
        return
    job = tx.get(Job, command.job)
    if first_start.is_ours(command):
        first_start.lost(tx, cfg, job, command.host, code=code, error=error)
    else:
        power.expired(tx, cfg, job, code=code, error=error)

"""jobs with their steps: operators' wishes and how far they have come."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec

from common.messages import TrailEntry
from common.states import JobState
from manager.store.mapping import Row, table


class JobStep(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One step of a job, at one host; `command` is the latest that was cast for it.

    `hosts`: of a placement, what was said of each host that was looked at.
    """

    name: str
    host: str | None
    command: str | None = None
    state: JobState
    detail: str = ""
    hosts: dict[str, str] = {}
    tries: int = 0
    next_try_at: dt.datetime | None = None
    started_at: dt.datetime | None = None
    ended_at: dt.datetime | None = None


@table("jobs", "uuid", index=(("state", "check_at"), ("instance",)))
class Job(Row, frozen=True, kw_only=True):
    """One accepted wish; `uuid` was chosen by the client, `request` tells a repeat from a reuse.

    `same_as`: the job that does this one's work; an equal wish was under way already.
    `cancelling`: an operator wants it back, and its host is asked whether it has begun.
    `check_at` is when a manager looks at it again without being asked.
    """

    uuid: str
    kind: str
    instance: str | None
    host: str | None
    state: JobState
    request: dict[str, Any]
    trail: tuple[TrailEntry, ...]
    steps: tuple[JobStep, ...] = ()
    waiting_for: str = ""
    strength: int = 0
    unconfirmed: bool = False
    cancelling: bool = False
    same_as: str | None = None
    error_code: str | None = None
    error: str | None = None
    accepted_at: dt.datetime
    ended_at: dt.datetime | None = None
    deadline_at: dt.datetime | None = None
    check_at: dt.datetime | None = None
    version: int = 0

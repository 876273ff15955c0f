"""commands: the outbox. A row is written with the state that it changes, and cast from here."""

from __future__ import annotations

import datetime as dt
from typing import Any

from common.messages import TrailEntry
from common.states import CommandState
from manager.store.mapping import Row, table


@table("commands", "id", index=(("publish_at",), ("deadline_at",), ("instance", "host"), ("job",)))
class CommandRow(Row, frozen=True, kw_only=True):
    """One command to one agent.

    `publish_at` is when it is due to be cast (again); None once received or ended.
    `deadline_at` is when the watchdog looks at it; a terminate, which never expires, is cast again.
    `asked_at` is when the watchdog first asked the agent for its fate.
    """

    id: str
    job: str | None
    kind: str
    host: str
    instance: str
    generation: int
    spec: dict[str, Any]
    timeout_s: float
    trail: tuple[TrailEntry, ...]
    state: CommandState
    publish_at: dt.datetime | None
    publishes: int = 0
    session: int | None = None
    deadline_at: dt.datetime | None = None
    asked_at: dt.datetime | None = None
    accepted_at: dt.datetime
    published_at: dt.datetime | None = None
    received_at: dt.datetime | None = None
    started_at: dt.datetime | None = None
    ended_at: dt.datetime | None = None
    error_code: str | None = None
    error: str | None = None
    version: int = 0


@table("voids", "host", "instance", index=(("next_at",),))
class Void(Row, frozen=True, kw_only=True):
    """A floor that is owed to a host: cast every `resend_after`, and in its next hello."""

    host: str
    instance: str
    generation: int
    command: str
    next_at: dt.datetime
    created_at: dt.datetime

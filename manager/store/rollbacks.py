"""rollbacks and agent_floors: what agents remember that a restored database does not."""

from __future__ import annotations

import datetime as dt

from manager.store.mapping import Row, table


@table("rollbacks", "host")
class Rollback(Row, frozen=True, kw_only=True):
    """A host whose agent has seen a later state of a database than this one is."""

    host: str
    timeline: str
    mark: int
    since: dt.datetime


@table("agent_floors", "host", "instance")
class AgentFloor(Row, frozen=True, kw_only=True):
    """A floor that such an agent has reported; kept until the restore is accepted."""

    host: str
    instance: str
    generation: int

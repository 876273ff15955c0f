"""tombstones: what must be gone from a host, kept longer than the VM's own record."""

from __future__ import annotations

import datetime as dt

from common.states import TombstoneState
from manager.store.instances import Made, Nic
from manager.store.mapping import Row, table


@table(
    "tombstones",
    "host",
    "instance",
    index=(("state", "issue_at"), ("instance",)),
    unique=("uuid",),
)
class Tombstone(Row, frozen=True, kw_only=True):
    """(host, instance, highest generation). Deliberately no foreign key to the host.

    `issue_at` is when a terminate may be issued again; None: wait for a hello or a sighting.
    The pair (closed_session, closed_seq) is that of the answer that closed it.
    `up_to`: only guests of marks up to this generation are to go; None: up to its own.
    """

    uuid: str
    name: str
    instance: str
    host: str
    generation: int
    up_to: int | None = None
    state: TombstoneState
    reason: str
    mac: str | None
    address: str | None = None
    nics: tuple[Nic, ...] = ()
    made: tuple[Made, ...] = ()
    holds: tuple[str, ...] = ()
    issue_at: dt.datetime | None = None
    tries: int = 0
    created_at: dt.datetime
    closed_at: dt.datetime | None = None
    closed_session: int = 0
    closed_seq: int = 0
    answer: str = ""
    version: int = 0

    @property
    def dooms(self) -> int:
        """A guest with a mark of up to this generation is to go."""
        return self.generation if self.up_to is None else self.up_to

"""sightings: every guest that a hypervisor has shown us, ours and strangers' alike."""

from __future__ import annotations

import datetime as dt

from common.ownership import Mark
from common.states import GuestKind, PowerState
from manager.store.mapping import Row, table


@table("sightings", "host", "hypervisor_uuid", index=(("instance",), ("kind",)))
class Sighting(Row, frozen=True, kw_only=True):
    """One guest at (session, seq). `present` False keeps the pair of its disappearance.

    `instance` is set only for guests that carry our own, uncopied mark.
    """

    host: str
    hypervisor_uuid: str
    name: str
    kind: GuestKind
    instance: str | None
    mark: Mark | None
    template: bool
    power_state: PowerState
    vcpus: int
    memory_mib: int
    macs: tuple[str, ...]
    fingerprint: str
    present: bool
    session: int
    seq: int
    first_seen: dt.datetime
    last_seen: dt.datetime

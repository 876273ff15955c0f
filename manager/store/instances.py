"""instances: the VMs we hold; macs: which addresses are in use or in quarantine."""

from __future__ import annotations

import datetime as dt
from typing import Any

from common.states import PowerState, TaskState, VmState
from manager.store.mapping import Row, table


@table("instances", "uuid", index=(("host",), ("name",), ("vm_state",)))
class Instance(Row, frozen=True, kw_only=True):
    """One VM. (power_session, power_seq) is the pair of the report that power_state is from."""

    uuid: str
    name: str
    host: str | None
    last_host: str | None = None
    vm_state: VmState
    task_state: TaskState
    power_state: PowerState = PowerState.NOSTATE
    power_session: int = 0
    power_seq: int = 0
    power_at: dt.datetime | None = None
    paused_since: dt.datetime | None = None
    spec: dict[str, Any]
    vcpus: int
    memory_mib: int
    mac: str
    address: str | None = None
    generation: int = 0
    job: str | None = None
    protected: bool = False
    missing: bool = False
    missing_since: dt.datetime | None = None
    missing_reports: int = 0
    error: str = ""
    deletion_owed: bool = False
    created_at: dt.datetime
    deleted_at: dt.datetime | None = None
    terminated_at: dt.datetime | None = None
    version: int = 0

    @property
    def live(self) -> bool:
        return self.vm_state is not VmState.DELETED


@table("macs", "mac", index=(("instance",),))
class Mac(Row, frozen=True, kw_only=True):
    """A MAC address in use or in quarantine; the primary key is what makes it unique."""

    mac: str
    instance: str
    since: dt.datetime

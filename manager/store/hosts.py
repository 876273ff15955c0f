"""hosts: what the managers know of each hypervisor host; managers: who hears them."""

from __future__ import annotations

import datetime as dt

from common.states import HostState
from manager.store.mapping import Row, table


@table("hosts", "name")
class Host(Row, frozen=True, kw_only=True):
    """One host. `heard_at` is the database's clock at the arrival of its last report.

    `canary` is the one in flight, `canary_at` when the last was sent, `canary_heard_at` when one
    was last answered. (inventory_session, inventory_seq) is the pair up to which all of its guests
    are known: that of its last complete full report, or of a digest that agreed.
    `disagreed_since` is when a digest first did not. `cluster` and `tags` are those of the noun of
    its name, if there is one. What is claimed is the size of all VMs that are placed here, whether
    they run or not. `fence_due`: it was heard shortly before it was fenced; when its silence will
    have been long enough for the fence to be believed.
    """

    name: str
    fleet: str
    driver: str
    agent_version: str
    interval_s: float
    state: HostState
    reason: str
    state_since: dt.datetime
    judged: str = ""
    blind: bool = False
    mass_silent: bool = False
    enabled: bool = False
    maintenance: bool = False
    forced_down: bool = False
    fenced: bool = False
    fence_due: dt.datetime | None = None
    operator_reason: str = ""
    session: int = 0
    session_open: bool = False
    hello_id: str | None = None
    agent_run: str | None = None
    runs: dict[str, tuple[dt.datetime, dt.datetime]] = {}
    clash: bool = False
    host_boot: str = ""
    journal_id: str = ""
    heard_at: dt.datetime
    seq: int = 0
    driver_healthy: bool = True
    driver_message: str = ""
    inventory_at: dt.datetime | None = None
    inventory_digest: str | None = None
    inventory_partial: bool = False
    inventory_session: int = 0
    inventory_seq: int = 0
    disagreed_since: dt.datetime | None = None
    vcpus_total: int = 0
    memory_mib_total: int = 0
    vcpus_used: int = 0
    memory_mib_used: int = 0
    vcpus_claimed: int = 0
    memory_mib_claimed: int = 0
    clock_skew_s: float = 0.0
    dropped_casts: int = 0
    canary: str | None = None
    canary_at: dt.datetime | None = None
    canary_heard_at: dt.datetime | None = None
    cluster: str | None = None
    tags: tuple[str, ...] = ()
    version: int = 0


@table("managers", "id")
class ManagerRow(Row, frozen=True, kw_only=True):
    """One running manager and since when it has heard its own beat without a gap."""

    id: str
    host: str
    started_at: dt.datetime
    heard_since: dt.datetime | None = None
    heard_until: dt.datetime | None = None
    gap: str = ""

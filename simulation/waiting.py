"""Nothing waits for a host that is known to be dead: a watch of its own over the deletes."""

from __future__ import annotations

import datetime as dt

from common.states import HostState, JobState
from manager.store.engine import Tx
from manager.store.events import Meta
from manager.store.freezing import FROZEN
from simulation import questions
from simulation.fleet import SimFleet

# A few ticks of managers that hear, do not doubt themselves and are not frozen.
ENOUGH_S = 25.0


class Waiting:
    """Looks at the deletes that are under way, again and again."""

    def __init__(self, fleet: SimFleet) -> None:
        self._fleet = fleet
        self._sure_since = 0.0

    def look(self, heard_since: float) -> list[tuple[str, str | None]]:
        """What waits for a DOWN host, and whose it is; `heard_since`: when a manager could work."""
        found: list[tuple[str, str | None]] = self._fleet.read(
            lambda tx: self._waiting(tx, heard_since)
        )
        return found

    def _waiting(self, tx: Tx, heard_since: float) -> list[tuple[str, str | None]]:
        now = self._fleet.world.now_s
        hosts = {host.name: host for host in tx.ask(questions.HOSTS)}
        doubt = any(host.mass_silent or host.blind for host in hosts.values())
        if doubt or tx.find(Meta, FROZEN) is not None:
            self._sure_since = now
        if now - max(heard_since, self._sure_since) < ENOUGH_S:
            return []
        long_ago = tx.now - dt.timedelta(seconds=ENOUGH_S)
        dead = {
            host.name
            for host in hosts.values()
            if host.state is HostState.DOWN and host.state_since < long_ago
        }
        return [
            (f"delete {job.uuid} waits for {step.host}, which is DOWN", job.instance)
            for job in (tx.ask(questions.OPEN_DELETES) if dead else ())
            if job.accepted_at < long_ago
            for step in job.steps
            if step.state is JobState.RUNNING and step.host in dead
        ]

"""A simulated hypervisor that takes no time: the guests of one agent, in its memory.

What a real hypervisor costs is not what is measured; writing files in its stead would be.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from agent.drivers.simulated.store import Faults, Guest, Store

NO_FAULTS = Faults()


class InstantStore(Store):
    """The store of `agent.drivers.simulated`, without its files."""

    def __init__(self, state_dir: str, host: str) -> None:
        super().__init__(state_dir, host)
        self._guests: dict[str, Guest] = {}
        self._changes: dict[str, tuple[int, int, int]] = {}
        self._domain_id = 0
        self._lock = threading.Lock()

    def uuids(self) -> list[str]:
        return sorted(self._guests)

    def read(self, guest_uuid: str) -> Guest | None:
        return self._guests.get(guest_uuid)

    def write(self, guest: Guest) -> None:
        self._guests[guest.uuid] = guest
        changes, _, _ = self._changes.get(guest.uuid, (0, 0, 0))
        self._changes[guest.uuid] = (changes + 1, 0, 0)

    def remove(self, guest_uuid: str) -> None:
        self._guests.pop(guest_uuid, None)
        self._changes.pop(guest_uuid, None)

    def note(self, by: str, verb: str, guest: Guest) -> None:
        """Its account is what the bench's own stamps tell."""

    def next_domain_id(self) -> int:
        self._domain_id += 1
        return self._domain_id

    def free_name(self, wanted: str, guest_uuid: str) -> str:
        return wanted  # the bench gives no name twice

    def faults(self) -> Faults:
        return NO_FAULTS

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        with self._lock:
            yield

    def signature(self) -> dict[str, tuple[int, int, int]]:
        with self._lock:
            return dict(self._changes)

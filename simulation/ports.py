"""Faults at the ports: messages get lost, doubled or late, and a process may die at any use."""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from common.bus.base import Address, Endpoint, Handle, StreamHandler
from common.bus.memory import MemoryBus
from common.errors import BrokerUnavailable, DatabaseUnavailable, NoManager
from common.runtime import Stopped
from manager.store.engine import Store, Tx
from simulation.database import Database
from simulation.runtime import SimRuntime

T = TypeVar("T")

SENT_KEPT = 400


class Chaos:
    """How often what goes wrong; all probabilities 0 once the faults have stopped."""

    def __init__(self) -> None:
        self.drop = 0.0
        self.duplicate = 0.0
        self.delay = 0.0
        self.longest_delay_s = 20.0
        self.crash = 0.0
        self.commit_crash = 0.0
        self.commit_failure = 0.0
        self.database_away = False
        # When and what was sent lately: a network may deliver it again.
        self.sent: deque[tuple[float, Callable[[], None]]] = deque(maxlen=SENT_KEPT)

    def calm(self) -> None:
        self.drop = self.duplicate = self.delay = 0.0
        self.crash = self.commit_crash = self.commit_failure = 0.0
        self.database_away = False
        self.sent.clear()


class FaultyBus:
    """A process's bus; each use is a place where the process can die, before or after it."""

    def __init__(
        self, inner: MemoryBus, runtime: SimRuntime, chaos: Chaos, die: Callable[[], None]
    ) -> None:
        self.inner, self._runtime, self._chaos, self._die = inner, runtime, chaos, die
        self._world = runtime.world

    def call(self, to: Address, method: str, kwargs: Mapping[str, Any], timeout_s: float) -> Any:
        self._maybe_die()
        answer = self.inner.call(to, method, kwargs, timeout_s)
        if self._world.chance(self._chaos.drop):
            # The answer is lost; the caller waits in vain.
            self._runtime.sleep(timeout_s)
            raise NoManager("the answer was lost", "try again")
        self._maybe_die()
        return answer

    def cast(self, to: Address, method: str, kwargs: Mapping[str, Any]) -> None:
        self._maybe_die()
        self._send(functools.partial(self.inner.cast, to, method, kwargs))
        self._maybe_die()

    def publish(self, key: str, body: bytes, ttl_s: float | None = None) -> None:
        self._maybe_die()
        self._send(functools.partial(self.inner.publish, key, body, ttl_s))
        self._maybe_die()

    def serve(self, at: Address, endpoint: Endpoint) -> Handle:
        return self.inner.serve(at, endpoint)

    def consume(
        self,
        streams: Mapping[str, str],
        handler: StreamHandler,
        on_gap: Callable[[str], None],
        stall_s: float,
    ) -> Handle:
        return self.inner.consume(streams, handler, on_gap, stall_s)

    def close(self) -> None:
        self.inner.close()

    def _send(self, send: Callable[[], None]) -> None:
        self._runtime.point()
        chaos, world = self._chaos, self._world
        chaos.sent.append((world.now_s, send))
        if world.chance(chaos.drop):
            return
        if world.chance(chaos.delay):
            world.after(world.random.uniform(0.0, chaos.longest_delay_s), quietly(send))
            return
        send()
        if world.chance(chaos.duplicate):
            world.after(world.random.uniform(0.0, chaos.longest_delay_s), quietly(send))

    def _maybe_die(self) -> None:
        if self._world.chance(self._chaos.crash):
            self._die()
            raise Stopped


def quietly(send: Callable[[], None]) -> Callable[[], None]:
    """The same for a time when the broker may be away: then it is lost."""

    def later() -> None:
        try:
            send()
        except BrokerUnavailable:
            return

    return later


class _Transaction:
    """From BEGIN to COMMIT or ROLLBACK."""

    def __init__(self, store: Store, database: Database, attempt: int) -> None:
        self._store, self._database, self._attempt = store, database, attempt

    def __enter__(self) -> Tx:
        self._database.raw.execute("BEGIN IMMEDIATE")
        return Tx(self._store, self._database.straight, self._attempt)  # type: ignore[arg-type]

    def __exit__(self, kind: object, *_: object) -> None:
        self._database.raw.execute("COMMIT" if kind is None else "ROLLBACK")


class SimStore(Store):
    """The real store on a shared in-memory SQLite; a process can die on either side of a commit."""

    def __init__(
        self, database: Database, runtime: SimRuntime, chaos: Chaos, die: Callable[[], None]
    ) -> None:
        self.runtime = runtime
        self._sim = runtime
        self._database = database
        self.dialect = "sqlite"
        self._chaos, self._die = chaos, die
        self._told: Callable[[Tx], None] = lambda _tx: None
        # No step ends within a transaction.
        self._gate = contextlib.nullcontext()

    @property
    def after_commit(self) -> Callable[[Tx], None]:
        return self._committed

    @after_commit.setter
    def after_commit(self, value: Callable[[Tx], None]) -> None:
        self._told = value

    def run(self, handler: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        self._sim.point()
        if self._chaos.database_away:
            raise DatabaseUnavailable("the database is away", "")

        def and_perhaps_die(tx: Tx, *a: Any, **k: Any) -> T:
            value = handler(tx, *a, **k)
            self._maybe_die()  # before the commit: nothing of it has happened
            if self._sim.world.chance(self._chaos.commit_failure):
                raise DatabaseUnavailable("the commit failed", "")
            return value

        return super().run(and_perhaps_die, *args, **kwargs)

    def _begin(self, attempt: int) -> Any:
        return _Transaction(self, self._database, attempt)

    def _committed(self, tx: Tx) -> None:
        self._maybe_die()  # after the commit, before anything is said
        self._told(tx)

    def _maybe_die(self) -> None:
        chaos = self._chaos
        if (chaos.crash or chaos.commit_crash) and self._sim.world.chance(
            max(chaos.crash, chaos.commit_crash)
        ):
            self._die()
            raise Stopped

    def close(self) -> None:
        return

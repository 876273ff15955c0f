"""A bus within one process: for the embedded demo, tests and the simulator.

A `Broker` holds the queues; every process-to-be takes its own `MemoryBus` from it, so that killing
one agent cuts off that agent alone. Messages are passed as encoded bytes: what works here has been
through the same validation as on RabbitMQ.
"""

from __future__ import annotations

import collections
import fnmatch
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from common.bus.base import Address, Endpoint, GatheringHandler, Handle, StreamHandler
from common.errors import BadMessage, BrokerUnavailable, MusterError, NoManager
from common.runtime import Runtime, Stopped

LOG = logging.getLogger(__name__)

WORKERS = 4
POLL_S = 0.5
GATHER = 20  # reports that are offered to a handler at once, at the most
AGAIN_S = 0.1
STREAM_LENGTH = 20_000


class _Rpc(msgspec.Struct):
    method: str
    kwargs: bytes
    answer: Callable[[bytes, MusterError | None], None] | None


class _Report(msgspec.Struct):
    key: str
    body: bytes
    sender: str | None
    sent_at: float
    expires_at: float | None


class _Queue:
    """A bounded FIFO with a bell."""

    def __init__(self, runtime: Runtime, length: int | None = None) -> None:
        self.items: collections.deque[Any] = collections.deque(maxlen=length)
        self.bell = runtime.event()

    def put(self, item: Any) -> None:
        self.items.append(item)
        self.bell.set()

    def take(self, runtime: Runtime, timeout_s: float) -> Any | None:
        if not self.items:
            runtime.wait(self.bell, timeout_s)
        self.bell.clear()
        try:
            item = self.items.popleft()
        except IndexError:
            return None
        if self.items:
            self.bell.set()
        return item


class Broker:
    """The queues that all buses of one process share. `up` False: nothing gets through.

    `poll_s`: how often an idle loop looks about although nothing has woken it. `workers`: how
    many calls and casts each server takes at a time.
    """

    def __init__(self, runtime: Runtime, poll_s: float = POLL_S, workers: int = WORKERS) -> None:
        self.runtime = runtime
        self.poll_s, self.workers = poll_s, workers
        self._up = True
        self._buses: list[MemoryBus] = []
        self.servers: dict[str, dict[str, _Queue]] = {}
        self.streams: dict[str, tuple[Callable[[str], Any], _Queue]] = {}
        self.dead: list[tuple[str, bytes, str]] = []
        self._turn = 0
        self._lock = runtime.lock()

    def bus(self, runtime: Runtime, user: str | None = None) -> MemoryBus:
        """A connection of its own for one manager, agent or operator."""
        bus = MemoryBus(self, runtime, user)
        with self._lock:
            self._buses = [b for b in self._buses if not b._runtime.killed]
            self._buses.append(bus)
        return bus

    @property
    def up(self) -> bool:
        return self._up

    @up.setter
    def up(self, value: bool) -> None:
        self._up = value
        for bus in self._buses:
            bus.look()

    def queue_for(self, to: Address) -> _Queue | None:
        """The queue of the named server, or of the next one of the topic."""
        with self._lock:
            servers = self.servers.get(to.topic, {})
            if to.server is not None:
                return servers.get(to.server)
            if not servers:
                return None
            self._turn += 1
            return list(servers.values())[self._turn % len(servers)]

    def lose(self) -> None:
        """Forget everything that waits in a queue, as a broker does that loses its disk."""
        with self._lock:
            for servers in self.servers.values():
                for inbox in servers.values():
                    inbox.items.clear()
            for _pattern, stream in self.streams.values():
                stream.items.clear()


class MemoryBus:
    """One process's connection to a Broker. `cut`: the network between the two is down."""

    def __init__(self, broker: Broker, runtime: Runtime, user: str | None) -> None:
        self._broker = broker
        self._runtime = runtime
        self._user = user
        self._cut = False
        self._consumers: list[_Consumer] = []

    @property
    def cut(self) -> bool:
        return self._cut

    @cut.setter
    def cut(self, value: bool) -> None:
        self._cut = value
        self.look()

    def look(self) -> None:
        """Make what consumes here look at the connection, and whether it has stood still."""
        for consumer in self._consumers:
            consumer.look()

    @property
    def connected(self) -> bool:
        """False while nothing gets through."""
        return self._broker._up and not self._cut

    def _require(self) -> None:
        if not self.connected:
            raise BrokerUnavailable("the memory broker can not be reached", "switch it on")

    def call(self, to: Address, method: str, kwargs: Mapping[str, Any], timeout_s: float) -> Any:
        self._require()
        target = self._broker.queue_for(to)
        if target is None:
            raise NoManager(f"nobody serves {to}", "start a manager")
        done = self._runtime.event()
        box: list[tuple[bytes, MusterError | None]] = []

        def answer(body: bytes, error: MusterError | None) -> None:
            box.append((body, error))
            done.set()

        target.put(_Rpc(method, msgspec.json.encode(kwargs), answer))
        if not self._runtime.wait(done, timeout_s):
            raise NoManager(f"{to} gave no answer to {method} within {timeout_s:g} s", "try again")
        body, error = box[0]
        if error is not None:
            raise error
        return msgspec.json.decode(body)

    def cast(self, to: Address, method: str, kwargs: Mapping[str, Any]) -> None:
        self._require()
        target = self._broker.queue_for(to)
        if target is not None:
            target.put(_Rpc(method, msgspec.json.encode(kwargs), None))

    def serve(self, at: Address, endpoint: Endpoint) -> Handle:
        if at.server is None:
            raise ValueError("a server needs a name")
        inbox = _Queue(self._runtime)
        with self._broker._lock:
            self._broker.servers.setdefault(at.topic, {})[at.server] = inbox
        return _Server(self, self._broker, self._runtime, at, inbox, endpoint)

    def publish(self, key: str, body: bytes, ttl_s: float | None = None) -> None:
        self._require()
        now = self._runtime.monotonic()
        expires = None if ttl_s is None else now + ttl_s
        with self._broker._lock:
            targets = [q for fits, q in self._broker.streams.values() if fits(key)]
        for target in targets:
            target.put(_Report(key, body, self._user, now, expires))

    def consume(
        self,
        streams: Mapping[str, str],
        handler: StreamHandler,
        on_gap: Callable[[str], None],
        stall_s: float,
    ) -> Handle:
        with self._broker._lock:
            for name, pattern in streams.items():
                if name not in self._broker.streams:
                    queue = _Queue(self._runtime, STREAM_LENGTH)
                    self._broker.streams[name] = (_fitting(pattern), queue)
        made = _Consumer(self, self._broker, self._runtime, list(streams), handler, on_gap, stall_s)
        self._consumers.append(made)
        return made

    def close(self) -> None:
        pass


def _fitting(pattern: str) -> Callable[[str], Any]:
    """Does a key fit the pattern?"""
    if "*" in pattern:
        return re.compile(fnmatch.translate(pattern)).match
    return pattern.__eq__  # somebody's own


class _Server:
    def __init__(
        self,
        bus: MemoryBus,
        broker: Broker,
        runtime: Runtime,
        at: Address,
        inbox: _Queue,
        endpoint: Endpoint,
    ) -> None:
        self._bus, self._broker, self._runtime, self._at = bus, broker, runtime, at
        self._inbox, self._endpoint = inbox, endpoint
        self._stopped = runtime.event()
        for n in range(broker.workers):
            runtime.spawn(f"rpc-{at}-{n}", self._loop)

    def _loop(self) -> None:
        while not self._stopped.is_set() and not self._runtime.stopping.is_set():
            rpc = self._inbox.take(self._runtime, self._broker.poll_s)
            if rpc is None or not self._bus.connected:
                continue
            try:
                value = self._endpoint(rpc.method, msgspec.json.decode(rpc.kwargs))
                reply, error = msgspec.json.encode(value), None
            except Stopped:
                raise
            except MusterError as exc:
                reply, error = b"", exc
            except Exception as exc:
                LOG.exception("rpc %s at %s", rpc.method, self._at)
                reply, error = b"", MusterError(f"{type(exc).__name__}: {exc}", "see the log")
            if rpc.answer is not None:
                rpc.answer(reply, error)

    def stop(self) -> None:
        self._stopped.set()
        self._inbox.bell.set()
        with self._broker._lock:
            servers = self._broker.servers.get(self._at.topic, {})
            if servers.get(self._at.server or "") is self._inbox:
                del servers[self._at.server or ""]


class _Consumer:
    def __init__(
        self,
        bus: MemoryBus,
        broker: Broker,
        runtime: Runtime,
        names: list[str],
        handler: StreamHandler,
        on_gap: Callable[[str], None],
        stall_s: float,
    ) -> None:
        self._bus, self._broker = bus, broker
        self._runtime, self._handler = runtime, handler
        self._on_gap, self._stall_s = on_gap, stall_s
        self._stopped = runtime.event()
        self._back = runtime.event()
        self._losses = 0
        self._asked: dict[str, float] = {}
        self._sources = {name: broker.streams[name][1] for name in names}
        for name, source in self._sources.items():
            runtime.spawn(f"consume-{name}", self._loop, name, source)

    def look(self) -> None:
        """Wake the loops; one that comes to it much later has stood still."""
        if self._bus.connected:
            self._back.set()
        else:
            self._losses += 1
            self._back.clear()
        now = self._runtime.monotonic()
        for name, source in self._sources.items():
            self._asked.setdefault(name, now)
            source.bell.set()

    def _loop(self, name: str, source: _Queue) -> None:
        poll_s, losses, failures = self._broker.poll_s, 0, 0
        due = self._runtime.monotonic() + poll_s
        while not self._stopped.is_set() and not self._runtime.stopping.is_set():
            now = self._runtime.monotonic()
            still_s = now - min(due, self._asked.pop(name, due))
            if still_s > self._stall_s:
                source.items.clear()
                self._on_gap(f"the consumer of {name} stood still for {still_s:.1f} s")
            due = now + poll_s
            connected = self._bus.connected
            if losses != self._losses or not connected:
                losses = self._losses
                self._on_gap("the broker is away")
            if not connected:
                self._runtime.wait(self._back, poll_s)
                continue
            report = source.take(self._runtime, poll_s)
            if report is None:
                continue
            if not self._bus.connected:
                source.items.appendleft(report)
                continue
            if report.expires_at is not None and report.expires_at < self._runtime.monotonic():
                continue
            if self._all_at_once(report, source):
                failures = 0
                continue
            try:
                self._handler(report.key, report.body, report.sender)
                failures = 0
            except BadMessage as exc:
                LOG.warning("dead letter from %s: %s", report.key, exc)
                self._broker.dead.append((report.key, report.body, str(exc)))
            except Stopped:
                raise
            except Exception as exc:  # noqa: BLE001 - whatever it was, the report comes again
                LOG.warning("%s: not taken, comes again: %s", report.key, exc)
                source.items.appendleft(report)
                failures += 1
                self._runtime.sleep(min(self._stall_s / 4, AGAIN_S * 2**failures))

    def _all_at_once(self, first: _Report, source: _Queue) -> bool:
        """True when a report was taken in one go with those that wait behind it."""
        if not source.items or not isinstance(self._handler, GatheringHandler):
            return False
        reports = [first]
        while source.items and len(reports) < GATHER:
            reports.append(source.items.popleft())
        try:
            self._handler.together([(r.key, r.body, r.sender) for r in reports])
        except Stopped:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever it is belongs to one of them
            LOG.debug("%d reports are taken one by one: %s", len(reports), exc)
            source.items.extendleft(reversed(reports[1:]))
            return False
        return True

    def stop(self) -> None:
        self._stopped.set()

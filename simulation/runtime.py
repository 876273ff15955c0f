"""The runtime of a simulated process: greenlets that yield at each wait and each port call."""

from __future__ import annotations

import datetime as dt
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import greenlet

from common.errors import CallTimeout
from common.runtime import Runtime, Steps, Stopped
from simulation.world import Fiber, World

T = TypeVar("T")
LAG_S = 3.0


class SimEvent:
    """threading.Event for fibers."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._set = False
        self.waiters: dict[Fiber, None] = {}  # a set that keeps their order

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        if self.waiters:
            waiters, self.waiters = self.waiters, {}
            for fiber in waiters:
                self._world.wake(fiber)

    def clear(self) -> None:
        self._set = False


class SimLock:
    """A lock that its holder may take again; waits are steps of the scheduler."""

    def __init__(self, runtime: SimRuntime) -> None:
        self._runtime = runtime
        self._owner: Any = None
        self._depth = 0
        self._free = SimEvent(runtime.world)

    def __enter__(self) -> SimLock:
        me = greenlet.getcurrent()
        if self._owner is not None and self._owner is not me:
            self._wait()
        self._owner = me
        self._depth += 1
        return self

    def _wait(self) -> None:
        while self._owner is not None:
            if getattr(self._owner, "ended", False):
                break  # its holder died; the process did too
            self._free.clear()
            self._runtime.wait(self._free, 3600.0)

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._owner = None
            if self._free.waiters:
                self._free.set()


class SimTask:
    """A running piece of simulated work."""

    def __init__(self, runtime: SimRuntime, fiber: Fiber) -> None:
        self._runtime, self.fiber = runtime, fiber
        self.done = SimEvent(runtime.world)

    @property
    def alive(self) -> bool:
        return not self.fiber.ended

    def join(self, timeout_s: float) -> bool:
        if self._runtime.world.current() is not None and self.alive:
            self._runtime.wait_until(self.done, timeout_s)
        return not self.alive


class SimInbox:
    """A queue that anyone may put into."""

    def __init__(self, runtime: SimRuntime) -> None:
        self._runtime = runtime
        self._items: deque[Any] = deque()
        self._bell = SimEvent(runtime.world)

    def put(self, item: Any) -> None:
        self._items.append(item)
        self._bell.set()

    def get(self, timeout_s: float) -> Any | None:
        if not self._items and timeout_s > 0:
            self._bell.clear()
            self._runtime.wait_until(self._bell, timeout_s)
        return self._items.popleft() if self._items else None


class SimRuntime(Runtime):
    """One process: `kill` throws it out of every wait, `frozen` keeps it from being chosen."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.frozen = False
        self.on_freeze: Callable[[], None] = lambda: None
        self.parked: list[Fiber] = []
        self.fibers: list[Fiber] = []
        super().__init__(name)
        self.stopping = SimEvent(world)  # type: ignore[assignment]

    # time and chance

    def now(self) -> dt.datetime:
        return self.world.now()

    def monotonic(self) -> float:
        return self.world.now_s

    def new_id(self) -> str:
        return self.world.new_id()

    def jitter(self, low: float, high: float) -> float:
        return self.world.random.uniform(low, high)

    def random_below(self, limit: int) -> int:
        return self.world.random.randrange(limit)

    # waiting

    def event(self) -> Any:
        return SimEvent(self.world)

    def lock(self) -> Any:
        return SimLock(self)

    def wait(self, event: Any, timeout_s: float) -> bool:
        stopping: Any = self.stopping
        if event._set or stopping._set:
            self._check()
        else:
            self.wait_until(event, timeout_s)
        return bool(event._set)

    def wait_until(self, event: SimEvent, timeout_s: float) -> None:
        """Sleep until `event`, the stop of the process, or the time."""
        self._check()
        fiber = self.world.current()
        if fiber is None:
            return
        stopping: Any = self.stopping
        event.waiters[fiber] = stopping.waiters[fiber] = None
        try:
            self.world.pause(timeout_s, fiber)
        finally:
            event.waiters.pop(fiber, None)
            stopping.waiters.pop(fiber, None)
        self._check()

    def sleep(self, seconds: float) -> None:
        self._check()
        if not self.stopping.is_set():
            self.wait_until(self.stopping, seconds)  # type: ignore[arg-type]
        self._check()

    def pause(self, seconds: float) -> None:
        self.sleep(seconds)

    def point(self) -> None:
        """A place where another process may go first."""
        if self.killed:
            raise Stopped
        if self.world.lag:
            self._lag()
        self.world.yield_now()
        if self.killed:
            raise Stopped

    def _lag(self) -> None:
        if self.world.chance(self.world.lag):
            self.sleep(self.world.random.uniform(0.0, LAG_S))

    # work

    def spawn(self, name: str, fn: Callable[..., Any], *args: Any) -> Any:
        self._check()

        def run() -> None:
            try:
                if self.world.lag:
                    self._lag()
                fn(*args)
            except Stopped:
                pass
            except Exception as exc:  # noqa: BLE001 - raised again in the scheduler
                if not self.killed:
                    self.crashed(name, exc)
            finally:
                task.done.set()

        fiber = self.world.spawn(self, name, run)
        self.fibers = [f for f in self.fibers if not f.ended]
        self.fibers.append(fiber)
        task = SimTask(self, fiber)
        return task

    def crashed(self, name: str, error: Exception) -> None:
        """A loop ended by an error that it should have handled: a defect of ours."""
        raise error

    def carry_on(self, steps: Steps[None]) -> None:
        value, error = None, None
        while True:
            try:
                call = steps.send(value) if error is None else steps.throw(error)
            except StopIteration:
                return
            value = error = None
            try:
                value = self._limited(*call)
            except BaseException as exc:  # noqa: BLE001 - whatever it is, the steps are to know
                error = exc

    def _limited(self, seconds: float, name: str, fn: Callable[[], T]) -> T:
        box: list[tuple[bool, Any]] = []
        done = SimEvent(self.world)

        def run() -> None:
            try:
                box.append((True, fn()))
            except Exception as exc:  # noqa: BLE001 - raised again by the caller
                box.append((False, exc))
            finally:
                done.set()

        self.spawn(f"call-{name}", run)
        if not self.wait(done, seconds):
            raise CallTimeout(f"{name} gave no answer within {seconds:g} s", "look at the host")
        good, value = box[0]
        if good:
            return value  # type: ignore[no-any-return]
        raise value

    def inbox(self) -> Any:
        return SimInbox(self)

    def native_thread(self, name: str, fn: Callable[[], Any]) -> None:
        raise AssertionError(f"{name}: a simulated process has no native threads")

    # lifetime

    def stop(self, timeout_s: float = 8.0) -> list[str]:
        self.stopping.set()
        end = self.monotonic() + timeout_s
        me = self.world.current()
        while any(not f.ended and f is not me for f in self.fibers) and self.monotonic() < end:
            self.world.pause(0.1)
        return [f.name for f in self.fibers if not f.ended and f is not me]

    def kill(self) -> None:
        """Every fiber ends where it stands; what is waited for is never seen again."""
        if self.killed:
            return
        self.killed = True
        self.stopping.set()
        me = greenlet.getcurrent()
        for fiber in self.fibers:
            if fiber is not me:
                self.world.throw(fiber)
        self.parked.clear()

    def freeze(self) -> None:
        self.frozen = True
        self.on_freeze()

    def thaw(self) -> None:
        self.frozen = False
        parked, self.parked = self.parked, []
        for fiber in parked:
            fiber.queued = False
            self.world.wake(fiber)

"""Simulated time and one scheduler: every step of every process is chosen by one seed."""

from __future__ import annotations

import contextlib
import datetime as dt
import heapq
import itertools
import random
from collections.abc import Callable
from typing import Any

import greenlet

from common.runtime import Stopped

EPOCH = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
# The bits of a UUID that say its version and variant, as RFC 9562 has them.
_UUID_4 = 4 << 76 | 0x8000 << 48
_UUID_MASK = ~(0xF000 << 64 | 0xC000 << 48)


class Fiber(greenlet.greenlet):  # type: ignore[misc] # it publishes no types
    """One thread of a simulated process."""

    owner: Any
    name: str
    number: int
    queued = False
    ended = False
    ticket = 0


class World:
    """The clock, the chance and the order of everything."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)  # noqa: S311 - chance must be repeatable here
        self.now_s = 0.0
        self.steps = 0
        self._ready: list[Fiber] = []
        self._timers: list[tuple[float, int, Fiber | None, int, Callable[[], None] | None]] = []
        self._numbers = itertools.count(1)
        self._main = greenlet.getcurrent()
        # Called between two steps once there is news: something that has to be judged.
        self.judge: Callable[[], None] = lambda: None
        self.news = False
        # (host or folder of a pool, instance, snapshot): what the disks held that it was made from.
        self.snapshots: dict[tuple[str, str, str], int] = {}
        self.written = 0
        # (host or folder of a pool, guest): its instance; what guests leave stays.
        self.disks: dict[tuple[str, str], str] = {}
        # How likely a thread is to get its turn late, as on a machine with too much to do.
        self.lag = 0.0

    # time and names

    def now(self) -> dt.datetime:
        return EPOCH + dt.timedelta(seconds=self.now_s)

    def new_id(self) -> str:
        number = self.random.getrandbits(128) & _UUID_MASK | _UUID_4
        text = f"{number:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def chance(self, probability: float) -> bool:
        return probability > 0 and self.random.random() < probability

    # fibers

    def spawn(self, owner: Any, name: str, fn: Callable[[], None]) -> Fiber:
        def run() -> None:
            try:
                fn()
            except Stopped:
                pass
            finally:
                fiber.ended = True

        fiber = Fiber(run, parent=self._main)
        fiber.owner, fiber.name, fiber.number = owner, name, next(self._numbers)
        self.wake(fiber)
        return fiber

    def current(self) -> Fiber | None:
        found = greenlet.getcurrent()
        return found if isinstance(found, Fiber) else None

    def wake(self, fiber: Fiber) -> None:
        """Make a fiber runnable; what of a frozen process wakes waits for its thaw."""
        if not fiber.queued and not fiber.ended:
            fiber.queued = True
            fiber.ticket += 1
            self._ready.append(fiber)

    def pause(self, timeout_s: float | None, fiber: Fiber | None = None) -> None:
        """Leave the current fiber until it is woken or the time has passed."""
        fiber = fiber or self.current()
        if fiber is None:
            raise AssertionError("only a simulated process can wait")
        if timeout_s is not None:
            at = self.now_s + max(0.0, timeout_s)
            heapq.heappush(self._timers, (at, next(self._numbers), fiber, fiber.ticket, None))
        self._main.switch()

    def yield_now(self) -> None:
        """Let any other fiber go first, if there is one, and what there is to judge be judged."""
        fiber = greenlet.getcurrent()
        if isinstance(fiber, Fiber) and (self._ready or self.news or fiber.owner.frozen):
            self.wake(fiber)
            self._main.switch()

    def after(self, seconds: float, fn: Callable[[], None]) -> None:
        """Do something to the world later; it is no part of any process."""
        at = self.now_s + max(0.0, seconds)
        heapq.heappush(self._timers, (at, next(self._numbers), None, 0, fn))

    # the scheduler

    def run(self, until_s: float, stop: Callable[[], bool] | None = None) -> None:
        """Let time pass up to `until_s`, or until `stop()` holds between two steps."""
        while True:
            if stop is not None and stop():
                return
            fiber = self._take()
            if fiber is not None:
                self.steps += 1
                fiber.queued = False
                fiber.switch()
                if self.news:
                    self.news = False
                    self.judge()
                continue
            if not self._timers or self._timers[0][0] > until_s:
                self.now_s = max(self.now_s, until_s)
                return
            at, _n, sleeper, ticket, act = heapq.heappop(self._timers)
            self.now_s = max(self.now_s, at)
            if act is not None:
                act()
                if self.news:
                    self.news = False
                    self.judge()
            elif sleeper is not None and sleeper.ticket == ticket:
                self.wake(sleeper)

    def _take(self) -> Fiber | None:
        ready, draw = self._ready, self.random.getrandbits
        while ready:
            # As randrange does it, which takes its time to look at what it was given.
            count = len(ready)
            at = draw(count.bit_length()) if count > 1 else 0
            while at >= count:
                at = draw(count.bit_length())
            fiber = ready[at]
            ready[at] = ready[-1]
            ready.pop()
            if fiber.ended:
                continue
            if fiber.owner is not None and fiber.owner.frozen:
                fiber.owner.parked.append(fiber)
                continue
            return fiber
        return None

    def throw(self, fiber: Fiber) -> None:
        """End a fiber where it stands, as the death of its process does."""
        if not fiber.ended and fiber is not greenlet.getcurrent():
            fiber.queued = False
            fiber.parent = greenlet.getcurrent()  # it comes back here when it has ended
            with contextlib.suppress(Stopped):  # one that has never run does not catch it
                fiber.throw(Stopped)
            fiber.ended = True

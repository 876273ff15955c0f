"""The only owner of threads, loops and time.

Services start nothing, sleep nowhere and read no clock but through a Runtime, so that the same
code runs on threads, on eventlet's green threads and, later, under a simulated scheduler.
This is the only module that knows of eventlet.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import datetime as dt
import functools
import logging
import math
import os
import queue
import random
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, NoReturn, TypeVar

from common.errors import BadConfig, CallTimeout

LOG = logging.getLogger(__name__)
T = TypeVar("T")

THREADING = "threading"
EVENTLET = "eventlet"
# A process that is told to stop has ended after ten seconds; this leaves two to a busy machine.
LAST_S = 8
PATIENCE_S = 1.0


class Stopped(BaseException):
    """Raised inside a loop of a runtime that has been killed; nothing may catch it but the loop."""


def prepare(executor: str) -> None:
    """Make the process fit for `executor`; must run before any other import touches sockets."""
    if executor == EVENTLET:
        late = [name for name in ("oslo_messaging", "kombu", "sqlalchemy") if name in sys.modules]
        if late:
            raise BadConfig(
                f"executor eventlet: {', '.join(late)} came before the patching",
                "start the process through its own command",
            )
        import eventlet

        eventlet.monkey_patch()
    elif executor != THREADING:
        raise BadConfig(
            f"[DEFAULT] executor: {executor!r} is unknown", f"use {THREADING} or {EVENTLET}"
        )


def end_within(seconds: int = LAST_S) -> None:
    """End this process, with status 0, if it has not ended by itself `seconds` from now.

    For a stop that what it waits for must not hold up: a C library, or a broker that is frozen.
    Only the main thread may call it.
    """

    def end(*_: object) -> None:
        os.write(2, f"still running {seconds} s after it was to stop: ended\n".encode())
        os._exit(0)

    if signal.getsignal(signal.SIGALRM) is signal.SIG_DFL:
        signal.signal(signal.SIGALRM, end)
        signal.alarm(seconds)


def end_now(status: int = 0) -> NoReturn:
    """End this process, its work done, without the interpreter's own farewell.

    That waits for threads and takes our signal handlers away first: the alarm of `end_within`
    would then end a process that had stopped in good order with an error.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


class Task:
    """A running piece of work; `join` waits for its end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.thread: threading.Thread | None = None
        # Held until the end: a bare lock, since an Event costs more than many a piece of work.
        self._busy = threading.Lock()
        self._busy.acquire()

    @property
    def alive(self) -> bool:
        return self._busy.locked()

    def join(self, timeout_s: float) -> bool:
        """True when the work ended within the limit."""
        if self._busy.acquire(timeout=max(0.0, timeout_s)):
            self._busy.release()
            return True
        return False

    def run(self, fn: Callable[[], None]) -> None:
        """Carry it out on the calling thread, which bears its name meanwhile."""
        self.thread = threading.current_thread()
        self.thread.name = self.name
        try:
            fn()
        finally:
            self._busy.release()


class _Stopping(threading.Event):
    """Set once and for all; it ends the waits for other events too."""

    def __init__(self) -> None:
        super().__init__()
        self._beside: dict[object, Any] = {}

    def set(self) -> None:
        super().set()
        for event in list(self._beside.values()):
            # Not for ever: a signal handler may have come upon its own thread, which holds it.
            if event._cond.acquire(timeout=PATIENCE_S):
                event._cond.notify_all()
                event._cond.release()

    def wait_beside(self, event: Any, timeout_s: float) -> None:
        """Wait for `event` or for the stop, whichever comes first."""
        token = object()
        self._beside[token] = event
        try:
            # Under its lock, which `set` takes: a stop comes before this look or wakes the wait.
            with event._cond:
                if not event.is_set() and not self.is_set():
                    event._cond.wait(max(0.0, timeout_s))
        finally:
            del self._beside[token]


class _Hands:
    """Threads that are used again: making one costs more than most of what is done on it."""

    IDLE_S = 10.0

    def __init__(self) -> None:
        self._idle: list[queue.SimpleQueue[Callable[[], None]]] = []

    def do(self, job: Callable[[], None]) -> None:
        """Run `job` on an idle thread, or on a new one."""
        try:
            box = self._idle.pop()
        except IndexError:
            box = queue.SimpleQueue()
            threading.Thread(target=self._loop, args=(box,), daemon=True).start()
        box.put(job)

    def _loop(self, box: queue.SimpleQueue[Callable[[], None]]) -> None:
        while True:
            try:
                job = box.get(timeout=self.IDLE_S)
            except queue.Empty:
                try:
                    self._idle.remove(box)
                except ValueError:
                    continue  # it is being given something to do just now
                return
            job()
            del job
            self._idle.append(box)


class Call(NamedTuple):
    """A call that may hang, for at most so many seconds."""

    seconds: float
    name: str
    fn: Callable[[], Any]


Steps = Generator[Call, Any, T]
"""Work that leaves each of its calls that may hang to `Runtime.carry_on`, for the sake of its
thread: it yields the call, is sent what that returned, and has thrown in what that raised."""


class _Watch:
    """One thread that sees to all calls under way, and does what is to be done for late ones."""

    IDLE_S = 3600.0

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._bell = threading.Event()
        self._out: set[_Watched] = set()
        self._next = math.inf
        self._runs = False

    def begin(self, seconds: float, late: Callable[[], Any]) -> _Watched:
        """`late` is done in `seconds`, unless `end` comes first."""
        call = _Watched(self._runtime.monotonic() + seconds, late)
        self._out.add(call)
        if not self._runs:
            self._runs = True
            self._runtime.spawn("watch", self._loop)
        elif call.deadline < self._next:
            self._bell.set()
        return call

    def end(self, call: _Watched) -> bool:
        """False when it was late: somebody else goes on."""
        try:
            self._out.remove(call)
        except KeyError:
            return False
        return True

    def _loop(self) -> None:
        while not self._runtime.stopping.is_set():
            # Until it is known when to look again, each new call rings.
            self._next = math.inf
            self._bell.clear()
            now = self._runtime.monotonic()
            soonest = now + self.IDLE_S
            for call in list(self._out):
                if call.deadline > now:
                    soonest = min(soonest, call.deadline)
                elif self.end(call):
                    try:
                        call.late()
                    except Exception:
                        LOG.exception("nobody goes on with a call that is late")
            self._next = soonest
            self._runtime.wait(self._bell, soonest - now)


class _Watched:
    """A call under way."""

    __slots__ = ("deadline", "late")

    def __init__(self, deadline: float, late: Callable[[], Any]) -> None:
        self.deadline = deadline
        self.late = late


class Runtime:
    """Threads and the machine's clocks.

    `stop` asks every loop to end and waits; `kill` makes them end at their next step without
    any clean-up, as a kill -9 would (for embedded agents, which share a process).
    """

    def __init__(self, name: str = "main") -> None:
        self.name = name
        self.stopping = _Stopping()
        self.killed = False
        self._tasks: list[Task] = []
        self._tidy_at = 32
        self._hands = _Hands()
        self._lock = threading.Lock()
        self._watch = _Watch(self)
        self._random = random.Random()  # noqa: S311 - jitter and MACs keep no secrets

    # time and chance

    def now(self) -> dt.datetime:
        """This machine's wall clock, UTC."""
        return dt.datetime.now(dt.UTC)

    def monotonic(self) -> float:
        """Seconds that only ever rise."""
        return time.monotonic()

    def new_id(self) -> str:
        """A fresh UUID."""
        return str(uuid.uuid4())

    def jitter(self, low: float, high: float) -> float:
        """A random number, so that many processes do not march in step."""
        return self._random.uniform(low, high)

    def random_below(self, limit: int) -> int:
        """A random whole number in [0, limit)."""
        return self._random.randrange(limit)

    # waiting

    def event(self) -> threading.Event:
        """A flag that `wait` can wait for."""
        return threading.Event()

    def lock(self) -> threading.RLock:
        """A lock that its holder may take again."""
        return threading.RLock()

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """True when `event` was set within the limit; ends early when the runtime stops."""
        self._check()
        if not event.is_set():
            self.stopping.wait_beside(event, timeout_s)
        self._check()
        return event.is_set()

    def sleep(self, seconds: float) -> None:
        """Let time pass; ends early when the runtime stops."""
        self._check()
        self.stopping.wait(seconds)
        self._check()

    def pause(self, seconds: float) -> None:
        """As `sleep`, for code that runs inside `offload`."""
        self.sleep(seconds)

    def _check(self) -> None:
        if self.killed:
            raise Stopped

    # work

    def spawn(self, name: str, fn: Callable[..., Any], *args: Any) -> Task:
        """Run `fn` beside the caller; an error is logged, never lost in silence."""

        def run() -> None:
            try:
                fn(*args)
            except Stopped:
                pass
            except Exception:
                if not self.killed:
                    LOG.exception("%s: %s ended by an error", self.name, name)

        self._check()
        task = Task(f"{self.name}/{name}")
        with self._lock:
            if len(self._tasks) >= self._tidy_at:
                self._tasks = [t for t in self._tasks if t.alive]
                self._tidy_at = 2 * len(self._tasks) + 32
            self._tasks.append(task)
        self._begin(lambda: task.run(run))
        return task

    def _begin(self, job: Callable[[], None]) -> None:
        self._hands.do(job)

    def every(
        self,
        name: str,
        seconds: float | Callable[[], float],
        fn: Callable[[], Any],
        wake: threading.Event | None = None,
    ) -> Task:
        """Run `fn` now and again every `seconds`, or at once when `wake` is set.

        After an error the next turn comes after a back-off of at most 10 s. An outage is logged
        when it begins, for each kind of error that is new in it, and when it is over.
        """
        bell = wake if wake is not None else self.event()

        def loop() -> None:
            failures, said = 0, set[type[Exception]]()
            while not self.stopping.is_set():
                self._check()
                bell.clear()
                try:
                    fn()
                    if failures:
                        LOG.info("%s: %s works again, at try %d", self.name, name, failures + 1)
                        failures = 0
                        said.clear()
                except Exception as exc:
                    if self.killed:
                        return
                    failures += 1
                    pause = min(10.0, 0.2 * 2**failures)
                    if type(exc) not in said:
                        said.add(type(exc))
                        LOG.warning(
                            "%s: %s failed, tried again until it works: %s", self.name, name, exc
                        )
                    LOG.debug("%s: %s, again in %.1f s", self.name, name, pause, exc_info=True)
                    self.sleep(pause)
                    continue
                self.wait(bell, seconds() if callable(seconds) else seconds)

        return self.spawn(name, loop)

    def offload(self, fn: Callable[..., T], *args: Any) -> T:
        """Call into a C library that may block; under eventlet it leaves the hub free."""
        return fn(*args)

    def carry_on(self, steps: Steps[None]) -> None:
        """Run `steps` and, where it is, each call that they yield.

        One that takes longer than it may keeps its thread for as long as it lasts; what it comes to
        is not wanted any more, and `steps` go on with CallTimeout on another thread.
        """
        self._go_on(steps, contextvars.copy_context(), None)

    def _go_on(
        self, steps: Steps[None], context: contextvars.Context, error: BaseException | None
    ) -> None:
        value: Any = None
        while True:
            try:
                if error is not None:
                    call = context.run(steps.throw, error)
                else:
                    call = context.run(steps.send, value)
            except StopIteration:
                return
            late = functools.partial(self._leave, call, steps, context)
            watched = self._watch.begin(call.seconds, late)
            value = error = None
            try:
                value = self.offload(call.fn)
                self._check()
            except BaseException as exc:  # noqa: BLE001 - whatever it is, the steps are to know
                error = exc
            if not self._watch.end(watched):
                return

    def _leave(self, call: Call, steps: Steps[None], context: contextvars.Context) -> None:
        """Go on without what a call may yet come to."""
        error = CallTimeout(
            f"{call.name} gave no answer within {call.seconds:g} s", "look at the host"
        )
        self.spawn(f"after-{call.name}", self._go_on, steps, context, error)

    def inbox(self) -> Inbox:
        """A queue that threads outside this runtime (a C library's) may put into."""
        return Inbox(self)

    def native_thread(self, name: str, fn: Callable[[], Any]) -> None:
        """Run `fn` on a real thread for good, such as a C library's event loop."""
        threading.Thread(target=fn, name=f"{self.name}/{name}", daemon=True).start()

    # lifetime

    def stop(self, timeout_s: float = 8.0) -> list[str]:
        """Ask all work to end; returns the names of what was still running at the limit."""
        self.stopping.set()
        deadline = self.monotonic() + timeout_s
        with self._lock:
            tasks = list(self._tasks)
        late = []
        for task in tasks:
            if task.alive and task.thread is threading.current_thread():
                continue
            if not task.join(max(0.0, deadline - self.monotonic())):
                late.append(task.name)
        return late

    def kill(self) -> None:
        """End without clean-up, as if the process had been killed."""
        self.killed = True
        self.stopping.set()


class Inbox:
    """Hands items of foreign threads to one of ours."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def put(self, item: Any) -> None:
        self._queue.put(item)

    def get(self, timeout_s: float) -> Any | None:
        """The next item, or None when none came within the limit or the runtime stops."""
        try:
            return self._queue.get(timeout=timeout_s)
        except queue.Empty:
            self._runtime._check()
            return None


class EventletRuntime(Runtime):
    """Green threads: `prepare("eventlet")` has patched the process, so threads are green already.

    Only calls into C libraries differ: they go to eventlet's pool of real threads. Green threads
    cost too little to be used again.
    """

    def _begin(self, job: Callable[[], None]) -> None:
        threading.Thread(target=job, daemon=True).start()

    def pause(self, seconds: float) -> None:
        from eventlet import patcher

        # A real thread of the pool must not wait for a green event: it would wake the wrong hub.
        native, deadline = patcher.original("time"), self.monotonic() + seconds
        while not self.stopping.is_set() and (left := deadline - self.monotonic()) > 0:
            native.sleep(min(left, 0.05))
        self._check()

    def offload(self, fn: Callable[..., T], *args: Any) -> T:
        from eventlet import tpool

        def run() -> tuple[bool, T | None]:
            try:
                return True, fn(*args)
            except Stopped:
                return False, None  # it would end the pool's thread

        finished, value = tpool.execute(run)
        if not finished:
            raise Stopped
        return value  # type: ignore[no-any-return]

    def inbox(self) -> Inbox:
        return _PipeInbox(self)

    def native_thread(self, name: str, fn: Callable[[], Any]) -> None:
        from eventlet import patcher

        native = patcher.original("threading")
        native.Thread(target=fn, name=f"{self.name}/{name}", daemon=True).start()


class _PipeInbox(Inbox):
    """Wakes the hub through a pipe: a green queue must not be touched from a real thread."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime)
        self._items: collections.deque[Any] = collections.deque()
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def put(self, item: Any) -> None:
        self._items.append(item)
        with contextlib.suppress(BlockingIOError):  # the pipe is full of wake-ups already
            os.write(self._write, b"x")

    def get(self, timeout_s: float) -> Any | None:
        from eventlet import Timeout, hubs

        if not self._items:
            try:
                with Timeout(timeout_s):
                    hubs.trampoline(self._read, read=True)
            except Timeout:
                self._runtime._check()
                return None
            with contextlib.suppress(BlockingIOError):  # an earlier read covered this item
                os.read(self._read, 65536)
        return self._items.popleft() if self._items else None


def make(executor: str, name: str) -> Runtime:
    """The runtime for an executor named in the configuration."""
    return EventletRuntime(name) if executor == EVENTLET else Runtime(name)

"""The operators, as a process of their own: one wish at a time, or as many as they can.

`python -m tests.bench.operators CONFIG DATABASE` takes a task a line on its input and answers with
a line, both JSON. How wishes are asked for is a `Way`; another one is another entry of WAYS.
"""

from __future__ import annotations

import collections
import itertools
import logging
import math
import os
import queue
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import msgspec

from common import conf
from common.bus import rabbit
from common.bus.base import ANY_MANAGER, Bus
from common.errors import MusterError, RemoteError
from common.runtime import Runtime
from tests.bench import counters, peer

SUCCEEDED = "SUCCEEDED"
CALL_S = 10.0
TRIES = 3
"""How often a wish is asked for, under the same job, when it is not accepted."""
LOOK_S = 0.02
END_S = 60.0
"""How long jobs may take to end once nothing more is asked for."""


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """One durable command: an RPC method and its arguments, the job's uuid among them."""

    method: str
    asked: dict[str, Any]

    @property
    def job(self) -> str:
        return str(self.asked["job"])


Draw = Callable[[bool], Wish | None]
"""The next wish; waits for one only when it is the first of its request."""


class Way(Protocol):
    """A way to ask for wishes, `size` at a time, by at most so many askers at once."""

    size: int
    askers: int

    def __call__(self, bus: Bus, wishes: Sequence[Wish]) -> list[dict[str, Any]]:
        """The accepted jobs, in the same order; MusterError when they were not accepted."""


class Single:
    """One RPC for each wish, as the `muster` command does."""

    size = 1
    askers = 1000

    def __call__(self, bus: Bus, wishes: Sequence[Wish]) -> list[dict[str, Any]]:
        return [bus.call(ANY_MANAGER, wish.method, wish.asked, CALL_S) for wish in wishes]


class Many:
    """Many wishes an RPC, as `muster vm stop` does for many VMs."""

    size = 50
    askers = 4  # more of them would only ask for fewer at a time

    def __call__(self, bus: Bus, wishes: Sequence[Wish]) -> list[dict[str, Any]]:
        asked = [[wish.method, wish.asked] for wish in wishes]
        answers = bus.call(ANY_MANAGER, "wishes", {"wishes": asked}, CALL_S)["answers"]
        for answer in answers:
            if "error" in answer:
                raise RemoteError(answer["error"])
        return [answer["answer"] for answer in answers]


WAYS: dict[str, Way] = {"one wish an RPC": Single(), "many wishes an RPC": Many()}


class Load(msgspec.Struct, kw_only=True):
    """What came of many wishes; a job that has not ended in time is in no state."""

    accepted: int = 0
    states: dict[str, int] = {}
    errors: dict[str, int] = {}
    seconds: float = 0.0
    """From the first request until the last job had ended."""

    @property
    def succeeded(self) -> int:
        return self.states.get(SUCCEEDED, 0)


class Operators:
    """They know which VMs run, and give none of them a command before its last one has ended."""

    def __init__(self, config: str, database: str) -> None:
        self._bus = rabbit.connect(
            conf.load("muster", ["--config-file", config]), Runtime("operators"), "client"
        )
        self._db = counters.observer(database)
        self._running: dict[str, bool] = {}
        self._deployed: list[str] = []

    # tasks

    def hosts_up(self) -> int:
        """How many hosts can be given commands."""
        try:
            answer = self._bus.call(ANY_MANAGER, "host_list", {}, 2.0)
        except MusterError:
            return 0
        return sum(host["state"] == "UP" for host in answer["hosts"])

    def create(self, hosts: list[str], count: int, threads: int) -> Load:
        """Deploy VMs, host after host, and wait until they run."""
        names = itertools.count()

        def draw(_first: bool) -> Wish | None:
            n = next(names)
            if n >= count:
                return None
            fields = {"name": f"web-{n}", "vcpus": 1, "memory_mib": 16}
            return _wish("vm_create", **fields, host=hosts[n % len(hosts)])

        def accepted(job: dict[str, Any]) -> None:
            self._running[str(job["instance"])] = True

        return self._ask(Single(), draw, threads, accepted=accepted)

    def apply(self, objects: dict[str, Any]) -> None:
        """Make what VMs are deployed with."""
        self._bus.call(ANY_MANAGER, "model_apply", {"objects": objects}, CALL_S)

    def deploy(self, count: int, threads: int) -> Load:
        """VMs with all that one can have, so many at a time; wait until they run."""
        names = (f"deployed-{n}" for n in itertools.count())
        fields = {"zone": "z1", "offering": "tiny", "template": "img"}

        def wish() -> Wish:
            return _wish("vm_create", name=next(names), networks=[{"network": "n1"}], **fields)

        def accepted(job: dict[str, Any]) -> None:
            self._deployed.append(str(job["instance"]))

        return self._each(wish, count, threads, accepted)

    def delete(self, count: int, threads: int) -> Load:
        """So many of the VMs that were deployed, until they are gone."""
        return self._each(
            lambda: _wish("vm_delete", vm=self._deployed.pop()), count, threads, lambda _job: None
        )

    def one(self, method: str, quiet_s: float = 0.0) -> dict[str, Any]:
        """Stop or start the VM that has waited longest; returns when the job has ended.

        Nobody looks for its end within `quiet_s` of the answer. `sent_ns` is CLOCK_MONOTONIC when
        the request is made, `answered_s` and `ended_s` the seconds from there until the job is
        accepted and has ended.
        """
        fitting = method == "vm_stop"
        vm = next(vm for vm, runs in self._running.items() if runs == fitting)
        wish = self._turn(vm)
        begun = time.monotonic_ns()
        self._bus.call(ANY_MANAGER, wish.method, wish.asked, CALL_S)
        answered = time.monotonic_ns()
        time.sleep(quiet_s)
        deadline = time.monotonic() + END_S
        while wish.job not in (ended := self._ended([wish.job])):
            if time.monotonic() > deadline:
                break
            time.sleep(LOOK_S / 4)
        state = ended.get(wish.job, "still open")
        if state != SUCCEEDED:
            self._running.pop(vm)
        return {
            "instance": vm,
            "job": wish.job,
            "method": method,
            "sent_ns": begun,
            "answered_s": (answered - begun) / 1e9,
            "ended_s": (time.monotonic_ns() - begun) / 1e9,
            "state": state,
        }

    def many(self, method: str, count: int) -> list[dict[str, Any]]:
        """`one` for so many VMs, one after the other."""
        return [self.one(method) for _ in range(count)]

    def load(self, way: str, seconds: float, threads: int, in_flight: int) -> Load:
        """Stops and starts for so long, without pause, then the wait for all of them.

        `threads` ask at the same time; `in_flight` is how many commands may not have ended.
        """
        ready: queue.SimpleQueue[str] = queue.SimpleQueue()
        # One that waits for its turn behind those in flight is handed out when one of them ends.
        vms = list(self._running)
        later = collections.deque(vms[in_flight:])
        for vm in vms[:in_flight]:
            ready.put(vm)
        until = time.monotonic() + seconds

        def draw(first: bool) -> Wish | None:
            left = until - time.monotonic()
            try:
                # What else goes into the same request is what is ready by then.
                return self._turn(ready.get(timeout=left) if first else ready.get_nowait())
            except (queue.Empty, ValueError):
                return None

        def succeeded(wish: Wish) -> None:
            later.append(wish.asked["vm"])
            ready.put(later.popleft())

        askers = min(threads, WAYS[way].askers)
        return self._ask(WAYS[way], draw, askers, succeeded=succeeded)

    # inside

    def _each(
        self,
        wish: Callable[[], Wish],
        count: int,
        threads: int,
        accepted: Callable[[dict[str, Any]], None],
    ) -> Load:
        """So many wishes, until all have ended; with one thread each before the next is asked."""
        whole = Load()
        for size in [1] * count if threads == 1 else [count]:
            left = iter([wish() for _ in range(size)])
            lock = threading.Lock()

            def draw(_first: bool, left: Iterator[Wish] = left, lock: Any = lock) -> Wish | None:
                with lock:
                    return next(left, None)

            load = self._ask(Single(), draw, threads, accepted=accepted)
            whole.accepted += load.accepted
            whole.seconds += load.seconds
            whole.states = dict(Counter(whole.states) + Counter(load.states))
            whole.errors = dict(Counter(whole.errors) + Counter(load.errors))
        return whole

    def _turn(self, vm: str) -> Wish:
        runs = self._running.pop(vm)
        self._running[vm] = not runs
        return _wish("vm_stop" if runs else "vm_start", vm=vm)

    def _ask(
        self,
        way: Way,
        draw: Draw,
        threads: int,
        *,
        accepted: Callable[[dict[str, Any]], None] = lambda _job: None,
        succeeded: Callable[[Wish], None] = lambda _wish: None,
    ) -> Load:
        """Ask for what `draw` gives until that is None, and wait for the end of all of it."""
        load, errors, states = Load(), Counter[str](), Counter[str]()
        lock, asked = threading.Lock(), threading.Event()
        waiting: dict[str, Wish] = {}

        def ask() -> None:
            while (first := draw(True)) is not None:
                wishes = [first]
                while len(wishes) < way.size and (more := draw(False)) is not None:
                    wishes.append(more)
                for _ in range(TRIES):
                    try:
                        jobs = way(self._bus, wishes)
                    except MusterError as exc:
                        with lock:
                            errors[exc.code] += len(wishes)
                        continue
                    with lock:
                        load.accepted += len(jobs)
                        waiting.update({wish.job: wish for wish in wishes})
                    for job in jobs:
                        accepted(job)
                    break

        def look() -> None:
            deadline = math.inf
            while time.monotonic() < deadline:
                last = asked.is_set()
                with lock:
                    jobs = list(waiting)
                if last and not jobs:
                    return
                for job, state in self._ended(jobs).items():
                    states[state] += 1
                    with lock:
                        wish = waiting.pop(job)
                    if state == SUCCEEDED:
                        succeeded(wish)
                    else:
                        self._running.pop(wish.asked.get("vm", ""), None)
                if last:
                    deadline = min(deadline, time.monotonic() + END_S)
                time.sleep(LOOK_S)

        begun = time.monotonic()
        looking = threading.Thread(target=look, daemon=True)
        asking = [threading.Thread(target=ask, daemon=True) for _ in range(threads)]
        for thread in (looking, *asking):
            thread.start()
        for thread in asking:
            thread.join()
        asked.set()
        looking.join()
        load.seconds = time.monotonic() - begun
        load.states, load.errors = dict(states), dict(errors)
        return load

    def _ended(self, jobs: list[str]) -> dict[str, str]:
        """{job: state} of those that have ended, as the database has it."""
        rows = self._db.execute(
            "SELECT uuid, state FROM jobs WHERE uuid = ANY(%s) AND ended_at IS NOT NULL", (jobs,)
        )
        return dict(rows.fetchall())


def _wish(method: str, **fields: Any) -> Wish:
    own = {"job": str(uuid.uuid4()), "operator": "bench", "reason": "a benchmark"}
    return Wish(method=method, asked={**own, **fields})


def main(config: str, database: str) -> None:
    logging.disable(logging.WARNING)
    operators = Operators(config, database)
    peer.say("ready")
    for line in sys.stdin:
        task = msgspec.json.decode(line)
        answer = getattr(operators, task.pop("do"))(**task)
        peer.say(msgspec.json.encode(answer).decode())
    # Not held up by the bus, whose broker may be gone by now.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])

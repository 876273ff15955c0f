"""Takes each command once, runs it in its turn and keeps its result until a manager has it."""

from __future__ import annotations

import collections
import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

import msgspec

from agent.answers import Answers
from agent.effects import Mode, Work
from agent.journal import Journal, Received, Reception, State
from agent.session import Session
from common import messages as m
from common.errors import IdReused, JournalUnavailable
from common.logs import about
from common.runtime import Runtime, Steps, Stopped

LOG = logging.getLogger(__name__)
A = TypeVar("A")
T = TypeVar("T")

JOURNAL_PAUSE_S = 2.0
# How long the write of a result waits for another that is to be expected.
GATHER_S = 0.004
IDLE_S = 3600.0


class _Arrival:
    """A command that has just come, and what became of it."""

    def __init__(self, command: m.Command) -> None:
        self.command = command
        self.received: Received | None = None
        self.begun = False
        self.done = False
        self.error: BaseException | None = None


class Commands:
    """The queue of this host: serial for an instance, by generation; instances in parallel.

    Nothing starts without a session, nor after `drain`.
    """

    def __init__(
        self,
        runtime: Runtime,
        journal: Journal,
        session: Session,
        answers: Answers,
        carry_out: Callable[[Work], Steps[m.Result]],
        max_parallel: int,
    ) -> None:
        self._runtime = runtime
        self._journal = journal
        self._session = session
        self._answers = answers
        self._carry_out = carry_out
        self._max_parallel = max_parallel
        self._lock = runtime.lock()
        self._idle = runtime.event()
        self._idle.set()
        self._draining = False
        self._queued: dict[str, list[Work]] = {}
        self._running: set[str] = set()
        self._steps: dict[str, tuple[m.Step, float]] = {}
        self._arrived: collections.deque[_Arrival] = collections.deque()
        self._ended: collections.deque[m.Result] = collections.deque()
        self._bell = runtime.event()

    def loop(self) -> None:
        """Write down what has ended, those that end together in one write; until the agent stops.

        Only then are they told, and may the next of their instances begin.
        """
        write = self._write_down_ended
        while not self._runtime.stopping.is_set():
            self._bell.clear()
            if not self._ended:
                self._runtime.wait(self._bell, IDLE_S)
                continue
            if len(self._running) > len(self._ended):
                self._runtime.sleep(GATHER_S)
            try:
                write()
                write = self._write_down_ended
            except JournalUnavailable as exc:
                LOG.error("tried again in %g s: %s", JOURNAL_PAUSE_S, exc)
                self._runtime.sleep(JOURNAL_PAUSE_S)
            except Exception:
                LOG.exception("what ended together is written one by one")
                write = self._write_down_each

    # what managers cast

    def take(self, command: m.Command) -> None:
        """A command of our fleet, host and session has arrived, perhaps not for the first time."""
        if command.kind is m.CommandKind.NOOP:
            # The canary: written down and answered. It waits for nothing that may take its time.
            self._journal.canary(command)
            self._answers.wake()
            return
        (error,) = self.take_all([command])
        if error is not None:
            raise error

    def take_all(self, commands: Iterable[m.Command]) -> list[BaseException | None]:
        """Several that came in one cast, none of them a canary; the error of each, if any."""
        arrivals = [_Arrival(command) for command in commands]
        self._arrived.extend(arrivals)
        with self._lock:
            if not all(arrival.done for arrival in arrivals):
                self._take_arrived()
        return [arrival.error for arrival in arrivals]

    def void(self, instance: str, generation: int) -> None:
        """Nothing up to `generation` may start any more; says what had become of it."""
        with self._lock:
            answer, ended = self._journal.void(instance, generation)
            self._forget(ended)
        LOG.info("void of %s up to %d: %s", instance, generation, answer.answer)
        self._answers.wake()

    # after a hello

    def settle(self, unfinished: Iterable[str], wanted: Iterable[str]) -> None:
        """Go through what the hello named: the wanted goes on, the rest is dropped or reported.

        What runs at this moment runs on: it can not be recalled, and tells its own result.
        """
        named, wanted = set(unfinished), set(wanted)
        with self._lock:
            for entry in self._journal.unfinished():
                command = entry.command
                if command.id not in named:
                    continue
                is_wanted = command.id in wanted
                if entry.state is State.RECEIVED and not is_wanted:
                    text = "not wanted any more when the host said hello"
                    self._journal.drop_unstarted(command.id, "NOT_WANTED", text)
                    self._forget([command.id])
                elif command.id not in self._steps:
                    mode = _mode(entry.state, is_wanted)
                    step = m.Step.RECEIVED if mode is Mode.FRESH else m.Step.STARTED
                    self._step(command.id, step)
                    self._enqueue(Work(command=command, mode=mode, note=entry.note))
        self._answers.wake()

    def go(self) -> None:
        """A session has begun: what waits may start."""
        self._pump()

    def receipts(self) -> tuple[m.Receipt, ...]:
        """How far each unfinished command is, for the heartbeats."""
        now = self._runtime.monotonic()
        with self._lock:
            return tuple(
                m.Receipt(command=c, step=step, age_s=max(0.0, now - at))
                for c, (step, at) in self._steps.items()
            )

    def drain(self, timeout_s: float) -> bool:
        """Start nothing more and wait for what runs; True when all of it ended in time."""
        with self._lock:
            self._draining = True
        return self._runtime.wait(self._idle, timeout_s)

    # inside

    def _take_arrived(self) -> None:
        """All that have arrived, in one transaction of the journal, by whoever came first."""
        arrivals = []
        while self._arrived:
            arrivals.append(self._arrived.popleft())
        try:
            with self._journal.together():
                self._write_down(arrivals)
        except BaseException as exc:  # noqa: BLE001 - each of the callers raises it
            for arrival in arrivals:
                arrival.error = exc
        else:
            for arrival in arrivals:
                self._accept(arrival)
        finally:
            for arrival in arrivals:
                arrival.done = True
        if any(a.received is not None and a.received.told for a in arrivals):
            self._answers.wake()
        self._pump()

    def _write_down(self, arrivals: list[_Arrival]) -> None:
        running, queued = set(self._running), list(self._queued)
        for arrival in arrivals:
            command = arrival.command
            try:
                arrival.received = self._journal.receive(command)
            except IdReused as exc:
                arrival.error = exc
                continue
            if arrival.received.reception is not Reception.NEW:
                continue
            # The next to start is one of those that wait already, if any of them may.
            if self._may_start(command.instance, running) and not any(
                self._may_start(instance, running) for instance in queued
            ):
                self._journal.start(command.id)
                arrival.begun = True
                running.add(command.instance)
            else:
                queued.append(command.instance)

    def _accept(self, arrival: _Arrival) -> None:
        """It is on disk: it may be told and carried out."""
        command, received = arrival.command, arrival.received
        if received is None:
            return
        if received.reception is Reception.NEW:
            self._forget(received.ended)
            self._step(command.id, m.Step.RECEIVED)
            if arrival.begun:
                self._launch(Work(command=command, mode=Mode.BEGUN))
            else:
                self._enqueue(Work(command=command))
        elif received.reception is Reception.KNOWN:
            now = self._runtime.monotonic()
            step, at = self._steps.get(command.id, (m.Step.RECEIVED, now))
            self._answers.receipt(command.id, step, at)

    def _enqueue(self, work: Work) -> None:
        waiting = self._queued.setdefault(work.command.instance, [])
        waiting.append(work)
        waiting.sort(key=lambda w: w.command.generation)

    def _step(self, command: str, step: m.Step) -> None:
        self._steps[command] = (step, self._runtime.monotonic())
        self._answers.receipt(command, *self._steps[command])

    def _forget(self, ids: Iterable[str]) -> None:
        """These have ended without having started."""
        gone = set(ids)
        for command in gone:
            self._steps.pop(command, None)
        if gone:
            self._dequeue(gone, list(self._queued))

    def _dequeue(self, ids: set[str], instances: Iterable[str]) -> None:
        for instance in instances:
            left = [w for w in self._queued.pop(instance, ()) if w.command.id not in ids]
            if left:
                self._queued[instance] = left

    def _may_start(self, instance: str, running: set[str]) -> bool:
        """True when the next command of an instance has its turn beside those that run."""
        return (
            not self._draining
            and self._session.current is not None
            and len(running) < self._max_parallel
            and instance not in running
        )

    def _following(self, running: set[str]) -> list[Work]:
        """Those that may start beside what runs."""
        found, beside = [], set(running)
        for instance, waiting in self._queued.items():
            if self._may_start(instance, beside):
                beside.add(instance)
                found.append(waiting[0])
        return found

    def _pump(self) -> None:
        """Start what may start."""
        with self._lock:
            for work in self._following(self._running):
                self._launch(work)

    def _launch(self, work: Work) -> None:
        instance = work.command.instance
        self._dequeue({work.command.id}, [instance])
        self._running.add(instance)
        self._idle.clear()
        steps = self._run(work)
        self._runtime.spawn(f"command-{work.command.id}", self._runtime.carry_on, steps)

    def _run(self, work: Work) -> Steps[None]:
        command = work.command
        result = None
        try:
            with about(command=command.id, instance=command.instance):
                # One that was voided or superseded since it was queued has ended already; the next
                # of its instance must have its turn all the same.
                if work.mode is not Mode.FRESH or self._insist(self._journal.start, command.id):
                    with self._lock:
                        self._step(command.id, m.Step.STARTED)
                    result = yield from self._carry_out(work)
                    LOG.info("%s: %s", command.kind, result.outcome)
        finally:
            if result is None:
                with self._lock:
                    self._over(command.id, command.instance)
                self._answers.wake()
                self._pump()
            else:
                self._ended.append(result)
                self._bell.set()

    def _write_down_ended(self) -> None:
        """Also, in the same write, that those begin whose turn it is now."""
        with self._lock:
            results = list(self._ended)
            following = self._following(self._running - {r.instance for r in results})
            with self._journal.together():
                self._journal.finish(*results)
                for n, work in enumerate(following):
                    if work.mode is Mode.FRESH and self._journal.start(work.command.id):
                        following[n] = msgspec.structs.replace(work, mode=Mode.BEGUN)
            for result in results:
                self._ended.popleft()
                self._over(result.command, result.instance)
            for work in following:
                self._launch(work)
            more = bool(self._running)
        self._answers.wake(more=more)

    def _write_down_each(self) -> None:
        """One that can not be written must not keep the others, nor this agent, from going on."""
        with self._lock:
            while self._ended:
                result = self._ended[0]
                try:
                    self._journal.finish(result)
                except JournalUnavailable:
                    raise
                except Exception:
                    LOG.exception("the result of %s can not be written", result.command)
                    self._journal.finish(_unwritable(result))
                self._ended.popleft()
                self._over(result.command, result.instance)
        self._answers.wake()
        self._pump()

    def _over(self, command: str, instance: str) -> None:
        self._steps.pop(command, None)
        self._running.discard(instance)
        if not self._running:
            self._idle.set()

    def _insist(self, write: Callable[[A], T], argument: A) -> T:
        """What has been begun must be written down, however long the disk takes."""
        while True:
            try:
                return write(argument)
            except JournalUnavailable as exc:
                if self._runtime.stopping.is_set():
                    raise Stopped from None
                LOG.error("tried again in %g s: %s", JOURNAL_PAUSE_S, exc)
                self._runtime.sleep(JOURNAL_PAUSE_S)


def _unwritable(result: m.Result) -> m.Result:
    """What can be told of a result that can not."""
    return msgspec.structs.replace(
        result,
        outcome=m.Outcome.FAILED,
        error_code="INTERNAL_ERROR",
        error=f"it {result.outcome}, and its result could not be written: see its agent's log",
        look=None,
        phases=(),
    )


def _mode(state: State, wanted: bool) -> Mode:
    if state is State.RECEIVED:
        return Mode.FRESH
    return Mode.RESUME if wanted else Mode.ABANDON

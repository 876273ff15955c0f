"""The storm: who is killed, frozen, cut off or robbed of its queues, in the order of one seed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

from devstack.faults.field import Field
from devstack.parts.base import children_of

# Seconds; longer than service_down_time at the far end, so that hosts also become DOWN.
SHORT, LONG = 0.3, 9.0
Blow = Callable[[random.Random], tuple[str, Callable[[], None]]]


class Storm:
    """Two hands strike at once: one at managers, agents and hosts, one at broker and database.

    Each deals its kinds of fault like a shuffled pack of cards, so that a short run meets all.
    """

    def __init__(self, field: Field, seed: str) -> None:
        self._field, self._seed = field, seed
        self._stopping = threading.Event()
        self._hands: list[threading.Thread] = []
        self.faults: Counter[str] = Counter()
        self.last = "none yet"
        self.failure: BaseException | None = None

    def begin(self) -> None:
        processes: list[Blow] = [
            self._kill_manager,
            self._kill_agent,
            self._freeze_manager,
            self._freeze_agent,
            self._partition,
            self._kill_agent,
            self._break_hypervisor,
            self._lose_journal,
            self._roll_back_journal,
        ]
        parts: list[Blow] = [
            self._kill_broker,
            self._kill_database,
            self._lose_queues,
            self._freeze_database,
            self._freeze_broker,
            self._power_cut,
        ]
        for name, blows, low, high in (
            ("processes", processes, 0.5, 3.0),
            ("parts", parts, 2.0, 14.0),
        ):
            hand = threading.Thread(
                target=self._strike, args=(name, blows, low, high), name=name, daemon=True
            )
            self._hands.append(hand)
            hand.start()

    def end(self) -> None:
        """No new faults; returns when those that were under way have been undone."""
        self._stopping.set()
        for hand in self._hands:
            hand.join()

    def _strike(self, name: str, blows: list[Blow], low: float, high: float) -> None:
        dice = random.Random(f"{self._seed}/{name}")  # noqa: S311 - chance, no secret
        pack: list[Blow] = []
        try:
            while not self._stopping.wait(dice.uniform(low, high)):
                if not pack:
                    pack = dice.sample(blows, len(blows))
                what, blow = pack.pop()(dice)
                self.last = what
                self.faults[what.partition(":")[0]] += 1
                blow()
        except BaseException as exc:
            self.failure = exc
            raise

    # managers, agents, hosts

    def _kill_manager(self, dice: random.Random) -> tuple[str, Callable[[], None]]:
        name, pause = dice.choice(self._field.manager_names), dice.uniform(0.0, 3.0)

        def blow() -> None:
            with self._field.locks[name]:
                self._field.fleet.managers[name].kill()
                self._rest(pause)
                self._field.fleet.start_manager(name)

        return f"kill -9 of a manager: {name}", blow

    def _kill_agent(self, dice: random.Random) -> tuple[str, Callable[[], None]]:
        host, pause = dice.choice(self._field.hosts), dice.uniform(0.0, LONG)

        def blow() -> None:
            with self._field.locks[host]:
                self._field.fleet.agents[host].kill()
                self._rest(pause)
                self._field.fleet.start_agent(host)

        return f"kill -9 of an agent: {host}", blow

    def _lose_journal(self, dice: random.Random) -> tuple[str, Callable[[], None]]:
        host, pause = dice.choice(self._field.hosts), dice.uniform(0.0, LONG)

        def blow() -> None:
            with self._field.locks[host]:
                self._field.fleet.agents[host].kill()
                self._field.forget(host)
                self._rest(pause)
                self._field.fleet.start_agent(host)

        return f"loss of an agent's journal: {host}", blow

    def _roll_back_journal(self, dice: random.Random) -> tuple[str, Callable[[], None]]:
        host, older = dice.choice(self._field.hosts), dice.uniform(SHORT, LONG)
        pause = dice.uniform(0.0, LONG / 2)

        def blow() -> None:
            with self._field.kept_aside(host) as aside:
                self._rest(older)
                with self._field.locks[host]:
                    self._field.fleet.agents[host].kill()
                    self._field.forget(host, aside)
                    self._rest(pause)
                    self._field.fleet.start_agent(host)

        return f"older copy of an agent's journal: {host}", blow

    def _freeze_manager(self, dice: random.Random) -> tuple[str, Callable[[], None]]:
        name, pause = dice.choice(self._field.manager_names), dice.uniform(SHORT, LONG)

        def blow() -> None:
            with self._field.locks[name]:
                self._frozen([self._field.fleet.managers[name].pid], pause)

        return f"SIGSTOP of a manager: {name}", blow

    def _freeze_agent(self, dice: random.Random) -> tuple[str, Callable[[], None]]:
        host, pause = dice.choice(self._field.hosts), dice.uniform(SHORT, LONG)

        def blow() -> None:
            with self._field.locks[host]:
                self._frozen([self._field.fleet.agents[host].pid], pause)

        return f"SIGSTOP of an agent: {host}", blow

    def _partition(self, dice: random.Random) -> tuple[str, Callable[[], None]]:
        host, pause = dice.choice(self._field.hosts), dice.uniform(SHORT, 2 * LONG)
        network = self._field.network
        if network is None:
            return self._freeze_agent(dice)

        def blow() -> None:
            network.cut(host)
            self._rest(pause)
            network.mend(host)

        return f"partition of a host: {host}", blow

    def _break_hypervisor(self, dice: random.Random) -> tuple[str, Callable[[], None]]:
        host, pause = dice.choice(self._field.hosts), dice.uniform(SHORT, LONG / 2)

        def blow() -> None:
            with self._field.consoles:
                self._field.hypervisors[host].break_down()
                self._rest(pause)
                self._field.hypervisors[host].mend()

        return f"hypervisor stops answering: {host}", blow

    # broker and database

    def _kill_broker(self, dice: random.Random) -> tuple[str, Callable[[], None]]:
        pause = dice.uniform(0.0, 3.0)

        def blow() -> None:
            self._field.rabbit.kill()
            self._rest(pause)
            self._field.rabbit.start()

        return "kill -9 of RabbitMQ", blow

    def _lose_queues(self, dice: random.Random) -> tuple[str, Callable[[], None]]:
        pause = dice.uniform(0.0, 3.0)

        def blow() -> None:
            self._field.rabbit.kill()
            self._field.rabbit.lose_data()
            self._rest(pause)
            self._field.rabbit.start()

        return "RabbitMQ loses all queues", blow

    def _freeze_broker(self, dice: random.Random) -> tuple[str, Callable[[], None]]:
        pause = dice.uniform(SHORT, LONG)
        return "SIGSTOP of RabbitMQ", lambda: self._frozen([self._field.rabbit.pid], pause)

    def _kill_database(self, dice: random.Random) -> tuple[str, Callable[[], None]]:
        pause = dice.uniform(0.0, 3.0)

        def blow() -> None:
            self._field.postgres.kill()
            self._rest(pause)
            self._field.postgres.start()

        return "kill -9 of PostgreSQL", blow

    def _freeze_database(self, dice: random.Random) -> tuple[str, Callable[[], None]]:
        pause = dice.uniform(SHORT, LONG / 2)

        def blow() -> None:
            # The postmaster first: it starts no more sessions while we stop the others.
            pid = self._field.postgres.pid
            os.kill(pid, signal.SIGSTOP)
            self._frozen([pid, *children_of(pid)], pause)

        return "SIGSTOP of PostgreSQL", blow

    def _power_cut(self, dice: random.Random) -> tuple[str, Callable[[], None]]:
        pause = dice.uniform(0.0, 3.0)
        field, fleet = self._field, self._field.fleet

        def blow() -> None:
            with contextlib.ExitStack() as held:
                for lock in field.locks.values():
                    held.enter_context(lock)
                services = [*fleet.managers.values(), *fleet.agents.values()]
                for service in services:
                    service.signal(signal.SIGKILL)
                field.rabbit.kill()
                field.postgres.kill()
                for service in services:
                    service.kill()
                self._rest(pause)
                field.postgres.start()
                field.rabbit.start()
                for name in field.manager_names:
                    fleet.start_manager(name)
                for host in field.hosts:
                    fleet.start_agent(host)

        return "kill -9 of everything", blow

    # inside

    def _rest(self, seconds: float) -> None:
        """Let a fault last; shorter once the storm is to end."""
        self._stopping.wait(seconds)

    def _frozen(self, pids: list[int], seconds: float) -> None:
        with _stopped(pids):
            self._rest(seconds)


@contextlib.contextmanager
def _stopped(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


class Supervisor(threading.Thread):
    """Starts again what ended by itself, as systemd would on a real host, and says so."""

    def __init__(self, field: Field) -> None:
        super().__init__(name="supervisor", daemon=True)
        self._field = field
        self._stopping = threading.Event()
        self.ended: list[str] = []

    def end(self) -> None:
        """Look after nothing any more."""
        self._stopping.set()
        if self.is_alive():
            self.join()

    def run(self) -> None:
        while not self._stopping.wait(0.5):
            for name in (*self._field.manager_names, *self._field.hosts):
                lock = self._field.locks[name]
                # One that is held has been killed or stopped on purpose.
                if lock.acquire(blocking=False):
                    try:
                        self._look(name)
                    finally:
                        lock.release()

    def _look(self, name: str) -> None:
        fleet = self._field.fleet
        agent = name in self._field.hosts
        service = (fleet.agents if agent else fleet.managers)[name]
        if service.running() or self._stopping.is_set():
            return
        when = time.strftime("%H:%M:%S", time.gmtime())
        self.ended.append(f"{when} {name} ended by itself, status {service.popen.returncode}")
        if agent:
            fleet.start_agent(name)
        else:
            fleet.start_manager(name)

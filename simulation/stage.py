"""The stage of a scenario: a fleet without chance, which tells what happens in people's names.

Traps are what a scenario lays for the next thing of its kind: `the next start_vm to h1 is lost`.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from common import messages as m
from common.bus.base import Address
from common.conf import Settings
from common.errors import HypervisorError, MusterError, TemplateInvalid
from common.messages import AGENT_TOPIC
from common.runtime import Stopped
from manager.api.endpoint import Wished
from manager.service import Manager
from manager.store.cleanups import Cleanup
from manager.store.engine import Tx
from manager.store.tombstones import Tombstone
from simulation.fleet import AgentProcess, ManagerProcess, Process, SimFleet
from simulation.hypervisor import Hypervisor, SimDriver, SimGuest
from simulation.ports import FaultyBus, SimStore
from simulation.runtime import SimRuntime
from simulation.world import Fiber, World

T = TypeVar("T")
NOOP = "noop"  # canaries come and go in every scenario: left out of its log
UNKNOWN = "(an id)"
_BY_CODE: dict[str, type[MusterError]] = {
    error.code: error for error in (HypervisorError, TemplateInvalid)
}
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class NoChance(random.Random):
    """Always the middle, and every id once."""

    def __init__(self) -> None:
        super().__init__(0)
        self._ids = 0

    def random(self) -> float:
        return 0.5

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2

    def getrandbits(self, k: int, /) -> int:
        self._ids += 1
        return self._ids

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        self._ids += 1
        return self._ids % start


class OrderlyWorld(World):
    """First come, first served: nothing hangs on a draw, so that a log changes with its cause."""

    def __init__(self) -> None:
        super().__init__(0)
        self.random = NoChance()

    def _take(self) -> Fiber | None:
        while self._ready:
            fiber = self._ready.pop(0)
            if fiber.ended:
                continue
            if fiber.owner is not None and fiber.owner.frozen:
                fiber.owner.parked.append(fiber)
                continue
            return fiber
        return None


@dataclass
class Trap:
    """What happens to the next `what` at `where` (a host; "" anywhere).

    `how`: lost, twice, late, fails, fails-after, hangs, hangs-after, freezes, before, after (its
    process dies on that side of it), refused (with `code`). `seconds` is for late and hangs.
    """

    what: str
    where: str
    how: str
    seconds: float = 0.0
    code: str = ""


class Stage(SimFleet):
    """A fleet that keeps the log of a scenario. Names for ids are given as they appear."""

    def __init__(
        self, hosts: tuple[str, ...], managers: int, changes: tuple[tuple[str, str, str], ...]
    ) -> None:
        self._aliases: dict[str, str] = {}
        self._counts: Counter[str] = Counter()
        self._changes = changes
        self._cast: set[str] = set()
        self._seen: Counter[str] = Counter()
        self.canaries: set[str] = set()
        self.traps: list[Trap] = []
        self.telling = False
        super().__init__(0, managers=managers, hosts=hosts, world=OrderlyWorld())
        # Beside the store, which is told of nothing: there is but this one connection.
        self._tables: Any = self.database.raw

    def settings(self, name: str) -> Settings:
        settings = super().settings(name.partition("'")[0])
        if settings.agent.state_dir:
            agent = msgspec.structs.replace(settings.agent, state_dir=str(self.folder / name))
            settings = msgspec.structs.replace(settings, agent=agent)
        # Canaries wake the publisher, and would shift the time of everything else.
        quiet = msgspec.structs.replace(settings.manager, canary_interval=0.0)
        settings = msgspec.structs.replace(settings, manager=quiet)
        for group, option, value in self._changes:
            old = getattr(settings, group)
            new = msgspec.convert(value, type(getattr(old, option)), strict=False)
            changed = msgspec.structs.replace(old, **{option: new})
            settings = msgspec.structs.replace(settings, **{group: changed})
        return settings

    def start(self) -> None:
        """One process after the other, at times of their own: what a scenario does on the full
        second comes between two beats and two ticks, and never in a tie with one."""
        for n, process in enumerate(self.processes):
            self.world.after(0.3 + 0.27 * n, process.start)

    # the log

    def tell(self, line: str) -> None:
        if self.telling:
            line = line if line.startswith((">", " ")) else f"  {line}"
            self.lines.append(f"{self.world.now_s:6.1f}  {self.in_names(line)}")

    def in_names(self, text: str) -> str:
        named = _UUID.sub(lambda found: self._aliases.get(found[0], UNKNOWN), text)
        return named.replace("job job", "job")

    def call_it(self, uuid: str, name: str) -> str:
        """A name for an id, once: web-1, and web-1' for the next one of that name."""
        if uuid not in self._aliases:
            self._counts[name] += 1
            self._aliases[uuid] = name + "'" * (self._counts[name] - 1)
        return self._aliases[uuid]

    def number(self, kind: str, uuid: str) -> str:
        """A numbered name for an id: job 1, job 2, ..."""
        if uuid not in self._aliases:
            self._counts[kind] += 1
            self._aliases[uuid] = f"{kind} {self._counts[kind]}"
        return self._aliases[uuid]

    def uuid_of(self, name: str) -> str:
        """The id that was given this name; KeyError when none was."""
        return {known: uuid for uuid, known in self._aliases.items()}[name]

    def stone_of(self, vm: str, host: str) -> str:
        """The tombstone of a VM by its name, on a host; KeyError when there is none."""
        at = Tombstone.__table__.c
        stone = self.read(lambda tx: tx.first(Tombstone, at.name == vm, at.host == host))
        if stone is None:
            raise KeyError(f"tombstone of {vm} at {host}")
        return str(stone.uuid)

    def item_of(self, vm: str) -> str:
        """The open clean-up item of a VM by its name; KeyError when there is none."""
        at = Cleanup.__table__.c
        item = self.read(lambda tx: tx.first(Cleanup, at.name == vm, at.ended_at.is_(None)))
        if item is None:
            raise KeyError(f"clean-up of {vm}")
        return str(item.uuid)

    def name_of(self, uuid: str) -> str:
        return self._aliases.get(uuid, "?")

    def tell_cast(self, sender: str, to: Address, method: str, kwargs: Mapping[str, Any]) -> None:
        if method == "void":
            what = f"void of {kwargs['instance']} up to {kwargs['generation']}"
            self.tell(f"  {sender} -> {to.server}: {what}")
        elif method == "commands":
            for command in kwargs["commands"]:
                self.tell_cast(sender, to, command["kind"], {"command": command})
        elif method == NOOP:
            self.canaries.add(kwargs["command"]["id"])
        elif "command" in kwargs:
            command = kwargs["command"]
            again = ", again" if command["id"] in self._cast else ""
            self._cast.add(command["id"])
            self._aliases[command["id"]] = f"({command['generation']})"
            what = f"{method} {command['instance']} ({command['generation']})"
            self.tell(f"  {sender} -> {to.server}: {what}{again}")

    def tell_answers(self, sender: str, answers: m.Answers) -> None:
        for result in answers.results:
            if result.kind == NOOP:
                continue
            why = f": {result.error_code}: {result.error}" if result.error_code else ""
            what = f"{result.kind} {result.instance} ({result.generation})"
            self.tell(f"  {sender} answers: {what} {result.outcome.upper()}{why}")
        for void in answers.voids:
            what = f"void of {void.instance} up to {void.generation}"
            self.tell(f"  {sender} answers: {what}: {void.answer.upper()}")
        for refusal in answers.refusals:
            self.tell(f"  {sender} refuses: {refusal.code}: {refusal.message}")

    def tell_news(self) -> None:
        """What was committed since the last time: names for what is new, and the events."""
        for table, named in (("instances", True), ("jobs", False)):
            columns = "rowid, uuid, name" if named else "rowid, uuid, kind"
            for number, uuid, name in self._new_rows(table, columns):
                self._seen[table] = number
                if named:
                    self.call_it(uuid, name)
                else:
                    self.number("job", uuid)
        for number, kind, about, text in self._new_rows("events", "rowid, kind, object, text"):
            self._seen["events"] = number
            about, text = self.in_names(about), self.in_names(text)
            about = "" if text.startswith(about) or about == UNKNOWN else f"{about}: "
            self.tell(f"  {kind}: {about}{text}")

    def _new_rows(self, table: str, columns: str) -> list[tuple[Any, ...]]:
        last = self._seen[table]
        query = f"SELECT {columns} FROM {table} WHERE rowid > ? ORDER BY rowid"  # noqa: S608 - ours
        return list(self._tables.execute(query, (last,)))

    def keep_database(self) -> None:
        """A backup of the database as it is now."""
        self._backup = self.database.copy()

    def roll_back_database(self) -> None:
        """The backup is restored: what came after it has never been."""
        self.database.restore(self._backup)
        for table in self._seen:
            query = f"SELECT max(rowid) FROM {table}"  # noqa: S608 - ours
            self._seen[table] = self._tables.execute(query).fetchone()[0] or 0

    # traps

    def sprung(self, what: str, where: str, *hows: str) -> Trap | None:
        """The first trap that fits, taken away."""
        for trap in self.traps:
            if trap.what == what and trap.where in ("", where) and trap.how in hows:
                self.traps.remove(trap)
                return trap
        return None

    def die(self, process: Process) -> None:
        process.kill()
        raise Stopped


class StageBus(FaultyBus):
    """A process's bus, with traps for what goes over it."""

    def __init__(self, process: Process, stage: Stage) -> None:
        runtime = process.runtime
        assert runtime is not None
        super().__init__(process.bus.inner, runtime, stage.chaos, process.died)
        self._process, self._stage = process, stage

    def cast(self, to: Address, method: str, kwargs: Mapping[str, Any]) -> None:
        def send() -> None:
            self.inner.cast(to, method, kwargs)

        def told() -> None:
            if self.inner.connected:
                self._stage.tell_cast(self._process.name, to, method, kwargs)

        self._through(method, to.server or "", send, told)

    def publish(self, key: str, body: bytes, ttl_s: float | None = None) -> None:
        kind, _, host = key.partition(".")
        answers = m.decode(body, m.Answers) if kind == "result" else None
        if answers is not None and not _tells(answers):
            of_canaries = {r.command for r in answers.receipts} <= self._stage.canaries
            kind = "canary" if of_canaries else "receipt"

        def told() -> None:
            if answers is not None and self.inner.connected:
                self._stage.tell_answers(self._process.name, answers)

        self._through(kind, host, lambda: self.inner.publish(key, body, ttl_s), told)

    def _through(
        self, what: str, where: str, send: Callable[[], None], told: Callable[[], None]
    ) -> None:
        stage, world = self._stage, self._stage.world
        if stage.sprung(what, where, "before"):
            stage.die(self._process)
        told()
        if stage.sprung(what, where, "lost"):
            stage.tell(f"  ... which is lost: {what}")
            return
        late = stage.sprung(what, where, "late")
        if late is not None:
            stage.tell(f"  ... which comes {late.seconds:g} s late: {what}")
            world.after(late.seconds, send)
            return
        send()
        twice = stage.sprung(what, where, "twice")
        if twice is not None:
            stage.tell(f"  ... which comes again in {twice.seconds:g} s: {what}")
            world.after(twice.seconds, send)
        if stage.sprung(what, where, "after"):
            stage.die(self._process)


class StageStore(SimStore):
    """A manager's store: tells what it commits, and has traps on both sides of a commit."""

    def __init__(self, process: ManagerProcess, stage: Stage, runtime: SimRuntime) -> None:
        super().__init__(stage.database, runtime, stage.chaos, process.died)
        self._process, self._stage = process, stage
        self._traps: list[tuple[str, str]] = []

    def run(self, handler: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        what, where = _about(handler, args)

        def and_perhaps_die(tx: Tx, *a: Any, **k: Any) -> T:
            value = handler(tx, *a, **k)
            whats = [what, "claim"] if _claims(tx) else [what]
            self._traps = [(f"commit of {each}", where) for each in whats]
            if self._sprung("before"):
                self._stage.die(self._process)
            return value

        return super().run(and_perhaps_die, *args, **kwargs)

    def _committed(self, tx: Tx) -> None:
        self._stage.tell_news()
        if self._sprung("after"):
            self._stage.die(self._process)
        if self._sprung("freezes"):
            self._stage.tell(f"{self._process.name} is stopped (SIGSTOP)")
            self._sim.freeze()
            self._sim.point()
        super()._committed(tx)

    def _sprung(self, how: str) -> bool:
        return any(self._stage.sprung(what, where, how) for what, where in self._traps)


def _about(handler: Callable[..., Any], args: tuple[Any, ...]) -> tuple[str, str]:
    """What a transaction is about, in the words of a trap, and of which host."""
    message = args[1] if len(args) > 1 else None
    if isinstance(message, m.Answers | m.Heartbeat):
        return ("result" if _tells(message) else "report"), message.host
    about = message.handler if isinstance(message, Wished) else handler
    return getattr(about, "__name__", "").replace("_", " "), ""


def _tells(message: m.Answers | m.Heartbeat) -> bool:
    """Does it tell the end of anything but a canary?"""
    return bool(message.voids) or any(r.kind != NOOP for r in message.results)


def _claims(tx: Tx) -> bool:
    """Has it claimed a command, to be cast after its commit?"""
    return any("command" in cast.kwargs and cast.method != NOOP for cast in tx.casts)


class StageHypervisor(Hypervisor):
    """Tells every change that an agent makes."""

    def __init__(self, stage: Stage, host: str) -> None:
        super().__init__(stage.world, host)
        self._stage = stage

    def note(self, by: str, verb: str, guest: SimGuest) -> None:
        super().note(by, verb, guest)
        if by != "agent":
            return
        mark = guest.mark
        if guest.stranger or mark is None:
            raise AssertionError(f"a stranger's VM on {self.host} was touched: {verb} {guest.name}")
        name = self._stage.call_it(mark.instance, guest.name)
        self._stage.tell(f"  at {self.host}: {verb} {name} ({mark.generation})")

    def cleaned(self, instance: str, guest: str = "") -> None:
        super().cleaned(instance, guest)
        name = self._stage.name_of(instance)
        self._stage.tell(f"  at {self.host}: clean up what {name} has left")


class StageDriver(SimDriver):
    """The driver of one agent's life, with traps on both sides of each call."""

    def __init__(self, process: StageAgent, stage: Stage, runtime: SimRuntime) -> None:
        super().__init__(process.hypervisor, runtime)
        self._process, self._stage = process, stage

    def _before(self, op: str, changing: bool = True) -> None:
        stage, host = self._stage, self._process.name
        if stage.sprung(op, host, "before"):
            stage.die(self._process)
        hangs = stage.sprung(op, host, "hangs")
        if hangs is not None:
            stage.tell(f"  {op} at {host} hangs for {hangs.seconds:g} s")
            self._runtime.sleep(hangs.seconds)
        if stage.sprung(op, host, "fails"):
            raise HypervisorError(f"{op} fails", "")
        refused = stage.sprung(op, host, "refused")
        if refused is not None:
            raise _BY_CODE[refused.code](f"{op} is refused", "")
        super()._before(op, changing)

    def _after(self, op: str) -> None:
        stage, host = self._stage, self._process.name
        if stage.sprung(op, host, "after"):
            stage.die(self._process)
        hangs = stage.sprung(op, host, "hangs-after")
        if hangs is not None:
            stage.tell(f"  {op} at {host} hangs for {hangs.seconds:g} s after its effect")
            self._runtime.sleep(hangs.seconds)
        if stage.sprung(op, host, "fails-after"):
            raise HypervisorError(f"{op} fails after its effect", "")
        super()._after(op)


class StageManager(ManagerProcess):
    fleet: Stage

    def make(self, runtime: SimRuntime) -> None:
        self.bus = StageBus(self, self.fleet)
        store = StageStore(self, self.fleet, runtime)
        self.service = Manager(self.fleet.settings(self.name), self.bus, runtime, store)


class StageAgent(AgentProcess):
    fleet: Stage

    def __init__(self, fleet: Stage, host: str) -> None:
        super().__init__(fleet, host)
        self.hypervisor = StageHypervisor(fleet, host)
        self.rivals_queue: Any = None

    def buried(self) -> None:
        super().buried()
        if self.rivals_queue is not None:
            # The broker's queue of this name has one consumer less.
            self.fleet.broker.servers[AGENT_TOPIC][self.service.host] = self.rivals_queue

    def make(self, runtime: SimRuntime) -> None:
        self.bus = StageBus(self, self.fleet)
        self.driver = StageDriver(self, self.fleet, runtime)
        self.service = self.agent(runtime)


Stage.manager_type = StageManager
Stage.agent_type = StageAgent

"""Managers without loops: handlers run straight on a store, on a clock that the test moves.

A `Fleet` is one manager's doors on one database. A `ScriptedAgent` is a host's agent that says
what the test tells it to say and does nothing by itself.
"""

from __future__ import annotations

import datetime as dt
import itertools
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa

from common import messages as m
from common.bus.base import Address, Notice
from common.conf import Settings, database, default, manager
from common.errors import BrokerUnavailable, GuestIsNewer
from common.ownership import Mark
from common.runtime import Runtime
from common.states import GuestKind, HostState, PowerState
from manager import ticks
from manager.api.endpoint import WISHES, Api
from manager.flows import hello, liveness, publish, reports
from manager.intake.reports import Intake
from manager.store.addresses import Mac
from manager.store.commands import CommandRow, Void
from manager.store.engine import Store, Tx
from manager.store.events import DeadLetter, Event
from manager.store.hosts import Host
from manager.store.instances import Instance
from manager.store.jobs import Job
from manager.store.mapping import Row
from manager.store.sightings import Sighting
from manager.store.tombstones import Tombstone

FLEET = "fleet-1"
START = dt.datetime(2026, 11, 20, 12, 0, tzinfo=dt.UTC)
INTERVAL_S = 10.0
DOWN_S = 60.0
R = TypeVar("R", bound=Row)
# What a guest is after a command; running after every other.
AFTER = {
    m.CommandKind.STOP_VM: PowerState.SHUTOFF,
    m.CommandKind.PAUSE_VM: PowerState.PAUSED,
    m.CommandKind.SUSPEND_VM: PowerState.SUSPENDED,
    m.CommandKind.SHELVE_VM: PowerState.SHUTOFF,
}


class Clock(Runtime):
    """A runtime whose clocks stand still until the test moves them."""

    def __init__(self) -> None:
        super().__init__("test")
        self._s = 0.0
        self.moved: Callable[[dt.datetime], None] = lambda _now: None

    def now(self) -> dt.datetime:
        return START + dt.timedelta(seconds=self._s)

    def monotonic(self) -> float:
        return self._s

    def move(self, seconds: float) -> None:
        self._s += seconds
        self.moved(self.now())

    def sleep(self, seconds: float) -> None:
        """A back-off between two tries takes no time here."""


def obey(store: Store, clock: Clock) -> None:
    """Let a PostgreSQL of a test tell the test's time: its own clock_timestamp() comes first."""

    def move(now: dt.datetime) -> None:
        with store.engine.begin() as conn:
            conn.execute(sa.text("UPDATE test_clock SET at = :now"), {"now": now})

    clock.moved = move
    move(clock.now())


CLOCK_SQL = (
    "CREATE TABLE test_clock (at timestamptz)",
    "INSERT INTO test_clock VALUES (now())",
    "CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE"
    " AS 'SELECT at FROM public.test_clock'",
)


@dataclass(frozen=True)
class Cast:
    """One cast to one host."""

    host: str
    method: str
    kwargs: dict[str, Any]

    @property
    def command(self) -> m.Command:
        return m.convert(self.kwargs["command"], m.Command)


@dataclass
class Wire:
    """The managers' side of a bus, of which only casts are of interest."""

    up: bool = True
    casts: list[Cast] = field(default_factory=list)
    before: Callable[[], None] = lambda: None

    def cast(self, to: Address, method: str, kwargs: Mapping[str, Any]) -> None:
        if not self.up:
            raise BrokerUnavailable("the wire is cut", "mend it")
        self.before()
        # As the other side gets it.
        sent = msgspec.json.decode(msgspec.json.encode(kwargs))
        parts = [(method, sent)]
        if method == "commands":
            parts = [(each["kind"], {"command": each}) for each in sent["commands"]]
        self.casts += [Cast(to.server or "", name, part) for name, part in parts]

    def take(self, method: str | None = None, host: str | None = None) -> list[Cast]:
        """What was cast since the last look, of one kind or to one host."""
        wanted = [c for c in self.casts if method in (None, c.method) and host in (None, c.host)]
        self.casts = [c for c in self.casts if c not in wanted]
        return wanted


class Fleet:
    """One manager's doors, a clock, a wire, and the rows behind them."""

    def __init__(
        self, store: Store, clock: Clock, *, wire: Wire | None = None, **changes: Any
    ) -> None:
        self.clock, self.store, self.wire = clock, store, wire or Wire()
        self.cfg = Settings(
            default=default.Default(fleet_id=FLEET, report_interval=INTERVAL_S),
            manager=manager.Manager(
                **{
                    "service_down_time": DOWN_S,
                    "auto_enable_hosts": True,
                    # Tests look at what is cast; those of the canary set it.
                    "canary_interval": 0.0,
                    **changes,
                }
            ),
            database=database.Database(connection=str(store.engine.url)),
        )
        self.api = Api(store, self.cfg)
        self.intake = Intake(store, self.cfg)
        self.hearing = True
        self._publisher = publish.Publisher(store, self.cfg, self.wire)  # type: ignore[arg-type]
        self._saying = threading.RLock()
        self.notices: list[Notice] = []
        store.after_commit = self._say

    # what managers do

    def run(self, handler: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.store.run(handler, self.cfg, *args, **kwargs)

    def _say(self, tx: Tx) -> None:
        """What a transaction leaves to be said is cast at once; a manager has a loop for it."""
        with self._saying:
            self.notices += tx.notices
            self._publisher.take(tx)
            self._publisher.say()

    def claim(self) -> int:
        """Cast what is due, as a tick does; how many commands and voids that were."""
        done: int = self.run(publish.claim_due)
        return done

    def publish(self) -> list[Cast]:
        """Cast what is due; the commands that left since the last look."""
        self.claim()
        return [c for c in self.wire.take() if "command" in c.kwargs]

    def tick(self) -> None:
        """One round of the clock's work, by a manager that hears (unless `hearing` is False)."""
        if self.hearing:
            self.store.run(
                liveness.heard_own_beat, "m-1", "manager-1", self.clock.now(), 100 * DOWN_S, ""
            )
        ticks.tick(self.store, self.cfg)

    def pass_(self, seconds: float, *speaking: ScriptedAgent, step: float = INTERVAL_S) -> None:
        """Let time pass, with heartbeats of the `speaking` and ticks in between."""
        while seconds > 0:
            self.clock.move(min(step, seconds))
            seconds -= step
            for agent in speaking:
                agent.beat()
            self.tick()

    # what operators do

    def ask(self, method: str, **kwargs: Any) -> dict[str, Any]:
        """A request; changes get a job uuid of their own unless one is given."""
        if method in WISHES:
            kwargs.setdefault("job", str(uuid.uuid4()))
            kwargs.setdefault("operator", "ann")
        answer: dict[str, Any] = self.api(method, kwargs)
        return answer

    def create(self, name: str = "web-1", **kwargs: Any) -> dict[str, Any]:
        return self.ask("vm_create", **{"name": name, "vcpus": 1, "memory_mib": 256, **kwargs})

    def delete(self, vm: str = "web-1", **kwargs: Any) -> dict[str, Any]:
        return self.ask("vm_delete", vm=vm, **kwargs)

    def deploy(self, agent: ScriptedAgent, name: str = "web-1") -> Instance:
        """A VM that runs on the agent's host; nothing of its birth is left on the wire."""
        instance = self.create(name, host=agent.host)["instance"]
        cast = next(c for c in self.publish() if c.command.instance == instance)
        agent.carry_out(cast.command)
        self.wire.take()
        return self.row(Instance, instance)

    # what is stored

    def row(self, kind: type[R], *key: Any) -> R:
        return self.store.run(lambda tx: tx.get(kind, *key))

    def rows(self, kind: type[R], /, **where: Any) -> list[R]:
        columns = kind.__table__.c
        return self.store.run(
            lambda tx: tx.all(kind, *(columns[name] == value for name, value in where.items()))
        )

    def one(self, kind: type[R], /, **where: Any) -> R:
        (found,) = self.rows(kind, **where)
        return found

    def put(self, row: R, **changes: Any) -> R:
        """Change a row behind the managers' back."""

        def change(tx: Tx) -> R:
            return tx.put(row, **changes)

        return self.store.run(change)

    def vm(self, name: str = "web-1") -> Instance:
        return self.one(Instance, name=name)

    def host(self, name: str = "h1") -> Host:
        return self.row(Host, name)

    def job(self, answer: Mapping[str, Any]) -> Job:
        return self.row(Job, answer["uuid"])

    def shown(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        return self.ask("job_show", job=answer["uuid"])

    def stone(self, **where: Any) -> Tombstone:
        return self.one(Tombstone, **where)

    def stones(self, **where: Any) -> list[Tombstone]:
        return self.rows(Tombstone, **where)

    def events(self, kind: str) -> list[Event]:
        return self.rows(Event, kind=kind)

    def letters(self) -> list[str]:
        return sorted(letter.code for letter in self.rows(DeadLetter))

    def everything(self) -> dict[str, list[Row]]:
        """All rows but what tells of ages and beats; to prove that nothing has changed."""
        kinds = (CommandRow, Void, Instance, Mac, Job, Sighting, Tombstone)
        return {kind.__name__: list(self.rows(kind)) for kind in kinds}


class ScriptedAgent:
    """A host's agent in the hands of the test: its guests, its session, and what it says."""

    def __init__(self, fleet: Fleet, host: str = "h1", **hello_fields: Any) -> None:
        self.fleet, self.host = fleet, host
        self.run = str(uuid.uuid4())
        self.journal = str(uuid.uuid4())
        self.session: int | None = None
        self.known_session = 0  # the last that its journal has kept
        self.guests: dict[str, m.GuestReport] = {}
        self.timeline: str | None = None
        self.mark = 0
        self._seq = itertools.count(1)
        self._told: dict[str, int] = {}
        self._fields = hello_fields

    def up(self, memory_mib: int = 4096) -> ScriptedAgent:
        """Says hello, tells of everything, and is UP."""
        self.hello()
        self.beat(full=True, capacity_mib=memory_mib)
        self.fleet.tick()
        return self

    # hello

    def greeting(self, **changes: Any) -> m.Hello:
        fields: dict[str, Any] = {
            "hello_id": str(uuid.uuid4()),
            "fleet": FLEET,
            "host": self.host,
            "agent_run": self.run,
            "agent_version": "1",
            "driver": "simulated",
            "interval_s": INTERVAL_S,
            "host_boot": "boot-1",
            "journal_id": self.journal,
            "journal_seq": 0,
            "store_timeline": self.timeline,
            "store_mark": self.mark,
            "session": self.known_session,
        }
        return m.Hello(**{**fields, **self._fields, **changes})

    def hello(self, greeting: m.Hello | None = None, **changes: Any) -> m.Welcome:
        """A hello whose answer arrives."""
        welcome = self.lost_hello(greeting, **changes)
        self.session = self.known_session = welcome.session
        self.timeline, self.mark = welcome.store_timeline, welcome.store_mark
        return welcome

    def lost_hello(self, greeting: m.Hello | None = None, **changes: Any) -> m.Welcome:
        """A hello whose answer the agent never sees."""
        welcome: m.Welcome = self.fleet.run(hello.welcome, greeting or self.greeting(**changes))
        return welcome

    def restart(self) -> ScriptedAgent:
        """Another run of the agent, on the same journal; it has not said hello yet."""
        self.run, self.session, self._told = str(uuid.uuid4()), None, {}
        return self

    def end_session(self) -> ScriptedAgent:
        """Its session has just ended, and no manager has judged it yet: it is UP, and nothing
        can be sent to it before its next hello."""
        self.fleet.put(self.row, session_open=False)
        self.session = None
        return self

    # its hypervisor

    def guest(self, uuid_: str | None = None, *, name: str = "byhand", **fields: Any) -> str:
        """A guest on the hypervisor; its uuid."""
        uuid_ = uuid_ or str(uuid.uuid4())
        self.guests[uuid_] = m.GuestReport(
            hypervisor_uuid=uuid_,
            name=name,
            **{"power_state": PowerState.RUNNING, "vcpus": 1, "memory_mib": 256, **fields},
        )
        return uuid_

    def ours(self, instance: str, *, generation: int = 1, **fields: Any) -> str:
        """A guest that carries our mark."""
        uuid_ = str(uuid.uuid4())
        mark = Mark(fleet=FLEET, instance=instance, generation=generation, bearer=uuid_)
        return self.guest(uuid_, mark=mark, **fields)

    def of(self, instance: str) -> m.GuestReport:
        return next(g for g in self.guests.values() if g.mark and g.mark.instance == instance)

    def change(self, instance: str, **fields: Any) -> None:
        """The guest of an instance, changed from outside."""
        guest = self.of(instance)
        self.guests[guest.hypervisor_uuid] = msgspec.structs.replace(guest, **fields)

    def power(self, instance: str, state: PowerState) -> None:
        self.change(instance, power_state=state)

    def lose(self, instance: str) -> m.GuestReport:
        return self.guests.pop(self.of(instance).hypervisor_uuid)

    # reports

    def draw(self) -> int:
        return next(self._seq)

    def inventory(self, *, full: bool = False, **changes: Any) -> m.Inventory:
        prints = {u: g.fingerprint() for u, g in self.guests.items()}
        news = [g for u, g in self.guests.items() if full or self._told.get(u) != prints[u]]
        gone = () if full else tuple(sorted(self._told.keys() - prints.keys()))
        fields: dict[str, Any] = {
            "full": full,
            "complete": True,
            "digest": m.digest(prints.values()),
            "guests": tuple(news),
            "gone": gone,
        }
        return m.Inventory(**{**fields, **changes})

    def heartbeat(
        self, *, full: bool = False, capacity_mib: int | None = None, **changes: Any
    ) -> m.Heartbeat:
        used = sum(
            g.memory_mib for g in self.guests.values() if g.power_state is PowerState.RUNNING
        )
        capacity = None
        if capacity_mib is not None:
            capacity = m.Capacity(
                vcpus_total=64,
                memory_mib_total=capacity_mib,
                vcpus_used=len(self.guests),
                memory_mib_used=used,
            )
        fields: dict[str, Any] = {
            "fleet": FLEET,
            "host": self.host,
            "session": self.session,
            "agent_run": self.run,
            "seq": changes.get("seq") or self.draw(),
            "interval_s": INTERVAL_S,
            "driver": m.DriverReport(name="simulated", healthy=True),
            "sent_at": self.fleet.clock.now(),
            "capacity": capacity,
        }
        if "inventory" not in changes:
            fields["inventory"] = self.inventory(full=full)
        return m.Heartbeat(**{**fields, **changes})

    def beat(self, **changes: Any) -> m.Heartbeat:
        """A heartbeat that arrives: what changed, or everything with `full`."""
        heartbeat = self.heartbeat(**changes)
        self.send(heartbeat)
        if heartbeat.inventory is not None and heartbeat.inventory.complete:
            self._told = {u: g.fingerprint() for u, g in self.guests.items()}
        return heartbeat

    def send(self, heartbeat: m.Heartbeat) -> None:
        self.fleet.run(reports.heartbeat, heartbeat)

    def answers(self, **fields: Any) -> m.Answers:
        base: dict[str, Any] = {
            "fleet": FLEET,
            "host": self.host,
            "session": self.session,
            "agent_run": self.run,
        }
        return m.Answers(**{**base, **fields})

    def say(self, **fields: Any) -> None:
        """Receipts, results, answers to voids or refusals, on the result stream."""
        self.fleet.run(reports.answers, self.answers(**fields))

    # commands

    def receipt(self, command: str, step: m.Step = m.Step.RECEIVED, age_s: float = 0.0) -> None:
        self.say(receipts=(m.Receipt(command=command, step=step, age_s=age_s),))

    def look(self, instance: str) -> m.Look:
        guest = next(
            (g for g in self.guests.values() if g.mark and g.mark.instance == instance), None
        )
        return m.Look(session=self.session or 0, seq=self.draw(), guest=guest)

    def result(
        self, command: m.Command, outcome: m.Outcome = m.Outcome.SUCCEEDED, **fields: Any
    ) -> m.Result:
        if outcome is not m.Outcome.SUCCEEDED:
            fields = {"error_code": "HYPERVISOR_ERROR", "error": "it said no", **fields}
        elif "look" not in fields:
            fields["look"] = self.look(command.instance)
        base: dict[str, Any] = {
            "id": str(uuid.uuid4()),
            "command": command.id,
            "kind": command.kind.value,
            "instance": command.instance,
            "generation": command.generation,
            "outcome": outcome,
        }
        return m.Result(**{**base, **fields})

    def succeed(self, command: m.Command, **fields: Any) -> m.Result:
        result = self.result(command, **fields)
        self.say(results=(result,))
        return result

    def fail(self, command: m.Command, **fields: Any) -> m.Result:
        result = self.result(command, m.Outcome.FAILED, **fields)
        self.say(results=(result,))
        return result

    def carry_out(self, command: m.Command) -> m.Result:
        """Do to the scripted hypervisor what the command says, and answer success."""
        known = [g for g in self.guests.values() if g.mark and g.mark.instance == command.instance]
        if command.kind is m.CommandKind.TERMINATE_INSTANCE:
            up_to = m.convert(command.spec, m.TerminateSpec).up_to
            newer = [g.mark.generation for g in known if g.mark and up_to is not None]
            if up_to is not None and max(newer, default=0) > up_to:
                look = self.look(command.instance)
                return self.fail(command, error_code=GuestIsNewer.code, error="used", look=look)
            for guest in known:
                del self.guests[guest.hypervisor_uuid]
        elif command.kind is m.CommandKind.CLEAN_UP:
            return self.succeed(command, look=None)
        elif not known:
            spec = command.spec["guest"]
            self.ours(
                command.instance,
                generation=command.generation,
                name=spec["name"],
                vcpus=spec["vcpus"],
                memory_mib=spec["memory_mib"],
                macs=tuple(n["mac"] for n in spec["nics"]),
            )
        else:
            mark = known[0].mark
            assert mark is not None
            changes: dict[str, Any] = {"power_state": AFTER.get(command.kind, PowerState.RUNNING)}
            if "on" in command.spec:
                changes = self._resized(command, known[0])
            self.change(
                command.instance,
                mark=msgspec.structs.replace(mark, generation=command.generation),
                **changes,
            )
        return self.succeed(command)

    @staticmethod
    def _resized(command: m.Command, guest: m.GuestReport) -> dict[str, Any]:
        """What a resize, its confirm or its revert makes of a guest."""
        power = PowerState.RUNNING if command.spec["on"] else PowerState.SHUTOFF
        if command.kind is m.CommandKind.CONFIRM_RESIZE:
            power = guest.power_state
        size = {name: command.spec["guest"][name] for name in ("vcpus", "memory_mib")}
        return {"power_state": power, **size}

    # what the managers think of it

    @property
    def row(self) -> Host:
        return self.fleet.host(self.host)

    def sightings(self, kind: GuestKind | None = None) -> list[Sighting]:
        found = self.fleet.rows(Sighting, host=self.host, present=True)
        return [s for s in found if kind in (None, s.kind)]

    def commands(self, kind: str | None = None) -> list[CommandRow]:
        """Everything that was ever asked of this host, in order."""
        found = self.fleet.rows(CommandRow, host=self.host)
        return sorted((c for c in found if kind in (None, c.kind)), key=lambda c: c.generation)

    def terminates(self) -> list[CommandRow]:
        return self.commands("terminate_instance")


def fall_silent(fleet: Fleet, agent: ScriptedAgent, others: list[ScriptedAgent]) -> None:
    """Until it is DOWN, and no mass silence, for the others speak."""
    fleet.pass_(DOWN_S + INTERVAL_S, *others)
    assert agent.row.state is HostState.DOWN


def db_only(fleet: Fleet, agent: ScriptedAgent, others: list[ScriptedAgent]) -> Instance:
    """A VM that was deleted while its host was DOWN; its guest still runs there."""
    vm = fleet.deploy(agent)
    agent.beat(full=True)
    fall_silent(fleet, agent, others)
    assert fleet.delete()["state"] == "SUCCEEDED"
    return vm

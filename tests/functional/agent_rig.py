"""A whole agent on the memory bus, its simulated hypervisor, and a manager made of test wishes."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from agent.drivers.simulated.driver import SimulatedDriver
from agent.drivers.simulated.store import Faults, Guest, Store
from agent.effects import bearer_of
from agent.service import Agent
from common import messages as m
from common.bus.base import Address, Bus, agent_at
from common.bus.memory import Broker
from common.conf import Settings
from common.conf.agent import Agent as AgentSettings
from common.conf.default import Default
from common.conf.simulated import Simulated
from common.errors import MusterError
from common.ownership import Mark
from common.runtime import Runtime
from tests.wait import wait_until

FLEET, HOST = "fleet-1", "host-1"
INTERVAL_S = 0.2
DEADLINE_S = 30.0
T = TypeVar("T")


def eventually(ask: Callable[[], T], what: str = "", seconds: float = DEADLINE_S) -> T:
    """The first true answer of `ask`, or a failure naming what was waited for."""
    return wait_until(ask, seconds, what)


class FakeManager:
    """Answers hellos with what the test set, and keeps whatever agents tell."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.heartbeats: list[m.Heartbeat] = []
        self.answers: list[m.Answers] = []
        self.hellos: list[m.Hello] = []
        self.sessions: dict[str, int] = {}
        self.refuse: MusterError | None = None
        self.wanted: Callable[[str], bool] = lambda _id: True
        self.before_welcome: Callable[[], object] = lambda: None
        self.voids: tuple[m.FloorEntry, ...] = ()
        self.floors: tuple[m.FloorEntry, ...] = ()
        self.canary_interval_s = 0.0
        self._bus.serve(Address(m.MANAGER_TOPIC, "m1"), self._answer)
        self._bus.consume(
            {"heartbeats": "heartbeat.*", "results": "result.*"}, self._hear, lambda _r: None, 60.0
        )

    def _answer(self, method: str, kwargs: dict[str, Any]) -> Any:
        assert method == "hello"
        if self.refuse is not None:
            raise self.refuse
        hello = m.convert(kwargs["hello"], m.Hello)
        self.hellos.append(hello)
        session = self.sessions.setdefault(hello.hello_id, len(self.sessions) + 1)
        self.before_welcome()
        return m.builtins(
            m.Welcome(
                session=session,
                floors=self.floors,
                voids=self.voids,
                wanted=tuple(i for i in hello.unfinished if self.wanted(i)),
                store_timeline="t1",
                store_mark=session,
                canary_interval_s=self.canary_interval_s,
            )
        )

    def _hear(self, key: str, body: bytes, _sender: str | None) -> None:
        if key.startswith("heartbeat."):
            self.heartbeats.append(m.decode(body, m.Heartbeat))
        else:
            self.answers.append(m.decode(body, m.Answers))

    def cast(self, method: str, **kwargs: Any) -> None:
        self._bus.cast(agent_at(HOST), method, kwargs)

    def ping(self) -> dict[str, Any]:
        return self._bus.call(agent_at(HOST), "ping", {}, 5.0)  # type: ignore[no-any-return]

    @property
    def session(self) -> int:
        return len(self.sessions)

    def command(self, kind: str, instance: str, generation: int, **changes: Any) -> dict[str, Any]:
        return {
            "id": str(uuid.uuid4()),
            "kind": kind,
            "fleet": FLEET,
            "host": HOST,
            "session": self.session,
            "instance": instance,
            "generation": generation,
            "timeout_s": 60.0,
            "spec": {},
            **changes,
        }

    def send(self, kind: str, instance: str, generation: int, **changes: Any) -> str:
        """Cast a command; its id."""
        command = self.command(kind, instance, generation, **changes)
        self.cast(kind, command=command)
        return str(command["id"])

    def results(self, command: str) -> list[m.Result]:
        return [r for a in list(self.answers) for r in a.results if r.command == command]

    def result(self, command: str) -> m.Result:
        """The result of a command, waited for."""
        return eventually(lambda: self.results(command), f"result of {command}")[-1]

    def receipts(self, command: str) -> set[m.Step]:
        return {r.step for a in list(self.answers) for r in a.receipts if r.command == command}

    def void_answers(self) -> list[m.VoidAnswer]:
        return [v for a in list(self.answers) for v in a.voids]

    def refusals(self) -> dict[str, m.Refusal]:
        return {r.code: r for a in list(self.answers) for r in a.refusals}


class Rig:
    """One host: its hypervisor's files, its agent (again and again), and the manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runtime = Runtime("rig")
        self.broker = Broker(self._runtime)
        self.manager = FakeManager(self.broker.bus(self._runtime))
        self.store = Store(str(folder / "sim"), HOST)
        self.store.make()
        self.agent: Agent | None = None
        self.interval_s = INTERVAL_S

    def settings(self, **changes: Any) -> Settings:
        return Settings(
            default=Default(fleet_id=FLEET, host=HOST, report_interval=self.interval_s),
            agent=AgentSettings(
                state_dir=str(self.folder / "agent"), **{"call_timeout": 20.0, **changes}
            ),
            simulated=Simulated(state_dir=str(self.folder / "sim"), watch_interval=0.02),
        )

    def start(self, driver: type[SimulatedDriver] = SimulatedDriver, **changes: Any) -> Agent:
        """A new agent on the same host."""
        runtime, settings = Runtime("agent"), self.settings(**changes)
        hypervisor = driver(self.store, settings, runtime)
        self.agent = Agent(settings, self.broker.bus(runtime), runtime, hypervisor)
        self.agent.start()
        return self.agent

    def up(self, **changes: Any) -> Agent:
        """A new agent that has its session."""
        agent = self.start(**changes)
        eventually(lambda: agent.session.current is not None, "a session")
        return agent

    def kill(self) -> None:
        assert self.agent is not None
        self.agent.kill()
        self.agent = None

    def close(self) -> None:
        if self.agent is not None:
            self.agent.kill()
        self._runtime.kill()

    # the hypervisor behind the agent's back

    def guests(self) -> list[Guest]:
        return [g for u in self.store.uuids() if (g := self.store.read(u)) is not None]

    def guest_of(self, instance: str) -> Guest | None:
        return next((g for g in self.guests() if g.mark and g.mark.instance == instance), None)

    def state_of(self, instance: str) -> str:
        guest = self.guest_of(instance)
        return guest.power_state if guest else "absent"

    def by_hand(self, name: str = "byhand", **changes: Any) -> Guest:
        """A guest made in the hypervisor's own console."""
        guest = Guest(uuid=str(uuid.uuid4()), name=name, **changes)
        self.store.write(guest)
        return guest

    def fault(self, **ops: str) -> None:
        self.store.set_faults(Faults(ops=ops))

    # commands

    def create(self, instance: str, generation: int = 1, **changes: Any) -> str:
        """Cast the start_vm of a new guest."""
        spec = {
            "guest": {"name": f"vm-{instance}", "vcpus": 1, "memory_mib": 128},
            "create": True,
        }
        return self.manager.send("start_vm", instance, generation, spec=spec, **changes)

    def running(self, instance: str, generation: int = 1) -> Guest:
        """A guest of ours that runs."""
        assert self.manager.result(self.create(instance, generation)).outcome == "succeeded"
        guest = self.guest_of(instance)
        assert guest is not None
        return guest


def mark(instance: str, bearer: str, *, fleet: str = FLEET, generation: int = 1) -> Mark:
    return Mark(fleet=fleet, instance=instance, generation=generation, bearer=bearer)


__all__ = ["FLEET", "HOST", "INTERVAL_S", "FakeManager", "Rig", "bearer_of", "eventually", "mark"]

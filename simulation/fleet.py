"""A simulated fleet: managers and agents as processes that can die, on one world."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.service import Agent
from common import conf
from common.bus.memory import Broker
from common.conf import Settings
from manager.service import Manager
from manager.store import engine as store_engine
from simulation.database import Database
from simulation.hypervisor import Hypervisor, SimDriver
from simulation.journals import Disk, SimJournal
from simulation.ports import Chaos, FaultyBus, SimStore
from simulation.runtime import SimRuntime
from simulation.world import World

FLEET = "sim"
HOSTS = ("h1", "h2", "h3")
REPORT_INTERVAL_S = 10.0
DOWN_S = 60.0
NO_POLL_S = 900.0  # what is waited for here always wakes whoever waits
WORKERS = 2


class Process:
    """A manager or agent that can be killed, frozen and started again."""

    def __init__(self, fleet: SimFleet, name: str) -> None:
        self.fleet, self.name = fleet, name
        self.runtime: SimRuntime | None = None
        self.bus: Any = None
        self.service: Any = None

    @property
    def alive(self) -> bool:
        return self.runtime is not None and not self.runtime.killed

    def start(self) -> None:
        """A new life; does nothing while the process lives."""
        if self.alive:
            return
        runtime = SimRuntime(self.fleet.world, self.name)
        self.runtime = runtime
        inner = self.fleet.broker.bus(runtime)
        runtime.on_freeze = inner.look
        self.bus = FaultyBus(inner, runtime, self.fleet.chaos, self.died)
        self.make(runtime)
        runtime.spawn("main", self.service.start)

    def make(self, runtime: SimRuntime) -> None:
        raise NotImplementedError

    def kill(self) -> None:
        """kill -9."""
        if self.alive and self.runtime is not None:
            self.fleet.tell(f"{self.name} dies")
            self.runtime.kill()
            self.buried()

    def buried(self) -> None:
        """What the machine does when a process is gone."""

    def died(self) -> None:
        """Chance has killed it in the middle of something; it is started again some time later."""
        self.kill()
        world = self.fleet.world
        world.after(world.random.uniform(0.5, 60.0), self.start)


class ManagerProcess(Process):
    def make(self, runtime: SimRuntime) -> None:
        store = SimStore(self.fleet.database, runtime, self.fleet.chaos, self.died)
        settings = self.fleet.settings(self.name)
        self.service = Manager(settings, self.bus, runtime, store)

    def buried(self) -> None:
        # The broker notices the closed connection: its queues take other consumers, its private
        # ones are gone.
        manager = self.service
        broker = self.fleet.broker
        broker.servers.get("muster-manager", {}).pop(manager.id, None)
        broker.streams.pop(f"beats.{manager.id}", None)


class AgentProcess(Process):
    def __init__(self, fleet: SimFleet, host: str) -> None:
        super().__init__(fleet, host)
        self.disk = Disk()
        self.hypervisor = Hypervisor(fleet.world, host)

    def start(self) -> None:
        if not self.hypervisor.off:
            super().start()

    def make(self, runtime: SimRuntime) -> None:
        self.driver = SimDriver(self.hypervisor, runtime)
        self.service = self.agent(runtime)
        self._overhear(self.service._journal)

    def agent(self, runtime: SimRuntime) -> Agent:
        settings = self.fleet.settings(self.name)
        journal = SimJournal(settings.agent.state_dir, runtime, self.disk)
        return Agent(settings, self.bus, runtime, self.driver, journal)

    def _overhear(self, journal: Any) -> None:
        """Tell the fleet what the journal is told by managers."""
        receive, confirm, told = journal.receive, journal.confirm, self.fleet.told

        def received(command: Any) -> Any:
            told("received", command.id)
            return receive(command)

        def confirmed(ids: Any) -> None:
            for each in ids:
                told("confirmed", each)
            confirm(ids)

        journal.receive, journal.confirm = received, confirmed

    def buried(self) -> None:
        self.hypervisor.watchers.clear()
        journal = self.service._journal
        if journal._db is not None:
            # As the end of a process does it: whatever its fibers held goes with them.
            journal._db.close()
            journal._db = None
            os.close(journal._guard)

    def store_mark(self) -> tuple[str, int] | None:
        """The timeline and mark of the managers' store, as its journal has them."""
        database = self.service._journal._db
        if database is None:
            return None
        query = "SELECT key, value FROM meta WHERE key LIKE 'store_%'"
        kept = dict(database.execute(query).fetchall())
        return (kept["store_timeline"], int(kept["store_mark"])) if len(kept) == 2 else None


class SimFleet:
    """The whole of it, from one seed."""

    tick_s = 5.0
    resend_after_s = 5.0
    offload_s = 0.0
    keep_s = 604_800.0  # a VM that was deleted softly
    window_s = 0.0  # until a resize is confirmed by itself; 0: never
    manager_type: type[ManagerProcess] = ManagerProcess
    agent_type: type[AgentProcess] = AgentProcess

    def __init__(
        self,
        seed: int,
        *,
        managers: int = 2,
        hosts: tuple[str, ...] = HOSTS,
        verbose: bool = False,
        world: World | None = None,
    ) -> None:
        self.world = world or World(seed)
        self.verbose = verbose
        self.told: Callable[..., None] = lambda *_: None
        self.lines: list[str] = []
        self.folder = Path(tempfile.mkdtemp(prefix="muster-sim-", dir=_fast_folder()))
        self.chaos = Chaos()
        self.database = Database()
        self.edge = SimRuntime(self.world, "world")
        self.broker = Broker(self.edge, poll_s=NO_POLL_S, workers=WORKERS)
        self.managers = [self.manager_type(self, f"m{n}") for n in range(1, managers + 1)]
        self.agents = {host: self.agent_type(self, host) for host in hosts}
        self.operator = SimRuntime(self.world, "operator")
        self.view = SimStore(self.database, self.edge, Chaos(), lambda: None)

    def settings(self, name: str) -> Settings:
        return Settings(
            default=conf.default.Default(
                fleet_id=FLEET, host=name, report_interval=REPORT_INTERVAL_S
            ),
            manager=conf.manager.Manager(
                service_down_time=DOWN_S,
                resend_after=self.resend_after_s,
                command_timeout=60.0,
                create_timeout=60.0,
                delete_timeout=300.0,
                soft_delete_keep=self.keep_s,
                resize_confirm_window=self.window_s,
                tick_interval=self.tick_s,
                auto_enable_hosts=True,
                shelved_offload_time=self.offload_s,
            ),
            agent=conf.agent.Agent(
                driver="simulation",
                state_dir=str(self.folder / name),
                full_report_interval=120.0,
                call_timeout=15.0,
            ),
        )

    @property
    def processes(self) -> list[Process]:
        return [*self.managers, *self.agents.values()]

    def start(self) -> None:
        for process in self.processes:
            process.start()

    def run(self, seconds: float, stop: Callable[[], bool] | None = None) -> None:
        self.world.run(self.world.now_s + seconds, stop)

    def read(self, fn: Callable[..., Any]) -> Any:
        """Something of the database, from outside of every process."""
        return store_engine.Store.run(self.view, fn)

    def tell(self, line: str) -> None:
        text = f"{self.world.now_s:8.2f}  {line}"
        self.lines.append(text)
        if self.verbose:
            logging.getLogger("simulation").warning(text)

    def close(self) -> None:
        """End every fiber and remove the files."""
        for process in self.processes:
            if process.runtime is not None:
                process.runtime.kill()
        for agent in self.agents.values():
            if agent.service is not None:
                agent.buried()
            agent.disk.lose()
        self.chaos.sent.clear()  # it holds on to everything
        self.operator.kill()
        self.edge.kill()
        self.database.give_back()
        shutil.rmtree(self.folder, ignore_errors=True)


def _fast_folder() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - journals only

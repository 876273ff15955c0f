"""Results that never arrive: a whole manager comes to know its host by the heartbeats alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.drivers.simulated.store import Store as Hypervisor
from agent.service import Agent
from common import messages as m
from common.bus.base import ANY_MANAGER
from common.bus.memory import Broker
from common.conf import Settings, database, default, manager, simulated
from common.conf import agent as agent_conf
from common.runtime import Runtime
from common.states import PowerState
from manager.service import Manager
from manager.store.sightings import Sighting
from tests.wait import wait_until

JOB = "00000000-0000-4000-8000-00000000000{}"


class Story:
    """One host and one manager; `lossy`: what the host tells of its commands gets lost."""

    def __init__(self, folder: Path) -> None:
        settings = Settings(
            default=default.Default(fleet_id="f", host="h1", report_interval=0.3),
            manager=manager.Manager(
                service_down_time=5.0,
                resend_after=0.5,
                tick_interval=0.05,
                auto_enable_hosts=True,
                canary_interval=0.0,
            ),
            database=database.Database(connection=f"sqlite:///{folder / 'm.db'}"),
            agent=agent_conf.Agent(state_dir=str(folder / "agent"), driver="simulated"),
            simulated=simulated.Simulated(state_dir=str(folder / "sim"), watch_interval=0.02),
        )
        self.hypervisor = Hypervisor(str(folder / "sim"), "h1")
        self.hypervisor.make()
        self.lossy = False
        self.full_reports = 0
        self._runtime = Runtime("operator")
        broker = Broker(self._runtime)
        managers, agents = Runtime("manager"), Runtime("agent")
        self._operator = broker.bus(self._runtime)
        self.manager = Manager(settings, broker.bus(managers), managers)
        bus: Any = broker.bus(agents)
        send = bus.publish

        def publish(key: str, body: bytes, ttl_s: float | None = None) -> None:
            if key.startswith("heartbeat."):
                inventory = m.decode(body, m.Heartbeat).inventory
                self.full_reports += inventory is not None and inventory.full
            elif self.lossy:
                return
            send(key, body, ttl_s)

        bus.publish = publish
        self.agent = Agent(settings, bus, agents)

    def start(self) -> None:
        self.manager.start()
        self.agent.start()

        def up() -> bool:
            return [h["state"] for h in self.ask("host_list")["hosts"]] == ["UP"]

        wait_until(up, 30, "it is UP")

    def ask(self, method: str, **kwargs: Any) -> Any:
        if method.startswith("vm_"):
            kwargs = {"operator": "ann", **kwargs}
        return self._operator.call(ANY_MANAGER, method, kwargs, 10.0)

    def state(self, job: dict[str, Any]) -> str:
        return str(self.ask("job_show", job=job["uuid"])["state"])

    def held(self) -> list[PowerState]:
        """What the manager holds true of the guests of the host."""
        return [
            s.power_state for s in self.manager.store.run(lambda tx: tx.all(Sighting)) if s.present
        ]

    def there(self) -> list[str]:
        found = [self.hypervisor.read(u) for u in self.hypervisor.uuids()]
        return [g.power_state for g in found if g is not None]

    def close(self) -> None:
        self.agent.kill()
        self.manager.stop()
        self._runtime.kill()


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    story = Story(tmp_path)
    story.start()
    yield story
    story.close()


def test_a_manager_that_hears_no_results_sees_by_the_digest_that_it_missed_something(
    story: Story,
) -> None:
    made = story.ask("vm_create", job=JOB.format(1), name="web-1", vcpus=1, memory_mib=64)
    wait_until(lambda: story.state(made) == "SUCCEEDED", 30)
    wait_until(lambda: story.held() == [PowerState.RUNNING], 30)

    story.lossy, story.full_reports = True, 0
    stop = story.ask("vm_stop", job=JOB.format(2), vm="web-1")
    wait_until(lambda: story.there() == ["SHUTOFF"], 30, "the stop has its effect")
    wait_until(lambda: story.held() == [PowerState.SHUTOFF], 30, "its manager knows")
    assert story.full_reports >= 1
    assert story.state(stop) != "SUCCEEDED"

    story.lossy = False
    wait_until(lambda: story.state(stop) == "SUCCEEDED", 30)
    story.lossy = True
    story.ask("vm_delete", job=JOB.format(3), vm="web-1")
    wait_until(lambda: story.there() == [], 30, "the delete has its effect")
    wait_until(lambda: story.held() == [], 30, "its manager knows")

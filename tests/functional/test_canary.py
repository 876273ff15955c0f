"""A whole manager and a whole agent that speaks but hears nothing."""

from __future__ import annotations

from pathlib import Path

from agent.drivers.simulated.store import Store as Hypervisor
from agent.service import Agent
from common.bus.memory import Broker
from common.conf import Settings, database, default, manager, simulated
from common.conf import agent as agent_conf
from common.messages import AGENT_TOPIC
from common.runtime import Runtime
from common.states import HostState
from manager.service import Manager
from manager.store.hosts import Host
from tests.wait import wait_until


def test_an_agent_whose_casts_are_dropped_is_found_out_and_believed_again(tmp_path: Path) -> None:
    settings = Settings(
        default=default.Default(fleet_id="f", host="h1", report_interval=0.2),
        manager=manager.Manager(
            service_down_time=1.0,
            resend_after=0.2,
            canary_interval=0.3,
            tick_interval=0.05,
            auto_enable_hosts=True,
        ),
        database=database.Database(connection=f"sqlite:///{tmp_path / 'm.db'}"),
        agent=agent_conf.Agent(state_dir=str(tmp_path / "agent"), driver="simulated"),
        simulated=simulated.Simulated(state_dir=str(tmp_path / "sim")),
    )
    Hypervisor(str(tmp_path / "sim"), "h1").make()
    broker = Broker(Runtime("broker"))
    managers, agents = Runtime("manager"), Runtime("agent")
    one = Manager(settings, broker.bus(managers), managers)
    other = Agent(settings, broker.bus(agents), agents)

    def state() -> HostState | None:
        host = one.store.run(lambda tx: tx.find(Host, "h1"))
        return host.state if host else None

    def reason() -> str:
        return one.store.run(lambda tx: tx.get(Host, "h1")).reason

    try:
        one.start()
        other.start()
        wait_until(lambda: state() is HostState.UP, 30, "it is UP")
        inbox = broker.servers[AGENT_TOPIC].pop("h1")
        wait_until(lambda: "canary" in reason(), 30, "its canary is overdue")
        assert state() is HostState.SUSPECT
        broker.servers[AGENT_TOPIC]["h1"] = inbox
        wait_until(lambda: state() is HostState.UP, 30, "it hears again")
    finally:
        other.kill()
        one.stop()

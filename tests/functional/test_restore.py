"""A whole manager on yesterday's database file, and a whole agent that knows better."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from agent.drivers.simulated.store import Store as Hypervisor
from agent.service import Agent
from common.bus.base import ANY_MANAGER
from common.bus.memory import Broker
from common.conf import Settings, database, default, manager, simulated
from common.conf import agent as agent_conf
from common.runtime import Runtime
from manager.flows import restore
from manager.service import Manager
from tests.wait import wait_until


def test_nothing_is_changed_on_a_host_until_the_restored_database_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "RISE_S", 0.1)
    file = tmp_path / "m.db"
    settings = Settings(
        default=default.Default(fleet_id="f", host="h1", report_interval=0.2),
        manager=manager.Manager(
            service_down_time=2.0,
            resend_after=0.2,
            canary_interval=0.3,
            tick_interval=0.05,
            auto_enable_hosts=True,
        ),
        database=database.Database(connection=f"sqlite:///{file}"),
        agent=agent_conf.Agent(state_dir=str(tmp_path / "agent"), driver="simulated"),
        simulated=simulated.Simulated(state_dir=str(tmp_path / "sim"), memory_mib=4096),
    )
    hypervisor = Hypervisor(str(tmp_path / "sim"), "h1")
    hypervisor.make()
    edge, host = Runtime("edge"), Runtime("agent")
    broker = Broker(edge)
    bus = broker.bus(edge)
    agent = Agent(settings, broker.bus(host), host)
    running: list[Manager] = []

    def start() -> None:
        runtime = Runtime("manager")
        running.append(Manager(settings, broker.bus(runtime), runtime))
        running[-1].start()

    def ask(method: str, **kwargs: Any) -> Any:
        return bus.call(ANY_MANAGER, method, kwargs, 30.0)

    def done(method: str, **kwargs: Any) -> None:
        job = ask(method, job=edge.new_id(), operator="ann", **kwargs)
        wait_until(
            lambda: ask("job_show", job=job["uuid"])["state"] == "SUCCEEDED", 30, f"{method} ends"
        )

    def is_up() -> bool:
        return any(h["state"] == "UP" for h in ask("host_list")["hosts"])

    def mark() -> int:
        return agent._journal.meta().store_mark

    def ahead() -> list[Any]:
        return [f for f in ask("doctor")["findings"] if f["code"] == "DB_ROLLED_BACK"]

    try:
        start()
        agent.start()
        wait_until(is_up, 30, "it is UP")
        done("vm_create", name="web-1", vcpus=1, memory_mib=64)
        running.pop().stop()
        shutil.copy(file, tmp_path / "backup.db")

        start()
        began = mark()
        wait_until(lambda: mark() > began + 20, 60, "the database goes on")
        done("vm_reboot", vm="web-1", force=True)
        done("vm_stop", vm="web-1", force=True)
        running.pop().stop()
        for tail in ("-wal", "-shm"):
            file.with_name(file.name + tail).unlink(missing_ok=True)
        shutil.copy(tmp_path / "backup.db", file)

        start()
        wait_until(lambda: ahead() and "1 floors" in ahead()[0]["message"], 30, "it is noticed")
        assert agent.session.current is None
        before = [hypervisor.read(u) for u in hypervisor.uuids()]
        said = ask("db_accept_restore", operator="ann", reason="a drill")
        assert list(said["raised"].values()) == [3]
        wait_until(is_up, 30, "it has a session again")
        assert [hypervisor.read(u) for u in hypervisor.uuids()] == before
        assert ahead() == []
        wait_until(
            lambda: ask("vm_show", vm="web-1")["vm_state"] == "SHUTOFF", 30, "what it missed"
        )
        done("vm_start", vm="web-1")
        done("vm_delete", vm="web-1")
        assert hypervisor.uuids() == []
    finally:
        agent.kill()
        for one in running:
            one.stop()

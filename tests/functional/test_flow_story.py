"""A whole fleet in one process: real managers, real agents, simulated hypervisors on disk.

What is true is read from the hypervisors' own files, never from the managers alone.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.drivers.simulated.store import Faults, Guest
from agent.drivers.simulated.store import Store as Hypervisor
from agent.service import Agent
from common.bus.base import ANY_MANAGER
from common.bus.memory import Broker
from common.conf import Settings, database, default, manager, simulated
from common.conf import agent as agent_conf
from common.errors import MusterError
from common.ownership import Mark
from common.runtime import Runtime
from devstack.parts.postgres import Postgres
from manager.service import Manager
from manager.store import migrate
from manager.store.engine import Store
from tests.wait import wait_until

FLEET = "fleet-1"
HOSTS = ("h1", "h2", "h3")
INTERVAL_S = 0.2
DOWN_S = 2.0
DEADLINE_S = 30.0
ENDED = ("SUCCEEDED", "FAILED", "EXPIRED", "CANCELLED")


class Embedded:
    """Managers and agents on one memory bus; agents and managers can be killed and started."""

    def __init__(self, folder: Path, connection: str) -> None:
        self.folder, self.connection = folder, connection
        self.runtime = Runtime("operator")
        self.broker = Broker(self.runtime)
        self.bus = self.broker.bus(self.runtime)
        self.managers: list[Manager] = []
        self.agents: dict[str, Agent] = {}

    def settings(self, host: str) -> Settings:
        return Settings(
            default=default.Default(fleet_id=FLEET, host=host, report_interval=INTERVAL_S),
            database=database.Database(connection=self.connection),
            manager=manager.Manager(
                service_down_time=DOWN_S,
                tick_interval=0.1,
                resend_after=0.5,
                missing_grace=0.5,
                auto_enable_hosts=True,
            ),
            agent=agent_conf.Agent(driver="simulated", state_dir=str(self.folder / host)),
            simulated=simulated.Simulated(
                state_dir=str(self.folder / "sim"), memory_mib=4096, watch_interval=0.05
            ),
        )

    def start_manager(self) -> Manager:
        runtime = Runtime("manager")
        started = Manager(self.settings("manager"), self.broker.bus(runtime), runtime)
        started.start()
        self.managers.append(started)
        return started

    def stop_manager(self) -> None:
        self.managers.pop().stop(5.0)

    def start(self, host: str) -> None:
        runtime = Runtime(host)
        self.agents[host] = Agent(self.settings(host), self.broker.bus(runtime), runtime)
        self.agents[host].start()

    def kill(self, host: str) -> None:
        self.agents.pop(host).kill()

    def up(self) -> Embedded:
        for host in HOSTS:
            self.start(host)
        for host in HOSTS:
            self.reaches(host, "UP")
        return self

    def close(self) -> None:
        for agent in self.agents.values():
            agent.stop(2.0)
        for one in self.managers:
            one.stop(5.0)
        self.runtime.stop(2.0)

    # the operator

    def ask(self, method: str, **kwargs: Any) -> dict[str, Any]:
        if method.startswith("vm_") and method not in ("vm_list", "vm_show"):
            kwargs = {"job": str(uuid.uuid4()), "operator": "ann", **kwargs}
        answer: dict[str, Any] = self.bus.call(ANY_MANAGER, method, kwargs, 10.0)
        return answer

    def done(self, job: dict[str, Any], state: str = "SUCCEEDED") -> dict[str, Any]:
        """The job at its end, which must be `state`."""
        shown: dict[str, Any] = {}

        def ended() -> bool:
            shown.update(self.ask("job_show", job=job["uuid"]))
            return shown["state"] in ENDED

        wait_until(ended, DEADLINE_S, f"the end of {job}")
        assert shown["state"] == state, shown
        return shown

    def create(self, name: str, host: str) -> dict[str, Any]:
        job = self.ask("vm_create", name=name, vcpus=1, memory_mib=256, host=host)
        self.done(job)
        return self.vm(name)

    def vm(self, name: str) -> dict[str, Any]:
        return self.ask("vm_show", vm=name)

    def host(self, name: str) -> dict[str, Any]:
        return self.ask("host_show", host=name)

    def reaches(self, host: str, state: str) -> None:
        wait_until(lambda: self.host_state(host) == state, DEADLINE_S, f"{host} {state}")

    def host_state(self, host: str) -> str:
        try:
            return str(self.host(host)["state"])
        except MusterError:
            return "unknown"

    def shows(self, name: str, **fields: Any) -> None:
        def agrees() -> bool:
            vm = self.vm(name)
            return all(vm[key] == value for key, value in fields.items())

        wait_until(agrees, DEADLINE_S, f"{name} {fields}")

    def stone(self) -> dict[str, Any]:
        (found,) = self.ask("tombstone_list")["tombstones"]
        return dict(found)

    def aliens(self) -> set[str]:
        return {a["hypervisor_uuid"] for a in self.ask("alien_list")["aliens"]}

    # the hypervisors themselves

    def hypervisor(self, host: str) -> Hypervisor:
        return Hypervisor(str(self.folder / "sim"), host)

    def guests(self, host: str) -> dict[str, Guest]:
        store = self.hypervisor(host)
        return {u: g for u in store.uuids() if (g := store.read(u)) is not None}

    def guest_of(self, host: str, instance: str) -> Guest | None:
        """The guest that carries the instance's mark itself; copies of the mark are strangers."""
        for guest in self.guests(host).values():
            if guest.mark and (guest.mark.instance, guest.mark.bearer) == (instance, guest.uuid):
                return guest
        return None

    def by_hand(self, host: str, name: str, mark: Mark | None = None) -> Guest:
        guest = Guest(uuid=str(uuid.uuid4()), name=name, power_state="RUNNING", mark=mark)
        self.hypervisor(host).write(guest)
        return guest


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Embedded]:
    whole = Embedded(tmp_path, f"sqlite:///{tmp_path}/muster.db")
    whole.start_manager()
    yield whole.up()
    whole.close()


def test_the_story_of_a_delete_whose_host_was_down(embedded: Embedded) -> None:
    e = embedded
    vms = {host: e.create(f"web-{host}", host) for host in HOSTS}
    victim = vms["h1"]["uuid"]
    for host in HOSTS:
        guest = e.guest_of(host, vms[host]["uuid"])
        assert guest is not None
        assert guest.power_state == "RUNNING"
        e.shows(f"web-{host}", vm_state="ACTIVE", power_state="RUNNING", task_state="none")

    # Strangers: one with the very name of a VM of ours, and one with a copy of its mark.
    mine = e.guest_of("h1", victim)
    assert mine is not None
    namesake = e.by_hand("h1", "web-h1")
    copy = e.by_hand("h1", "clone", mark=mine.mark)
    wait_until(lambda: e.aliens() == {namesake.uuid, copy.uuid}, DEADLINE_S, "aliens")

    # A guest that is stopped from inside.
    inside = e.guest_of("h2", vms["h2"]["uuid"])
    assert inside is not None
    inside.power_state = "SHUTOFF"
    e.hypervisor("h2").write(inside)
    e.shows("web-h2", vm_state="SHUTOFF", power_state="SHUTOFF")

    # The agent is killed: SUSPECT, then DOWN, and the delete is DB-only.
    e.kill("h1")
    e.reaches("h1", "SUSPECT")
    e.reaches("h1", "DOWN")
    assert e.vm("web-h1")["vm_state"] == "ACTIVE"
    job = e.done(e.ask("vm_delete", vm="web-h1"))
    assert "DB-only" in job["steps"][0]["detail"]
    stone = e.stone()
    assert (stone["host"], stone["instance"], stone["state"]) == ("h1", victim, "OPEN")
    assert f"mac {vms['h1']['mac']}" in stone["holds"]
    assert e.guest_of("h1", victim) is not None

    # The host returns: reaped by the managers' order, and only what is ours.
    e.start("h1")
    wait_until(lambda: e.guest_of("h1", victim) is None, DEADLINE_S, "the reap")
    wait_until(lambda: e.stone()["state"] == "CLOSED", DEADLINE_S, "the tombstone's end")
    assert e.stone()["holds"] == []
    e.reaches("h1", "UP")
    assert e.guests("h1") == {namesake.uuid: namesake, copy.uuid: copy}
    assert e.aliens() == {namesake.uuid, copy.uuid}

    # The rest remotely.
    for host in ("h2", "h3"):
        e.done(e.ask("vm_delete", vm=f"web-{host}"))
        assert e.guests(host) == {}
    assert e.ask("vm_list")["vms"] == []
    assert e.guests("h1") == {namesake.uuid: namesake, copy.uuid: copy}


def test_power_verbs_reach_the_guest_and_come_back_as_its_state(embedded: Embedded) -> None:
    e = embedded
    vm = e.create("web-1", "h1")
    for verb, power, state in (
        ("vm_stop", "SHUTOFF", "SHUTOFF"),
        ("vm_start", "RUNNING", "ACTIVE"),
        ("vm_pause", "PAUSED", "PAUSED"),
        ("vm_unpause", "RUNNING", "ACTIVE"),
        ("vm_suspend", "SUSPENDED", "SUSPENDED"),
        ("vm_resume", "RUNNING", "ACTIVE"),
        ("vm_reboot", "RUNNING", "ACTIVE"),
    ):
        before = e.guest_of("h1", vm["uuid"])
        force = {"force": True} if verb in ("vm_stop", "vm_reboot") else {}
        e.done(e.ask(verb, vm="web-1", **force))
        after = e.guest_of("h1", vm["uuid"])
        assert before is not None
        assert after is not None
        assert after.power_state == power
        e.shows("web-1", vm_state=state, power_state=power, task_state="none")
    assert after.domain_id != before.domain_id


def test_a_vm_is_resized_and_keeps_its_size_or_is_what_it_was(embedded: Embedded) -> None:
    e = embedded
    vm = e.create("web-1", "h1")

    def size() -> tuple[int, bool]:
        guest = e.guest_of("h1", vm["uuid"])
        assert guest is not None
        assert guest.power_state == "RUNNING"
        return guest.memory_mib, guest.before is not None

    for verb, state, after in (
        ("vm_resize", "RESIZED", (1024, True)),
        ("vm_revert_resize", "ACTIVE", (256, False)),
        ("vm_resize", "RESIZED", (1024, True)),
        ("vm_confirm_resize", "ACTIVE", (1024, False)),
    ):
        asked = {"memory_mib": 1024} if verb == "vm_resize" else {}
        e.done(e.ask(verb, vm="web-1", **asked))
        e.shows("web-1", vm_state=state, power_state="RUNNING", task_state="none")
        assert size() == after
    assert e.vm("web-1")["memory_mib"] == 1024


def test_a_hypervisor_that_does_not_answer_loses_nobody(embedded: Embedded) -> None:
    e = embedded
    e.create("web-1", "h1")
    stranger = e.by_hand("h1", "byhand")
    wait_until(lambda: e.aliens() == {stranger.uuid}, DEADLINE_S, "the alien")
    e.hypervisor("h1").set_faults(Faults(down="the console cable is loose"))
    e.reaches("h1", "SUSPECT")
    reason = str(e.host("h1")["reason"])
    seen = e.vm("web-1")
    assert "cable" in reason
    assert (seen["vm_state"], seen["missing"]) == ("ACTIVE", False)
    e.hypervisor("h1").set_faults(Faults())
    e.reaches("h1", "UP")
    assert e.vm("web-1")["vm_state"] == "ACTIVE"
    assert e.aliens() == {stranger.uuid}


def test_an_agent_that_is_killed_in_the_middle_of_a_start_leaves_nothing_stuck(
    embedded: Embedded,
) -> None:
    e = embedded
    e.hypervisor("h1").set_faults(Faults(latency_s={"create": 1.0, "start": 1.0}))
    job = e.ask("vm_create", name="web-1", vcpus=1, memory_mib=256, host="h1")

    def started() -> bool:
        receipts = e.ask("job_show", job=job["uuid"])["receipts"]
        return any(r["state"] in ("STARTED", "SUCCEEDED") for r in receipts)

    wait_until(started, DEADLINE_S, "the start")
    e.kill("h1")
    e.hypervisor("h1").set_faults(Faults())
    e.start("h1")
    shown: dict[str, Any] = {}

    def ended() -> bool:
        shown.update(e.ask("job_show", job=job["uuid"]))
        return shown["state"] in ENDED

    wait_until(ended, DEADLINE_S, "the job's end")
    vm = e.vm("web-1")
    guest = e.guest_of("h1", vm["uuid"])
    if shown["state"] == "SUCCEEDED":
        e.shows("web-1", vm_state="ACTIVE", task_state="none")
        assert guest is not None
    else:
        e.shows("web-1", vm_state="ERROR", task_state="none")
    e.done(e.ask("vm_delete", vm="web-1"))
    assert e.guest_of("h1", vm["uuid"]) is None


@pytest.mark.real
def test_one_manager_of_two_is_stopped_and_the_other_goes_on(
    tmp_path: Path, postgres: Postgres
) -> None:
    url = postgres.new_database()
    store = Store(database.Database(connection=url), Runtime("upgrade"))
    migrate.upgrade(store)
    store.close()
    e = Embedded(tmp_path, url)
    try:
        for _ in range(2):
            e.start_manager()
        e.up()
        names = [f"web-{n}" for n in range(6)]
        jobs = [
            e.ask("vm_create", name=name, vcpus=1, memory_mib=64, host=HOSTS[n % 3])
            for n, name in enumerate(names)
        ]
        e.stop_manager()
        for job in jobs:
            e.done(job)
        for name in names:
            e.done(e.ask("vm_delete", vm=name))
        assert [e.guests(host) for host in HOSTS] == [{}, {}, {}]
    finally:
        e.close()

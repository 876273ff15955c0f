"""A thousand deletes: a third of the hosts dead, a third dying, and managers killed in between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from common.bus.base import ANY_MANAGER
from common.errors import MusterError
from devstack.consoles import SimulatedConsole
from devstack.fleet import Times
from devstack.parts.postgres import Postgres
from devstack.parts.rabbitmq import RabbitMQ
from tests.faults.stage import Stage, never, staged
from tests.wait import wait_until

pytestmark = pytest.mark.real

VMS, AT_ONCE = 1000, 50
DEAD = ("dead-1", "dead-2", "dead-3")
DYING = ("dying-1", "dying-2", "dying-3", "dying-4")  # enough for a mass by themselves
WELL = ("well-1", "well-2", "well-3")
HOSTS = (*DEAD, *DYING, *WELL)
SILENT = (*DEAD, *DYING)
TIMES = Times(report_interval=1.0, service_down_time=5.0, resend_after=2.0)
ZONE: dict[str, list[dict[str, Any]]] = {
    "projects": [{"name": "shop"}],
    "zones": [{"name": "z1"}],
    "pods": [{"name": "p1", "zone": "z1"}],
    "clusters": [{"name": "c1", "pod": "p1"}],
    "hosts": [{"name": host, "cluster": "c1"} for host in HOSTS],
    "pools": [{"name": "wide", "scope": "zone", "zone": "z1", "path": "/d", "capacity_gib": 9999}],
    "offerings": [{"name": "tiny", "vcpus": 1, "memory_mib": 16, "root_gib": 1}],
    "templates": [{"name": "img", "format": "qcow2", "url": "file:///srv/img", "sha256": "0" * 64}],
    "networks": [
        {"name": "n1", "zone": "z1", "backend": "bridge", "source": "br0", "cidr": "10.1.0.0/21"}
    ],
}
PASSING = ("NO_MANAGER", "DATABASE_UNAVAILABLE", "CONFLICT")
OPEN_JOBS = "SELECT count(*) FROM jobs WHERE state IN ('PENDING', 'RUNNING') AND same_as IS NULL"
LIVE = "SELECT name, host FROM instances WHERE vm_state <> 'DELETED'"


@pytest.fixture
def stage(rabbit: RabbitMQ, postgres: Postgres) -> Iterator[Stage]:
    """A thousand VMs over nine hosts, each with a stranger's guest beside them."""
    with staged(HOSTS, rabbit.new_vhost(), postgres.new_database(), TIMES, managers=2) as stage:
        for host in HOSTS:
            stage.console(host).make_stranger(f"payroll-{host}")
        stage.bus.call(ANY_MANAGER, "model_apply", {"objects": ZONE}, 10.0)
        wish_all(stage, "vm_create", [wanted(n) for n in range(VMS)])
        wait_until(lambda: open_jobs(stage) == 0, 120, "a thousand VMs are made")
        states = stage.rows("SELECT vm_state, count(*) FROM instances GROUP BY vm_state")
        assert dict(map(tuple, states)) == {"ACTIVE": VMS}
        yield stage


def wanted(n: int) -> dict[str, Any]:
    """The hosts of one request come in their order, in which everybody takes them."""
    host = HOSTS[n % AT_ONCE * len(HOSTS) // AT_ONCE]
    offered = {"project": "shop", "offering": "tiny", "template": "img"}
    return {"name": f"vm-{n}", "host": host, **offered, "data_disks": [{"size_gib": 2}]}


def wish_all(stage: Stage, method: str, wishes: list[dict[str, Any]]) -> None:
    """Many wishes, each request repeated under the same jobs until a manager has answered it."""
    for begin in range(0, len(wishes), AT_ONCE):
        asked = [
            [method, {"job": stage.runtime.new_id(), "operator": "ann", **wish}]
            for wish in wishes[begin : begin + AT_ONCE]
        ]
        answers = wait_until(lambda asked=asked: ask(stage, asked), 60, f"{method} is answered")
        assert not [answer for answer in answers if "error" in answer], answers


def ask(stage: Stage, asked: list[Any]) -> list[dict[str, Any]]:
    """The answers; none when there were none, or not to all, and the same has to be asked again."""
    try:
        found = stage.bus.call(ANY_MANAGER, "wishes", {"wishes": asked}, 10.0)
    except MusterError as exc:
        if exc.code not in PASSING:
            raise
        return []
    answers: list[dict[str, Any]] = found["answers"]
    again = any(answer["error"]["code"] in PASSING for answer in answers if "error" in answer)
    return [] if again else answers


def open_jobs(stage: Stage) -> int:
    return int(stage.rows(OPEN_JOBS)[0][0])


def live(stage: Stage) -> Counter[str]:
    """How many VMs are left, by host."""
    return Counter(host for _name, host in stage.rows(LIVE))


def test_a_thousand_deletes_all_end_and_everything_balances(stage: Stage) -> None:
    strangers = {host: stage.guest(host, f"payroll-{host}") for host in HOSTS}
    for host in DEAD:
        stage.fleet.kill_agent(host)
    for host in DEAD:
        stage.becomes(host, "DOWN")

    with ThreadPoolExecutor(2) as operators:
        asking = [operators.submit(delete, stage, range(half, VMS, 2)) for half in (0, 1)]
        managers_and_hosts_die(stage)
        for future in asking:
            future.result()
    held_by_mass_silence(stage)

    for host in SILENT:
        named = stage.muster("host", "set-down", host, "--reason", "its rack burns")
        assert named.code == 0, named.err
    wait_until(lambda: open_jobs(stage) == 0, 60, "every delete ends")
    ended = stage.rows("SELECT state, count(*) FROM jobs WHERE kind = 'delete' GROUP BY state")
    assert dict(map(tuple, ended)) == {"SUCCEEDED": VMS}
    assert live(stage) == {}
    what_may_still_run_is_kept_from_others(stage)

    for host in SILENT:
        stage.fleet.start_agent(host)
    wait_until(lambda: not owed(stage), 60, "every tombstone is closed")
    # Each was told with the answer to the hello of its host, not by a later round.
    reaped = stage.became("tombstone.reap")
    assert all(text.endswith("its host said hello") for text in reaped), Counter(
        text.partition(": ")[2] for text in reaped
    )
    for host in SILENT:
        assert stage.muster("host", "unset-down", host).code == 0
    for host in HOSTS:
        stage.becomes(host, "UP")
    everything_balances(stage)
    for host in HOSTS:
        guests = list(stage.console(host).guests().values())
        assert guests == [strangers[host]]
    # By the hypervisors' own account no guest was made, started or destroyed twice.
    vms = [row[0] for row in stage.rows("SELECT uuid FROM instances")]
    for host in HOSTS:
        account = SimulatedConsole(stage.fleet.folder / "hypervisors", host).effects(vms)
        assert [effect for effect in account if effect.times > 1] == []


def delete(stage: Stage, half: range) -> None:
    """One operator's half of them."""
    wish_all(stage, "vm_delete", [{"vm": f"vm-{n}", "reason": "end of season"} for n in half])


def managers_and_hosts_die(stage: Stage) -> None:
    """One after the other while deletes are asked for and carried out."""
    managers = stage.fleet.managers
    for n, host in enumerate(DYING):
        left = 900 - 60 * n
        wait_until(lambda left=left: live(stage).total() < left, 60, f"fewer than {left} are left")
        victim = f"manager-{n % 2 + 1}"
        managers.pop(victim).kill()
        stage.fleet.kill_agent(host)
        lives = stage.log(victim).count("is up")
        stage.fleet.start_manager(victim)
        wait_until(lambda v=victim, n=lives: stage.log(v).count("is up") > n, 30, "it is back")


def held_by_mass_silence(stage: Stage) -> None:
    """What agents can do is done by them; of the silent hosts nobody is believed dead any more."""
    wait_until(lambda: live(stage).keys() <= set(SILENT), 60, "what is left is on silent hosts")
    for host in DYING:
        wait_until(lambda host=host: stage.host(host)["mass_silence"], 30, f"{host} in the mass")
    left = live(stage)
    assert all(left[host] for host in DYING), left
    never(lambda: live(stage) != left, 1.5 * TIMES.service_down_time, "deleted in mass silence")
    assert open_jobs(stage) == left.total()
    downs = " ".join(stage.became_down())
    assert not [host for host in DYING if host in downs], downs


def owed(stage: Stage) -> set[str]:
    """The instances whose guests may still run somewhere."""
    return {row[0] for row in stage.rows("SELECT instance FROM tombstones WHERE state = 'OPEN'")}


def held(stage: Stage) -> dict[str, set[str]]:
    """The instances that hold something, by what they hold."""
    return {
        what: {row[0] for row in stage.rows(f"SELECT instance FROM {what}")}  # noqa: S608 - ours
        for what in ("macs", "addresses", "volumes")
    }


def used(stage: Stage) -> dict[str, int]:
    """What is claimed of the hosts and counted against the project's limits."""
    claims = "SELECT sum(vcpus_claimed), sum(memory_mib_claimed) FROM hosts"
    vcpus, memory_mib = map(int, stage.rows(claims)[0])
    quota = stage.bus.call(ANY_MANAGER, "quota_show", {"project": "shop"}, 10.0)["quota"]
    counted = {each["resource"]: each["used"] for each in quota}
    return {**counted, "claimed vcpus": vcpus, "claimed memory": memory_mib}


def what_may_still_run_is_kept_from_others(stage: Stage) -> None:
    owing = owed(stage)
    guests = [g for host in SILENT for g in stage.console(host).guests().values() if g.mark]
    assert {g.mark.instance for g in guests if g.mark} <= owing
    assert held(stage) == dict.fromkeys(("macs", "addresses", "volumes"), owing)
    assert set(used(stage).values()) == {0}, used(stage)


def everything_balances(stage: Stage) -> None:
    assert held(stage) == {"macs": set(), "addresses": set(), "volumes": set()}
    assert set(used(stage).values()) == {0}, used(stage)
    stones = stage.rows("SELECT state, count(*) FROM tombstones GROUP BY state")
    assert dict(map(tuple, stones)) == {"CLOSED": VMS}
    assert open_jobs(stage) == 0
    under_way = (
        "SELECT kind, host, state FROM commands WHERE kind <> 'noop'"
        " AND state NOT IN ('SUCCEEDED', 'FAILED', 'NOT_RUN', 'UNKNOWN')"
    )
    assert stage.rows(under_way) == []
    assert stage.rows("SELECT * FROM voids") == []
    assert stage.rows("SELECT * FROM sightings WHERE present AND kind <> 'ALIEN'") == []
    assert stage.ask("vm", "list") == []

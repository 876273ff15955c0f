"""Two hundred creates at once, from two managers, against limits that fit fewer."""

from __future__ import annotations

import collections
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from common.bus.base import ANY_MANAGER
from common.errors import MusterError
from devstack.consoles import runs
from devstack.fleet import Times
from devstack.parts.postgres import Postgres
from devstack.parts.rabbitmq import RabbitMQ
from tests.faults.stage import Stage, staged
from tests.wait import wait_until

pytestmark = pytest.mark.real

ASKED, FIT = 200, 150
TRIES = 3
OFFERING = {"name": "tiny", "vcpus": 1, "memory_mib": 16, "root_gib": 1}
# Each of them is full after so many, and none of them has room for one more.
LIMITS = {
    "instances": FIT,
    "vcpus": FIT,
    "memory_mib": 16 * FIT + 15,
    "volumes": 2 * FIT,
    "storage_gib": 3 * FIT + 2,
    "addresses": FIT,
}
ZONE: dict[str, list[dict[str, Any]]] = {
    "projects": [{"name": "shop", **LIMITS}],
    "zones": [{"name": "z1"}],
    "pods": [{"name": "p1", "zone": "z1"}],
    "clusters": [{"name": "c1", "pod": "p1"}],
    "hosts": [{"name": host, "cluster": "c1"} for host in ("alpha", "beta", "gamma", "delta")],
    "pools": [{"name": "wide", "scope": "zone", "zone": "z1", "path": "/d", "capacity_gib": 1000}],
    "offerings": [OFFERING],
    "templates": [{"name": "img", "format": "qcow2", "url": "file:///srv/img", "sha256": "0" * 64}],
    "networks": [
        {"name": "n1", "zone": "z1", "backend": "bridge", "source": "br0", "cidr": "10.1.0.0/23"}
    ],
}
HOSTS = [host["name"] for host in ZONE["hosts"]]


def create(stage: Stage, begin: threading.Barrier, n: int) -> dict[str, Any]:
    """The job of a create, or the error that it was refused with."""
    asked = {
        "job": stage.runtime.new_id(),
        "operator": "ann",
        "name": f"vm-{n}",
        "project": "shop",
        "offering": "tiny",
        "template": "img",
        "data_disks": [{"size_gib": 2}],
    }
    begin.wait(60.0)
    for _ in range(TRIES):
        try:
            answer: dict[str, Any] = stage.bus.call(ANY_MANAGER, "vm_create", asked, 60.0)
            return answer
        except MusterError as exc:
            refused = exc.to_wire()
        if refused["code"] not in ("NO_MANAGER", "DATABASE_UNAVAILABLE"):
            break  # of the others nobody can know without asking again, under the same job
    return refused


def test_two_hundred_creates_against_limits_for_one_hundred_and_fifty(
    rabbit: RabbitMQ, postgres: Postgres
) -> None:
    with staged(
        HOSTS,
        rabbit.new_vhost(),
        postgres.new_database(),
        Times(report_interval=0.5, service_down_time=10.0, resend_after=5.0),
        managers=2,
    ) as stage:
        stage.bus.call(ANY_MANAGER, "model_apply", {"objects": ZONE}, 10.0)
        begin = threading.Barrier(ASKED)
        with ThreadPoolExecutor(ASKED) as operators:
            answers = list(operators.map(lambda n: create(stage, begin, n), range(ASKED)))

        accepted = [answer for answer in answers if "uuid" in answer]
        refused = [answer for answer in answers if "uuid" not in answer]
        codes = collections.Counter(error["code"] for error in refused)
        assert codes == {"QUOTA_EXCEEDED": ASKED - FIT}, codes
        for error in refused:
            named = re.findall(r"(\w+): \d+ of \d+ are in use", error["message"])
            assert named == list(LIMITS), error
        assert len(accepted) == FIT

        ended = "SELECT state, count(*) FROM jobs WHERE ended_at IS NOT NULL GROUP BY state"
        wait_until(lambda: sum(n for _, n in stage.rows(ended)) == FIT, 60, "every job ends")
        assert dict(map(tuple, stage.rows(ended))) == {"SUCCEEDED": FIT}
        _what_is_counted_is_what_runs(stage)
        _both_managers_had_their_part_and_none_of_them_broke_down(stage)


def _what_is_counted_is_what_runs(stage: Stage) -> None:
    guests = [g for host in HOSTS for g in stage.console(host).guests().values()]
    assert all(runs(guest) for guest in guests)
    vms = stage.rows("SELECT name, address FROM instances WHERE vm_state = 'ACTIVE'")
    assert sorted(guest.name for guest in guests) == sorted(name for name, _ in vms)
    assert len({address for _, address in vms}) == FIT
    quota = stage.bus.call(ANY_MANAGER, "quota_show", {"project": "shop"}, 10.0)["quota"]
    used = {each["resource"]: each["used"] for each in quota}
    assert used == {
        "instances": len(guests),
        "vcpus": sum(guest.vcpus for guest in guests),
        "memory_mib": sum(guest.memory_mib for guest in guests),
        "volumes": 2 * len(guests),
        "storage_gib": 3 * len(guests),
        "addresses": len({mac for guest in guests for mac in guest.macs}),
    }
    claims = "SELECT sum(vcpus_claimed), sum(memory_mib_claimed) FROM hosts"
    assert tuple(map(int, stage.rows(claims)[0])) == (used["vcpus"], used["memory_mib"])


def _both_managers_had_their_part_and_none_of_them_broke_down(stage: Stage) -> None:
    for manager in ("manager-1", "manager-2"):
        log = stage.log(manager)
        assert log.count("QUOTA_EXCEEDED") or log.count("job.succeeded"), manager
        assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:5000]
    assert not stage.became_down()
    query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    assert stage.rows(query)[0][0] == 0

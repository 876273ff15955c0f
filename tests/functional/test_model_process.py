"""A zone from a file, and a VM in it: the command, managers, broker and database as processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from devstack.fleet import Times
from devstack.parts.postgres import Postgres
from devstack.parts.rabbitmq import RabbitMQ
from tests.faults.stage import staged

pytestmark = pytest.mark.real

SAMPLE = Path(__file__).parents[2] / "etc" / "muster" / "zone.yaml.sample"
TIMES = Times(report_interval=0.5, service_down_time=3.0)


def test_a_file_makes_a_zone_that_a_vm_is_made_in(
    rabbit: RabbitMQ, postgres: Postgres, tmp_path: Path
) -> None:
    zone = yaml.safe_load(SAMPLE.read_text())
    zone["hosts"] = [{"name": "alpha", "cluster": "amd"}, {"name": "node-1", "cluster": "amd"}]
    zone["pools"] = []
    file = tmp_path / "zone.yaml"
    file.write_text(yaml.safe_dump(zone))
    with staged(["alpha"], rabbit.new_vhost(), postgres.new_database(), TIMES) as stage:
        muster = stage.fleet.muster
        first = muster("apply", str(file), "-f", "json")
        assert (first.code, {one["action"] for one in first.json()}) == (0, {"create"})
        again = muster("apply", str(file), "-f", "json")
        assert {one["action"] for one in again.json()} == {"none"}
        assert stage.ask("host", "list", "--long")[0]["cluster"] == "amd"

        options = ["--vcpus", "1", "--memory", "96", "--project", "shop"]
        network = ["--network", "public,address=192.0.2.150"]
        foreseen = muster("vm", "create", "web-1", *options, *network, "--dry-run", "-f", "json")
        assert foreseen.code == 0, foreseen.err
        assert [row["host"] for row in foreseen.json()] == ["alpha"]
        stage.done("vm", "create", "web-1", *options, *network)
        assert stage.vm("web-1")["address"] == "192.0.2.150"
        used = {row["resource"]: row for row in stage.ask("quota", "show", "shop")}
        assert (used["instances"]["used"], used["instances"]["limit"]) == (1, 40)

        kept = muster("network", "delete", "public")
        assert kept.code == 4
        assert "IN_USE: network public is used by VM web-1" in kept.err
        wrong = muster("vm", "create", "web-2", *options, "--network", "none", "--ssh-key", "bob")
        assert wrong.code == 2
        assert [line.split(": ")[2] for line in wrong.err.splitlines()] == ["networks", "ssh_keys"]

        stage.done("vm", "delete", "web-1")
        assert muster("network", "delete", "public").code == 0

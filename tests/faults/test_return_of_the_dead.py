"""Hosts that come back with guests nobody expects of them any more, on libvirt.

Each return ends as the tables say, and the strangers' guests beside are, by libvirt's own account,
exactly what they were.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

libvirt = pytest.importorskip("libvirt")

from devstack.consoles import FLEET
from devstack.fleet import Times
from devstack.parts.libvirtd import Libvirtd
from devstack.parts.postgres import Postgres
from devstack.parts.rabbitmq import RabbitMQ
from tests.faults.stage import Stage, staged
from tests.functional.libvirt_rig import mark_xml
from tests.wait import wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow]

# QEMU guests, and libvirt's mock driver behind the same daemon.
IRON, MOCK = "iron", "mock"
TIMES = Times(report_interval=1.0, service_down_time=3.0, missing_grace=1.0)
MAC = "52:54:00:00:00:77"
Picture = tuple[Any, ...]


class Hand:
    """Somebody at the hypervisor itself, and what it says of its guests."""

    def __init__(self, daemon: Libvirtd, uri: str, kind: str) -> None:
        self._daemon, self.uri, self._kind = daemon, uri, kind

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Any]:
        conn = libvirt.open(self.uri)
        try:
            yield conn
        finally:
            conn.close()

    def pictures(self) -> dict[str, Picture]:
        """Everything of each guest, by its name, that a touch would change."""
        pids = self._daemon.qemu_pids() if self._kind == "qemu" else {}
        with self._connected() as conn:
            return {
                domain.name(): (
                    domain.ID(),
                    domain.state(),
                    domain.XMLDesc(),
                    domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE),
                    _started_at(pids.get(domain.name())),
                )
                for domain in conn.listAllDomains()
            }

    def runs(self, name: str) -> bool | None:
        """None: there is no such guest."""
        picture = self.pictures().get(name)
        return None if picture is None else picture[1][0] == libvirt.VIR_DOMAIN_RUNNING

    def uuid(self, name: str) -> str:
        with self._connected() as conn:
            return str(conn.lookupByName(name).UUIDString())

    def make(
        self, name: str, mark: str = "", *, bearer: str | None = None, running: bool = True
    ) -> str:
        """A guest made by hand; BEARER in its mark stands for its own uuid, which is returned."""
        made = bearer or str(uuid.uuid4())
        card = f"<interface type='user'><mac address='{MAC}'/></interface>" if mark else ""
        self.put(
            f"<domain type='{self._kind}'><name>{name}</name><uuid>{made}</uuid>"
            f"<metadata>{mark.replace('BEARER', made)}</metadata>"
            "<memory unit='MiB'>64</memory><vcpu>1</vcpu><os><type>hvm</type></os>"
            f"<devices>{card}</devices></domain>",
            running=running,
        )
        return made

    def put(self, definition: str, *, running: bool = True) -> None:
        with self._connected() as conn:
            domain = conn.defineXML(definition)
            if running:
                domain.create()

    def take(self, name: str) -> str:
        """A guest is taken away; its definition."""
        with self._connected() as conn:
            domain = conn.lookupByName(name)
            definition = str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
            if domain.isActive():
                domain.destroy()
            domain.undefine()
            return definition

    def clear(self) -> None:
        for name in self.pictures():
            self.take(name)


def _started_at(pid: int | None) -> str:
    """When its process was started, in the kernel's words."""
    if pid is None:
        return ""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


@pytest.fixture(scope="module")
def hands(libvirtd: Libvirtd) -> Iterator[dict[str, Hand]]:
    found = {
        IRON: Hand(libvirtd, libvirtd.qemu_uri, "qemu"),
        MOCK: Hand(libvirtd, libvirtd.mock_uri, "test"),
    }
    yield found
    for hand in found.values():
        hand.clear()


@pytest.fixture(scope="module")
def stage(rabbit: RabbitMQ, postgres: Postgres, hands: dict[str, Hand]) -> Iterator[Stage]:
    with staged(
        [IRON, MOCK],
        rabbit.new_vhost(),
        postgres.new_database(),
        TIMES,
        connection_uris={host: hand.uri for host, hand in hands.items()},
        options={"manager": {"canary_interval": 1.0}},
    ) as stage:
        hands[MOCK].clear()  # it comes with a guest that is larger than its host
        for host, hand in hands.items():
            hand.make(f"payroll-{host}")
            hand.make(f"archive-{host}", running=False)
        yield stage


@pytest.fixture(autouse=True)
def strangers_are_untouched(stage: Stage, hands: dict[str, Hand]) -> Iterator[None]:
    before = {host: hand.pictures() for host, hand in hands.items()}
    with stage.watched():
        yield
    after = {host: hand.pictures() for host, hand in hands.items()}
    for host, strangers in before.items():
        assert {name: after[host].get(name) for name in strangers} == strangers


@contextlib.contextmanager
def away(stage: Stage, host: str) -> Iterator[None]:
    """Its agent is killed, as an operator knows; afterwards it is back and has told its guests."""
    stage.fleet.kill_agent(host)
    named = stage.muster("host", "set-down", host, "--reason", "its agent died")
    assert named.code == 0, named.err
    try:
        yield
    finally:
        back(stage, host)


def back(stage: Stage, host: str) -> None:
    stage.fleet.start_agent(host)
    for undo in ("unset-down", "unfence"):
        assert stage.muster("host", undo, host).code == 0
    stage.becomes(host, "UP")


@contextlib.contextmanager
def frozen(daemon: Libvirtd) -> Iterator[None]:
    """What an agent asks of it is not answered."""
    daemon.freeze()
    try:
        yield
    finally:
        daemon.thaw()


def mark_of(instance: str, fleet: str = FLEET) -> str:
    return mark_xml(fleet=fleet, instance=instance, bearer="BEARER")


def made(stage: Stage, name: str, host: str = IRON) -> dict[str, Any]:
    """A VM that runs on this host."""
    stage.becomes(host, "UP")
    return stage.create(name, "--host", host)


def reaped(stage: Stage, name: str) -> None:
    wait_until(lambda: stage.tombstone(name)["state"] == "CLOSED", 30, f"{name} is reaped")


def macs(stage: Stage) -> set[str]:
    """The addresses that nobody else can be given."""
    return {row[0] for row in stage.rows("SELECT mac FROM macs")}


def started(stage: Stage, job: str) -> bool:
    """An agent has begun with the job's command."""
    query = "SELECT 1 FROM commands WHERE job = :job AND state = 'STARTED'"
    return bool(stage.rows(query, job=job))


def test_return_with_a_doomed_vm(stage: Stage, hands: dict[str, Hand]) -> None:
    vm = made(stage, "doomed")
    stage.fleet.kill_agent(IRON)
    stage.becomes(IRON, "DOWN")
    stage.done("vm", "delete", "doomed")
    assert stage.tombstone("doomed")["state"] == "OPEN"
    assert hands[IRON].runs("doomed")
    assert vm["mac"] in macs(stage)

    stage.fleet.start_agent(IRON)
    reaped(stage, "doomed")
    assert hands[IRON].runs("doomed") is None
    assert vm["mac"] not in macs(stage)
    stage.becomes(IRON, "UP")


def test_return_without_a_vm_that_is_missing_until_it_is_put_back(
    stage: Stage, hands: dict[str, Hand]
) -> None:
    made(stage, "missing")
    with away(stage, IRON):
        definition = hands[IRON].take("missing")
    found = wait_until(lambda: (v := stage.vm("missing"))["missing"] and v, 30, "it is missed")
    assert (found["vm_state"], found["power_state"], found["host"]) == ("ACTIVE", "NOSTATE", IRON)
    assert hands[IRON].runs("missing") is None
    hands[IRON].put(definition)
    wait_until(lambda: stage.vm("missing")["power_state"] == "RUNNING", 30, "it is found")
    assert not stage.vm("missing")["missing"]
    stage.done("vm", "delete", "missing")
    assert hands[IRON].runs("missing") is None


def test_return_with_a_vm_that_was_deployed_elsewhere_after_a_fence(
    stage: Stage, hands: dict[str, Hand], libvirtd: Libvirtd
) -> None:
    assert stage.muster("host", "disable", MOCK).code == 0
    stage.becomes(IRON, "UP")
    with frozen(libvirtd):
        job = stage.accept("vm", "create", "fenced", "--vcpus", "1", "--memory", "96")
        wait_until(lambda: started(stage, job), 30, f"{IRON} has begun")
        stage.fleet.kill_agent(IRON)
    assert stage.muster("host", "enable", MOCK).code == 0
    # As far as its agent may have come before it died: the guest runs, and nobody was told.
    instance = stage.job(job)["instance"]
    hands[IRON].make("fenced", mark_of(instance))
    fenced = stage.muster("host", "fence", IRON, "--reason", "its power is cut")
    assert fenced.code == 0, fenced.err
    stage.becomes(MOCK, "UP")
    stage.rows("UPDATE commands SET deadline_at = now() WHERE job = :job", job=job)
    stage.ended(job, "SUCCEEDED")
    assert stage.vm("fenced")["host"] == MOCK
    home = hands[MOCK].pictures()["fenced"]

    # Its power was not cut: the guest runs in both places, and one of them is at home.
    assert hands[IRON].runs("fenced")
    back(stage, IRON)
    reaped(stage, "fenced")
    assert hands[IRON].runs("fenced") is None
    assert hands[MOCK].pictures()["fenced"] == home
    found = stage.vm("fenced")
    assert (found["host"], found["vm_state"], found["missing"]) == (MOCK, "ACTIVE", False)
    stage.done("vm", "delete", "fenced")


def test_return_without_a_vm_that_was_moved_by_hand(stage: Stage, hands: dict[str, Hand]) -> None:
    instance = made(stage, "moved")["uuid"]
    with away(stage, IRON):
        bearer = hands[IRON].uuid("moved")
        hands[IRON].take("moved")
        hands[MOCK].make("moved", mark_of(instance), bearer=bearer)
        told = f"belongs to {IRON} and is seen by host {MOCK}"
        wait_until(
            lambda: any(told in text for text in stage.became("instance.duplicate")), 30, told
        )
        new_home = hands[MOCK].pictures()["moved"]
    found = wait_until(lambda: (v := stage.vm("moved"))["missing"] and v, 30, "it is missed")
    # The record stays where it is, and nothing is changed in either place.
    assert (found["host"], found["vm_state"]) == (IRON, "ACTIVE")
    assert hands[IRON].runs("moved") is None
    assert hands[MOCK].pictures()["moved"] == new_home
    # A delete goes to every host where it may be.
    stage.done("vm", "delete", "moved")
    assert hands[MOCK].runs("moved") is None


def test_return_with_a_vm_of_another_fleet(stage: Stage, hands: dict[str, Hand]) -> None:
    instance = made(stage, "contested")["uuid"]
    with away(stage, IRON):
        # The worst of cases: it even names the instance that is doomed here.
        hands[IRON].make("theirs", mark_of(instance, fleet="theirs"))
        theirs = hands[IRON].pictures()["theirs"]
        stage.done("vm", "delete", "contested")
    reaped(stage, "contested")
    assert hands[IRON].runs("contested") is None
    assert hands[IRON].pictures()["theirs"] == theirs
    aliens = {alien["name"] for alien in stage.ask("alien", "list")}
    assert {"theirs", f"payroll-{IRON}"} <= aliens
    hands[IRON].take("theirs")


def test_return_with_an_orphan(stage: Stage, hands: dict[str, Hand]) -> None:
    with away(stage, IRON):
        hands[IRON].make("orphan", mark_of(str(uuid.uuid4())))
        orphan = hands[IRON].pictures()["orphan"]
    wait_until(lambda: MAC in macs(stage), 30, "what it uses is kept from others")
    assert [text for text in stage.became("orphan.seen") if "left alone" in text]
    assert hands[IRON].pictures()["orphan"] == orphan
    assert stage.ask("vm", "list") == []
    hands[IRON].take("orphan")


def test_return_with_a_clone_that_carries_our_mark(stage: Stage, hands: dict[str, Hand]) -> None:
    instance = made(stage, "original")["uuid"]
    with away(stage, IRON):
        bearer = hands[IRON].uuid("original")
        hands[IRON].make("clone", mark_of(instance).replace("BEARER", bearer))
        clone = hands[IRON].pictures()["clone"]
        stage.done("vm", "delete", "original")
    reaped(stage, "original")
    assert hands[IRON].runs("original") is None
    assert hands[IRON].pictures()["clone"] == clone
    assert "clone" in {alien["name"] for alien in stage.ask("alien", "list")}
    hands[IRON].take("clone")


def test_return_with_an_older_copy_of_its_journal(
    stage: Stage, hands: dict[str, Hand], libvirtd: Libvirtd, tmp_path: Path
) -> None:
    journal = stage.fleet.folder / "agents" / IRON / "journal.db"
    for name in ("aged", "buried"):
        made(stage, name)
    stage.done("vm", "stop", "aged", "--force")
    with frozen(libvirtd):
        job = stage.accept("vm", "start", "aged")
        wait_until(lambda: started(stage, job), 30, "in the middle of a start")
        copy(journal, tmp_path / "older.db")
    stage.ended(job, "SUCCEEDED")
    stage.done("vm", "stop", "aged", "--force")
    off = hands[IRON].pictures()["aged"]

    with away(stage, IRON):
        stage.done("vm", "delete", "buried")
        shutil.rmtree(journal.parent)
        journal.parent.mkdir()
        shutil.copy(tmp_path / "older.db", journal)
    reaped(stage, "buried")
    assert hands[IRON].runs("buried") is None
    # What the journal believes to have begun was done long ago, and taken back.
    assert hands[IRON].pictures()["aged"] == off
    assert stage.vm("aged")["vm_state"] == "SHUTOFF"
    stage.done("vm", "start", "aged")
    assert hands[IRON].runs("aged")
    stage.done("vm", "delete", "aged")


def copy(journal: Path, to: Path) -> None:
    """As a snapshot of its machine would hold it."""
    with (
        contextlib.closing(sqlite3.connect(journal)) as held,
        contextlib.closing(sqlite3.connect(to)) as kept,
    ):
        held.backup(kept)


def test_return_of_all_hosts_to_a_database_of_yesterday(
    stage: Stage, hands: dict[str, Hand], postgres: Postgres
) -> None:
    name = stage.settings.database.connection.rpartition("/")[2]
    for vm in ("kept", "deleted-since"):
        made(stage, vm)
    restart_on(stage, postgres, f"CREATE DATABASE {name}_old TEMPLATE {name}")
    stage.rows(
        "UPDATE meta SET value = CAST(CAST(value AS integer) + 8640 AS text) WHERE key = 'mark'"
    )
    stage.done("vm", "stop", "kept", "--force")
    stage.done("vm", "delete", "deleted-since")
    made(stage, "made-since", MOCK)
    before = {host: hand.pictures() for host, hand in hands.items()}

    restart_on(
        stage, postgres, f"DROP DATABASE {name}", f"ALTER DATABASE {name}_old RENAME TO {name}"
    )
    wait_until(lambda: ahead(stage) == {IRON, MOCK}, 30, "every host is ahead of it")
    refused = stage.muster("vm", "delete", "kept")
    assert "DB_ROLLED_BACK" in refused.err
    accepted = stage.muster("db", "accept-restore", "--reason", "the disk was lost")
    assert accepted.code == 0, accepted.err
    for host in (IRON, MOCK):
        stage.becomes(host, "UP")
    wait_until(lambda: stage.vm("deleted-since")["missing"], 30, "what has been deleted is missed")
    assert stage.vm("kept")["vm_state"] == "SHUTOFF"
    # Of what was done since nothing is undone, and what nobody remembers is left alone.
    assert {host: hand.pictures() for host, hand in hands.items()} == before
    assert [text for text in stage.became("orphan.seen") if "made-since" in text]
    stage.done("vm", "start", "kept")
    for vm in ("kept", "deleted-since"):
        stage.done("vm", "delete", vm)


def ahead(stage: Stage) -> set[str]:
    return {finding["object"] for finding in stage.findings("DB_ROLLED_BACK")}


def restart_on(stage: Stage, postgres: Postgres, *statements: str) -> None:
    """What can be done to a database only while no manager has it open."""
    stage.fleet.managers.pop("manager-1").stop()
    for statement in statements:
        postgres.sql(statement, "postgres")
    lives = stage.log("manager-1").count("is up")
    stage.fleet.start_manager("manager-1")
    wait_until(lambda: stage.log("manager-1").count("is up") > lives, 30, "it is back")

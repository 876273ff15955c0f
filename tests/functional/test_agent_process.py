"""muster-agent as a process: over a real broker, under both executors, killed and told to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu import Connection

from agent.drivers.simulated.store import Faults, Store
from common import messages as m
from common.bus import rabbit as rabbit_bus
from common.conf import Settings
from common.conf.default import Default
from common.errors import MusterError
from common.runtime import Runtime
from devstack.parts.rabbitmq import RabbitMQ
from tests.functional.agent_rig import FLEET, HOST, FakeManager
from tests.wait import wait_until

ROOT = Path(__file__).parents[2]
CONFIG = """
[DEFAULT]
transport_url = {url}
fleet_id = {fleet}
host = {host}
executor = {executor}
report_interval = 0.5
log_level = {level}
[manager]
service_down_time = 2
[agent]
driver = {driver}
state_dir = {folder}/agent
[simulated]
state_dir = {folder}/sim
"""


IMPATIENT = (
    "import sys, agent.ears, agent.main; agent.ears.LEAST_S = {}; sys.exit(agent.main.main())"
)


class Process:
    """One muster-agent after another on one host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "muster.conf"
        self.log = folder / "log"
        self.store = Store(str(folder / "sim"), HOST)
        self.store.make()
        self.running: subprocess.Popen[bytes] | None = None

    def configure(self, url: str, **changes: str) -> None:
        values = {"executor": "threading", "driver": "simulated", "level": "INFO", **changes}
        self.config.write_text(
            CONFIG.format(url=url, fleet=FLEET, host=HOST, folder=self.folder, **values)
        )

    def start(self, *, silence_s: float | None = None) -> subprocess.Popen[bytes]:
        """An agent; `silence_s`: how long at least it must hear nothing to think itself deaf."""
        begin = ["-m", "agent.main"] if silence_s is None else ["-c", IMPATIENT.format(silence_s)]
        with self.log.open("ab") as log:
            self.running = subprocess.Popen(
                [sys.executable, *begin, "--config-file", str(self.config)],
                cwd=ROOT,
                stderr=log,
                stdout=log,
            )
        return self.running

    def end(self, number: int) -> int:
        """Send a signal and wait for the end; the exit status."""
        assert self.running is not None
        self.running.send_signal(number)
        return self.running.wait(10.0)

    def said(self, text: str) -> bool:
        return text in self.log.read_text()

    def close(self) -> None:
        if self.running is not None and self.running.poll() is None:
            self.running.kill()
            self.running.wait(10.0)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path)
    yield process
    process.close()


@pytest.fixture
def url(rabbit: RabbitMQ) -> str:
    return rabbit.new_vhost()


@pytest.fixture
def manager(url: str) -> Iterator[FakeManager]:
    runtime = Runtime("manager")
    settings = Settings(default=Default(transport_url=url, host="m1", fleet_id=FLEET))
    bus = rabbit_bus.connect(settings, runtime, "manager")
    yield FakeManager(bus)
    bus.close()
    runtime.stop(2.0)


@pytest.fixture
def canaries() -> Iterator[Runtime]:
    runtime = Runtime("canaries")
    yield runtime
    runtime.kill()


def _ready(manager: FakeManager, sessions: int = 1) -> None:
    wait_until(lambda: manager.session >= sessions, 30, "a hello")

    def heard() -> bool:
        return any(h.session == manager.session for h in manager.heartbeats)

    wait_until(heard, 30, "a heartbeat with the session")


def _create(manager: FakeManager, instance: str) -> str:
    spec = {"guest": {"name": instance, "vcpus": 1, "memory_mib": 64}, "create": True}
    return manager.send("start_vm", instance, 1, spec=spec)


def _state(process: Process, instance: str) -> str:
    for guest_uuid in process.store.uuids():
        guest = process.store.read(guest_uuid)
        if guest is not None and guest.mark is not None and guest.mark.instance == instance:
            return guest.power_state
    return "absent"


@pytest.mark.real
@pytest.mark.parametrize("executor", ["threading", "eventlet"])
def test_the_whole_path_over_rabbitmq(
    process: Process, manager: FakeManager, url: str, executor: str
) -> None:
    process.configure(url, executor=executor)
    process.start()
    _ready(manager)
    assert manager.result(_create(manager, "i-1")).outcome == "succeeded"
    assert _state(process, "i-1") == "RUNNING"
    several = [_create(manager, f"i-{n}") for n in range(2, 10)]
    assert {manager.result(c).outcome for c in several} == {"succeeded"}
    end = manager.send("terminate_instance", "i-1", 2)
    assert manager.result(end).outcome == "succeeded"
    assert _state(process, "i-1") == "absent"
    guest = process.store.read(process.store.uuids()[0])
    assert guest is not None
    guest.power_state = "CRASHED"
    process.store.write(guest)

    def crashed() -> bool:
        told = [h.inventory.guests for h in manager.heartbeats if h.inventory]
        return any(g.power_state.name == "CRASHED" for guests in told for g in guests)

    wait_until(crashed, 30, "the crash is told")
    assert process.end(signal.SIGTERM) == 0
    assert "Traceback" not in process.log.read_text()


@pytest.mark.real
@pytest.mark.parametrize("executor", ["threading", "eventlet"])
@pytest.mark.parametrize("mode", ["hang", "hang_after"])
def test_kill_9_in_the_middle_of_a_start_never_leaves_it_stuck(
    process: Process, manager: FakeManager, url: str, executor: str, mode: str
) -> None:
    process.configure(url, executor=executor)
    process.start()
    _ready(manager)
    process.store.set_faults(Faults(ops={"start": mode}))
    start = _create(manager, "i-1")
    reached = "SHUTOFF" if mode == "hang" else "RUNNING"
    wait_until(lambda: _state(process, "i-1") == reached, 30, f"{reached} before the kill")
    assert process.end(signal.SIGKILL) == -signal.SIGKILL
    process.store.set_faults(Faults())
    process.start()
    _ready(manager, 2)
    assert manager.hellos[-1].unfinished == (start,)
    assert manager.result(start).outcome == "succeeded"
    assert _state(process, "i-1") == "RUNNING"
    assert len(process.store.uuids()) == 1


@pytest.mark.real
def test_a_stop_in_the_middle_of_a_hung_call_ends_in_time(
    process: Process, manager: FakeManager, url: str
) -> None:
    process.configure(url)
    process.start()
    _ready(manager)
    process.store.set_faults(Faults(ops={"start": "hang", "list": "hang"}))
    start = _create(manager, "i-1")
    wait_until(lambda: "started" in manager.receipts(start), 30, "started")
    assert process.end(signal.SIGTERM) == 0
    assert manager.results(start) == []


@pytest.mark.real
@pytest.mark.parametrize("executor", ["threading", "eventlet"])
def test_an_agent_whose_queue_nothing_comes_to_any_more_hears_again(
    process: Process, manager: FakeManager, canaries: Runtime, url: str, executor: str
) -> None:
    manager.canary_interval_s = 0.5
    canaries.every("canaries", 0.2, lambda: manager.cast("confirm", ids=[]))
    process.configure(url, executor=executor)
    process.start(silence_s=2.0)
    _ready(manager)
    assert manager.result(_create(manager, "i-1")).outcome == "succeeded"
    queue = f"{m.AGENT_TOPIC}.{HOST}"
    with Connection(url.replace("rabbit://", "amqp://")) as connection:
        # Nobody is told of this. A queue that is deleted is declared again by oslo.messaging.
        connection.default_channel.queue_unbind(queue, m.CONTROL_EXCHANGE, queue)
    _ready(manager, 2)
    assert manager.result(_create(manager, "i-2")).outcome == "succeeded"
    assert process.end(signal.SIGTERM) == 0
    assert process.log.read_text().count("listening on a new connection") == 1


@pytest.mark.real
def test_an_agent_that_stays_deaf_ends_for_its_supervisor_to_start_it(
    process: Process, manager: FakeManager, url: str
) -> None:
    # This manager promises canaries and sends none: as good as a host that hears none.
    manager.canary_interval_s = 0.5
    process.configure(url)
    running = process.start(silence_s=2.0)
    _ready(manager)
    assert running.wait(60.0) == 1
    log = process.log.read_text()
    assert "muster-agent: DEAF: nothing has been heard" in log
    assert log.count("listening on a new connection") == 2
    assert "Traceback" not in log


@pytest.mark.parametrize("executor", ["threading", "eventlet"])
def test_a_broker_that_is_away_is_one_clear_line_and_no_end(
    process: Process, executor: str
) -> None:
    process.configure("rabbit://guest:guest@127.0.0.1:9/", executor=executor)
    running = process.start()
    wait_until(lambda: process.said("no session yet"), 30, "the line about the hello")
    wait_until(lambda: process.said("no heartbeat can be sent"), 30, "the line about heartbeats")
    assert running.poll() is None
    assert process.end(signal.SIGTERM) == 0
    log = process.log.read_text()
    assert "Traceback" not in log
    assert log.count("no session yet") == 1
    assert log.count("no heartbeat can be sent") == 1


@pytest.mark.parametrize(
    ("url", "changes", "says"),
    [
        ("memory://", {}, "transport_url"),
        ("rabbit://g:g@127.0.0.1:9/", {"driver": "vmware"}, "use one of libvirt, simulated"),
        ("rabbit://g:g@127.0.0.1:9/", {"executor": "fibres"}, "executor"),
    ],
)
def test_a_wrong_setting_is_one_line_with_what_would_do(
    process: Process, url: str, changes: dict[str, str], says: str
) -> None:
    process.configure(url, **changes)
    assert process.start().wait(30.0) == 2
    log = process.log.read_text()
    assert log.startswith("muster-agent: BAD_CONFIG: ")
    assert says in log
    assert len(log.splitlines()) == 1


def test_a_second_agent_on_the_same_journal_is_refused(process: Process) -> None:
    process.configure("rabbit://guest:guest@127.0.0.1:9/")
    first = process.start()
    wait_until(lambda: process.said("no session yet"), 30)
    second = process.start()
    assert second.wait(30.0) == 2
    assert process.said("in use by another agent")
    first.send_signal(signal.SIGTERM)
    assert first.wait(10.0) == 0


def test_sighup_changes_how_much_is_logged(process: Process) -> None:
    process.configure("rabbit://guest:guest@127.0.0.1:9/")
    running = process.start()
    wait_until(lambda: process.said("no session yet"), 30)
    assert not process.said(" DEBUG ")
    process.configure("rabbit://guest:guest@127.0.0.1:9/", level="DEBUG")

    def louder() -> bool:
        with contextlib.suppress(MusterError):
            (process.store.guests / "11111111-1111-4111-8111-111111111111.json").touch()
            os.utime(process.store.guests / "11111111-1111-4111-8111-111111111111.json")
        return process.said(" DEBUG agent.inventory")

    running.send_signal(signal.SIGHUP)
    wait_until(louder, 30, "a line of level DEBUG")
    assert running.poll() is None

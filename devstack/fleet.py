"""A fleet: managers, agents and hypervisors on one machine, behind one small interface.

`Embedded` runs everything in this process on the memory bus and SQLite; `Real` starts RabbitMQ,
PostgreSQL, managers and agents as processes of their own, on loopback, below one folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import msgspec

from agent.service import Agent
from client import main as client_main
from common import conf
from common.bus.memory import Broker
from common.conf import Settings
from common.runtime import Runtime
from devstack.consoles import FLEET, Console, LibvirtConsole, SimulatedConsole
from devstack.parts.base import Part, PartError, Process, wait_for
from devstack.parts.libvirtd import Libvirtd
from devstack.parts.openvswitch import OpenVSwitch
from devstack.parts.postgres import Postgres
from devstack.parts.rabbitmq import RabbitMQ
from manager.service import Manager

BIN = Path(sys.executable).parent
# Where guests of the last host meet on VLANs.
BRIDGE = "ovs0"


class Answer(msgspec.Struct, frozen=True):
    """What one `muster` command said."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """The pace of a fleet, in seconds; short, so that its stories can be told in a minute."""

    report_interval: float = 0.5
    service_down_time: float = 4.0
    resend_after: float = 1.0
    command_timeout: float = 60.0
    missing_grace: float = 5.0
    tick_interval: float = 0.2
    stop_timeout: float = 10.0


class Fleet(Protocol):
    """What a story needs of a fleet."""

    hosts: tuple[str, ...]
    boots: bool
    """Guests are real machines, which take a kernel and say on their console that they are up."""

    def muster(self, *args: str) -> Answer: ...

    def console(self, host: str) -> Console: ...

    def kill_agent(self, host: str) -> None: ...

    def start_agent(self, host: str) -> None: ...

    def boot_options(self) -> list[str]: ...

    def serial_log(self, host: str, instance: str) -> str: ...

    def zone_file(self) -> Path | None:
        """What `muster apply` makes a zone of; None for a fleet whose guests do not boot."""

    def pool_files(self) -> list[str]:
        """The disks that guests have in the pool of that zone."""

    def close(self) -> None: ...


class Embedded:
    """Manager, agents and operators in one process; hypervisors on disk, so they outlive agents."""

    boots = False

    def __init__(self, folder: Path, hosts: Sequence[str], times: Times | None = None) -> None:
        self.hosts = tuple(hosts)
        self._folder, self._times = folder, times or Times()
        self._main = Runtime("fleet")
        self._broker = Broker(self._main)
        self._manager_runtime = Runtime("manager")
        self.manager = Manager(
            self._settings("manager"),
            self._broker.bus(self._manager_runtime),
            self._manager_runtime,
        )
        self._agents: dict[str, Agent] = {}
        self.manager.start()
        for host in hosts:
            self.start_agent(host)

    def _settings(self, host: str) -> Settings:
        t = self._times
        return conf.check(
            Settings(
                default=conf.default.Default(
                    fleet_id=FLEET, host=host, report_interval=t.report_interval
                ),
                database=conf.database.Database(
                    connection=f"sqlite:///{self._folder / 'muster.db'}"
                ),
                manager=conf.manager.Manager(
                    service_down_time=t.service_down_time,
                    resend_after=t.resend_after,
                    command_timeout=t.command_timeout,
                    missing_grace=t.missing_grace,
                    tick_interval=t.tick_interval,
                    auto_enable_hosts=True,
                ),
                agent=conf.agent.Agent(
                    driver="simulated", state_dir=str(self._folder / "agents" / host)
                ),
                simulated=conf.simulated.Simulated(
                    state_dir=str(self._folder / "hypervisors"), memory_mib=4096
                ),
            )
        )

    def muster(self, *args: str) -> Answer:
        out, err = io.StringIO(), io.StringIO()
        code = client_main.run(
            list(args),
            bus=self._broker.bus(self._main),
            settings=self._settings("operator"),
            stdout=out,
            stderr=err,
        )
        return Answer(code, out.getvalue(), err.getvalue())

    def console(self, host: str) -> Console:
        return SimulatedConsole(self._folder / "hypervisors", host)

    def kill_agent(self, host: str) -> None:
        self._agents.pop(host).kill()

    def start_agent(self, host: str) -> None:
        runtime = Runtime(host)
        agent = Agent(self._settings(host), self._broker.bus(runtime), runtime)
        agent.start()
        self._agents[host] = agent

    def boot_options(self) -> list[str]:
        return []

    def serial_log(self, host: str, instance: str) -> str:
        raise NotImplementedError(f"simulated guests have no console ({host}, {instance})")

    def zone_file(self) -> Path | None:
        return None

    def pool_files(self) -> list[str]:
        return []

    def close(self) -> None:
        for agent in self._agents.values():
            agent.stop(2.0)
        self.manager.stop(2.0)


class Service(Process):
    """A manager or agent as a process of its own, with its configuration and log."""

    def __init__(self, command: str, config: Path, log: Path, prefix: Sequence[str] = ()) -> None:
        """`prefix` is a program that becomes the service, in another namespace for instance."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("OS_")}
        super().__init__([*prefix, str(BIN / command), "--config-file", str(config)], env, log)

    def kill(self) -> None:
        """kill -9."""
        self.end(signal.SIGKILL, 10.0)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that takes too long."""
        self.end(signal.SIGTERM, 12.0)


class Real:
    """RabbitMQ, PostgreSQL, managers, agents and hypervisors as processes on this machine.

    `driver` simulated or libvirt (a private daemon a host, QEMU guests); the hosts that
    `connection_uris` names have libvirt all the same. Parts that are given are used and left
    running; the others are started here and end with the fleet. `options` are more configuration
    for every process, by group; `agents_rabbit_url` is another login for the agents, `prefixes`
    what starts agents, by host, and managers, by name.
    """

    def __init__(
        self,
        folder: Path,
        hosts: Sequence[str],
        *,
        managers: int = 1,
        driver: str = "simulated",
        times: Times | None = None,
        rabbit_url: str | None = None,
        database_url: str | None = None,
        executor: str = "threading",
        connection_uris: dict[str, str] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        agents_rabbit_url: str | None = None,
        prefixes: Mapping[str, Sequence[str]] | None = None,
        tell: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self.hosts = tuple(hosts)
        self._options, self._prefixes = options or {}, prefixes or {}
        self.folder, self._times, self._driver = folder, times or Times(), driver
        self._executor, self._tell = executor, tell
        self._uris = dict(connection_uris or {})
        self.boots = driver == "libvirt"
        self._parts: list[Part] = []
        self.daemons: dict[str, Libvirtd] = {}
        self.managers: dict[str, Service] = {}
        self.agents: dict[str, Service] = {}
        self._image: tuple[Path, Path] | None = None
        self._template: Path | None = None
        self._pool = folder / "pool"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._rabbit_url = rabbit_url or self._part("RabbitMQ", RabbitMQ).url
            self._agents_rabbit_url = agents_rabbit_url or self._rabbit_url
            self._database_url = database_url or self._part("PostgreSQL", Postgres).url
            if self.boots:
                self._start_hypervisors()
            self.muster_config = self._write_config("muster", "operator")
            self.upgrade()
            for n in range(1, managers + 1):
                self.start_manager(f"manager-{n}")
            for host in hosts:
                self.start_agent(host)
        except BaseException:
            self.close()
            raise

    def _part(self, name: str, kind: Callable[[], Any]) -> Any:
        self._tell(f"starting a private {name}")
        part = kind().__enter__()
        self._parts.append(part)
        return part

    def _start_hypervisors(self) -> None:
        # Downloads packages: only when guests boot.
        from devstack.image import bootable, build

        image = build(image_folder(), tell=self._tell)
        self._image, self._template = (image.kernel, image.initrd), bootable(image)
        self._tell(f"starting a private libvirtd each for {', '.join(self.hosts)}")
        self.daemons = {host: Libvirtd() for host in self.hosts}
        self._parts += self.daemons.values()
        # Side by side: each takes eight seconds, mostly of waiting.
        with ThreadPoolExecutor(len(self.hosts)) as starting:
            list(starting.map(Libvirtd.start, self.daemons.values()))
        self._uris |= {host: daemon.qemu_uri for host, daemon in self.daemons.items()}
        switch = OpenVSwitch(self.daemons[self.hosts[-1]]).start()
        self._parts.append(switch)
        switch.add_bridge(BRIDGE)

    def _write_config(self, name: str, host: str) -> Path:
        t = self._times
        agent = host in self.hosts
        groups: dict[str, dict[str, Any]] = {
            "DEFAULT": {
                "transport_url": self._agents_rabbit_url if agent else self._rabbit_url,
                "fleet_id": FLEET,
                "host": host,
                "executor": self._executor,
                "report_interval": t.report_interval,
            },
            "database": {"connection": self._database_url},
            "manager": {
                "service_down_time": t.service_down_time,
                "resend_after": t.resend_after,
                "command_timeout": t.command_timeout,
                "missing_grace": t.missing_grace,
                "tick_interval": t.tick_interval,
                "auto_enable_hosts": True,
            },
            "agent": {"driver": self._driver_of(host), "state_dir": self.folder / "agents" / host},
            "simulated": {"state_dir": self.folder / "hypervisors", "memory_mib": 4096},
            "libvirt": {
                "connection_uri": self._uris.get(host, "qemu:///system"),
                "virt_type": "qemu",
                "instances_path": self.folder / "instances" / host,
                "stop_timeout": t.stop_timeout,
            },
        }
        for group, more in self._options.items():
            groups.setdefault(group, {}).update(more)
        lines = []
        for group, options in groups.items():
            lines += [f"[{group}]", *(f"{key} = {value}" for key, value in options.items()), ""]
        path = self.folder / f"{name}.conf"
        path.write_text("\n".join(lines))
        return path

    def _driver_of(self, host: str) -> str:
        return "libvirt" if host in self._uris else self._driver

    def upgrade(self) -> None:
        done = self.muster("db", "upgrade")
        if done.code != 0:
            raise PartError(f"muster db upgrade: {done.err}")

    def start_manager(self, name: str) -> Service:
        """Start a manager under a name of its own."""
        config = self._write_config(name, name)
        log, prefix = self.folder / f"{name}.log", self._prefixes.get(name, ())
        service = Service("muster-manager", config, log, prefix)
        self.managers[name] = service
        return service

    def start_agent(self, host: str) -> None:
        config = self._write_config(host, host)
        log, prefix = self.folder / f"{host}.log", self._prefixes.get(host, ())
        self.agents[host] = Service("muster-agent", config, log, prefix)

    def kill_agent(self, host: str) -> None:
        self.agents.pop(host).kill()

    def muster(self, *args: str) -> Answer:
        argv = [str(BIN / "muster"), "--config-file", str(self.muster_config), *args]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)
        return Answer(done.returncode, done.stdout, done.stderr)

    def console(self, host: str) -> Console:
        if self._image is not None:
            return LibvirtConsole.of_qemu(self.daemons[host], *self._image)
        return SimulatedConsole(self.folder / "hypervisors", host)

    def boot_options(self) -> list[str]:
        if self._image is None:
            return []
        kernel, initrd = self._image
        return ["--kernel", str(kernel), "--initrd", str(initrd)]

    def serial_log(self, host: str, instance: str) -> str:
        path = self.folder / "instances" / host / instance / "serial.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def zone_file(self) -> Path | None:
        if self._template is None:
            return None
        self._pool.mkdir(exist_ok=True)
        path = self.folder / "zone.yaml"
        zone = zone_of(self.hosts[-1], self._pool, self._template)
        path.write_text(json.dumps(zone, indent=2))
        return path

    def pool_files(self) -> list[str]:
        return sorted(path.name for path in self._pool.glob("*/*.disk*"))

    def close(self) -> None:
        for service in (*self.agents.values(), *self.managers.values()):
            service.signal(signal.SIGTERM)
        for service in (*self.agents.values(), *self.managers.values()):
            service.stop()
        for part in reversed(self._parts):
            part.close()

    def log_tails(self) -> str:
        """The end of every process's log, for a report of what went wrong."""
        parts = []
        for log in sorted(self.folder.glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()[-15:]
            parts.append(f"--- {log.name}\n" + "\n".join(lines))
        return "\n".join(parts)


def zone_of(host: str, pool: Path, template: Path) -> dict[str, Any]:
    """A zone of one host, with a template to boot and a VLAN: what a file for `apply` holds."""
    checksum = hashlib.sha256(template.read_bytes()).hexdigest()
    network = {
        "name": "backend",
        "zone": "north",
        "kind": "vlan",
        "backend": "ovs",
        "source": BRIDGE,
        "vlan": 100,
        "cidr": "10.60.0.0/24",
        "gateway": "10.60.0.1",
    }
    return {
        "zones": [{"name": "north", "domain": "north.example.org"}],
        "pods": [{"name": "rack-1", "zone": "north"}],
        "clusters": [{"name": "amd", "pod": "rack-1"}],
        "hosts": [{"name": host, "cluster": "amd"}],
        "pools": [
            {"name": "ssd", "scope": "host", "host": host, "path": str(pool), "capacity_gib": 10}
        ],
        "offerings": [{"name": "small", "vcpus": 1, "memory_mib": 96, "root_gib": 1}],
        "templates": [
            {"name": "tiny", "format": "qcow2", "url": template.as_uri(), "sha256": checksum}
        ],
        "networks": [network],
    }


def image_folder() -> Path:
    """Where the guest image is kept between runs: beside the checkout's virtual environment."""
    return Path(sys.prefix) / "guest-image"


class Scratch:
    """A temporary folder that is removed at the end, reachable for parts that drop root."""

    def __init__(self) -> None:
        # In /tmp, whatever TMPDIR says: the path of a socket may not be long.
        self.path = Path(tempfile.mkdtemp(prefix="muster-fleet-", dir="/tmp"))
        self.path.chmod(0o755)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def all_up(fleet: Fleet, timeout_s: float = 60.0) -> None:
    """Return once every host of the fleet is UP."""

    def ready() -> bool:
        answer = fleet.muster("host", "list", "-f", "json")
        states = {h["name"]: h["state"] for h in answer.json()} if answer.code == 0 else {}
        return all(states.get(host) == "UP" for host in fleet.hosts)

    wait_for(
        ready,
        timeout_s,
        lambda: PartError(f"not every host came up: {fleet.muster('host', 'list').out}"),
    )

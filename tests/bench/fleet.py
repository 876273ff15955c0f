"""The fleet that is measured: managers, agents and operators, each a process of its own.

The times are the product's defaults. The hypervisors are simulated and take no time; each agent is
`muster-agent` itself, started by `stamped`, which writes down when it begins to change a guest.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from common.conf.default import Default
from common.conf.manager import Manager
from devstack.fleet import Real, Times
from devstack.parts.postgres import Postgres
from devstack.parts.rabbitmq import RabbitMQ
from tests.bench import counters, profiled, stamped
from tests.bench.operators import Load
from tests.wait import wait_until

TIMES = Times(
    report_interval=Default().report_interval,
    service_down_time=Manager().service_down_time,
    resend_after=Manager().resend_after,
    command_timeout=Manager().command_timeout,
    missing_grace=Manager().missing_grace,
    tick_interval=Manager().tick_interval,
)
ROOM = {"simulated": {"vcpus": 4096, "memory_mib": 1 << 20}}
DEPLOYERS = 16
UP_S = 60.0


class Fleet:
    """One fleet on parts that are there already; `close` ends its processes."""

    def __init__(
        self,
        broker: RabbitMQ,
        postgres: Postgres,
        folder: pathlib.Path,
        *,
        hosts: int,
        profile: pathlib.Path | None = None,
    ) -> None:
        """`profile`: where a second manager and the first agent (`.agent`) leave their profiles."""
        self.hosts = [f"bench-{n}" for n in range(1, hosts + 1)]
        counters.allow_observers(postgres)
        url = postgres.new_database()
        self._stamps = {host: folder / f"{host}.stamps" for host in self.hosts}
        prefixes = {
            host: _by(stamped.__file__, self._stamps[host], profile if n == 0 else None)
            for n, host in enumerate(self.hosts)
        }
        if profile is not None:
            prefixes["manager-2"] = [*_script(profiled.__file__), str(profile)]
        self._real = Real(
            folder,
            self.hosts,
            times=TIMES,
            rabbit_url=broker.new_vhost(),
            database_url=url,
            options=ROOM,
            prefixes=prefixes,
        )
        try:
            self._operators = subprocess.Popen(
                [*_module("operators"), str(self._real.muster_config), url],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self._read()
            self.counters = counters.Counters(broker, postgres, url, self._processes)
            wait_until(lambda: self.ask("hosts_up") == hosts, UP_S, "every host UP")
        except BaseException:
            self.close()
            raise

    def ask(self, do: str, **task: Any) -> Any:
        """Have the operators do something; what they answer."""
        assert self._operators.stdin is not None
        self._operators.stdin.write(msgspec.json.encode({"do": do, **task}).decode() + "\n")
        self._operators.stdin.flush()
        return msgspec.json.decode(self._read())

    def deploy(self, count: int) -> None:
        """So many VMs, all running; SystemExit when one is not."""
        made = msgspec.convert(
            self.ask("create", hosts=self.hosts, count=count, threads=DEPLOYERS), Load
        )
        if made.succeeded != count:
            raise SystemExit(f"bench: of {count} creates {made.states}, errors {made.errors}")

    def add_manager(self) -> None:
        """One more; returns when it hears, which is when it takes its part."""
        self._real.start_manager(f"manager-{len(self._real.managers) + 1}")
        log = self._real.folder / f"manager-{len(self._real.managers)}.log"
        wait_until(lambda: " is up" in log.read_text(), UP_S, "another manager")

    def profile_manager(self) -> None:
        """Let the profiled one take over, so that its profile has nothing of the deployment."""
        self.add_manager()
        self._real.managers["manager-1"].stop()

    def begun_ns(self, instance: str, after_ns: int) -> int | None:
        """When an agent first changed an instance's guest after a time, CLOCK_MONOTONIC."""
        for at, _, changed in self._lines():
            if changed == instance and at >= after_ns:
                return at
        return None

    def changes(self, verbs: Sequence[str]) -> int:
        """How often the agents have had guests changed by one of these verbs of the driver."""
        return sum(verb in verbs for _, verb, _ in self._lines())

    def close(self) -> None:
        if hasattr(self, "counters"):
            self.counters.close()
        if hasattr(self, "_operators"):
            self._operators.kill()
            self._operators.wait()
        self._real.close()

    def log_tails(self) -> str:
        """The end of every process's log."""
        return self._real.log_tails()

    def _lines(self) -> list[tuple[int, str, str]]:
        lines = []
        for path in self._stamps.values():
            for line in path.read_text().splitlines() if path.exists() else ():
                at, verb, instance = line.split()
                lines.append((int(at), verb, instance))
        return sorted(lines)

    def _processes(self) -> dict[str, list[int]]:
        return {
            "managers": [service.pid for service in self._real.managers.values()],
            "agents": [service.pid for service in self._real.agents.values()],
            counters.CLIENT: [self._operators.pid],
        }

    def _read(self) -> str:
        assert self._operators.stdout is not None
        line = self._operators.stdout.readline()
        if not line:
            raise SystemExit("bench: the operators have ended")
        return line


def _module(name: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", f"tests.bench.{name}"]


def _script(file: str) -> list[str]:
    # -P: the folder of the script holds modules of its own.
    return [sys.executable, "-P", str(pathlib.Path(file).resolve())]


def _by(file: str, stamps: pathlib.Path, profile: pathlib.Path | None) -> list[str]:
    prefix = [*_script(file), str(stamps)]
    if profile is None:
        return prefix
    # The profiler runs the stamping script, which runs the agent.
    return [*_script(profiled.__file__), f"{profile}.agent", *prefix[2:]]

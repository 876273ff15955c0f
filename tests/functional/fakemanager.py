"""A manager without a fleet, and the operator's command run against it over the memory bus."""

from __future__ import annotations

import io
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from client import main
from common.bus.base import Address, Handle
from common.bus.memory import Broker
from common.conf import Settings
from common.conf.client import Client
from common.messages import MANAGER_TOPIC
from common.runtime import Runtime

JOB = {
    "uuid": "5f0c1b0e-0000-4000-8000-000000000001",
    "kind": "vm_delete",
    "instance": "web-1",
    "host": "h1",
    "state": "PENDING",
    "waiting_for": "a manager to publish it",
}
DONE = {**JOB, "state": "SUCCEEDED", "waiting_for": None}


class Clock(Runtime):
    """Time that passes only while the client sleeps; `at` makes things happen meanwhile."""

    def __init__(self) -> None:
        super().__init__("operator")
        self.slept = 0.0
        self._due: list[tuple[float, Callable[[], Any]]] = []

    def at(self, seconds: float, fn: Callable[[], Any]) -> None:
        self._due.append((seconds, fn))

    def monotonic(self) -> float:
        return self.slept

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        for due in [d for d in self._due if d[0] <= self.slept]:
            self._due.remove(due)
            due[1]()


class Terminal(io.StringIO):
    """Standard error of an operator who sits there."""

    def isatty(self) -> bool:
        return True


@dataclass
class Ran:
    """What one command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.out)


@dataclass
class Fleet:
    """Managers that say what `answers` holds: a value, an error, or a list of them in turn."""

    answers: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    settings: Settings = field(
        default_factory=lambda: Settings(client=Client(rpc_timeout=8.0, wait_timeout=60.0))
    )

    def __post_init__(self) -> None:
        self.runtime = Runtime("fleet")
        self.broker = Broker(self.runtime)
        self.clock = Clock()
        self._server: Handle | None = None
        self.start()

    def start(self) -> None:
        at = Address(MANAGER_TOPIC, "m1")
        self._server = self.broker.bus(self.runtime).serve(at, self._answer)

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()

    def close(self) -> None:
        self.runtime.kill()  # a fake has nothing to finish that would be worth the wait

    def _answer(self, method: str, kwargs: dict[str, Any]) -> Any:
        self.asked.append((method, kwargs))
        answer = self.answers[method]
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if callable(answer):
            answer = answer(**kwargs)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def typed(self, line: str) -> Ran:
        """`muster LINE`, as a shell takes it."""
        return self.muster(*shlex.split(line))

    def muster(self, *argv: str, stderr: io.StringIO | None = None) -> Ran:
        """`muster ARGV`, as an operator runs it."""
        out, err = io.StringIO(), stderr or io.StringIO()
        code = main.run(
            argv,
            bus=self.broker.bus(self.runtime),
            settings=self.settings,
            stdout=out,
            stderr=err,
            runtime=self.clock,
        )
        return Ran(code, out.getvalue(), err.getvalue())

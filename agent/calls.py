"""Calls to the hypervisor, each within its time, and never more hung ones than a bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from common.errors import HypervisorUnavailable
from common.runtime import Call, Runtime, Steps, Stopped

T = TypeVar("T")


class Calls:
    """Makes driver calls; a hung one can not be ended and costs a thread until it returns."""

    def __init__(self, runtime: Runtime, look_s: float, most: int) -> None:
        self.look_s = look_s
        self._runtime = runtime
        self._most = most
        self._out: set[object] = set()

    def within(self, seconds: float, name: str, fn: Callable[..., T], *args: object) -> Steps[T]:
        """`fn(*args)`, or CallTimeout after `seconds`; HypervisorUnavailable when too many hang.

        Raises Stopped when the agent is stopped meanwhile: what the call did is for the next
        agent to find out.
        """
        if len(self._out) >= self._most:
            raise HypervisorUnavailable(
                f"{len(self._out)} calls to the hypervisor have not come back", "look at the host"
            )
        token = object()
        self._out.add(token)

        def run() -> T:
            try:
                return fn(*args)
            finally:
                self._out.discard(token)

        try:
            value: T = yield Call(seconds, name, run)
            return value
        except Exception:
            # Whether it failed by itself or by our stop, nobody knows.
            if self._runtime.stopping.is_set():
                raise Stopped from None
            raise

    def look(self, name: str, fn: Callable[..., T], *args: object) -> Steps[T]:
        """A call that changes nothing, within [agent] call_timeout."""
        return self.within(self.look_s, name, fn, *args)

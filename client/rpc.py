"""The RPC client: asks any manager, and asks again when an answer was lost."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from common.bus.base import ANY_MANAGER, Bus
from common.conf import Settings
from common.errors import BrokerUnavailable, MusterError, NoManager
from common.runtime import Runtime

# How the time limit is divided between the tries: the first leaves room for a slow answer, the
# others find the manager that has taken a dead one's place.
SHARES = (0.5, 0.25, 0.25)
PAUSE_S = 1.0
MANY = 50  # wishes a request
# It is unknown whether a wish was accepted.
UNANSWERED = frozenset({"NO_MANAGER", "BROKER_UNAVAILABLE", "DATABASE_UNAVAILABLE"})


class Client:
    """One operator's door to the managers; `connect` is called when the first question is asked."""

    def __init__(self, connect: Callable[[], Bus], settings: Settings, runtime: Runtime) -> None:
        self._connect = connect
        self._runtime = runtime
        self._limit_s = settings.client.rpc_timeout

    def ask(self, method: str, /, **kwargs: Any) -> dict[str, Any]:
        """A manager's answer within [client] rpc_timeout; what got none is asked again as it was.

        Only for what may be done twice: reads, and verbs that set a thing to a value. Raises
        NoManager or BrokerUnavailable, and whatever error a manager answered.
        """
        for share in SHARES[:-1]:
            allowance = share * self._limit_s
            started = self._runtime.monotonic()
            try:
                return self.ask_once(method, allowance, **kwargs)
            except (NoManager, BrokerUnavailable):
                left = allowance - (self._runtime.monotonic() - started)
                self._runtime.sleep(max(0.0, min(PAUSE_S, left)))
        try:
            return self.ask_once(method, SHARES[-1] * self._limit_s, **kwargs)
        except (NoManager, BrokerUnavailable) as exc:
            tries = f"{len(SHARES)} tries within {self._limit_s:g} s"
            raise type(exc)(f"{exc.message}; {tries}", exc.remedy) from exc

    def ask_once(self, method: str, timeout_s: float, /, **kwargs: Any) -> dict[str, Any]:
        """As `ask`, with one try of at most `timeout_s`."""
        answer = self._connect().call(ANY_MANAGER, method, kwargs, timeout_s)
        return answer if isinstance(answer, dict) else {}

    def change(self, method: str, job: str, /, **kwargs: Any) -> dict[str, Any]:
        """The answer to a wish named `job`; a manager that has accepted it before says so again.

        Without an answer it is unknown whether the wish was accepted: the error's remedy is to
        repeat it under the same uuid.
        """
        try:
            return self.ask(method, job=job, operator=operator(), **kwargs)
        except (NoManager, BrokerUnavailable) as exc:
            raise type(exc)(exc.message, f"repeat with --job {job}", job=job) from exc

    def change_all(self, wishes: Sequence[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
        """{"answer": ...} or {"error": ...} for each [method, arguments], in their order.

        One that nobody has answered may have been accepted: its error names the job under which it
        is to be repeated, as `change` does.
        """
        answers: list[dict[str, Any]] = []
        for start in range(0, len(wishes), MANY):
            asked: list[tuple[str, dict[str, Any]]] = [
                (method, {**kwargs, "operator": operator()})
                for method, kwargs in wishes[start : start + MANY]
            ]
            try:
                answers += self.ask("wishes", wishes=asked)["answers"]
            except MusterError as exc:
                if exc.code not in UNANSWERED:
                    raise
                answers += [{"error": _unanswered(exc, each)} for _method, each in asked]
        return answers


def _unanswered(error: MusterError, wish: dict[str, Any]) -> dict[str, Any]:
    remedy = f"repeat for this VM with --job {wish['job']}"
    return {**error.to_wire(), "message": f"{wish['vm']}: {error.message}", "remedy": remedy}


def operator() -> str:
    """Who is asking, for the reason trail: the unix user at this machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())  # a container's user may have no name
    return f"{user}@{socket.gethostname()}"

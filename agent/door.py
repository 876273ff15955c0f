"""The agent's RPC endpoint: every cast is judged here before anything is done for it."""

from __future__ import annotations

import functools
import json
import logging
import uuid
from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from agent.answers import Answers, Identity
from agent.commands import Commands
from agent.journal import Journal, not_run
from agent.session import Session
from common import messages as m
from common.errors import BadMessage, IdReused, MusterError, UnknownKind, WrongFleet, WrongHost
from common.runtime import Runtime

LOG = logging.getLogger(__name__)

BODY_SHOWN = 500
HELD = 200
KINDS = frozenset(kind.value for kind in m.CommandKind)
REFUSED = (BadMessage, UnknownKind, WrongFleet, WrongHost)


class _Void(msgspec.Struct, frozen=True, kw_only=True):
    session: m.Count
    instance: m.Id
    generation: m.Count


class _HelloWanted(msgspec.Struct, frozen=True, kw_only=True):
    """`session` is that of the report which the manager did not know, if it says so."""

    session: m.Count | msgspec.UnsetType | None = msgspec.UNSET


class _Confirm(msgspec.Struct, frozen=True, kw_only=True):
    ids: Annotated[tuple[m.Id, ...], msgspec.Meta(max_length=10_000)]


class _Commands(msgspec.Struct, frozen=True, kw_only=True):
    commands: Annotated[tuple[Any, ...], msgspec.Meta(max_length=10_000)]


class Door:
    """Decodes, checks fleet, host and session, and hands on.

    A cast of another session is dropped, counted and never answered: its manager does not know
    our session yet, or we do not know its. One that arrives while a hello is out is held until
    the welcome, which it may have overtaken.
    """

    def __init__(
        self,
        runtime: Runtime,
        identity: Identity,
        journal: Journal,
        session: Session,
        commands: Commands,
        answers: Answers,
        report: Callable[[], None],
        hello: Callable[..., None],
        heard: Callable[[], None],
    ) -> None:
        self._identity = identity
        self._journal = journal
        self._session = session
        self._commands = commands
        self._answers = answers
        self._report = report
        self._hello = hello
        self._heard = heard
        self._lock = runtime.lock()
        self._held: list[tuple[int, Callable[[], None]]] | None = None
        self.dropped = 0

    def __call__(self, method: str, kwargs: dict[str, Any]) -> Any:
        """What the bus calls. A call gets its answer, a cast None; refusals are reported."""
        self._heard()
        if method == "ping":
            return {
                "host": self._identity.host,
                "agent_run": self._identity.agent_run,
                "session": self._session.current,
            }
        try:
            m.within_limit(method, kwargs)
            self._cast(method, kwargs)
        except REFUSED as exc:
            self._refuse(exc, method, kwargs)
        except MusterError as exc:
            LOG.error("%s is lost, to be cast again: %s", method, exc)
        return None

    def hold(self) -> None:
        """A hello goes out: keep casts of sessions that we do not know."""
        with self._lock:
            if self._held is None:
                self._held = []

    def release(self) -> None:
        """The hello has its answer: judge what was kept once more."""
        with self._lock:
            held, self._held = self._held or [], None
        for session, act in held:
            self._in_session(session, act)

    def _cast(self, method: str, kwargs: dict[str, Any]) -> None:
        if method == "hello_wanted":
            session = m.convert(kwargs, _HelloWanted).session
            if session is msgspec.UNSET or session == self._session.current:
                self._hello()
        elif method == "report_inventory":
            self._report()
        elif method == "confirm":
            self._journal.confirm(m.convert(kwargs, _Confirm).ids)
        elif method == "void":
            void = m.convert(kwargs, _Void)
            self._in_session(
                void.session, lambda: self._commands.void(void.instance, void.generation)
            )
        elif "command" in kwargs:
            self._command(method, kwargs["command"])
        elif method == "commands":
            self._several(m.convert(kwargs, _Commands).commands)
        else:
            raise UnknownKind(f"no cast is called {method!r}", "upgrade the older side")

    def _command(self, method: str, raw: Any) -> None:
        command, known = self._checked(method, raw)

        def unknown() -> None:
            text = f"this agent does not know {method}"
            result = not_run(command, UnknownKind.code, text)
            self._journal.answer(msgspec.structs.replace(result, kind=method))
            self._answers.wake()

        def take() -> None:
            try:
                if self._following([command]):
                    self._commands.take(command)
            except IdReused as exc:
                # Here, and not where casts are judged: it may have been held for a welcome.
                self._refuse(exc, method, {"command": raw})

        self._in_session(command.session, take if known else unknown)

    def _several(self, raws: tuple[Any, ...]) -> None:
        """Commands that came in one cast; one that is refused leaves the others as they are."""
        good: dict[int, list[m.Command]] = {}
        for raw in raws:
            kind = str(raw.get("kind")) if isinstance(raw, dict) else ""
            try:
                command, known = self._checked(kind, raw)
                if known and command.kind is not m.CommandKind.NOOP:
                    good.setdefault(command.session, []).append(command)
                else:
                    self._command(kind, raw)
            except REFUSED as exc:
                self._refuse(exc, kind, {"command": raw})
        for session, commands in good.items():
            self._in_session(session, functools.partial(self._take_all, commands))

    def _take_all(self, commands: list[m.Command]) -> None:
        commands = self._following(commands)
        for command, error in zip(commands, self._commands.take_all(commands), strict=True):
            if isinstance(error, IdReused):
                self._refuse(error, command.kind.value, {"command": m.builtins(command)})
            elif error is not None:
                raise error

    def _checked(self, method: str, raw: Any) -> tuple[m.Command, bool]:
        """The command, of our fleet and host; False for one of a kind that we do not know."""
        kind = raw.get("kind") if isinstance(raw, dict) else None
        known = not isinstance(kind, str) or kind in KINDS
        # A kind of tomorrow is read as one of today, to learn whom to tell that we can't.
        command = m.convert(raw if known else {**raw, "kind": m.CommandKind.START_VM}, m.Command)
        if kind != method:
            raise BadMessage(f"a {kind} came as {method}", "")
        if (command.instance == "") != (command.kind is m.CommandKind.NOOP):
            raise BadMessage(f"a {kind} of instance {command.instance!r}", "")
        if command.fleet != self._identity.fleet:
            raise WrongFleet(f"fleet {command.fleet}, this is {self._identity.fleet}", "")
        if command.host != self._identity.host:
            raise WrongHost(f"host {command.host}, this is {self._identity.host}", "")
        return command, known

    def _following(self, commands: list[m.Command]) -> list[m.Command]:
        """Those that carry a mark of the managers' store which did not go back.

        The others are dropped. A canary asks for a hello as well: what else is late may be the
        word of a manager that was stopped meanwhile.
        """
        good = []
        for command in commands:
            timeline, mark = command.store_timeline, command.store_mark
            if timeline is None or self._journal.follow(timeline, mark):
                good.append(command)
                continue
            self.dropped += 1
            if command.kind is m.CommandKind.NOOP:
                self._hello("the managers' database is older than we know it")
        return good

    def _in_session(self, session: int, act: Callable[[], None]) -> None:
        with self._lock:
            if session != self._session.current:
                if self._held is not None and len(self._held) < HELD:
                    self._held.append((session, act))
                else:
                    self.dropped += 1
                return
        act()

    def _refuse(self, error: MusterError, method: str, kwargs: dict[str, Any]) -> None:
        body = json.dumps({method: kwargs}, default=str)
        LOG.warning("a cast is refused: %s", error)
        self._journal.refuse(
            m.Refusal(
                # The same cast again is the same refusal.
                id=str(uuid.uuid5(uuid.NAMESPACE_OID, f"{error.code}/{body}")),
                code=error.code,
                message=error.message,
                body=body[:BODY_SHOWN],
            )
        )
        self._answers.wake()

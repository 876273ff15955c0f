"""Hello: asks the managers for a session, and brings the journal into line with their answer."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from agent.answers import Answers, Identity
from agent.commands import Commands
from agent.door import Door
from agent.inventory import Inventory
from agent.journal import Journal
from agent.session import Session
from common import __version__
from common import messages as m
from common.bus.base import ANY_MANAGER, Bus
from common.errors import BrokerUnavailable, DbRolledBack, MusterError, NoManager
from common.runtime import Runtime

LOG = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
FIRST_PAUSE_S = 0.5
LAST_PAUSE_S = 10.0
# A `hello_wanted` so soon after a welcome answers a heartbeat from before it.
SETTLING_S = 1.0
FLOORS_AT_ONCE = 1000


class Greeter:
    """Gets a session, and another when the managers say that they do not know it any more."""

    def __init__(
        self,
        runtime: Runtime,
        bus: Bus,
        journal: Journal,
        session: Session,
        identity: Identity,
        *,
        driver: str,
        interval_s: float,
        commands: Commands,
        answers: Answers,
        inventory: Inventory,
        welcomed: Callable[[float], None],
    ) -> None:
        self._runtime = runtime
        self._bus = bus
        self._journal = journal
        self._session = session
        self._identity = identity
        self._driver = driver
        self._interval_s = interval_s
        self._commands = commands
        self._answers = answers
        self._inventory = inventory
        self._on_welcome = welcomed
        self._wanted = runtime.event()
        self._welcomed_at = runtime.monotonic()

    def wanted(self, why: str = "") -> None:
        """The managers ask for a hello: from now on nothing is changed until it is answered.

        `why` when it is us who can not go on; that does not have to settle.
        """
        age = self._runtime.monotonic() - self._welcomed_at
        settled = why or age >= min(SETTLING_S, self._interval_s / 2)
        if self._session.current is not None and settled:
            told = why or "it is not known any more"
            LOG.warning("session %s: %s: hello again", self._session.current, told)
            self._session.end()
            self._wanted.set()

    def loop(self, door: Door) -> None:
        """Runs until the agent stops."""
        while not self._runtime.stopping.is_set():
            self._wanted.clear()
            if self._session.current is None:
                self._until_welcomed(door)
            else:
                self._runtime.wait(self._wanted, self._interval_s)

    def _until_welcomed(self, door: Door) -> None:
        hello_id = self._runtime.new_id()
        first = min(FIRST_PAUSE_S, self._interval_s)
        pause, last_code = first, ""
        while not self._runtime.stopping.is_set():
            door.hold()
            try:
                hello = self._hello(hello_id)
                timeout_s = min(LAST_PAUSE_S, max(1.0, self._interval_s))
                kwargs = {"hello": m.builtins(hello)}
                answer = self._bus.call(ANY_MANAGER, "hello", kwargs, timeout_s)
                self._welcome(hello, m.convert(answer, m.Welcome), door)
                return
            except MusterError as exc:
                if exc.code != last_code:
                    LOG.warning("no session yet, tried again until there is one: %s", exc)
                last_code = exc.code
                nobody = isinstance(exc, NoManager | BrokerUnavailable)
                if exc.code == DbRolledBack.code:
                    self._tell_floors(exc.data.get("floors"))
            if nobody:
                self._runtime.sleep(pause * self._runtime.jitter(0.8, 1.2))
                pause = min(pause * 2, LAST_PAUSE_S, max(first, self._interval_s))
            else:
                self._runtime.sleep(self._interval_s)

    def _hello(self, hello_id: str) -> m.Hello:
        meta = self._journal.meta()
        boot = ""
        with contextlib.suppress(OSError):
            boot = BOOT_ID.read_text().strip()
        return m.Hello(
            hello_id=hello_id,
            fleet=self._identity.fleet,
            host=self._identity.host,
            agent_run=self._identity.agent_run,
            agent_version=__version__,
            driver=self._driver,
            interval_s=self._interval_s,
            host_boot=boot or "unknown",
            journal_id=meta.journal_id,
            journal_seq=meta.journal_seq,
            store_timeline=meta.store_timeline,
            store_mark=meta.store_mark,
            session=meta.session or 0,
            unfinished=tuple(e.command.id for e in self._journal.unfinished()),
        )

    def _tell_floors(self, known: object) -> None:
        """The managers' database was restored: tell all that it may have forgotten."""
        floors = self._journal.floors()
        if len(floors) == known:
            return
        for start in range(0, len(floors), FLOORS_AT_ONCE):
            answers = m.Answers(
                fleet=self._identity.fleet,
                host=self._identity.host,
                session=None,
                agent_run=self._identity.agent_run,
                floors=floors[start : start + FLOORS_AT_ONCE],
            )
            with contextlib.suppress(MusterError):  # told again at the next hello
                self._bus.publish(f"result.{self._identity.host}", m.encode(answers))

    def _welcome(self, hello: m.Hello, welcome: m.Welcome, door: Door) -> None:
        """Floors and voids first, so that nothing they forbid is started by what follows."""
        self._journal.welcome(welcome)
        for void in welcome.voids:
            self._commands.void(void.instance, void.generation)
        self._commands.settle(hello.unfinished, welcome.wanted)
        self._welcomed_at = self._runtime.monotonic()
        self._session.begin(welcome.session)
        self._on_welcome(welcome.canary_interval_s)
        LOG.info("session %d", welcome.session)
        door.release()
        self._commands.go()
        self._inventory.want_full()
        self._answers.wake()

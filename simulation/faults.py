"""Everything that can go wrong with a fleet, at random times, and the end of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from common.errors import HypervisorError, TemplateInvalid
from common.ownership import Mark
from common.states import PowerState
from simulation.fleet import AgentProcess, Process, SimFleet
from simulation.hypervisor import Hypervisor, SimGuest
from simulation.ports import quietly

RESTORED = 0.1  # of the seeds have their database restored from a backup
UNTIDINESS = 0.3  # of clean-ups that fail
ACCEPTS_EVERY_S = (20.0, 60.0)
HANDS = (
    PowerState.SHUTOFF,
    PowerState.RUNNING,
    PowerState.PAUSED,
    PowerState.SUSPENDED,
    PowerState.CRASHED,
)
ENDED = ("SUCCEEDED", "FAILED", "NOT_RUN", "UNKNOWN")


class Lost:
    """What a restored database does not know any more, or knows again."""

    def __init__(self) -> None:
        self.restored = False
        self.restored_at_s = float("-inf")
        self.jobs: set[str] = set()
        # Their guests are orphans: nobody owns them, and nobody destroys them.
        self.instances: set[str] = set()
        # Deleted since the copy was made, or about to be: their records live, without a guest.
        self.revived: set[str] = set()
        # They were on another host when the copy was made, or on none.
        self.displaced: set[str] = set()
        # Commands whose end, or which themselves, are forgotten: their ids and generations.
        self.commands: set[str] = set()
        self.generations: set[tuple[str, int]] = set()

    def compare(self, before: sqlite3.Connection, after: sqlite3.Connection) -> None:
        """Both have the same tables; `after` is the older."""

        def rows(database: sqlite3.Connection, query: str) -> set[Any]:
            return set(database.execute(query).fetchall())

        def gone(query: str) -> set[Any]:
            return rows(before, query) - rows(after, query)

        self.restored = True
        live = "SELECT uuid FROM instances WHERE vm_state != 'DELETED'"
        self.jobs |= {uuid for (uuid,) in gone("SELECT uuid FROM jobs")}
        self.instances |= {uuid for (uuid,) in gone("SELECT uuid FROM instances")}
        self.revived |= {uuid for (uuid,) in rows(after, live) - rows(before, live)}
        self.displaced |= {uuid for uuid, _ in gone("SELECT uuid, host FROM instances")}
        ids = "SELECT id FROM commands"  # answered canaries are deleted
        self.commands |= {command for (command,) in rows(after, ids) - rows(before, ids)}
        ended = f" WHERE state IN {ENDED}"
        for condition in ("", ended):
            query = f"SELECT id, kind, instance, generation FROM commands{condition}"  # noqa: S608
            for command, kind, instance, generation in gone(query):
                self.commands.add(command)
                self.generations.add((instance, generation))
                if kind == "terminate_instance":
                    self.revived.add(instance)


class Faults:
    """Draws faults from the world's chance; `end` takes all of them back."""

    def __init__(self, fleet: SimFleet) -> None:
        self._fleet = fleet
        self.moved: set[str] = set()
        self.removed: set[str] = set()
        # Hosts whose journal was lost or rolled back.
        self.forgetful: set[str] = set()
        self.lost = Lost()
        # What an operator does about a restored database, again and again.
        self.accept_restore: Callable[[], None] = lambda: None
        for agent in fleet.agents.values():
            agent.hypervisor.untidiness = UNTIDINESS
        self._kinds: list[Callable[[], None]] = [
            self.kill_manager,
            self.all_managers_away,
            self.kill_agent,
            self.ambush,
            self.ambush,
            self.freeze,
            self.freeze_agent,
            self.freeze_agent,
            self.broker_away,
            self.partition,
            self.database_away,
            self.bad_commits,
            self.bad_commits,
            self.hypervisor_away,
            self.hypervisor_fails,
            self.hypervisor_full,
            self.hypervisor_full,
            self.hypervisor_full,
            self.hypervisor_slow,
            self.hypervisor_slow,
            self.partial_listing,
            self.host_reboots,
            self.journal_lost,
            self.journal_rolled_back,
            self.stranger,
            self.clone,
            self.guest_by_hand,
            self.guest_by_hand,
            self.move_by_hand,
            self.remove_by_hand,
            self.bad_network,
            self.bad_network,
            self.echo,
            self.echo,
            self.busy,
            self.busy,
            self.crashes,
            self.crashes,
        ]

    def plan(self, count: int, first_s: float, last_s: float) -> None:
        """`count` faults between two times."""
        world = self._fleet.world
        for _ in range(count):
            world.after(world.random.uniform(first_s, last_s), world.random.choice(self._kinds))
        if world.chance(RESTORED):
            world.after(world.random.uniform(first_s, last_s - 60.0), self.database_restored)

    def end(self) -> None:
        """Nothing goes wrong any more, and what was wrong is mended."""
        fleet = self._fleet
        fleet.chaos.calm()
        fleet.world.lag = 0.0
        fleet.broker.up = True
        for process in fleet.processes:
            if process.runtime is not None and process.runtime.frozen:
                process.runtime.thaw()
            if process.alive:
                process.bus.inner.cut = False
            process.start()
        for agent in fleet.agents.values():
            hv = agent.hypervisor
            hv.down = hv.partial = False
            hv.ambush = hv.refusal = None
            hv.failure_rate = hv.after_error_rate = hv.hang_rate = hv.slow_s = 0.0
            hv.untidiness = 0.0

    # processes

    def kill_manager(self) -> None:
        self._kill(self._pick(self._fleet.managers))

    def kill_agent(self) -> None:
        self._kill(self._agent())

    def _kill(self, process: Process) -> None:
        world = self._fleet.world
        process.kill()
        world.after(world.random.choice((0.5, 3.0, 30.0, 120.0)), process.start)

    def all_managers_away(self) -> None:
        """The whole cluster is down, for long enough that every host has been silent."""
        world = self._fleet.world
        for process in self._fleet.managers:
            process.kill()
            world.after(world.random.uniform(30.0, 150.0), process.start)

    def ambush(self) -> None:
        """An agent dies right after its next change of a guest."""
        agent = self._agent()
        agent.hypervisor.ambush = lambda: self._kill(agent)

    def freeze(self) -> None:
        self._freeze(self._pick(self._fleet.processes))

    def freeze_agent(self) -> None:
        self._freeze(self._agent())

    def _freeze(self, process: Process) -> None:
        runtime = process.runtime
        if runtime is None or not process.alive or runtime.frozen:
            return
        self._fleet.tell(f"{process.name} is stopped (SIGSTOP)")
        runtime.freeze()
        self._later(5.0, 150.0, runtime.thaw, f"{process.name} wakes up")

    def busy(self) -> None:
        """Every machine has too much to do: threads get their turn late."""
        world = self._fleet.world
        world.lag = world.random.choice((0.05, 0.3))
        self._fleet.tell(f"machines are busy: {world.lag} of all turns come late")
        self._later(20.0, 100.0, lambda: setattr(world, "lag", 0.0), "machines are idle again")

    # what they hang on

    def broker_away(self) -> None:
        broker = self._fleet.broker
        lost = self._fleet.world.chance(0.5)
        self._fleet.tell(f"the broker is away{', with all it held' if lost else ''}")
        broker.up = False
        if lost:
            broker.lose()
        self._later(2.0, 100.0, lambda: setattr(broker, "up", True), "the broker is back")

    def partition(self) -> None:
        process = self._pick(self._fleet.processes)
        if not process.alive:
            return
        bus = process.bus.inner
        self._fleet.tell(f"{process.name} is cut off")
        bus.cut = True
        self._later(2.0, 150.0, lambda: setattr(bus, "cut", False), f"{process.name} is reached")

    def database_away(self) -> None:
        chaos = self._fleet.chaos
        self._fleet.tell("the database is away")
        chaos.database_away = True
        self._later(1.0, 60.0, lambda: setattr(chaos, "database_away", False), "database is back")

    def database_restored(self) -> None:
        """The database is lost, and an older copy of it is put in its place."""
        fleet, world = self._fleet, self._fleet.world
        aside = fleet.database.copy()
        fleet.tell("a backup of the database is made")

        def away() -> None:
            fleet.chaos.database_away = True
            fleet.tell("the database is lost")
            if world.chance(0.5):
                self.all_managers_away()
            world.after(world.random.uniform(1.0, 20.0), put_back)

        def put_back() -> None:
            fleet.tell("the database is restored from its backup")
            now = fleet.database.copy()
            fleet.database.restore(aside)
            self.lost.compare(now, fleet.database.raw)
            self.lost.restored_at_s = world.now_s
            now.close()
            fleet.told("restored")
            fleet.chaos.database_away = False
            self._accept_later()

        world.after(world.random.choice((15.0, 40.0, 100.0)), away)

    def _accept_later(self) -> None:
        """An operator sees what doctor says, hosts that return late included."""

        def accept() -> None:
            self.accept_restore()
            self._accept_later()

        self._fleet.world.after(self._fleet.world.random.uniform(*ACCEPTS_EVERY_S), accept)

    def bad_commits(self) -> None:
        """Commits fail, or take their manager with them."""
        chaos = self._fleet.chaos
        chaos.commit_crash = self._fleet.world.random.choice((0.0, 0.1))
        chaos.commit_failure = self._fleet.world.random.choice((0.1, 0.4))
        self._fleet.tell(f"{chaos.commit_failure} of commits fail, {chaos.commit_crash} are deadly")

        def mend() -> None:
            chaos.commit_crash = chaos.commit_failure = 0.0

        self._later(10.0, 60.0, mend, "good commits")

    def bad_network(self) -> None:
        chaos, world = self._fleet.chaos, self._fleet.world
        chaos.drop = world.random.choice((0.0, 0.1, 0.4))
        chaos.duplicate = world.random.choice((0.0, 0.1, 0.3))
        chaos.delay = world.random.choice((0.0, 0.1, 0.5))
        chaos.longest_delay_s = world.random.choice((1.0, 20.0, 90.0))
        self._fleet.tell(
            f"bad network: {chaos.drop} lost, {chaos.duplicate} doubled, {chaos.delay} late"
        )

        def mend() -> None:
            chaos.drop = chaos.duplicate = chaos.delay = 0.0

        self._later(10.0, 100.0, mend, "good network")

    def echo(self) -> None:
        """Much of what was sent in the last minutes arrives once more."""
        world = self._fleet.world
        first_s = world.now_s - world.random.choice((5.0, 40.0, 150.0))
        old = [send for at_s, send in self._fleet.chaos.sent if at_s >= first_s]
        again = [send for send in old if world.chance(0.4)]
        self._fleet.tell(f"{len(again)} messages of the last minutes come again")
        for send in again:
            world.after(world.random.uniform(0.0, 5.0), quietly(send))

    def crashes(self) -> None:
        chaos = self._fleet.chaos
        chaos.crash = self._fleet.world.random.choice((0.02, 0.08))
        self._fleet.tell(f"processes die at {chaos.crash} of their ports")
        self._later(5.0, 40.0, lambda: setattr(chaos, "crash", 0.0), "no more deaths by chance")

    # hypervisors and journals

    def hypervisor_away(self) -> None:
        hv = self._agent().hypervisor
        self._fleet.tell(f"the hypervisor of {hv.host} is down")
        hv.down = True
        self._later(5.0, 100.0, lambda: setattr(hv, "down", False), f"{hv.host}'s answers again")

    def partial_listing(self) -> None:
        hv = self._agent().hypervisor
        hv.partial = True
        self._later(5.0, 60.0, lambda: setattr(hv, "partial", False), f"{hv.host} lists all")

    def hypervisor_fails(self) -> None:
        hv = self._agent().hypervisor
        random = self._fleet.world.random
        hv.failure_rate = random.choice((0.0, 0.3))
        hv.after_error_rate = random.choice((0.0, 0.3))
        hv.hang_rate = random.choice((0.0, 0.2))
        self._fleet.tell(f"calls to the hypervisor of {hv.host} fail or hang")

        def mend() -> None:
            hv.failure_rate = hv.after_error_rate = hv.hang_rate = 0.0

        self._later(10.0, 100.0, mend, f"calls of {hv.host} are well")

    def hypervisor_full(self) -> None:
        """It refuses every new guest, and says so."""
        hv = self._agent().hypervisor
        bad_image = self._fleet.world.chance(0.1)
        refusal = TemplateInvalid if bad_image else HypervisorError
        hv.refusal = refusal("create is refused", "")
        self._fleet.tell(f"{hv.host} refuses new guests")
        self._later(
            30.0, 150.0, lambda: setattr(hv, "refusal", None), f"{hv.host} takes new guests"
        )

    def hypervisor_slow(self) -> None:
        """Everything takes time, and the agent may well die meanwhile."""
        agent, world = self._agent(), self._fleet.world
        hv = agent.hypervisor
        self._fleet.tell(f"the hypervisor of {hv.host} is slow")
        hv.slow_s = world.random.choice((2.0, 8.0))
        self._later(20.0, 100.0, lambda: setattr(hv, "slow_s", 0.0), f"{hv.host} is fast again")
        if world.chance(0.5):
            world.after(world.random.uniform(0.0, 60.0), lambda: self._kill(agent))

    def host_reboots(self) -> None:
        agent = self._agent()
        self._fleet.tell(f"{agent.name} reboots")
        agent.kill()
        agent.hypervisor.reboot()
        agent.hypervisor.hung_until_s = 0.0
        world = self._fleet.world
        world.after(world.random.choice((10.0, 60.0, 150.0)), agent.start)

    def journal_lost(self) -> None:
        agent = self._agent()
        self._fleet.tell(f"{agent.name} loses its journal")
        self.forgetful.add(agent.name)
        agent.kill()
        agent.disk.lose()
        world = self._fleet.world
        after_s = world.random.uniform(1.0, 60.0)
        world.after(after_s, agent.start)
        if world.chance(0.5):
            world.after(after_s + 5.0, self.echo)

    def journal_rolled_back(self) -> None:
        agent = self._agent()
        agent.kill()
        if agent.disk.is_empty:
            return
        agent.disk.keep()
        world = self._fleet.world
        world.after(1.0, agent.start)

        def put_back() -> None:
            self._fleet.tell(f"{agent.name} gets an older copy of its journal")
            self.forgetful.add(agent.name)
            agent.kill()
            agent.disk.roll_back()
            world.after(2.0, agent.start)
            if world.chance(0.5):
                world.after(7.0, self.echo)

        world.after(world.random.uniform(10.0, 90.0), put_back)

    # other hands

    def stranger(self) -> None:
        hv = self._agent().hypervisor
        name = self._fleet.world.random.choice(("vm1", "vm2", "payroll", ""))
        guest = hv.make_stranger(name)
        if self._fleet.world.chance(0.3):
            other = self._fleet.world.new_id()
            guest.mark = Mark(fleet="another", instance=other, generation=9, bearer=guest.uuid)
        self._fleet.tell(f"a stranger's VM {name!r} ({guest.uuid[:8]}) on {hv.host}")

    def clone(self) -> None:
        hv, guest = self._some_guest()
        if guest is None or hv is None:
            return
        copy = hv.make_stranger(f"{guest.name}-clone", guest.mark)
        self._fleet.tell(f"{guest.name} is cloned on {hv.host}, mark and all ({copy.uuid[:8]})")

    def guest_by_hand(self) -> None:
        hv, guest = self._some_guest()
        if guest is None or hv is None:
            return
        state = self._fleet.world.random.choice(HANDS)
        self._fleet.tell(f"{guest.name} on {hv.host} is made {state.name} by hand")
        hv.set_power(guest, state)

    def move_by_hand(self) -> None:
        hv, guest = self._some_guest()
        others = [a.hypervisor for a in self._fleet.agents.values() if a.hypervisor is not hv]
        if guest is None or hv is None or guest.mark is None:
            return
        to = self._pick(others)
        self._fleet.tell(f"{guest.name} is moved by hand from {hv.host} to {to.host}")
        self.moved.add(guest.mark.instance)
        hv.remove(guest)
        moved = msgspec.structs.replace(guest, domain_id=to.next_domain_id(), by_hand=True)
        to.guests[moved.uuid] = moved
        to.note("hand", "moved here", moved)

    def remove_by_hand(self) -> None:
        hv, guest = self._some_guest()
        if guest is None or hv is None or guest.mark is None:
            return
        self._fleet.tell(f"{guest.name} is removed from {hv.host} by hand")
        self.removed.add(guest.mark.instance)
        hv.remove(guest)

    # helpers

    def _some_guest(self) -> tuple[Hypervisor | None, SimGuest | None]:
        found = [
            (a.hypervisor, g)
            for a in self._fleet.agents.values()
            for g in a.hypervisor.guests.values()
            if not g.stranger and not a.hypervisor.off
        ]
        return self._pick(found) if found else (None, None)

    def _agent(self) -> AgentProcess:
        found: AgentProcess = self._pick(list(self._fleet.agents.values()))
        return found

    def _pick(self, things: Sequence[Any]) -> Any:
        return self._fleet.world.random.choice(things)

    def _later(self, low: float, high: float, fn: Callable[[], None], words: str) -> None:
        def act() -> None:
            self._fleet.tell(words)
            fn()

        self._fleet.world.after(self._fleet.world.random.uniform(low, high), act)

"""What must hold after each step, and what must come true once the faults have stopped."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator

import msgspec

from common.messages import CommandKind
from common.ownership import is_ours
from common.states import (
    CommandState,
    HostState,
    JobState,
    PowerState,
    TaskState,
    TombstoneState,
    VmState,
)
from manager.flows import commands, jobs, limits
from manager.store import timeline
from manager.store.commands import CommandRow
from manager.store.engine import Tx
from manager.store.events import Meta
from manager.store.freezing import FROZEN
from manager.store.hosts import Host
from manager.store.instances import Instance
from manager.store.jobs import Job
from manager.store.tombstones import Tombstone
from simulation import questions
from simulation.faults import Faults
from simulation.fleet import FLEET, SimFleet
from simulation.holdings import Holdings
from simulation.hypervisor import CLEAN_UP, Act, SimGuest
from simulation.operators import Operators
from simulation.shelf import Shelf
from simulation.waiting import Waiting
from simulation.world import EPOCH

_ON = (PowerState.RUNNING, PowerState.BLOCKED)
_OFF = (PowerState.SHUTOFF, PowerState.CRASHED)
# Off, its memory saved or not.
_STILL = (PowerState.SHUTOFF, PowerState.SUSPENDED)
HELD = (VmState.PAUSED, VmState.SUSPENDED)
HALTED = (VmState.SHUTOFF, VmState.SOFT_DELETED, *HELD)
TURNS = ("pause", "unpause", "suspend", "resume", "resize", "put_back", "give_up")
HOSTS_EVERY_S = 5.0
# A host with which nothing has been wrong for so long can not be called DOWN, whatever the
# managers and their broker went through.
WELL_S = 90.0
# A guest that has been there for so long can not be called missing.
THERE_S = 120.0
# A command that waits at an agent for so long is not given its turn.
WAITED_S = 40.0
# An agent that a restored database refuses has told its floors after so long.
FLOORS_S = 30.0
# After a restore, every host that lives has reported once after so long.
UNREPORTED_S = 15.0
CANARY = "noop"
_JUDGE = {
    "not_run": "not_run_told",
    "given_ip": "given",
    "held_otherwise": "held",
    "put": "held",
}

IN_CEPH = "rbd:"  # the places of images, see agent/drivers/simulated/disks.py


class Broken(AssertionError):
    """An invariant does not hold; `about` is the instance or job concerned, if one is."""

    def __init__(self, what: str, about: str | None = None) -> None:
        super().__init__(what)
        self.about = about


class Invariants:
    """Safety after each step, convergence at the end."""

    def __init__(self, fleet: SimFleet, operators: Operators, faults: Faults) -> None:
        self._fleet, self._operators, self._faults = fleet, operators, faults
        self._read: dict[str, int] = {}
        self._created: dict[tuple[str, int], float] = {}
        self._done: set[tuple[str, int, str]] = set()
        self._not_run: set[tuple[str, int, str]] = set()
        self._over: set[tuple[str, int]] = set()
        self._told: list[tuple[str, ...]] = []
        self._holdings = Holdings(fleet.database.raw)
        self._shelf = Shelf(fleet, faults)
        self._waiting = Waiting(fleet)
        # Hosts whose agents knew a later state of a restored database; when that was accepted.
        self._ahead_of_us: set[str] = set()
        self._accepted_at: dict[str, dt.datetime] = {}
        self._well_since: dict[str, tuple[object, float]] = {}
        self._idle_since: dict[str, float] = {}
        # Since when a manager has been there that takes what it is told.
        self._heard_since = 0.0
        fleet.database.watches.told = self._hear
        fleet.told = self._hear
        self._look_at_hosts()

    def judge(self) -> None:
        """Look at what hypervisors were made to do since the last time, and the database."""
        for host, agent in self._fleet.agents.items():
            acts = agent.hypervisor.acts
            start = self._read.get(host, 0)
            if len(acts) == start:
                continue
            self._read[host] = len(acts)
            for act in acts[start:]:
                if act.by == "agent":
                    self._acted(host, act)
        if self._told:
            told, self._told = self._told, []
            for name, *values in dict.fromkeys(told):
                getattr(self, f"_{_JUDGE.get(name, name)}")(*values)

    # what hypervisors were made to do

    def _acted(self, host: str, act: Act) -> None:
        if act.verb == CLEAN_UP:
            self._cleaned(host, act)
            return
        instance, generation = str(act.instance), act.generation or 0
        self._fleet.tell(f"{host}: {act.verb} of {instance[:8]} generation {generation}")
        if act.stranger:
            raise Broken(f"a stranger's VM on {host} was touched: {act.verb}", act.instance)
        key = (instance, generation)
        again = (*key, act.verb) in self._done
        # An agent whose journal was rolled back knows of it only what the managers still know.
        # One whose guest was taken away may have to make it again.
        excused = host in self._faults.forgetful and key not in self._over
        excused |= instance in self._faults.moved or instance in self._faults.removed
        # Asked for anew after a restore to before it was made: of the first, nothing may be left.
        excused |= instance in self._faults.lost.revived and len(self._guests_of(instance)) == 1
        excused |= self._nobody_can_know(instance)
        if act.verb in ("create", "reboot") and again and not excused:
            raise Broken(f"{act.verb} of {key} had its effect twice", instance)
        if act.verb in ("create", "reboot", "stop", *TURNS) and key in self._over:
            raise Broken(f"{act.verb} of {key}, which had succeeded before", instance)
        if act.verb == "create":
            self._created[key] = self._fleet.world.now_s
        self._done.add((*key, act.verb))
        if act.verb != "destroy" and (*key, host) in self._not_run:
            raise Broken(f"{act.verb} of {key}, which had ended as not run", instance)
        if act.verb in ("create", "start", "resume"):
            self._one_place(instance)
        if act.verb == "destroy":
            if what := self._shelf.lost_by(act):
                raise Broken(f"{host}: {what}", instance)
            self._in_turn(host, instance, generation)
            self._undone(host, instance, generation)

    def _cleaned(self, host: str, act: Act) -> None:
        """Files go only when no guest can be using them."""
        instance = str(act.instance)
        self._fleet.tell(f"{host}: clean up of {instance[:8]}, what {act.guest[:8]} has left")
        for place, guest in self._guests_of(instance):
            # Who has vouched for it was mistaken if other hands have started it since.
            excused = self._lies_still(guest) or instance in self._faults.moved or guest.by_hand
            if guest.uuid == act.guest and not excused:
                raise Broken(f"files of a guest that is on {place} were removed", instance)

    def _undone(self, host: str, instance: str, generation: int) -> None:
        """What a start that goes on has undone itself, it may make again."""
        these = {"instance": instance, "generation": generation, "host": host}
        row = self._fleet.read(lambda tx: tx.ask_first(questions.COMMAND_OF, **these))
        if row is not None and row.kind == "start_vm" and row.state in commands.OPEN:
            self._done.discard((instance, generation, "create"))

    def _in_turn(self, host: str, instance: str, generation: int) -> None:
        """What waits at an agent that has nothing else to do is carried out."""
        these = {"instance": instance, "generation": generation, "host": host}
        row = self._fleet.read(lambda tx: tx.ask_first(questions.COMMAND_OF, **these))
        if row is None or row.received_at is None or row.kind != "terminate_instance":
            return
        received_s = (row.received_at - EPOCH).total_seconds()
        waited_s = self._fleet.world.now_s - received_s
        if waited_s > WAITED_S and self._idle_since.get(host, received_s) < received_s:
            text = f"{row.kind} waited for {waited_s:.0f} s at {host}, which had nothing to do"
            raise Broken(text, instance)

    def _one_place(self, instance: str) -> None:
        if instance in self._faults.moved or self._nobody_can_know(instance):
            return
        places = {host for host, g in self._guests_of(instance) if not self._lies_still(g)}
        if len(places) > 1:
            raise Broken(f"instance {instance} is on {sorted(places)} by our doing", instance)

    def _lies_still(self, guest: SimGuest) -> bool:
        """It was switched off with its host, which was fenced, and nobody has started it since."""
        return guest.uuid in self._operators.cut_off and guest.power_state in _STILL

    def _nobody_can_know(self, instance: str) -> bool:
        """A guest of a restored database's VM, of which no host has reported since.

        An agent that is ahead of that database refuses what it says; one that has heard nothing
        after the backup was made takes it, and has no way to know.
        """
        lost = self._faults.lost
        return instance in lost.displaced and (
            self._fleet.world.now_s - lost.restored_at_s < UNREPORTED_S
        )

    def _guests_of(self, instance: str) -> list[tuple[str, SimGuest]]:
        return [
            (host, g)
            for host, agent in self._fleet.agents.items()
            for g in agent.hypervisor.guests.values()
            if not g.stranger and g.mark is not None and g.mark.instance == instance
        ]

    # what was written

    def _hear(self, name: str, *values: str) -> None:
        """A watch on the database fires; some of them can only be judged at once."""
        if name in ("released", "released_ip"):
            self._may_be_released(*values)
        else:
            self._tell(name, *values)

    def _tell(self, name: str, *values: str) -> None:
        self._told.append((name, *values))
        self._fleet.world.news = True

    def _may_be_released(self, address: str, instance: str) -> None:
        if instance in self._faults.moved | self._faults.lost.displaced:
            return
        for host, guest in self._guests_of(instance):
            if address in guest.addresses and not self._lies_still(guest):
                self._tell("early", address, instance, host)

    def _early(self, address: str, instance: str, host: str) -> None:
        if self._holdings.nobody_has(address):
            raise Broken(f"{address} was given back while its guest is on {host}", instance)

    def _given(self, address: str, instance: str) -> None:
        for host, agent in self._fleet.agents.items():
            for guest in agent.hypervisor.guests.values():
                if address not in guest.addresses or guest.mark is None or guest.stranger:
                    continue
                if self._lies_still(guest):
                    continue
                owner, lost = guest.mark.instance, self._faults.lost
                # What a restored database or a delete behind its back has let go of is nobody's.
                if owner in self._faults.moved | lost.instances | lost.displaced:
                    continue
                if owner in self._operators.vouched and guest.by_hand:
                    continue
                if owner != instance:
                    raise Broken(f"{address}, in use on {host}, was given to {instance}", instance)

    def _held(self) -> None:
        """What a VM holds was changed, or which VMs there are."""
        lost = self._faults.lost
        elsewhere = self._faults.moved | lost.displaced | lost.revived
        self._must_not(self._holdings.broken(elsewhere, limited=not lost.restored))

    def _tried(self, command: str) -> None:
        self._must_not(self._holdings.tried_again(command))

    def _defect(self, instance: str, error: str) -> None:
        raise Broken(f"an agent could not carry a command out: {error}", instance)

    def _must_not(self, found: Iterable[tuple[str, str | None]]) -> None:
        for what, about in found:
            raise Broken(what, about)

    def _reaped(self, command: str) -> None:
        """A terminate was sent by a frozen fleet."""
        row = self._fleet.read(lambda tx: tx.find(CommandRow, command))
        job = self._fleet.read(lambda tx: tx.find(Job, row.job)) if row and row.job else None
        if row is None or (job is not None and job.state in jobs.OPEN):
            return
        if self._fleet.read(lambda tx: tx.find(Meta, FROZEN)) is not None:
            raise Broken(f"a frozen fleet reaps {row.instance} on {row.host}", row.instance)

    def _db_only(self, job: str) -> None:
        """A step of a delete that nobody has forced was done from the database alone."""
        row = self._fleet.read(lambda tx: tx.find(Job, job))
        if row is not None and self._fleet.read(lambda tx: tx.find(Meta, FROZEN)) is not None:
            raise Broken(f"a frozen fleet deletes {row.instance} from the database", row.instance)

    def _tidied(self, instance: str, remains: str) -> None:
        """An item has ended: what it was about is gone."""
        files = msgspec.json.decode(remains)
        for folder in files.get("folders", ()):
            if (folder, files["bearer"]) in self._fleet.world.disks:
                raise Broken(
                    f"files of {instance} in {folder} are there, said to be gone", instance
                )

    def _reclaimed(self, job: str) -> None:
        """The clock has deleted what was not SOFT_DELETED, or was protected, or all is frozen."""
        row = self._fleet.read(lambda tx: tx.find(Job, job))
        if row is not None:
            raise Broken(f"{row.instance} was reclaimed, and may not be", row.instance)

    def _softly(self, instance: str) -> None:
        """It is SOFT_DELETED: its agent has stopped it, if there was one that could be asked."""
        vm = self._fleet.read(lambda tx: tx.find(Instance, instance))
        host = self._fleet.read(lambda tx: tx.find(Host, vm.host)) if vm and vm.host else None
        if vm is None or vm.vm_state is not VmState.SOFT_DELETED or host is None:
            return
        if host.state is not HostState.UP or not host.session_open:
            return
        for at, guest in self._guests_of(instance):
            if at == host.name and guest.power_state in _ON and not guest.by_hand:
                raise Broken(f"{vm.name} was called SOFT_DELETED and runs on {at}", instance)

    def _older_power(self, instance: str) -> None:
        raise Broken(f"an older power state of {instance} overwrote a newer one", instance)

    def _missing(self, instance: str) -> None:
        vm = self._fleet.read(lambda tx: tx.find(Instance, instance))
        if vm is None or not vm.missing or instance in self._faults.moved:
            return
        born = max((at for (i, _), at in self._created.items() if i == instance), default=0.0)
        there = any(host == vm.host for host, _ in self._guests_of(instance))
        if there and self._fleet.world.now_s - born > THERE_S:
            raise Broken(f"{vm.name} was called missing and is on {vm.host}", instance)

    def _seen(self, uuid: str, kind: str, host: str) -> None:
        guest = self._fleet.agents[host].hypervisor.guests.get(uuid)
        if guest is not None and guest.stranger:
            raise Broken(f"stranger {uuid} on {host} was taken for {kind}")

    _seen_otherwise = _seen

    def _closed(self, instance: str, host: str) -> None:
        these = {"instance": instance, "host": host}

        def answered(tx: Tx) -> bool:
            stone = tx.ask_first(questions.STONE_OF, **these)
            if stone is None or stone.state is not TombstoneState.CLOSED:
                return True
            return tx.ask_first(questions.TERMINATED, **these) is not None

        if not self._fleet.read(answered):
            text = f"the tombstone of {instance} on {host} closed without its agent's answer"
            raise Broken(text, instance)

    def _not_run_told(self, command: str, instance: str, generation: int, host: str) -> None:
        row = self._fleet.read(lambda tx: tx.find(CommandRow, command))
        if row is None or row.state is not CommandState.NOT_RUN:
            return
        if host in self._faults.forgetful:
            return  # it can not know what its older journal had not been told
        if (instance, generation) in self._faults.lost.generations:
            return  # another command of this generation may have been lost with the database
        verbs = {v for i, g, v in self._done if (i, g) == (instance, generation)}
        if verbs - {"destroy"}:
            text = f"{row.kind} {command} ended as not run and had done: {', '.join(verbs)}"
            raise Broken(text, instance)
        self._not_run.add((instance, generation, host))

    def _succeeded(self, command: str, instance: str, generation: int) -> None:
        row = self._fleet.read(lambda tx: tx.find(CommandRow, command))
        if row is not None and row.state is CommandState.SUCCEEDED:
            self._over.add((instance, generation))

    def _restored(self) -> None:
        # Their numbers may be given once more: an agent refuses those that it has heard of.
        lost = self._faults.lost.generations
        self._over -= lost
        self._not_run = {each for each in self._not_run if each[:2] not in lost}

    def _ahead(self, host: str) -> None:
        if not self._faults.lost.restored:
            raise Broken(f"{host} is said to be ahead of a database that was never restored")
        self._ahead_of_us.add(host)

    def _accepted(self, host: str) -> None:
        self._accepted_at[host] = self._fleet.world.now()
        could_tell_since = max(self._well_since[host][1], self._heard_since)
        if self._fleet.world.now_s - could_tell_since < FLOORS_S:
            self._ahead_of_us.discard(host)  # an operator was faster than its agent

    def _received(self, command: str) -> None:
        if command in self._faults.lost.commands:
            return
        if self._holdings.command(command) is None:
            raise Broken(f"an agent was given {command}, which nobody had accepted")

    def _confirmed(self, answer: str) -> None:
        if answer in self._faults.lost.commands:
            return
        known = self._holdings.command(answer)
        if known is not None and CommandState(known[0]) in commands.OPEN:
            raise Broken(f"the result of {answer} was confirmed and not kept", known[1])

    def _greeted(self, host: str, session: int) -> None:
        def left_out(tx: Tx) -> list[Tombstone]:
            if tx.find(Meta, FROZEN) is not None:
                return []
            return [
                stone
                for stone in tx.ask(questions.OPEN_STONES_AT, host=host)
                if commands.in_flight(tx, stone.instance, host, CommandKind.TERMINATE_INSTANCE)
                is None
            ]

        row = self._fleet.read(lambda tx: tx.find(Host, host))
        kept = row.session_open and row.session == session
        if kept:
            self._not_older(row)
        for stone in self._fleet.read(left_out) if kept else ():
            raise Broken(f"{stone.name} was not reaped at the hello of {host}", stone.instance)

    def _not_older(self, row: Host) -> None:
        """A session is given by a database that knows at least what its agent knows."""
        agent = self._fleet.agents[row.name]
        known, ours = agent.store_mark(), self._fleet.read(timeline.current)
        if known is None or not agent.alive or row.agent_run != agent.service.agent_run:
            return
        if known[0] == ours.timeline and known[1] > ours.mark:
            raise Broken(f"{row.name} at mark {known[1]} was welcomed at mark {ours.mark}")

    def _down(self, host: str) -> None:
        well_s = self._fleet.world.now_s - self._well_since[host][1]
        row = self._fleet.read(lambda tx: tx.find(Host, host))
        if row.state is HostState.DOWN and well_s > WELL_S:
            raise Broken(f"{host} was called DOWN and has been well for {well_s:.0f} s")

    def _look_at_hosts(self) -> None:
        """Since when nothing is wrong with each host itself, and since when they are heard."""
        now, chaos = self._fleet.world.now_s, self._fleet.chaos
        hearing = any(
            m.alive and m.runtime is not None and not (m.runtime.frozen or m.bus.inner.cut)
            for m in self._fleet.managers
        )
        if not hearing or chaos.database_away or chaos.commit_failure or not self._fleet.broker.up:
            self._heard_since = now
        for name, agent in self._fleet.agents.items():
            runtime, hv = agent.runtime, agent.hypervisor
            well = (
                agent.alive
                and runtime is not None
                and not (runtime.frozen or agent.bus.inner.cut or hv.down)
                and not (chaos.drop or chaos.delay)
            )
            life, since = self._well_since.get(name, (None, now))
            if not well or life is not runtime:
                since = now
            self._well_since[name] = (runtime, since)
            busy = hv.slow_s or hv.hang_rate or hv.hung_until_s > now or self._fleet.world.lag
            idle = agent.alive and agent.service.session.current is not None
            if since == now or busy or not idle or not self._fleet.broker.up:
                self._idle_since[name] = now
        self._must_not(self._waiting.look(self._heard_since))
        self._fleet.world.after(HOSTS_EVERY_S, self._look_at_hosts)

    # at the end

    def problems(self) -> list[tuple[str, str | None]]:
        """What has not converged yet, each with what it is about."""
        found: list[tuple[str, str | None]] = self._fleet.read(self._database)
        for agent in self._fleet.agents.values():
            for g in agent.hypervisor.guests.values():
                if g.mark is None or g.stranger:
                    continue
                if not is_ours(g.mark, fleet=FLEET, hypervisor_uuid=g.uuid):
                    found.append((f"guest {g.uuid} of ours lost its mark", g.mark.instance))
        return found

    def _database(self, tx: Tx) -> list[tuple[str, str | None]]:
        found: list[tuple[str, str | None]] = []
        for job in tx.ask(questions.WISHES):
            if job.state in jobs.OPEN:
                found.append((f"job {job.kind} {job.uuid} is {job.state}", job.instance))
        lost = self._faults.lost
        for asked, answered in self._operators.accepted.items():
            if {asked, answered} & lost.jobs:
                continue
            if tx.find(Job, asked) is None and tx.find(Job, answered) is None:
                found.append((f"accepted job {asked} is lost", None))
        for row in tx.ask(questions.OPEN_COMMANDS):
            if row.kind == CANARY:
                continue  # there is always another canary
            found.append((f"{row.kind} {row.id} is {row.state}", row.instance))
        live = {}
        for vm in tx.ask(questions.INSTANCES):
            if vm.live:
                live[vm.uuid] = vm
            if vm.task_state is not TaskState.NONE:
                found.append((f"{vm.name} is stuck in {vm.task_state}", vm.uuid))
            if vm.deletion_owed:
                found.append((f"{vm.name} is still owed its deletion", vm.uuid))
            if vm.live and vm.resize is not None and vm.vm_state is not VmState.RESIZED:
                found.append((f"{vm.name} is {vm.vm_state}, resize {vm.resize.phase}", vm.uuid))
        for stone in tx.ask(questions.OPEN_STONES):
            found.append((f"tombstone of {stone.name} on {stone.host} is open", stone.instance))
        for host in tx.ask(questions.HOSTS):
            if host.state is not HostState.UP and not (host.forced_down or host.fenced):
                found.append((f"{host.name} is {host.state}: {host.reason}", None))
        for void in tx.ask(questions.VOIDS):
            found.append((f"void of {void.instance} is owed to {void.host}", void.instance))
        for ahead in tx.ask(questions.ROLLBACKS):
            found.append((f"{ahead.host} is ahead of the restored database", None))
        unowned = self._faults.moved | lost.instances
        macs = {
            mac.mac: mac.instance
            for mac in tx.ask(questions.MACS)
            if mac.instance in live or mac.instance not in unowned
        }
        wanted = {nic.mac: vm.uuid for vm in live.values() if vm.reserved for nic in vm.nics}
        if macs != wanted:
            extra = {k: v for k, v in macs.items() if wanted.get(k) != v}
            gone = {k: v for k, v in wanted.items() if macs.get(k) != v}
            found.append((f"MACs do not balance: {extra} too many, {gone} lost", None))
        found += self._holdings.unbalanced(unowned)
        for item in tx.ask(questions.CLEANUPS):
            text = f"{item.kind} of {item.name} are to be removed still: {item.waits_for}"
            found.append((text, item.instance))
        found += self._left_behind(live, unowned)
        for project, used in self._holdings.used().items():
            counted = limits.usage(tx, project)
            if counted != used:
                found.append((f"{project} uses {used}, and is told {counted}", None))
        found += self._guests(live)
        found += self._shelf.at_the_end(live)
        found += self._images(live)
        found += self._sightings(tx)
        found += self._stale_for_nothing(tx)
        return found

    def _stale_for_nothing(self, tx: Tx) -> list[tuple[str, str | None]]:
        """Commands that were refused as stale although nothing newer had been asked for."""
        found: list[tuple[str, str | None]] = []
        for row in tx.ask(questions.STALE_COMMANDS):
            if row.asked_at is not None or row.host in self._faults.forgetful:
                continue
            if self._of_before(row):
                continue
            job = tx.find(Job, row.job) if row.job else None
            if job is not None and job.state is JobState.CANCELLED:
                continue  # the void that it was taken back with has overtaken it
            above = {"instance": row.instance, "generation": row.generation}
            if tx.ask_first(questions.NEWER, **above) is None:
                found.append((f"{row.kind} {row.id} was stale for nothing", row.instance))
        return found

    def _of_before(self, row: CommandRow) -> bool:
        """Was it issued by managers that could not know what their database had lost?"""
        accepted_at = self._accepted_at.get(row.host)
        if row.host in self._ahead_of_us:
            return accepted_at is None or row.accepted_at <= accepted_at
        return (row.instance, row.generation) in self._faults.lost.generations

    def _images(self, live: dict[str, Instance]) -> list[tuple[str, str | None]]:
        """Every guest has its images in Ceph, and no image is without its guest."""
        guests = {
            (place, g.uuid): g.mark.instance
            for agent in self._fleet.agents.values()
            for g in agent.hypervisor.guests.values()
            if g.mark is not None and g.mark.bearer == g.uuid and not g.stranger
            for place in g.folders
            if place.startswith(IN_CEPH)
        }
        images = {k: v for k, v in self._fleet.world.disks.items() if k[0].startswith(IN_CEPH)}
        unowned = self._faults.moved | self._faults.lost.instances
        unowned |= self._faults.removed & live.keys()  # by hand: its delete removes the image
        found: list[tuple[str, str | None]] = [
            (f"an image of {instance} is left", instance)
            for key, instance in images.items()
            if key not in guests and instance not in unowned
        ]
        found += [
            (f"a guest of {instance} has lost its image", instance)
            for key, instance in guests.items()
            if key not in images and instance in live
        ]
        return found

    def _sightings(self, tx: Tx) -> list[tuple[str, str | None]]:
        """What the managers have seen is what is there, strangers included."""
        seen = {(s.host, s.hypervisor_uuid): s.power_state for s in tx.ask(questions.SIGHTINGS)}
        there = {
            (host, g.uuid): g.power_state
            for host, agent in self._fleet.agents.items()
            for g in agent.hypervisor.guests.values()
        }
        wrong = [key for key in {*seen, *there} if seen.get(key) is not there.get(key)]
        return [
            (f"guest {key[1]} on {key[0]}: seen {seen.get(key)}, is {there.get(key)}", None)
            for key in sorted(wrong)
        ]

    def _left_behind(
        self, live: dict[str, Instance], unowned: set[str]
    ) -> list[tuple[str, str | None]]:
        """There is no disk without a guest, but for that of a guest which a VM has lost."""
        there = {
            guest for agent in self._fleet.agents.values() for guest in agent.hypervisor.guests
        }
        excused = unowned | self._faults.lost.displaced | self._faults.lost.revived
        found: list[tuple[str, str | None]] = []
        for (place, guest), instance in self._fleet.world.disks.items():
            if guest in there or instance in excused | self._operators.let_be:
                continue
            vm = live.get(instance)
            # A start that was never begun is the last that was made: what is lost came before.
            lost = vm.made if vm is not None and vm.missing else vm.made[-1:] if vm else ()
            if guest not in {each.bearer for each in lost}:
                found.append((f"a disk of {instance} is left at {place}", instance))
        return found

    def _guests(self, live: dict[str, Instance]) -> list[tuple[str, str | None]]:
        found: list[tuple[str, str | None]] = []
        shown, lost = set(), self._faults.lost
        # A restored database does not know of what it was told since.
        resized_since = {instance for instance, _ in lost.generations} | self._faults.moved
        for host, agent in self._fleet.agents.items():
            for g in agent.hypervisor.guests.values():
                if g.stranger or g.mark is None:
                    continue
                instance = g.mark.instance
                shown.add((host, instance))
                vm = live.get(instance)
                if vm is None and (instance in self._faults.moved or instance in lost.instances):
                    continue  # behind a delete's back: an orphan, which nobody destroys
                if vm is None:
                    found.append((f"a guest of deleted {instance} is on {host}", instance))
                elif vm.host != host:
                    if instance not in self._faults.moved | lost.displaced:
                        found.append((f"{vm.name} of {vm.host} is on {host}", instance))
                elif vm.power_state is not g.power_state:
                    text = f"{vm.name}: we say {vm.power_state.name}, {host} {g.power_state.name}"
                    found.append((text, instance))
                elif vm.vm_state is VmState.ACTIVE and g.power_state not in _ON:
                    found.append((f"{vm.name} is ACTIVE and {g.power_state.name}", instance))
                elif vm.vm_state in HALTED and g.power_state in _ON:
                    found.append((f"{vm.name} is {vm.vm_state} and runs", instance))
                elif vm.vm_state in HELD and g.power_state in _OFF:
                    found.append((f"{vm.name} is {vm.vm_state} and off", instance))
                if vm is not None and vm.host == host and instance not in resized_since:
                    found += [(text, instance) for text in _sizes(vm, g)]
        for vm in live.values():
            elsewhere = vm.uuid in (
                self._faults.moved | self._faults.removed | lost.revived | lost.displaced
            )
            if (vm.host, vm.uuid) in shown or elsewhere:
                continue
            nowhere = (VmState.SHUTOFF, VmState.SOFT_DELETED, VmState.SHELVED_OFFLOADED)
            if vm.host is None and vm.vm_state in nowhere:
                continue  # created with --no-start, or nothing but a snapshot
            if vm.missing and vm.host in self._faults.forgetful:
                continue  # undone by an agent that had forgotten how its start ended
            if vm.vm_state is not VmState.ERROR:
                found.append((f"{vm.name} is {vm.vm_state} and {vm.host} has no guest", vm.uuid))
        return found


def _sizes(vm: Instance, guest: SimGuest) -> Iterator[str]:
    """A guest has the size that its VM is shown with, and keeps another only while it may."""
    wanted = vm.spec["vcpus"], vm.spec["memory_mib"]
    disks = vm.spec["disks"]
    root = disks[0]["size_gib"] if disks else None
    if (guest.vcpus, guest.memory_mib) != wanted or guest.root_gib != root:
        has = f"{guest.vcpus} vCPUs, {guest.memory_mib} MiB, {guest.root_gib} GiB"
        yield f"{vm.name} has {has}, and should have {wanted}, {root}"
    if (guest.before is not None) is not (vm.resize is not None):
        kept = "is kept" if guest.before is not None else "is not kept"
        yield f"what {vm.name} was {kept}, and it is {vm.vm_state}"
    change = vm.resize
    shapes = (change.old, change.new) if change is not None else ()
    sizes = [wanted, *((shape.vcpus, shape.memory_mib) for shape in shapes)]
    most = [max(each) for each in zip(*sizes, strict=True)]
    if [vm.vcpus, vm.memory_mib] != most:
        yield f"{vm.name} holds {vm.vcpus} vCPUs, {vm.memory_mib} MiB, and should hold {most}"

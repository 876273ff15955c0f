"""What must hold after each step, and what must come true once the faults have stopped."""

from __future__ import annotations

from common.messages import CommandKind
from common.ownership import is_ours
from common.states import PowerState, TaskState, TombstoneState, VmState
from manager.flows import commands, jobs
from manager.store.commands import CommandRow, Void
from manager.store.engine import Tx
from manager.store.instances import Instance, Mac
from manager.store.jobs import Job
from manager.store.tombstones import Tombstone
from simulation.faults import Faults
from simulation.fleet import FLEET, SimFleet
from simulation.operators import Operators

_ON = (PowerState.RUNNING, PowerState.BLOCKED)


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
        self._created: set[tuple[str, int]] = set()
        self._rebooted: set[tuple[str, int]] = set()

    def after_step(self) -> None:
        """Look at what hypervisors were made to do since the last step."""
        for host, agent in self._fleet.agents.items():
            hv = agent.hypervisor
            start = self._read.get(host, 0)
            if len(hv.acts) == start:
                continue
            self._read[host] = len(hv.acts)
            for act in hv.acts[start:]:
                if act.by != "agent":
                    continue
                self._fleet.tell(
                    f"{host}: {act.verb} of {str(act.instance)[:8]} generation {act.generation}"
                )
                if act.stranger:
                    raise Broken(f"a stranger's VM on {host} was touched: {act.verb}", act.instance)
                key = (str(act.instance), act.generation or 0)
                if act.verb == "create":
                    if key in self._created:
                        raise Broken(f"create of {key} had its effect twice", act.instance)
                    self._created.add(key)
                if act.verb == "reboot":
                    if key in self._rebooted:
                        raise Broken(f"reboot of {key} had its effect twice", act.instance)
                    self._rebooted.add(key)
                if act.verb in ("create", "start"):
                    self._one_place(str(act.instance))

    def _one_place(self, instance: str) -> None:
        if instance in self._faults.moved:
            return
        places = [
            host
            for host, agent in self._fleet.agents.items()
            for g in agent.hypervisor.guests.values()
            if not g.stranger and g.mark is not None and g.mark.instance == instance
        ]
        if len(set(places)) > 1:
            raise Broken(f"instance {instance} is on {places} by our doing", instance)

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
        for job in tx.all(Job, Job.__table__.c.same_as.is_(None)):
            if job.state in jobs.OPEN:
                found.append((f"job {job.kind} {job.uuid} is {job.state}", job.instance))
        for asked, answered in self._operators.accepted.items():
            if tx.find(Job, asked) is None and tx.find(Job, answered) is None:
                found.append((f"accepted job {asked} is lost", None))
        for row in tx.all(CommandRow, CommandRow.__table__.c.state.in_(commands.OPEN)):
            if row.kind == CommandKind.NOOP:
                continue  # there is always another canary
            found.append((f"{row.kind} {row.id} is {row.state}", row.instance))
        live = {}
        for vm in tx.all(Instance):
            if vm.live:
                live[vm.uuid] = vm
            if vm.task_state is not TaskState.NONE:
                found.append((f"{vm.name} is stuck in {vm.task_state}", vm.uuid))
            if vm.deletion_owed:
                found.append((f"{vm.name} is still owed its deletion", vm.uuid))
        for stone in tx.all(Tombstone, Tombstone.__table__.c.state == TombstoneState.OPEN):
            found.append((f"tombstone of {stone.name} on {stone.host} is open", stone.instance))
        for void in tx.all(Void):
            found.append((f"void of {void.instance} is owed to {void.host}", void.instance))
        moved = self._faults.moved
        macs = {
            mac.mac: mac.instance
            for mac in tx.all(Mac)
            if mac.instance in live or mac.instance not in moved
        }
        wanted = {vm.mac: vm.uuid for vm in live.values()}
        if macs != wanted:
            extra = {k: v for k, v in macs.items() if wanted.get(k) != v}
            lost = {k: v for k, v in wanted.items() if macs.get(k) != v}
            found.append((f"MACs do not balance: {extra} too many, {lost} lost", None))
        found += self._guests(live)
        return found

    def _guests(self, live: dict[str, Instance]) -> list[tuple[str, str | None]]:
        found: list[tuple[str, str | None]] = []
        shown = set()
        for host, agent in self._fleet.agents.items():
            for g in agent.hypervisor.guests.values():
                if g.stranger or g.mark is None:
                    continue
                instance = g.mark.instance
                shown.add((host, instance))
                vm = live.get(instance)
                if vm is None and instance in self._faults.moved:
                    continue  # moved behind a delete's back: an orphan, which nobody destroys
                if vm is None:
                    found.append((f"a guest of deleted {instance} is on {host}", instance))
                elif vm.host != host:
                    if instance not in self._faults.moved:
                        found.append((f"{vm.name} of {vm.host} is on {host}", instance))
                elif vm.power_state is not g.power_state:
                    text = f"{vm.name}: we say {vm.power_state.name}, {host} {g.power_state.name}"
                    found.append((text, instance))
                elif vm.vm_state is VmState.ACTIVE and g.power_state not in _ON:
                    found.append((f"{vm.name} is ACTIVE and {g.power_state.name}", instance))
        for vm in live.values():
            if (vm.host, vm.uuid) in shown or vm.uuid in self._faults.moved:
                continue
            if vm.vm_state is not VmState.ERROR:
                found.append((f"{vm.name} is {vm.vm_state} and {vm.host} has no guest", vm.uuid))
        return found

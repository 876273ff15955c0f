"""What is told of shelved VMs is there: their snapshots, each with all that their disks held."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from common.states import TaskState, VmState
from manager.store.instances import Instance, Snapshot
from simulation.faults import Faults
from simulation.fleet import SimFleet
from simulation.hypervisor import Act

SHELVED = (VmState.SHELVED, VmState.SHELVED_OFFLOADED)
Key = tuple[str, str, str]


class Shelf:
    """The snapshots of one fleet."""

    def __init__(self, fleet: SimFleet, faults: Faults) -> None:
        self._fleet, self._faults = fleet, faults

    def lost_by(self, act: Act) -> str:
        """What was on no other disk when an agent destroyed a guest; "" when nothing was."""
        vm: Instance | None = self._fleet.read(lambda tx: tx.find(Instance, act.instance))
        if vm is None or vm.snapshot is None or vm.vm_state not in SHELVED:
            return ""
        if vm.task_state is TaskState.DELETING or vm.deletion_owed or self._is_excused(vm.uuid):
            return ""
        if act.born > vm.snapshot.generation:
            return ""  # made from the snapshot, by an unshelve that has failed
        key = _key(vm, vm.snapshot)
        held = self._fleet.world.snapshots.get(key) if key is not None else act.written
        if held is not None and held >= act.written:
            return ""
        return f"a guest of {vm.name}, {vm.vm_state}, went with more than its snapshot holds"

    def at_the_end(self, live: Mapping[str, Instance]) -> Iterator[tuple[str, str | None]]:
        """Every shelved VM has its snapshot, and nobody else has one."""
        there = self._fleet.world.snapshots
        wanted: set[Key] = set()
        for vm in live.values():
            kept = vm.snapshot
            key = _key(vm, kept) if kept is not None else None
            wanted |= {key} if key is not None else set()
            if vm.vm_state in SHELVED and not self._is_excused(vm.uuid):
                if kept is None or kept.taken_at is None:
                    yield f"{vm.name} is {vm.vm_state} without a snapshot", vm.uuid
                elif key is not None and key not in there:
                    yield f"the snapshot of {vm.name} is not there", vm.uuid
        for key in sorted(there.keys() - wanted):
            if not self._is_excused(key[1]):
                yield f"snapshot {key[2]} of {key[1]} is left at {key[0]}", key[1]

    def _is_excused(self, instance: str) -> bool:
        """Other hands, or a database that has forgotten how it was shelved."""
        lost = self._faults.lost
        forgotten = {instance for instance, _ in lost.generations}
        return instance in (
            self._faults.moved | lost.instances | lost.revived | lost.displaced | forgotten
        )


def _key(vm: Instance, kept: Snapshot) -> Key | None:
    """Where a snapshot is; None for one of a VM without disks of its own."""
    where = kept.folder or kept.host
    return (where, vm.uuid, kept.id) if where is not None and vm.wishes.disks else None

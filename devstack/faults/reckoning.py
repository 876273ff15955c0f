"""The reckoning: the operators' ledger, the database and the hypervisors, side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import msgspec

from common.messages import GuestReport
from common.states import JOB, PowerState, VmState
from devstack.consoles import Effect, runs
from devstack.faults.field import Field, of_ours
from devstack.faults.operators import Ledger

KINDS = ("lost", "twice", "stuck", "strangers", "leaked", "untrue")
FINAL = {str(state) for state in JOB.terminal}
STARTS = ("start_vm", "reboot_vm", "resume_vm")
ENDED = ("SUCCEEDED", "FAILED", "NOT_RUN", "UNKNOWN")


class Finding(msgspec.Struct, frozen=True):
    """One thing that is not as promised; `about` is the job or instance whose story tells why."""

    kind: str
    text: str
    about: str | None = None


class Reckoning:
    """One look at everything; `findings` is empty when every promise is kept."""

    def __init__(self, field: Field, ledger: Ledger) -> None:
        self._field, self._ledger = field, ledger
        self.findings: list[Finding] = []
        self.ended = 0
        self._jobs: dict[str, Any] = {
            row.uuid: row
            for row in field.rows("SELECT uuid, kind, instance, state, same_as FROM jobs")
        }
        self._vms = {
            row.uuid: row
            for row in field.rows(
                "SELECT uuid, name, host, vm_state, task_state, power_state, mac, deletion_owed,"
                " reserved FROM instances"
            )
        }
        self._guests = {host: field.hypervisors[host].guests() for host in field.hosts}
        self._promises()
        self._database()
        self._macs()
        self._hypervisors()
        self._files()
        self._strangers()
        self._effects()

    def _found(self, kind: str, text: str, about: str | None = None) -> None:
        self.findings.append(Finding(kind, text, about))

    def count(self, kind: str) -> int:
        return sum(1 for finding in self.findings if finding.kind == kind)

    def last_line(self) -> str:
        """The verdict in the words of the issue."""
        return (
            f"commands: {self._ledger.accepted} accepted, {self.ended} ended,"
            f" {self.count('lost')} lost, {self.count('twice')} twice, {self.count('stuck')} stuck;"
            f" strangers touched: {self.count('strangers')}; leaked: {self.count('leaked')}"
        )

    # the operators' ledger and the database

    def _promises(self) -> None:
        for asked, promise in list(self._ledger.promises.items()):
            job = self._jobs.get(asked)
            work = self._jobs.get(promise.job)
            if job is None or work is None:
                self._found("lost", f"{promise.method}: job {asked} is nowhere", promise.instance)
            elif work.state in FINAL:
                self.ended += 1
            else:
                self._found("stuck", f"{work.kind} {promise.job} is {work.state}", promise.job)

    def _database(self) -> None:
        promised = {promise.job for promise in list(self._ledger.promises.values())}
        for job in self._jobs.values():
            if job.state not in FINAL and job.same_as is None and job.uuid not in promised:
                self._found("stuck", f"{job.kind} {job.uuid} is {job.state}", job.uuid)
        for row in self._field.rows("SELECT id, kind, host, state, instance FROM commands"):
            if row.state not in ENDED:
                text = f"{row.kind} {row.id} for {row.host} is {row.state}"
                self._found("stuck", text, row.instance)
        for vm in self._vms.values():
            if vm.task_state != "none":
                self._found("stuck", f"{vm.name} is in task {vm.task_state}", vm.uuid)
            if vm.deletion_owed and vm.vm_state != VmState.DELETED:
                self._found("stuck", f"{vm.name} is still owed its deletion", vm.uuid)
        for row in self._field.rows("SELECT host, instance, generation FROM voids"):
            self._found("stuck", f"a void is still owed to {row.host}", row.instance)
        for row in self._field.rows(
            "SELECT name, host, instance FROM tombstones WHERE state = 'OPEN'"
        ):
            self._found(
                "leaked", f"the tombstone of {row.name} on {row.host} is open", row.instance
            )

        for row in self._field.rows(
            "SELECT kind, name, instance FROM cleanups WHERE state = 'OPEN'"
        ):
            self._found("leaked", f"{row.kind} of {row.name} are still to go", row.instance)

    def _macs(self) -> None:
        held = {row.mac: row.instance for row in self._field.rows("SELECT mac, instance FROM macs")}
        # One whose creation has failed holds nothing.
        wanted = {vm.mac: vm.uuid for vm in self._live().values() if vm.reserved}
        for mac in held.keys() ^ wanted.keys():
            word = "lost" if mac in wanted else "held for nobody"
            self._found("leaked", f"the address {mac} is {word}", held.get(mac) or wanted.get(mac))

    def _live(self) -> dict[str, Any]:
        return {u: vm for u, vm in self._vms.items() if vm.vm_state != VmState.DELETED}

    # the hypervisors

    def _hypervisors(self) -> None:
        live = self._live()
        shown: dict[str, list[str]] = defaultdict(list)
        for host, guests in self._guests.items():
            for guest in guests.values():
                if of_ours(guest) and guest.mark is not None:
                    shown[guest.mark.instance].append(host)
                    self._guest(host, guest, live.get(guest.mark.instance), guest.mark.instance)
        for instance, hosts in shown.items():
            if len(hosts) > 1:
                self._found("twice", f"instance {instance} is on {', '.join(hosts)}", instance)
        for vm in live.values():
            # One whose create has failed has no guest, and is there to be deleted.
            if vm.uuid not in shown and vm.vm_state != VmState.ERROR:
                self._found("leaked", f"{vm.name} is {vm.vm_state} without a guest", vm.uuid)

    def _guest(self, host: str, guest: GuestReport, vm: Any, instance: str) -> None:
        if vm is None:
            self._found("leaked", f"{guest.name} on {host} has no live record", instance)
        elif vm.host != host:
            self._found("leaked", f"{guest.name} of {vm.host} is on {host}", instance)
        elif vm.power_state != guest.power_state:
            said, is_ = PowerState(vm.power_state).name, guest.power_state.name
            self._found("untrue", f"{vm.name}: we say {said}, {host} says {is_}", instance)
        elif vm.vm_state != VmState.ERROR and ((vm.vm_state == VmState.ACTIVE) != runs(guest)):
            text = f"{vm.name} is {vm.vm_state} and {guest.power_state.name}"
            self._found("untrue", text, instance)

    def _files(self) -> None:
        """Those of a guest go with it, whoever has removed it."""
        there = {guest for guests in self._guests.values() for guest in guests}
        for host in self._field.hosts:
            for guest in self._field.hypervisors[host].kept():
                if guest not in there:
                    self._found("leaked", f"files of guest {guest} are left on {host}")

    def _strangers(self) -> None:
        for (host, guest_uuid), made in list(self._field.strangers.items()):
            now = self._guests[host].get(guest_uuid)
            # What became of a clone is told in the story of the VM it was copied from.
            about = made.mark.instance if made.mark is not None else guest_uuid
            if now is None:
                self._found("strangers", f"{made.name} on {host} is gone", about)
            elif _identity(now) != _identity(made):
                text = f"{made.name} on {host} was {_identity(made)}, is {_identity(now)}"
                self._found("strangers", text, about)

    # what was done, by the hypervisors' own account

    def _effects(self) -> None:
        commands: dict[tuple[str, str], list[Any]] = defaultdict(list)
        for row in self._field.rows(
            "SELECT host, instance, kind, generation, state, error_code, published_at, ended_at"
            " FROM commands"
        ):
            commands[row.host, row.instance].append(row)
        for host in self._field.hosts:
            for effect in self._field.hypervisors[host].effects(self._vms):
                self._effect(host, effect, commands[host, effect.instance])

    def _effect(self, host: str, effect: Effect, commands: list[Any]) -> None:
        what = f"{effect.verb} of {effect.instance} on {host}"
        if effect.generation is None:
            allowed = sum(1 + self._forgotten(row) for row in commands if row.kind in STARTS)
            if effect.times > allowed:
                text = f"{what}: {effect.times} times for {allowed} commands"
                self._found("twice", text, effect.instance)
            return
        what += f" at generation {effect.generation}"
        by_generation: Mapping[int, Any] = {row.generation: row for row in commands}
        row = by_generation.get(effect.generation)
        forgotten = 0 if row is None else self._forgotten(row)
        if effect.times > 1 + forgotten:
            self._found("twice", f"{what}: {effect.times} times", effect.instance)
        if row is None:
            self._found("untrue", f"{what}: there is no such command", effect.instance)
        elif row.state == "NOT_RUN" and not forgotten:
            text = f"{what}: its command is called not run ({row.error_code})"
            self._found("untrue", text, effect.instance)

    def _forgotten(self, row: Any) -> int:
        """How often its host's journal was lost or rolled back while this command was open.

        The managers cast such a command again, and the agent can not know what it had done; of one
        that had ended before, they know better.
        """
        return sum(
            row.published_at is not None
            and row.published_at <= when
            and (row.ended_at is None or when <= row.ended_at)
            for when in self._field.forgot.get(row.host, ())
        )


def _identity(guest: GuestReport) -> tuple[str, str, int | None]:
    return guest.name, guest.power_state.name, guest.domain_id

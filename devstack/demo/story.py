"""The story, the same for embedded and real fleets; every check asks the hypervisor itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from common.messages import GuestReport
from devstack.consoles import runs
from devstack.demo.promises import Ledger
from devstack.fleet import Answer, Fleet, all_up
from devstack.parts.base import PartError

VMS = ("web-1", "web-2", "web-3")
STRANGER = "payroll"
UP_LINE = "MUSTER GUEST UP"


class Stuck(Exception):
    """The story can not go on; what was found so far is still told."""


class Story:
    """Tells and checks; `tell` prints a line."""

    def __init__(self, fleet: Fleet, tell: Callable[[str], None]) -> None:
        self._fleet, self._tell = fleet, tell
        self._ledger = Ledger(tell)
        self._began = time.monotonic()
        self._jobs: list[str] = []

    def run(self) -> int:
        """The whole of it; returns the exit status."""
        try:
            self._tell_all()
        except (Stuck, PartError) as exc:
            self._ledger.check(2, False, f"the story could not go on: {exc}")
        return self._ledger.close()

    def _tell_all(self) -> None:
        all_up(self._fleet)
        self._show("A fleet of three hosts", "host", "list", *_columns("name", "state", "vms"))
        self._deploy()
        stranger_host = self._vm("web-1")["host"]
        stranger = self._stranger(stranger_host)
        self._unplug("web-2")
        self._hypervisor_breaks("web-3")
        self._agent_dies("web-1", stranger_host)
        self._returns("web-1", stranger_host)
        self._delete_rest()
        self._from_template()
        self._end(stranger_host, stranger)

    # the chapters

    def _deploy(self) -> None:
        self._title("Deploy three VMs")
        for name in VMS:
            options = ["--vcpus", "1", "--memory", "96", *self._fleet.boot_options()]
            if self._fleet.boots:
                options += ["--cmdline", f"console=ttyS0 quiet muster.name={name}"]
            self._change("vm", "create", name, *options, "--reason", "the demo needs it")
        self._show("Their power states, as the hypervisors last said, and how long ago", *_VM_LIST)
        for name in VMS:
            self._same_as_hypervisor(name, running=True)
        if self._fleet.boots:
            for name in VMS:
                vm = self._vm(name)
                said = self._until(partial(self._says_up, vm["host"], vm["uuid"]), 60)
                self._ledger.check(4, said is not None, f"{name} says on its console: {UP_LINE}")

    def _stranger(self, host: str) -> GuestReport:
        self._title(f"Somebody makes a VM by hand in the hypervisor of {host}")
        before = self._fleet.console(host).make_stranger(STRANGER)
        took = self._until(lambda: before.hypervisor_uuid in self._aliens())
        self._ledger.check(
            1, took is not None, f"{STRANGER} is found {_after(took)} and listed as an alien"
        )
        self._show("", "alien", "list", *_columns("host", "name", "power_state", "first_seen"))
        self._untouched(host, before)
        return before

    def _unplug(self, name: str) -> None:
        vm = self._vm(name)
        self._title(f"{name} is powered off from inside the hypervisor")
        guest = self._guest_of(name)
        self._fleet.console(vm["host"]).power_off(guest.hypervisor_uuid)
        took = self._until(lambda: self._vm(name)["vm_state"] == "SHUTOFF")
        self._ledger.check(4, took is not None, f"{name} is shown SHUTOFF {_after(took)}")
        self._same_as_hypervisor(name, running=False)
        self._show("", *_VM_LIST)

    def _hypervisor_breaks(self, name: str) -> None:
        vm = self._vm(name)
        host = vm["host"]
        self._title(f"The hypervisor of {host} stops answering; its guests run on")
        self._fleet.console(host).break_down()
        took = self._until(lambda: self._host(host)["state"] == "SUSPECT")
        self._ledger.check(5, took is not None, f"{host} is SUSPECT {_after(took)}, not DOWN")
        now = self._vm(name)
        self._ledger.check(
            5,
            (now["vm_state"], now["missing"]) == ("ACTIVE", False),
            f"{name} stays ACTIVE: no answer is not an empty list",
        )
        self._fleet.console(host).mend()
        took = self._until(lambda: self._host(host)["state"] == "UP", 60)
        self._ledger.check(5, took is not None, f"{host} is UP again by itself {_after(took)}")
        self._same_as_hypervisor(name, running=True)

    def _agent_dies(self, name: str, host: str) -> None:
        self._title(f"kill -9 of the agent of {host}; the guests run on")
        guest = self._guest_of(name)
        mac = self._vm(name)["mac"]
        self._fleet.kill_agent(host)
        took = self._until(lambda: self._host(host)["state"] == "SUSPECT")
        self._ledger.check(5, took is not None, f"{host} is SUSPECT {_after(took)}")
        took = self._until(lambda: self._host(host)["state"] == "DOWN")
        self._ledger.check(5, took is not None, f"{host} is DOWN {_after(took)} more")
        others = [h for h in self._fleet.hosts if h != host]
        well = all(self._host(h)["state"] == "UP" for h in others)
        self._ledger.check(5, well, f"only {host}: {', '.join(others)} are UP")
        self._show("What a delete would do", "vm", "delete", name, "--dry-run")
        self._change("vm", "delete", name, "--reason", "its host is dead")
        stone = self._tombstones().get(name, {})
        self._show(
            "The record is gone, a tombstone stays",
            *("tombstone", "list"),
            *_columns("name", "host", "generation", "state", "holds"),
        )
        self._ledger.check(3, stone.get("state") == "OPEN", f"the tombstone of {name} is OPEN")
        held = any(mac in what for what in stone.get("holds", []))
        self._ledger.check(3, held, f"its MAC {mac} is in quarantine")
        alive = self._fleet.console(host).guests().get(guest.hypervisor_uuid)
        self._ledger.check(
            3,
            alive is not None and runs(alive),
            "the guest still runs on the dead agent's host, by its hypervisor's own account",
        )

    def _returns(self, name: str, host: str) -> None:
        self._title(f"The agent of {host} comes back")
        self._fleet.start_agent(host)
        took = self._until(lambda: self._tombstones()[name]["state"] == "CLOSED", 60)
        self._ledger.check(
            3, took is not None, f"{name} is reaped and its tombstone closed {_after(took)}"
        )
        names = [g.name for g in self._fleet.console(host).guests().values()]
        self._ledger.check(3, name not in names, f"the hypervisor of {host} has no {name} any more")
        self._until(lambda: self._host(host)["state"] == "UP")
        self._show("", "host", "list", *_columns("name", "state", "vms", "aliens"))

    def _delete_rest(self) -> None:
        self._title("Delete the rest, remotely")
        for name in VMS[1:]:
            host, guest = self._vm(name)["host"], self._guest_of(name)
            self._change("vm", "delete", name, "--reason", "the demo is over")
            gone = guest.hypervisor_uuid not in self._fleet.console(host).guests()
            self._ledger.check(3, gone, f"the hypervisor of {host} has no {name} any more")

    def _from_template(self) -> None:
        zone = self._fleet.zone_file()
        if zone is None:
            return
        self._title("A zone from a file; a VM from its template, with an address on a VLAN")
        self._show("", "apply", str(zone), *_columns("kind", "name", "action"))
        address = "10.60.0.5"
        options = ["--template", "tiny", "--offering", "small"]
        options += ["--network", f"backend,address={address}", "--reason", "the shop needs it"]
        self._change("vm", "create", "db-1", *options)
        self._show("What its job did, and how long each part took", "job", "show", self._jobs[-1])
        vm = self._vm("db-1")
        took = self._until(partial(self._says_up, vm["host"], vm["uuid"]), 60)
        console = self._fleet.serial_log(vm["host"], vm["uuid"])
        self._tell("   What it says on its console:")
        for line in console.splitlines():
            self._tell(f"   | {line}")
        for what in ("NAME db-1", f"ADDRESS eth0 {address}/24", "DISK vda 1024 MiB"):
            self._ledger.check(
                2,
                f"GUEST {what}\n" in console.replace("\r", ""),
                f"db-1 says {_after(took)}: {what}",
            )
        self._same_as_hypervisor("db-1", running=True)
        disks = self._fleet.pool_files()
        self._ledger.check(2, len(disks) == 1, f"it has {len(disks)} disk in its pool")
        self._change("vm", "delete", "db-1", "--reason", "the demo is over")
        left = self._fleet.pool_files()
        self._ledger.check(3, not left, f"{len(left)} disks are left in the pool")

    def _end(self, stranger_host: str, stranger: GuestReport) -> None:
        self._title("What is left")
        self._untouched(stranger_host, stranger)
        for host in self._fleet.hosts:
            ours = [
                g.name
                for g in self._fleet.console(host).guests().values()
                if g.hypervisor_uuid != stranger.hypervisor_uuid
            ]
            self._ledger.check(3, not ours, f"nothing of ours is left on {host}")
        jobs = {j["uuid"]: j for j in self._ask("job", "list", "--all")}
        ended = [u for u in self._jobs if jobs.get(u, {}).get("state") == "SUCCEEDED"]
        self._ledger.check(
            2,
            len(ended) == len(self._jobs),
            f"{len(self._jobs)} commands accepted, {len(ended)} ended in success",
        )
        under_way = [j for j in jobs.values() if j["state"] in ("PENDING", "RUNNING")]
        self._ledger.check(2, not under_way, "no job is left under way")
        findings = [f for f in self._ask("doctor") if f["level"] != "INFO"]
        self._ledger.check(
            2, not findings, f"doctor finds nothing {[f['code'] for f in findings] or ''}".strip()
        )
        self._tell(f"\ntold in {time.monotonic() - self._began:.0f} s")

    # helpers

    def _says_up(self, host: str, instance: str) -> bool:
        return UP_LINE in self._fleet.serial_log(host, instance)

    def _title(self, text: str) -> None:
        self._tell(f"\n== {time.monotonic() - self._began:5.1f} s  {text}")

    def _show(self, text: str, *args: str) -> None:
        if text:
            self._tell(f"   {text}:")
        answer = self._fleet.muster(*args)
        self._tell(f"   $ muster {' '.join(args)}")
        for line in (answer.out + answer.err).splitlines():
            self._tell(f"   {line}")

    def _ask(self, *args: str) -> Any:
        answer = self._fleet.muster(*args, "-f", "json")
        if not answer.out:
            raise Stuck(f"muster {' '.join(args)}: {answer.err}")
        return answer.json()

    def _change(self, *args: str) -> None:
        """A command that must succeed: waited for, its job remembered."""
        self._tell(f"   $ muster {' '.join(args[:3])} ... --wait")
        began = time.monotonic()
        answer: Answer = self._fleet.muster(*args, "--wait", "-f", "json")
        took_s = time.monotonic() - began
        if answer.out:
            self._jobs.append(answer.json()["uuid"])
        self._ledger.check(
            2, answer.code == 0, f"{' '.join(args[1:3])} ended in {took_s:.1f} s {_why(answer)}"
        )

    def _vm(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self._ask("vm", "show", name)
        return found

    def _host(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self._ask("host", "show", name)
        return found

    def _aliens(self) -> set[str]:
        return {a["hypervisor_uuid"] for a in self._ask("alien", "list")}

    def _tombstones(self) -> dict[str, Any]:
        return {t["name"]: t for t in self._ask("tombstone", "list")}

    def _guest_of(self, name: str) -> GuestReport:
        guests = self._fleet.console(self._vm(name)["host"]).guests().values()
        found = next((g for g in guests if g.name == name), None)
        if found is None:
            raise Stuck(f"no hypervisor lists a guest {name}")
        return found

    def _same_as_hypervisor(self, name: str, *, running: bool) -> None:
        vm, guest = self._vm(name), self._guest_of(name)
        ours = vm["power_state"] == "RUNNING"
        fresh = vm["power_age_s"] is not None and not vm["stale"]
        self._ledger.check(
            4,
            ours == runs(guest) == running and fresh,
            f"{name}: we say {vm['power_state']} ({vm['power_age_s']:.1f} s old), the hypervisor"
            f" of {vm['host']} says {'running' if runs(guest) else 'off'}",
        )

    def _untouched(self, host: str, before: GuestReport) -> None:
        now = self._fleet.console(host).guests().get(before.hypervisor_uuid)
        self._ledger.check(
            1,
            now == before,
            f"{before.name} on {host} is as it was made: same uuid, running, never restarted",
        )

    def _until(self, condition: Callable[[], bool], limit_s: float = 30.0) -> float | None:
        """Seconds until the condition held, None when it did not within the limit."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > limit_s:
                return None
            time.sleep(0.1)
        return time.monotonic() - began


def _columns(*names: str) -> list[str]:
    return [word for name in names for word in ("-c", name)]


_VM_LIST = (
    *("vm", "list"),
    *_columns("name", "vm_state", "task_state", "power_state", "power_age_s", "host"),
)


def _after(seconds: float | None) -> str:
    return "in no time at all (never)" if seconds is None else f"after {seconds:.1f} s"


def _why(answer: Answer) -> str:
    return "" if answer.code == 0 else f"(exit {answer.code}: {answer.err.strip()})"

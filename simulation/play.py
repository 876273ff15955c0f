"""`python -m simulation.play`: act out scenarios and compare their logs with the golden ones.

python -m simulation.play                    all of them
python -m simulation.play lost-cast -v       one, with its log
python -m simulation.play my.scenario --write    make its log the golden one; read it first
"""

from __future__ import annotations

import argparse
import difflib
import logging
import sys
import time

from common.ownership import Mark
from common.states import JobState, TaskState
from manager.flows.snapshots import where as where_it_is
from manager.store.addresses import Address, Mac
from manager.store.cleanups import Cleanup
from manager.store.commands import CommandRow, Void
from manager.store.engine import Tx
from manager.store.events import DeadLetter
from manager.store.hosts import Host
from manager.store.instances import Instance
from manager.store.jobs import Job
from manager.store.tombstones import Tombstone
from manager.store.volumes import Volume
from simulation import scenario
from simulation.holdings import Holdings
from simulation.hypervisor import Hypervisor, SimGuest
from simulation.scenario import BadScenario, Scenario
from simulation.script import Script
from simulation.stage import NOOP, Stage
from simulation.world import EPOCH


def act_out(play: Scenario) -> list[str]:
    """The log of a scenario: what was done, what happened, and how everything stands at the end."""
    stage = Stage(play.hosts, play.managers, play.changes)
    try:
        Script(play, stage).lay_out()
        stage.start()
        stage.run(play.end_s)
        return [*stage.lines, *_at_the_end(stage)]
    finally:
        stage.telling = False
        stage.close()


def differences(play: Scenario, log: list[str]) -> list[str]:
    """What differs from the golden log; empty when nothing does."""
    return list(
        difflib.unified_diff(play.golden, log, "what must happen", "what happens", lineterm="", n=2)
    )


def _at_the_end(stage: Stage) -> list[str]:
    stage.tell_news()
    lines = ["at the end"]
    lines += [f"  {line}" for line in stage.read(lambda tx: _tables(tx, stage))]
    for host, agent in stage.agents.items():
        guests = []
        for guest in agent.hypervisor.guests.values():
            whose = "a stranger's" if guest.stranger else _marked(stage, guest.mark)
            size = _size(agent.hypervisor, guest)
            guests.append(
                f"  guest at {host}: {guest.name} {guest.power_state.name}, {whose}{size}"
            )
        lines += sorted(guests)
    there = {
        (place, guest.uuid)
        for agent in stage.agents.values()
        for guest in agent.hypervisor.guests.values()
        for place in agent.hypervisor.places(guest.folders)
    }
    lines += sorted(
        f"  snapshot at {where}: disks of {instance}"
        for where, instance, _ in stage.world.snapshots
    )
    left = {key: instance for key, instance in stage.world.disks.items() if key not in there}
    lines += sorted(f"  left at {where}: disks of {vm}" for (where, _), vm in left.items())
    return [stage.in_names(line) for line in lines]


def _size(hypervisor: Hypervisor, guest: SimGuest) -> str:
    """Of a guest that was given another size, once or again."""
    if not any(act.verb == "resize" and act.guest == guest.uuid for act in hypervisor.acts):
        return ""
    disk = f", {guest.root_gib} GiB" if guest.root_gib is not None else ""
    kept = ", what it was is kept" if guest.before is not None else ""
    return f", {guest.vcpus} vCPUs, {guest.memory_mib} MiB{disk}{kept}"


def _marked(stage: Stage, mark: Mark | None) -> str:
    return (
        "without a mark" if mark is None else f"{stage.name_of(mark.instance)} ({mark.generation})"
    )


def _tables(tx: Tx, stage: Stage) -> list[str]:
    lines = []
    ours = {uuid: stage.name_of(uuid) for uuid in (vm.uuid for vm in tx.all(Instance))}
    for vm in sorted(tx.all(Instance), key=lambda vm: (vm.name, vm.created_at)):
        flags = [f"task {vm.task_state}"] if vm.task_state is not TaskState.NONE else []
        flags += ["missing"] if vm.missing else []
        flags += ["deletion owed"] if vm.deletion_owed else []
        if vm.reclaim_at is not None:
            flags.append(f"kept until {(vm.reclaim_at - EPOCH).total_seconds():.1f}")
        flags += [f"resize {vm.resize.phase}"] if vm.resize is not None else []
        if vm.snapshot is not None:
            flags.append(f"snapshot {where_it_is(vm.snapshot)}")
        where = f" on {vm.host}" if vm.host else ""
        words = [f"vm {ours[vm.uuid]}: {vm.vm_state}{where}, power {vm.power_state.name}", *flags]
        lines.append(", ".join(words))
    for job in sorted(tx.all(Job), key=lambda job: _numbered(stage, job)):
        words = [f"{stage.name_of(job.uuid)}: {job.kind} {job.instance} {job.state}"]
        if job.same_as:
            words = [f"{stage.name_of(job.uuid)}: the same as {stage.name_of(job.same_as)}"]
        elif job.state is not JobState.SUCCEEDED:
            words.append(str(job.error_code or job.waiting_for))
        words += ["unconfirmed"] if job.unconfirmed else []
        lines.append(", ".join(words))
    for host in tx.all(Host):
        flags = [f", {flag}" for flag in ("blind", "mass_silent", "clash") if getattr(host, flag)]
        flags += [] if host.enabled else [", disabled"]
        lines.append(f"host {host.name}: {host.state}{''.join(flags)}".replace("_", " "))
    for stone in sorted(tx.all(Tombstone), key=lambda s: (s.name, s.host, s.created_at)):
        holds = f", holds {' and '.join(stone.holds)}" if stone.holds else ""
        lines.append(f"tombstone of {stone.instance} at {stone.host}: {stone.state}{holds}")
    holding = {vm.uuid for vm in tx.all(Instance) if vm.live and vm.reserved}
    lines += [
        f"quarantine: the MAC of {mac.instance}"
        for mac in tx.all(Mac)
        if mac.instance not in holding
    ]
    for ip in tx.all(Address):
        word = "address" if ip.instance in holding else "quarantine"
        lines.append(f"{word}: {ip.ip} in {ip.network} of {ip.instance}")
    for volume in tx.all(Volume):
        word = "volume" if volume.instance in holding else "quarantine"
        where = f" in pool {volume.pool}" if volume.pool else ""
        lines.append(f"{word}: {volume.size_gib} GiB of {volume.instance}{where}")
    for item in tx.all(Cleanup, order=[Cleanup.__table__.c.created_at]):
        where = f" in pool {item.pool}" if item.pool else f" at {item.host}"
        waits = f", waits for {item.waits_for}" if item.waits_for else ""
        lines.append(f"clean-up of {item.instance}: {item.kind}{where}: {item.state}{waits}")
    held = Holdings(stage.database.raw).unbalanced(set())
    lines += [f"out of balance: {what}" for what, _ in held]
    lines += [
        f"owed to {void.host}: void of {void.instance} up to {void.generation}"
        for void in tx.all(Void)
    ]
    for row in tx.all(CommandRow, CommandRow.__table__.c.ended_at.is_(None)):
        if row.kind != NOOP:
            lines.append(f"open: {row.kind} {row.instance} ({row.generation}), {row.state}")
    lines += [f"dead letter: {letter.code}: {letter.reason}" for letter in tx.all(DeadLetter)]
    return lines


def _numbered(stage: Stage, job: Job) -> int:
    return int(stage.name_of(job.uuid).split()[-1])


def main(argv: list[str] | None = None) -> int:
    """Act out what was named, or everything; 0 when every log is its golden one."""
    parser = argparse.ArgumentParser(
        prog="python -m simulation.play",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="a scenario or a file (default: all)"
    )
    parser.add_argument("--write", action="store_true", help="write the golden logs anew")
    parser.add_argument("-v", "--verbose", action="store_true", help="print the logs")
    parser.add_argument("--list", action="store_true", help="names and titles, nothing is played")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.CRITICAL)
    began, failed = time.monotonic(), 0
    wanted = args.names or scenario.names()
    for name in wanted:
        try:
            play = scenario.load(name)
            if args.list:
                _say(f"{play.name:40} {play.title}")
                continue
            log = act_out(play)
        except BadScenario as exc:
            _say(f"BAD  {name}: {exc}")
            failed += 1
            continue
        found = differences(play, log)
        if args.verbose:
            _say("\n".join([f"# {play.title}", *log]))
        if args.write:
            scenario.write(play, log)
        elif found:
            failed += 1
            _say("\n".join([f"DIFFERS  {play.name}: {play.title}", *found]))
        elif not args.verbose:
            _say(f"as told  {play.name}: {play.title}")
    if not args.list:
        _say(f"scenarios: {len(wanted)} played, {failed} differ, {time.monotonic() - began:.1f} s")
    return 1 if failed and not args.write else 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())

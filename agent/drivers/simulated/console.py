"""muster-simulated: a simulated hypervisor's own console, behind the agent's back."""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from agent.drivers.simulated.store import Guest, Store
from common.errors import Ambiguous, HypervisorError, MusterError, NotFound
from common.states import PowerState


def main(argv: Sequence[str] | None = None) -> int:
    """Run one console command; returns the exit status."""
    args = _parser().parse_args(argv)
    store = Store(args.state_dir, args.host)
    try:
        store.make()
        args.run(store, args)
    except MusterError as exc:
        sys.stderr.write(f"muster-simulated: {exc}\n")
        return exc.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="muster-simulated", description="The own console of a simulated hypervisor."
    )
    parser.add_argument("--state-dir", required=True, help="[simulated] state_dir of the agent")
    parser.add_argument("--host", required=True, help="the host's name")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    listing = verbs.add_parser("list", help="all guests")
    listing.add_argument("-f", "--format", choices=["table", "json"], default="table")
    listing.set_defaults(run=_list)

    log = verbs.add_parser("log", help="what was done to guests, by whom, for which command")
    log.add_argument("-f", "--format", choices=["table", "json"], default="table")
    log.add_argument("guest", nargs="?", help="only this one: name, uuid or instance")
    log.set_defaults(run=_log)

    making = verbs.add_parser("create", help="make a guest by hand; it carries no mark")
    making.add_argument("name")
    making.add_argument("--vcpus", type=int, default=1)
    making.add_argument("--memory", type=int, default=256, metavar="MIB")
    making.add_argument("--start", action="store_true", help="and start it")
    making.add_argument("--clone-of", metavar="GUEST", help="copy a guest, its mark included")
    making.set_defaults(run=_create)

    for verb, help_text, change in (
        ("start", "power a guest on", _start),
        ("stop", "power a guest off", _halt(PowerState.SHUTOFF)),
        ("crash", "make a guest crash", _halt(PowerState.CRASHED)),
        ("pause", "freeze a guest", _pause),
        ("suspend", "save a guest's memory and power it off", _halt(PowerState.SUSPENDED)),
        ("destroy", "remove a guest", lambda store, guest: store.remove(guest.uuid)),
    ):
        one = verbs.add_parser(verb, help=help_text)
        one.add_argument("guest", help="name or uuid")
        one.set_defaults(run=_on_guest, verb=verb, change=change)

    fault = verbs.add_parser("set-fault", help="break an operation, or everything")
    fault.add_argument("op", help="list, look, capacity, create, remark, start, ... or 'down'")
    fault.add_argument(
        "mode", help="fail, fail_after, hang, hang_after, partial, a number of seconds, or none"
    )
    fault.set_defaults(run=_set_fault)
    return parser


def _list(store: Store, args: argparse.Namespace) -> None:
    rows: list[dict[str, Any]] = []
    for guest_uuid in store.uuids():
        try:
            guest = store.read(guest_uuid)
        except HypervisorError as exc:
            rows.append({"uuid": guest_uuid, "error": exc.message})
            continue
        if guest is not None:
            rows.append(msgspec.to_builtins(guest))
    if args.format == "json":
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    for row in rows:
        whose = (row.get("mark") or {}).get("instance", "-")
        state = row.get("power_state", "?")
        sys.stdout.write(f"{row['uuid']}  {state:<9}  {row.get('name', '?'):<24}  {whose}\n")


def _log(store: Store, args: argparse.Namespace) -> None:
    acts = [
        act
        for act in store.account()
        if args.guest is None or args.guest in (act.name, act.uuid, act.instance)
    ]
    if args.format == "json":
        sys.stdout.write(json.dumps(msgspec.to_builtins(acts), indent=2) + "\n")
        return
    for act in acts:
        whose = f"{act.instance} at generation {act.generation}" if act.instance else "-"
        sys.stdout.write(
            f"{act.at:%Y-%m-%dT%H:%M:%S.%fZ}  {act.by:<7}  {act.verb:<7}  {act.uuid}"
            f"  {act.name:<24}  {whose}\n"
        )


def _create(store: Store, args: argparse.Namespace) -> None:
    with store.lock():
        guest = Guest(
            uuid=str(uuid.uuid4()), name=args.name, vcpus=args.vcpus, memory_mib=args.memory
        )
        if args.clone_of:
            guest.mark = _find(store, args.clone_of).mark
        store.write(guest)
        store.note("console", "create", guest)
        if args.start:
            _start(store, guest)
            store.note("console", "start", guest)
    sys.stdout.write(f"{guest.uuid}\n")


def _on_guest(store: Store, args: argparse.Namespace) -> None:
    with store.lock():
        guest = _find(store, args.guest)
        args.change(store, guest)
        store.note("console", args.verb, guest)


def _start(store: Store, guest: Guest) -> None:
    guest.power_state, guest.domain_id = PowerState.RUNNING.name, store.next_domain_id()
    store.write(guest)


def _pause(store: Store, guest: Guest) -> None:
    guest.power_state = PowerState.PAUSED.name
    store.write(guest)


def _halt(state: PowerState) -> Callable[[Store, Guest], None]:
    def change(store: Store, guest: Guest) -> None:
        guest.power_state, guest.domain_id = state.name, None
        store.write(guest)

    return change


def _find(store: Store, wanted: str) -> Guest:
    guests = [guest for u in store.uuids() if (guest := store.read(u)) is not None]
    found = [g for g in guests if wanted == g.uuid] or [g for g in guests if wanted == g.name]
    if not found:
        raise NotFound(f"no guest {wanted!r} here", "see the list")
    if len(found) > 1:
        uuids = ", ".join(g.uuid for g in found)
        raise Ambiguous(f"several guests are called {wanted!r}: {uuids}", "use the uuid")
    return found[0]


def _set_fault(store: Store, args: argparse.Namespace) -> None:
    faults = store.faults()
    if args.op == "down":
        faults.down = "" if args.mode == "none" else args.mode
    elif args.mode == "none":
        faults.ops.pop(args.op, None)
        faults.latency_s.pop(args.op, None)
    elif args.mode.replace(".", "", 1).isdigit():
        faults.latency_s[args.op] = float(args.mode)
    else:
        faults.ops[args.op] = args.mode
    store.set_faults(faults)


if __name__ == "__main__":
    sys.exit(main())

"""`muster host ...`: hypervisor hosts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import ClassVar

from client.base import (
    DECISION_COLUMNS,
    Answer,
    Command,
    ListCommand,
    Rows,
    ShowCommand,
    add_object,
    add_reason,
)
from client.rpc import operator


class List(ListCommand):
    """List the hosts"""

    method = "host_list"
    key = "hosts"
    columns = (
        "name",
        "driver",
        "state",
        "enabled",
        "last_heard_s",
        "vms",
        "aliens",
        "vcpus_used",
        "vcpus_total",
        "memory_mib_used",
        "memory_mib_total",
        "agent_version",
    )
    more = ("cluster", "tags", "maintenance", "fenced", "reason")

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("--long", action="store_true", help="more columns")
        return parser

    def columns_of(self, args: argparse.Namespace) -> Sequence[str]:
        return self.columns + self.more if args.long else self.columns


class Show(ShowCommand):
    """Show all that is known of a host"""

    method = "host_show"
    noun = "host"
    columns = List.columns


class _Switch(Command):
    """Sets what an operator alone may set of a host; no job: it is done when it is answered."""

    method: ClassVar[str]
    needs_reason = False

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        add_object(parser, "host")
        add_reason(parser, required=self.needs_reason)
        parser.add_argument(
            "--dry-run", action="store_true", help="say what would be done, and do nothing"
        )
        return parser

    def columns_of(self, args: argparse.Namespace) -> Sequence[str]:
        return DECISION_COLUMNS if args.dry_run else List.columns

    def wish(self, args: argparse.Namespace) -> Answer:
        """The arguments of the request."""
        return {
            "host": args.host,
            "reason": args.reason,
            "operator": operator(),
            "dry_run": args.dry_run,
        }

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        answer = self.app.client.ask(self.method, **self.wish(parsed_args))
        decisions = answer.get("decisions", ())
        if parsed_args.dry_run:
            self.tell(answer)
            return self.rows(DECISION_COLUMNS, decisions)
        becomes = [
            f"{d.get('name')} on {d.get('host')}: {d.get('decision')}, because {d.get('reason')}"
            for d in decisions
        ]
        self.tell({"notices": [*answer.get("notices", ()), *becomes]})
        return self.one(List.columns, answer.get("host", {}))


class Enable(_Switch):
    """Let new VMs be placed on a host"""

    method = "host_enable"


class Disable(_Switch):
    """Place no new VMs on a host"""

    method = "host_disable"


class SetDown(_Switch):
    """Declare a host down: its VMs may then be deleted without it"""

    method = "host_set_down"
    needs_reason = True


class UnsetDown(_Switch):
    """Believe a host's heartbeats again"""

    method = "host_unset_down"


class Fence(_Switch):
    """Vouch that a host runs nothing: what was deleted without it gives its addresses back"""

    method = "host_fence"
    needs_reason = True


class Unfence(_Switch):
    """Take that back: guests on the host may run again"""

    method = "host_unfence"


class Delete(_Switch):
    """Forget a host that is gone for good; its tombstones stay"""

    method = "host_delete"
    needs_reason = True


class Maintenance(_Switch):
    """Keep new VMs off a host that is being worked on (on), or no longer (off)"""

    method = "host_maintenance"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("switch", metavar="on|off", choices=("on", "off"), help="on or off")
        return parser

    def wish(self, args: argparse.Namespace) -> Answer:
        return {**super().wish(args), "on": args.switch == "on"}

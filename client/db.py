"""`muster db accept-restore`: going on with a database that is older than its agents."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from client.base import Command, Rows, add_reason
from client.rpc import operator
from client.tombstone import List as Tombstones


class AcceptRestore(Command):
    """Go on with a database that was restored; list the tombstones that it still has open"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        add_reason(parser, required=True)
        return parser

    def columns_of(self, args: argparse.Namespace) -> Sequence[str]:
        return Tombstones.columns

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        answer = self.app.client.ask(
            "db_accept_restore", reason=parsed_args.reason, operator=operator()
        )
        hosts = ", ".join(answer.get("hosts", ()))
        raised = len(answer.get("raised", ()))
        vms = "1 VM" if raised == 1 else f"{raised} VMs"
        notices = [f"accepted for {hosts}; {vms} got a higher generation"]
        unheard = answer.get("not_compared", ())
        if unheard:
            notices.append(
                f"not heard since the restore, so not compared: {', '.join(unheard)} (they may be"
                " ahead as well, and nothing was raised for them: muster doctor)"
            )
        going_on = answer.get("open_jobs", 0)
        if going_on:
            what = "1 open job" if going_on == 1 else f"{going_on} open jobs"
            notices.append(f"{what} of the backup will go on: muster job list")
        self.tell({"notices": notices})
        return self.rows(Tombstones.columns, answer.get("tombstones", ()))

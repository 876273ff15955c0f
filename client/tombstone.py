"""`muster tombstone ...`: deleted VMs that a host has yet to prove gone."""

from __future__ import annotations

import argparse

from client import usage
from client.base import Answer, ChangeCommand, ListCommand, ShowCommand
from common.states import TombstoneState


class List(ListCommand):
    """List the tombstones, open and closed"""

    method = "tombstone_list"
    key = "tombstones"
    columns = (
        "uuid",
        "name",
        "instance",
        "host",
        "generation",
        "state",
        "reason",
        "age_s",
        "holds",
    )

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--state",
            metavar="STATE",
            type=usage.one_of("state", TombstoneState),
            help="only those that are OPEN or CLOSED",
        )
        return parser

    def filters(self, args: argparse.Namespace) -> Answer:
        return {"state": args.state}


class Show(ShowCommand):
    """Show all that is known of a tombstone"""

    method = "tombstone_show"
    noun = "tombstone"
    columns = List.columns


class Forget(ChangeCommand):
    """Give back all that a tombstone holds; it stays, and reaps should its host return"""

    method = "tombstone_forget"
    noun = "tombstone"
    columns = List.columns
    needs_reason = True

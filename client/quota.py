"""`muster quota ...`: what the VMs of a project hold, and how much that may be."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from client import options, usage
from client.base import Command, Rows, add_reason
from client.rpc import operator
from common.model import Kind, Project

COLUMNS = ("resource", "used", "limit")
LIMITS = tuple(name for name in Project.__struct_fields__ if name != "enabled")


class Show(Command):
    """Show what a project uses of each of its limits"""

    def columns_of(self, args: argparse.Namespace) -> Sequence[str]:
        return COLUMNS

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "project",
            metavar="PROJECT",
            nargs="?",
            type=usage.said("project"),
            help="its name; else `default`, whose all VMs are that name no project",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        asked = {"project": parsed_args.project} if parsed_args.project else {}
        answer = self.app.client.ask("quota_show", **asked)
        return self.rows(COLUMNS, answer.get("quota", ()))


class Set(Command):
    """Set limits of a project; an empty value is no limit"""

    def columns_of(self, args: argparse.Namespace) -> Sequence[str]:
        return COLUMNS

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "project", metavar="PROJECT", type=usage.said("project"), help="its name"
        )
        add_reason(parser)
        options.add_fields(parser, Kind.PROJECT, LIMITS, new=False)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        asked = options.given(parsed_args)
        if not asked:
            raise usage.Usage("no limit is to be set", "see: muster quota set --help")
        self.app.client.ask(
            "model_set",
            kind=Kind.PROJECT.value,
            name=parsed_args.project,
            fields=asked,
            reason=parsed_args.reason,
            operator=operator(),
        )
        answer = self.app.client.ask("quota_show", project=parsed_args.project)
        return self.rows(COLUMNS, answer.get("quota", ()))

"""`muster freeze` and `muster unfreeze`: stops all that managers destroy by themselves."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import ClassVar

from client.base import Command, Rows, add_reason
from client.rpc import operator


class _Switch(Command):
    method: ClassVar[str]
    needs_reason = False

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        add_reason(parser, required=self.needs_reason)
        return parser

    def columns_of(self, args: argparse.Namespace) -> Sequence[str]:
        return ("frozen", "since", "operator", "reason")

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        answer = self.app.client.ask(self.method, reason=parsed_args.reason, operator=operator())
        return self.one(self.columns_of(parsed_args), answer)


class Freeze(_Switch):
    """Reap and stop nothing, and delete nothing from the database alone, until unfreeze"""

    method = "freeze"
    needs_reason = True


class Unfreeze(_Switch):
    """Go on with what freeze has held back"""

    method = "unfreeze"

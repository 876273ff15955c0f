"""`muster vm history`, `muster host history` and `muster event list`: what happened, and why."""

from __future__ import annotations

import argparse
import datetime as dt
from typing import ClassVar

from client import usage
from client.base import Answer, ListCommand, add_object
from common.since import WORDS, earliest

MOST = 1000


class _History(ListCommand):
    """A timeline, oldest first."""

    key = "history"
    columns = ("at", "source", "what", "detail")
    noun: ClassVar[str]

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        add_object(parser, self.noun)
        parser.add_argument("--since", metavar="TIME", type=_since, help=WORDS)
        _add_limit(parser, MOST)
        return parser

    def filters(self, args: argparse.Namespace) -> Answer:
        noun = self.noun
        return {noun: getattr(args, noun), "since": args.since, "limit": args.limit}


class Vm(_History):
    """Tell everything that happened to a VM, oldest first"""

    method = "vm_history"
    noun = "vm"


class Host(_History):
    """Tell everything that happened to a host and was asked of it, oldest first"""

    method = "host_history"
    noun = "host"


class Events(ListCommand):
    """List what happened, oldest first"""

    method = "event_list"
    key = "events"
    columns = ("at", "kind", "object", "source", "text")

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--object", metavar="NAME", type=usage.said("object"), help="a VM or host, or an id"
        )
        parser.add_argument(
            "--kind",
            metavar="KIND",
            type=usage.said("kind"),
            help="as host.state, or the beginning of several: host",
        )
        _add_limit(parser, 100)
        return parser

    def filters(self, args: argparse.Namespace) -> Answer:
        return {"object": args.object, "kind": args.kind, "limit": args.limit}


def _add_limit(parser: argparse.ArgumentParser, usual: int) -> None:
    parser.add_argument(
        "--limit",
        metavar="N",
        type=usage.whole("limit", 1, MOST),
        default=usual,
        help=f"the newest N, at most {MOST} (default: {usual})",
    )


def _since(text: str) -> str:
    """Read by the managers, whose clock counts; what is no time at all is told here."""
    earliest(text, dt.datetime.now(dt.UTC))
    return text

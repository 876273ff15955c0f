"""`muster cleanup ...`: what was left behind somewhere, until it is removed or let be."""

from __future__ import annotations

import argparse

from client.base import Answer, ChangeCommand, ListCommand, ShowCommand


class List(ListCommand):
    """List what is still to be removed, owed deletions included"""

    method = "cleanup_list"
    key = "cleanups"
    columns = (
        "uuid",
        "kind",
        "name",
        "instance",
        "host",
        "pool",
        "state",
        "tries",
        "age_s",
        "next_try_s",
        "answer",
        "waits_for",
        "reason",
    )

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--all", action="store_true", help="those that have been done or forgotten as well"
        )
        return parser

    def filters(self, args: argparse.Namespace) -> Answer:
        return {"all": args.all}


class Show(ShowCommand):
    """Show all that is known of a clean-up item"""

    method = "cleanup_show"
    noun = "cleanup"
    columns = List.columns


class _Change(ChangeCommand):
    noun = "cleanup"
    columns = List.columns


class Retry(_Change):
    """Try to remove it now, without waiting for its time"""

    method = "cleanup_retry"


class Forget(_Change):
    """Let it be: nobody tries any more, and the space that it stands for is given back"""

    method = "cleanup_forget"
    needs_reason = True

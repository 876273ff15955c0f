"""`muster alien ...`: guests on our hosts that are not ours."""

from __future__ import annotations

import argparse

from client.base import Answer, ListCommand


class List(ListCommand):
    """List the strangers' VMs, which are left alone"""

    method = "alien_list"
    key = "aliens"
    columns = (
        "host",
        "hypervisor_uuid",
        "name",
        "power_state",
        "vcpus",
        "memory_mib",
        "first_seen",
        "last_seen",
    )

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("--host", metavar="HOST", help="only those of a host")
        return parser

    def filters(self, args: argparse.Namespace) -> Answer:
        return {"host": args.host}

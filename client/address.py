"""`muster address ...`: MACs and IP addresses that are not free."""

from __future__ import annotations

import argparse

from client.base import Answer, ListCommand


class List(ListCommand):
    """List who holds which address, and why"""

    method = "address_list"
    key = "addresses"
    columns = ("ip", "mac", "network", "instance", "vm", "why", "since")

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("--network", metavar="NETWORK", help="only those of a network")
        parser.add_argument("--vm", metavar="VM", help="only those of a VM, also of a deleted one")
        return parser

    def filters(self, args: argparse.Namespace) -> Answer:
        return {"network": args.network, "vm": args.vm}

"""`muster doctor`: what is wrong with the fleet, and what to do about it."""

from __future__ import annotations

import argparse

from client.base import ListCommand, Rows
from common.errors import EXIT_FAILED


class Doctor(ListCommand):
    """List what is wrong; exit 1 when there is an error among it"""

    method = "doctor"
    key = "findings"
    columns = ("code", "level", "object", "message", "remedy")

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        columns, findings = super().take_action(parsed_args)
        findings = list(findings)
        if not findings and parsed_args.formatter == "table":
            self.app.stderr.write("nothing found\n")
        if any(finding[columns.index("level")] == "ERROR" for finding in findings):
            self.exit_code = EXIT_FAILED
        return columns, findings

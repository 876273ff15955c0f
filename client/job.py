"""`muster job ...`: accepted wishes and what became of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from client.base import (
    Answer,
    JobCommand,
    ListCommand,
    Rows,
    ShowCommand,
    add_object,
    add_reason,
)
from client.follow import ended
from client.rpc import operator
from common.errors import MusterError, WrongState
from common.states import JobState

RECEIPTS = ("accepted_at", "published_at", "received_at", "started_at", "ended_at")


class List(ListCommand):
    """List the jobs that have not ended"""

    method = "job_list"
    key = "jobs"
    columns = ("uuid", "kind", "instance", "host", "state", "waiting_for", "age_s")

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        parser.add_argument("--all", action="store_true", help="those that have ended, too")
        return parser

    def filters(self, args: argparse.Namespace) -> Answer:
        return {"all": args.all}


def _steps(steps: list[Answer]) -> str:
    return "\n".join(line for step in steps for line in _step(step))


def _step(step: Answer) -> Iterator[str]:
    yield " ".join(
        str(part)
        for part in (
            step.get("started_at") or "(not begun)",
            f"{step['name']}:",
            step.get("state"),
            f"until {step['ended_at']}" if step.get("ended_at") else None,
            f"- {step['detail']}" if step.get("detail") else None,
        )
        if part
    )
    for host, why in (step.get("hosts") or {}).items():
        yield f"  {host}: {why}"
    phases = [f"{name} {seconds:.1f} s" for name, seconds in step.get("phases") or ()]
    if phases:
        yield f"  took: {', '.join(phases)}"


def _receipts(receipts: list[Answer]) -> str:
    lines = []
    for receipt in receipts:
        lines.append(
            f"{receipt['kind']} to {receipt['host']}, generation {receipt['generation']}:"
            f" {receipt['state']} ({receipt['command']})"
        )
        lines += [
            f"  {receipt[key]} {key.removesuffix('_at')}" for key in RECEIPTS if receipt.get(key)
        ]
    return "\n".join(lines)


def _trail(trail: list[list[Any]]) -> str:
    return "\n".join(f"{when} {source}: {text}" for source, text, when in trail)


class Show(ShowCommand):
    """Show the whole life of a job"""

    method = "job_show"
    noun = "job"
    columns = (
        "uuid",
        "kind",
        "instance",
        "host",
        "state",
        "unconfirmed",
        "waiting_for",
        "steps",
        "receipts",
        "reason",
        "error_code",
        "error",
        "age_s",
    )
    words = {"steps": _steps, "receipts": _receipts, "reason": _trail}


class Wait(JobCommand):
    """Follow a job to its end; exit 0 only when it succeeded"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        add_object(parser, "job")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        return self.job(self.app.client.ask("job_show", job=parsed_args.job), wait=True)


class Cancel(JobCommand):
    """Take back a job that its host has not begun; a delete only before it was sent"""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        add_object(parser, "job")
        add_reason(parser)
        parser.add_argument(
            "--wait", action="store_true", help="follow the job; exit 0 only when it was cancelled"
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> Rows:
        answer = self.app.client.ask(
            "job_cancel", job=parsed_args.job, reason=parsed_args.reason, operator=operator()
        )
        return self.job(answer, parsed_args.wait)

    def judge(self, job: Answer) -> MusterError | None:
        if job["state"] == JobState.CANCELLED or not ended(job):
            return None
        text = f"the job was not cancelled: it ended {job['state']}"
        return WrongState(text, f"muster job show {job.get('uuid')}")

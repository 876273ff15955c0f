"""The whole story of what went wrong: job, events, commands, hypervisor, and the logs' lines."""

from __future__ import annotations

import json
from collections.abc import Iterator

from devstack.faults.field import Field
from devstack.faults.reckoning import Finding

LINES = 40


def tell(field: Field, finding: Finding) -> Iterator[str]:
    """Lines that tell how it came to a finding."""
    yield f"== {finding.kind}: {finding.text}"
    if finding.about is None:
        return
    instance = finding.about
    job = field.rows("SELECT instance FROM jobs WHERE uuid = :u", u=finding.about)
    if job:
        instance = job[0].instance
    for row in field.rows(
        "SELECT uuid, kind, host, state, same_as, error_code, error, waiting_for, accepted_at,"
        " ended_at, check_at, deadline_at, request FROM jobs WHERE instance = :i"
        " ORDER BY accepted_at",
        i=instance,
    )[-LINES:]:
        yield f"   job {_row(row)}"
    for row in field.rows(
        "SELECT id, kind, host, generation, state, publishes, session, accepted_at, published_at,"
        " received_at, started_at, ended_at, publish_at, deadline_at, error_code, error"
        " FROM commands WHERE instance = :i ORDER BY accepted_at",
        i=instance,
    )[-LINES:]:
        yield f"   command {_row(row)}"
    for table in ("instances WHERE uuid", "tombstones WHERE instance", "macs WHERE instance"):
        for row in field.rows(f"SELECT * FROM {table} = :i", i=instance):  # noqa: S608 - ours
            yield f"   {table.partition(' ')[0]} {_row(row)}"
    for row in field.rows(
        "SELECT at, kind, source, text FROM events WHERE object = :i ORDER BY at", i=instance
    )[-LINES:]:
        yield f"   event {row.at:%H:%M:%S.%f} {row.kind} ({row.source}): {row.text}"
    for host in field.hosts:
        for line in field.hypervisors[host].story(instance)[-LINES:]:
            yield f"   {host} {line}"
        for guest in field.hypervisors[host].guests().values():
            if guest.hypervisor_uuid == instance or (
                guest.mark is not None and guest.mark.instance == instance
            ):
                yield f"   {host} lists {guest}"
    yield from _logs(field, instance)


def _logs(field: Field, instance: str) -> Iterator[str]:
    names = [instance]
    names += [r.id for r in field.rows("SELECT id FROM commands WHERE instance = :i", i=instance)]
    for log in sorted(field.folder.glob("*.log")):
        lines = [
            line
            for line in log.read_text(errors="replace").splitlines()
            if any(name in line for name in names)
        ]
        for line in lines[-LINES:]:
            yield f"   {log.stem}: {line}"


def tracebacks(field: Field) -> list[str]:
    """The last lines of all tracebacks in the logs, with the process that wrote them."""
    found = []
    for log in sorted(field.folder.glob("*.log")):
        inside = False
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("Traceback"):
                inside = True
            elif inside and not line.startswith(" "):
                inside = False
                found.append(f"{log.stem}: {line}")
    return found


def _row(row: object) -> str:
    mapping = row._mapping  # type: ignore[attr-defined] # SQLAlchemy's documented name for it
    return json.dumps({k: v for k, v in mapping.items() if v not in (None, "")}, default=str)

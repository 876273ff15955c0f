"""Notices: what those outside are told who follow what becomes of VMs."""

from __future__ import annotations

from typing import Any

from manager.store.engine import Tx
from manager.store.instances import Instance
from manager.store.jobs import Job


def tell(
    tx: Tx, event: str, vm: Instance, job: Job | None, *, error: bool = False, **more: Any
) -> None:
    """An event of a VM, with its job and who asked for it and why; sent after the commit."""
    asked = job.trail[-1] if job is not None and job.trail else None
    payload = {
        "instance": vm.uuid,
        "name": vm.name,
        "project": vm.project,
        "host": vm.host or vm.last_host,
        "job": job.uuid if job is not None else None,
        "operator": asked.source if asked is not None else None,
        "reason": asked.text if asked is not None else None,
        "at": tx.now.isoformat(),
        **more,
    }
    tx.notify(event, payload, error=error)

"""A start of which nobody knows what became of it is tried on the next host."""

from __future__ import annotations

from typing import Any

from manager.flows import first_start
from manager.rules import retry
from manager.rules.retry import Decision, Ending, Next
from manager.store.instances import Instance


def apply(swap: Any) -> None:
    good = retry.after

    def after(end: Ending) -> Decision:
        found = good(end)
        if found.next is not Next.FAIL_KEEPING_HOLD:
            return found
        return Decision(8, Next.NEXT_HOST, found.reason, found.code)

    def lost(tx: Any, cfg: Any, job: Any, host: str, *, code: str, error: str) -> None:
        vm = tx.get(Instance, job.instance)
        first_start._go_on(tx, cfg, job, vm, host, f"{code}: {error}", bury=False)

    swap(retry, "after", after)
    swap(first_start, "lost", lost)

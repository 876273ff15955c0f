"""Door 3: time. What the managers do without being asked, each round one transaction a kind."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from common.conf import Settings
from common.errors import MusterError
from manager.flows import (
    canary,
    cleanup,
    delete,
    first_start,
    liveness,
    publish,
    quarantine,
    reap,
    reclaim,
    reports,
    resize,
    restore,
    retention,
    shelve,
    watchdog,
)
from manager.store.engine import Store, Tx
from manager.store.statements import PLANNED_ANEW

LOG = logging.getLogger(__name__)
LETTERS_KEPT_S = 7 * 86400.0


def _any(condition: Any) -> Any:
    return sa.exists().where(condition)


# What is done when it is due, each in a transaction of its own; one look finds which of them are.
ROUNDS: tuple[tuple[Callable[[Tx, Settings], object], Any], ...] = (
    (restore.rise, _any(restore.IS_DUE)),
    (canary.send_due, _any(canary.IS_DUE)),
    (publish.claim_due, publish.ANY_IS_DUE),
    (delete.pursue_due, _any(delete.IS_DUE)),
    (first_start.pursue_due, _any(first_start.IS_DUE)),
    (delete.settle_owed, _any(delete.IS_OWED)),
    (reclaim.delete_due, _any(reclaim.IS_DUE)),
    (reap.retry_due, _any(reap.IS_DUE)),
    (quarantine.fences_due, _any(quarantine.FENCE_IS_DUE)),
    (cleanup.retry_due, _any(cleanup.IS_DUE)),
    (shelve.pursue_due, _any(shelve.IS_DUE)),
    (shelve.offload_due, _any(shelve.IS_TO_LEAVE)),
    (watchdog.deadlines, watchdog.ANY_IS_LATE),
    (watchdog.held_guests, _any(watchdog.IS_HELD)),
    (resize.pursue_due, resize.IS_DUE),
)
LOOK = sa.select(*[is_due for _, is_due in ROUNDS]).execution_options(**PLANNED_ANEW)


def tick(store: Store, cfg: Settings) -> None:
    """Judge hosts, pursue deletes, retry reaps, watch deadlines.

    One round that fails does not keep the others from their turn; the first error is raised last.
    """
    failed: list[Exception] = []

    def run(turn: Callable[[Tx, Settings], Any]) -> Any:
        try:
            return store.run(turn, cfg)
        except MusterError as exc:
            failed.append(exc)
        except Exception as exc:
            LOG.exception("%s failed", turn.__name__)
            failed.append(exc)
        return None

    # One that can not judge hosts can still find what else there is to do.
    found = run(_judge_and_look)
    for turn in found if found is not None else run(due) or ():
        run(turn)
    if failed:
        raise failed[0]


def _judge_and_look(tx: Tx, cfg: Settings) -> list[Callable[[Tx, Settings], object]]:
    liveness.judge_all(tx, cfg)
    return due(tx, cfg)


def due(tx: Tx, cfg: Settings) -> list[Callable[[Tx, Settings], object]]:
    """The rounds that have something to do now."""
    found = tx.rows(LOOK, now=tx.now, **restore.limits(tx), **canary.limits(tx, cfg))[0]
    return [turn for (turn, _), is_due in zip(ROUNDS, found, strict=True) if is_due]


def tidy(store: Store, cfg: Settings) -> None:
    """Forget what nobody can ask for any more."""
    store.run(retention.prune, cfg)
    store.run(reports.prune_dead_letters, LETTERS_KEPT_S)

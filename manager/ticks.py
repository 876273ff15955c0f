"""Door 3: time. What the managers do without being asked, each round one transaction a kind."""

from __future__ import annotations

import logging

from common.conf import Settings
from common.errors import MusterError
from manager.flows import canary, delete, liveness, reap, reports, restore, retention, watchdog
from manager.store.engine import Store

LOG = logging.getLogger(__name__)
LETTERS_KEPT_S = 7 * 86400.0

ROUNDS = (
    liveness.judge_all,
    restore.rise,
    canary.send_due,
    delete.pursue_due,
    delete.settle_owed,
    reap.retry_due,
    watchdog.deadlines,
    watchdog.held_guests,
)


def tick(store: Store, cfg: Settings) -> None:
    """Judge hosts, pursue deletes, retry reaps, watch deadlines.

    One round that fails does not keep the others from their turn; the first error is raised last.
    """
    failed: list[Exception] = []
    for turn in ROUNDS:
        try:
            store.run(turn, cfg)
        except MusterError as exc:
            failed.append(exc)
        except Exception as exc:
            LOG.exception("%s failed", turn.__name__)
            failed.append(exc)
    if failed:
        raise failed[0]


def tidy(store: Store, cfg: Settings) -> None:
    """Forget what nobody can ask for any more."""
    store.run(retention.prune, cfg)
    store.run(reports.prune_dead_letters, LETTERS_KEPT_S)

"""Door 3: time. What the managers do without being asked, each round one transaction a kind."""

from __future__ import annotations

from common.conf import Settings
from manager.flows import delete, liveness, reap, reports, retention, watchdog
from manager.store.engine import Store

LETTERS_KEPT_S = 7 * 86400.0


def tick(store: Store, cfg: Settings) -> None:
    """Judge hosts, pursue deletes, retry reaps, watch deadlines."""
    store.run(liveness.judge_all, cfg)
    store.run(delete.pursue_due, cfg)
    store.run(delete.settle_owed, cfg)
    store.run(reap.retry_due, cfg)
    store.run(watchdog.deadlines, cfg)
    store.run(watchdog.held_guests, cfg)


def tidy(store: Store, cfg: Settings) -> None:
    """Forget what nobody can ask for any more."""
    store.run(retention.prune, cfg)
    store.run(reports.prune_dead_letters, LETTERS_KEPT_S)

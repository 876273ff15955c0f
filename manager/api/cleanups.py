"""Clean-up items as operators see them; a deletion that is owed is listed as one of them.

What is told of such a deletion is its tombstone's: that is what goes on trying.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

from common.conf import Settings
from common.errors import NotFound, WrongState
from common.messages import CommandKind
from common.states import CommandState, TombstoneState
from manager.api import requests as ask
from manager.api import views
from manager.flows import cleanup, commands, freeze, quarantine, reap
from manager.store.cleanups import Cleanup, CleanupState
from manager.store.engine import Tx
from manager.store.hosts import Host
from manager.store.instances import Instance
from manager.store.statements import Query
from manager.store.tombstones import Tombstone
from manager.store.volumes import Volume

DELETION = "deletion"
I, T = Instance.__table__.c, Tombstone.__table__.c  # noqa: E741 - columns, as elsewhere
OWED = Query(
    Tombstone,
    T.state == TombstoneState.OPEN,
    T.instance == I.uuid,
    I.deletion_owed,
    order=[T.created_at],
    reads=(Instance,),
)


def cleanup_list(tx: Tx, _cfg: Settings, r: ask.CleanupList) -> Any:
    columns = Cleanup.__table__.c
    where = [] if r.all else [columns.state == CleanupState.OPEN]
    items = tx.all(Cleanup, *where, order=[columns.created_at, columns.uuid])
    found = [_item(tx, item) for item in items]
    found += [_deletion(tx, stone) for stone in tx.ask(OWED)]
    return {"cleanups": found, "notices": views.notices(tx)}


def cleanup_show(tx: Tx, _cfg: Settings, r: ask.CleanupShow) -> Any:
    stone = _owed(tx, r.cleanup)
    if stone is not None:
        return {**_deletion(tx, stone), "notices": views.notices(tx)}
    item = cleanup.named(tx, r.cleanup)
    volumes = tx.all(Volume, Volume.__table__.c.cleanup == item.uuid)
    return {
        **_item(tx, item),
        "guest_host": item.guest_host,
        "remains": item.remains,
        "holds": [f"{v.size_gib} GiB in pool {v.pool}" for v in volumes],
        "command": item.command,
        "created_at": item.created_at,
        "next_try_at": item.next_try_at,
        "ended_at": item.ended_at,
        "notices": views.notices(tx),
    }


def cleanup_retry(tx: Tx, cfg: Settings, r: ask.CleanupRetry) -> Any:
    stone = _owed(tx, r.cleanup)
    if stone is None:
        item = cleanup.named(tx, r.cleanup)
        return _item(tx, cleanup.retry(tx, cfg, item, r.operator, r.reason))
    reap.issue(tx, cfg, stone, f"asked for by {r.operator}" + (f": {r.reason}" if r.reason else ""))
    return _deletion(tx, tx.get(Tombstone, stone.host, stone.instance))


def cleanup_forget(tx: Tx, _cfg: Settings, r: ask.CleanupForget) -> Any:
    stone = _owed(tx, r.cleanup)
    if stone is not None:
        raise WrongState(
            f"{stone.name} is still to be deleted on {stone.host}",
            f"if {stone.host} is gone for good:"
            f" muster vm delete {stone.instance} --force --reason TEXT",
        )
    return _item(tx, cleanup.forget(tx, cleanup.named(tx, r.cleanup), r.operator, r.reason))


METHODS: dict[str, tuple[type[ask.Request], Callable[[Tx, Settings, Any], Any]]] = {
    "cleanup_list": (ask.CleanupList, cleanup_list),
    "cleanup_show": (ask.CleanupShow, cleanup_show),
    "cleanup_retry": (ask.CleanupRetry, cleanup_retry),
    "cleanup_forget": (ask.CleanupForget, cleanup_forget),
}


def _owed(tx: Tx, uuid: str) -> Tombstone | None:
    """The tombstone of this uuid, if the deletion of its VM is owed."""
    try:
        stone = quarantine.named(tx, uuid)
    except NotFound:
        return None
    vm = tx.find(Instance, stone.instance)
    owed = vm is not None and vm.deletion_owed and stone.state is TombstoneState.OPEN
    return stone if owed else None


def _item(tx: Tx, item: Cleanup) -> dict[str, Any]:
    return {
        "uuid": item.uuid,
        "kind": item.kind,
        "name": item.name,
        "instance": item.instance,
        "host": item.host,
        "pool": item.pool,
        "state": item.state.value,
        "tries": item.tries,
        "age_s": _age_s(tx, item.created_at),
        "next_try_s": _until_s(tx, item.next_try_at),
        "answer": item.answer or None,
        "waits_for": item.waits_for or None,
        "reason": item.reason,
    }


def _deletion(tx: Tx, stone: Tombstone) -> dict[str, Any]:
    return {
        "uuid": stone.uuid,
        "kind": DELETION,
        "name": stone.name,
        "instance": stone.instance,
        "host": stone.host,
        "pool": None,
        "state": stone.state.value,
        "tries": stone.tries,
        "age_s": _age_s(tx, stone.created_at),
        "next_try_s": _until_s(tx, stone.issue_at),
        "answer": stone.answer or None,
        "waits_for": _waits_for(tx, stone),
        "reason": stone.reason,
    }


def _waits_for(tx: Tx, stone: Tombstone) -> str | None:
    """What an owed deletion waits for, in words; None where only its time has to come."""
    host = tx.find(Host, stone.host)
    if host is None or not host.session_open:
        return f"{stone.host} to say hello"
    kind = CommandKind.TERMINATE_INSTANCE
    sent = commands.in_flight(tx, stone.instance, stone.host, kind)
    if sent is not None and sent.state is not CommandState.ACCEPTED:
        return f"{stone.host} to answer"
    return freeze.why(tx) or None


def _age_s(tx: Tx, since: dt.datetime) -> float:
    return round((tx.now - since).total_seconds(), 3)


def _until_s(tx: Tx, when: dt.datetime | None) -> float | None:
    """Seconds until then; None where it is not told."""
    return None if when is None else max(0.0, round((when - tx.now).total_seconds(), 3))

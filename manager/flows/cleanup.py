"""Clean-up items: what was left behind, removed by an agent, however long that takes.

An item is written in the transaction that finds that something has to go. It ends when an agent
has answered that it is gone, or when an operator lets it be; nothing else forgets it. What it
stands for stays taken until then.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable

import msgspec
import sqlalchemy as sa

from common.conf import Settings
from common.errors import NoAccess, NotFound, WrongState
from common.messages import (
    CommandKind,
    GuestFiles,
    Outcome,
    RbdImage,
    Remains,
    Result,
    TrailEntry,
    builtins,
)
from common.model import Kind, PoolScope
from common.states import CommandEvent, CommandState, HostState
from manager.flows import commands, freeze, holdings
from manager.flows import model as nouns
from manager.rules import cleanup as rule
from manager.rules import quarantine
from manager.store.cleanups import Cleanup, CleanupState
from manager.store.commands import CommandRow
from manager.store.engine import Tx
from manager.store.hosts import Host
from manager.store.instances import Instance
from manager.store.statements import Query, ask
from manager.store.tombstones import Tombstone
from manager.store.volumes import SNAPSHOT, Volume

BASE_BACK_OFF_S = 1.0
C, H, V = Cleanup.__table__.c, Host.__table__.c, Volume.__table__.c
IS_OPEN = C.state == CleanupState.OPEN
OPEN_OF = Query(Cleanup, C.instance == ask("instance"), IS_OPEN, order=[C.created_at, C.uuid])
IS_DUE = sa.and_(IS_OPEN, C.next_try_at <= ask("now"))
DUE = Query(Cleanup, IS_DUE, order=[C.next_try_at], limit=50)
# As a cluster's hosts tell it: a pool's hosts that could do something for it now.
WELL = (H.state == HostState.UP, H.session_open, sa.not_(sa.or_(H.fenced, H.clash)))
OF_CLUSTERS = sa.select(H.name, H.cluster, H.driver, sa.and_(*WELL)).order_by(H.name)
SIMULATED = "simulated"  # a driver that reaches nothing, and says that it has removed it
HELD_BY = Query(Volume, V.instance == ask("instance"), V.cleanup == ask("cleanup"))


def add(
    tx: Tx,
    cfg: Settings,
    vm: Instance | Tombstone,
    *,
    kind: str,
    remains: Remains,
    reason: str,
    host: str | None = None,
    pool: str | None = None,
    guest_host: str | None = None,
    volumes: Iterable[int] = (),
) -> Cleanup:
    """One item, and its command if there is somebody to take it.

    Done on `host`, or else by any host that reaches `pool`. `guest_host`: where a guest may still
    use it. `volumes` stay taken until it ends. What is open already stays as it is.
    """
    instance = vm.uuid if isinstance(vm, Instance) else vm.instance
    for known in tx.ask(OPEN_OF, instance=instance):
        if known.kind == kind and _remains(known) == remains:
            return known if known.tries else _try(tx, cfg, known)
    item = Cleanup(
        uuid=tx.new_id(),
        kind=kind,
        instance=instance,
        name=vm.name,
        host=host,
        pool=pool,
        guest_host=guest_host,
        remains=builtins(remains),
        reason=reason,
        next_try_at=tx.now,
        created_at=tx.now,
    )
    tx.insert(item)
    for n in volumes:
        tx.put(tx.get(Volume, instance, n), cleanup=item.uuid)
    tx.event("cleanup.open", instance, "manager", f"{vm.name}: {_what(item)}: {reason}")
    return _try(tx, cfg, item)


def named(tx: Tx, uuid: str) -> Cleanup:
    """The item, or NotFound."""
    item = tx.find(Cleanup, uuid.lower())
    if item is None:
        raise NotFound(f"no clean-up item {uuid}", "muster cleanup list shows all")
    return item


def retry_due(tx: Tx, cfg: Settings) -> int:
    """Try again what is due; returns how many."""
    items = tx.due(DUE, now=tx.now)
    for item in items:
        _try(tx, cfg, item)
    return len(items)


def retry(
    tx: Tx, cfg: Settings, item: Cleanup, operator: str, reason: str | None = None
) -> Cleanup:
    """Try an item now, as an operator asks for; WrongState for one that has ended."""
    if item.state is not CleanupState.OPEN:
        raise WrongState(f"clean-up item {item.uuid} is {item.state}", "muster cleanup list --all")
    said = f"{item.name}: {_what(item)}" + (f": {reason}" if reason else "")
    tx.event("cleanup.retry", item.instance, operator, said)
    return _try(tx, cfg, item)


def forget(tx: Tx, item: Cleanup, operator: str, reason: str) -> Cleanup:
    """Nobody tries it any more, and what it stood for is given back; what is left, is left."""
    if item.state is not CleanupState.OPEN:
        return item
    sent = tx.find(CommandRow, item.command) if item.command is not None else None
    if sent is not None and sent.state in commands.OPEN:
        # Only its agent could say that a published one did not run.
        unsent = sent.state is CommandState.ACCEPTED
        event = CommandEvent.NOT_RUN if unsent else CommandEvent.GIVE_UP
        error = f"its item was forgotten by {operator}"
        commands.move(tx, sent, event, error_code="SUPERSEDED", error=error)
    return _end(tx, item, CleanupState.FORGOTTEN, operator, reason)


def command_ended(tx: Tx, command: CommandRow, result: Result | None) -> None:
    """What an agent answered; None: nothing is heard of it, and it is tried again."""
    item = tx.find(Cleanup, str(command.spec.get("cleanup")))
    if item is None or item.state is not CleanupState.OPEN:
        return
    if command.state is CommandState.SUCCEEDED:
        text = f"{command.host} has removed it"
        _end(tx, item, CleanupState.DONE, f"host {command.host}", text)
        return
    if item.command != command.id:
        return  # it is tried again already
    wait_s = quarantine.back_off_s(item.tries, BASE_BACK_OFF_S)
    if command.error_code == NoAccess.code and item.pool is not None:
        wait_s = rule.no_access_s(item.tries, len(_hosts_of(tx, item.pool)), BASE_BACK_OFF_S)
    generation = item.generation
    if result is not None and result.outcome is not Outcome.SUCCEEDED and result.floor is not None:
        # The agent has heard of a newer command than we remember: go above it, without waiting.
        generation, wait_s = max(generation, result.floor), 0.0
        commands.raise_generation(tx, item.instance, generation)
    tx.swap(
        item,
        generation=generation,
        tries=item.tries + 1,
        answer=f"{command.host}: {command.error_code}: {command.error}",
        waits_for=f"try {item.tries + 2}",
        next_try_at=tx.now + dt.timedelta(seconds=wait_s),
    )


def given_up(tx: Tx, row: CommandRow) -> None:
    """Its host does not answer: it is tried again there, or by another one of the pool.

    No void is owed for it: whatever an agent makes of it late, it is the same.
    """
    sent = row.state is not CommandState.ACCEPTED
    moved, _ = commands.move(
        tx,
        row,
        CommandEvent.GIVE_UP if sent else CommandEvent.NOT_RUN,
        error_code="OUTCOME_UNKNOWN" if sent else "EXPIRED",
        error=f"no answer within {row.timeout_s:g} s",
    )
    command_ended(tx, moved, None)


def answered_for(tx: Tx, stone: Tombstone, left: Collection[str] = ()) -> None:
    """The host of a guest has answered its terminate: what was made there is gone.

    Not what was `left` behind, by the bearers.
    """
    bearers = {made.bearer for made in stone.made} - set(left)
    for item in tx.ask(OPEN_OF, instance=stone.instance) if bearers else ():
        if item.guest_host == stone.host and _bearer(item) in bearers:
            text = f"{stone.host} has removed it with what was left there"
            _end(tx, item, CleanupState.DONE, f"host {stone.host}", text)


def _remains(item: Cleanup) -> Remains:
    remains: Remains = msgspec.convert(item.remains, type=Remains)
    return remains


def _has_images(item: Cleanup) -> bool:
    """True where an image in Ceph is to go, which takes long when it is large."""
    remains = _remains(item)
    return isinstance(remains, RbdImage) or (
        isinstance(remains, GuestFiles) and remains.images != ()
    )


def _bearer(item: Cleanup) -> str | None:
    remains = _remains(item)
    return remains.bearer if isinstance(remains, GuestFiles) else None


def _end(tx: Tx, item: Cleanup, state: CleanupState, source: str, text: str) -> Cleanup:
    _give_back(tx, item, state)
    tx.event(
        f"cleanup.{state.lower()}", item.instance, source, f"{item.name}: {_what(item)}: {text}"
    )
    return tx.swap(item, state=state, ended_at=tx.now, next_try_at=None, waits_for="", answer=text)


def _give_back(tx: Tx, item: Cleanup, state: CleanupState) -> None:
    """The space that it stood for, unless another guest or attempt may have files there too."""
    vm = tx.find(Instance, item.instance)
    lives = vm is not None and vm.live
    others = [other for other in tx.ask(OPEN_OF, instance=item.instance) if other.uuid != item.uuid]
    for volume in tx.ask(HELD_BY, instance=item.instance, cleanup=item.uuid):
        if volume.kind == SNAPSHOT:  # it has an item of its own, and is no guest's
            tx.delete(volume)
            continue
        heir = next((other for other in others if _may_hold(tx, other, volume)), None)
        if heir is not None:
            tx.put(volume, cleanup=heir.uuid)
        elif lives:
            tx.put(volume, cleanup=None)  # it is being deleted elsewhere still
        elif state is CleanupState.DONE and isinstance(_remains(item), GuestFiles):
            tx.put(volume, cleanup=None)  # as long as a tombstone holds the disk
        else:
            tx.delete(volume)
    holdings.release(tx, item.instance)


def _may_hold(tx: Tx, item: Cleanup, volume: Volume) -> bool:
    """True for an item of files that a disk may have in its pool, or of its image there."""
    remains = _remains(item)
    if item.pool is None and volume.pool is not None and isinstance(remains, GuestFiles):
        noun = nouns.find(tx, Kind.POOL, volume.pool)
        return noun is not None and noun.path in remains.folders
    if item.pool != volume.pool:
        return False
    if isinstance(remains, RbdImage):
        return remains.target.image.endswith(f"-disk{volume.n}")
    return isinstance(remains, GuestFiles)


def _what(item: Cleanup) -> str:
    where = item.host if item.pool is None else f"pool {item.pool}"
    return f"{item.kind} in {where}" if where else item.kind


def _try(tx: Tx, cfg: Settings, item: Cleanup) -> Cleanup:
    """Have an agent remove it, if one may and can; else look again later."""
    sent = tx.find(CommandRow, item.command) if item.command is not None else None
    if sent is not None and sent.state in commands.OPEN:
        return _wait(tx, item, f"{sent.host} to answer")
    host, why_not = _hand(tx, item)
    if host is None:
        return _wait(tx, item, why_not)
    generation = max(commands.next_generation(tx, item.instance), item.generation + 1)
    command = commands.issue(
        tx,
        cfg,
        kind=CommandKind.CLEAN_UP,
        instance=item.instance,
        host=host,
        generation=generation,
        job=None,
        trail=(TrailEntry("manager", item.reason, item.created_at),),
        spec={"cleanup": item.uuid, "remains": item.remains},
        timeout_s=cfg.manager.create_timeout if _has_images(item) else None,
    )
    item = tx.swap(item, command=command.id, generation=generation)
    return _wait(tx, item, f"{host} to answer")


def _wait(tx: Tx, item: Cleanup, for_what: str) -> Cleanup:
    again = tx.now + dt.timedelta(seconds=rule.LOOK_AGAIN_S)
    return tx.swap(item, waits_for=for_what, next_try_at=again)


def _hand(tx: Tx, item: Cleanup) -> tuple[str | None, str]:
    """The host that is to remove it; None and why there is none, in words."""
    if why := freeze.why(tx) or _in_use(tx, item):
        return None, why
    # A newer generation would make its agent refuse what it was asked for before.
    busy = {command.host for command in tx.ask(commands.OPEN_OF_GUEST, instance=item.instance)}
    if item.host is not None:
        host = tx.find(Host, item.host)
        if host is None or not host.session_open:
            return None, f"{item.host} to say hello"
        if item.host in busy:
            return None, f"{item.host} to answer what was asked for {item.name} before"
        return item.host, ""
    able = _hosts_of(tx, item.pool) if item.pool is not None else []
    if not able:
        return None, f"a host of pool {item.pool}"
    free = [host for host in able if host not in busy]
    if not free:
        return None, f"{', '.join(able)} to answer what was asked for {item.name} before"
    vm = tx.find(Instance, item.instance)
    lives_on = vm.host if vm is not None and vm.live else None
    free = [host for host in free if host != lives_on] or free
    # Another one each time: what keeps one from it need not keep the next.
    return free[item.tries % len(free)], ""


def _in_use(tx: Tx, item: Cleanup) -> str:
    """Why a guest may still be using it."""
    stone = tx.find(Tombstone, item.guest_host, item.instance) if item.guest_host else None
    if stone is None:
        return ""
    host = tx.find(Host, stone.host)
    speaks = host is not None and host.session_open
    return rule.in_use(rule.Guest(stone.host, stone.state, speaks, stone.holds))


def _hosts_of(tx: Tx, pool: str) -> list[str]:
    """The hosts that could reach a pool now, by name; simulated ones only among themselves."""
    found = nouns.find(tx, Kind.POOL, pool)
    if found is None:
        return []
    rows = tx.rows(OF_CLUSTERS, (Host,))
    if found.scope is PoolScope.HOST:
        rows = [row for row in rows if row[0] == found.host]
    elif found.scope is PoolScope.CLUSTER:
        rows = [row for row in rows if row[1] == found.cluster]
    else:
        pods = {name for name, pod in nouns.all_of(tx, Kind.POD).items() if pod.zone == found.zone}
        clusters = nouns.all_of(tx, Kind.CLUSTER).items()
        near = {name for name, cluster in clusters if cluster.pod in pods}
        rows = [row for row in rows if row[1] in near]
    real = any(driver != SIMULATED for _, _, driver, _ in rows)
    return [name for name, _, driver, well in rows if well and not (real and driver == SIMULATED)]

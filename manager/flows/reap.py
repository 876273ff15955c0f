"""Tombstones: what is deleted stays deleted on every host, also on one that was away.

The agent never reaps by itself. After its hello and on any doomed sighting the managers cast a
terminate for each open tombstone, each at the next generation; only the agent's answer closes one.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection

import sqlalchemy as sa

from common.conf import Settings
from common.messages import CommandKind, Outcome, Result, TrailEntry
from common.states import TombstoneState
from manager.flows import addresses, cleanup, commands, freeze, holdings, made
from manager.rules import quarantine
from manager.store.commands import CommandRow
from manager.store.engine import Tx
from manager.store.events import Meta
from manager.store.hosts import Host
from manager.store.instances import Instance
from manager.store.rollbacks import Rollback
from manager.store.statements import Query, ask
from manager.store.tombstones import Tombstone

T = Tombstone.__table__.c
BASE_BACK_OFF_S = 1.0
FORGOTTEN = "fenced:"  # and the name of a host without a record
IS_OPEN = T.state == TombstoneState.OPEN
OPEN_OF_HOST = Query(Tombstone, T.host == ask("host"), IS_OPEN)
IS_DUE = sa.and_(IS_OPEN, T.issue_at <= ask("now"))
DUE = Query(Tombstone, IS_DUE, order=[T.issue_at], limit=50)


def at(tx: Tx, host: str, instance: str) -> Tombstone | None:
    """The tombstone of this host and instance, open or closed."""
    return tx.find(Tombstone, host, instance)


def of(tx: Tx, instance: str) -> list[Tombstone]:
    """The tombstones of an instance, on all hosts."""
    return tx.ask(holdings.OF_INSTANCE, instance=instance)


def bury(
    tx: Tx,
    vm: Instance,
    host: str,
    *,
    state: TombstoneState,
    reason: str,
    pair: tuple[int, int],
    up_to: int | None = None,
) -> Tombstone:
    """Leave a tombstone for a VM on a host, or bring the one that is there up to date.

    `up_to`: what was used at a later generation than this is not meant.
    """
    old = at(tx, host, vm.uuid)
    holds = quarantine.held(state, fenced=runs_nothing(tx, host))
    if old is not None and old.state is state:
        holds = old.holds  # what an operator has released stays released
    known = old.made if old is not None else ()
    fields = {
        "generation": vm.generation,
        "up_to": up_to,
        "made": (*known, *[m for m in made.on(vm, host) if m not in known]),
        "state": state,
        "reason": reason,
        "holds": holds,
        "closed_at": tx.now if state is TombstoneState.CLOSED else None,
        "closed_session": pair[0],
        "closed_seq": pair[1],
        # At once if its agent is there, as that of a host which an operator has set down may be.
        "issue_at": tx.now if state is TombstoneState.OPEN else None,
    }
    if old is not None:
        fields["generation"] = max(old.generation, vm.generation)
        if old.state is not state:
            fields |= {"tries": 0, "answer": ""}
        return tx.swap(old, **fields)
    stone = Tombstone(
        uuid=tx.new_id(),
        name=vm.name,
        instance=vm.uuid,
        host=host,
        mac=vm.mac,
        address=vm.address,
        nics=vm.nics,
        created_at=tx.now,
        **fields,  # type: ignore[arg-type]
    )
    tx.insert(stone)
    if state is TombstoneState.OPEN:
        tx.event("tombstone.open", vm.uuid, "manager", f"{vm.name} on {host}: {reason}")
    return stone


def issue(tx: Tx, cfg: Settings, stone: Tombstone, why: str) -> None:
    """Cast a terminate for an open tombstone, unless one is on its way already."""
    if stone.state is not TombstoneState.OPEN:
        return
    kind = CommandKind.TERMINATE_INSTANCE
    if commands.in_flight(tx, stone.instance, stone.host, kind) is not None:
        return
    if freeze.why(tx):
        tx.swap(stone, issue_at=None)  # due again at its end
        return
    generation = commands.next_generation(tx, stone.instance)
    tx.swap(stone, generation=generation, issue_at=None)
    commands.issue(
        tx,
        cfg,
        kind=kind,
        instance=stone.instance,
        host=stone.host,
        generation=generation,
        job=None,
        trail=(
            TrailEntry("manager", stone.reason, stone.created_at),
            TrailEntry("manager", why, tx.now),
        ),
        spec=made.spec(stone.instance, stone.made, stone.up_to),
        timeout_s=made.timeout_s(cfg, stone.made),
    )
    tx.event("tombstone.reap", stone.instance, "manager", f"{stone.name} on {stone.host}: {why}")


def issue_for_host(tx: Tx, cfg: Settings, host: str, why: str) -> list[Tombstone]:
    """A terminate for each open tombstone of a host; returns them."""
    stones = tx.ask(OPEN_OF_HOST, host=host)
    for stone in stones:
        issue(tx, cfg, stone, why)
    return stones


def retry_due(tx: Tx, cfg: Settings) -> int:
    """Issue again what failed and whose back-off is over; returns how many."""
    stones = tx.due(DUE, now=tx.now)
    for stone in stones:
        host = tx.find(Host, stone.host)
        if host is not None and host.session_open:
            after = f", after: {stone.answer}" if stone.answer else ""
            issue(tx, cfg, stone, f"try {stone.tries + 1}{after}")
        else:
            tx.swap(stone, issue_at=None)  # its next hello issues it
    return len(stones)


def answered(tx: Tx, command: CommandRow, result: Result, pair: tuple[int, int]) -> None:
    """An agent's answer to a terminate: closes the tombstone, or sets when it is issued again."""
    stone = at(tx, command.host, command.instance)
    if stone is None or stone.state is not TombstoneState.OPEN:
        return
    if result.outcome is Outcome.SUCCEEDED:
        left = {left.files.bearer for left in result.left}
        close(tx, stone, pair, "destroyed, or absent with the floor raised", left)
        return
    wait_s = quarantine.back_off_s(stone.tries, BASE_BACK_OFF_S)
    generation = stone.generation
    if result.floor is not None:
        # The agent has heard of a newer command than we remember: go above it, without waiting.
        generation, wait_s = max(generation, result.floor), 0.0
        commands.raise_generation(tx, stone.instance, generation)
    tx.swap(
        stone,
        generation=generation,
        tries=stone.tries + 1,
        answer=f"{result.error_code}: {result.error}",
        issue_at=tx.now + dt.timedelta(seconds=wait_s),
    )


def close(
    tx: Tx,
    stone: Tombstone,
    pair: tuple[int, int],
    answer: str,
    left: Collection[str] = (),
) -> None:
    """The guest is proven gone: end the quarantine of what no other tombstone holds.

    `left`: the bearers whose files could not be removed.
    """
    tx.swap(
        stone,
        state=TombstoneState.CLOSED,
        closed_at=tx.now,
        closed_session=pair[0],
        closed_seq=pair[1],
        answer=answer,
        holds=(),
        issue_at=None,
    )
    tx.event("tombstone.closed", stone.instance, f"host {stone.host}", f"{stone.name}: {answer}")
    vm = tx.find(Instance, stone.instance)
    if vm is not None and not vm.live and vm.terminated_at is None:
        tx.swap(vm, terminated_at=tx.now)
    cleanup.answered_for(tx, stone, left)
    holdings.release(tx, stone.instance)


def reopen(tx: Tx, cfg: Settings, stone: Tombstone, host: str) -> None:
    """A guest that was answered for as gone is there: quarantine again, and terminate again."""
    stone = tx.swap(
        stone,
        state=TombstoneState.OPEN,
        closed_at=None,
        holds=quarantine.held(TombstoneState.OPEN, fenced=runs_nothing(tx, host)),
        reason=f"seen again on {host} after it was answered for as gone",
    )
    tx.event("tombstone.reopened", stone.instance, f"host {host}", f"{stone.name}: {stone.reason}")
    addresses.hold_again(tx, stone.instance, stone.mac, stone.nics, host)
    issue(tx, cfg, stone, "seen again")


def is_fenced(tx: Tx, name: str) -> bool:
    """An operator vouches that nothing runs on this host, and no agent has spoken there since.

    Fencing ends the session; whoever says hello after it is alive, and so may be its guests.
    """
    host = tx.find(Host, name)
    if host is None or not host.fenced or host.session_open or host.clash:
        return False
    return tx.find(Rollback, name) is None  # that one speaks, and is given no session


def runs_nothing(tx: Tx, name: str) -> bool:
    """As `is_fenced`, and it had been silent for so long that its agent would have spoken.

    What identities hang on: a host that lives says so within an interval, and nobody is in a hurry.
    """
    host = tx.find(Host, name)
    return host is not None and host.fence_due is None and is_fenced(tx, name)


def is_or_was_fenced(tx: Tx, name: str) -> bool:
    """As `is_fenced`, and true of a host that was when its record was deleted, until it speaks.

    Its VMs may run elsewhere; of what they hold there nothing more is given back.
    """
    if tx.find(Host, name) is not None:
        return is_fenced(tx, name)
    forgotten = tx.find(Meta, f"{FORGOTTEN}{name}") is not None
    return forgotten and tx.find(Rollback, name) is None


def forget_host(tx: Tx, name: str) -> None:
    """Its record is about to go; that it is fenced is kept."""
    if is_fenced(tx, name):
        tx.insert_if_new(Meta(key=f"{FORGOTTEN}{name}", value=tx.now.isoformat()))


def remember_host(tx: Tx, name: str) -> None:
    """It speaks again."""
    kept = tx.find(Meta, f"{FORGOTTEN}{name}")
    if kept is not None:
        tx.delete(kept)

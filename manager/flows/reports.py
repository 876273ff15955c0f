"""Reports: a heartbeat is heard, then applied; answers of agents end commands.

What is heard always counts: receipts, results and the sign of life. The inventory counts only
within the host's open session, and only if it is newer than what is held.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import sqlalchemy as sa

from common.conf import Settings
from common.errors import WrongFleet
from common.messages import (
    Answers,
    CommandKind,
    Heartbeat,
    Outcome,
    Receipt,
    Refusal,
    Result,
    VoidAnswer,
    VoidOutcome,
)
from common.states import CommandEvent, CommandState
from manager.flows import (
    attaching,
    canary,
    cancel,
    commands,
    delete,
    inventory,
    outcome,
    reap,
    restore,
    shared_files,
    shelve,
)
from manager.flows.hello import heard_from, heard_lately
from manager.rules.liveness import LATE
from manager.store.commands import CommandRow, Void
from manager.store.engine import Tx
from manager.store.events import DeadLetter, Event
from manager.store.hosts import Host
from manager.store.instances import Instance
from manager.store.jobs import Job
from manager.store.sightings import Sighting
from manager.store.statements import Joined, Removal, ask, ask_any
from manager.store.tombstones import Tombstone

_EVENTS = {
    Outcome.SUCCEEDED: CommandEvent.SUCCEED,
    Outcome.FAILED: CommandEvent.FAIL,
    Outcome.NOT_RUN: CommandEvent.NOT_RUN,
}
BODY_KEPT = 4000
OLD_LETTERS = Removal(DeadLetter, DeadLetter.__table__.c.at < ask("old"))
C, T, S = (kind.__table__ for kind in (CommandRow, Tombstone, Sighting))
# What answers are about, in one look.
ANSWERED = Joined(
    (CommandRow, Job, Instance, Tombstone, Sighting),
    C.outerjoin(Job.__table__, Job.__table__.c.uuid == C.c.job)
    .outerjoin(Instance.__table__, Instance.__table__.c.uuid == C.c.instance)
    .outerjoin(T, sa.and_(T.c.host == C.c.host, T.c.instance == C.c.instance))
    .outerjoin(S, sa.and_(S.c.host == C.c.host, S.c.instance == C.c.instance)),
    C.c.id.in_(ask_any("ids")),
)


def heartbeat(tx: Tx, cfg: Settings, message: Heartbeat) -> None:
    """One heartbeat of one host."""
    host = _heard(tx, cfg, message)
    if host is None:
        return
    _confirm(tx, host.name, _answers(tx, cfg, host, message))
    host = tx.put(
        tx.get(Host, host.name),
        driver_healthy=message.driver.healthy,
        driver_message=message.driver.message,
        interval_s=_judgeable(cfg, message.interval_s, host.interval_s),
        clock_skew_s=(message.sent_at - tx.now).total_seconds(),
        dropped_casts=message.dropped_casts,
    )
    if not _in_session(host, message.session, message.agent_run):
        if not host.clash:
            tx.cast(host.name, "hello_wanted", session=message.session)
        return
    if message.capacity is not None and message.seq > host.seq:
        host = tx.put(
            host,
            vcpus_total=message.capacity.vcpus_total,
            memory_mib_total=message.capacity.memory_mib_total,
            vcpus_used=message.capacity.vcpus_used,
            memory_mib_used=message.capacity.memory_mib_used,
        )
    if message.inventory is None:
        tx.put(host, seq=max(host.seq, message.seq))
        return
    agreed = inventory.take(tx, cfg, host, message.inventory, (message.session or 0, message.seq))
    partial = not message.inventory.complete
    host = tx.put(host, seq=max(host.seq, message.seq), inventory_partial=partial)
    if agreed:
        if host.disagreed_since is not None:
            tx.put(host, disagreed_since=None)
    elif not partial:
        _disagreed(tx, host)


def _disagreed(tx: Tx, host: Host) -> None:
    """Our view of a host is not its own: have it tell everything.

    While it carries out commands the two differ for a moment, again and again; that is looked at
    only once it has lasted.
    """
    since = host.disagreed_since or tx.now
    recent = (tx.now - since).total_seconds() <= LATE * host.interval_s
    if recent and commands.under_way(tx, host.name):
        tx.put(host, disagreed_since=since)
    else:
        tx.put(host, disagreed_since=None)
        tx.cast(host.name, "report_inventory")


def answers_all(tx: Tx, cfg: Settings, messages: Sequence[Answers]) -> None:
    """What agents have told in a moment: looked up, written and confirmed together."""
    for name in sorted({message.host for message in messages}):
        tx.lock(Host, name)  # in one order, whoever else holds some of them
    told: list[Receipt | Result] = []
    for message in messages:
        told += [*message.receipts, *message.results]
    _look_up(tx, told)
    taken: dict[str, list[str]] = {}
    for message in messages:
        taken.setdefault(message.host, []).extend(_told_between_heartbeats(tx, cfg, message))
    for host, ids in taken.items():
        _confirm(tx, host, ids)


def answers(tx: Tx, cfg: Settings, message: Answers) -> None:
    """What an agent tells between its heartbeats."""
    _confirm(tx, message.host, _told_between_heartbeats(tx, cfg, message))


def _told_between_heartbeats(tx: Tx, cfg: Settings, message: Answers) -> list[str]:
    """The ids of what was taken and may be forgotten by its agent."""
    host = _heard(tx, cfg, message)
    # Also of a host that the database has never heard of, or not any more.
    restore.floors(tx, message.host, message.floors)
    taken: list[str] = []
    if host is not None:
        taken = _answers(tx, cfg, host, message)
        if not host.clash and not _in_session(host, message.session, message.agent_run):
            tx.cast(host.name, "hello_wanted", session=message.session)
    return taken


def _confirm(tx: Tx, host: str, ids: list[str]) -> None:
    if ids:
        tx.cast(host, "confirm", ids=ids)


def _judgeable(cfg: Settings, told_s: float, known_s: float) -> float:
    """The interval that a host announces, unless its silence could never be noticed by it."""
    return told_s if cfg.manager.service_down_time > LATE * told_s else known_s


def _heard(tx: Tx, cfg: Settings, message: Heartbeat | Answers) -> Host | None:
    fleet, name, run = message.fleet, message.host, message.agent_run
    if fleet != cfg.default.fleet_id:
        raise WrongFleet(
            f"a report of {name} belongs to fleet {fleet}, not {cfg.default.fleet_id}",
            "give each fleet a broker or virtual host of its own",
        )
    if isinstance(message, Answers) and not message.results:
        known = tx.find(Host, name)
        if known is not None and heard_lately(tx, known, run):
            return known
    # Held: what a result has seen and what a heartbeat has seen are put in order by it.
    host = tx.lock(Host, name)
    if host is None:
        tx.cast(name, "hello_wanted", session=message.session)
        return None
    if isinstance(message, Answers) and heard_lately(tx, host, run):
        return host
    return heard_from(tx, cfg, host, run)


def _in_session(host: Host, session: int | None, run: str) -> bool:
    return host.session_open and session == host.session and run == host.agent_run


def _answers(tx: Tx, cfg: Settings, host: Host, message: Heartbeat | Answers) -> list[str]:
    _look_up(tx, (*message.receipts, *message.results))
    for receipt in message.receipts:
        _receipt(tx, host, receipt)
    for result in message.results:
        take_result(tx, cfg, host, result)
    for answer in message.voids:
        _void_answer(tx, cfg, host, answer)
    for refusal in message.refusals:
        refused(tx, host.name, refusal)
    done = [a.id for a in message.results]
    done += [a.id for a in message.voids]
    return done + [a.id for a in message.refusals]


def _look_up(tx: Tx, told: Sequence[Receipt | Result]) -> None:
    """Read at once what each of the answers is going to ask for."""
    ids = {r.command for r in told if not tx.has_looked_for(CommandRow, r.command)}
    if not ids:
        return
    found = set()
    for row, _job, _vm, stone, _seen in tx.together(ANSWERED, ids=sorted(ids)):
        found.add(row.id)
        if stone is None:
            tx.absent(Tombstone, row.host, row.instance)
    for unknown in ids - found:
        tx.absent(CommandRow, unknown)


def _receipt(tx: Tx, host: Host, receipt: Receipt) -> None:
    row = tx.find(CommandRow, receipt.command)
    if row is not None and row.host == host.name:
        commands.receipt(tx, receipt)
    else:
        _unknown(tx, host, "receipts", receipt.command, receipt.step)


def _unknown(tx: Tx, host: Host, what: str, command: str, body: str) -> None:
    """Kept once a host and command, however often it is repeated."""
    _dead_letter(
        tx,
        f"host {host.name}",
        "UNKNOWN_COMMAND",
        f"{what} for command {command}, which was not given to {host.name}",
        body,
        key=f"{host.name}/{command}/{what}",
    )


def take_result(tx: Tx, cfg: Settings, host: Host, result: Result) -> None:
    """The end of a command; a repeat changes nothing and is confirmed again."""
    if result.kind == CommandKind.NOOP:
        canary.answered(tx, tx.get(Host, host.name), result)
        return
    row = tx.find(CommandRow, result.command)
    if row is None or row.host != host.name:
        _unknown(tx, host, "a result", result.command, result.error or "")
        return
    pair = (host.session, host.seq)
    if result.look is not None:
        pair = (result.look.session, result.look.seq)
        if row.state in commands.OPEN:
            inventory.take_look(tx, cfg, host, row.instance, result.look)
    if row.state in commands.OPEN:
        inventory.ahead(tx, host.name, row.instance, max(result.generation, result.floor or 0))
    row = tx.get(CommandRow, row.id)
    code = result.error_code if result.outcome is not Outcome.SUCCEEDED else None
    moved, changed = commands.move(
        tx, row, _EVENTS[result.outcome], error_code=code, error=result.error if code else None
    )
    if not changed:
        if row.state is CommandState.UNKNOWN:
            _tell_late(tx, host, row, result)
        return
    if result.attached:
        attaching.record(tx, moved, result)
    if row.kind == "terminate_instance":
        if result.left:  # first: its end gives back what they do not stand for
            shared_files.left_behind(tx, cfg, moved, result)
        reap.answered(tx, moved, result, pair)
        delete.command_ended(tx, cfg, moved, result, pair)
        shelve.answered(tx, moved)
    elif row.kind == CommandKind.CLEAN_UP:
        outcome.command_ended(tx, cfg, moved, result)
    elif moved.job is not None:
        job = tx.get(Job, moved.job)
        if row.asked_at is not None or job.cancelling:
            _settle_void(tx, row)
        outcome.command_ended(tx, cfg, moved, result)


def _settle_void(tx: Tx, row: CommandRow) -> None:
    """Nothing is owed any more for a command that has ended by itself."""
    owed = tx.find(Void, row.host, row.instance)
    if owed is not None and owed.command == row.id:
        tx.delete(owed)


def _tell_late(tx: Tx, host: Host, row: CommandRow, result: Result) -> None:
    """Once, however often the agent repeats itself until it is confirmed."""
    kind, e = "command.late_result", Event.__table__.c
    told = tx.all(Event, e.object == row.instance, e.kind == kind)
    if not any(event.data.get("command") == row.id for event in told):
        text = f"{row.kind} had been given up and {result.outcome} after all"
        tx.event(kind, row.instance, f"host {host.name}", text, command=row.id)


def _void_answer(tx: Tx, cfg: Settings, host: Host, answer: VoidAnswer) -> None:
    """The agent's word on a void. NOT_RUN ends the command; DONE brings its result by itself."""
    owed = tx.find(Void, host.name, answer.instance)
    if owed is None or answer.generation < owed.generation:
        return
    row = tx.lock(CommandRow, owed.command)
    if answer.answer is VoidOutcome.RUNNING:
        # Asked again by the watchdog, which also knows when to stop.
        if row is not None:
            cancel.too_late(tx, row, owed)
        return
    tx.delete(owed)
    if row is None or answer.answer is not VoidOutcome.NOT_RUN:
        return
    moved, changed = commands.move(
        tx,
        row,
        CommandEvent.NOT_RUN,
        error_code="VOIDED",
        error=f"{host.name} has confirmed that it did not run and never will"
        + ("" if row.asked_at is None else f"; it was not carried out within {row.timeout_s:g} s"),
    )
    if changed:
        outcome.command_ended(tx, cfg, moved, None)


def refused(tx: Tx, host: str, refusal: Refusal) -> None:
    """A cast that an agent could not take at all."""
    _dead_letter(tx, f"host {host}", refusal.code, refusal.message, refusal.body, key=refusal.id)


def _dead_letter(
    tx: Tx, source: str, code: str, reason: str, body: str, key: str | None = None
) -> None:
    tx.insert_if_new(
        DeadLetter(
            id=key or tx.new_id(),
            at=tx.now,
            source=source,
            sender=None,
            code=code,
            reason=reason,
            body=body[:BODY_KEPT],
        )
    )


def dead_letter(tx: Tx, key: str, sender: str | None, code: str, reason: str, body: bytes) -> None:
    """A report that no manager could read, kept for `muster doctor`."""
    tx.insert(
        DeadLetter(
            id=tx.new_id(),
            at=tx.now,
            source=key,
            sender=sender,
            code=code,
            reason=reason,
            body=body[:BODY_KEPT].decode("utf-8", "replace"),
        )
    )


def prune_dead_letters(tx: Tx, keep_s: float) -> int:
    """Forget dead letters older than `keep_s` seconds."""
    return tx.remove(OLD_LETTERS, old=tx.now - dt.timedelta(seconds=keep_s))

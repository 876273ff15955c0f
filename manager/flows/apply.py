"""Making nouns what operators say: one that is created or set, or all of an apply file at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from common.errors import InUse, NameTaken
from common.fields import checked, defaults, plain, refused, shown
from common.model import NOUNS, Kind, ObjectName, Place, Problem
from manager.flows import model
from manager.flows.model import Key
from manager.rules import model as rules
from manager.store.addresses import Address
from manager.store.engine import Tx
from manager.store.events import Event
from manager.store.hosts import Host
from manager.store.model import Object
from manager.store.statements import Query, ask, ask_any

O, E = Object.__table__.c, Event.__table__.c  # noqa: E741 - the tables' columns
NAMED = Query(Object, O.kind == ask("kind"), O.name.in_(ask_any("names")))
OF_KINDS = Query(Object, O.kind.in_(ask_any("kinds")))
HOSTS = Query(Host, Host.__table__.c.name.in_(ask_any("names")))
LAST = Query(Event, E.object == ask("object"), E.kind == ask("kind"), order=[E.at.desc()], limit=1)

GIVEN = sa.select(Address.__table__.c.ip).where(Address.__table__.c.network == ask("network"))


class Who(msgspec.Struct, frozen=True):
    """Who asks for a change, and why. `request` tells a repetition from another request."""

    operator: str
    reason: str | None = None
    request: str | None = None


class Draft(msgspec.Struct):
    """What one noun is to be. `where` is its place in a file, for the problems with its fields."""

    kind: Kind
    name: str
    given: Mapping[str, Any]
    where: str = ""
    row: Object | None = None
    noun: Any = None

    @property
    def key(self) -> Key:
        return self.kind, self.name


class Made(msgspec.Struct, frozen=True):
    """What became of a draft: `action` is create, change or none."""

    kind: Kind
    name: str
    action: str
    changes: tuple[dict[str, Any], ...] = ()


def create(tx: Tx, kind: Kind, name: str, given: Mapping[str, Any], who: Who) -> Made:
    """A new noun; BadRequest with all that is wrong, or NameTaken."""
    draft = Draft(kind, name, given)
    _take(tx, [draft])
    if draft.row is not None:
        if _done_before(tx, draft.key, "model.create", who):
            return Made(kind, name, "create")
        raise NameTaken(
            f"there is a {kind.words} {name} already",
            f"to change it: muster {kind.noun} set {name}",
        )
    return _settle(tx, [draft], who)[0]


def change(tx: Tx, kind: Kind, name: str, given: Mapping[str, Any], who: Who) -> Made:
    """Other values for some fields; a host that stands nowhere yet is given its place."""
    draft = Draft(kind, name, given)
    _take(tx, [draft])
    if draft.row is None and kind is not Kind.HOST:
        model.named(tx, kind, name)
    return _settle(tx, [draft], who)[0]


def apply(tx: Tx, objects: Mapping[str, Any], who: Who, *, dry_run: bool = False) -> list[Made]:
    """All that a file holds, or nothing of it: `objects` has the nouns under their plurals.

    What the file does not mention, nouns and fields, is left as it is.
    """
    drafts, problems = _read(objects)
    _take(tx, drafts)
    return _settle(tx, drafts, who, problems, dry_run=dry_run)


def delete(tx: Tx, kind: Kind, name: str, who: Who) -> None:
    """Remove a noun that nothing refers to and no VM uses, else InUse."""
    row = tx.lock(Object, kind, name)
    if row is None:
        if _done_before(tx, (kind, name), "model.delete", who):
            return
        raise model.missing(kind, name)
    by = [*_referrers(tx, (kind, name)), *model.vms_using(tx, kind, name)]
    if by:
        raise InUse(
            f"{kind.words} {name} is used by {rules.some(by)}",
            "delete those first, or let them use another",
            by=by[:100],
        )
    tx.delete(row)
    _tell(tx, "model.delete", (kind, name), who, "deleted")
    if kind is Kind.HOST:
        _place(tx, {name: None})


def _read(objects: Mapping[str, Any]) -> tuple[list[Draft], list[Problem]]:
    """The drafts of a file in the order in which they may need another."""
    drafts: dict[Key, Draft] = {}
    problems: list[Problem] = []
    plurals = [kind.plural for kind in Kind]
    for plural in objects:
        if plural not in plurals:
            problems.append((str(plural), "there is no such noun", f"one of {', '.join(plurals)}"))
    for kind in Kind:
        given = objects.get(kind.plural)
        if given is None:
            continue  # also a heading with nothing below it
        if not isinstance(given, list | tuple):
            problems.append((kind.plural, f"{shown(given)} is no list", "a list of objects"))
            continue
        for n, each in enumerate(given):
            where = f"{kind.plural}[{n}]"
            if not isinstance(each, Mapping) or "name" not in each:
                problems.append((where, "has no name", "fields, with a name among them"))
                continue
            fields = dict(each)
            draft = Draft(kind, fields.pop("name"), fields, f"{where}.")
            found = list(_bad_name(draft))
            if not found and draft.key in drafts:
                found = [("name", f"{draft.name} is in the file twice", "once each")]
            problems += [(f"{where}.{f}", m, r) for f, m, r in found]
            if not found:
                drafts[draft.key] = draft
    return list(drafts.values()), problems


def _bad_name(draft: Draft) -> list[Problem]:
    if _is_name(draft.name):
        return list(rules.bad_name(draft.kind, draft.name))
    words = "letters, digits, '.', '_' and '-', at most 63, the first and last no sign"
    return [("name", f"{shown(draft.name)} is no name", words)]


def _is_name(value: Any) -> bool:
    try:
        msgspec.convert(value, type=ObjectName)
    except msgspec.ValidationError:
        return False
    return True


def _take(tx: Tx, drafts: Sequence[Draft]) -> None:
    """Hold what there is of the drafts; nobody else does meanwhile."""
    for kind in Kind:
        mine = [draft for draft in drafts if draft.kind is kind and not _bad_name(draft)]
        names = sorted(draft.name for draft in mine)
        rows = tx.steady(NAMED, alone=True, kind=kind, names=names) if names else []
        found = {row.name: row for row in rows}
        for draft in mine:
            draft.row = found.get(draft.name)


def _settle(
    tx: Tx,
    drafts: Sequence[Draft],
    who: Who,
    problems: Sequence[Problem] = (),
    *,
    dry_run: bool = False,
) -> list[Made]:
    """Check the drafts together, and write them down if nothing is wrong with any."""
    found = [*problems, *_problems(tx, drafts)]
    if found:
        raise refused(found)
    made = [_made(draft) for draft in drafts]
    if not dry_run:
        for draft, each in zip(drafts, made, strict=True):
            _write(tx, draft, each, who)
        _place(tx, {d.name: d.noun for d in drafts if d.kind is Kind.HOST})
    return made


def _problems(tx: Tx, drafts: Sequence[Draft]) -> list[Problem]:
    """All that is wrong with all of them."""
    known = {draft.key for draft in drafts} | _held(tx, drafts)
    found: list[Problem] = []
    for draft in drafts:
        stored = draft.row.spec if draft.row is not None else {}
        draft.noun, problems = checked(NOUNS[draft.kind], {**stored, **draft.given})
        unread = {field.partition("[")[0] for field, _, _ in problems}
        readable = {f: v for f, v in draft.given.items() if f not in unread}
        problems += rules.unknown(
            NOUNS[draft.kind], readable, lambda kind, name: (kind, name) in known
        )
        if not draft.where:
            problems = [*_bad_name(draft), *problems]
        if draft.row is not None and draft.noun is not None:
            problems += _fixed(tx, draft, draft.row)
        found += [(f"{draft.where}{field}", m, r) for field, m, r in problems]
    return found + _clashes(tx, drafts)


def _held(tx: Tx, drafts: Sequence[Draft]) -> set[Key]:
    """What the drafts name and is there; it stays until they are written.

    The zones of networks are held alone: what two networks are beside each other is seen only by
    the later one. Alone at once, since two who share a hold would wait for each other.
    """
    alone = sorted({zone for draft in drafts if (zone := _zone_of(draft)) is not None})
    named = {(Kind.ZONE, zone) for zone in alone}
    if alone:
        tx.steady(NAMED, alone=True, kind=Kind.ZONE, names=alone)
    for draft in drafts:
        for field, kind in NOUNS[draft.kind].refs.items():
            value: Any = draft.given.get(field)
            names = value if isinstance(value, list | tuple) else (value,)
            named |= {(kind, name) for name in names if _is_name(name)}
    others = named - {draft.key for draft in drafts}
    zones = {key for key in others if key[0] is Kind.ZONE and key[1] in alone}
    there = {key for key in zones if tx.known(Object, *key) is not None}
    return there | set(model.hold_all(tx, others - zones))


def _zone_of(draft: Draft) -> str | None:
    """The zone of a network, as far as it was said."""
    if draft.kind is not Kind.NETWORK:
        return None
    stored = draft.row.spec["zone"] if draft.row is not None else None
    zone = draft.given.get("zone", stored)
    return zone if _is_name(zone) else None


def _clashes(tx: Tx, drafts: Sequence[Draft]) -> list[Problem]:
    """What networks can not be beside the others of their zones, which are held meanwhile."""
    networks = {d.name: d for d in drafts if d.kind is Kind.NETWORK and d.noun is not None}
    if not networks:
        return []
    zones = {d.name: d.noun for d in drafts if d.kind is Kind.ZONE}
    for name in {d.noun.zone for d in networks.values()} - zones.keys():
        zones[name] = model.find(tx, Kind.ZONE, name)
    there = {n: v for n, v in model.all_of(tx, Kind.NETWORK).items() if n not in networks}
    found: list[Problem] = []
    for name, draft in networks.items():
        zone = zones[draft.noun.zone]
        others = {n: v for n, v in there.items() if v.zone == draft.noun.zone}
        if zone is not None:
            clashes = rules.clashes(draft.noun, zone, others)
            found += [(f"{draft.where}{field}", m, r) for field, m, r in clashes]
        there[name] = draft.noun
    return found


def _fixed(tx: Tx, draft: Draft, row: Object) -> list[Problem]:
    """Fields that can not change any more."""
    fields = rules.changed(row.spec, plain(draft.noun))
    by_vms = [f for f in fields if f in rules.FIXED_BY_VMS.get(draft.kind, ())]
    by_nouns = [f for f in fields if f in rules.FIXED_BY_NOUNS.get(draft.kind, ())]
    users = model.vms_using(tx, draft.kind, draft.name) if by_vms else []
    others = _referrers(tx, draft.key) if by_nouns else []
    words = f"{draft.kind.words} {draft.name}"
    found = [
        (field, f"can not change while {words} is used by {rules.some(names)}", "make another")
        for names, fixed in ((users, by_vms), (others, by_nouns))
        for field in fixed
        if names
    ]
    if draft.kind is Kind.NETWORK and {"cidr", "cidr6", "gateway", "gateway6"} & set(fields):
        given = {str(ip) for (ip,) in tx.rows(GIVEN, network=draft.name)}
        found += rules.lost(draft.noun, fields, given)
    return found


def _referrers(tx: Tx, key: Key) -> list[str]:
    kinds = rules.REFERRERS[key[0]]
    rows = tx.ask(OF_KINDS, kinds=list(kinds)) if kinds else []
    return rules.referrers(key, {(row.kind, row.name): model.noun(row) for row in rows})


def _made(draft: Draft) -> Made:
    after: dict[str, Any] = plain(draft.noun)
    before = defaults(NOUNS[draft.kind]) if draft.row is None else draft.row.spec
    changes = tuple(
        {
            "field": field,
            "old": None if draft.row is None else before.get(field),
            "new": after[field],
        }
        for field in rules.changed(plain(before), after)
    )
    if draft.row is None:
        return Made(draft.kind, draft.name, "create", changes)
    return Made(draft.kind, draft.name, "change" if changes else "none", changes)


def _write(tx: Tx, draft: Draft, made: Made, who: Who) -> None:
    spec: dict[str, Any] = plain(draft.noun)
    if draft.row is None:
        tx.insert(
            Object(
                kind=draft.kind, name=draft.name, spec=spec, created_at=tx.now, changed_at=tx.now
            )
        )
        _tell(tx, "model.create", draft.key, who, "created")
    elif made.action == "change":
        tx.swap(draft.row, spec=spec, changed_at=tx.now)
        _tell(tx, "model.set", draft.key, who, "; ".join(_said(draft.kind, made)))


def _said(kind: Kind, made: Made) -> list[str]:
    # What guests are told may hold their passwords.
    secret = kind is Kind.USER_DATA
    return [
        each["field"]
        if secret
        else f"{each['field']}: {shown(each['old'])} -> {shown(each['new'])}"
        for each in made.changes
    ]


def _place(tx: Tx, places: Mapping[str, Place | None]) -> None:
    """Keep the rows of the hosts that are known already equal to the nouns of their names."""
    for host in tx.steady(HOSTS, alone=True, names=sorted(places)) if places else ():
        place = places[host.name]
        cluster, tags = (None, ()) if place is None else (place.cluster, place.tags)
        if (host.cluster, host.tags) != (cluster, tags):
            tx.put(host, cluster=cluster, tags=tags)


def _tell(tx: Tx, event: str, key: Key, who: Who, text: str) -> None:
    kind, name = key
    why = f" ({who.reason})" if who.reason else ""
    tx.event(event, f"{kind}/{name}", who.operator, text + why, request=who.request)


def _done_before(tx: Tx, key: Key, event: str, who: Who) -> bool:
    """True when this very request has done it already: its answer was lost."""
    last = tx.ask_first(LAST, object=f"{key[0]}/{key[1]}", kind=event)
    return last is not None and who.request is not None and last.data["request"] == who.request

"""Drafts: what operators want nouns to be, read and checked together before any is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from common.fields import checked, plain, shown
from common.model import NOUNS, Kind, ObjectName, Problem
from manager.flows import model
from manager.flows.model import Key
from manager.rules import model as rules
from manager.store.addresses import Address
from manager.store.engine import Tx
from manager.store.model import Object
from manager.store.statements import Query, ask, ask_any

O, A = Object.__table__.c, Address.__table__.c  # noqa: E741 - the tables' columns
NAMED = Query(Object, O.kind == ask("kind"), O.name.in_(ask_any("names")))
OF_KINDS = Query(Object, O.kind.in_(ask_any("kinds")))
GIVEN = sa.select(A.ip).where(A.network == ask("network"))


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


def read(objects: Mapping[str, Any]) -> tuple[list[Draft], list[Problem]]:
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


def take(tx: Tx, drafts: Sequence[Draft]) -> None:
    """Hold what there is of the drafts; nobody else does meanwhile."""
    for kind in Kind:
        mine = [draft for draft in drafts if draft.kind is kind and not _bad_name(draft)]
        names = sorted(draft.name for draft in mine)
        rows = tx.steady(NAMED, alone=True, kind=kind, names=names) if names else []
        found = {row.name: row for row in rows}
        for draft in mine:
            draft.row = found.get(draft.name)


def problems_of(tx: Tx, drafts: Sequence[Draft]) -> list[Problem]:
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
    others = referrers(tx, draft.key) if by_nouns else []
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


def referrers(tx: Tx, key: Key) -> list[str]:
    """The nouns that name one, as `pod p1`."""
    kinds = rules.REFERRERS[key[0]]
    rows = tx.ask(OF_KINDS, kinds=list(kinds)) if kinds else []
    return rules.referrers(key, {(row.kind, row.name): model.noun(row) for row in rows})


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

"""Making nouns what operators say: one that is created or set, or all of an apply file at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from common.errors import InUse, NameTaken
from common.fields import defaults, plain, refused, shown
from common.model import NOUNS, Kind, Place, Problem
from manager.flows import drafts, model
from manager.flows.drafts import Draft
from manager.flows.model import Key
from manager.rules import model as rules
from manager.store.engine import Tx
from manager.store.events import Event
from manager.store.hosts import Host
from manager.store.model import Object
from manager.store.statements import Query, ask, ask_any

E = Event.__table__.c
HOSTS = Query(Host, Host.__table__.c.name.in_(ask_any("names")))
LAST = Query(Event, E.object == ask("object"), E.kind == ask("kind"), order=[E.at.desc()], limit=1)


class Who(msgspec.Struct, frozen=True):
    """Who asks for a change, and why. `request` tells a repetition from another request."""

    operator: str
    reason: str | None = None
    request: str | None = None


class Made(msgspec.Struct, frozen=True):
    """What became of a draft: `action` is create, change or none."""

    kind: Kind
    name: str
    action: str
    changes: tuple[dict[str, Any], ...] = ()


def create(tx: Tx, kind: Kind, name: str, given: Mapping[str, Any], who: Who) -> Made:
    """A new noun; BadRequest with all that is wrong, or NameTaken."""
    draft = Draft(kind, name, given)
    drafts.take(tx, [draft])
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
    drafts.take(tx, [draft])
    if draft.row is None and kind is not Kind.HOST:
        model.named(tx, kind, name)
    return _settle(tx, [draft], who)[0]


def apply(tx: Tx, objects: Mapping[str, Any], who: Who, *, dry_run: bool = False) -> list[Made]:
    """All that a file holds, or nothing of it: `objects` has the nouns under their plurals.

    What the file does not mention, nouns and fields, is left as it is.
    """
    wanted, problems = drafts.read(objects)
    drafts.take(tx, wanted)
    return _settle(tx, wanted, who, problems, dry_run=dry_run)


def delete(tx: Tx, kind: Kind, name: str, who: Who) -> None:
    """Remove a noun that nothing refers to and no VM uses, else InUse."""
    row = tx.lock(Object, kind, name)
    if row is None:
        if _done_before(tx, (kind, name), "model.delete", who):
            return
        raise model.missing(kind, name)
    by = [*drafts.referrers(tx, (kind, name)), *model.vms_using(tx, kind, name)]
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


def _settle(
    tx: Tx,
    wanted: Sequence[Draft],
    who: Who,
    problems: Sequence[Problem] = (),
    *,
    dry_run: bool = False,
) -> list[Made]:
    """Check the drafts together, and write them down if nothing is wrong with any."""
    found = [*problems, *drafts.problems_of(tx, wanted)]
    if found:
        raise refused(found)
    made = [_made(draft) for draft in wanted]
    if not dry_run:
        for draft, each in zip(wanted, made, strict=True):
            _write(tx, draft, each, who)
        _place(tx, {d.name: d.noun for d in wanted if d.kind is Kind.HOST})
    return made


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

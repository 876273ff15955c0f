"""The nouns of the model: found, and held while something that refers to them is made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from common.model import NOUNS, Kind, Noun, Project
from manager.store.engine import Tx
from manager.store.model import Object
from manager.store.statements import Query, ask, ask_any

DEFAULT_PROJECT = "default"  # unlimited while nobody has made it

Key = tuple[Kind, str]

O = Object.__table__.c  # noqa: E741 - the table's columns
OF_KIND = Query(Object, O.kind == ask("kind"))
THESE = Query(Object, O.kind.in_(ask_any("kinds")), O.name.in_(ask_any("names")))


def find(tx: Tx, kind: Kind, name: str) -> Any:
    """The noun, a struct of `NOUNS[kind]`, or None."""
    row = tx.find(Object, kind, name)
    return noun(row) if row is not None else _implied(kind, name)


def all_of(tx: Tx, kind: Kind) -> dict[str, Any]:
    """Every noun of a kind by its name, in the order of the names."""
    return {row.name: noun(row) for row in tx.ask(OF_KIND, kind=kind)}


def hold(tx: Tx, kind: Kind, name: str) -> Any:
    """As `find`, and it is neither changed nor deleted before this transaction has ended."""
    return hold_all(tx, [(kind, name)]).get((kind, name))


def hold_all(tx: Tx, wanted: Iterable[Key]) -> dict[Key, Any]:
    """Those that are there, held as by `hold`; one statement however many there are.

    Whoever makes something that names a noun holds that noun first; others may hold it as well.
    """
    keys = set(wanted)
    if not keys:
        return {}
    kinds, names = ({key[n] for key in keys} for n in (0, 1))
    rows = tx.steady(THESE, kinds=sorted(kinds), names=sorted(names))
    there = {(row.kind, row.name): noun(row) for row in rows}
    for kind, name in keys - there.keys():
        implied = _implied(kind, name)
        if implied is None:
            tx.absent(Object, kind, name)
        else:
            there[kind, name] = implied
    return {key: there[key] for key in keys if key in there}


def noun(row: Object) -> Any:
    """The struct of a stored noun."""
    return msgspec.convert(row.spec, type=NOUNS[row.kind])


def _implied(kind: Kind, name: str) -> Noun | None:
    return Project() if (kind, name) == (Kind.PROJECT, DEFAULT_PROJECT) else None

"""doc/model.md: every noun of the model with its fields, from the code that checks them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from common import fields, nouns
from common.model import NOUNS, Kind, Rule
from manager.rules.model import FIXED_BY_VMS

HEAD = """\
# The model: zones, networks, offerings and the other nouns

Generated from `common/model.py` and `common/nouns.py` by `make samples`; do not edit.

Each noun has the verbs `list`, `show`, `create`, `set` and `delete`, as in `muster zone create
north --domain example.org`. A host is made by its agent's hello; `muster host set HOST --cluster
CLUSTER` says where it stands, also before that. `muster apply FILE` makes all that a file
describes, or changes what differs, as
[zone.yaml.sample](../etc/muster/zone.yaml.sample).

- A file holds lists of objects under the headings below, each with a `name`, in any order. All of
  it is done or nothing; `--dry-run` says what would be. What the file does not mention, objects and
  fields, is left as it is. Applying it a second time changes nothing.
- Everything that is wrong is told at once, a line for each field; in a file with its place, as in
  `networks[2].cidr`.
- Names are unique within their kind. References are names; what they name must be there, or in the
  same file.
- What another noun names or a VM uses is not deleted: IN_USE says by what. Fields that VMs were
  made by, marked *fixed*, can not change while there are any; the kind of a zone not while anything
  is in it. The subnet of a network can, as long as all addresses that were given stay inside.
- The networks of a zone have subnets of their own, unless both are `isolated` and on wires of their
  own. A basic zone has one network, a shared one.
- Without any zone VMs have no addresses, and are placed on all hosts. The project `default` is
  there without being made, and has no limits until it is.
- `muster quota show [PROJECT]` shows the limits of a project beside what its VMs hold, and `muster
  quota set PROJECT` sets them.
"""


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for kind in Kind:
        about = nouns.ABOUT[kind]
        lines += [f"## {kind.plural}", "", f"{about[0].upper()}{about[1:]}.", ""]
        lines += ["| field | what it is | it may be | default |", "| --- | --- | --- | --- |"]
        lines += [f"| {' | '.join(cells)} |" for cells in _fields(kind)]
        lines.append("")
        if kind is Kind.SECURITY_GROUP:
            lines += ["Fields of a rule:", "", *_rule(), ""]
    return "\n".join(lines).rstrip() + "\n"


def _fields(kind: Kind) -> Iterator[tuple[str, ...]]:
    known = fields.defaults(NOUNS[kind])
    for name, type_ in fields.types(NOUNS[kind]).items():
        what, may_be = nouns.FIELDS[kind][name], fields.may_be(type_)
        if name in FIXED_BY_VMS.get(kind, ()):
            what += " (*fixed*)"
        if name in NOUNS[kind].refs:
            words = NOUNS[kind].refs[name].words
            may_be = f"names of {words}s" if "list" in may_be else f"the name of a {words}"
        yield f"`{name}`", what, may_be, _said(known[name]) if name in known else "must be given"


def _rule() -> Iterator[str]:
    known = fields.defaults(Rule)
    for name, type_ in fields.types(Rule).items():
        yield f"- `{name}`: {fields.may_be(type_)}; by default {_said(known[name])}"


def _said(default: Any) -> str:
    if default in (None, ()):
        return "none"
    return str(default).lower() if isinstance(default, bool) else str(default)

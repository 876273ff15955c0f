"""The mark a guest of ours carries, and what it proves.

The mark names the fleet, the instance, the generation of the last command and its *bearer*: the
hypervisor's own uuid of the guest it was written to. Clones and snapshots copy metadata, so a mark
whose bearer is another guest is a copy and proves nothing. Names prove nothing either.
Source of the rule: the decision tables, section 1.
"""

from __future__ import annotations

import uuid
from typing import Annotated

import msgspec


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """What a guest's metadata says about whose it is."""

    fleet: str
    instance: str
    generation: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    bearer: str


def new_bearer(fleet: str, instance: str, generation: int) -> str:
    """The hypervisor uuid of the guest that one start makes, the same at each try."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{fleet}/{instance}/{generation}"))


def is_ours(mark: Mark | None, *, fleet: str, hypervisor_uuid: str, template: bool = False) -> bool:
    """True only for a guest that carries this fleet's mark, written to that very guest."""
    return (
        mark is not None
        and not template
        and mark.fleet == fleet
        and mark.bearer.lower() == hypervisor_uuid.lower()
    )


def why_not_ours(
    mark: Mark | None, *, fleet: str, hypervisor_uuid: str, template: bool = False
) -> str:
    """The same judgement in words, for a refusal; empty when the guest is ours."""
    if mark is None:
        return "it carries no mark"
    if template:
        return "it is a template or snapshot"
    if mark.fleet != fleet:
        return f"its mark belongs to fleet {mark.fleet}"
    if mark.bearer.lower() != hypervisor_uuid.lower():
        return f"its mark is a copy of guest {mark.bearer}'s"
    return ""


def is_stale(generation: int, floor: int | None) -> bool:
    """True when a command of this generation may no longer run (at or below the floor)."""
    return floor is not None and generation <= floor

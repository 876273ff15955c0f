"""What a guest on a host is: doomed, managed, orphan or alien (decision tables, section 1).

One function for full reports, deltas and results alike: a path with a rule of its own is how
strangers' VMs get shut down.
"""

from __future__ import annotations

from common.messages import GuestReport
from common.ownership import is_ours
from common.states import GuestKind


def classify(guest: GuestReport, *, fleet: str, tombstone: int | None, live: bool) -> GuestKind:
    """The first of the four that fits.

    `tombstone`: the generation of this host's open tombstone for the mark's instance, if any;
    `live`: the instance has a live record.
    """
    if not is_ours(
        guest.mark,
        fleet=fleet,
        hypervisor_uuid=guest.hypervisor_uuid,
        template=guest.template,
    ):
        return GuestKind.ALIEN
    mark = guest.mark
    if tombstone is not None and mark is not None and tombstone >= mark.generation:
        return GuestKind.DOOMED
    return GuestKind.MANAGED if live else GuestKind.ORPHAN


def reopens(
    mark_generation: int, *, tombstone: int, closed: tuple[int, int], seen: tuple[int, int]
) -> bool:
    """True when a sighting proves that a closed tombstone was closed too early.

    Pairs are (session, seq): only a look that is newer than the answer that closed it counts.
    """
    return mark_generation <= tombstone and seen > closed

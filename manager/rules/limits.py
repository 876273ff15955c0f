"""What a project may have (decision tables, section 8, step 2)."""

from __future__ import annotations

from collections.abc import Mapping

from common.model import Project

COUNTED = ("instances", "vcpus", "memory_mib", "volumes", "storage_gib", "addresses")


def over(limits: Project, used: Mapping[str, int], wanted: Mapping[str, int]) -> list[str]:
    """A sentence for each limit that would be broken.

    What is over its limit already (it was lowered) breaks nothing that does not add to it.
    """
    found = []
    for name in COUNTED:
        limit, has, more = getattr(limits, name), used.get(name, 0), wanted.get(name, 0)
        if limit is not None and more > 0 and has + more > limit:
            found.append(f"{name}: {has} of {limit} are in use, {more} more wanted")
    return found

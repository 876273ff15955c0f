"""How large a VM becomes: its offering, what was asked for and what its template needs.

Decision tables, section 8, step 1. Every problem is found at once, each with its field.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.model import Offering, Problem, Template, TemplateFormat


@dataclass(frozen=True)
class Size:
    """What a VM gets; `root_gib` None: it has no root disk of its own."""

    vcpus: int
    memory_mib: int
    root_gib: int | None


def size(
    offering: Offering | None,
    vcpus: int | None = None,
    memory_mib: int | None = None,
    root_gib: int | None = None,
    template: Template | None = None,
) -> tuple[Size | None, list[Problem]]:
    """The size that a request comes to (None when there are problems), and every problem."""
    known = offering or Offering()
    problems: list[Problem] = []
    cpus = _part("vcpus", vcpus, known.vcpus, (known.vcpus_min, known.vcpus_max), problems)
    bounds = (known.memory_mib_min, known.memory_mib_max)
    memory = _part("memory_mib", memory_mib, known.memory_mib, bounds, problems)
    if template is not None and memory is not None and memory < template.min_memory_mib:
        least = template.min_memory_mib
        problems.append(
            (
                "memory_mib" if known.memory_mib is None else "offering",
                f"{memory} MiB of memory are too little for the template",
                f"at least {least} MiB",
            )
        )
    root = _root(root_gib, known, template, problems)
    if problems or cpus is None or memory is None:
        return None, problems
    return Size(cpus, memory, root), []


def _part(
    field: str,
    asked: int | None,
    fixed: int | None,
    bounds: tuple[int, int],
    problems: list[Problem],
) -> int | None:
    """The fixed part of an offering, or what was asked for within the bounds of a custom one."""
    if fixed is not None:
        if asked is not None:
            problems.append((field, f"the offering fixes it at {fixed}", "leave it out"))
        return fixed
    least, most = bounds
    if asked is None:
        problems.append((field, "missing", f"from {least} to {most}"))
    elif not least <= asked <= most:
        problems.append((field, f"{asked} is not possible", f"from {least} to {most}"))
        return None
    return asked


def _root(
    asked: int | None, offering: Offering, template: Template | None, problems: list[Problem]
) -> int | None:
    least = template.min_disk_gib if template is not None else 0
    root = asked or offering.root_gib or least or None
    if root is not None and root < least:
        problems.append(
            (
                "offering" if asked is None else "root_gib",
                f"a root disk of {root} GiB is too small for the template",
                f"at least {least} GiB",
            )
        )
    # A kernel boots without a disk; every other template needs one, and its size is paid for.
    if root is None and template is not None and template.format is not TemplateFormat.KERNEL:
        problems.append(("root_gib", "missing", "neither offering nor template tell it"))
    return root


def resized(
    old: Size,
    offering: Offering | None,
    vcpus: int | None = None,
    memory_mib: int | None = None,
    root_gib: int | None = None,
    template: Template | None = None,
) -> tuple[Size | None, list[Problem]]:
    """The size that a VM of size `old` is to have, and every problem; its root disk only grows.

    Without an offering, what is not asked for stays.
    """
    if offering is None:
        vcpus, memory_mib = vcpus or old.vcpus, memory_mib or old.memory_mib
    fixed = offering.root_gib if offering is not None else None
    root = root_gib or fixed or old.root_gib
    wanted, problems = size(offering, vcpus, memory_mib, root, template)
    field = "root_gib" if root_gib is not None else "offering"
    if old.root_gib is None:
        root = None
        if root_gib is not None:
            problems.append((field, "it has no disk that was made for it", "leave it out"))
    elif root is not None and root < old.root_gib:
        said = f"{root} GiB: the disk has {old.root_gib} GiB and can only grow"
        problems.append((field, said, f"at least {old.root_gib} GiB"))
    if problems or wanted is None:
        return None, problems
    return Size(wanted.vcpus, wanted.memory_mib, root), []

"""Known-bad variants of Muster: each file swaps one function, row or port, and must be caught.

A mutant is a module with a docstring that says what is wrong, and `apply(swap)`, which calls
`swap(owner, name, bad)` for what it replaces. Nothing outside of the simulator knows of them.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any


def names() -> list[str]:
    """All mutants."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def about(name: str) -> str:
    """What is wrong with a mutant, in its own words."""
    return (importlib.import_module(f"{__name__}.{name}").__doc__ or "").strip()


@contextlib.contextmanager
def switched_on(name: str | None) -> Iterator[None]:
    """Run the block with a mutant in place of the real thing."""
    kept: list[tuple[Any, str, Any]] = []

    def swap(owner: Any, attribute: str, bad: Any) -> None:
        # What a class holds is kept as it is there, static methods included.
        kept.append((owner, attribute, vars(owner)[attribute]))
        setattr(owner, attribute, bad)

    try:
        if name is not None:
            importlib.import_module(f"{__name__}.{name}").apply(swap)
        yield
    finally:
        for owner, attribute, good in reversed(kept):
            setattr(owner, attribute, good)


def manager_of(tx: Any) -> Any:
    """The manager whose transaction this is."""
    return tx.store._told.__self__

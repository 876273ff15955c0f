"""A soft delete marks its VM and has no guest stopped, though its host could be asked."""

from __future__ import annotations

from typing import Any

from manager.rules import deletion


def apply(swap: Any) -> None:
    marked = deletion.Decision(5, deletion.Outcome.MARK, "it is marked")
    swap(deletion, "soft_at_host", lambda _place: marked)

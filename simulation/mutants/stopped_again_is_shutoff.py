"""A soft-deleted VM whose guest is stopped again is SHUTOFF then: restored, and within no limit."""

from __future__ import annotations

from typing import Any

from manager.flows import power


def apply(swap: Any) -> None:
    swap(power, "_STAY", frozenset())

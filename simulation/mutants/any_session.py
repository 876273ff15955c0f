"""An agent takes casts of any session, also before its hello was answered."""

from __future__ import annotations

from typing import Any

from agent.door import Door


def apply(swap: Any) -> None:
    swap(Door, "_in_session", lambda _self, _session, act: act())

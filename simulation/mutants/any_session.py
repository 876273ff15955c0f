"""An agent takes casts of any session and any mark of the store, also before its hello."""

from __future__ import annotations

from typing import Any

from agent.door import Door


def apply(swap: Any) -> None:
    # Either alone keeps out most of what is late.
    swap(Door, "_in_session", lambda _self, _session, act: act())
    swap(Door, "_following", lambda _self, commands: commands)

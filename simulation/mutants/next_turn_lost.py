"""When a command has ended, the next of its instance does not get its turn."""

from __future__ import annotations

from typing import Any

from agent.commands import Commands


class _Forgetful:
    """The commands of an agent, but for what comes next."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    def __getattr__(self, name: str) -> Any:
        return getattr(self._commands, name)

    def _following(self, _running: set[str]) -> list[Any]:
        return []


def apply(swap: Any) -> None:
    good = Commands._write_down_ended
    swap(Commands, "_write_down_ended", lambda self: good(_Forgetful(self)))  # type: ignore[arg-type]

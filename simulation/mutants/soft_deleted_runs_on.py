"""What is SOFT_DELETED and is seen running is not stopped again."""

from __future__ import annotations

from typing import Any

from manager.rules import power

STOPPED_AGAIN = 9  # the row of the table


def apply(swap: Any) -> None:
    good = power.react

    def react(*args: Any) -> power.Reaction:
        reaction = good(*args)
        return power.Reaction(12, power.Act.NOTHING) if reaction.row == STOPPED_AGAIN else reaction

    swap(power, "react", react)

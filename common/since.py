"""From when on something is asked for: an instant, or how long ago that was."""

from __future__ import annotations

import datetime as dt
import re

from common.errors import BadRequest

WORDS = "a time as 2026-11-20T12:00:00Z, or how long ago: 90s, 15m, 2h or 3d"
_AGE = re.compile(r"([0-9]{1,5})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def earliest(text: str, now: dt.datetime) -> dt.datetime:
    """The instant that is meant; one without a zone is UTC. Raises BadRequest."""
    if age := _AGE.fullmatch(text):
        return now - dt.timedelta(**{_UNITS[age[2]]: int(age[1])})
    try:
        instant = dt.datetime.fromisoformat(text)
        return instant.replace(tzinfo=instant.tzinfo or dt.UTC).astimezone(dt.UTC)
    except (ValueError, OverflowError) as exc:
        raise BadRequest(f"since: {text!r:.80} is no time", WORDS, field="since") from exc

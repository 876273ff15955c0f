"""From when on: an instant or an age, the same to the command line and to the managers."""

from __future__ import annotations

import datetime as dt

import pytest

from common.errors import BadRequest
from common.since import earliest

NOW = dt.datetime(2026, 11, 20, 12, 0, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("90s", "2026-11-20T11:58:30+00:00"),
        ("15m", "2026-11-20T11:45:00+00:00"),
        ("2h", "2026-11-20T10:00:00+00:00"),
        ("3d", "2026-11-17T12:00:00+00:00"),
        ("2026-11-20T11:00:00Z", "2026-11-20T11:00:00+00:00"),
        ("2026-11-20T11:00:00+02:00", "2026-11-20T09:00:00+00:00"),
        ("2026-11-20T11:00", "2026-11-20T11:00:00+00:00"),
        ("2026-11-20", "2026-11-20T00:00:00+00:00"),
    ],
)
def test_an_instant_or_an_age_is_read(text: str, instant: str) -> None:
    assert earliest(text, NOW).isoformat() == instant


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2", "h", "-2h", "1.5h", "2w", "99999999d", "2²h"]
)
def test_what_is_no_time_names_its_field_and_what_it_may_be(text: str) -> None:
    with pytest.raises(BadRequest, match="since") as caught:
        earliest(text, NOW)
    assert "2h" in caught.value.remedy

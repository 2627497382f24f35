"""Moments: how services write them, and their epoch seconds.

What happened at a moment it does not know.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pendulum import DateTime

_ISO_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{3}(\d{3})?)?(Z|[+-]\d\d:\d\d)?")


def parse_timestamp(value: object) -> DateTime | None:
    """Read a timestamp into UTC: ISO 8601 with or without zone (then UTC), or epoch seconds or milliseconds; else None."""
    import pendulum  # first used here: importing this module stays cheap

    if value is None or isinstance(value, bool) or value == "":
        return None
    try:
        if isinstance(value, (int, float)):
            return pendulum.from_timestamp(value / 1000 if value > 1e11 else value)
        return _parse_timestamp_text(str(value))
    except (ValueError, OverflowError, OSError):
        return None


@lru_cache(maxsize=50_000)  # a run that is looked at again and again has the same timestamps each time
def _parse_timestamp_text(text: str) -> DateTime | None:
    import pendulum

    if _ISO_TIMESTAMP.fullmatch(text):  # what services send; pendulum's own parser takes ten times as long
        at = datetime.fromisoformat(text)
        at = (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
        return pendulum.DateTime(
            at.year, at.month, at.day, at.hour, at.minute, at.second, at.microsecond, tzinfo=pendulum.UTC
        )
    parsed = pendulum.parse(text, tz="UTC", strict=False)
    return parsed.in_timezone("UTC") if isinstance(parsed, pendulum.DateTime) else None


def to_epoch(timestamp: DateTime) -> float:
    """Give a moment's epoch seconds; pendulum's `timestamp` takes four times as long, and a wait needs them at each look."""
    return datetime.__sub__(timestamp, _epoch_start()).total_seconds()


def parse_http_date(text: str) -> float:
    """Read a date of HTTP into epoch seconds; it is in UTC, also where it does not say so.

    :raises ValueError: it is none.
    :raises OverflowError: nor any that there will be.
    """
    from email.utils import parsedate_to_datetime  # needed where a service tells one

    date = parsedate_to_datetime(text)
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


@cache
def _epoch_start() -> DateTime:
    import pendulum  # first used here: importing this module stays cheap

    return pendulum.DateTime(1970, 1, 1, tzinfo=pendulum.UTC)

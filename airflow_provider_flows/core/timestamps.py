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

_PLAIN = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{3}(\d{3})?)?(Z|[+-]\d\d:\d\d)?")


def read_time(told: object) -> DateTime | None:
    """Read a timestamp into UTC: ISO 8601 with or without zone (then UTC), or epoch seconds or milliseconds; else None."""
    import pendulum  # first used here: importing this module stays cheap

    if told is None or isinstance(told, bool) or told == "":
        return None
    try:
        if isinstance(told, (int, float)):
            return pendulum.from_timestamp(told / 1000 if told > 1e11 else told)
        return _read_text(str(told))
    except (ValueError, OverflowError, OSError):
        return None


@lru_cache(maxsize=50_000)  # a run that is looked at again and again has the same timestamps each time
def _read_text(told: str) -> DateTime | None:
    import pendulum

    if _PLAIN.fullmatch(told):  # what services send; pendulum's own parser takes ten times as long
        at = datetime.fromisoformat(told)
        at = (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
        return pendulum.DateTime(
            at.year, at.month, at.day, at.hour, at.minute, at.second, at.microsecond, tzinfo=pendulum.UTC
        )
    moment = pendulum.parse(told, tz="UTC", strict=False)
    return moment.in_timezone("UTC") if isinstance(moment, pendulum.DateTime) else None


def epoch(moment: DateTime) -> float:
    """Give a moment's epoch seconds; pendulum's `timestamp` takes four times as long, and a wait needs them at each look."""
    return datetime.__sub__(moment, _first_moment()).total_seconds()


def http_date(told: str) -> float:
    """Read a date of HTTP into epoch seconds; it is in UTC, also where it does not say so.

    :raises ValueError: it is none.
    :raises OverflowError: nor any that there will be.
    """
    from email.utils import parsedate_to_datetime  # needed where a service tells one

    moment = parsedate_to_datetime(told)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@cache
def _first_moment() -> DateTime:
    import pendulum  # first used here: importing this module stays cheap

    return pendulum.DateTime(1970, 1, 1, tzinfo=pendulum.UTC)

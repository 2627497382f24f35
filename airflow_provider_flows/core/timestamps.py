"""Conversion of the timestamps of services to pendulum datetimes and epoch seconds."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pendulum import DateTime

MIN_YEAR = 1971  # an earlier year is the zero of a service's clock, in any time zone

_EARLY_YEAR = re.compile(r"(?<![+-])\b0\d{3}\b")  # in an HTTP date; `email.utils` reads 0001 as 2001
_STARTS_WITH_YEAR = re.compile(r"\d{4}", re.ASCII)  # pendulum completes "00:00:00" and "-1" with today's date


def parse_timestamp(value: object) -> DateTime | None:
    """Return a timestamp in UTC, or None if the value is not a timestamp, or is a zero time.

    Some services write "not yet" as the zero of their clock: `0001-01-01T00:00:00Z`, 1970, or 0.

    :param value: ISO 8601 with or without a time zone (default UTC), or epoch seconds or milliseconds.
    """
    import pendulum  # expensive to import

    from airflow_provider_flows.core.limits import MAX_TIMESTAMP_CHARACTERS  # a DAG file does not need it

    timestamp: DateTime | None = None
    try:
        if isinstance(value, str):
            timestamp = _parse_timestamp_text(value) if len(value) <= MAX_TIMESTAMP_CHARACTERS else None
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            timestamp = pendulum.from_timestamp(value / 1000 if value > 1e11 else value)
    except Exception:  # noqa: BLE001  # pendulum raises more than ValueError: TypeError, decimal's errors
        return None
    return None if timestamp is None or timestamp.year < MIN_YEAR else timestamp


@lru_cache(maxsize=50_000)  # a run has the same timestamps at each poll
def _parse_timestamp_text(text: str) -> DateTime | None:
    import pendulum

    if not _STARTS_WITH_YEAR.match(text):
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:  # not ISO 8601; pendulum's parser takes ten times as long
        parsed = pendulum.parse(text, tz="UTC", strict=False)
        return parsed.in_timezone("UTC") if isinstance(parsed, pendulum.DateTime) else None
    at = (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    return pendulum.DateTime(
        at.year, at.month, at.day, at.hour, at.minute, at.second, at.microsecond, tzinfo=pendulum.UTC
    )


def to_epoch(timestamp: DateTime) -> float:
    """Return the epoch seconds of a timestamp.

    Every poll needs them, and `timestamp()` of pendulum takes four times as long.
    """
    return datetime.__sub__(timestamp, _epoch_start()).total_seconds()


def parse_http_date(text: str) -> float:
    """Return the epoch seconds of an HTTP date (RFC 9110); the default time zone is UTC.

    :raises ValueError: the text is not a date, or is the zero of a clock that was never set.
    :raises OverflowError: the date is out of range.
    """
    from email.utils import parsedate_to_datetime  # rarely needed

    date = parsedate_to_datetime(text)
    if date.year < MIN_YEAR or _EARLY_YEAR.search(text):
        raise ValueError(text)
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


@cache
def _epoch_start() -> DateTime:
    import pendulum  # expensive to import

    return pendulum.DateTime(1970, 1, 1, tzinfo=pendulum.UTC)

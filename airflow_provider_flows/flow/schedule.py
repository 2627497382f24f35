"""When to look at a flow run next, when it is expected to end, and the deadline: the one place that knows.

It does not look and does not sleep: operator, sensor and trigger ask it through waiting.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_provider_flows.flow.errors import FlowInputError

if TYPE_CHECKING:
    from airflow_provider_flows.flow.run import FlowRun

PART_OF_AGE = 10  # news may be late by a tenth of the run's age
JITTER = 0.1  # intervals are shortened by up to a tenth, so that runs started together spread out
LONGEST_RETRY_AFTER = 3600.0  # seconds; whoever asks for more is asked again after this


def seconds(name: str, value: float | timedelta | None) -> float | None:
    """Read a duration argument, seconds or timedelta, into seconds.

    :raises FlowInputError: it is neither, not finite, or negative; the message names the argument.
    """
    if value is None:
        return None
    given = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 <= given < float("inf"):
        message = f"{name} must be seconds (a number that is not negative) or a timedelta, not {value!r}"
        raise FlowInputError(message)
    return float(given)


@dataclass(frozen=True, slots=True)
class Schedule:
    """How often to look, and until when.

    The promise: news is late by at most `poll_interval` or a tenth of the run's age, whichever is more, and never by more than
    `max_poll_interval`.

    :param poll_interval: seconds; the most often that it looks (a jitter takes off up to a tenth).
    :param max_poll_interval: seconds; the least often that it looks.
    :param deadline: epoch seconds at which the wait ends, None for never.
    :param jitter: gives numbers in 0 to 1; replaced in tests.
    """

    poll_interval: float = 5.0
    max_poll_interval: float = 60.0
    deadline: float | None = None
    jitter: Callable[[], float] = random.random

    @classmethod
    def of(
        cls, poll_interval: float | timedelta, max_poll_interval: float | timedelta, deadline: float | None = None
    ) -> Schedule:
        """Make a schedule of what a user wrote; a `max_poll_interval` below `poll_interval` is raised to it.

        :raises FlowInputError: an interval that cannot be kept; the message names it.
        """
        most = seconds("poll_interval", poll_interval) or 0.0
        return cls(most, max(most, seconds("max_poll_interval", max_poll_interval) or 0.0), deadline)

    def __post_init__(self) -> None:
        """Refuse intervals that cannot be kept."""
        if self.poll_interval <= 0:
            message = f"poll_interval must be more than 0 seconds, not {self.poll_interval}"
            raise FlowInputError(message)
        if self.max_poll_interval < self.poll_interval:
            message = (
                f"max_poll_interval ({self.max_poll_interval} s) must not be less than poll_interval ({self.poll_interval} s): "
                "they are the least and the most often that the flow run is looked at"
            )
            raise FlowInputError(message)

    def next_look(self, run: FlowRun | None, now: float, waiting_since: float) -> float:
        """Give the seconds until the next look, never beyond the deadline.

        :param run: the run as last seen, None if it was not seen yet.
        :param now: epoch seconds.
        :param waiting_since: epoch seconds; stands in for the run's age where the run tells no time.
        """
        delay = max(self.poll_interval, age(run, now, waiting_since) / PART_OF_AGE)
        end = None if run is None else expected_end(run, now)
        if end is not None and now < end < now + delay:
            delay = max(self.poll_interval, end - now)
        return self._within(delay, now)

    def after_a_miss(self, misses: int, now: float, retry_after: float | None) -> float:
        """Give the seconds until the next look after so many looks in a row that brought nothing.

        :param misses: 1 or more.
        :param retry_after: seconds that the service asked for, if it did; kept, up to an hour.
        """
        delay = self.poll_interval * 2 ** min(misses - 1, 16)
        return max(self._within(delay, now), self._until(now, min(retry_after or 0.0, LONGEST_RETRY_AFTER)))

    def expired(self, now: float) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and now >= self.deadline

    def _within(self, delay: float, now: float) -> float:
        bounded = min(max(delay, self.poll_interval), self.max_poll_interval)
        return self._until(now, bounded * (1 - JITTER * self.jitter()))

    def _until(self, now: float, delay: float) -> float:
        return delay if self.deadline is None else max(0.0, min(delay, self.deadline - now))


def age(run: FlowRun | None, now: float, waiting_since: float) -> float:
    """Give a run's age in seconds, by its own timestamps, or by how long it is waited for where these lie in the future."""
    begun = None if run is None else (run.started_at or run.created_at)
    by_run = -1.0 if begun is None else now - begun.timestamp()
    return by_run if by_run >= 0 else max(0.0, now - waiting_since)


def expected_end(run: FlowRun, now: float) -> float | None:
    """Give the epoch seconds at which a run with this progress will be done if it goes on like this, None if nothing tells."""
    if run.started_at is None or not 0 < run.progress < 1:
        return None
    elapsed = now - run.started_at.timestamp()
    return None if elapsed <= 0 else now + elapsed * (1 - run.progress) / run.progress

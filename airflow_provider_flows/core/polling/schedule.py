"""When to look at a flow run next, when it is expected to end, and the deadline: the one place that knows.

It does not look and does not sleep: operator, sensor and trigger ask it through waiting.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.timestamps import to_epoch

if TYPE_CHECKING:
    from airflow_provider_flows.core.run import FlowRun

AGE_DIVISOR = 10  # news may be late by a tenth of the run's age
JITTER = 0.1  # intervals are shortened by up to a tenth, so that runs started together spread out
STEADY_TOLERANCE = (
    0.1  # two forecasts of the end agree if they differ by no more than this part of the time that is left
)
EXACT_TOLERANCE = 0.02  # and if by no more than this, the run is left alone until then
UNPOLLED_FRACTION = 0.5  # of the time that is left, where they agree less exactly
NEAR_END_INTERVALS = 2  # poll intervals before its expected end it is left alone until then all the same
EXPECTED_END_MARGIN = (
    0.05,
    0.01,
)  # a look at the expected end comes later by these parts of poll_interval and of the time until then
MAX_FORECAST_SECONDS = (
    10 * 366 * 86_400.0
)  # seconds; an end beyond them is none, but an absurd start or progress
MAX_RETRY_AFTER_SECONDS = 3600.0  # seconds; whoever asks for more is asked again after this


def to_seconds(name: str, value: float | timedelta | None) -> float | None:
    """Read a duration argument, seconds or timedelta, into seconds.

    :raises FlowInputError: it is neither, not finite, or negative; the message names the argument.
    """
    if value is None:
        return None
    duration = value.total_seconds() if isinstance(value, timedelta) else value
    if (
        isinstance(duration, bool)
        or not isinstance(duration, (int, float))
        or not 0 <= duration < float("inf")
    ):
        message = f"{name} must be seconds (a number that is not negative) or a timedelta, not {value!r}"
        raise FlowInputError(message)
    return float(duration)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the looks so far let expect of a run's end.

    :param progress: the progress of which it was made, 0.0 to 1.0.
    :param made: epoch seconds at which that progress was first seen; a look that sees no change tells nothing new.
    :param end: epoch seconds of the end that is expected, None if nothing tells.
    :param earlier: the end that was expected before that.
    """

    progress: float = 0.0
    observed_at: float = 0.0
    end: float | None = None
    previous_end: float | None = None

    @classmethod
    def from_dict(cls, data: Any) -> Forecast:
        """Read what `memory` gave, perhaps in another version; what cannot be one is as good as none."""
        try:
            progress, observed_at, end, previous_end = (
                data[name] for name in ("progress", "observed_at", "end", "previous_end")
            )
        except (TypeError, KeyError):
            return cls()
        numbers = {type(value) for value in (progress, observed_at, end or 0.0, previous_end or 0.0)} <= {
            int,
            float,
        }
        return cls(progress, observed_at, end, previous_end) if numbers else cls()

    def to_dict(self) -> dict[str, float | None]:
        """The forecast as plain JSON values."""
        return {
            "progress": self.progress,
            "observed_at": self.observed_at,
            "end": self.end,
            "previous_end": self.previous_end,
        }

    def after(self, run: FlowRun | None, now: float, min_interval: float = 0.0) -> Forecast:
        """Give the forecast after another look.

        :param apart: seconds that must lie between two forecasts; those of one moment would agree about anything.
        """
        if run is None or run.progress == self.progress or now - self.observed_at < min_interval:
            return self
        return Forecast(run.progress, now, expected_end(run, now), self.end)

    def is_steady(self, now: float, tolerance: float = STEADY_TOLERANCE) -> bool:
        """Whether this forecast and the one before it name the same end, so that the run's progress is steady.

        :param within: the part of the time that is left by which they may differ.
        """
        if self.end is None or self.previous_end is None:
            return False
        return abs(self.previous_end - self.end) <= tolerance * (self.end - now)


@dataclass(frozen=True, slots=True)
class Schedule:
    """How often to look, and until when.

    The promise: news is late by at most `poll_interval` or a tenth of the run's age, whichever is more, and never by more than
    `max_poll_interval`. Where progress is steady, so that forecast after forecast names the same end, the run is left alone until
    then or for half of the time, as they agree, and looked at when it is expected to be over.

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
        cls,
        poll_interval: float | timedelta,
        max_poll_interval: float | timedelta,
        deadline: float | None = None,
    ) -> Schedule:
        """Make a schedule of what a user wrote; a `max_poll_interval` below `poll_interval` is raised to it.

        :raises FlowInputError: an interval that cannot be kept; the message names it.
        """
        shortest = to_seconds("poll_interval", poll_interval) or 0.0
        return cls(
            shortest, max(shortest, to_seconds("max_poll_interval", max_poll_interval) or 0.0), deadline
        )

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

    def next_poll_delay(
        self, run: FlowRun | None, now: float, waiting_since: float, forecast: Forecast | None = None
    ) -> float:
        """Give the seconds until the next look, never beyond the deadline.

        :param run: the run as last seen, None if it was not seen yet.
        :param now: epoch seconds.
        :param waiting_since: epoch seconds; stands in for the run's age where the run tells no time.
        :param forecast: what the looks so far let expect; without it, what this one does.
        """
        forecast = forecast or Forecast().after(run, now)
        end_delay = self.delay_to_expected_end(run, now, waiting_since, forecast)
        if end_delay is not None:
            return self._cap_at_deadline(now, end_delay)
        usual = max(self.poll_interval, age(run, now, waiting_since) / AGE_DIVISOR)
        if forecast.end is None:
            return self._clamp_delay(usual, now)
        remaining = forecast.end - now
        if remaining <= 0:  # it may be over any moment
            return self._clamp_delay(min(usual, max(self.poll_interval, -remaining / 2)), now)
        return self._clamp_delay(
            max(usual, UNPOLLED_FRACTION * remaining) if forecast.is_steady(now) else usual, now
        )

    def delay_to_expected_end(
        self, run: FlowRun | None, now: float, waiting_since: float, forecast: Forecast
    ) -> float | None:
        """Give the seconds until the look at which the run is expected to be over, None if the next look is not that one.

        It comes a little after the expected end, for a look too soon costs a whole `poll_interval`.
        """
        remaining = 0.0 if forecast.end is None else forecast.end - now
        if not 0 < remaining <= self.max_poll_interval:
            return None
        near = NEAR_END_INTERVALS * self.poll_interval if forecast.is_steady(now) else self.poll_interval
        if (
            remaining > near
            and not forecast.is_steady(now, EXACT_TOLERANCE)
            and remaining > age(run, now, waiting_since) / AGE_DIVISOR
        ):
            return None
        margin = (EXPECTED_END_MARGIN[0] * self.poll_interval + EXPECTED_END_MARGIN[1] * remaining) * (
            1 + self.jitter()
        )
        return min(self.max_poll_interval, max(self.poll_interval * (1 - JITTER), remaining + margin))

    def backoff_delay(self, failed_polls: int, now: float, retry_after: float | None) -> float:
        """Give the seconds until the next look after so many looks in a row that brought nothing.

        :param misses: 1 or more.
        :param retry_after: seconds that the service asked for, if it did; kept, up to an hour.
        """
        delay = self.poll_interval * 2 ** min(failed_polls - 1, 16)
        return max(
            self._clamp_delay(delay, now),
            self._cap_at_deadline(now, min(retry_after or 0.0, MAX_RETRY_AFTER_SECONDS)),
        )

    def is_expired(self, now: float) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and now >= self.deadline

    def _clamp_delay(self, delay: float, now: float) -> float:
        bounded = min(max(delay, self.poll_interval), self.max_poll_interval)
        return self._cap_at_deadline(now, bounded * (1 - JITTER * self.jitter()))

    def _cap_at_deadline(self, now: float, delay: float) -> float:
        return delay if self.deadline is None else max(0.0, min(delay, self.deadline - now))


def age(run: FlowRun | None, now: float, waiting_since: float) -> float:
    """Give a run's age in seconds, by its own timestamps, or by how long it is waited for where these lie in the future."""
    start = None if run is None else (run.started_at or run.created_at)
    by_run = -1.0 if start is None else now - to_epoch(start)
    return by_run if by_run >= 0 else max(0.0, now - waiting_since)


def expected_end(run: FlowRun, now: float) -> float | None:
    """Give the epoch seconds at which a run with this progress will be done if it goes on like this, None if nothing tells."""
    if run.started_at is None or not 0 < run.progress < 1:
        return None
    elapsed = now - to_epoch(run.started_at)
    remaining = elapsed * (1 - run.progress) / run.progress
    return now + remaining if elapsed > 0 and remaining < MAX_FORECAST_SECONDS else None

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
from airflow_provider_flows.core.timestamps import epoch

if TYPE_CHECKING:
    from airflow_provider_flows.core.run import FlowRun

PART_OF_AGE = 10  # news may be late by a tenth of the run's age
JITTER = 0.1  # intervals are shortened by up to a tenth, so that runs started together spread out
STEADY = (
    0.1  # two forecasts of the end agree if they differ by no more than this part of the time that is left
)
EXACT = 0.02  # and if by no more than this, the run is left alone until then
PART_LEFT_ALONE = 0.5  # of the time that is left, where they agree less exactly
NEAR = 2  # poll intervals before its expected end it is left alone until then all the same
MARGIN = (
    0.05,
    0.01,
)  # a look at the expected end comes later by these parts of poll_interval and of the time until then
FORESEEABLE = 10 * 366 * 86_400.0  # seconds; an end beyond them is none, but an absurd start or progress
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
class Forecast:
    """What the looks so far let expect of a run's end.

    :param progress: the progress of which it was made, 0.0 to 1.0.
    :param made: epoch seconds at which that progress was first seen; a look that sees no change tells nothing new.
    :param end: epoch seconds of the end that is expected, None if nothing tells.
    :param earlier: the end that was expected before that.
    """

    progress: float = 0.0
    made: float = 0.0
    end: float | None = None
    earlier: float | None = None

    @classmethod
    def recalled(cls, memory: Any) -> Forecast:
        """Read what `memory` gave, perhaps in another version; what cannot be one is as good as none."""
        try:
            progress, made, end, earlier = (memory[name] for name in ("progress", "made", "end", "earlier"))
        except (TypeError, KeyError):
            return cls()
        numbers = {type(value) for value in (progress, made, end or 0.0, earlier or 0.0)} <= {int, float}
        return cls(progress, made, end, earlier) if numbers else cls()

    @property
    def memory(self) -> dict[str, float | None]:
        """The forecast as plain JSON values."""
        return {"progress": self.progress, "made": self.made, "end": self.end, "earlier": self.earlier}

    def after(self, run: FlowRun | None, now: float, apart: float = 0.0) -> Forecast:
        """Give the forecast after another look.

        :param apart: seconds that must lie between two forecasts; those of one moment would agree about anything.
        """
        if run is None or run.progress == self.progress or now - self.made < apart:
            return self
        return Forecast(run.progress, now, expected_end(run, now), self.end)

    def steady(self, now: float, within: float = STEADY) -> bool:
        """Whether this forecast and the one before it name the same end, so that the run's progress is steady.

        :param within: the part of the time that is left by which they may differ.
        """
        if self.end is None or self.earlier is None:
            return False
        return abs(self.earlier - self.end) <= within * (self.end - now)


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

    def next_look(
        self, run: FlowRun | None, now: float, waiting_since: float, forecast: Forecast | None = None
    ) -> float:
        """Give the seconds until the next look, never beyond the deadline.

        :param run: the run as last seen, None if it was not seen yet.
        :param now: epoch seconds.
        :param waiting_since: epoch seconds; stands in for the run's age where the run tells no time.
        :param forecast: what the looks so far let expect; without it, what this one does.
        """
        forecast = forecast or Forecast().after(run, now)
        landing = self.landing(run, now, waiting_since, forecast)
        if landing is not None:
            return self._until(now, landing)
        usual = max(self.poll_interval, age(run, now, waiting_since) / PART_OF_AGE)
        if forecast.end is None:
            return self._within(usual, now)
        left = forecast.end - now
        if left <= 0:  # it may be over any moment
            return self._within(min(usual, max(self.poll_interval, -left / 2)), now)
        return self._within(max(usual, PART_LEFT_ALONE * left) if forecast.steady(now) else usual, now)

    def landing(
        self, run: FlowRun | None, now: float, waiting_since: float, forecast: Forecast
    ) -> float | None:
        """Give the seconds until the look at which the run is expected to be over, None if the next look is not that one.

        It comes a little after the expected end, for a look too soon costs a whole `poll_interval`.
        """
        left = 0.0 if forecast.end is None else forecast.end - now
        if not 0 < left <= self.max_poll_interval:
            return None
        near = NEAR * self.poll_interval if forecast.steady(now) else self.poll_interval
        if (
            left > near
            and not forecast.steady(now, EXACT)
            and left > age(run, now, waiting_since) / PART_OF_AGE
        ):
            return None
        late = (MARGIN[0] * self.poll_interval + MARGIN[1] * left) * (1 + self.jitter())
        return min(self.max_poll_interval, max(self.poll_interval * (1 - JITTER), left + late))

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
    by_run = -1.0 if begun is None else now - epoch(begun)
    return by_run if by_run >= 0 else max(0.0, now - waiting_since)


def expected_end(run: FlowRun, now: float) -> float | None:
    """Give the epoch seconds at which a run with this progress will be done if it goes on like this, None if nothing tells."""
    if run.started_at is None or not 0 < run.progress < 1:
        return None
    elapsed = now - epoch(run.started_at)
    left = elapsed * (1 - run.progress) / run.progress
    return now + left if elapsed > 0 and left < FORESEEABLE else None

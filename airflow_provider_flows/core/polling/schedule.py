"""The decision after a poll of a flow run: poll again after a delay, return the final run, or fail.

`next_step` makes it, from the intervals, the deadline, the forecast of the run's end and the state of the
wait. Everything here is pure: immutable values in, immutable values out. Times are epoch seconds, durations
seconds.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_provider_flows.core.exceptions import FlowInputError, FlowNotFound, FlowServiceError, FlowTimeout
from airflow_provider_flows.core.timestamps import to_epoch

if TYPE_CHECKING:
    from airflow_provider_flows.core.flow_run import FlowRun

AGE_DIVISOR = 10  # the detection delay may be a tenth of the run's age
JITTER = 0.1  # intervals are shortened by up to a tenth, so that runs that were started together spread out
UNCERTAINTY_FACTOR = 10  # uncertainty = this factor x the difference between the last two forecasts
MAX_UNPOLLED_FRACTION = 0.5  # of the remaining time without a poll, where the next poll is not at the end
# A poll at the expected end comes later by these parts of poll_interval and of the remaining time, because
# one that comes just before the end costs another poll_interval.
END_MARGIN_OF_INTERVAL, END_MARGIN_OF_REMAINING = 0.05, 0.01
MAX_FORECAST_SECONDS = 10 * 366 * 86_400.0  # a longer remaining time comes from an absurd start or progress
MAX_RETRY_AFTER_SECONDS = 3600.0  # a service that asks for a longer pause is polled again after this one
MAX_PERMANENT_ERRORS = 3  # a key may be in rotation, a new run not visible yet, a gateway confused
# A 404 for a run that was found before ends a wait only after this time: while a gateway fails over, it may
# respond with 404 to everything.
MIN_MISSING_SECONDS = 30.0
MAX_REJECTED_TRIGGERS = 3  # with an unusable connection; after them the task waits in its worker
MAX_BACKOFF_DOUBLINGS = 16


def to_seconds(name: str, value: float | timedelta | None) -> float | None:
    """Convert a duration argument, seconds or timedelta, to seconds; None stays None.

    :raises FlowInputError: the value is neither, not finite, or negative; the message names the argument.
    """
    if value is None:
        return None
    duration = value.total_seconds() if isinstance(value, timedelta) else value
    is_number = isinstance(duration, (int, float)) and not isinstance(duration, bool)
    if not is_number or not 0 <= duration < float("inf"):
        message = f"{name} must be a non-negative number of seconds or a timedelta, not {value!r}"
        raise FlowInputError(message)
    return float(duration)


def to_positive_seconds(name: str, value: float | timedelta | None, alternative: str = "") -> float:
    """Convert a duration argument, seconds or timedelta, to seconds; it must be more than 0.

    :param alternative: the end of the message: what else the argument may be.
    :raises FlowInputError: it is not; the message names the argument.
    """
    with suppress(FlowInputError):
        if (seconds := to_seconds(name, value)) is not None and seconds > 0:
            return seconds
    message = f"{name} must be a positive number of seconds or a timedelta{alternative}, not {value!r}"
    raise FlowInputError(message)


def to_time_limit(name: str, value: float | timedelta | None) -> float | None:
    """Convert the time limit of a task to seconds; None, for no limit, stays None.

    :raises FlowInputError: it is no time, or not more than 0: the task would end before its flow run does.
    """
    return None if value is None else to_positive_seconds(name, value, ", or None for no limit")


@dataclass(frozen=True, slots=True)
class Forecast:
    """The expected end of a run, derived from its progress.

    :param progress: the progress that it is derived from, 0.0 to 1.0.
    :param observed_at: epoch seconds at which that progress was first observed.
    :param end: epoch seconds of the expected end, None if there is no progress to derive it from.
    :param previous_end: the expected end of the forecast before this one.
    """

    progress: float = 0.0
    observed_at: float = 0.0
    end: float | None = None
    previous_end: float | None = None

    @classmethod
    def from_dict(cls, data: Any) -> Forecast:
        """Read what `to_dict` returned; return an empty forecast if it is unreadable (another version)."""
        try:
            values = data["progress"], data["observed_at"], data["end"], data["previous_end"]
        except (KeyError, TypeError):
            return cls()
        progress, observed_at, end, previous_end = values
        types = {type(value) for value in (progress, observed_at, end or 0.0, previous_end or 0.0)}
        return cls(progress, observed_at, end, previous_end) if types <= {int, float} else cls()

    def to_dict(self) -> dict[str, float | None]:
        """Return the forecast as plain JSON values."""
        return {
            "progress": self.progress,
            "observed_at": self.observed_at,
            "end": self.end,
            "previous_end": self.previous_end,
        }

    def after(self, run: FlowRun | None, now: float, min_interval: float = 0.0) -> Forecast:
        """Return the forecast after another poll; the same object if the poll returned no new progress.

        :param min_interval: minimum time between two forecasts; two of the same time would always agree.
        """
        if run is None or run.progress == self.progress or now - self.observed_at < min_interval:
            return self
        return Forecast(run.progress, now, expected_end(run, now), self.end)

    @property
    def uncertainty(self) -> float:
        """Seconds by which the expected end may be wrong, by how far it has moved; infinite at first."""
        if self.end is None or self.previous_end is None:
            return float("inf")
        return UNCERTAINTY_FACTOR * abs(self.previous_end - self.end)


NO_FORECAST = Forecast()


class PollState(NamedTuple):
    """What the polls of one wait have returned so far.

    It is a tuple, because a triggerer creates one for each poll.

    :param flow_run_id: the run that is waited for.
    :param waiting_since: epoch seconds at which the wait began.
    :param run: the run of the last successful poll, None before the first.
    :param forecast: the expected end of the run.
    :param failed_polls: failed polls since the last successful one.
    :param permanent_errors: permanent errors among them.
    :param last_error: the error of the last poll, None if it succeeded.
    :param was_found: whether a poll has returned the run, in this process or an earlier one.
    :param missing_since: epoch seconds of the first 404 since the last successful poll, None without one.
    """

    flow_run_id: str
    waiting_since: float
    run: FlowRun | None = None
    forecast: Forecast = NO_FORECAST
    failed_polls: int = 0
    permanent_errors: int = 0
    last_error: FlowServiceError | None = None
    was_found: bool = False
    missing_since: float | None = None

    def after_run(self, run: FlowRun, now: float, schedule: Schedule) -> PollState:
        """Return the state after a poll or a list request that returned the run."""
        run = _fill_from_previous(run, self.run)
        forecast = self.forecast.after(run, now, schedule.poll_interval * (1 - JITTER))
        return PollState(self.flow_run_id, self.waiting_since, run, forecast, was_found=True)

    def after_error(self, error: FlowServiceError, now: float) -> PollState:
        """Return the state after a failed poll."""
        is_first_missing = isinstance(error, FlowNotFound) and self.missing_since is None
        return self._replace(
            missing_since=now if is_first_missing else self.missing_since,
            failed_polls=self.failed_polls + 1,
            permanent_errors=self.permanent_errors + (not error.is_transient),
            last_error=error,
        )

    def is_confirmed(self, now: float) -> bool:
        """Return whether the last error has occurred often enough, and for long enough, to end the wait."""
        error = self.last_error
        if error is None or error.is_transient or self.permanent_errors < MAX_PERMANENT_ERRORS:
            return False
        may_fail_over = isinstance(error, FlowNotFound) and self.was_found
        return not (may_fail_over and now - (self.missing_since or now) < MIN_MISSING_SECONDS)

    @property
    def needs_confirmation(self) -> bool:
        """Whether the service has rejected a poll, and the next polls must confirm that this is permanent."""
        return self.permanent_errors > 0 and self.failed_polls < MAX_PERMANENT_ERRORS


class Delay(NamedTuple):
    """Poll again.

    :param seconds: from now.
    :param is_at_expected_end: whether the run should be final by then.
    """

    seconds: float
    is_at_expected_end: bool = False


class Done(NamedTuple):
    """The wait has ended: the run is final."""

    run: FlowRun


class Failed(NamedTuple):
    """The wait has ended without a final run.

    :param error: FlowTimeout after the deadline, otherwise the permanent error that the service returned.
    """

    error: FlowServiceError | FlowTimeout


PollStep = Delay | Done | Failed
"""What a wait does next."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How often to poll, and until when.

    A finished run is detected within `poll_interval` or a tenth of its age, whichever is longer, and always
    within `max_poll_interval`. While progress is steady, the run is polled less often. If two successive
    forecasts differ by at most a tenth of `poll_interval`, the next poll is at the expected end. Otherwise,
    or if that end is more than `max_poll_interval` away, the next poll comes after up to half of the
    remaining time.

    :param poll_interval: shortest time between two polls, in seconds (jitter shortens it by up to a tenth).
    :param max_poll_interval: longest time between two polls, in seconds.
    :param deadline: epoch seconds at which the wait ends, None for never.
    :param jitter: returns numbers in 0 to 1; replaced in tests.
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
        """Create a schedule from a user's arguments; raise `max_poll_interval` to at least `poll_interval`.

        :raises FlowInputError: an interval is invalid; the message names it.
        """
        shortest = to_positive_seconds("poll_interval", poll_interval)
        longest = to_seconds("max_poll_interval", max_poll_interval) or 0.0
        return cls(shortest, max(shortest, longest), deadline)

    def __post_init__(self) -> None:
        """Reject invalid intervals."""
        if self.poll_interval <= 0:
            message = f"poll_interval must be more than 0 seconds, not {self.poll_interval}"
            raise FlowInputError(message)
        if self.max_poll_interval < self.poll_interval:
            message = (
                f"max_poll_interval ({self.max_poll_interval} s) must not be less than poll_interval "
                f"({self.poll_interval} s): they are the longest and the shortest time between two polls"
            )
            raise FlowInputError(message)

    def is_expired(self, now: float) -> bool:
        """Return whether the deadline has passed."""
        return self.deadline is not None and now >= self.deadline

    def poll_delay(self, state: PollState, now: float) -> Delay:
        """Return the delay until the next poll, which is at the deadline at the latest."""
        if state.last_error is not None:
            return Delay(self.backoff_delay(state.failed_polls, now, state.last_error.retry_after))
        end, uncertainty = state.forecast.end, state.forecast.uncertainty
        usual = max(self.poll_interval, age(state.run, now, state.waiting_since) / AGE_DIVISOR)
        if end is None:
            return Delay(self._limit(usual, now))
        remaining = end - now
        if remaining <= 0:  # it may end at any time
            delay = self._limit(min(usual, max(self.poll_interval, -remaining / 2)), now)
        elif remaining <= self.max_poll_interval and (
            remaining <= usual or uncertainty <= self.poll_interval
        ):
            delay = self._delay_until_end(remaining, now)
        else:
            unpolled = min(remaining - uncertainty, MAX_UNPOLLED_FRACTION * remaining)
            delay = self._limit(max(usual, unpolled), now)
        return Delay(delay, now < end <= now + delay)

    def backoff_delay(self, failed_polls: int, now: float, retry_after: float | None) -> float:
        """Return the seconds until the next poll after so many failed ones.

        :param failed_polls: 1 or more.
        :param retry_after: seconds that the service asked for, if it did; obeyed up to an hour.
        """
        delay = self.poll_interval * 2 ** min(failed_polls - 1, MAX_BACKOFF_DOUBLINGS)
        pause = min(retry_after or 0.0, MAX_RETRY_AFTER_SECONDS)
        return max(self._limit(delay, now), self._limit_to_deadline(pause, now))

    def _delay_until_end(self, remaining: float, now: float) -> float:
        margin = END_MARGIN_OF_INTERVAL * self.poll_interval + END_MARGIN_OF_REMAINING * remaining
        delay = max(self.poll_interval * (1 - JITTER), remaining + margin * (1 + self.jitter()))
        return self._limit_to_deadline(min(self.max_poll_interval, delay), now)

    def _limit(self, delay: float, now: float) -> float:
        """Return the delay within both intervals and the deadline, shortened by the jitter."""
        bounded = min(max(delay, self.poll_interval), self.max_poll_interval)
        return self._limit_to_deadline(bounded * (1 - JITTER * self.jitter()), now)

    def _limit_to_deadline(self, delay: float, now: float) -> float:
        return delay if self.deadline is None else max(0.0, min(delay, self.deadline - now))


def next_step(
    schedule: Schedule,
    state: PollState,
    observation: FlowRun | FlowServiceError | None,
    now: float,
    observed_at: float | None = None,
) -> tuple[PollState, PollStep]:
    """Return the state of a wait after an observation, and what the wait does next.

    :param observation: the run or the error of a poll, None if there was none since the last step.
    :param observed_at: epoch seconds at which the service read the run, if that was before `now`.
    """
    if isinstance(observation, FlowServiceError):
        failed = state.after_error(observation, now)
        if failed.is_confirmed(now):
            # this error is not counted: if its cause is removed, the wait continues from the previous state
            return state._replace(last_error=observation), Failed(observation)
        state = failed
    elif observation is not None:
        state = state.after_run(observation, now if observed_at is None else observed_at, schedule)
    if state.run is not None and state.run.is_final:
        return state, Done(state.run)
    if schedule.is_expired(now):
        return state, Failed(deadline_error(state))
    return state, schedule.poll_delay(state, now)


def deadline_error(state: PollState) -> FlowTimeout:
    """Return the error that reports the passed deadline and the run's last known state."""
    run = state.run
    subject = f"flow run {state.flow_run_id}" if run is None else str(run)
    last_state = (
        "No poll succeeded"
        if run is None
        else f"At the last successful poll it was {run.raw_state!r} at {run.progress:.0%}"
    )
    last_error = str(state.last_error or "").removesuffix(".")
    last_failure = f"; the last poll failed: {last_error}" if last_error else ""
    advice = "" if run is None and last_error else " If runs of this flow take this long, increase timeout."
    return FlowTimeout(
        f"The deadline passed before the {subject} was final. {last_state}{last_failure}.{advice}"
    )


def age(run: FlowRun | None, now: float, waiting_since: float) -> float:
    """Return a run's age in seconds: by its timestamps or, if these are missing or ahead, the time waited."""
    start = None if run is None else (run.started_at or run.created_at)
    by_run = -1.0 if start is None else now - to_epoch(start)
    return by_run if by_run >= 0 else max(0.0, now - waiting_since)


def expected_end(run: FlowRun, now: float) -> float | None:
    """Return the epoch seconds at which a run ends if its progress continues as so far, None if unknown."""
    if run.started_at is None or not 0 < run.progress < 1:
        return None
    elapsed = now - to_epoch(run.started_at)
    remaining = elapsed * (1 - run.progress) / run.progress
    return now + remaining if elapsed > 0 and remaining < MAX_FORECAST_SECONDS else None


def _fill_from_previous(run: FlowRun, previous: FlowRun | None) -> FlowRun:
    """Complete a run with what only the previous poll returned: the rows of a list may leave much out."""
    if previous is None or (run.flow and run.started_at):
        return run
    names = ("flow", "created_at", "started_at")
    return replace(run, **{name: getattr(run, name) or getattr(previous, name) for name in names})

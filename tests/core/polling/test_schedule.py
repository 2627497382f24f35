"""Tests of when a wait polls: the promise in Schedule's docstring, simulated for many shapes of progress.

No time passes: the clock is a number, and a run is a function of it.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import pendulum
import pytest

from airflow_provider_flows.core.exceptions import (
    FlowInputError,
    FlowNotFound,
    FlowServiceError,
    FlowTimeout,
    FlowUnreachable,
)
from airflow_provider_flows.core.flow_run import FlowRun, FlowState
from airflow_provider_flows.core.polling.schedule import (
    MAX_RETRY_AFTER_SECONDS,
    Delay,
    Done,
    Failed,
    Forecast,
    PollState,
    PollStep,
    Schedule,
    age,
    expected_end,
    next_step,
    to_seconds,
)
from airflow_provider_flows.core.timestamps import parse_timestamp
from tests.support.scripted_transport import NOON

SHAPES: dict[str, Callable[[float], float]] = {
    "smooth": lambda part: part,
    "no progress": lambda _: 0.0,
    "slow start": lambda part: part**3,
    "slow end": lambda part: min(0.99, part**0.2),
    "steps": lambda part: int(part * 4) / 4,
    "too soon": lambda part: min(0.99, part * 3),
    "back and forth": lambda part: abs((part * 7) % 1 - 0.5),
    "full at once": lambda _: 1.0,
}


@dataclass(frozen=True)
class SimulatedRun:
    """A run of `duration` seconds, at a service whose clock is `skew` seconds ahead."""

    duration: float
    shape: str
    skew: float = 0.0
    has_timestamps: bool = True

    def at(self, now: float) -> FlowRun:
        """Return the run as a poll at this time shows it."""
        elapsed = now - NOON
        is_over = elapsed >= self.duration
        started_at = pendulum.from_timestamp(NOON + self.skew) if self.has_timestamps else None
        progress = 1.0 if is_over else SHAPES[self.shape](elapsed / self.duration)
        return FlowRun(
            "r",
            "generio",
            state=FlowState.COMPLETED if is_over else FlowState.RUNNING,
            progress=progress,
            started_at=started_at,
        )


def delay(schedule: Schedule, run: FlowRun | None, now: float, forecast: Forecast | None = None) -> float:
    """Return the seconds until the next poll of a wait that began at noon."""
    return schedule.poll_delay(PollState("r", NOON, run, forecast or Forecast()), now).seconds


def poll_times(schedule: Schedule, simulated: SimulatedRun) -> list[float]:
    """Poll until the run is over, and return the seconds since its start."""
    now, times = NOON, []
    while True:
        times.append(now - NOON)
        run = simulated.at(now)
        if run.is_final:
            return times
        now += delay(schedule, run, now, Forecast().after(run, now))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("duration", [0.5, 3, 47, 61, 299, 3_600, 100_000])
@pytest.mark.parametrize("has_timestamps", [True, False])
def test_detection_delay_is_bounded(shape: str, duration: float, has_timestamps: bool) -> None:
    """Any run is detected within poll_interval or a tenth of its age, and within max_poll_interval."""
    for jitter in (0.0, 0.5, 1.0, random.Random(7).random()):
        schedule = Schedule(5, 60, jitter=lambda jitter=jitter: jitter)
        times = poll_times(schedule, SimulatedRun(duration, shape, has_timestamps=has_timestamps))
        assert times[-1] - duration <= min(60, max(5, duration / 10)) + 1e-6


@pytest.mark.parametrize("skew", [-86_400.0, 86_400.0, 3.0])
def test_wrong_clock_delays_detection_by_max_poll_interval(skew: float) -> None:
    """A service whose clock is a day off delays detection by at most max_poll_interval."""
    times = poll_times(Schedule(5, 60, jitter=lambda: 0.0), SimulatedRun(600, "smooth", skew))
    assert times[-1] - 600 <= 60


@pytest.mark.parametrize("shape", SHAPES)
def test_polls_are_never_closer_than_poll_interval(shape: str) -> None:
    """Two polls are never closer than poll_interval less its jitter of a tenth."""
    times = poll_times(Schedule(5, 60, jitter=lambda: 1.0), SimulatedRun(3_600, shape))
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert min(gaps) >= 4.5
    assert max(gaps) <= 60


def test_run_of_an_hour_takes_few_polls() -> None:
    """A run of an hour is polled fewer than 120 times, not the 720 times of a fixed interval."""
    assert len(poll_times(Schedule(5, 60, jitter=lambda: 0.0), SimulatedRun(3_600, "no progress"))) < 120


def test_steady_run_is_polled_at_its_end() -> None:
    """A run with steady progress is polled at its expected end."""
    times = poll_times(Schedule(5, 600, jitter=lambda: 0.0), SimulatedRun(1_000, "smooth"))
    assert times[-1] == pytest.approx(1_000, abs=5)


def test_last_poll_is_at_the_deadline() -> None:
    """The last poll is at the deadline, never after it."""
    schedule = Schedule(5, 60, deadline=NOON + 12, jitter=lambda: 0.0)
    assert delay(schedule, SimulatedRun(99, "no progress").at(NOON + 10), NOON + 10) == 2
    assert delay(schedule, None, NOON + 20) == 0
    assert not schedule.is_expired(NOON + 11.9)
    assert schedule.is_expired(NOON + 12)
    assert not Schedule().is_expired(1e12)


def test_failed_polls_back_off() -> None:
    """After failed polls the delay doubles from poll_interval to max_poll_interval, however many failed."""
    schedule = Schedule(5, 60, jitter=lambda: 0.0)
    assert [schedule.backoff_delay(failed_polls, NOON, None) for failed_polls in (1, 2, 3, 4, 5, 9_999)] == [
        5,
        10,
        20,
        40,
        60,
        60,
    ]


def test_retry_after_is_obeyed_until_the_deadline() -> None:
    """A Retry-After is obeyed for up to an hour, and never beyond the deadline."""
    schedule = Schedule(5, 60, jitter=lambda: 0.0)
    assert schedule.backoff_delay(1, NOON, 300.0) == 300
    assert schedule.backoff_delay(1, NOON, 1.0) == 5
    assert schedule.backoff_delay(1, NOON, float("inf")) == MAX_RETRY_AFTER_SECONDS
    assert Schedule(5, 60, NOON + 100).backoff_delay(1, NOON, 300.0) == 100


def test_age_and_expected_end_come_from_the_run() -> None:
    """A run's age counts from its start, or from the wait's if that is in the future; no progress, no end."""
    assert age(SimulatedRun(9, "no progress", skew=-30).at(NOON), NOON, NOON) == 30
    assert age(SimulatedRun(9, "no progress", skew=30).at(NOON), NOON, NOON - 7) == 7
    assert expected_end(SimulatedRun(100, "smooth").at(NOON + 25), NOON + 25) == NOON + 100
    assert expected_end(SimulatedRun(100, "no progress").at(NOON + 25), NOON + 25) is None


@pytest.mark.parametrize("value", [-1, "5", float("nan"), float("inf"), True, timedelta(seconds=-1), [5]])
def test_invalid_duration_is_rejected_by_name(value: object) -> None:
    """Durations are seconds or timedeltas; anything else is an error that names the argument."""
    with pytest.raises(FlowInputError, match="poll_interval must be a non-negative number of seconds"):
        to_seconds("poll_interval", value)


def test_durations_are_converted_to_seconds() -> None:
    """Seconds and timedeltas mean the same, None stays None."""
    assert (to_seconds("x", 5), to_seconds("x", timedelta(minutes=1)), to_seconds("x", None)) == (
        5.0,
        60.0,
        None,
    )


@pytest.mark.parametrize(("poll_interval", "max_poll_interval"), [(0, 60), (-1, 60), (61, 60)])
def test_invalid_intervals_are_rejected(poll_interval: float, max_poll_interval: float) -> None:
    """poll_interval must be positive, and not more than max_poll_interval."""
    with pytest.raises(FlowInputError, match="poll_interval"):
        Schedule(poll_interval, max_poll_interval)


def poll_times_with_forecast(schedule: Schedule, simulated: SimulatedRun) -> list[float]:
    """Poll until the run is over, with a forecast, and return the seconds since its start."""
    now, times, forecast = NOON, [], Forecast()
    while True:
        times.append(now - NOON)
        run = simulated.at(now)
        if run.is_final:
            return times
        forecast = forecast.after(run, now, 0.9 * schedule.poll_interval)
        now += delay(schedule, run, now, forecast)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("duration", [0.5, 3, 47, 61, 299, 3_600, 100_000])
@pytest.mark.parametrize("has_timestamps", [True, False])
def test_detection_delay_is_bounded_with_forecasts(shape: str, duration: float, has_timestamps: bool) -> None:
    """With forecasts, steady and silent runs are detected as promised, others within max_poll_interval."""
    for jitter in (0.0, 0.5, 1.0):
        schedule = Schedule(5, 60, jitter=lambda jitter=jitter: jitter)
        times = poll_times_with_forecast(
            schedule, SimulatedRun(duration, shape, has_timestamps=has_timestamps)
        )
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        is_predictable = shape in {"smooth", "no progress", "full at once"} or not has_timestamps
        promised = max(5, duration / 10) if is_predictable else 60
        assert times[-1] - duration <= min(60, promised) + 1e-6
        assert all(4.5 - 1e-6 <= gap <= 60 + 1e-6 for gap in gaps)


@pytest.mark.parametrize("duration", [60, 600, 7_200])
def test_steady_run_is_polled_rarely_in_the_middle(duration: float) -> None:
    """A steady run is polled a fraction as often as one without progress, and detected at its end."""
    schedule = Schedule(5, 3_600, jitter=lambda: 0.5)
    steady = poll_times_with_forecast(schedule, SimulatedRun(duration, "smooth"))
    assert len(steady) < len(poll_times_with_forecast(schedule, SimulatedRun(duration, "no progress"))) * 0.75
    assert steady[-1] - duration <= 0.02 * duration + 1
    assert len(steady) <= 8 + duration / 25


def test_forecast_changes_with_progress_only() -> None:
    """A poll without a run, without progress, or too soon leaves the forecast as it is."""
    simulated, first = (
        SimulatedRun(100, "smooth"),
        Forecast().after(SimulatedRun(100, "smooth").at(NOON + 10), NOON + 10),
    )
    assert (first.end, first.previous_end, first.observed_at) == (NOON + 100, None, NOON + 10)
    assert first.after(simulated.at(NOON + 10), NOON + 50) is first
    assert first.after(None, NOON + 50) is first
    assert first.after(simulated.at(NOON + 12), NOON + 12, min_interval=4.5) is first
    second = first.after(simulated.at(NOON + 20), NOON + 20, min_interval=4.5)
    assert second == Forecast(0.2, NOON + 20, NOON + 100, NOON + 100)


def test_agreeing_forecasts_postpone_the_next_poll() -> None:
    """Forecasts that agree to within a tenth of the remaining time postpone the next poll."""
    schedule, run = Schedule(5, 60, jitter=lambda: 0.0), SimulatedRun(100, "no progress").at(NOON)
    delays = [
        delay(schedule, run, NOON, Forecast(0.5, NOON, NOON + 100, NOON + 100 + moved))
        for moved in (0, 5, 9, 11)
    ]
    assert delays == [50, 50, 10, 5]
    assert Forecast(0.5, NOON, NOON + 100, NOON + 109).uncertainty == 90
    assert Forecast(0.5, NOON, NOON + 100, None).uncertainty == math.inf
    assert Forecast(0.5, NOON, None, NOON + 100).uncertainty == math.inf
    assert delay(schedule, run, NOON + 101, Forecast(0.5, NOON, NOON + 100, NOON + 100)) == 5


def test_poll_is_a_little_after_the_expected_end() -> None:
    """Near its expected end a run is polled just after it, within both intervals and the deadline."""
    schedule, run = Schedule(5, 60, jitter=lambda: 0.0), SimulatedRun(20, "smooth").at(NOON + 12)
    steady, first = Forecast(0.6, NOON + 12, NOON + 20, NOON + 20), Forecast(0.6, NOON + 12, NOON + 20, None)
    state = PollState("r", NOON, run, steady)
    at_end = schedule.poll_delay(state, NOON + 12)
    assert 8 < at_end.seconds < 9
    assert at_end.is_at_expected_end
    for forecast in (first, Forecast()):
        assert schedule.poll_delay(PollState("r", NOON, run, forecast), NOON + 12) == (5, False)
    assert not schedule.poll_delay(state, NOON + 20).is_at_expected_end
    assert Schedule(5, 60, NOON + 15, jitter=lambda: 0.0).poll_delay(state, NOON + 12) == (3, False)


@pytest.mark.parametrize(
    ("started", "progress"),
    [("0001-01-01T00:00:00Z", 0.1), (NOON - 1, 1e-300), (NOON - 1, 5e-324), (-1e9, 1e-12)],
)
def test_implausible_progress_results_in_a_valid_delay(started: object, progress: float) -> None:
    """A start in the year 1, or hardly any progress, results in no forecast and a valid delay."""
    run = FlowRun(
        "r", "generio", state=FlowState.RUNNING, progress=progress, started_at=parse_timestamp(started)
    )
    forecast = Forecast().after(run, NOON)
    assert 0 < delay(Schedule(5, 60), run, NOON, forecast) <= 60
    assert forecast.end is None or math.isfinite(forecast.end)


FINAL = FlowRun("r", "generio", state=FlowState.COMPLETED, progress=1.0)
RUNNING = FlowRun("r", "generio", state=FlowState.RUNNING)
TRANSIENT, PERMANENT = FlowUnreachable("GET / got no response"), FlowNotFound("gone")
REJECTED_TWICE = PollState("r", NOON, failed_polls=2, permanent_errors=2, last_error=PERMANENT)
STEPS: dict[str, tuple[PollState, FlowRun | FlowServiceError | None, float, type[PollStep], object]] = {
    "an active run": (PollState("r", NOON), RUNNING, NOON, Delay, 5.0),
    "an old run": (PollState("r", NOON, RUNNING), RUNNING, NOON + 80, Delay, 8.0),
    "no poll yet": (PollState("r", NOON), None, NOON, Delay, 5.0),
    "a final run": (PollState("r", NOON), FINAL, NOON, Done, FINAL),
    "a final run after the deadline": (PollState("r", NOON), FINAL, NOON + 101, Done, FINAL),
    "a final run after rejections": (REJECTED_TWICE, FINAL, NOON, Done, FINAL),
    "a transient error": (PollState("r", NOON), TRANSIENT, NOON, Delay, 5.0),
    "another transient error": (REJECTED_TWICE, TRANSIENT, NOON, Delay, 20.0),
    "a first permanent error": (PollState("r", NOON), PERMANENT, NOON, Delay, 5.0),
    "a third permanent error": (REJECTED_TWICE, PERMANENT, NOON, Failed, PERMANENT),
    "a third one after the deadline": (REJECTED_TWICE, PERMANENT, NOON + 101, Failed, PERMANENT),
    "a poll just before the deadline": (PollState("r", NOON), RUNNING, NOON + 99, Delay, 1.0),
    "an active run at the deadline": (PollState("r", NOON), RUNNING, NOON + 100, Failed, FlowTimeout),
    "an error at the deadline": (PollState("r", NOON), TRANSIENT, NOON + 100, Failed, FlowTimeout),
    "the deadline alone": (PollState("r", NOON), None, NOON + 100, Failed, FlowTimeout),
}


@pytest.mark.parametrize("case", STEPS)
def test_each_observation_leads_to_one_step(case: str) -> None:
    """A final run ends a wait; a third permanent error or the deadline fails it; else it polls again."""
    state, observation, now, kind, expected = STEPS[case]
    schedule = Schedule(5, 60, NOON + 100, jitter=lambda: 0.0)

    _, step = next_step(schedule, state, observation, now)

    assert type(step) is kind
    outcome = type(step[0]) if expected is FlowTimeout else step[0]
    assert outcome == expected


def test_step_records_its_observation() -> None:
    """A run replaces the errors before it; an error is counted, but for the one that ends the wait."""
    schedule = Schedule(5, 60, jitter=lambda: 0.0)

    after_run, _ = next_step(schedule, REJECTED_TWICE, RUNNING, NOON + 9, NOON + 8)
    after_error, _ = next_step(schedule, after_run, TRANSIENT, NOON + 9)
    after_rejection, _ = next_step(schedule, REJECTED_TWICE, PERMANENT, NOON)

    assert after_run == PollState("r", NOON, RUNNING, was_found=True)
    assert after_error == after_run._replace(failed_polls=1, last_error=TRANSIENT)
    assert after_rejection == REJECTED_TWICE


def test_forecast_dates_from_the_observation() -> None:
    """A run that a list showed some seconds ago has its forecast from that time, not from the decision's."""
    run = SimulatedRun(100, "smooth").at(NOON + 20)
    state, _ = next_step(Schedule(), PollState("r", NOON), run, NOON + 29, NOON + 20)
    assert (state.forecast.observed_at, state.forecast.end) == (NOON + 20, NOON + 100)


def test_rejection_needs_confirmation_while_polls_are_few() -> None:
    """A rejected poll is confirmed by up to two more; transient errors alone need none."""
    state = PollState("r", NOON)
    needs = []
    for error in (TRANSIENT, PERMANENT, TRANSIENT):
        state, _ = next_step(Schedule(), state, error, NOON)
        needs.append(state.needs_confirmation)
    assert needs == [False, True, False]

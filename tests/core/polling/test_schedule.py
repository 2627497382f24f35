"""Tests of when a wait looks: the promise in Schedule's docstring, by simulation over many shapes of progress.

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

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.polling.schedule import (
    MAX_RETRY_AFTER_SECONDS,
    Forecast,
    Schedule,
    age,
    expected_end,
    to_seconds,
)
from airflow_provider_flows.core.run import FlowRun, FlowState
from airflow_provider_flows.core.timestamps import parse_timestamp
from tests.support.scripted_transport import NOON

SHAPES: dict[str, Callable[[float], float]] = {
    "smooth": lambda part: part,
    "late": lambda _: 0.0,
    "slow start": lambda part: part**3,
    "slow end": lambda part: min(0.99, part**0.2),
    "steps": lambda part: int(part * 4) / 4,
    "too soon": lambda part: min(0.99, part * 3),
    "back and forth": lambda part: abs((part * 7) % 1 - 0.5),
    "full at once": lambda _: 1.0,
}


@dataclass(frozen=True)
class Course:
    """A run that takes `lasts` seconds; `skew` is how far the service's clock is ahead, `told` whether it tells any time."""

    lasts: float
    shape: str
    skew: float = 0.0
    told: bool = True

    def at(self, now: float) -> FlowRun:
        """Show the run at a moment."""
        passed = now - NOON
        over = passed >= self.lasts
        begun = pendulum.from_timestamp(NOON + self.skew) if self.told else None
        progress = 1.0 if over else SHAPES[self.shape](passed / self.lasts)
        return FlowRun(
            "r",
            "generio",
            state=FlowState.COMPLETED if over else FlowState.RUNNING,
            progress=progress,
            started_at=begun,
        )


def looks(schedule: Schedule, course: Course) -> list[float]:
    """Look until the run is over, and give the moments since its start."""
    now, moments = NOON, []
    while True:
        moments.append(now - NOON)
        run = course.at(now)
        if run.is_final:
            return moments
        now += schedule.next_poll_delay(run, now, NOON)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lasts", [0.5, 3, 47, 61, 299, 3_600, 100_000])
@pytest.mark.parametrize("told", [True, False])
def test_news_is_late_by_no_more_than_promised(shape: str, lasts: float, told: bool) -> None:  # noqa: FBT001
    """However a run goes, its end is seen within poll_interval or a tenth of its age, and within max_poll_interval."""
    for jitter in (0.0, 0.5, 1.0, random.Random(7).random()):  # noqa: S311
        schedule = Schedule(5, 60, jitter=lambda jitter=jitter: jitter)  # type: ignore[misc]
        moments = looks(schedule, Course(lasts, shape, told=told))
        assert moments[-1] - lasts <= min(60, max(5, lasts / 10)) + 1e-6


@pytest.mark.parametrize("skew", [-86_400.0, 86_400.0, 3.0])
def test_service_with_a_wrong_clock_costs_no_more_than_the_most(skew: float) -> None:
    """A service whose clock is a day off delays news by max_poll_interval at the most."""
    moments = looks(Schedule(5, 60, jitter=lambda: 0.0), Course(600, "smooth", skew))
    assert moments[-1] - 600 <= 60


@pytest.mark.parametrize("shape", SHAPES)
def test_it_never_looks_more_often_than_told(shape: str) -> None:
    """Two looks are never nearer than poll_interval less its jitter of a tenth."""
    moments = looks(Schedule(5, 60, jitter=lambda: 1.0), Course(3_600, shape))
    gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert min(gaps) >= 4.5
    assert max(gaps) <= 60


def test_an_hour_is_waited_for_with_few_looks() -> None:
    """A run of an hour is looked at less than a hundred and twenty times, not the 720 of a fixed interval."""
    assert len(looks(Schedule(5, 60, jitter=lambda: 0.0), Course(3_600, "late"))) < 120


def test_known_end_is_met() -> None:
    """A run whose progress tells its end is looked at just then."""
    moments = looks(Schedule(5, 600, jitter=lambda: 0.0), Course(1_000, "smooth"))
    assert moments[-1] == pytest.approx(1_000, abs=5)


def test_deadline_is_met_to_the_second() -> None:
    """The last look is at the deadline, never after it."""
    schedule = Schedule(5, 60, deadline=NOON + 12, jitter=lambda: 0.0)
    assert schedule.next_poll_delay(Course(99, "late").at(NOON + 10), NOON + 10, NOON) == 2
    assert schedule.next_poll_delay(None, NOON + 20, NOON) == 0
    assert not schedule.is_expired(NOON + 11.9)
    assert schedule.is_expired(NOON + 12)
    assert not Schedule().is_expired(1e12)


def test_looks_that_bring_nothing_come_less_and_less_often() -> None:
    """After misses the pause doubles from poll_interval to max_poll_interval, however many there were."""
    schedule = Schedule(5, 60, jitter=lambda: 0.0)
    assert [schedule.backoff_delay(misses, NOON, None) for misses in (1, 2, 3, 4, 5, 9_999)] == [
        5,
        10,
        20,
        40,
        60,
        60,
    ]


def test_retry_after_is_kept_but_for_the_deadline() -> None:
    """A pause that the service asks for is kept, up to an hour, and never beyond the deadline."""
    schedule = Schedule(5, 60, jitter=lambda: 0.0)
    assert schedule.backoff_delay(1, NOON, 300.0) == 300
    assert schedule.backoff_delay(1, NOON, 1.0) == 5
    assert schedule.backoff_delay(1, NOON, float("inf")) == MAX_RETRY_AFTER_SECONDS
    assert Schedule(5, 60, NOON + 100).backoff_delay(1, NOON, 300.0) == 100


def test_age_and_end_are_told_by_the_run() -> None:
    """A run's age goes by its own start, and where that lies ahead by the wait; no progress tells no end."""
    assert age(Course(9, "late", skew=-30).at(NOON), NOON, NOON) == 30
    assert age(Course(9, "late", skew=30).at(NOON), NOON, NOON - 7) == 7
    assert expected_end(Course(100, "smooth").at(NOON + 25), NOON + 25) == NOON + 100
    assert expected_end(Course(100, "late").at(NOON + 25), NOON + 25) is None


@pytest.mark.parametrize("value", [-1, "5", float("nan"), float("inf"), True, timedelta(seconds=-1), [5]])
def test_duration_that_is_none_is_refused_by_name(value: object) -> None:
    """Durations are seconds or timedeltas; anything else is an error that names the argument."""
    with pytest.raises(FlowInputError, match="poll_interval must be seconds"):
        to_seconds("poll_interval", value)  # type: ignore[arg-type]


def test_durations_are_read() -> None:
    """Seconds and timedeltas mean the same, None stays None."""
    assert (to_seconds("x", 5), to_seconds("x", timedelta(minutes=1)), to_seconds("x", None)) == (
        5.0,
        60.0,
        None,
    )


@pytest.mark.parametrize(("most", "least"), [(0, 60), (-1, 60), (61, 60)])
def test_intervals_that_cannot_be_kept_are_refused(most: float, least: float) -> None:
    """poll_interval must be positive, and not more than max_poll_interval."""
    with pytest.raises(FlowInputError, match="poll_interval"):
        Schedule(most, least)


def forecast_looks(schedule: Schedule, course: Course) -> list[float]:
    """Look until the run is over, remembering what the looks let expect, and give the moments since its start."""
    now, moments, forecast = NOON, [], Forecast()
    while True:
        moments.append(now - NOON)
        run = course.at(now)
        if run.is_final:
            return moments
        forecast = forecast.after(run, now, 0.9 * schedule.poll_interval)
        now += schedule.next_poll_delay(run, now, NOON, forecast)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lasts", [0.5, 3, 47, 61, 299, 3_600, 100_000])
@pytest.mark.parametrize("told", [True, False])
def test_memory_of_forecasts_keeps_the_promise(shape: str, lasts: float, told: bool) -> None:  # noqa: FBT001
    """With forecasts remembered, news of steady runs and silent ones are as late as promised at the most, others' by the most."""
    for jitter in (0.0, 0.5, 1.0):
        schedule = Schedule(5, 60, jitter=lambda jitter=jitter: jitter)  # type: ignore[misc]
        moments = forecast_looks(schedule, Course(lasts, shape, told=told))
        gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
        promised = max(5, lasts / 10) if shape in {"smooth", "late", "full at once"} or not told else 60
        assert moments[-1] - lasts <= min(60, promised) + 1e-6
        assert all(4.5 - 1e-6 <= gap <= 60 + 1e-6 for gap in gaps)


@pytest.mark.parametrize("lasts", [60, 600, 7_200])
def test_steady_run_is_looked_at_rarely_in_the_middle(lasts: float) -> None:
    """A run whose progress is steady is looked at a fraction as often as one that tells nothing, and met at its very end."""
    schedule = Schedule(5, 3_600, jitter=lambda: 0.5)
    steady = forecast_looks(schedule, Course(lasts, "smooth"))
    assert len(steady) < len(forecast_looks(schedule, Course(lasts, "late"))) * 0.75
    assert steady[-1] - lasts <= 0.02 * lasts + 1
    assert len(steady) <= 8 + lasts / 25


def test_forecast_is_made_by_progress_that_has_changed() -> None:
    """A look that sees no change, no run, or comes too soon leaves the forecast as it is; the one before is remembered."""
    course, first = Course(100, "smooth"), Forecast().after(Course(100, "smooth").at(NOON + 10), NOON + 10)
    assert (first.end, first.previous_end, first.observed_at) == (NOON + 100, None, NOON + 10)
    assert first.after(course.at(NOON + 10), NOON + 50) is first
    assert first.after(None, NOON + 50) is first
    assert first.after(course.at(NOON + 12), NOON + 12, min_interval=4.5) is first
    second = first.after(course.at(NOON + 20), NOON + 20, min_interval=4.5)
    assert second == Forecast(0.2, NOON + 20, NOON + 100, NOON + 100)


def test_forecasts_that_agree_are_steady() -> None:
    """Two ends are one if they differ by a tenth of the time that is left; an end that is past, or is the first, is not."""
    assert Forecast(0.5, NOON, NOON + 100, NOON + 109).is_steady(NOON)
    assert not Forecast(0.5, NOON, NOON + 100, NOON + 111).is_steady(NOON)
    assert not Forecast(0.5, NOON, NOON + 100, NOON + 100).is_steady(NOON + 101)
    assert not Forecast(0.5, NOON, NOON + 100, None).is_steady(NOON)
    assert not Forecast(0.5, NOON, None, NOON + 100).is_steady(NOON)


def test_landing_is_a_little_after_the_expected_end() -> None:
    """Near its expected end a run is left alone until just after it, within the intervals and the deadline; earlier it is not."""
    schedule, run = Schedule(5, 60, jitter=lambda: 0.0), Course(20, "smooth").at(NOON + 12)
    steady, first = Forecast(0.6, NOON + 12, NOON + 20, NOON + 20), Forecast(0.6, NOON + 12, NOON + 20, None)
    landed = schedule.delay_to_expected_end(run, NOON + 12, NOON, steady)
    assert landed is not None
    assert 8 < landed < 9
    assert schedule.delay_to_expected_end(run, NOON + 12, NOON, first) is None
    assert schedule.delay_to_expected_end(run, NOON + 12, NOON, Forecast()) is None
    assert schedule.delay_to_expected_end(run, NOON + 20, NOON, steady) is None
    assert schedule.next_poll_delay(run, NOON + 12, NOON, steady) == landed
    assert Schedule(5, 60, NOON + 15, jitter=lambda: 0.0).next_poll_delay(run, NOON + 12, NOON, steady) == 3


@pytest.mark.parametrize(
    ("started", "progress"),
    [("0001-01-01T00:00:00Z", 0.1), (NOON - 1, 1e-300), (NOON - 1, 5e-324), (-1e9, 1e-12)],
)
def test_absurd_progress_breaks_no_schedule(started: object, progress: float) -> None:
    """A start in the year 1 or a progress next to nothing lets expect nothing sensible, and breaks nothing."""
    run = FlowRun(
        "r", "generio", state=FlowState.RUNNING, progress=progress, started_at=parse_timestamp(started)
    )
    forecast = Forecast().after(run, NOON)
    assert 0 < Schedule(5, 60).next_poll_delay(run, NOON, NOON, forecast) <= 60
    assert forecast.end is None or math.isfinite(forecast.end)

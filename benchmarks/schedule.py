"""Benchmark 2: polls and detection delay of the schedule and of fixed intervals, with a simulated clock.

The wait and its driver are the package's; only time and the service are simulated.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import pendulum

from airflow_provider_flows.core.flow_run import FlowRun, FlowState
from airflow_provider_flows.core.http import Conversation, Request, Sleep
from airflow_provider_flows.core.polling.schedule import Schedule
from airflow_provider_flows.core.polling.wait import Wait
from airflow_provider_flows.transport import blocking
from benchmarks.measures import mean, percentile
from benchmarks.reporting import Column, Report, Target, ratio
from benchmarks.scripted_runs import PROGRESS

LENGTHS = {"1 min": 60.0, "10 min": 600.0, "2 h": 7200.0}
LENGTH_SPREAD = 0.2  # maximum difference of a run's length from the length of its row, as a part of it
# The shortest and longest interval in seconds: the defaults of trigger and operator, and of the sensor.
MODES = {"trigger 5-60": (5.0, 60.0), "reschedule 60-300": (60.0, 300.0)}
MIN_FIXED_INTERVAL_SECONDS = 0.001  # a mean delay of zero would need a fixed interval of zero
ORIGIN = 1_800_000_000.0  # epoch seconds; any time
COLUMNS = (
    Column("mode", "mode"),
    Column("run", "length"),
    Column("progress", "progress"),
    Column("polls", "polls", ".1f"),
    Column("mean delay", "delay_mean", ".2f"),
    Column("p99", "delay_p99", ".2f"),
    Column("max", "delay_max", ".2f"),
    Column("fixed: polls", "fixed_polls", ".1f"),
    Column("mean delay", "fixed_delay", ".2f"),
    Column("same delay: interval", "equal_interval", ".2f"),
    Column("polls", "equal_polls", ".1f"),
    Column("polls, of these", "polls_of_equal", ".3f"),
)
NOTES = (
    "All times are in seconds; the delay is from a run's end to its detection.",
    "fixed: polls at the shortest interval of the mode.",
    "same delay: the fixed interval with the same mean delay (twice the mean delay), and its polls.",
    "percent: linear in full percents; hasty: 90 % after a third of the time; sluggish: 12 % at half of it.",
)


@dataclass(slots=True)
class Clock:
    """A clock that only sleeps advance."""

    now: float = ORIGIN

    def time(self) -> float:
        """Return the time in epoch seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Advance the clock."""
        self.now += seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument_group("schedule").add_argument(
        "--samples", type=int, help="runs to average over (default: 400)"
    )


def run(options: argparse.Namespace) -> Report:
    """Simulate every mode, length and kind of progress."""
    samples = options.samples or (50 if options.quick else 400)
    title = f"Schedule: polls and detection delay, mean of {samples} runs each, with a simulated clock"
    report = Report("schedule", title, COLUMNS, notes=list(NOTES))
    for mode in MODES:
        for length in LENGTHS:
            report.rows += [_simulate(mode, length, progress, samples, options.seed) for progress in PROGRESS]
    report.targets += _targets(report.rows)
    return report


def polls_until_final(schedule: Schedule, duration: float, progress: str) -> tuple[int, float]:
    """Wait for a run with the schedule; return the number of polls and the detection delay in seconds."""
    clock, polls = Clock(), 0

    def get_run(flow_run_id: str) -> Conversation[FlowRun]:
        nonlocal polls
        polls += 1
        yield Sleep(0.0)  # in place of the request
        return _run_at_age(flow_run_id, clock.time() - ORIGIN, duration, progress)

    wait = Wait("run", get_run, schedule=schedule, clock=clock.time, log=lambda _level, _line: None)
    blocking.run(wait.poll_until_final(), _reject_request, clock.sleep)
    return polls, clock.time() - ORIGIN - duration


def fixed_interval_polls(interval: float, durations: Sequence[float]) -> tuple[float, float]:
    """Return the mean number of polls and the mean delay of a fixed interval, for runs of these durations."""
    polls = [math.ceil(each / interval) for each in durations]
    delays = [number * interval - each for number, each in zip(polls, durations, strict=True)]
    return mean(polls) + 1, mean(delays)  # the first poll is at the start, as in the schedule


def _simulate(mode: str, length: str, progress: str, samples: int, seed: int) -> dict[str, Any]:
    chance = random.Random(f"{seed} {length}")  # noqa: S311  # repeatable, not secret; the same runs for every mode
    durations = [
        LENGTHS[length] * chance.uniform(1 - LENGTH_SPREAD, 1 + LENGTH_SPREAD) for _ in range(samples)
    ]
    min_interval, max_interval = MODES[mode]
    schedule = Schedule(min_interval, max_interval, jitter=random.Random(seed).random)  # noqa: S311  # repeatable, not secret
    found = [polls_until_final(schedule, each, progress) for each in durations]
    polls, delays = mean([number for number, _ in found]), [each for _, each in found]
    fixed, fixed_delay = fixed_interval_polls(min_interval, durations)
    equal = max(2 * mean(delays), MIN_FIXED_INTERVAL_SECONDS)
    equal_polls, _ = fixed_interval_polls(equal, durations)
    return {
        "mode": mode,
        "length": length,
        "progress": progress,
        "polls": polls,
        "delay_mean": mean(delays),
        "delay_p99": percentile(delays, 0.99),
        "delay_max": max(delays),
        "fixed_polls": fixed,
        "fixed_delay": fixed_delay,
        "equal_interval": equal,
        "equal_polls": equal_polls,
        "polls_of_equal": ratio(polls, equal_polls),
    }


def _run_at_age(flow_run_id: str, age: float, duration: float, progress: str) -> FlowRun:
    """Return the run at this age, as the service would report it."""
    done = age >= duration
    state = FlowState.COMPLETED if done else FlowState.RUNNING
    started_at = pendulum.from_timestamp(ORIGIN)
    return FlowRun(
        flow_run_id=flow_run_id,
        service="generio",
        state=state,
        raw_state=state.value,
        progress=1.0 if done else PROGRESS[progress](age / duration),
        created_at=started_at,
        started_at=started_at,
        finished_at=pendulum.from_timestamp(ORIGIN + duration) if done else None,
    )


def _reject_request(request: Request) -> NoReturn:
    raise AssertionError(f"a simulated run sends no request: {request}")


def _targets(rows: list[dict[str, Any]]) -> Iterator[Target]:
    for row in rows:
        if row["progress"] == "linear":
            what = f"{row['mode']}, {row['length']}, linear: polls, of a fixed interval's with the same delay"
            yield Target(what, row["polls_of_equal"], "<= 0.2")

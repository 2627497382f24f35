"""The wait for a flow run's end, written once: looks, patience, the deadline, and what the log is told.

When to look is schedule.py's answer; nothing here sleeps or sends, so every mode of waiting holds this same conversation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.exceptions import FlowServiceError, FlowTimeout
from airflow_provider_flows.core.http import Sleep
from airflow_provider_flows.core.polling.schedule import JITTER, Forecast, Schedule, age
from airflow_provider_flows.core.run import FlowRun, FlowState
from airflow_provider_flows.core.timestamps import to_epoch

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Conversation

MAX_REJECTIONS = 3  # looks: a key may be being changed, a run not visible yet, a gateway confused; what persists ends the wait
MAX_CONFIRM_DELAY_SECONDS = (
    10.0  # at the most between looks that must be sure, for a worker is held up by them
)
PROGRESS_LOG_STEP = 0.1 - 1e-9  # progress is told when it has moved by ten points

LogFunction = Callable[[int, str], None]  # a logging level and a line


class WaitMetrics:
    """What is counted of waits, for whoever keeps statistics; this one keeps none."""

    __slots__ = ()

    def count_poll(self) -> None:
        """Count a look at one run."""

    def record_end(self, run: FlowRun, wait_seconds: float, detection_delay: float | None) -> None:
        """Note that a run was seen to be final, so many seconds after the wait began and after its end (None: not known)."""


NO_WAIT_METRICS = WaitMetrics()


class Wait:
    """One wait for one flow run: what was seen last, what was told of it, and how many looks in a row brought nothing."""

    # thousands live in one triggerer, where each object more is one more for the garbage collector to walk over, on the loop
    __slots__ = (
        "_clock",
        "_forecast",
        "_get_run",
        "_metrics",
        "_last_error",
        "_failed_polls",
        "_progress_logger",
        "_is_restored",
        "_rejections",
        "_since",
        "flow_run_id",
        "is_due_at_expected_end",
        "run",
        "schedule",
    )

    def __init__(
        self,
        flow_run_id: str,
        get_run: Callable[[str], Conversation[FlowRun]],
        *,
        schedule: Schedule,
        clock: Callable[[], float],
        log: LogFunction,
        metrics: WaitMetrics | None = None,
        min_interval: float = 0.0,
    ) -> None:
        """Prepare the wait; nothing is asked yet.

        :param get_run: the service's conversation that reads a run by its id.
        :param clock: gives epoch seconds.
        :param tell: takes the lines for the log; never a secret, never an input's content.
        :param meter: is told of looks and of the end.
        :param apart: seconds that lie between two lines about progress at the least.
        """
        self.flow_run_id = flow_run_id
        self.schedule = schedule
        self.run: FlowRun | None = None
        self.is_due_at_expected_end = (
            False  # whether the run is expected to be over after the last pause that was given
        )
        self._get_run = get_run
        self._clock = clock
        self._since = clock()
        self._last_error: FlowServiceError | None = None
        self._failed_polls = 0
        self._rejections = 0
        self._forecast = Forecast()
        self._is_restored = False
        self._metrics = metrics or NO_WAIT_METRICS
        self._progress_logger = ProgressLogger(log, min_interval)

    def to_dict(self) -> dict[str, Any]:
        """What a wait that goes on in another process must know so as to tell nothing twice, as plain JSON values."""
        counts = {"since": self._since, "failed_polls": self._failed_polls, "rejections": self._rejections}
        return {**counts, "forecast": self._forecast.to_dict(), **self._progress_logger.to_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from where the wait that gave this memory was."""
        self._since, self._failed_polls = float(state["since"]), int(state["failed_polls"])
        self._rejections = int(state.get("rejections", 0))
        self._forecast = Forecast.from_dict(state.get("forecast"))
        self._progress_logger.restore(state)
        self._is_restored = True

    def initial_delay(self) -> float:
        """Give the seconds until the first look: none, but for a wait that goes on after a look in another process."""
        if not self._is_restored:
            return 0.0
        return self.schedule.next_poll_delay(self.run, self._clock(), self._since, self._forecast)

    def seconds_left(self) -> float | None:
        """Give the seconds until the deadline, 0 when it has passed, None without one."""
        return None if self.schedule.deadline is None else max(0.0, self.schedule.deadline - self._clock())

    def poll_until_final(self, on_poll: Callable[[FlowRun], None] = lambda _: None) -> Conversation[FlowRun]:
        """Look until the run is final.

        :param show: is told the run as each look sees it.
        :raises FlowTimeout: the deadline passed first.
        :raises FlowServiceError: an answer that will not get better by waiting (401, 404, ...).
        """
        while True:
            run = yield from self.poll()
            if run is not None:
                on_poll(run)
                if run.is_final:
                    return run
            yield Sleep(self.next_delay())

    def poll(self) -> Conversation[FlowRun | None]:
        """Look as `glimpse` does, and show on a run that is not final when it is expected to be over."""
        run = yield from self.poll_once()
        return (
            run
            if run is None or run.is_final or self._forecast.end is None
            else replace(run, expected_at=self._forecast.end)
        )

    def poll_once(self) -> Conversation[FlowRun | None]:
        """Look once; None if nothing could be seen, which is no reason to give up.

        :raises FlowServiceError: the third answer that will not get better by waiting (401, 404, ...).
        """
        self._metrics.count_poll()
        try:
            run = yield from self._get_run(self.flow_run_id)
        except FlowServiceError as error:
            self._rejections += not error.is_transient
            if not error.is_transient and self._rejections >= MAX_REJECTIONS:
                raise
            self._failed_polls += 1
            self._last_error = error
            self._progress_logger.log_failed_poll(self.flow_run_id, error, self._failed_polls)
            return None
        self.record_poll(run)
        return self.run

    def poll_until_confirmed(self) -> Conversation[FlowRun | None]:
        """Look, and soon again where the service refuses, for whoever forgets how often it has refused until the next look.

        :raises FlowServiceError: the third answer that will not get better by waiting (401, 404, ...).
        """
        run = yield from self.poll()
        for _ in range(MAX_REJECTIONS - 1):
            if not self._rejections:
                break
            yield Sleep(min(self.next_delay(), MAX_CONFIRM_DELAY_SECONDS))
            run = yield from self.poll()
        return run

    def record_poll(self, run: FlowRun, now: float | None = None) -> None:
        """Take notice of the run as it was seen, whoever looked.

        :param now: epoch seconds at which it was, if that is not just now.
        """
        now = self._clock() if now is None else now
        self._failed_polls, self._rejections, self._last_error = 0, 0, None
        self.run = run = _fill_from_previous(run, self.run)
        self._forecast = self._forecast.after(run, now, self.schedule.poll_interval * (1 - JITTER))
        self._progress_logger.log_poll(run, now, self._since, self._forecast.end)
        if run.is_final:
            detection_delay = None if run.finished_at is None else max(0.0, now - to_epoch(run.finished_at))
            self._metrics.record_end(run, now - self._since, detection_delay)

    def reset_rejections(self) -> None:
        """Forget the refusals so far: whoever holds the wait has changed what was refused."""
        self._rejections = 0

    def next_delay(self) -> float:
        """Give the seconds until the next look.

        :raises FlowTimeout: the deadline has passed.
        """
        now = self._clock()
        self.is_due_at_expected_end = False
        if self.schedule.is_expired(now):
            raise self.deadline_error()
        if self._last_error is not None:
            return self.schedule.backoff_delay(self._failed_polls, now, self._last_error.retry_after)
        delay = self.schedule.next_poll_delay(self.run, now, self._since, self._forecast)
        self.is_due_at_expected_end = (
            self._forecast.end is not None and now < self._forecast.end <= now + delay
        )
        return delay

    def deadline_error(self) -> FlowTimeout:
        """Make the error that says that the deadline has passed, and what was seen of the run."""
        subject = f"flow run {self.flow_run_id}" if self.run is None else str(self.run)
        last_state = (
            "It was never seen"
            if self.run is None
            else f"It was last seen {self.run.raw_state} at {self.run.progress:.0%}"
        )
        last_failure = f"; the last look failed: {self._last_error}" if self._last_error else ""
        message = f"The deadline passed before the {subject} was final. {last_state}{last_failure}. Give it a longer timeout if it needs one."
        return FlowTimeout(message)


def _fill_from_previous(run: FlowRun, previous: FlowRun | None) -> FlowRun:
    """Add to a run what this look did not tell and the one before it did: a list may leave much out."""
    if previous is None or (run.flow and run.started_at):
        return run
    known = {
        name: getattr(run, name) or getattr(previous, name) for name in ("flow", "created_at", "started_at")
    }
    return replace(run, **known)


class ProgressLogger:
    """Tells the log what changed: the state, every ten points of progress, trouble and its end; nothing twice."""

    __slots__ = ("_min_interval", "_is_failing", "_progress", "_raw_state", "_log", "_logged_at")

    def __init__(self, log: LogFunction, min_interval: float = 0.0) -> None:
        """Begin with nothing told.

        :param apart: seconds that lie between two lines about progress at the least.
        """
        self._log = log
        self._min_interval = min_interval
        self._logged_at = 0.0
        self._raw_state: str | None = None
        self._progress = 0.0  # as told last
        self._is_failing = False

    def to_dict(self) -> dict[str, Any]:
        """What was told last."""
        return {"raw_state": self._raw_state, "progress": self._progress, "is_failing": self._is_failing}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what was told last."""
        self._raw_state, self._is_failing = state.get("raw_state"), bool(state.get("is_failing"))
        self._progress = float(state.get("progress", 0.0))

    def log_poll(self, run: FlowRun, now: float, waiting_since: float, expected_end: float | None) -> None:
        """Tell what is new about the run.

        :param now: epoch seconds, as are the others.
        """
        if self._is_failing:
            self._is_failing = False
            self._log(logging.INFO, f"The {run} can be seen again")
        if run.raw_state != self._raw_state:
            self._raw_state = run.raw_state
            self._log_state(run)
        has_advanced = run.progress - self._progress >= PROGRESS_LOG_STEP
        if has_advanced and not run.is_final and now - self._logged_at >= self._min_interval:
            self._progress, self._logged_at = run.progress, now
            end_text = (
                "unknown"
                if expected_end is None
                else f"{datetime.fromtimestamp(expected_end, tz=UTC):%H:%M:%S} UTC"
            )
            elapsed = age(run, now, waiting_since)
            percent = int(run.progress * 100 + 1e-9)
            self._log(
                logging.INFO, f"The {run} is at {percent}% after {elapsed:.0f} s; expected end: {end_text}"
            )

    def log_failed_poll(self, flow_run_id: str, error: FlowServiceError, failed_polls: int) -> None:
        """Tell that a look failed: the first time, and whenever the row of misses has doubled."""
        self._is_failing = True
        if failed_polls & (failed_polls - 1) == 0:
            self._log(
                logging.WARNING,
                f"The flow run {flow_run_id} could not be looked at ({failed_polls} in a row); the wait goes on: {error}",
            )

    def _log_state(self, run: FlowRun) -> None:
        if run.state is FlowState.UNKNOWN:
            self._log(
                logging.WARNING,
                f"The {run} is in state {run.raw_state!r}, which this provider does not know; the wait goes on",
            )
        elif run.is_final:
            duration = "" if run.duration is None else f" after {run.duration:.1f} s"
            self._log(logging.INFO, f"The {run} is {run.raw_state}{duration}")
        else:
            self._log(logging.INFO, f"The {run} is {run.raw_state}")

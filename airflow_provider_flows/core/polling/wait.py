"""The wait for a flow run: one conversation for every mode, its log lines, and its state for another process.

The log has state changes, progress, failed polls and the end, each once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.exceptions import FlowServiceError
from airflow_provider_flows.core.flow_run import FlowRun, FlowState
from airflow_provider_flows.core.http import Sleep, with_deadline
from airflow_provider_flows.core.limits import LAST_POLL_GRACE_SECONDS
from airflow_provider_flows.core.polling.schedule import (
    MAX_REJECTED_TRIGGERS,
    Delay,
    Done,
    Failed,
    Forecast,
    PollState,
    age,
    next_step,
)
from airflow_provider_flows.core.timestamps import to_epoch

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Conversation
    from airflow_provider_flows.core.polling.schedule import PollStep, Schedule

ROUNDING_ERROR = 1e-9
MIN_PROGRESS_STEP = 0.1 - ROUNDING_ERROR  # progress is logged when it has risen by ten percentage points
MAX_CONFIRM_DELAY_SECONDS = 10.0  # a worker is blocked while it confirms a rejection

LogFunction = Callable[[int, str], None]
"""Takes a logging level and a line."""


class ProgressLogger:
    """Logs what changed since the last line.

    The first line names the run in full, and those after it by the end of its id.
    """

    __slots__ = (
        "_flow",
        "_is_failing",
        "_is_named",
        "_log",
        "_logged_at",
        "_min_log_interval",
        "_progress",
        "_raw_state",
    )

    def __init__(self, log: LogFunction, min_log_interval: float = 0.0, *, is_named: bool = False) -> None:
        """Create a logger that has logged nothing yet.

        :param log: receives the lines; they contain no secrets and no input's content.
        :param min_log_interval: minimum seconds between two lines about progress.
        :param is_named: whether a line before has named the run in full.
        """
        self._log = log
        self._is_named = is_named
        self._min_log_interval = min_log_interval
        self._logged_at = 0.0
        self._raw_state: str | None = None
        self._progress = 0.0  # in the last line about it
        self._is_failing = False
        self._flow: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what was logged last, as plain JSON values."""
        return {
            "raw_state": self._raw_state,
            "progress": self._progress,
            "is_failing": self._is_failing,
            "flow": self._flow,
        }

    def on_logged_failure(self) -> None:
        """Continue after a line that has said why the run cannot be polled."""
        self._is_failing = True

    def restore(self, data: Mapping[str, Any]) -> None:
        """Continue after the lines of another process, by what its `to_dict` returned."""
        self._raw_state, self._is_failing = data.get("raw_state"), bool(data.get("is_failing"))
        self._progress = float(data.get("progress", 0.0))
        self._flow = data.get("flow")
        self._is_named = self._is_named or self._raw_state is not None or self._is_failing

    def on_run(self, run: FlowRun, poll_state: PollState, now: float) -> None:
        """Log what is new after a poll that brought the run."""
        self._flow = run.flow
        if self._is_failing:
            self._is_failing = False
            self._log(logging.INFO, f"The {self._name(run)} can be polled again")
        if run.raw_state != self._raw_state:
            self._raw_state = run.raw_state
            self._log_state(run)
        has_advanced = run.progress - self._progress >= MIN_PROGRESS_STEP
        if has_advanced and not run.is_final and now - self._logged_at >= self._min_log_interval:
            self._progress, self._logged_at = run.progress, now
            self._log_progress(run, age(run, now, poll_state.waiting_since), poll_state.forecast.end)

    def on_failed_poll(self, poll_state: PollState) -> None:
        """Log a failed poll: the first of a series, and each time that their number has doubled.

        A permanent error is summarized, and only once while it is being confirmed, because it ends the wait
        with its whole message if it persists.
        """
        error = poll_state.last_error
        is_permanent = error is not None and not error.is_transient
        is_logged = self._is_failing and is_permanent and poll_state.needs_confirmation
        self._is_failing = True
        count = poll_state.failed_polls
        if count & (count - 1) == 0 and not is_logged:
            name = self._name(FlowRun(poll_state.flow_run_id, "", self._flow))
            line = f"The {name.strip()} could not be polled ({count} in a row)"
            # the whole message was logged before, or ends the wait
            reason = error.summary if error is not None and (is_permanent or count > 1) else error
            self._log(logging.WARNING, f"{line}; polling continues: {reason}")

    def _log_state(self, run: FlowRun) -> None:
        if run.state is FlowState.UNKNOWN:
            unknown = f"{run.raw_state!r}, which this provider does not know"
            self._log(logging.WARNING, f"The {self._name(run)} is in state {unknown}; polling continues")
        elif run.is_final:
            duration = "" if run.duration is None else f" after {run.duration:.1f} s"
            self._log(logging.INFO, f"The {self._name(run)} is {run.raw_state}{duration}")
        else:
            self._log(logging.INFO, f"The {self._name(run)} is {run.raw_state}")

    def _log_progress(self, run: FlowRun, run_age: float, end: float | None) -> None:
        percent = int(run.progress * 100 + ROUNDING_ERROR)
        end_text = "unknown" if end is None else f"{datetime.fromtimestamp(end, tz=UTC):%H:%M:%S} UTC"
        line = f"is at {percent}% after {run_age:.0f} s; expected end: {end_text}"
        self._log(logging.INFO, f"The {self._name(run)} {line}")

    def _name(self, run: FlowRun) -> str:
        """Return the run's name for the next line."""
        name = run.short_name if self._is_named else str(run)
        self._is_named = True
        return name


class Wait:
    """The wait for one flow run. `poll` is the only way in which it sends requests.

    `schedule.next_step` decides what to do after a poll; this class applies the decision, logs and counts. It
    performs no I/O: the driver sends the requests and sleeps.
    """

    # Thousands live in one triggerer, on whose loop the garbage collector visits each object.
    __slots__ = (
        "_clock",
        "_count_poll",
        "_get_run",
        "_is_restored",
        "_on_final",
        "_progress_logger",
        "poll_state",
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
        min_log_interval: float = 0.0,
        is_named: bool = False,
        count_poll: Callable[[], None] | None = None,
        on_final: Callable[[FlowRun, float, float | None], None] | None = None,
    ) -> None:
        """Create the wait; nothing is sent yet.

        :param get_run: the service's conversation that reads a run by its id.
        :param clock: returns epoch seconds.
        :param log: receives the log lines; they contain no secrets and no input's content.
        :param min_log_interval: minimum seconds between two log lines about progress.
        :param is_named: whether a log line before has named the run in full, so that these need not.
        :param count_poll: called before each poll.
        :param on_final: called with the final run, the seconds waited, and the detection delay in seconds or
            None.
        """
        self.schedule = schedule
        self.poll_state = PollState(flow_run_id, clock())
        self._get_run = get_run
        self._clock = clock
        self._is_restored = False
        self._progress_logger = ProgressLogger(log, min_log_interval, is_named=is_named)
        self._count_poll = count_poll
        self._on_final = on_final

    def to_dict(self) -> dict[str, Any]:
        """Return what another process needs to continue this wait and log nothing twice, as JSON values."""
        state = self.poll_state
        counts = {
            "waiting_since": state.waiting_since,
            "failed_polls": state.failed_polls,
            "permanent_errors": state.permanent_errors,
            "was_found": state.was_found,
            "missing_since": state.missing_since,
        }
        return {**counts, "forecast": state.forecast.to_dict(), **self._progress_logger.to_dict()}

    def restore(self, data: Mapping[str, Any]) -> None:
        """Continue the wait of another process, by what its `to_dict` returned."""
        self.poll_state = self.poll_state._replace(
            waiting_since=float(data["waiting_since"]),
            forecast=Forecast.from_dict(data.get("forecast")),
            failed_polls=int(data["failed_polls"]),
            permanent_errors=int(data.get("permanent_errors", 0)),
            was_found=bool(data.get("was_found")),
            missing_since=data.get("missing_since"),
        )
        self._progress_logger.restore(data)
        self._is_restored = True

    @property
    def flow_run_id(self) -> str:
        """The id of the run."""
        return self.poll_state.flow_run_id

    @property
    def run(self) -> FlowRun | None:
        """The run of the last successful poll, with its expected end while active; None before the first."""
        run, end = self.poll_state.run, self.poll_state.forecast.end
        return run if run is None or run.is_final or end is None else replace(run, expected_end_epoch=end)

    def initial_delay(self) -> float:
        """Return the seconds until the first poll: 0, unless another process has polled before."""
        if not self._is_restored:
            return 0.0
        return self._delay_after(self.poll_state._replace(last_error=None))

    def next_delay(self) -> float:
        """Return the seconds until the next poll, 0 if the wait has ended."""
        return self._delay_after(self.poll_state)

    def seconds_left(self) -> float | None:
        """Return the seconds until the deadline, 0 after it, None without one."""
        return None if self.schedule.deadline is None else max(0.0, self.schedule.deadline - self._clock())

    def poll(self) -> Conversation[PollStep]:
        """Poll once; return what to do next. No error of the service is raised.

        The requests end with the wait: at its deadline, or soon after it if that is near.
        """
        if self._count_poll is not None:
            self._count_poll()
        polling = self._get_run(self.flow_run_id)
        if (seconds_left := self.seconds_left()) is not None:
            max_seconds = max(seconds_left, LAST_POLL_GRACE_SECONDS)
            polling = with_deadline(polling, time.monotonic() + max_seconds)
        try:
            run = yield from polling
        except FlowServiceError as error:
            self.poll_state, step = next_step(self.schedule, self.poll_state, error, self._clock())
            if not (isinstance(step, Failed) and step.error is error):
                self._progress_logger.on_failed_poll(self.poll_state)
            return step
        return self.record_poll(run)

    def poll_once(self) -> Conversation[FlowRun | None]:
        """Poll once, for a caller that continues the wait later or in another process.

        :returns: the run, or None if the poll failed. Whether the deadline has passed is left to the next
            poll.
        :raises FlowServiceError: a permanent error (401, 404, ...) for the third time.
        """
        step = yield from self.poll()
        if isinstance(step, Failed) and isinstance(step.error, FlowServiceError):
            raise step.error
        return None if self.poll_state.last_error else self.poll_state.run

    def select_poll(
        self, rejections: int, *, until_final: bool = False
    ) -> Callable[[], Conversation[FlowRun | None]]:
        """Return how a worker polls before it defers its task.

        After the first trigger whose connection was unusable, an accepted poll is required before the task is
        deferred again. After several, the worker waits to the end itself.

        :param rejections: how many triggers have ended because of that, each of which was logged.
        :param until_final: whether the worker waits to the end in any case.
        """
        if rejections:
            self._progress_logger.on_logged_failure()
        if until_final or rejections >= MAX_REJECTED_TRIGGERS:
            return self.poll_until_final
        return self.poll_confirming_errors if rejections else self.poll_once

    def poll_confirming_errors(self) -> Conversation[FlowRun | None]:
        """Poll once, and again soon after a permanent error, for a caller that cannot save the wait's state.

        :raises FlowServiceError: a permanent error (401, 404, ...) for the third time.
        """
        run = yield from self.poll_once()
        while self.poll_state.needs_confirmation:
            yield Sleep(min(self.next_delay(), MAX_CONFIRM_DELAY_SECONDS))
            run = yield from self.poll_once()
        return run

    def poll_until_final(self, on_update: Callable[[FlowRun], None] | None = None) -> Conversation[FlowRun]:
        """Poll until the run is final, and return it.

        :param on_update: called with the run after each successful poll.
        :raises FlowTimeout: the deadline passed first.
        :raises FlowServiceError: a permanent error (401, 404, ...) for the third time.
        """
        while True:
            step = yield from self.poll()
            if on_update is not None and self.poll_state.last_error is None and self.run is not None:
                on_update(self.run)
            match step:
                case Done(run):
                    return run
                case Failed(error):
                    raise error
                case Delay(seconds):
                    yield Sleep(seconds)

    def record_poll(self, run: FlowRun, observed_at: float | None = None) -> PollStep:
        """Record the run as a poll or a list request returned it; return what to do next.

        :param observed_at: epoch seconds at which the service observed it, if not just now.
        """
        now = self._clock()
        observed_at = now if observed_at is None else observed_at
        self.poll_state, step = next_step(self.schedule, self.poll_state, run, now, observed_at)
        run = self.poll_state.run or run  # with what only earlier polls returned
        self._progress_logger.on_run(run, self.poll_state, observed_at)
        if run.is_final and self._on_final is not None:
            finished_at = None if run.finished_at is None else to_epoch(run.finished_at)
            detection_delay = None if finished_at is None else max(0.0, observed_at - finished_at)
            self._on_final(run, observed_at - self.poll_state.waiting_since, detection_delay)
        return step

    def reset_permanent_errors(self) -> None:
        """Forget the permanent errors so far, because their cause was changed."""
        self.poll_state = self.poll_state._replace(permanent_errors=0)

    def _delay_after(self, poll_state: PollState) -> float:
        _, step = next_step(self.schedule, poll_state, None, self._clock())
        return step.seconds if isinstance(step, Delay) else 0.0

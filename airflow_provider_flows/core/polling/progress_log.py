"""The log lines of a wait: state changes, progress, failed polls and the end, each once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.flow_run import FlowRun, FlowState
from airflow_provider_flows.core.polling.schedule import age

if TYPE_CHECKING:
    from airflow_provider_flows.core.polling.schedule import PollState

ROUNDING_ERROR = 1e-9
MIN_PROGRESS_STEP = 0.1 - ROUNDING_ERROR  # progress is logged when it has risen by ten percentage points

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
        """Log a failed poll: the first of a series, and each time that their number has doubled."""
        self._is_failing = True
        count = poll_state.failed_polls
        if count & (count - 1) == 0:
            name = self._name(FlowRun(poll_state.flow_run_id, "", self._flow))
            line = f"The {name.strip()} could not be polled ({count} in a row)"
            self._log(logging.WARNING, f"{line}; polling continues: {poll_state.last_error}")

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

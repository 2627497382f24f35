"""The wait for a flow run: one conversation for every mode of waiting, and its state for another process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.exceptions import FlowServiceError, FlowTimeout
from airflow_provider_flows.core.http import Sleep
from airflow_provider_flows.core.polling.progress_log import ProgressLogger
from airflow_provider_flows.core.polling.schedule import MAX_PERMANENT_ERRORS, Forecast, NextPoll, PollState
from airflow_provider_flows.core.timestamps import to_epoch

if TYPE_CHECKING:
    from airflow_provider_flows.core.flow_run import FlowRun
    from airflow_provider_flows.core.http import Conversation
    from airflow_provider_flows.core.polling.progress_log import LogFunction
    from airflow_provider_flows.core.polling.schedule import Schedule

MAX_CONFIRM_DELAY_SECONDS = 10.0  # a worker is blocked while it confirms a rejection


class Wait:
    """The wait for one flow run. `poll` is the only way in which it sends requests.

    `schedule.py` decides when to poll next. This class performs no I/O: the driver sends the requests and
    sleeps.
    """

    # Thousands live in one triggerer, on whose loop the garbage collector visits each object.
    __slots__ = (
        "_clock",
        "_count_poll",
        "_get_run",
        "_is_restored",
        "_on_final",
        "_progress_logger",
        "flow_run_id",
        "schedule",
        "state",
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
        count_poll: Callable[[], None] | None = None,
        on_final: Callable[[FlowRun, float, float | None], None] | None = None,
    ) -> None:
        """Create the wait; nothing is sent yet.

        :param get_run: the service's conversation that reads a run by its id.
        :param clock: returns epoch seconds.
        :param log: receives the log lines; they contain no secrets and no input's content.
        :param min_log_interval: minimum seconds between two log lines about progress.
        :param count_poll: called before each poll.
        :param on_final: called with the final run, the seconds waited, and the detection delay in seconds or
            None.
        """
        self.flow_run_id = flow_run_id
        self.schedule = schedule
        self.state = PollState(clock())
        self._get_run = get_run
        self._clock = clock
        self._is_restored = False
        self._progress_logger = ProgressLogger(log, min_log_interval)
        self._count_poll = count_poll
        self._on_final = on_final

    def to_dict(self) -> dict[str, Any]:
        """Return what another process needs to continue this wait and log nothing twice, as JSON values."""
        state = self.state
        counts = {
            "since": state.since,
            "failed_polls": state.failed_polls,
            "permanent_errors": state.permanent_errors,
        }
        return {**counts, "forecast": state.forecast.to_dict(), **self._progress_logger.to_dict()}

    def restore(self, data: Mapping[str, Any]) -> None:
        """Continue the wait of another process, by what its `to_dict` returned."""
        self.state = PollState(
            since=float(data["since"]),
            run=self.state.run,
            forecast=Forecast.from_dict(data.get("forecast")),
            failed_polls=int(data["failed_polls"]),
            permanent_errors=int(data.get("permanent_errors", 0)),
            last_error=self.state.last_error,
        )
        self._progress_logger.restore(data)
        self._is_restored = True

    @property
    def run(self) -> FlowRun | None:
        """The run of the last successful poll, with its expected end while active; None before the first."""
        run, end = self.state.run, self.state.forecast.end
        return run if run is None or run.is_final or end is None else replace(run, expected_end_epoch=end)

    def initial_delay(self) -> float:
        """Return the seconds until the first poll: 0, unless another process has polled before."""
        if not self._is_restored:
            return 0.0
        return self.schedule.next_poll(self.state._replace(last_error=None), self._clock()).delay

    def seconds_left(self) -> float | None:
        """Return the seconds until the deadline, 0 after it, None without one."""
        return None if self.schedule.deadline is None else max(0.0, self.schedule.deadline - self._clock())

    def next_poll(self) -> NextPoll:
        """Return when to poll next.

        :raises FlowTimeout: the deadline has passed.
        """
        now = self._clock()
        if self.schedule.is_expired(now):
            raise self.deadline_error()
        return self.schedule.next_poll(self.state, now)

    def poll(self) -> Conversation[FlowRun | None]:
        """Poll once; return the run, or None if the poll failed, which does not end the wait.

        :raises FlowServiceError: a permanent error (401, 404, ...) for the third time.
        """
        if self._count_poll is not None:
            self._count_poll()
        try:
            run = yield from self._get_run(self.flow_run_id)
        except FlowServiceError as error:
            self.state = self.state.after_error(error)
            self._progress_logger.on_failed_poll(self.flow_run_id, self.state)
            return None
        self.record_poll(run)
        return self.state.run

    def poll_until_final(self, on_update: Callable[[FlowRun], None] | None = None) -> Conversation[FlowRun]:
        """Poll until the run is final, and return it.

        :param on_update: called with the run after each successful poll.
        :raises FlowTimeout: the deadline passed first.
        :raises FlowServiceError: a permanent error (401, 404, ...) for the third time.
        """
        while True:
            run = yield from self.poll()
            if run is not None:
                if on_update is not None:
                    on_update(self.run or run)
                if run.is_final:
                    return run
            yield Sleep(self.next_poll().delay)

    def poll_confirming_errors(self) -> Conversation[FlowRun | None]:
        """Poll, and again soon after a permanent error, for a caller that cannot save the state of the wait.

        :raises FlowServiceError: a permanent error (401, 404, ...) for the third time.
        """
        run = yield from self.poll()
        for _ in range(MAX_PERMANENT_ERRORS - 1):
            if not self.state.permanent_errors:
                break
            yield Sleep(min(self.next_poll().delay, MAX_CONFIRM_DELAY_SECONDS))
            run = yield from self.poll()
        return run

    def record_poll(self, run: FlowRun, now: float | None = None) -> None:
        """Record the run as a poll or a list request returned it.

        :param now: epoch seconds at which the service observed it, if not just now.
        """
        now = self._clock() if now is None else now
        self.state = state = self.state.after_run(run, now, self.schedule)
        run = state.run or run
        self._progress_logger.on_run(run, state, now)
        if run.is_final and self._on_final is not None:
            detection_delay = None if run.finished_at is None else max(0.0, now - to_epoch(run.finished_at))
            self._on_final(run, now - state.since, detection_delay)

    def reset_permanent_errors(self) -> None:
        """Forget the permanent errors so far, because their cause was changed."""
        self.state = self.state._replace(permanent_errors=0)

    def deadline_error(self) -> FlowTimeout:
        """Create the error that reports the passed deadline and the run's last known state."""
        run, last_error = self.state.run, self.state.last_error
        subject = f"flow run {self.flow_run_id}" if run is None else str(run)
        last_state = (
            "No poll succeeded"
            if run is None
            else f"At the last successful poll it was {run.raw_state!r} at {run.progress:.0%}"
        )
        last_failure = f"; the last poll failed: {last_error}" if last_error else ""
        return FlowTimeout(
            f"The deadline passed before the {subject} was final. {last_state}{last_failure}. "
            "If runs of this flow take this long, increase timeout."
        )

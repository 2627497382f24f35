"""The end of a task with checks: another flow run in place of one whose outputs are rejected.

Such a run is started like any other one (`worker.start`), and so at most once. The record of its start names
the runs that it replaces, so nothing is written between the rejection and that start: a worker that dies in
between leaves the record of the rejected run, and the next try checks the files of that run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.exceptions import FlowOutputRejected

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import Logger

    from airflow_provider_flows.core.check_retry import CheckRetry
    from airflow_provider_flows.core.flow_run import FlowRun
    from airflow_provider_flows.core.reuse import ReuseLookup
    from airflow_provider_flows.storage.output_options import OutputOptions
    from airflow_provider_flows.worker.task_try import TaskTry

LOOKUP_KEY = "reuse_lookup"  # in what the task needs again after a deferral
CHECK_RETRY_KEY = "check_retry"  # there as well
AGAIN = "again"
RUN_AGAIN = "The outputs of the %s are rejected: %s. Another flow run is started, which is billed (%d of %d)"


def check_rejection(check_outputs: Any, on_rejected: Any, check_retries: Any) -> None:
    """Validate a task's arguments about checks, when the DAG file is parsed.

    :raises FlowInputError: one is not valid.
    """
    if (check_outputs, on_rejected, check_retries) == (None, "fail", 1):
        return
    from airflow_provider_flows.checks.definitions import to_checks, validate_rejection  # imports stay cheap

    to_checks(check_outputs)
    validate_rejection(check_outputs, on_rejected, check_retries)


class CheckedTaskMixin:
    """A task that ends with a flow run's outputs, and may replace a run whose outputs are rejected."""

    check_outputs: Any = None
    on_rejected: str = "fail"
    check_retries: int = 1
    _deferred_arguments: Mapping[str, Any] | None = None  # what the task needs again after a deferral
    execution_timeout: timedelta | None
    log: Logger

    def _output_options(self) -> OutputOptions:
        """Return the options of the outputs, with the checks."""
        raise NotImplementedError

    def _run(self, task_try: TaskTry, check_retry: CheckRetry | None = None) -> dict[str, Any]:
        """Resume or start a flow run, and return the task's result.

        :param check_retry: the runs whose outputs this try has rejected.
        """
        raise NotImplementedError

    def _restore_arguments(self, context: Context) -> None:
        """Set the arguments of a start again, if they are not available after a deferral."""

    def save_for_finish(self, lookup: ReuseLookup | None, check_retry: CheckRetry | None) -> None:
        """Save what the end of the task needs, also after a deferral."""
        others = {**(self._deferred_arguments or {})}
        others.pop(LOOKUP_KEY, None)
        others.pop(CHECK_RETRY_KEY, None)
        if lookup is not None:
            others[LOOKUP_KEY] = lookup.to_list()
        if check_retry is not None:
            others[CHECK_RETRY_KEY] = check_retry.to_dict()
        self._deferred_arguments = others or None

    def _finish(
        self, task_try: TaskTry, run: FlowRun, on_run_update: Callable[[FlowRun], None]
    ) -> dict[str, Any]:
        """End the task with a final run; or replace it, if its outputs are rejected and that is requested."""
        from airflow_provider_flows.core.reuse import ReuseLookup  # imports stay cheap
        from airflow_provider_flows.worker.finish import finish

        check_retry = None if self.check_outputs is None else self._get_check_retry(task_try, run)
        others = [] if check_retry is None else check_retry.rejected_runs
        count = sum(row["flow_run_id"] != run.flow_run_id for row in others)
        may_run_again = self.on_rejected == AGAIN and count < self.check_retries
        is_replaceable = may_run_again and not self._is_late(task_try)
        try:
            return finish(
                task_try.context,
                task_try.hook,
                run,
                self._output_options(),
                on_run_update=on_run_update,
                task_state=task_try.task_state,
                cancellation=task_try.cancellation,
                lookup=ReuseLookup.from_list((self._deferred_arguments or {}).get(LOOKUP_KEY)),
                check_retry=check_retry,
                is_replaceable=is_replaceable,
            )
        except FlowOutputRejected as error:
            if not is_replaceable:
                raise
            rejected_run = error.run
        return self._run_again(task_try, rejected_run, check_retry, count + 1)

    def _is_late(self, task_try: TaskTry) -> bool:
        """Return whether the execution_timeout has passed: another run would be aborted at once."""
        limit = self.execution_timeout
        return limit is not None and time.time() >= task_try.started_at + limit.total_seconds()

    def _get_check_retry(self, task_try: TaskTry, run: FlowRun) -> CheckRetry | None:
        """Return the runs that this one replaces: from this try, its trigger, or the record of its start."""
        from airflow_provider_flows.core.check_retry import CheckRetry  # imports stay cheap

        known = CheckRetry.from_dict((self._deferred_arguments or {}).get(CHECK_RETRY_KEY))
        if known is not None:
            return known
        record = task_try.task_state.record
        is_own = record is not None and record.flow_run_id == run.flow_run_id
        return CheckRetry.from_dict(record.check_retry) if record is not None and is_own else None

    def _run_again(
        self, task_try: TaskTry, run: FlowRun, check_retry: CheckRetry | None, number: int
    ) -> dict[str, Any]:
        """Start another run in place of one whose outputs were rejected, in the same try.

        :param number: of the other run, from 1.
        """
        from airflow_provider_flows.core.check_retry import CheckRetry  # imports stay cheap

        problems = [] if run.verdict is None else run.verdict["problems"]
        self.log.warning(RUN_AGAIN, run, "; ".join(problems), number, self.check_retries)
        next_retry = CheckRetry.after(check_retry, run.flow_run_id, problems, is_paid=not run.reused)
        task_try.replace_run()
        self._restore_arguments(task_try.context)
        return self._run(task_try, next_retry)

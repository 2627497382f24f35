"""The operators for a flow run that exists: fetch its outputs, abort it, delete it.

With `RunFlowOperator(wait_for_completion=False)` they are the pair "start now, fetch later".
`airflow_provider_flows.operators` exports them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta
from os import PathLike
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator, BaseOperatorLink

from airflow_provider_flows.core.exceptions import FlowConflict, FlowNotFound
from airflow_provider_flows.core.polling.schedule import Schedule, to_seconds
from airflow_provider_flows.core.template_problems import RUN_KEYS, require_booleans
from airflow_provider_flows.links import FlowRunLink
from airflow_provider_flows.sensors import DEFAULT_DEFERRABLE, RUN_ID_HINT, FlowRunSensor
from airflow_provider_flows.storage.output_options import MAX_XCOM_BYTES
from airflow_provider_flows.worker.run_tracking import RunTrackingMixin
from airflow_provider_flows.worker.template_check import TemplateCheckMixin, suggest_arguments

if TYPE_CHECKING:
    from airflow.sdk import Context, ObjectStoragePath, RetryPolicy

    from airflow_provider_flows.core.flow_run import FlowRun
    from airflow_provider_flows.hooks import FlowsHook

DEFAULT_INTERVAL = 5  # seconds between two polls
NO_LIMIT = timedelta(days=3660)  # a sensor must have a timeout


class FetchFlowRunOperator(FlowRunSensor):
    """Fetch the outputs of a flow run that was started earlier; return the same dict as `RunFlowOperator`.

    It starts and aborts nothing. A retry, or the task when it is cleared, fetches only the files that are
    missing.

    :param flow_run_id: the flow run. (templated)
    :param flows_conn_id: the Airflow connection; its type selects the service. (templated)
    :param wait_for_completion: if True (default), wait for a run that is still active; otherwise such a run
        fails the task.
    :param deferrable: whether to wait in the triggerer, as in `RunFlowOperator`.
    :param poll_interval: shortest time between two polls, in seconds or as a timedelta.
    :param max_poll_interval: longest time between two polls, in seconds or as a timedelta; raised to
        `poll_interval` if it is smaller.
    :param timeout: time from the start of the try until the deadline, in seconds or as a timedelta; None for
        no limit.
    :param output_path: where files are stored, as in `RunFlowOperator`. (templated)
    :param output_conn_id: the Airflow connection of that storage. (templated)
    :param max_xcom_bytes: the largest text output that is returned complete, as in `RunFlowOperator`.
    :param check_outputs: what the outputs must satisfy, as in `RunFlowOperator`; else the task fails.
    :param fetch_partial_outputs: whether to fetch the outputs of a failed or aborted run too; the error lists
        them.
    """

    xcom_keys = RUN_KEYS

    def __init__(
        self,
        *,
        flow_run_id: str,
        flows_conn_id: str = "flows_default",
        wait_for_completion: bool = True,
        deferrable: bool = DEFAULT_DEFERRABLE,
        poll_interval: float | timedelta = DEFAULT_INTERVAL,
        max_poll_interval: float | timedelta = 60,
        timeout: float | timedelta | None = timedelta(hours=1),
        output_path: str | PathLike[str] | ObjectStoragePath | None = None,
        output_conn_id: str | None = None,
        max_xcom_bytes: int | None = MAX_XCOM_BYTES,
        check_outputs: Any = None,
        fetch_partial_outputs: bool = False,
        **kwargs: Any,
    ) -> None:
        require_booleans({"wait_for_completion": wait_for_completion})
        has_poke_interval = kwargs.get("poke_interval") is not None  # Airflow's name of the same
        super().__init__(
            flow_run_id=flow_run_id,
            flows_conn_id=flows_conn_id,
            mode="poke",
            deferrable=deferrable,
            poll_interval=None if has_poke_interval and poll_interval == DEFAULT_INTERVAL else poll_interval,
            max_poll_interval=max_poll_interval,
            timeout=NO_LIMIT if timeout is None else timeout,
            output_path=output_path,
            output_conn_id=output_conn_id,
            max_xcom_bytes=max_xcom_bytes,
            check_outputs=check_outputs,
            fetch_partial_outputs=fetch_partial_outputs,
            **kwargs,
        )
        self.wait_for_completion = wait_for_completion

    def execute(self, context: Context) -> Any:
        """Wait if necessary, fetch the outputs, and return the result.

        :raises FlowRunFailed: the run failed; FlowRunAborted if it was aborted.
        :raises FlowConflict: the run is still active, and `wait_for_completion` is False.
        """
        from airflow_provider_flows.core.flow_run import parse_run_id  # importing operators stays cheap

        if self.wait_for_completion:
            return super().execute(context)
        with self._translate_errors():
            self.get_template_problems().raise_if_any()
            self._validate_connection_and_output_options(context)
            hook, flow_run_id = self._get_hook(), parse_run_id(self.flow_run_id, RUN_ID_HINT)
            on_run_update = self.get_run_tracker(context, hook, flow_run_id)
            run = hook.get_run(flow_run_id)
            if not run.is_final:
                raise FlowConflict(
                    f"The {run} is {run.raw_state}; its outputs are available when it is completed. Run this "
                    "task later, or set wait_for_completion=True"
                )
            return self._finish(context, hook, run, on_run_update)


class _EndFlowRunOperator(RunTrackingMixin, TemplateCheckMixin, BaseOperator):
    """An operator that ends a flow run; a run that no longer exists is not an error."""

    template_fields: Sequence[str] = ("flow_run_id", "flows_conn_id")
    operator_extra_links: Collection[BaseOperatorLink] = (FlowRunLink(),)
    ui_color = "#e4def5"

    def __init__(
        self,
        *,
        flow_run_id: str,
        flows_conn_id: str,
        poll_interval: float | timedelta,
        timeout: float | timedelta | None,
        retry_policy: RetryPolicy | None,
        **kwargs: Any,
    ) -> None:
        from airflow_provider_flows.retry_policy import to_retry_arguments  # importing operators stays cheap

        with suggest_arguments(type(self), kwargs):
            super().__init__(**to_retry_arguments(retry_policy), **kwargs)
        self.flow_run_id, self.flows_conn_id = flow_run_id, flows_conn_id
        self.poll_interval, self.timeout = poll_interval, timeout
        self.check_arguments()
        Schedule.of(poll_interval, poll_interval)  # raises on an invalid interval when the DAG is parsed
        to_seconds("timeout", timeout)

    def execute(self, context: Context) -> dict[str, Any]:
        """End the run, and return it as a plain dict; the state of one that no longer exists is `unknown`."""
        from airflow_provider_flows.core.flow_run import (  # importing operators stays cheap
            FlowRun,
            parse_run_id,
        )
        from airflow_provider_flows.hooks import FlowsHook

        self.get_template_problems().raise_if_any()
        flow_run_id = parse_run_id(self.flow_run_id, RUN_ID_HINT)
        hook = FlowsHook.get_hook(self.flows_conn_id)
        on_run_update = self.get_run_tracker(context, hook, flow_run_id)
        try:
            run = self._end_run(hook, flow_run_id)
        except FlowNotFound:
            run = FlowRun(flow_run_id, hook.service.name)
            self.log.info("The %s does not exist at the service; there is nothing to do", run)
        on_run_update(run)
        return run.to_dict()

    def _end_run(self, hook: FlowsHook, flow_run_id: str) -> FlowRun:
        """End a run, and return it as last polled.

        :raises FlowNotFound: there is no such run, any more or at all.
        """
        raise NotImplementedError

    def _abort(self, hook: FlowsHook, flow_run_id: str, *, wait: bool) -> FlowRun:
        """Abort a run if it is active; return it, after its end if requested.

        :raises FlowNotFound: there is no such run; one that had not been started was deleted.
        :raises FlowTimeout: the run was not final in time.
        """
        was_active = hook.abort(flow_run_id)
        if was_active:
            self.log.info("The abort of the %s flow run %s was requested", hook.service.name, flow_run_id)
        run = hook.get_run(flow_run_id)
        if run.is_final and not was_active:
            self.log.info("The %s is already %s; there is nothing to abort", run, run.raw_state)
        if run.is_final or not wait:
            return run
        return hook.wait(flow_run_id, self.poll_interval, self.poll_interval, self.timeout)


class AbortFlowRunOperator(_EndFlowRunOperator):
    """Abort a flow run; as a teardown, make sure that no run is still active and costs money.

    A run that is final already, or that no longer exists at the service, is left alone, and the task
    succeeds. A run that was created and not started is deleted. The task returns the dict of
    `RunFlowOperator`, with the state in which the run is then.

    :param flow_run_id: the flow run. (templated)
    :param flows_conn_id: the Airflow connection; its type selects the service. (templated)
    :param wait_for_completion: if True (default), wait until the run is final; otherwise return as soon as
        the service has accepted the request.
    :param poll_interval: time between two polls of that wait, in seconds or as a timedelta.
    :param timeout: time after which that wait fails the task, in seconds or as a timedelta; None for no
        limit.
    :param retry_policy: which errors are retried, and when, as in `RunFlowOperator`.
    """

    xcom_keys = frozenset({"flow_run_id"})

    def __init__(
        self,
        *,
        flow_run_id: str,
        flows_conn_id: str = "flows_default",
        wait_for_completion: bool = True,
        poll_interval: float | timedelta = 5,
        timeout: float | timedelta | None = timedelta(minutes=10),
        retry_policy: RetryPolicy | None = None,
        **kwargs: Any,
    ) -> None:
        require_booleans({"wait_for_completion": wait_for_completion})
        super().__init__(
            flow_run_id=flow_run_id,
            flows_conn_id=flows_conn_id,
            poll_interval=poll_interval,
            timeout=timeout,
            retry_policy=retry_policy,
            **kwargs,
        )
        self.wait_for_completion = wait_for_completion

    def _end_run(self, hook: FlowsHook, flow_run_id: str) -> FlowRun:
        return self._abort(hook, flow_run_id, wait=self.wait_for_completion)


class DeleteFlowRunOperator(_EndFlowRunOperator):
    """Delete a flow run at its service, with all its inputs and outputs; this cannot be undone.

    A run that no longer exists is not an error. The task returns the dict of `RunFlowOperator`, with the
    state in which the run was deleted and without outputs.

    As a teardown it also deletes the outputs that a failed task has not fetched. To keep these, make it a
    normal task after the one that fetches them, and use `AbortFlowRunOperator` as the teardown.

    :param flow_run_id: the flow run. (templated)
    :param flows_conn_id: the Airflow connection; its type selects the service. (templated)
    :param abort_active: whether to abort a run that is still active, and delete it after its end. If False
        (default), such a run fails the task.
    :param poll_interval: time between two polls while the abort takes effect, in seconds or as a timedelta.
    :param timeout: time after which that wait fails the task, in seconds or as a timedelta; None for no
        limit.
    :param retry_policy: which errors are retried, and when, as in `RunFlowOperator`.
    """

    xcom_keys = frozenset({"flow_run_id"})

    def __init__(
        self,
        *,
        flow_run_id: str,
        flows_conn_id: str = "flows_default",
        abort_active: bool = False,
        poll_interval: float | timedelta = 5,
        timeout: float | timedelta | None = timedelta(minutes=10),
        retry_policy: RetryPolicy | None = None,
        **kwargs: Any,
    ) -> None:
        require_booleans({"abort_active": abort_active})
        super().__init__(
            flow_run_id=flow_run_id,
            flows_conn_id=flows_conn_id,
            poll_interval=poll_interval,
            timeout=timeout,
            retry_policy=retry_policy,
            **kwargs,
        )
        self.abort_active = abort_active

    def _end_run(self, hook: FlowsHook, flow_run_id: str) -> FlowRun:
        from airflow_provider_flows.core.flow_run import FlowState  # importing operators stays cheap

        run = self._abort(hook, flow_run_id, wait=True) if self.abort_active else hook.get_run(flow_run_id)
        if not run.is_final and run.state is not FlowState.CREATED:
            raise FlowConflict(
                f"The {run} is {run.raw_state} and is not deleted. Wait for its end before this task, or set "
                "abort_active=True"
            )
        hook.delete(flow_run_id)
        self.log.info("The %s was deleted at the service", run)
        return run

"""The operator: starts a flow run, waits for it in whichever way, and brings home what it made.

How a try begins and is given up stands in attempt.py, how a wait and a fetch go in flow/waiting.py and outputs.py; here is only
their order.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowTaskTimeout, BaseOperator, conf

from airflow_provider_flows.core.exceptions import FlowInputError, FlowTimeout
from airflow_provider_flows.core.polling.schedule import Schedule, to_seconds
from airflow_provider_flows.storage.output_options import MAX_XCOM_BYTES, OutputOptions
from airflow_provider_flows.worker.finish import finish
from airflow_provider_flows.worker.run_tracking import RunTrackingMixin

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_flows.core.run import FlowRun
    from airflow_provider_flows.hooks import FlowsHook
    from airflow_provider_flows.worker.task_try import TaskTry

NO_RETRY_POLICIES = (
    "This Airflow has no retry policies (3.3 and later have them): an error that no retry can mend, such as a wrong key, is "
    "tried again all the same, and a service that asks for a delay gets the task's own"
)
NO_ON_KILL = (
    "This Airflow tells a trigger of no kill (3.3 and later do): if this task is cleared while it is deferred, or its DAG run "
    "marked, flow run %s goes on"
)


class RunFlowOperator(RunTrackingMixin, BaseOperator):
    """Start a flow run, wait for it, fetch its outputs.

    Returns one plain dict (README, "What a task returns"); `flow_run_id` is pushed to XCom under that key before the wait.

    :param flow: name or id of the flow. (templated)
    :param inputs: what it works on (templated): a prompt, or a list of prompts, file URIs (`file:///...`, `s3://...`),
        `pathlib.Path`s, dicts with `data` or `uri` and perhaps `additional`, and what such a task returns, whole or its
        outputs; for PromptChainer a mapping of variables.
    :param parameters: how it works, a mapping. (templated)
    :param additional: metadata of yours, stored with the run (Generio). (templated)
    :param flows_conn_id: the Airflow connection; its type picks the service. (templated)
    :param input_conn_id: the Airflow connection of the storage that file URIs among the inputs lie in. (templated)
    :param wait_for_completion: whether the task ends with the run, or as soon as the run is started.
    :param deferrable: whether it waits in the triggerer, without a worker slot.
    :param poll_interval: seconds or timedelta; the most often that it looks.
    :param max_poll_interval: seconds or timedelta; the least often that it looks (never less than `poll_interval`).
    :param timeout: seconds or timedelta from the first start, over all retries; None for no limit.
    :param output_path: where files are written, any ObjectStoragePath, below it a folder a run; None leaves them at the
        service. (templated)
    :param output_conn_id: the Airflow connection of that storage. (templated)
    :param max_xcom_bytes: the largest text output, in bytes, that is returned whole; a larger one goes into a file below
        `output_path`, and `value` is its beginning. None for any size.
    :param fetch_partial_outputs: whether the outputs of a run that failed or was aborted are fetched too; the error lists them.
    :param delete_after_fetch: whether the run is deleted at the service once all its files are in their place.
    :param durable: whether a retry picks the same flow run up again (Airflow 3.3 and later); a Clear starts a new one.
    :param abort_on_kill: whether the flow run is aborted when the task is killed or its time is over.
    :param validate: whether flow, inputs and parameters are checked against what the service tells of the flow, before there is
        a run; what it does not tell is not checked. A parameter that must be a number or a Boolean may be a text that spells one,
        as every template gives it, and one that is None is left to the service.
    """

    template_fields: Sequence[str] = (
        "flow",
        "inputs",
        "parameters",
        "additional",
        "flows_conn_id",
        "input_conn_id",
        "output_path",
        "output_conn_id",
    )
    template_fields_renderers = {"inputs": "json", "parameters": "json", "additional": "json"}  # noqa: RUF012  # Airflow's form
    ui_color = "#e4def5"

    _task_try: TaskTry | None = None  # of the try that is under way

    def __init__(
        self,
        *,
        flow: str,
        inputs: Any = None,
        parameters: Mapping[str, Any] | None = None,
        additional: Any = None,
        flows_conn_id: str = "flows_default",
        input_conn_id: str | None = None,
        wait_for_completion: bool = True,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float | timedelta = 5,
        max_poll_interval: float | timedelta = 60,
        timeout: float | timedelta | None = timedelta(hours=1),
        output_path: str | None = None,
        output_conn_id: str | None = None,
        max_xcom_bytes: int | None = MAX_XCOM_BYTES,
        fetch_partial_outputs: bool = False,
        delete_after_fetch: bool = False,
        durable: bool = True,
        abort_on_kill: bool = True,
        validate: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**_with_retry_policy(kwargs))
        self.flow = flow
        self.inputs = inputs
        self.parameters, self.additional = parameters, additional
        self.flows_conn_id, self.input_conn_id = flows_conn_id, input_conn_id
        self.wait_for_completion, self.deferrable = wait_for_completion, deferrable
        self.poll_interval, self.max_poll_interval = poll_interval, max_poll_interval
        self.timeout = timeout
        self.output_path, self.output_conn_id = output_path, output_conn_id
        self.max_xcom_bytes = max_xcom_bytes
        self.fetch_partial_outputs, self.delete_after_fetch = fetch_partial_outputs, delete_after_fetch
        self.durable, self.abort_on_kill, self.validate = durable, abort_on_kill, validate
        Schedule.of(poll_interval, max_poll_interval)  # refuses what cannot be kept, at parse time
        to_seconds("timeout", timeout)
        self._output_options()
        _reject_options_without_wait(self)

    def execute(self, context: Context) -> dict[str, Any]:
        """Start the flow run, or pick it up where an earlier try left it; then wait in the way that was asked for."""
        limit = to_seconds("timeout", self.timeout)
        task_try, options = self._create_task_try(context), self._output_options()
        if self.retries and not hasattr(self, "retry_policy"):
            self.log.info(NO_RETRY_POLICIES)
        with task_try.abort_on_error():
            request = task_try.build_request(self._request_arguments(), options)
            on_run_update = self.get_run_tracker(context, task_try.hook)
            deadline = task_try.task_state.deadline(request, None if limit is None else time.time() + limit)
            try:
                run = task_try.resume_or_start(request, deadline)
                on_run_update(run)
                if not self.wait_for_completion and (
                    task_try.hook.service.staged_start or not run.is_completed
                ):
                    from airflow_provider_flows.worker.asset_events import (
                        add_asset_event_extra,
                    )  # needed when a task runs only

                    add_asset_event_extra(
                        context, run
                    )  # Airflow sends their events, whether they tell something or not
                    return run.to_dict()
                schedule = Schedule.of(self.poll_interval, self.max_poll_interval, deadline)
                final_run = run if run.is_final else self._wait_or_defer(task_try, run.flow_run_id, schedule)
            except AirflowTaskTimeout:  # Airflow's execution_timeout
                run_at_deadline = task_try.on_execution_timeout(request)
                if run_at_deadline is None:
                    raise
                final_run = run_at_deadline
        return finish(
            context,
            task_try.hook,
            final_run,
            options,
            save_run=task_try.task_state.save_run,
            cancellation=task_try.cancellation,
            on_run_update=on_run_update,
        )

    def execute_complete(self, context: Context, event: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Go on after the deferral: with the run that the trigger saw end, or with the error that ended the wait."""
        from airflow_provider_flows.triggers import run_from_event  # dear, and needed when a task runs only

        task_try = self._create_task_try(context)
        task_try.flow_run_id = (event or {}).get("flow_run_id")
        on_run_update = self.get_run_tracker(context, task_try.hook, task_try.flow_run_id)
        with task_try.abort_on_error():
            try:
                run = run_from_event(event)
            except FlowTimeout as error:
                run = task_try.on_deadline(error)
        save_run = task_try.task_state.save_run
        return finish(
            context,
            task_try.hook,
            run,
            self._output_options(),
            save_run=save_run,
            cancellation=task_try.cancellation,
            on_run_update=on_run_update,
        )

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after the deferral; a trigger that failed itself leaves no run behind that nobody waits for any more."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowException:
            if hasattr(
                self, next_method
            ):  # what that raised it has dealt with; a trigger that failed names no method
                raise
            with self._create_task_try(context).abort_on_error():
                raise

    def forget(self) -> None:
        """Drop what was kept for a retry and is of no use when the task has succeeded; Airflow's listener calls this."""
        if self._task_try is not None:
            self._task_try.task_state.forget()

    def on_kill(self) -> None:
        """Abort the flow run if the task is really over; in doubt do nothing, the next try goes on with the run."""
        if self._task_try is not None and self.abort_on_kill:
            self._task_try.on_kill()

    def _hook(self, conn_id: str | None = None) -> FlowsHook:
        from airflow_provider_flows.hooks import FlowsHook

        return FlowsHook.get_hook(conn_id or self.flows_conn_id)

    def _create_task_try(self, context: Context, *, use_saved_connection: bool = False) -> TaskTry:
        from airflow_provider_flows.worker.task_try import TaskTry  # needed when a task runs only

        self._task_try = TaskTry(
            context,
            self._hook,
            use_saved_connection=use_saved_connection,
            durable=self.durable,
            abort_on_kill=self.abort_on_kill,
            validate=self.validate,
            log=self.log,
        )
        return self._task_try

    def _request_arguments(self) -> tuple[Any, Any, Any, Any, str | None]:
        return self.flow, self.inputs, self.parameters, self.additional, self.input_conn_id

    def _output_options(self) -> OutputOptions:
        return OutputOptions(
            self.output_path,
            self.output_conn_id,
            self.max_xcom_bytes,
            self.fetch_partial_outputs,
            self.delete_after_fetch,
        )

    def _wait_or_defer(self, task_try: TaskTry, flow_run_id: str, schedule: Schedule) -> FlowRun:
        """Wait here, or look once and, if the run is not final yet, go to the triggerer."""
        from airflow_provider_flows.core.retry import NO_RETRY  # needed when a task runs only

        if self.deferrable and self.execution_timeout is not None:
            # Airflow does not keep execution_timeout while a task is deferred, so the deadline does
            try_deadline = task_try.started_at + self.execution_timeout.total_seconds()
            schedule = replace(schedule, deadline=min(try_deadline, schedule.deadline or try_deadline))
        wait = task_try.hook.create_wait(flow_run_id, schedule, self.log.log)
        try:
            run = task_try.hook.run(
                wait.poll() if self.deferrable else wait.poll_until_final(), retry=NO_RETRY
            )
        except FlowTimeout as error:
            return task_try.on_deadline(error)
        if run is not None and run.is_final:
            return run
        from airflow_provider_flows.triggers import (
            SUPPORTS_ON_KILL,
            FlowRunTrigger,
        )  # dear, and needed when a task runs only

        if self.abort_on_kill and not SUPPORTS_ON_KILL:
            self.log.warning(NO_ON_KILL, flow_run_id)
        self.defer(
            trigger=FlowRunTrigger.from_wait(self.flows_conn_id, wait, abort_on_kill=self.abort_on_kill),
            method_name=self.execute_complete.__name__,
        )
        raise AssertionError  # not reached: defer() raises


def _reject_options_without_wait(operator: RunFlowOperator) -> None:
    """Refuse what only a task can do that waits for its run."""
    for name in ("delete_after_fetch", "fetch_partial_outputs"):
        if not operator.wait_for_completion and getattr(operator, name):
            message = f"{name}=True has no meaning with wait_for_completion=False: the task is over before there are outputs"
            raise FlowInputError(message)


def _with_retry_policy(arguments: dict[str, Any]) -> dict[str, Any]:
    """Give the operator's arguments with our retry policy, unless they have one, or this Airflow (before 3.3) knows none."""
    try:
        from airflow_provider_flows.retry_policy import FlowsRetryPolicy
    except ImportError:
        return arguments
    return {"retry_policy": FlowsRetryPolicy(), **arguments}

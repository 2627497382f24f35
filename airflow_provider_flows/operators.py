"""RunFlowOperator: start a flow run, wait for it in a worker or in the triggerer, and fetch its outputs.

The operators for a run that exists, which `run_operators` defines, are exported here as well.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowTaskTimeout,
    BaseOperator,
    BaseOperatorLink,
    conf,
)

from airflow_provider_flows.batch.operator import RunFlowBatchOperator
from airflow_provider_flows.core.exceptions import FlowAuthError, FlowError, FlowInputError, FlowTimeout
from airflow_provider_flows.core.polling.schedule import (
    Schedule,
    to_seconds,
    to_time_limit,
)
from airflow_provider_flows.core.template_problems import RUN_KEYS
from airflow_provider_flows.links import FlowOutputsLink, FlowRunLink
from airflow_provider_flows.run_operators import (
    AbortFlowRunOperator,
    DeleteFlowRunOperator,
    FetchFlowRunOperator,
)
from airflow_provider_flows.storage.output_options import MAX_XCOM_BYTES, OutputOptions
from airflow_provider_flows.worker.check_retry import CheckedTaskMixin, check_rejection
from airflow_provider_flows.worker.run_tracking import RunTrackingMixin, find_pushed_run
from airflow_provider_flows.worker.template_check import (
    CHECKED_ARGUMENTS,
    OUTPUT_ARGUMENTS,
    TemplateCheckMixin,
    suggest_arguments,
)

if TYPE_CHECKING:
    from airflow.sdk import Context, ObjectStoragePath, RetryPolicy

    from airflow_provider_flows.core.check_retry import CheckRetry
    from airflow_provider_flows.core.flow_run import FlowRun
    from airflow_provider_flows.hooks import FlowsHook
    from airflow_provider_flows.worker.task_try import TaskTry

__all__ = [
    "AbortFlowRunOperator",
    "DeleteFlowRunOperator",
    "FetchFlowRunOperator",
    "RunFlowBatchOperator",
    "RunFlowOperator",
]

NOT_DEFERRED = (
    "This task is not deferred: %s responds when the flow run has ended, so its worker waits for it"
)
NO_ON_KILL = (
    "The on_kill method of triggers requires Airflow 3.3 or later. On this version, if this task is cleared "
    "while it is deferred, or if its DAG run is marked as success or failed, flow run %s continues; abort it "
    "yourself"
)


class RunFlowOperator(CheckedTaskMixin, RunTrackingMixin, TemplateCheckMixin, BaseOperator):
    """Start a flow run, wait for it, and fetch its outputs.

    The task returns one plain dict (README, "What a task returns"). `flow_run_id` is also pushed to XCom
    under that key, before the wait.

    :param flow: the flow's name or id. (templated)
    :param inputs: the flow's input data (templated): a prompt, or a list of prompts, `pathlib.Path`s,
        ObjectStoragePaths, dicts with `data` (a text or a data URI) or `uri` (a file, also on the web) and
        optionally `additional`, and what another task of this operator returned, or its outputs. A string is
        a prompt and never names a file; one that looks like a path or a URI is rejected. For PromptChainer, a
        mapping of variables.
    :param parameters: the flow's settings, a mapping. (templated)
    :param additional: your metadata, stored with the run (Generio). (templated)
    :param flows_conn_id: the Airflow connection; its type selects the service. (templated)
    :param input_conn_id: the Airflow connection of the storage of the files in `inputs`. (templated)
    :param wait_for_completion: if True (default), wait for the run to finish; otherwise return as soon as it
        has started. A run that has failed by then fails the task.
    :param deferrable: if True, wait in the triggerer, without a worker slot. Defaults to Airflow's setting
        `[operators] default_deferrable`.
    :param poll_interval: shortest time between two polls, in seconds or as a timedelta.
    :param max_poll_interval: longest time between two polls, in seconds or as a timedelta; raised to
        `poll_interval` if it is smaller.
    :param timeout: time from the first start until the deadline, over all retries, in seconds or as a
        timedelta; None for no limit.
    :param output_path: where files are stored, an absolute path or a URI; each run gets a folder there. None
        leaves the files at the service. (templated)
    :param output_conn_id: the Airflow connection of that storage. (templated)
    :param output_name: how files are called in the folder of the run, without extension: a text with fields
        such as `{input.key}-{index}`. By default each file has its output's name. (templated)
    :param reuse: a timedelta: if an earlier task has run the same request (service, host, flow, inputs,
        parameters) within it, return the outputs of that flow run, and start none. True for any age; False
        (default) to always start one.
    :param reuse_path: the folder with the index of outputs for `reuse`, in the storage of `output_conn_id`.
        None means `output_path`. (templated)
    :param max_xcom_bytes: the size of what the task returns, in bytes of JSON. Texts beyond it are stored in
        files below `output_path`, and their `value` is their start. None for any size.
    :param check_outputs: what the outputs must satisfy: `GlbCheck`, `ImageCheck` or `TextCheck` of
        `airflow_provider_flows.checks`, a function, or a list of them. None for no checks.
    :param on_rejected: what happens to outputs that do not: "fail" (default) raises FlowOutputRejected,
        "again" runs the flow once more first, with another seed if it has one. Each run is billed.
    :param check_retries: how often "again" does that, at most. Each run has the whole `timeout`.
    :param fetch_partial_outputs: if True, fetch the outputs of a failed or aborted run as well; the error
        lists them.
    :param delete_after_fetch: if True, delete the run at the service after all of its files are stored.
    :param durable: if True (default), a retry resumes the same flow run. Before Airflow 3.3 that requires a
        service that lists its runs, and an `additional` that is a mapping or None. Clearing the task starts a
        new flow run, and aborts the old one, unless its state is kept (Airflow 3.4 and later).
    :param abort_on_kill: if True (default), abort the flow run when the task is killed or its deadline
        passes.
    :param validate: if True (default), validate flow, inputs and parameters against the flow's definition
        before a run is created, as far as the service provides one. A parameter that must be a number or a
        Boolean may be given as a string, because templates render to strings. None means the service's
        default.
    :param retry_policy: which errors are retried, and when (Airflow 3.3 and later). Defaults to
        `FlowsRetryPolicy`, which never retries a permanent error.
    """

    operator_extra_links: Collection[BaseOperatorLink] = (FlowRunLink(), FlowOutputsLink())
    template_fields: Sequence[str] = (
        "flow",
        "inputs",
        "parameters",
        "additional",
        "flows_conn_id",
        "input_conn_id",
        "output_path",
        "output_conn_id",
        "output_name",
        "reuse_path",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        "inputs": "json",
        "parameters": "json",
        "additional": "json",
    }
    ui_color = "#e4def5"
    xcom_keys = RUN_KEYS

    _start_deadline: float | None = None  # of a start that has waited for the account's other flow runs
    _current_try: TaskTry | None = None  # for `on_kill` and the listener; `_run_try` sets it

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
        output_path: str | PathLike[str] | ObjectStoragePath | None = None,
        output_conn_id: str | None = None,
        output_name: str | None = None,
        reuse: bool | timedelta = False,
        reuse_path: str | PathLike[str] | ObjectStoragePath | None = None,
        max_xcom_bytes: int | None = MAX_XCOM_BYTES,
        check_outputs: Any = None,
        on_rejected: Literal["fail", "again"] = "fail",
        check_retries: int = 1,
        fetch_partial_outputs: bool = False,
        delete_after_fetch: bool = False,
        durable: bool = True,
        abort_on_kill: bool = True,
        validate: bool = True,
        retry_policy: RetryPolicy | None = None,
        **kwargs: Any,
    ) -> None:
        from airflow_provider_flows.retry_policy import to_retry_arguments  # importing operators stays cheap

        with suggest_arguments(type(self), kwargs):
            super().__init__(**to_retry_arguments(retry_policy), **kwargs)
        self.flow, self.inputs = flow, inputs
        self.parameters, self.additional = parameters, additional
        self.flows_conn_id, self.input_conn_id = flows_conn_id, input_conn_id
        self.wait_for_completion, self.deferrable = wait_for_completion, deferrable
        self.poll_interval, self.max_poll_interval = poll_interval, max_poll_interval
        self.timeout = timeout
        self.output_path: Any = output_path  # `OutputOptions` makes a path a text
        self.reuse, self.reuse_path = reuse, cast("Any", reuse_path)
        self.output_conn_id, self.output_name = output_conn_id, output_name
        self.max_xcom_bytes, self.check_outputs = max_xcom_bytes, check_outputs
        self.on_rejected, self.check_retries = on_rejected, check_retries
        self.fetch_partial_outputs, self.delete_after_fetch = fetch_partial_outputs, delete_after_fetch
        self.durable, self.abort_on_kill, self.validate = durable, abort_on_kill, validate
        self.check_arguments()
        Schedule.of(poll_interval, max_poll_interval)  # raises on invalid intervals when the DAG is parsed
        to_time_limit("timeout", timeout)
        check_rejection(check_outputs, on_rejected, check_retries)
        options = self._output_options()
        if not wait_for_completion:
            options.reject_without_wait()

    def execute(self, context: Context) -> dict[str, Any]:
        """Resume the flow run of an earlier try or start one, then wait for it as configured."""
        from airflow_provider_flows.retry_policy import log_if_unsupported
        from airflow_provider_flows.worker.start import reject_unused_output_path

        self.raise_if_connection_is_unusable()
        task_try = self._create_task_try(context)
        if not self.wait_for_completion:
            reject_unused_output_path(self, task_try.hook)
        self.warn_about_task_ids()
        log_if_unsupported(self)
        if self.deferrable and not task_try.hook.service.supports("get_run"):
            self.log.info(NOT_DEFERRED, task_try.hook.service.name)
        return self._run(task_try)

    def _run(self, task_try: TaskTry, check_retry: CheckRetry | None = None) -> dict[str, Any]:
        from airflow_provider_flows.worker.finish import finish_without_wait
        from airflow_provider_flows.worker.run_tracking import abort_replaced_runs
        from airflow_provider_flows.worker.start import plan_run, resume_or_start
        from airflow_provider_flows.worker.task_try import on_execution_timeout

        with self._run_try(task_try):
            on_run_update = self.get_run_tracker(task_try.context, task_try.hook)
            if self.abort_on_kill and check_retry is None:
                abort_replaced_runs(task_try.context, task_try.hook)
            arguments = self.flow, self.inputs, self.parameters, self.additional, self.input_conn_id
            template_problems = (
                self.get_template_problems(CHECKED_ARGUMENTS - OUTPUT_ARGUMENTS),
                self.get_template_problems(OUTPUT_ARGUMENTS),
            )
            timeout = to_seconds("timeout", self.timeout)
            if self._start_deadline is not None and check_retry is None:
                timeout = self._start_deadline - time.time()
            planned_run = plan_run(
                task_try,
                arguments,
                self._output_options(),
                timeout,
                template_problems,
                check_retry=check_retry,
            )
            self.save_for_finish(planned_run.lookup, planned_run.check_retry)
            # a replaced run may be recorded in this process only, so the account is awaited here
            can_defer_start = self.deferrable and check_retry is None
            defer = partial(self._defer_start, task_try, planned_run.deadline) if can_defer_start else None
            try:
                run = resume_or_start(task_try, planned_run, defer)
                on_run_update(run)
                can_fetch_later = run.is_completed and task_try.hook.service.staged_start
                if not self.wait_for_completion and (can_fetch_later or not run.is_final):
                    return finish_without_wait(task_try.context, run)
                if not run.is_final:
                    run = self._wait_or_defer(task_try, run.flow_run_id, planned_run.deadline)
            except AirflowTaskTimeout:  # Airflow's execution_timeout
                completed_run = on_execution_timeout(task_try, planned_run.fingerprint)
                if completed_run is None:
                    raise
                run = completed_run
        return self._finish(task_try, run, on_run_update)

    def start_after_wait(self, context: Context, event: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Continue after a deferral because the account had too many active flow runs; count them again."""
        self._start_deadline = (event or {}).get("start_deadline")
        result: dict[str, Any] = self.execute(context)
        return result

    def execute_complete(self, context: Context, event: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Continue after the deferral with the trigger's event: the final run, or an error."""
        from airflow_provider_flows.triggers import run_from_event  # slow to import
        from airflow_provider_flows.worker.task_try import on_deadline

        self._deferred_arguments = (event or {}).get("task_arguments")
        task_try = self._create_task_try(
            context, deferred_run_id=(event or {}).get("flow_run_id"), after_deferral=True
        )
        with self._run_try(task_try):
            on_run_update = self.get_run_tracker(
                context, task_try.hook, task_try.deferred_run_id, after_deferral=True
            )
            rejection: FlowError | None = None
            try:
                run = run_from_event(event, task_try.hook.error_texts)
            except FlowTimeout as error:
                run = on_deadline(task_try, str(task_try.flow_run_id), error)
            except (FlowAuthError, FlowInputError) as error:  # perhaps only in the triggerer
                rejection = error
            if rejection is not None:  # not inside of `except`: a traceback would repeat the error
                run = self._wait_after_rejection(task_try, event or {}, rejection)
        return self._finish(task_try, run, on_run_update)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Continue after the deferral.

        If no event arrived in time, end as at the deadline. If the trigger itself failed, abort the flow run
        unless a retry resumes it.
        """
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowException:
            # If the trigger failed, Airflow passes a marker, not a method name. A real method handles its own
            # errors.
            if hasattr(self, next_method):
                raise
            from airflow_provider_flows.triggers import NO_EVENT, is_deferral_timeout  # slow to import
            from airflow_provider_flows.worker.task_try import on_deadline

            task_try = self._create_task_try(context, after_deferral=True)
            is_timeout = is_deferral_timeout(next_method, next_kwargs)
            flow_run_id = task_try.flow_run_id
            if flow_run_id is None and is_timeout:  # without a store
                flow_run_id = find_pushed_run(context["ti"], task_try.hook)
            with self._run_try(task_try):
                if flow_run_id is None or not is_timeout:
                    raise
                on_run_update = self.get_run_tracker(context, task_try.hook, flow_run_id, after_deferral=True)
                no_event = FlowTimeout(NO_EVENT.format(flow_run_id=flow_run_id))
                run = on_deadline(task_try, flow_run_id, no_event)
        return self._finish(task_try, run, on_run_update)

    def delete_saved_run(self) -> None:
        """Delete what was saved for a retry only. The listener calls this when the task has succeeded."""
        task_try = self._current_try
        # no try is deferred for a run that is saved completely, so the record need not be read for this only
        if task_try is not None and (task_try.deferred_run_id is None or task_try.task_state.is_loaded):
            task_try.task_state.delete_saved_run()

    def on_kill(self) -> None:
        """Abort the flow run only if Airflow has ended the task.

        If that is uncertain, leave the run for the next try.
        """
        if self._current_try is not None and self.abort_on_kill:
            from airflow_provider_flows.worker.task_try import on_kill  # imported before the try was created

            on_kill(self._current_try)

    def _get_hook(self, conn_id: str) -> FlowsHook:
        from airflow_provider_flows.hooks import FlowsHook

        return FlowsHook.get_hook(conn_id)

    def _create_task_try(
        self,
        context: Context,
        *,
        use_saved_connection: bool = False,
        deferred_run_id: str | None = None,
        after_deferral: bool = False,
    ) -> TaskTry:
        """Create the state of this try.

        :param use_saved_connection: whether to use the connection that an earlier try started its run with.
        :param deferred_run_id: the flow run that the task was deferred for.
        :param after_deferral: whether the try was deferred before.
        """
        from airflow_provider_flows.worker.task_state import TaskState  # imports stay cheap
        from airflow_provider_flows.worker.task_try import TaskTry, add_continuing_run

        ti: Any = context["ti"]
        was_cleared = bool(getattr(context.get("dag_run"), "clear_number", None))
        task_state = TaskState(
            context,
            durable=self.durable,
            options=self._output_options(),
            is_new=not after_deferral and int(ti.try_number) <= 1 and not was_cleared,
        )
        record = task_state.record if use_saved_connection else None
        saved_conn_id = None if record is None else record.conn_id

        def create_hook() -> FlowsHook:
            hook = self._get_hook(saved_conn_id or self.flows_conn_id)
            hook.max_transfer_seconds = to_seconds("timeout", self.timeout)
            hook.hidden_inputs = self.inputs
            return hook

        try:
            hook = create_hook()
        except FlowInputError as error:
            saved_run = task_state.current_record
            flow_run_id = deferred_run_id or (None if saved_run is None else saved_run.flow_run_id)
            if flow_run_id is not None:
                add_continuing_run(error, flow_run_id)
            raise
        return TaskTry(
            context,
            task_state,
            hook,
            create_hook,
            abort_on_kill=self.abort_on_kill,
            validate=self.validate,
            log=self.log,
            deferred_run_id=deferred_run_id,
        )

    @contextmanager
    def _run_try(self, task_try: TaskTry) -> Iterator[None]:
        """Run a block as part of a try: `on_kill` aborts its flow run from now on, and so does an error.

        An error aborts it only if no retry resumes it. The try stays the current one after the block, while
        its outputs are fetched.
        """
        from airflow_provider_flows.worker.task_state import save_input_error
        from airflow_provider_flows.worker.task_try import abort_on_error

        self._current_try = task_try
        with save_input_error(task_try.context), abort_on_error(task_try):
            yield

    def _output_options(self) -> OutputOptions:
        return OutputOptions(
            self.output_path,
            self.output_conn_id,
            self.max_xcom_bytes,
            self.fetch_partial_outputs,
            self.delete_after_fetch,
            output_name=self.output_name,
            inputs=self.inputs,
            reuse=self.reuse,
            reuse_path=self.reuse_path,
            check_outputs=self.check_outputs,
        )

    def _wait_or_defer(
        self, task_try: TaskTry, flow_run_id: str, deadline: float | None, rejections: int = 0
    ) -> FlowRun:
        """Wait here; or poll once, and defer the task if the run is not final yet.

        :param rejections: how many triggers have ended because their connection was unusable.
        """
        from airflow_provider_flows.worker.task_try import on_deadline, run_poll

        schedule = self._create_schedule(task_try, deadline)
        wait = task_try.hook.create_wait(flow_run_id, schedule, self.log.log, is_named=True)
        poll = wait.select_poll(rejections, until_final=not self.deferrable)
        try:
            run = run_poll(task_try, wait, poll)
        except FlowTimeout as error:
            return on_deadline(task_try, flow_run_id, error)
        if run is not None and run.is_final:
            return run
        from airflow_provider_flows.compat import triggers_have_on_kill
        from airflow_provider_flows.triggers import FlowRunTrigger, deferral_timeout  # slow to import

        if self.abort_on_kill and not triggers_have_on_kill():
            self.log.warning(NO_ON_KILL, flow_run_id)
        self.defer(
            trigger=FlowRunTrigger.from_wait(
                self.flows_conn_id,
                wait,
                abort_on_kill=self.abort_on_kill,
                rejections=rejections,
                task_arguments=self._deferred_arguments,
            ),
            method_name=self.execute_complete.__name__,
            timeout=deferral_timeout(schedule),
        )
        raise AssertionError  # not reached: defer() raises

    def _create_schedule(self, task_try: TaskTry, deadline: float | None) -> Schedule:
        schedule = Schedule.of(self.poll_interval, self.max_poll_interval, deadline)
        if self.deferrable and self.execution_timeout is not None:
            # Airflow does not enforce execution_timeout while a task is deferred, so the deadline does
            try_deadline = task_try.started_at + self.execution_timeout.total_seconds()
            schedule = replace(schedule, deadline=min(try_deadline, schedule.deadline or try_deadline))
        return schedule

    def _defer_start(self, task_try: TaskTry, deadline: float | None) -> None:
        """Defer the task until the account may have another active flow run."""
        from airflow_provider_flows.triggers import FlowStartTrigger, deferral_timeout  # slow to import

        schedule = self._create_schedule(task_try, deadline)
        self.defer(
            trigger=FlowStartTrigger(self.flows_conn_id, self.flow, schedule.deadline, deadline),
            method_name=self.start_after_wait.__name__,
            timeout=deferral_timeout(schedule),
        )

    def _wait_after_rejection(self, task_try: TaskTry, event: Mapping[str, Any], error: FlowError) -> FlowRun:
        """Continue a wait with this worker's connection, because the triggerer's is unusable.

        :raises FlowAuthError: this worker's key is rejected as well.
        """
        from airflow_provider_flows.triggers import UNUSABLE_IN_TRIGGERER  # slow to import

        flow_run_id = str(task_try.flow_run_id)
        self.log.warning(UNUSABLE_IN_TRIGGERER, flow_run_id, error.summary)
        return self._wait_or_defer(task_try, flow_run_id, event.get("deadline"), event.get("rejections", 1))

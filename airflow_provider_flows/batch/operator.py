"""RunFlowBatchOperator: thousands of flow runs in one task, one for each item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.providers.common.compat.sdk import AirflowException, BaseOperator, conf

from airflow_provider_flows.core.batch import BatchPolicy
from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.polling.schedule import Schedule, to_seconds
from airflow_provider_flows.core.reuse import to_max_age
from airflow_provider_flows.worker.check_retry import AGAIN, check_rejection
from airflow_provider_flows.worker.template_check import CHECKED_ARGUMENTS, TemplateCheckMixin

if TYPE_CHECKING:
    from os import PathLike

    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context, ObjectStoragePath, RetryPolicy

    from airflow_provider_flows.batch.task import BatchTaskTry
    from airflow_provider_flows.hooks import FlowsHook

PUBLIC_MODULE = "airflow_provider_flows.operators"  # from which the operator is imported
SKIP = "skip"
UNUSABLE_IN_TRIGGERER = (
    "The triggerer cannot poll the flow runs over connection %r, so this worker polls them with its own. "
    "Check the connection where the triggerer reads it. Reason: %s"
)


class RunFlowBatchOperator(TemplateCheckMixin, BaseOperator):
    """Run a flow for each item of a list or a file, many at a time, and store all outputs.

    The task returns one small dict, whatever the number of items: `total, completed, failed, aborted, reused,
    manifest, failed_items, duration, flow, service`. `manifest` is the URI of a JSONL file with one line for
    each item, and `failed_items` that of the items that failed, which can be the `items` of another batch.
    These two are XComs of their own as well, also if the batch fails: `chairs.output["failed_items"]`.

    Each item is run exactly once, also if a worker or a triggerer is killed. A retry of the task resumes the
    active flow runs, fetches what is missing, starts what was never started, and runs again only what failed.
    Clearing the task aborts what is active, and starts all items again; after an error because of the
    account's quota it continues.

    :param flow: the flow's name or id. (templated)
    :param items: what to run (templated): a list, also of another task, of what `inputs` of `RunFlowOperator`
        takes, or of dicts with `inputs` and optionally `key`, `parameters` and `additional`; the URI of a
        JSONL, CSV or Parquet file of such items; or a URI with a pattern, such as `s3://shop/photos/*.png`,
        for one item per file. `key` is the name of an item, and of its folder.
    :param output_path: where everything is stored: `<output_path>/<key>/<name>.<ext>`, `manifest.jsonl` and
        `failed.jsonl`. (templated)
    :param parameters: the settings of all flow runs; those of an item take precedence. (templated)
    :param reuse: a timedelta: an item whose request was run within it, also by another task, gets the outputs
        of that flow run, and none is started. True for any age; False (default) to run all items.
    :param reuse_path: the folder with the index of outputs for `reuse`, in the storage of `output_conn_id`.
        None means `output_path`. (templated)
    :param columns: the field of an item by the name of a column, for CSV and Parquet files.
    :param max_active_runs: how many flow runs are active at the service at the same time.
    :param min_success_ratio: the task fails if a smaller part of the items completes, after everything has
        been tried.
    :param stop_after_failures: after so many failed flow runs in a row, no other is started, those that are
        active continue to their end, and the task fails. None for any number.
    :param item_retries: how often a failed item is run again within one try of the task.
    :param check_outputs: what the outputs of each item must satisfy, as for `RunFlowOperator`. An item whose
        outputs do not has failed, with its verdict in the manifest; a retry of the task leaves it so.
    :param on_rejected: "again" runs such an item once more first, with another seed if the flow has one.
    :param check_retries: how often that is done for one item, at most.
    :param flows_conn_id: the Airflow connection; its type selects the service. (templated)
    :param input_conn_id: the Airflow connection of the storage of `items` and of the files in it. (templated)
    :param output_conn_id: the Airflow connection of the storage of `output_path`. (templated)
    :param deferrable: if True, hold a worker slot only while there is something to start or to fetch.
        Defaults to Airflow's setting `[operators] default_deferrable`.
    :param poll_interval: shortest time between two polls of a flow run, in seconds or as a timedelta.
    :param max_poll_interval: longest time between two polls of a flow run.
    :param timeout: the time that one flow run may take, from its start, in seconds or as a timedelta; then it
        is aborted, and its item has failed. None for no limit. `execution_timeout` is that of the task.
    :param durable: if True (default), a retry continues this batch (Airflow 3.3 and later).
    :param abort_on_kill: if True (default), abort the active flow runs when the task is killed.
    :param validate: if True (default), check all items before the first flow run is started, and fail if one
        cannot be sent. With "skip", such items are listed in `failed.jsonl`, and the others are run. With
        False, items are not validated against the flow's definition.
    :param retry_policy: as for `RunFlowOperator`.
    """

    __module__ = PUBLIC_MODULE

    template_fields: Sequence[str] = (
        "flow",
        "items",
        "parameters",
        "flows_conn_id",
        "input_conn_id",
        "output_path",
        "output_conn_id",
        "reuse_path",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"items": "json", "parameters": "json"}
    ui_color = "#e4def5"
    xcom_keys = frozenset({"manifest", "failed_items"})  # of what the task returns

    batch_result: dict[str, Any] | None = None
    """What the task returns, as soon as all items have ended, also if the task then fails."""
    _current_try: BatchTaskTry | None = None  # for `on_kill`

    def __init__(
        self,
        *,
        flow: str,
        items: Any,
        output_path: str,
        parameters: Mapping[str, Any] | None = None,
        reuse: bool | timedelta = False,
        reuse_path: str | PathLike[str] | ObjectStoragePath | None = None,
        columns: Mapping[str, str | None] | None = None,
        max_active_runs: int = 50,
        min_success_ratio: float = 1.0,
        stop_after_failures: int | None = 20,
        item_retries: int = 0,
        check_outputs: Any = None,
        on_rejected: Literal["fail", "again"] = "fail",
        check_retries: int = 1,
        flows_conn_id: str = "flows_default",
        input_conn_id: str | None = None,
        output_conn_id: str | None = None,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float | timedelta = 5,
        max_poll_interval: float | timedelta = 60,
        timeout: float | timedelta | None = timedelta(hours=1),
        durable: bool = True,
        abort_on_kill: bool = True,
        validate: bool | Literal["skip"] = True,
        retry_policy: RetryPolicy | None = None,
        **kwargs: Any,
    ) -> None:
        from airflow_provider_flows.retry_policy import to_retry_arguments  # importing operators stays cheap

        super().__init__(**to_retry_arguments(retry_policy), **kwargs)
        self.flow, self.items, self.parameters, self.columns = flow, items, parameters, columns
        self.output_path, self.output_conn_id = output_path, output_conn_id
        self.reuse, self.reuse_path = reuse, reuse_path
        self.max_active_runs, self.min_success_ratio = max_active_runs, min_success_ratio
        self.stop_after_failures, self.item_retries = stop_after_failures, item_retries
        self.check_outputs = check_outputs
        self.on_rejected, self.check_retries = on_rejected, check_retries
        self.flows_conn_id, self.input_conn_id = flows_conn_id, input_conn_id
        self.deferrable, self.timeout = deferrable, timeout
        self.poll_interval, self.max_poll_interval = poll_interval, max_poll_interval
        self.durable, self.abort_on_kill = durable, abort_on_kill
        self.check_arguments()
        self.validate = validate  # no Boolean if it is "skip"
        Schedule.of(poll_interval, max_poll_interval)  # raises on invalid values when the DAG is parsed
        to_seconds("timeout", timeout)
        to_max_age(reuse)
        check_rejection(check_outputs, on_rejected, check_retries)
        self._create_policy()
        if not isinstance(validate, bool) and validate != SKIP:
            raise FlowInputError(f"validate must be True, False or {SKIP!r}, not {validate!r}")

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the items, or continue what an earlier try has left."""
        from airflow_provider_flows.core.validation import NOTHING_STARTED  # imports stay cheap
        from airflow_provider_flows.retry_policy import log_if_unsupported

        self.get_template_problems(CHECKED_ARGUMENTS).raise_if_any(NOTHING_STARTED)
        log_if_unsupported(self)
        return self._run_part(self._create_try(context))

    def execute_complete(self, context: Context, event: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Continue after a deferral with the trigger's event: which flow runs are final, or an error."""
        from airflow_provider_flows.core.polling.schedule import MAX_REJECTED_TRIGGERS

        batch_try, event = self._create_try(context, is_first_part=False), event or {}
        rejections = int(event.get("rejections", 0))
        if "error" in event:
            self.log.warning(UNUSABLE_IN_TRIGGERER, self.flows_conn_id, event["error"])
        final_run_ids = event.get("final_run_ids")
        can_defer = rejections < MAX_REJECTED_TRIGGERS
        return self._run_part(batch_try, final_run_ids, rejections, can_defer=can_defer)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Continue after a deferral, also if no event arrived in time.

        If the trigger itself failed, abort the flow runs unless a retry resumes them.
        """
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowException as error:
            # If the trigger failed, Airflow passes a marker, not a method name. A real method handles its own
            # errors.
            if hasattr(self, next_method):
                raise
            from airflow_provider_flows.triggerer.kill_check import (
                is_deferral_timeout,  # slow to import
            )

            if is_deferral_timeout(next_method, next_kwargs):
                return self.execute_complete(context)
            self._create_try(context, is_first_part=False).fail(error)
            raise

    def on_kill(self) -> None:
        """Abort the active flow runs only if Airflow has ended the task."""
        if self._current_try is not None:
            self._current_try.on_kill()

    def get_openlineage_facets_on_complete(
        self,
        task_instance: Any,  # noqa: ARG002  # the openlineage provider's signature
    ) -> OperatorLineage[Any, Any]:
        """Return the file of the items, the folder of the outputs and the batch, for OpenLineage."""
        from airflow.providers.common.compat.sdk import redact

        from airflow_provider_flows.core.redaction import redact_parameters
        from airflow_provider_flows.worker.lineage import create_batch_lineage  # an optional provider

        parameters = redact_parameters(self.parameters, redact)
        return create_batch_lineage(self.items, self.output_path, self.batch_result, parameters)

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Return the same for a task that failed. If it failed before the end of its items, only these."""
        return self.get_openlineage_facets_on_complete(task_instance)

    def _run_part(
        self,
        batch_try: BatchTaskTry,
        final_run_ids: Sequence[str] | None = None,
        rejections: int = 0,
        *,
        can_defer: bool = True,
    ) -> dict[str, Any]:
        """Run the items until the batch has ended, or defer the task for those that are active."""
        self._current_try = batch_try
        ends_at = None
        if self.deferrable and self.execution_timeout is not None:
            # Airflow does not enforce execution_timeout while a task is deferred
            ends_at = batch_try.started_at + self.execution_timeout.total_seconds()
            batch_try.raise_if_past(ends_at)
        defers = self.deferrable and can_defer and batch_try.can_defer()
        program = batch_try.run(defers=defers, final_run_ids=final_run_ids)
        if program.deferred_run_ids:
            self._defer(program.deferred_run_ids, program.first_deadline, ends_at, rejections)
        if program.awaits_account:
            self._defer_start(ends_at)
        self.batch_result = result = batch_try.get_result(program)
        for key in sorted(self.xcom_keys):  # also for tasks that run after a batch that has failed
            batch_try.context["ti"].xcom_push(key, result[key])
        batch_try.finish(program, result)
        return result

    def _defer(
        self,
        flow_run_ids: Sequence[str],
        first_deadline: float | None,
        ends_at: float | None,
        rejections: int,
    ) -> None:
        from airflow_provider_flows.batch.trigger import FlowBatchTrigger  # slow to import
        from airflow_provider_flows.triggerer.kill_check import deferral_timeout

        deadlines = [deadline for deadline in (first_deadline, ends_at) if deadline is not None]
        schedule = Schedule.of(self.poll_interval, self.max_poll_interval, min(deadlines, default=None))
        self.log.info("Waiting for %d active flow runs in the triggerer", len(flow_run_ids))
        self.defer(
            trigger=FlowBatchTrigger(
                self.flows_conn_id,
                flow_run_ids,
                max(1, min(self.max_active_runs, len(flow_run_ids)) // 2),
                schedule.poll_interval,
                schedule.max_poll_interval,
                schedule.deadline,
                abort_on_kill=self.abort_on_kill,
                rejections=rejections,
            ),
            method_name=self.execute_complete.__name__,
            timeout=deferral_timeout(schedule),
        )

    def _defer_start(self, ends_at: float | None) -> None:
        """Defer the task, which has no active flow run, until the account may have another one."""
        from airflow_provider_flows.triggerer.kill_check import deferral_timeout
        from airflow_provider_flows.triggerer.start_trigger import FlowStartTrigger  # slow to import

        self.defer(
            trigger=FlowStartTrigger(self.flows_conn_id, self.flow, ends_at),
            method_name=self.execute_complete.__name__,
            timeout=deferral_timeout(Schedule.of(self.poll_interval, self.max_poll_interval, ends_at)),
        )

    def _create_policy(self) -> BatchPolicy:
        return BatchPolicy(
            self.max_active_runs,
            self.min_success_ratio,
            self.stop_after_failures,
            self.item_retries,
            self.check_retries if self.on_rejected == AGAIN else 0,
        )

    def _get_hook(self) -> FlowsHook:
        from airflow_provider_flows.hooks import FlowsHook

        hook = FlowsHook.get_hook(self.flows_conn_id)
        hook.max_transfer_seconds = to_seconds("timeout", self.timeout)
        return hook

    def _create_try(self, context: Context, *, is_first_part: bool = True) -> BatchTaskTry:
        from airflow_provider_flows.batch.batch_try import create_output_options  # imports stay cheap
        from airflow_provider_flows.batch.options import RunOptions
        from airflow_provider_flows.batch.task import BatchTaskTry, create_stamp

        schedule = Schedule.of(self.poll_interval, self.max_poll_interval)
        options = RunOptions(
            self.flow,
            self.parameters,
            self.input_conn_id,
            create_output_options(
                self.output_path,
                self.output_conn_id,
                reuse=self.reuse,
                reuse_path=self.reuse_path,
                check_outputs=self.check_outputs,
            ),
            schedule.poll_interval,
            schedule.max_poll_interval,
            to_seconds("timeout", self.timeout),
            bool(self.validate),
            self.abort_on_kill,
            create_stamp(context),
        )
        return BatchTaskTry(
            self._get_hook(),
            self.items,
            self.columns,
            self._create_policy(),
            options,
            context=context,
            create_hook=self._get_hook,
            skips_invalid_items=self.validate == SKIP,
            durable=self.durable,
            is_first_part=is_first_part,
        )

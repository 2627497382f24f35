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
from airflow_provider_flows.core.polling.schedule import Schedule, seconds
from airflow_provider_flows.storage.output_options import MAX_XCOM_BYTES, Delivery
from airflow_provider_flows.worker.finish import end
from airflow_provider_flows.worker.run_tracking import Traced

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_flows.core.run import FlowRun
    from airflow_provider_flows.hooks import FlowsHook
    from airflow_provider_flows.worker.task_try import Attempt

NO_RETRY_POLICIES = (
    "This Airflow has no retry policies (3.3 and later have them): an error that no retry can mend, such as a wrong key, is "
    "tried again all the same, and a service that asks for a delay gets the task's own"
)
NO_KILLS = (
    "This Airflow tells a trigger of no kill (3.3 and later do): if this task is cleared while it is deferred, or its DAG run "
    "marked, flow run %s goes on"
)


class RunFlowOperator(Traced, BaseOperator):
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

    _attempt: Attempt | None = None  # of the try that is under way

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
        seconds("timeout", timeout)
        self._delivery()
        _refuse_without_waiting(self)

    def execute(self, context: Context) -> dict[str, Any]:
        """Start the flow run, or pick it up where an earlier try left it; then wait in the way that was asked for."""
        limit = seconds("timeout", self.timeout)
        attempt, delivery = self._begun(context), self._delivery()
        if self.retries and not hasattr(self, "retry_policy"):
            self.log.info(NO_RETRY_POLICIES)
        with attempt.in_charge():
            order = attempt.order(self._order(), delivery)
            seen = self.tracing(context, attempt.hook)
            deadline = attempt.memory.deadline(order, None if limit is None else time.time() + limit)
            try:
                run = attempt.started(order, deadline)
                seen(run)
                if not self.wait_for_completion and (attempt.hook.service.steps or not run.completed):
                    from airflow_provider_flows.worker.asset_events import (
                        tell_outlets,
                    )  # needed when a task runs only

                    tell_outlets(
                        context, run
                    )  # Airflow sends their events, whether they tell something or not
                    return run.as_dict()
                schedule = Schedule.of(self.poll_interval, self.max_poll_interval, deadline)
                final = run if run.final else self._waited(attempt, run.flow_run_id, schedule)
            except AirflowTaskTimeout:  # Airflow's execution_timeout
                late = attempt.cut_off(order)
                if late is None:
                    raise
                final = late
        return end(
            context,
            attempt.hook,
            final,
            delivery,
            keep=attempt.memory.keep_answer,
            halt=attempt.halt,
            seen=seen,
        )

    def execute_complete(self, context: Context, event: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Go on after the deferral: with the run that the trigger saw end, or with the error that ended the wait."""
        from airflow_provider_flows.triggers import outcome  # dear, and needed when a task runs only

        attempt = self._begun(context)
        attempt.flow_run_id = (event or {}).get("flow_run_id")
        seen = self.tracing(context, attempt.hook, attempt.flow_run_id)
        with attempt.in_charge():
            try:
                run = outcome(event)
            except FlowTimeout as error:
                run = attempt.late(error)
        keep = attempt.memory.keep_answer
        return end(context, attempt.hook, run, self._delivery(), keep=keep, halt=attempt.halt, seen=seen)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after the deferral; a trigger that failed itself leaves no run behind that nobody waits for any more."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowException:
            if hasattr(
                self, next_method
            ):  # what that raised it has dealt with; a trigger that failed names no method
                raise
            with self._begun(context).in_charge():
                raise

    def forget(self) -> None:
        """Drop what was kept for a retry and is of no use when the task has succeeded; Airflow's listener calls this."""
        if self._attempt is not None:
            self._attempt.memory.forget()

    def on_kill(self) -> None:
        """Abort the flow run if the task is really over; in doubt do nothing, the next try goes on with the run."""
        if self._attempt is not None and self.abort_on_kill:
            self._attempt.killed()

    def _hook(self, conn_id: str | None = None) -> FlowsHook:
        from airflow_provider_flows.hooks import FlowsHook

        return FlowsHook.get_hook(conn_id or self.flows_conn_id)

    def _begun(self, context: Context, *, earlier: bool = False) -> Attempt:
        from airflow_provider_flows.worker.task_try import Attempt  # needed when a task runs only

        self._attempt = Attempt(
            context,
            self._hook,
            earlier=earlier,
            durable=self.durable,
            abort_on_kill=self.abort_on_kill,
            validate=self.validate,
            log=self.log,
        )
        return self._attempt

    def _order(self) -> tuple[Any, Any, Any, Any, str | None]:
        return self.flow, self.inputs, self.parameters, self.additional, self.input_conn_id

    def _delivery(self) -> Delivery:
        return Delivery(
            self.output_path,
            self.output_conn_id,
            self.max_xcom_bytes,
            self.fetch_partial_outputs,
            self.delete_after_fetch,
        )

    def _waited(self, attempt: Attempt, flow_run_id: str, schedule: Schedule) -> FlowRun:
        """Wait here, or look once and, if the run is not final yet, go to the triggerer."""
        if self.deferrable and self.execution_timeout is not None:
            # Airflow does not keep execution_timeout while a task is deferred, so the deadline does
            this_try = attempt.began + self.execution_timeout.total_seconds()
            schedule = replace(schedule, deadline=min(this_try, schedule.deadline or this_try))
        wait = attempt.hook.waiting_for(flow_run_id, schedule, self.log.log)
        try:
            run = attempt.hook.hold(wait.look() if self.deferrable else wait.until_final())
        except FlowTimeout as error:
            return attempt.late(error)
        if run is not None and run.final:
            return run
        from airflow_provider_flows.triggers import (
            KILLS_ARE_TOLD,
            FlowRunTrigger,
        )  # dear, and needed when a task runs only

        if self.abort_on_kill and not KILLS_ARE_TOLD:
            self.log.warning(NO_KILLS, flow_run_id)
        self.defer(
            trigger=FlowRunTrigger.going_on(self.flows_conn_id, wait, abort_on_kill=self.abort_on_kill),
            method_name=self.execute_complete.__name__,
        )
        raise AssertionError  # not reached: defer() raises


def _refuse_without_waiting(operator: RunFlowOperator) -> None:
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

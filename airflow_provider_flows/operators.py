"""The operator: starts a flow run, waits for it in whichever way, and brings home what it made.

How a start, a wait and a fetch go stands in flow/starting.py, flow/waiting.py and outputs.py; here is only their order.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from threading import Thread
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowTaskTimeout, BaseOperator, conf

from airflow_provider_flows.ending import end, end_late
from airflow_provider_flows.flow.errors import FlowError, FlowServiceError, FlowTimeout
from airflow_provider_flows.flow.schedule import Schedule, seconds
from airflow_provider_flows.kills import ON_KILL_SECONDS, is_over

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_flows.flow.run import FlowRun
    from airflow_provider_flows.flow.starting import Order, Record
    from airflow_provider_flows.hooks import FlowsHook
    from airflow_provider_flows.memory import Memory


class RunFlowOperator(BaseOperator):
    """Start a flow run, wait for it, fetch its outputs.

    Returns one plain dict (README, "What a task returns"); `flow_run_id` is pushed to XCom under that key before the wait.

    :param flow: name or id of the flow. (templated)
    :param inputs: what it works on (templated): a prompt, or a list of prompts, file URIs (`file:///...`, `s3://...`),
        `pathlib.Path`s and dicts with `data` or `uri` and perhaps `additional`; for PromptChainer a mapping of variables.
    :param parameters: how it works, a mapping. (templated)
    :param additional: metadata of yours, stored with the run (Generio). (templated)
    :param flows_conn_id: the Airflow connection; its type picks the service. (templated)
    :param wait_for_completion: whether the task ends with the run, or as soon as the run is started.
    :param deferrable: whether it waits in the triggerer, without a worker slot.
    :param poll_interval: seconds or timedelta; the most often that it looks.
    :param max_poll_interval: seconds or timedelta; the least often that it looks (never less than `poll_interval`).
    :param timeout: seconds or timedelta from the first start, over all retries; None for no limit.
    :param output_path: where files are written, any ObjectStoragePath, below it a folder a run; None leaves them at the
        service. (templated)
    :param output_conn_id: the Airflow connection of that storage. (templated)
    :param durable: whether a retry picks the same flow run up again (Airflow 3.3 and later); a Clear starts a new one.
    :param abort_on_kill: whether the flow run is aborted when the task is killed or its time is over.
    """

    template_fields: Sequence[str] = (
        "flow",
        "inputs",
        "parameters",
        "additional",
        "flows_conn_id",
        "output_path",
        "output_conn_id",
    )
    template_fields_renderers = {"inputs": "json", "parameters": "json", "additional": "json"}  # noqa: RUF012  # Airflow's form
    ui_color = "#e4def5"

    def __init__(
        self,
        *,
        flow: str,
        inputs: Any = None,
        parameters: Mapping[str, Any] | None = None,
        additional: Any = None,
        flows_conn_id: str = "flows_default",
        wait_for_completion: bool = True,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float | timedelta = 5,
        max_poll_interval: float | timedelta = 60,
        timeout: float | timedelta | None = timedelta(hours=1),
        output_path: str | None = None,
        output_conn_id: str | None = None,
        durable: bool = True,
        abort_on_kill: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**_with_retry_policy(kwargs))
        self.flow = flow
        self.inputs = inputs
        self.parameters = parameters
        self.additional = additional
        self.flows_conn_id = flows_conn_id
        self.wait_for_completion = wait_for_completion
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.max_poll_interval = max_poll_interval
        self.timeout = timeout
        self.output_path = output_path
        self.output_conn_id = output_conn_id
        self.durable = durable
        self.abort_on_kill = abort_on_kill
        self._ti: Any = None
        self._flow_run_id: str | None = None  # of the run that is this try's to stop
        self._killed = False
        self._memory: Memory | None = None
        Schedule.of(poll_interval, max_poll_interval)  # refuses what cannot be kept, at parse time
        seconds("timeout", timeout)

    def execute(self, context: Context) -> dict[str, Any]:
        """Start the flow run, or pick it up where an earlier try left it; then wait in the way that was asked for."""
        limit = seconds("timeout", self.timeout)
        hook = self._hook()
        order = hook.order(self.flow, self.inputs, self.parameters, self.additional)
        if self.wait_for_completion:
            from airflow_provider_flows.outputs import checked_path  # dear, and needed when a task runs only

            checked_path(self.output_path, self.output_conn_id)
        memory = self._recalled(context)
        deadline = memory.deadline(order, None if limit is None else time.time() + limit)
        try:
            run = self._started(hook, order, memory, deadline)
            self._flow_run_id = run.flow_run_id
            if not self.wait_for_completion:
                return run.as_dict()
            schedule = Schedule.of(self.poll_interval, self.max_poll_interval, deadline)
            final = run if run.final else self._waited(hook, run.flow_run_id, schedule, memory)
        except AirflowTaskTimeout:  # Airflow's execution_timeout
            late = self._cut_off(hook, memory, order)
            if late is None:
                raise
            final = late
        except FlowServiceError:
            self._give_up(hook, memory)
            raise
        return end(context, hook, final, self.output_path, self.output_conn_id)

    def execute_complete(self, context: Context, event: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Go on after the deferral: with the run that the trigger saw end, or with the error that ended the wait."""
        from airflow_provider_flows.triggers import outcome  # dear, and needed when a task runs only

        hook = self._hook()
        self._flow_run_id = str((event or {}).get("flow_run_id"))
        try:
            run = outcome(event)
        except FlowTimeout as error:
            run = self._late(hook, self._flow_run_id, error, self._recalled(context))
        except FlowServiceError:
            self._give_up(hook, self._recalled(context))
            raise
        return end(context, hook, run, self.output_path, self.output_conn_id)

    def forget(self) -> None:
        """Drop what was kept for a retry and is of no use when the task has succeeded; Airflow's listener calls this."""
        if self._memory is not None:
            self._memory.forget()

    def on_kill(self) -> None:
        """Abort the flow run if the task is really over; in doubt do nothing, the next try goes on with the run."""
        if self._ti is None or not self.abort_on_kill:
            return
        # A thread, because Airflow calls this from a signal handler, which may have interrupted a talk with the supervisor.
        thread = Thread(target=self._stop_if_over, daemon=True)
        thread.start()
        thread.join(ON_KILL_SECONDS)

    def _stop_if_over(self) -> None:
        try:
            if not is_over(self._ti):
                self.log.info("The task is not over for Airflow; flow run %s goes on", self._flow_run_id)
                return
            self._killed = True  # before the id is looked at: who keeps an id looks at this afterwards
            if self._flow_run_id is not None:
                self._hook().stop(self._flow_run_id)
                self.log.info("The task was killed; flow run %s is stopped", self._flow_run_id)
        except Exception:  # a kill must not fail for any reason; the next try or a person finds the run
            self.log.exception("The flow run %s could not be stopped; look at it at the service", self._flow_run_id)

    def _hook(self) -> FlowsHook:
        from airflow_provider_flows.hooks import FlowsHook

        return FlowsHook.get_hook(self.flows_conn_id)

    def _recalled(self, context: Context) -> Memory:
        from airflow_provider_flows.memory import Memory  # needed when a task runs only

        self._ti = context["ti"]
        self._memory = Memory(context, durable=self.durable)
        return self._memory

    def _started(self, hook: FlowsHook, order: Order, memory: Memory, deadline: float | None) -> FlowRun:
        run = self._picked_up(hook, order, memory)
        if run is not None:
            return run
        if deadline is not None and time.time() >= deadline:
            message = f"The timeout of this task was over before a flow run of {order.flow} was started; none was started."
            raise FlowTimeout(message)
        if memory.in_doubt(order) and not hook.service.steps:
            self.log.warning(
                "An earlier try sent flow %s to %s and its answer never came: it may have run before, and this try runs it again",
                order.flow,
                hook.service.name,
            )

        def keep(record: Record | None) -> None:
            memory.keep(record)
            if record is not None and record.flow_run_id is not None and hook.service.steps:
                self._flow_run_id = record.flow_run_id
            if self._killed:
                message = f"The task was killed while a flow run of {order.flow} was being started; it is not started."
                raise FlowError(message)

        record = memory.fresh(order, deadline)
        run = hook.start(order, record=record if self.durable else None, keep=keep)
        if not self.durable:
            keep(replace(record, flow_run_id=run.flow_run_id))
        self.log.info("Started the %s", run)
        if run.final:
            self.log.info("The %s is %s", run, run.state_word)
        return run

    def _picked_up(self, hook: FlowsHook, order: Order, memory: Memory) -> FlowRun | None:
        """Give the run that an earlier try left, if this one goes on with it; a kill meanwhile stops it."""
        known = memory.record.flow_run_id if memory.record is not None else None
        if memory.fits(order) and hook.service.steps:
            self._flow_run_id = known
        run = hook.pick_up(order, memory.record, memory.lineage, abort=self.abort_on_kill)
        self._flow_run_id = run.flow_run_id if run is not None else None
        if run is not None:
            self.log.info("An earlier try started the %s; it is %s, and this try goes on with it", run, run.state_word)
        elif known is not None and not memory.fits(order):
            fate = "it is stopped" if self.abort_on_kill else "it is left alone"
            told = (
                "Flow run %s is of an earlier request (the task was cleared, or its arguments changed): %s, and a new one starts"
            )
            self.log.info(told, known, fate)
        return run

    def _waited(self, hook: FlowsHook, flow_run_id: str, schedule: Schedule, memory: Memory) -> FlowRun:
        """Wait here, or look once and, if the run is not final yet, go to the triggerer."""
        if self.deferrable and self.execution_timeout is not None:
            # Airflow does not keep execution_timeout while a task is deferred, so the deadline does
            this_try = self._ti.start_date.timestamp() + self.execution_timeout.total_seconds()
            schedule = replace(schedule, deadline=min(this_try, schedule.deadline or this_try))
        wait = hook.waiting_for(flow_run_id, schedule, self.log.log)
        try:
            run = hook.hold(wait.look() if self.deferrable else wait.until_final())
        except FlowTimeout as error:
            return self._late(hook, flow_run_id, error, memory)
        if run is not None and run.final:
            return run
        from airflow_provider_flows.triggers import FlowRunTrigger  # dear, and needed when a task runs only

        self.defer(
            trigger=FlowRunTrigger.going_on(self.flows_conn_id, wait, abort_on_kill=self.abort_on_kill),
            method_name=self.execute_complete.__name__,
        )
        raise AssertionError  # not reached: defer() raises

    def _cut_off(self, hook: FlowsHook, memory: Memory, order: Order) -> FlowRun | None:
        """Leave the run to the next try when execution_timeout is over in a worker, or end it as any deadline does.

        None if Airflow's own error is all there is to say: a try is left, or no run of this order is known.
        """
        flow_run_id = memory.record.flow_run_id if memory.record is not None and memory.fits(order) else None
        if flow_run_id is None or not hook.service.offers("get_run"):
            return None
        if memory.outlives(time.time()):
            self.log.warning("The execution_timeout is over; the next try goes on with flow run %s", flow_run_id)
            return None
        return self._late(hook, flow_run_id, FlowTimeout("The execution_timeout of the task is over."), memory)

    def _give_up(self, hook: FlowsHook, memory: Memory) -> None:
        """Stop the run when what the service says has ended the last try, for nobody waits for it any more."""
        if self._flow_run_id is None or not self.abort_on_kill or memory.outlives(time.time()) or not hook.service.steps:
            return
        try:
            hook.stop(self._flow_run_id)
        except FlowError as error:
            self.log.warning("Flow run %s could not be stopped; look at it at the service: %s", self._flow_run_id, error)

    def _late(self, hook: FlowsHook, flow_run_id: str, error: FlowTimeout, memory: Memory) -> FlowRun:
        stop = not memory.outlives(time.time())  # a run that the next try goes on with is not stopped
        run = end_late(hook, flow_run_id, error, stop=stop, abort_on_kill=self.abort_on_kill)
        self.log.info("The time was over, but the %s is completed", run)
        return run


def _with_retry_policy(arguments: dict[str, Any]) -> dict[str, Any]:
    """Give the operator's arguments with our retry policy, unless they have one, or this Airflow (before 3.3) knows none."""
    try:
        from airflow_provider_flows.retries import FlowsRetryPolicy
    except ImportError:
        return arguments
    return {"retry_policy": FlowsRetryPolicy(), **arguments}

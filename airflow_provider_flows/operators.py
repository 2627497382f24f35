"""The operator: starts a flow run, waits for it in whichever way, and brings home what it made.

How a start, a wait and a fetch go stands in flow/starting.py, flow/waiting.py and outputs.py; here is only their order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from threading import Thread
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator, conf

from airflow_provider_flows.ending import end
from airflow_provider_flows.flow.errors import FlowError, FlowTimeout
from airflow_provider_flows.flow.retry import once
from airflow_provider_flows.flow.schedule import Schedule, seconds
from airflow_provider_flows.kills import ON_KILL_SECONDS, is_over
from airflow_provider_flows.memory import RUN_ID_KEY, Memory

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_flows.flow.run import FlowRun
    from airflow_provider_flows.flow.starting import Order
    from airflow_provider_flows.hooks import FlowsHook


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
    :param max_poll_interval: seconds or timedelta; the least often that it looks.
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
        super().__init__(**kwargs)
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
        self._under_way: tuple[Any, str] | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Start the flow run, or pick it up where an earlier try left it; then wait in the way that was asked for."""
        self._schedule(None)  # refuses bad intervals before anything is paid
        limit = seconds("timeout", self.timeout)
        hook = self._hook()
        order = hook.order(self.flow, self.inputs, self.parameters, self.additional)
        memory = Memory(context, order, durable=self.durable)
        deadline = memory.deadline(None if limit is None else time.time() + limit)
        run = self._started(hook, order, memory, deadline)
        self._under_way = (context["ti"], run.flow_run_id)
        if not self.wait_for_completion:
            return run.as_dict()
        final = run if run.final else self._waited(hook, run.flow_run_id, self._schedule(deadline))
        return end(context, hook, final, self.output_path, self.output_conn_id)

    def execute_complete(self, context: Context, event: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Go on after the deferral: with the run that the trigger saw end, or with the error that ended the wait."""
        from airflow_provider_flows.triggers import outcome  # dear, and needed when a task runs only

        hook = self._hook()
        flow_run_id = context["ti"].xcom_pull(task_ids=self.task_id, key=RUN_ID_KEY, map_indexes=context["ti"].map_index)
        with self._stopping_when_late(hook, flow_run_id):
            run = outcome(event)
        return end(context, hook, run, self.output_path, self.output_conn_id)

    def on_kill(self) -> None:
        """Abort the flow run if the task is really over; in doubt do nothing, the next try goes on with the run."""
        if self._under_way is None or not self.abort_on_kill:
            return
        # A thread, because Airflow calls this from a signal handler, which may have interrupted a talk with the supervisor.
        thread = Thread(target=self._abort_if_over, args=self._under_way, daemon=True)
        thread.start()
        thread.join(ON_KILL_SECONDS)

    def _abort_if_over(self, ti: Any, flow_run_id: str) -> None:
        try:
            if is_over(ti):
                self._hook().abort(flow_run_id)
                self.log.info("The task was killed; flow run %s is aborted", flow_run_id)
            else:
                self.log.info("The task is not over for Airflow; flow run %s goes on", flow_run_id)
        except Exception:  # a kill must not fail for any reason; the next try or a person finds the run
            self.log.exception("The flow run %s could not be aborted; look at it at the service", flow_run_id)

    def _hook(self) -> FlowsHook:
        from airflow_provider_flows.hooks import FlowsHook

        return FlowsHook.get_hook(self.flows_conn_id)

    def _schedule(self, deadline: float | None) -> Schedule:
        most = seconds("poll_interval", self.poll_interval) or 0.0
        return Schedule(most, max(most, seconds("max_poll_interval", self.max_poll_interval) or 0.0), deadline)

    def _started(self, hook: FlowsHook, order: Order, memory: Memory, deadline: float | None) -> FlowRun:
        run = hook.pick_up(order, memory.record, memory.lineage)
        if run is not None:
            self.log.info("An earlier try started the %s; it is %s, and this try goes on with it", run, run.state_word)
            return run
        if deadline is not None and time.time() >= deadline:
            message = f"The timeout of this task was over before a flow run of {order.flow} was started; none was started."
            raise FlowTimeout(message)

        def keep(made: FlowRun) -> None:
            memory.keep(made.flow_run_id, deadline, findable=hook.service.steps)

        run = hook.start(order, keep=keep if self.durable else None)
        if not self.durable:
            keep(run)
        self.log.info("Started the %s", run)
        if run.final:
            self.log.info("The %s is %s", run, run.state_word)
        return run

    def _waited(self, hook: FlowsHook, flow_run_id: str, schedule: Schedule) -> FlowRun:
        """Wait here, or look once and, if the run is not final yet, go to the triggerer."""
        wait = hook.waiting_for(flow_run_id, schedule, self.log.log)
        with self._stopping_when_late(hook, flow_run_id):
            if not self.deferrable:
                return hook.hold(once(wait.until_final()))
            run = hook.hold(once(wait.look()))
            if run is not None and run.final:
                return run
        from airflow_provider_flows.triggers import FlowRunTrigger  # dear, and needed when a task runs only

        self.defer(
            trigger=FlowRunTrigger.going_on(self.flows_conn_id, wait, abort_on_kill=self.abort_on_kill),
            method_name=self.execute_complete.__name__,
        )
        raise AssertionError  # not reached: defer() raises

    @contextmanager
    def _stopping_when_late(self, hook: FlowsHook, flow_run_id: str) -> Iterator[None]:
        """Abort the run when the deadline has passed, and say so in the error."""
        try:
            yield
        except FlowTimeout as error:
            if not self.abort_on_kill:
                message = f"{error} The flow run goes on (abort_on_kill=False)."
                raise FlowTimeout(message) from error
            try:
                hook.abort(flow_run_id)
            except FlowError as trouble:
                message = f"{error} It could not be aborted: {trouble}"
                raise FlowTimeout(message) from error
            message = f"{error} It was aborted."
            raise FlowTimeout(message) from error

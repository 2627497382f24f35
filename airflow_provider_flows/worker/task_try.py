"""One try of an operator's task: how it comes by its flow run, and what becomes of the run when the try ends badly.

How a start goes stands in flow/starting.py, what is remembered in memory.py; it waits for nothing and fetches nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any, cast

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException, AirflowTaskTimeout

from airflow_provider_flows.core.exceptions import FlowError, FlowTimeout
from airflow_provider_flows.core.problems import Problems
from airflow_provider_flows.core.start import EarlierRunRequest
from airflow_provider_flows.preflight import raise_if_invalid
from airflow_provider_flows.storage.atomic_file import Cancellation
from airflow_provider_flows.storage.inputs import build_request
from airflow_provider_flows.worker.finish import finish_after_deadline
from airflow_provider_flows.worker.kill_check import ON_KILL_SECONDS, is_task_finished

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import Logger

    from airflow_provider_flows.core.run import FlowRun
    from airflow_provider_flows.core.start import RunRecord, RunRequest
    from airflow_provider_flows.hooks import FlowsHook
    from airflow_provider_flows.storage.output_options import OutputOptions


class TaskTry:
    """One try of a task.

    :param new_hook: gives a hook of this connection, or of the task's own.
    :param earlier: whether it only answers for what an earlier try has left, over the connection that this was started by.
    :param durable: whether a retry goes on with the same flow run.
    :param abort_on_kill: whether the flow run is stopped when nobody waits for it any more.
    :param validate: whether a new run's order is checked against what its flow takes.
    :param log: the task's own.
    """

    def __init__(
        self,
        context: Context,
        new_hook: Callable[[str | None], FlowsHook],
        *,
        use_saved_connection: bool = False,
        durable: bool,
        abort_on_kill: bool,
        validate: bool,
        log: Logger,
    ) -> None:
        """Read what an earlier try kept."""
        from airflow_provider_flows.worker.task_state import TaskState  # needed when a task runs only

        self.task_state = TaskState(context, durable=durable)
        record = self.task_state.record if use_saved_connection else None
        self._new_hook = partial(new_hook, None if record is None else record.conn_id)
        self.hook = self._new_hook()
        self.cancellation = Cancellation()
        self.flow_run_id: str | None = None  # of the run that is this try's to stop
        self._context, self._ti = context, cast("Any", context["ti"])
        self._durable = durable
        self._abort_on_kill = abort_on_kill
        self._validate = validate
        self._log = log
        self._is_killed = False
        self._unreadable_request: tuple[RunRequest, Problems] | None = (
            None  # an order that could not be read, and why
        )

    @property
    def started_at(self) -> float:
        """When the try began, in epoch seconds."""
        return float(self._ti.start_date.timestamp())

    def build_request(
        self, arguments: tuple[Any, Any, Any, Any, str | None], options: OutputOptions
    ) -> RunRequest:
        """Read what is to be started; a try that goes on with a run does not need its inputs any more, and they may be gone.

        :param given: flow, inputs, parameters, additional, and the connection of the storage that files among the inputs lie in.
        :raises FlowInputError: its outputs cannot be delivered, or it cannot be read and no try before has started it; naming
            all that is wrong.
        """
        input_problems, problems = Problems(), Problems()
        request = build_request(*arguments, input_problems)
        options.validate(self.hook.service, problems)
        record = self.task_state.current_record
        can_resume = (
            record is not None and record.flow_run_id is not None and self.hook.service.supports("get_run")
        )
        if input_problems and can_resume and not problems:
            self._unreadable_request = request, input_problems
            message = "This try cannot read its inputs, so it can only go on with what was started: %s"
            self._log.warning(message, input_problems.error())
            return EarlierRunRequest(
                request.flow, (), saved_fingerprint=record.fingerprint if record is not None else ""
            )
        input_problems.extend(problems)
        raise_if_invalid(self.hook, request, input_problems, validate=self._validate)
        return request

    def resume_or_start(self, request: RunRequest, deadline: float | None) -> FlowRun:
        """Give the run that an earlier try left, or start one.

        :param deadline: epoch seconds, or None.
        :raises FlowInputError: naming all that is wrong with a new one.
        :raises FlowTimeout: it has passed already.
        """
        run = self._resume(request)
        if run is None and self._unreadable_request is not None:
            raise_if_invalid(self.hook, *self._unreadable_request, validate=self._validate)
        if run is None:
            run = self._start_new(request, deadline)
        self.flow_run_id = run.flow_run_id
        return run

    def _start_new(self, request: RunRequest, deadline: float | None) -> FlowRun:
        if deadline is not None and time.time() >= deadline:
            message = f"The timeout of this task was over before a flow run of {request.flow} was started; none was started."
            raise FlowTimeout(message)
        if self.task_state.may_have_started(request) and not self.hook.service.staged_start:
            self._log.warning(
                "An earlier try sent flow %s to %s and its answer never came: it may have run before, and this try runs it again",
                request.flow,
                self.hook.service.name,
            )

        def save(record: RunRecord | None) -> None:
            self.task_state.save(record)
            if (
                record is not None
                and record.flow_run_id is not None
                and self.hook.service.supports("get_run")
            ):
                self.flow_run_id = record.flow_run_id
            if self._is_killed:
                message = f"The task was killed while a flow run of {request.flow} was being started; it is not started."
                raise FlowError(message)

        record = replace(self.task_state.create_record(request, deadline), conn_id=self.hook.flows_conn_id)
        run = self.hook.start_request(
            request, record=record if self._durable else None, save=save, validate=self._validate
        )
        if not self._durable:
            save(replace(record, flow_run_id=run.flow_run_id))
        self._log.info("Started the %s", run)
        if run.is_final:
            self._log.info("The %s is %s", run, run.raw_state)
        return run

    def _resume(self, request: RunRequest) -> FlowRun | None:
        """Give the run that an earlier try left, if this one goes on with it; a kill meanwhile stops it."""
        task_state, saved_run_id = (
            self.task_state,
            self.task_state.record.flow_run_id if self.task_state.record is not None else None,
        )
        if task_state.matches(request) and self.hook.service.supports("get_run"):
            self.flow_run_id = saved_run_id
        run = self.hook.resume(request, task_state.record, task_state.generation, abort=self._abort_on_kill)
        self.flow_run_id = run.flow_run_id if run is not None else None
        if run is not None:
            self._log.info(
                "An earlier try started the %s; it is %s, and this try goes on with it", run, run.raw_state
            )
        elif saved_run_id is not None and not task_state.matches(request):
            is_aborted = self._abort_on_kill and self.hook.service.supports("abort")
            consequence = "it is stopped" if is_aborted else "it is left alone"
            message = "Flow run %s is of an earlier request (the task was cleared, or its arguments changed): %s, and a new one starts"
            self._log.info(message, saved_run_id, consequence)
        return run

    def on_execution_timeout(self, request: RunRequest) -> FlowRun | None:
        """Leave the run to the next try when execution_timeout is over in a worker, or end it as any deadline does.

        None if Airflow's own error is all there is to say: a try is left, or no run of this order is known.
        """
        record = self.task_state.record
        flow_run_id = record.flow_run_id if record is not None and self.task_state.matches(request) else None
        if flow_run_id is None or not self.hook.service.supports("get_run"):
            return None
        if self.task_state.will_be_resumed(time.time()):
            self._log.warning(
                "The execution_timeout is over; the next try goes on with flow run %s", flow_run_id
            )
            return None
        self.flow_run_id = flow_run_id
        return self.on_deadline(FlowTimeout("The execution_timeout of the task is over."))

    def on_deadline(self, error: FlowTimeout) -> FlowRun:
        """Give the run if it completed although its time is over.

        :raises FlowTimeout: it did not; a run that the next try goes on with is not stopped.
        """
        cancel = not self.task_state.will_be_resumed(time.time())
        run = finish_after_deadline(
            self.hook, str(self.flow_run_id), error, cancel=cancel, abort_on_kill=self._abort_on_kill
        )
        self._log.info("The time was over, but the %s is completed", run)
        return run

    @contextmanager
    def abort_on_error(self) -> Iterator[None]:
        """Let an error in the block that ends the task leave no run behind that nobody waits for any more."""
        try:
            yield
        except FlowTimeout:  # what became of the run is settled, and told in it
            raise
        except (Exception, AirflowTaskTimeout) as error:
            self._abort_unless_retried(error)
            raise

    def _abort_unless_retried(self, error: BaseException) -> None:
        """Stop the run, also one that an earlier try left, if no try follows that goes on with it."""
        flow_run_id = self._active_run_id
        can_get_run = self.hook.service.supports("get_run")
        if flow_run_id is None or not self._abort_on_kill or not can_get_run or self._will_retry(error):
            return
        try:
            self.hook.cancel(flow_run_id)
        except FlowError as abort_error:
            self._log.warning(
                "Flow run %s could not be stopped; look at it at the service: %s", flow_run_id, abort_error
            )

    @property
    def _active_run_id(self) -> str | None:
        """The id of the run that is this try's to stop, or else that an earlier try left and this one has not come to yet."""
        return self.flow_run_id or (
            None if self.task_state.record is None else self.task_state.record.flow_run_id
        )

    def _will_retry(self, error: BaseException) -> bool:
        """Whether a try after this error goes on with the run; what Airflow will ask of the task's retry policy is asked here."""
        if isinstance(
            error, (AirflowSkipException, AirflowFailException)
        ) or not self.task_state.will_be_resumed(time.time()):
            return False
        policy = getattr(self._context.get("task"), "retry_policy", None)
        if policy is None:
            return True
        try:
            decision = policy.evaluate(error, self._ti.try_number, self.task_state.generation, self._context)
        except Exception:  # noqa: BLE001  # whatever somebody's policy raises: Airflow then retries as if there were none
            return True
        return str(decision.action.value) != "fail"

    def on_kill(self) -> None:
        """Stop the run if the task is really over; in doubt do nothing, the next try goes on with it. Never raises."""
        # A thread, because Airflow calls this from a signal handler, which may have interrupted a talk with the supervisor.
        thread = Thread(target=self._cancel_if_finished, daemon=True)
        thread.start()
        thread.join(ON_KILL_SECONDS)

    def _cancel_if_finished(self) -> None:
        try:
            if not is_task_finished(self._ti):
                self._log.info("The task is not over for Airflow; flow run %s goes on", self.flow_run_id)
                return
            self._is_killed = True  # before the id is looked at: who keeps an id looks at this afterwards
            self.cancellation.cancel()
            if (flow_run_id := self._active_run_id) is not None and self.hook.service.supports("get_run"):
                self._new_hook().cancel(flow_run_id)  # not `hook`, which the main thread may be using
                self._log.info("The task was killed; flow run %s is stopped", flow_run_id)
        except Exception:  # noqa: BLE001  # a kill must not fail for any reason; the next try or a person finds the run
            self._log.exception(
                "The flow run %s could not be stopped; look at it at the service", self.flow_run_id
            )

"""One try of an operator's task: how it resumes or starts its flow run, and when it aborts the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Thread
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException, AirflowTaskTimeout

from airflow_provider_flows.core.exceptions import FlowError, FlowTimeout
from airflow_provider_flows.core.validation import Problems
from airflow_provider_flows.storage.atomic_file import Cancellation
from airflow_provider_flows.storage.inputs import build_request
from airflow_provider_flows.worker.finish import DeadlinePolicy, finish_after_deadline
from airflow_provider_flows.worker.kill_check import CANCELLED_BY_KILL, ON_KILL_SECONDS, is_task_finished

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import Logger

    from airflow_provider_flows.core.flow_run import FlowRun
    from airflow_provider_flows.core.start_or_resume import RunRecord, RunRequest
    from airflow_provider_flows.hooks import FlowsHook
    from airflow_provider_flows.storage.output_options import OutputOptions
    from airflow_provider_flows.worker.task_state import TaskState


@dataclass(frozen=True, slots=True)
class TryRequest:
    """The flow run that a try wants.

    :param request: starts a new run.
    :param fingerprint: of the request. It is the saved record's if the inputs can no longer be read: the run
        of an earlier try can be resumed without them.
    :param deadline: epoch seconds, or None.
    :param input_problems: why the inputs cannot be read, so that no new run can be started.
    """

    request: RunRequest
    fingerprint: str
    deadline: float | None
    input_problems: Problems


@dataclass
class TaskTry:
    """One try of a task.

    :param context: Airflow's context of the try.
    :param state: the record of the task's flow run, and the retries left.
    :param create_hook: returns a new hook of the task's connection.
    :param abort_on_kill: whether the flow run is aborted when no task waits for it any more.
    :param validate: whether a new run is validated against the flow's definition.
    :param log: the task's logger.
    :param deferred_run_id: the flow run that the task was deferred for, if it was.
    """

    context: Context
    state: TaskState
    create_hook: Callable[[], FlowsHook]
    abort_on_kill: bool
    validate: bool
    log: Logger
    deferred_run_id: str | None = None
    hook: FlowsHook = field(init=False)
    cancellation: Cancellation = field(init=False, default_factory=Cancellation)
    is_killed: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        """Create the hook of the main thread."""
        self.hook = self.create_hook()

    @property
    def started_at(self) -> float:
        """The start of the try, in epoch seconds."""
        ti: Any = self.context["ti"]
        return float(ti.start_date.timestamp())

    @property
    def flow_run_id(self) -> str | None:
        """The flow run that the try is responsible for, its own or an earlier try's, or None."""
        return self.deferred_run_id or self.state.flow_run_id

    def read_request(
        self,
        arguments: tuple[Any, Any, Any, Any, str | None],
        options: OutputOptions,
        timeout: float | None,
        template_problems: tuple[Problems, Problems],
    ) -> TryRequest:
        """Read the task's arguments, and validate what can be validated before a request is sent.

        A run of an earlier try can be resumed without its inputs, so an input that has disappeared is no
        error yet.

        :param arguments: flow, inputs, parameters, additional, and the connection of the storage of input
            files.
        :param timeout: seconds from now until the deadline, if no earlier try has set it; None for no
            deadline.
        :param template_problems: known problems of the arguments, and of those in `options`.
        :raises FlowInputError: an argument is invalid; the message lists every problem.
        """
        input_problems, output_problems = template_problems
        request = build_request(*arguments, input_problems)
        options.validate(self.hook.service, output_problems)
        record = self.state.current_record
        can_resume = (
            record is not None and record.flow_run_id is not None and self.hook.service.supports("get_run")
        )
        if record is not None and can_resume and input_problems and not output_problems:
            fingerprint = record.fingerprint
            self.log.warning(
                "The inputs cannot be read, so this try can only resume the flow run of an earlier try: %s",
                input_problems.error(),
            )
        else:
            input_problems.extend(output_problems)
            self._raise_if_invalid(request, input_problems)
            fingerprint = request.fingerprint
        deadline = self.state.deadline(fingerprint, None if timeout is None else time.time() + timeout)
        return TryRequest(request, fingerprint, deadline, input_problems)

    def resume_or_start(self, try_request: TryRequest) -> FlowRun:
        """Resume the flow run of an earlier try, or start one.

        :raises FlowInputError: a new run would be invalid; the message lists every problem.
        :raises FlowTimeout: the deadline has passed, and no run was started.
        """
        run = self._resume(try_request.fingerprint)
        if run is not None:
            return run
        self._raise_if_invalid(try_request.request, try_request.input_problems)
        return self._start(try_request.request, try_request.fingerprint, try_request.deadline)

    def _raise_if_invalid(self, request: RunRequest, problems: Problems) -> None:
        """Raise the problems found so far, with those of a check against the flow's definition."""
        if problems:
            self.hook.preflight.check(request, problems, validate=self.validate).raise_if_invalid()

    def _resume(self, fingerprint: str) -> FlowRun | None:
        is_same_request, earlier_run_id = self.state.matches(fingerprint), self.state.flow_run_id
        cancelled_run_ids: list[str] = []
        run = self.hook.resume(
            fingerprint,
            self.state.record,
            self.state.generation,
            abort=self.abort_on_kill,
            on_cancel=cancelled_run_ids.append,
        )
        if run is not None:
            self.log.info("Resuming the %s of an earlier try; its state is %r", run, run.raw_state)
        elif earlier_run_id is not None and not is_same_request:
            self.log.info(
                "The task was cleared or its arguments changed, so this try does not resume flow run %s. "
                "It starts a new one. The old flow run was %s",
                earlier_run_id,
                "cancelled" if cancelled_run_ids else "not cancelled",
            )
        return run

    def _start(self, request: RunRequest, fingerprint: str, deadline: float | None) -> FlowRun:
        if deadline is not None and time.time() >= deadline:
            message = (
                f"Flow {request.flow} was not started, because its timeout had already passed. No flow run "
                "was created. Clear the task to start over; if runs of this flow take this long, increase "
                "timeout."
            )
            raise FlowTimeout(message)
        if self.state.may_have_started(fingerprint) and not self.hook.service.staged_start:
            self.log.warning(
                "An earlier try sent flow %s to %s and got no response: "
                "the flow may have run before, and this try runs it again",
                request.flow,
                self.hook.service.name,
            )

        def save(record: RunRecord | None) -> None:
            self.state.save(record)
            if self.is_killed:
                message = f"The task was killed during the start of flow {request.flow}."
                raise FlowError(message)

        record = self.state.create_record(fingerprint, deadline, self.hook.flows_conn_id)
        is_durable = self.state.durable
        run = self.hook.start_from_request(
            request, record=record if is_durable else None, save=save, validate=self.validate
        )
        if not is_durable:
            save(replace(record, flow_run_id=run.flow_run_id))
        self.log.info("Started the %s", run)
        if run.is_final:
            self.log.info("The %s ended in state %r", run, run.raw_state)
        return run

    def on_execution_timeout(self, fingerprint: str) -> FlowRun | None:
        """Leave the run to the next try when `execution_timeout` has passed, or handle it as a deadline.

        :returns: the run, if it completed; None if Airflow's own error is to be raised, because a retry is
            left, or because no run was started yet.
        :raises FlowTimeout: no retry is left, and the run did not complete.
        """
        flow_run_id = self.state.flow_run_id if self.state.matches(fingerprint) else None
        if flow_run_id is None or not self.hook.service.supports("get_run"):
            return None
        if self.state.will_be_resumed(time.time()):
            self.log.warning("The execution_timeout passed; the next try resumes flow run %s", flow_run_id)
            return None
        return self.on_deadline(flow_run_id, FlowTimeout("The execution_timeout of the task passed."))

    def on_deadline(self, flow_run_id: str, error: FlowTimeout) -> FlowRun:
        """Return the run if it completed although the deadline has passed.

        :raises FlowTimeout: it did not complete. It is aborted, unless the next try resumes it or
            `abort_on_kill` is false.
        """
        policy = DeadlinePolicy.ABORT if self.abort_on_kill else DeadlinePolicy.LEAVE
        if self.state.will_be_resumed(time.time()):
            policy = DeadlinePolicy.HAND_OVER
        run = finish_after_deadline(self.hook, flow_run_id, error, policy)
        self.log.info("The deadline passed, but the %s had completed", run)
        return run

    @contextmanager
    def abort_on_error(self) -> Iterator[None]:
        """Abort the flow run if an error ends the block, and no retry resumes the run."""
        try:
            yield
        except FlowTimeout:  # the run is settled, and the error says how
            raise
        except (Exception, AirflowTaskTimeout) as error:
            self.abort_if_abandoned(error)
            raise

    def abort_if_abandoned(self, error: BaseException) -> None:
        """Abort the flow run, also one of an earlier try, if no retry resumes it after this error."""
        flow_run_id = self.flow_run_id
        can_get_run = self.hook.service.supports("get_run")
        if flow_run_id is None or not self.abort_on_kill or not can_get_run or self._will_retry(error):
            return
        try:
            self.hook.cancel(flow_run_id)
        except FlowError as abort_error:
            self.log.warning(
                "Flow run %s could not be aborted. Check it at the service: %s", flow_run_id, abort_error
            )

    def _will_retry(self, error: BaseException) -> bool:
        """Return whether a retry resumes the run after this error, as the task's retry policy decides."""
        if isinstance(error, (AirflowSkipException, AirflowFailException)):
            return False
        if not self.state.will_be_resumed(time.time()):
            return False
        policy = getattr(self.context.get("task"), "retry_policy", None)
        if policy is None:
            return True
        ti: Any = self.context["ti"]
        try:
            decision = policy.evaluate(error, ti.try_number, self.state.generation, self.context)
        except Exception:  # noqa: BLE001  # Airflow then retries as without a policy
            return True
        return str(decision.action.value) != "fail"

    def on_kill(self) -> None:
        """Abort the flow run only if Airflow has ended the task. Never raises.

        If that is uncertain, leave the run for the next try.
        """
        # A thread, because Airflow calls this in a signal handler, which may have interrupted a request to
        # the supervisor.
        thread = Thread(target=self._cancel_if_finished, daemon=True)
        thread.start()
        thread.join(ON_KILL_SECONDS)

    def _cancel_if_finished(self) -> None:
        try:
            if not is_task_finished(self.context["ti"]):
                self._log_not_finished()
                return
            self.is_killed = True  # before the id is read: a start that saves an id checks this afterwards
            self.cancellation.cancel()
            if (flow_run_id := self.flow_run_id) is not None and self.hook.service.supports("get_run"):
                self.create_hook().cancel(flow_run_id)  # not `hook`, which the main thread may be using
                self.log.info(CANCELLED_BY_KILL, flow_run_id)
        except Exception:  # nothing may escape from a kill
            if self.flow_run_id is None:
                self.log.exception(
                    "The task was killed, and whether it started a flow run is unknown. Check at the service"
                )
            else:
                self.log.exception(
                    "Flow run %s could not be aborted. Check it at the service", self.flow_run_id
                )

    def _log_not_finished(self) -> None:
        if self.flow_run_id is None:
            self.log.info("The task is not finished in Airflow; no flow run has been started yet")
        else:
            self.log.info("The task is not finished in Airflow; flow run %s continues", self.flow_run_id)

"""FlowRunSensor, which waits for a flow run that was started elsewhere. It starts and aborts nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from os import PathLike
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
    BaseOperatorLink,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowError,
    FlowInputError,
    FlowRunFailed,
    FlowTimeout,
)
from airflow_provider_flows.core.polling.schedule import Schedule, to_positive_seconds
from airflow_provider_flows.core.template_problems import RUN_KEYS, require_booleans
from airflow_provider_flows.links import FlowOutputsLink, FlowRunLink
from airflow_provider_flows.storage.output_options import MAX_XCOM_BYTES, OutputOptions
from airflow_provider_flows.worker.run_tracking import RunTrackingMixin
from airflow_provider_flows.worker.template_check import TemplateCheckMixin, suggest_arguments

if TYPE_CHECKING:
    from airflow.sdk import Context, ObjectStoragePath, RetryPolicy

    from airflow_provider_flows.core.flow_run import FlowRun
    from airflow_provider_flows.core.http import Conversation
    from airflow_provider_flows.core.polling.wait import Wait
    from airflow_provider_flows.hooks import FlowsHook

DEFAULT_DEFERRABLE = conf.getboolean("operators", "default_deferrable", fallback=False)
MIN_RESCHEDULE_SECONDS = 15.0  # Airflow may fail a task that comes back from a reschedule sooner than this
# poll_interval and max_poll_interval; in reschedule mode each poll is a worker process
RESCHEDULE_INTERVALS_SECONDS = (60.0, 300.0)
DEFAULT_INTERVALS_SECONDS = (5.0, 60.0)
RUN_ID_HINT = "Check that the upstream task pushed it"
WAIT_STATE_KEY = "flow_wait_state"
NO_STATE_STORE = (
    "The task state store requires Airflow 3.3 or later. On this version each poll of this sensor starts "
    "without the state of the previous one, so it may repeat log lines and cannot forecast the end of the "
    "flow run"
)


class FlowSensorTimeout(FlowTimeout, AirflowSensorTimeout):
    """The sensor's `timeout` has passed. Airflow does not retry a task after an AirflowSensorTimeout."""


class FlowExecutionTimeout(FlowTimeout, AirflowTaskTimeout):
    """The `execution_timeout` of a deferred sensor has passed. Airflow retries it as in the other modes."""

    def __init__(self, message: str) -> None:
        super().__init__(message, is_permanent=False)


class FlowRunSensor(RunTrackingMixin, TemplateCheckMixin, BaseSensorOperator):
    """Wait until a flow run is final; return the same dict as `RunFlowOperator`.

    :param flow_run_id: the flow run to wait for. (templated)
    :param flows_conn_id: the Airflow connection; its type selects the service. (templated)
    :param poll_interval: shortest time between two polls, in seconds or as a timedelta. Defaults to Airflow's
        `poke_interval` if that is given, else to 60 s in reschedule mode and 5 s otherwise.
    :param max_poll_interval: longest time between two polls, in seconds or as a timedelta; raised to
        `poll_interval` if it is smaller. Defaults to 300 s in reschedule mode, 60 s otherwise.
    :param mode: `reschedule` (no worker slot between polls), or `poke`.
    :param deferrable: whether to wait in the triggerer; `mode` is ignored then. Defaults to Airflow's setting
        `[operators] default_deferrable`, which `silent_fail` overrides.
    :param output_path: where files are written, as in `RunFlowOperator`. (templated)
    :param output_conn_id: the Airflow connection of that storage. (templated)
    :param output_name: how files are called, as in `RunFlowOperator`. (templated)
    :param max_xcom_bytes: the size of what the task returns, in bytes of JSON, as in `RunFlowOperator`.
    :param check_outputs: what the outputs must satisfy, as in `RunFlowOperator`; else the task fails.
    :param fetch_partial_outputs: whether to fetch the outputs of a failed or aborted run too; the error lists
        them.
    :param poke_interval: Airflow's name of `poll_interval`.
    :param exponential_backoff: not supported, because the interval grows up to `max_poll_interval` anyway.
    :param max_wait: not supported, for the same reason.
    :param silent_fail: whether a failed poll is only logged. Not with `deferrable`.
    :param retry_policy: which errors are retried, and when, as in `RunFlowOperator`.
    """

    template_fields: Sequence[str] = (
        "flow_run_id",
        "flows_conn_id",
        "output_path",
        "output_conn_id",
        "output_name",
    )
    ui_color = "#e4def5"
    xcom_keys = RUN_KEYS  # of the XComs beside what it returns, for `describe_missing_xcom`
    operator_extra_links: Collection[BaseOperatorLink] = (FlowRunLink(), FlowOutputsLink())

    def __init__(
        self,
        *,
        flow_run_id: str,
        flows_conn_id: str = "flows_default",
        poll_interval: float | timedelta | None = None,
        max_poll_interval: float | timedelta | None = None,
        mode: str = "reschedule",
        deferrable: bool = DEFAULT_DEFERRABLE,
        output_path: str | PathLike[str] | ObjectStoragePath | None = None,
        output_conn_id: str | None = None,
        output_name: str | None = None,
        max_xcom_bytes: int | None = MAX_XCOM_BYTES,
        check_outputs: Any = None,
        fetch_partial_outputs: bool = False,
        # Airflow's own, named here because Airflow applies `default_args` to named arguments only
        poke_interval: float | timedelta | None = None,
        exponential_backoff: bool = False,
        max_wait: float | timedelta | None = None,
        silent_fail: bool = False,
        retry_policy: RetryPolicy | None = None,
        **kwargs: Any,
    ) -> None:
        from airflow_provider_flows.retry_policy import to_retry_arguments  # importing sensors stays cheap

        deferrable = _choose_deferrable(deferrable=deferrable, silent_fail=silent_fail)
        _reject_unsupported("exponential_backoff", exponential_backoff, default=False)
        _reject_unsupported("max_wait", max_wait, default=None)
        default_intervals = (
            RESCHEDULE_INTERVALS_SECONDS
            if mode == "reschedule" and not deferrable
            else DEFAULT_INTERVALS_SECONDS
        )
        interval_name, interval = _choose_interval(
            poll_interval, poke_interval, kwargs.get("default_args") or {}
        )
        with suggest_arguments(type(self), kwargs):
            super().__init__(
                mode=mode,
                poke_interval=default_intervals[0]
                if interval is None
                else to_positive_seconds(interval_name, interval),
                exponential_backoff=exponential_backoff,
                max_wait=max_wait,
                silent_fail=silent_fail,
                **to_retry_arguments(retry_policy),
                **kwargs,
            )
        self.flow_run_id = flow_run_id
        self.flows_conn_id = flows_conn_id
        self.output_path: Any = output_path  # `OutputOptions` makes a path a text
        self.output_conn_id = output_conn_id
        self.output_name = output_name
        schedule = Schedule.of(
            self.poke_interval, default_intervals[1] if max_poll_interval is None else max_poll_interval
        )
        self.poll_interval, self.max_poll_interval = schedule.poll_interval, schedule.max_poll_interval
        self.deferrable = deferrable
        self.max_xcom_bytes, self.check_outputs = max_xcom_bytes, check_outputs
        self.fetch_partial_outputs = fetch_partial_outputs
        self.check_arguments()
        self._output_options()
        self._wait: Wait | None = None
        if self.reschedule and not deferrable and self.poll_interval < MIN_RESCHEDULE_SECONDS:
            self.log.warning(
                "The %s of task %s of DAG %s is %s s in reschedule mode. Airflow may fail a task that comes "
                "back so soon. Use at least %s s, or deferrable=True",
                interval_name,
                self.task_id,
                self.dag_id,
                self.poll_interval,
                MIN_RESCHEDULE_SECONDS,
            )

    def execute(self, context: Context) -> Any:
        """Wait in the selected mode, and return the result."""
        from airflow_provider_flows.retry_policy import log_if_unsupported  # importing sensors stays cheap

        if not context.get("task_reschedule_count"):
            log_if_unsupported(self)
        with self._translate_errors():
            self.get_template_problems().raise_if_any()
            self._validate_connection_and_output_options(context)
            if not self.deferrable:
                return super().execute(context)
            return self._poll_or_defer(context, self._deadline(context))

    def execute_complete(self, context: Context, event: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Continue after the deferral, with the final run or the error in the trigger's event."""
        from airflow_provider_flows.triggers import UNUSABLE_IN_TRIGGERER, run_from_event  # slow to import

        with self._translate_errors():
            hook = self._get_hook()
            on_run_update = self.get_run_tracker(context, hook, self.flow_run_id, after_deferral=True)
            run: FlowRun | None = None
            try:
                run = run_from_event(event)
            except (FlowAuthError, FlowInputError) as error:  # perhaps only in the triggerer
                self.log.warning(UNUSABLE_IN_TRIGGERER, self.flow_run_id, error.summary)
            if run is None:  # not inside of `except`: a traceback would repeat the error
                event = event or {}
                return self._poll_or_defer(context, event.get("deadline"), event.get("rejections", 1))
            return self._finish(context, hook, run, on_run_update)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Continue after the deferral. If no event arrived in time, poll once, and end as at the deadline."""
        from airflow_provider_flows.core.retry import NO_RETRY  # needed only when a task runs
        from airflow_provider_flows.triggers import NO_EVENT, is_deferral_timeout  # slow to import

        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowException:
            if not is_deferral_timeout(next_method, next_kwargs):
                raise
        with self._translate_errors():
            hook = self._get_hook()
            wait = self._create_wait(hook, None)
            on_run_update = self.get_run_tracker(context, hook, wait.flow_run_id, after_deferral=True)
            run = hook.run(wait.poll_once(), retry=NO_RETRY)
            if run is None or not run.is_final:
                raise FlowTimeout(NO_EVENT.format(flow_run_id=wait.flow_run_id))
            return self._finish(context, hook, run, on_run_update)

    def _deadline(self, context: Context) -> float:
        """Return the epoch seconds at which a deferred wait ends.

        Airflow does not enforce `execution_timeout` while a task is deferred, so the deadline does.
        """
        deadline = time.time() + self.timeout
        if self.execution_timeout is None:
            return deadline
        ti: Any = context["ti"]
        return min(deadline, float(ti.start_date.timestamp()) + self.execution_timeout.total_seconds())

    def _poll_or_defer(self, context: Context, deadline: float | None, rejections: int = 0) -> dict[str, Any]:
        """Poll once, and defer the task if the run is not final yet.

        :param rejections: how many triggers have ended because their connection was unusable.
        """
        hook = self._get_hook()
        wait = self._create_wait(hook, deadline)
        on_run_update = self.get_run_tracker(context, hook, wait.flow_run_id, after_deferral=rejections > 0)
        hook, run = self._run_poll(hook, wait, wait.select_poll(rejections))
        if run is not None and run.is_final:
            return self._finish(context, hook, run, on_run_update)
        from airflow_provider_flows.triggers import FlowRunTrigger, deferral_timeout  # slow to import

        self.defer(
            trigger=FlowRunTrigger.from_wait(self.flows_conn_id, wait, rejections=rejections),
            method_name=self.execute_complete.__name__,
            timeout=deferral_timeout(wait.schedule),
        )
        raise AssertionError  # not reached: defer() raises

    def poke(self, context: Context) -> PokeReturnValue:
        """Poll once."""
        hook = self._get_hook()
        wait = self._wait = self._wait or self._create_wait(hook, None)
        on_run_update = self.get_run_tracker(context, hook, wait.flow_run_id)
        with self._persist_wait(context, wait) as has_state:
            poll = wait.poll_once if has_state else wait.poll_confirming_errors
            hook, run = self._run_poll(hook, wait, poll)
        if run is not None:
            on_run_update(wait.run or run)
        if run is None or not run.is_final:
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=self._finish(context, hook, run, on_run_update))

    def _finish(
        self, context: Context, hook: FlowsHook, run: FlowRun, on_run_update: Callable[[FlowRun], None]
    ) -> dict[str, Any]:
        from airflow_provider_flows.worker.finish import finish  # needed only when a task runs

        return finish(context, hook, run, self._output_options(), on_run_update=on_run_update)

    def _run_poll(
        self, hook: FlowsHook, wait: Wait, poll: Callable[[], Conversation[FlowRun | None]]
    ) -> tuple[FlowsHook, FlowRun | None]:
        """Poll, and again with the connection's new credentials if the old ones were rejected.

        :returns: the hook that has the valid credentials, and the run, if it is known.
        """
        # needed only when a task runs
        from airflow_provider_flows.core.retry import NO_RETRY
        from airflow_provider_flows.worker.task_try import CREDENTIALS_CHANGED

        while True:
            try:
                return hook, hook.run(poll(), retry=NO_RETRY)
            except FlowAuthError:
                latest = self._get_hook()
                if latest.settings == hook.settings:
                    raise
            self.log.info(CREDENTIALS_CHANGED, self.flows_conn_id)
            hook = latest
            wait.reset_permanent_errors()

    def _get_next_poke_interval(
        self,
        started_at: datetime | float,  # noqa: ARG002  # the signature is Airflow's
        run_duration: Callable[[], float],
        poke_count: int,  # noqa: ARG002  # the signature is Airflow's
    ) -> float:
        """Return the seconds until the next poll, in both modes.

        This overrides a private method of Airflow, because there is no public way to choose the date of a
        reschedule. tests/test_sensors.py fails if it changes.
        """
        remaining = max(0.0, self.timeout - run_duration())
        return min(self.poll_interval if self._wait is None else self._wait.next_delay(), remaining)

    def _get_hook(self) -> FlowsHook:
        from airflow_provider_flows.hooks import FlowsHook

        hook = FlowsHook.get_hook(self.flows_conn_id)
        hook.max_transfer_seconds = self.timeout
        return hook

    def _create_wait(self, hook: FlowsHook, deadline: float | None) -> Wait:
        from airflow_provider_flows.core.flow_run import parse_run_id  # importing sensors stays cheap

        schedule = Schedule(self.poll_interval, self.max_poll_interval, deadline)
        return hook.create_wait(parse_run_id(self.flow_run_id, RUN_ID_HINT), schedule, self.log.log)

    @contextmanager
    def _persist_wait(self, context: Context, wait: Wait) -> Iterator[bool]:
        """Restore the wait before a poll and save it after: in reschedule mode each poll is another process.

        Yield whether the state is known. The store outlives retries and the clearing of the task; state of
        another try is ignored, because each try has a log of its own.
        """
        store: Any = context.get("task_state_store") if self.reschedule else None
        if store is None:
            if self.reschedule and not context.get("task_reschedule_count"):
                self.log.info(NO_STATE_STORE)
            yield not self.reschedule
            return
        try_number = context["ti"].try_number
        saved_state = store.get(WAIT_STATE_KEY) or {}
        if saved_state.get("try_number") == try_number:
            wait.restore(saved_state)
        yield True
        new_state = {**wait.to_dict(), "try_number": try_number}
        if new_state != saved_state:
            store.set(WAIT_STATE_KEY, new_state)

    def _validate_connection_and_output_options(self, context: Context) -> None:
        """Check before the first poll of a try whether the connection is valid and files can be written.

        An error of a poll would only be logged, again and again, with `silent_fail`.

        :raises FlowInputError: an argument or the connection is invalid.
        """
        store: Any = context.get("task_state_store") if self.reschedule and not self.deferrable else None
        saved_state = None if self.output_path is None or store is None else store.get(WAIT_STATE_KEY)
        if not saved_state or saved_state.get("try_number") != context["ti"].try_number:
            hook = self._get_hook()
            self._output_options().validate(hook.service)
            _ = hook.settings  # raises if host, key or CA bundle are invalid

    def _output_options(self) -> OutputOptions:
        return OutputOptions(
            self.output_path,
            self.output_conn_id,
            self.max_xcom_bytes,
            self.fetch_partial_outputs,
            output_name=self.output_name,
            check_outputs=self.check_outputs,
        )

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Apply Airflow's `timeout`, `soft_fail` and `never_fail` in all modes."""
        try:
            yield
        except (AirflowSensorTimeout, FlowTimeout) as error:
            limit = self.execution_timeout
            if self.deferrable and limit is not None and limit.total_seconds() < self.timeout:
                message = (
                    f"The execution_timeout of {limit.total_seconds()} s passed before flow run "
                    f"{self.flow_run_id} was final. If runs of this flow take this long, increase it."
                )
                raise FlowExecutionTimeout(message) from None
            if self.soft_fail or self.never_fail:
                message = f"Skipping, because the timeout has passed: {error}"
                raise AirflowSkipException(message) from error
            message = str(error)
            if not isinstance(error, FlowTimeout):  # Airflow's own error does not name the flow run
                state = None if self._wait is None else self._wait.poll_state
                advice = "If runs of this flow take this long, increase timeout."
                if state is not None and state.last_error is not None and not state.was_found:
                    advice = f"No poll succeeded; the last one failed: {state.last_error}"
                message = (
                    f"Flow run {self.flow_run_id} was not final within the task's timeout of "
                    f"{self.timeout} s. {advice}"
                )
            raise FlowSensorTimeout(message) from None  # the other traceback says nothing more
        except FlowRunFailed as error:
            if self.soft_fail or self.never_fail:
                message = f"Skipping, because the flow run did not complete: {error}"
                raise AirflowSkipException(message) from error
            raise
        except FlowError as error:
            if self.never_fail:
                message = f"Skipping, because never_fail is set: {error}"
                raise AirflowSkipException(message) from error
            raise


def _choose_deferrable(*, deferrable: bool, silent_fail: bool) -> bool:
    """Return whether to wait in the triggerer; a sensor with `silent_fail` cannot.

    :raises FlowInputError: both were requested, or one is no Boolean. If `deferrable` is only Airflow's
        default, it gives way.
    """
    require_booleans({"deferrable": deferrable, "silent_fail": silent_fail})
    if not (deferrable and silent_fail):
        return deferrable
    if DEFAULT_DEFERRABLE:
        return False
    message = (
        "silent_fail cannot be combined with deferrable=True: failed polls are retried until the "
        "deadline anyway. Remove one of the two"
    )
    raise FlowInputError(message)


def _choose_interval(
    poll_interval: Any, poke_interval: Any, default_args: Mapping[str, Any]
) -> tuple[str, Any]:
    """Return the interval by either of its names, and that name: the task's own precedes `default_args`.

    :raises FlowInputError: the task has both, and they differ.
    """
    is_own = poke_interval is not None and poke_interval != default_args.get("poke_interval")
    is_own_poll = poll_interval is not None and poll_interval != default_args.get("poll_interval")
    if is_own and is_own_poll and poll_interval != poke_interval:
        message = (
            f"poll_interval ({poll_interval!r}) and poke_interval ({poke_interval!r}) are two names of the "
            "same time between two polls. Remove one of them"
        )
        raise FlowInputError(message)
    if is_own or (poll_interval is None and poke_interval is not None):
        return ("poke_interval", poke_interval) if not is_own_poll else ("poll_interval", poll_interval)
    return "poll_interval", poll_interval


def _reject_unsupported(name: str, value: Any, *, default: Any) -> None:
    """Reject one of Airflow's sensor arguments that this sensor would have to ignore."""
    if not value:
        return
    message = (
        f"{name} is not supported: the interval grows up to max_poll_interval; set that instead. If "
        f"default_args have {name} for other sensors, set {name}={default} for this one"
    )
    raise FlowInputError(message)

"""The sensor: waits for a flow run that somebody else started, in reschedule mode unless told otherwise.

It starts and aborts nothing; when it looks is flow/schedule.py's answer, what it tells is flow/waiting.py's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from airflow_provider_flows.core.exceptions import FlowError, FlowInputError, FlowRunFailed, FlowTimeout
from airflow_provider_flows.core.polling.schedule import Schedule, to_seconds
from airflow_provider_flows.storage.output_options import MAX_XCOM_BYTES, OutputOptions
from airflow_provider_flows.worker.finish import finish
from airflow_provider_flows.worker.run_tracking import RunTrackingMixin

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_flows.core.polling.wait import Wait
    from airflow_provider_flows.hooks import FlowsHook

MIN_RESCHEDULE_SECONDS = 15.0  # Airflow may fail a task that comes back from a reschedule sooner than this
RESCHEDULE_INTERVALS = (60.0, 300.0)  # each look is a worker process
DEFAULT_INTERVALS = (5.0, 60.0)
WAIT_STATE_KEY = "flow_wait_state"
NO_STATE_STORE = (
    "This Airflow has no task state store (3.3 and later have one): each look of this sensor begins anew, so it may tell again "
    "what the look before has told, and does not foresee when the flow run ends"
)


class FlowSensorTimeout(FlowTimeout, AirflowSensorTimeout):
    """The sensor's `timeout` passed: a FlowTimeout for you, and for Airflow an AirflowSensorTimeout, which is not retried."""


class FlowRunSensor(RunTrackingMixin, BaseSensorOperator):
    """Wait until a flow run is final; returns the same dict as `RunFlowOperator`.

    :param flow_run_id: the flow run to wait for. (templated)
    :param flows_conn_id: the Airflow connection; its type picks the service. (templated)
    :param poll_interval: seconds or timedelta; the most often that it looks. Airflow's `poke_interval` is taken for it if that is
        given instead; else 60 s in reschedule mode and 5 s otherwise.
    :param max_poll_interval: seconds or timedelta; the least often that it looks, never less than `poll_interval`; 300 s in
        reschedule mode, 60 s otherwise.
    :param mode: `reschedule` (no worker slot between looks), or `poke`.
    :param deferrable: wait in the triggerer instead; `mode` then has no meaning.
    :param output_path: where files are written, as with `RunFlowOperator`. (templated)
    :param output_conn_id: the Airflow connection of that storage. (templated)
    :param max_xcom_bytes: the largest text output that is returned whole, as with `RunFlowOperator`.
    :param fetch_partial_outputs: whether the outputs of a run that failed or was aborted are fetched too; the error lists them.
    """

    template_fields: Sequence[str] = ("flow_run_id", "flows_conn_id", "output_path", "output_conn_id")
    ui_color = "#e4def5"

    def __init__(
        self,
        *,
        flow_run_id: str,
        flows_conn_id: str = "flows_default",
        poll_interval: float | timedelta | None = None,
        max_poll_interval: float | timedelta | None = None,
        mode: str = "reschedule",
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        output_path: str | None = None,
        output_conn_id: str | None = None,
        max_xcom_bytes: int | None = MAX_XCOM_BYTES,
        fetch_partial_outputs: bool = False,
        **kwargs: Any,
    ) -> None:
        _reject_unsupported_arguments(kwargs, deferrable=deferrable)
        default_intervals = (
            RESCHEDULE_INTERVALS if mode == "reschedule" and not deferrable else DEFAULT_INTERVALS
        )
        shortest = to_seconds(
            "poll_interval", kwargs.get("poke_interval") if poll_interval is None else poll_interval
        )
        kwargs["poke_interval"] = default_intervals[0] if shortest is None else shortest
        super().__init__(mode=mode, **kwargs)
        self.flow_run_id = flow_run_id
        self.flows_conn_id = flows_conn_id
        schedule = Schedule.of(
            self.poke_interval, default_intervals[1] if max_poll_interval is None else max_poll_interval
        )
        self.poll_interval, self.max_poll_interval = schedule.poll_interval, schedule.max_poll_interval
        self.deferrable = deferrable
        self.output_path = output_path
        self.output_conn_id = output_conn_id
        self.max_xcom_bytes = max_xcom_bytes
        self.fetch_partial_outputs = fetch_partial_outputs
        self._output_options()
        self._wait: Wait | None = None
        if self.reschedule and not deferrable and self.poll_interval < MIN_RESCHEDULE_SECONDS:
            self.log.warning(
                "poll_interval of %s is %s s in reschedule mode. Airflow may fail a task that comes back so soon; take at "
                "least %s s, or deferrable=True",
                self.task_id,
                self.poll_interval,
                MIN_RESCHEDULE_SECONDS,
            )

    def execute(self, context: Context) -> Any:
        """Wait in the mode that was asked for."""
        from airflow_provider_flows.core.retry import NO_RETRY  # needed when a task runs only

        with self._translate_errors():
            self._validate_output_options(context)
            if not self.deferrable:
                return super().execute(context)
            hook = self._get_hook()
            wait = self._create_wait(hook, time.time() + self.timeout)
            on_run_update = self.get_run_tracker(context, hook, wait.flow_run_id)
            run = hook.run(wait.poll(), retry=NO_RETRY)
            if run is not None and run.is_final:
                return finish(context, hook, run, self._output_options(), on_run_update=on_run_update)
        from airflow_provider_flows.triggers import FlowRunTrigger  # dear, and needed when a task runs only

        self.defer(
            trigger=FlowRunTrigger.from_wait(self.flows_conn_id, wait),
            method_name=self.execute_complete.__name__,
        )
        raise AssertionError  # not reached: defer() raises

    def execute_complete(self, context: Context, event: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Go on after the deferral: with the run that the trigger saw end, or with the error that ended the wait."""
        from airflow_provider_flows.triggers import run_from_event  # dear, and needed when a task runs only

        with self._translate_errors():
            hook = self._get_hook()
            on_run_update = self.get_run_tracker(context, hook, self.flow_run_id)
            return finish(
                context, hook, run_from_event(event), self._output_options(), on_run_update=on_run_update
            )

    def poke(self, context: Context) -> PokeReturnValue:
        """Look once."""
        from airflow_provider_flows.core.retry import NO_RETRY  # needed when a task runs only

        hook = self._get_hook()
        if self._wait is None:
            self._wait = self._create_wait(hook, None)
        on_run_update = self.get_run_tracker(context, hook, self._wait.flow_run_id)
        with self._persist_wait(context, self._wait) as has_state:
            run = hook.run(
                self._wait.poll() if has_state else self._wait.poll_until_confirmed(), retry=NO_RETRY
            )
        if run is not None:
            on_run_update(run)
        if run is None or not run.is_final:
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(
            is_done=True,
            xcom_value=finish(context, hook, run, self._output_options(), on_run_update=on_run_update),
        )

    def _get_next_poke_interval(
        self,
        started_at: datetime | float,  # noqa: ARG002  # the signature is Airflow's
        run_duration: Callable[[], float],
        poke_count: int,  # noqa: ARG002
    ) -> float:
        """Give the seconds until the next look, in both modes.

        The one private name of Airflow's that is overridden, for there is no public way to choose the date of a reschedule;
        tests/test_sensors.py notices when it changes.
        """
        remaining = max(0.0, self.timeout - run_duration())
        return min(self.poll_interval if self._wait is None else self._wait.next_delay(), remaining)

    def _get_hook(self) -> FlowsHook:
        from airflow_provider_flows.hooks import FlowsHook

        return FlowsHook.get_hook(self.flows_conn_id)

    def _create_wait(self, hook: FlowsHook, deadline: float | None) -> Wait:
        if not isinstance(self.flow_run_id, str) or not self.flow_run_id.strip():
            message = f"flow_run_id must be the id of a flow run, not {self.flow_run_id!r}; did the task before push it?"
            raise FlowInputError(message)
        schedule = Schedule(self.poll_interval, self.max_poll_interval, deadline)
        return hook.create_wait(self.flow_run_id.strip(), schedule, self.log.log)

    @contextmanager
    def _persist_wait(self, context: Context, wait: Wait) -> Iterator[bool]:
        """Let the wait go on where the look before it left it, for in reschedule mode each look is a process of its own.

        The memory is that of one try: it outlives retries and Clears, whose logs begin anew. False where Airflow keeps none.
        """
        store: Any = context.get("task_state_store") if self.reschedule else None
        if store is None:
            if self.reschedule and not context.get("task_reschedule_count"):
                self.log.info(NO_STATE_STORE)
            yield not self.reschedule
            return
        try_number = context["ti"].try_number
        before = store.get(WAIT_STATE_KEY) or {}
        if before.get("try_number") == try_number:
            wait.restore(before)
        yield True
        after = {**wait.to_dict(), "try_number": try_number}
        if after != before:
            store.set(WAIT_STATE_KEY, after)

    def _validate_output_options(self, context: Context) -> None:
        """Find out before the first wait whether files can be written; a look that goes on with the same try asks nobody."""
        store: Any = context.get("task_state_store") if self.reschedule and not self.deferrable else None
        before = None if self.output_path is None or store is None else store.get(WAIT_STATE_KEY)
        if not before or before.get("try_number") != context["ti"].try_number:
            self._output_options().validate(self._get_hook().service)

    def _output_options(self) -> OutputOptions:
        return OutputOptions(
            self.output_path, self.output_conn_id, self.max_xcom_bytes, self.fetch_partial_outputs
        )

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Give the sensor's own arguments their meaning in all modes: `timeout`, `soft_fail`, `never_fail`."""
        try:
            yield
        except (AirflowSensorTimeout, FlowTimeout) as error:
            if self.soft_fail or self.never_fail:
                message = f"Skipping, for the time is over: {error}"
                raise AirflowSkipException(message) from error
            message = f"The flow run {self.flow_run_id} was not final within the sensor's timeout of {self.timeout} s. {error}"
            raise FlowSensorTimeout(message) from error
        except FlowRunFailed as error:
            if self.soft_fail or self.never_fail:
                message = f"Skipping, for the flow run did not complete: {error}"
                raise AirflowSkipException(message) from error
            raise
        except FlowError as error:
            if self.never_fail:
                message = f"Skipping, for never_fail is set: {error}"
                raise AirflowSkipException(message) from error
            raise


def _reject_unsupported_arguments(arguments: Mapping[str, Any], *, deferrable: bool) -> None:
    """Refuse those of Airflow's sensor arguments that this sensor could not keep, rather than ignore them."""
    for name in ("exponential_backoff", "max_wait"):
        if arguments.get(name):
            message = f"{name} has no meaning here: the sensor looks more rarely by itself, up to max_poll_interval; set that"
            raise FlowInputError(message)
    if deferrable and arguments.get("silent_fail"):
        message = "silent_fail has no meaning with deferrable=True: looks that fail are waited out anyway. Leave one of them away"
        raise FlowInputError(message)

"""What is to be seen of a flow run: put together from what its task has left in Airflow and what its service tells now.

Who may see it is decided before (inside.py), how it looks later (pages.py); the service is asked through answers.py only.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from airflow.providers.common.compat.sdk import AirflowNotFoundException

from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowError,
    FlowInputError,
    FlowNotFound,
    FlowServiceError,
)
from airflow_provider_flows.core.polling.schedule import expected_end
from airflow_provider_flows.core.retry import NO_RETRY
from airflow_provider_flows.core.run import PENDING, FlowOutput, FlowRun
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.plugin.airflow_internals import TaskInstanceData
from airflow_provider_flows.plugin.cache import ResponseCache
from airflow_provider_flows.plugin.schemas import (
    PreviousRunSchema,
    RunPage,
    parse_outputs,
    to_input_schemas,
    to_output_schemas,
    to_parameters,
    to_run_schema,
    to_safe_line,
)
from airflow_provider_flows.storage.output_options import OutputOptions
from airflow_provider_flows.worker.task_state import MAX_PREVIOUS_RUNS

PAGE_POLL_SECONDS = 2.5  # between two looks at a run that is not final, however many look
FINAL_TTL_SECONDS = 60.0  # for which what is final is kept
PAGE_TIMEOUT_SECONDS = 8.0  # that a service may take: somebody sits before the page

INVALID_KEY_NOTE = "The service refuses the key of this connection. Put the right one into its password field (Admin, Connections)."
UNREACHABLE_NOTE = (
    "The service cannot be reached, or does not answer as it should; this is what was known before."
)
NO_RESPONSE_NOTE = "The service could not be asked."
HIDDEN_ERROR_NOTE = "The page Flow runs tells more to who may read the connection."
RUN_NOT_FOUND_NOTE = "The service does not know this flow run any more: it may have been deleted there."
NO_RUN_YET_NOTE = "No flow run yet: the task has not come so far."
TASK_WITHOUT_RUN_NOTE = "This task has no flow run. Tasks of RunFlowOperator, FlowRunSensor and @task.flow have one, once they have started it."
START_IN_PROGRESS_NOTE = (
    "The task is at work; its flow run shows as soon as the service has answered its start."
)
UNKNOWN_CONNECTION_NOTE = (
    "Which connection this flow run belongs to is not known any more, so its service cannot be asked."
)
TASK_WAITING_STATES = frozenset(
    {None, "none", "scheduled", "queued", "restarting", "up_for_retry", "up_for_reschedule"}
)
TASK_ACTIVE_STATES = frozenset({"running", "deferred", "up_for_reschedule"})

RESPONSE_CACHE = ResponseCache()


@dataclass(frozen=True)
class RunView:
    """One run as far as it is known; `error` tells why its service could not be asked.

    :param output_options: where its task put its files; None where no task is known.
    :param task_state: Airflow's word for it, empty where no task is known.
    :param try_number: the task's last try, which had this run; 0 where no task is known.
    :param show_host: whether whoever looks may read the connection, so that errors may name its host.
    :param previous_runs: ids of the runs that tries before had, each with the number of the last of them.
    """

    flow_run_id: str | None = None
    flows_conn_id: str | None = None
    run: FlowRun | None = None
    outputs: tuple[FlowOutput, ...] = ()
    inputs: Any = None
    parameters: Any = None
    output_options: OutputOptions | None = None
    task_state: str | None = ""
    error: FlowError | None = None
    try_number: int = 0
    previous_runs: tuple[tuple[str, int], ...] = ()
    show_host: bool = False

    @property
    def is_at_service(self) -> bool:
        """Whether the service has what this run made, for all that is known."""
        return (
            self.flows_conn_id is not None
            and not isinstance(self.error, FlowNotFound)
            and bool(self.run and self.run.is_final)
        )

    @property
    def _is_active(self) -> bool:
        """Whether the run is under way, or its outputs are, and its service can tell more of it."""
        is_known_at_service = self.flows_conn_id is not None and not isinstance(self.error, FlowNotFound)
        return (
            is_known_at_service
            and self.run is not None
            and (not self.run.is_final or _has_pending_outputs(self.outputs))
        )

    def to_error_text(self, error: FlowError) -> str:
        """Word an error for whoever looks; only errors of the service name where it is."""
        return (
            to_safe_line(str(error))
            if self.show_host or isinstance(error, FlowInputError)
            else HIDDEN_ERROR_NOTE
        )

    def to_page(self) -> RunPage:
        """Put it into its shape."""
        note, is_error = self._get_note()
        # a task that is at work although its run is final brings the files home; one that is tried again may have another run
        is_transient = isinstance(self.error, FlowServiceError) and self.error.is_transient
        can_change = (
            self.task_state in TASK_WAITING_STATES | TASK_ACTIVE_STATES or is_transient or self._is_active
        )
        version_parts = (
            note,
            self.task_state,
            self.run and (self.run.raw_state, self.run.started_at),
            self.outputs,
        )
        return RunPage(
            version=sha256(repr(version_parts).encode()).hexdigest()[:16],
            run=None if self.run is None else to_run_schema(self.run, time.time()),
            inputs=to_input_schemas(self.inputs),
            parameters=to_parameters(self.parameters or (self.run.parameters if self.run else None)),
            outputs=to_output_schemas(self.outputs, is_at_service=self.is_at_service),
            note=note,
            is_error=is_error,
            task_state=self.task_state,
            try_number=self.try_number,
            previous_runs=[
                PreviousRunSchema(flow_run_id=run, last_try=last) for run, last in self.previous_runs
            ],
            refresh_after=PAGE_POLL_SECONDS if can_change else None,
        )

    def _get_note(self) -> tuple[str | None, bool]:
        if isinstance(self.error, FlowNotFound):
            return RUN_NOT_FOUND_NOTE, True
        if isinstance(self.error, FlowAuthError):
            return INVALID_KEY_NOTE, True
        if self.error is not None:
            return (
                f"{UNREACHABLE_NOTE if self.run else NO_RESPONSE_NOTE} {self.to_error_text(self.error)}",
                True,
            )
        if self.run is None and self.flow_run_id is None:
            return (
                START_IN_PROGRESS_NOTE
                if self.task_state in TASK_ACTIVE_STATES
                else NO_RUN_YET_NOTE
                if self.task_state in TASK_WAITING_STATES
                else TASK_WITHOUT_RUN_NOTE
            ), False
        if self.run is None or (not self.run.is_final and self.flows_conn_id is None):
            return UNKNOWN_CONNECTION_NOTE, True
        return None, False


async def get_task_run_view(ti_data: TaskInstanceData) -> RunView:
    """Put together what is known of a task instance's run; its service is asked only for what the task has not returned."""
    returned_run = _parse_returned_run(ti_data.result)
    candidates = (
        returned_run and returned_run.flow_run_id,
        ti_data.flow_run_id,
        ti_data.fields.get("flow_run_id"),
    )
    flow_run_id = next((text for text in candidates if isinstance(text, str) and text.strip()), None)
    conn_id = _get_nonempty_str(ti_data.fields, "flows_conn_id")
    inputs, parameters = ti_data.fields.get("inputs"), ti_data.fields.get("parameters")
    view = RunView(
        flow_run_id,
        conn_id,
        None,
        (),
        inputs,
        parameters,
        _parse_output_options(ti_data.fields),
        ti_data.state,
    )
    view = replace(
        view,
        try_number=ti_data.try_number,
        previous_runs=tuple(one for one in _parse_previous_runs(ti_data) if one[0] != flow_run_id),
    )
    if flow_run_id is None:
        return view
    if returned_run is not None:
        outputs = parse_outputs(ti_data.result.get("outputs"))
        view = replace(view, run=returned_run, outputs=outputs)
        if returned_run.is_final and (outputs or not returned_run.is_completed):
            return view
    view = replace(view, outputs=view.outputs or parse_outputs(ti_data.outputs))
    return view if conn_id is None else await get_service_run_view(conn_id, flow_run_id, view)


async def get_previous_run_view(ti_data: TaskInstanceData, flow_run_id: str) -> RunView | None:
    """Put together what is known of a run that a try before the last one had, None if none is known to have had it."""
    if flow_run_id not in dict(_parse_previous_runs(ti_data)):
        return None
    conn_id = _get_nonempty_str(ti_data.fields, "flows_conn_id")
    return RunView(flow_run_id) if conn_id is None else await get_service_run_view(conn_id, flow_run_id)


def _parse_returned_run(result: Any) -> FlowRun | None:
    """Read the run that a task returned, None if it is something else: any task may return anything."""
    if not isinstance(result, Mapping) or not all(
        isinstance(result.get(name), str) for name in ("flow_run_id", "service")
    ):
        return None
    return FlowRun.from_event(result)


def _parse_previous_runs(ti_data: TaskInstanceData) -> list[tuple[str, int]]:
    """Read what is remembered of the tries before, newest first; whoever may write it may have written anything."""
    rows = (
        [row for row in ti_data.previous_runs if isinstance(row, Mapping)]
        if isinstance(ti_data.previous_runs, list)
        else []
    )
    pairs = [(row.get("flow_run_id"), row.get("last_try")) for row in reversed(rows[-MAX_PREVIOUS_RUNS:])]
    return [(run, last) for run, last in pairs if isinstance(run, str) and run.strip() and type(last) is int]


async def get_service_run_view(conn_id: str, flow_run_id: str, view: RunView | None = None) -> RunView:
    """Ask a run's service how it is and, once it is final, what it made.

    :param view: what is known of it from elsewhere.
    """
    view = view or RunView(flow_run_id, conn_id)
    run_response = await RESPONSE_CACHE.get(
        ("run", conn_id, flow_run_id), lambda: _load_run(conn_id, flow_run_id), _get_run_ttl
    )
    view = replace(view, run=run_response.value or view.run, error=run_response.error)
    if view.run is None or not view.run.is_final or view.error is not None or view.outputs:
        return view
    outputs_response = await RESPONSE_CACHE.get(
        ("outputs", conn_id, flow_run_id), lambda: _load_outputs(conn_id, flow_run_id), _get_outputs_ttl
    )
    return replace(view, outputs=outputs_response.value or (), error=outputs_response.error)


def get_flows_hook(conn_id: str) -> FlowsHook:
    """Give the hook of a connection.

    :raises FlowInputError: there is none of this id, or it runs no flows.
    """
    try:
        return FlowsHook.get_hook(conn_id)
    except AirflowNotFoundException as error:
        message = f"There is no connection {conn_id!r}"
        raise FlowInputError(message) from error


def _load_run(conn_id: str, flow_run_id: str) -> FlowRun:
    hook = get_flows_hook(conn_id)
    try:
        run = hook.run(hook.service.get_run(flow_run_id), retry=NO_RETRY, timeout=PAGE_TIMEOUT_SECONDS)
    finally:
        hook.close()
    run = replace(run, raw={})  # it may be large, and many are kept
    return run if run.is_final else replace(run, expected_at=expected_end(run, time.time()))


def _load_outputs(conn_id: str, flow_run_id: str) -> tuple[FlowOutput, ...]:
    hook = get_flows_hook(conn_id)
    if not hook.service.supports("list_outputs"):
        return ()
    try:
        return tuple(
            hook.run(hook.service.list_outputs(flow_run_id), retry=NO_RETRY, timeout=PAGE_TIMEOUT_SECONDS)
        )
    finally:
        hook.close()


def _get_run_ttl(run: FlowRun) -> float:
    return FINAL_TTL_SECONDS if run.is_final else PAGE_POLL_SECONDS


def _get_outputs_ttl(outputs: tuple[FlowOutput, ...]) -> float:
    return PAGE_POLL_SECONDS if _has_pending_outputs(outputs) else FINAL_TTL_SECONDS


def _has_pending_outputs(outputs: tuple[FlowOutput, ...]) -> bool:
    """Whether some of a final run's outputs are on their way still."""
    return any(output.status == PENDING for output in outputs)


def _parse_output_options(fields: Mapping[str, Any]) -> OutputOptions:
    try:
        return OutputOptions(
            _get_nonempty_str(fields, "output_path"), _get_nonempty_str(fields, "output_conn_id")
        )
    except FlowInputError:
        return OutputOptions()


def _get_nonempty_str(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    return value if isinstance(value, str) and value.strip() else None

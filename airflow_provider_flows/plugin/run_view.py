"""The view of one flow run: what its task instance stored in Airflow, and the service's current data.

Access is checked before. Requests to the service go through the response cache only.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from enum import Enum, auto
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from airflow.providers.common.compat.sdk import AirflowNotFoundException

from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowError,
    FlowInputError,
    FlowNotFound,
    FlowServiceError,
)
from airflow_provider_flows.core.flow_run import PENDING, FlowOutput, FlowRun, quote_errors
from airflow_provider_flows.core.polling.schedule import expected_end
from airflow_provider_flows.core.redaction import ErrorTexts
from airflow_provider_flows.core.retry import NO_RETRY
from airflow_provider_flows.core.start_or_resume import STAMP_KEY, get_stamp
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.plugin.airflow_internals import load_hook
from airflow_provider_flows.plugin.cache import (
    FINAL_TTL_SECONDS,
    RESPONSE_CACHE,
    PageWaitError,
    estimate_size,
)
from airflow_provider_flows.plugin.present import (
    MAX_OUTPUTS_PER_PAGE,
    PreviousRunSchema,
    RunPage,
    drop_large_parameters,
    to_output_schemas,
    to_run_schema,
    to_small_run,
)
from airflow_provider_flows.plugin.task_data import (
    TaskInstanceData,
    TaskKey,
    get_nonempty_str,
    get_recorded_run_ids,
    get_shown_inputs,
    is_run_id,
    list_earlier_runs,
    parse_output_options,
    parse_outputs,
    parse_returned_run,
)
from airflow_provider_flows.plugin.texts import (
    to_input_schemas,
    to_optional_safe_line,
    to_parameters,
    to_safe_line,
    to_title,
)
from airflow_provider_flows.storage.output_options import OutputOptions
from airflow_provider_flows.storage.outputs import list_outputs

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Conversation

T = TypeVar("T")

PAGE_POLL_SECONDS = 2.5  # between two polls of an active run, however many users view it
PAGE_TIMEOUT_SECONDS = 8.0  # for one question to a service, because a user waits for the page
MAX_STAMP_BYTES = 8 * 1024
MAX_CACHED_TEXT_LENGTH = 256 * 1024  # characters of a text output; a longer one is a file to download

INVALID_KEY_NOTE = (
    "The service rejected the API key of this connection. "
    "Enter a valid key in the connection's password field (Admin, Connections)."
)
STALE_RUN_NOTE = "The flow run could not be refreshed. This page shows its last known state."
FETCH_FAILED_NOTE = "The flow run could not be fetched from the service."
HIDDEN_ERROR_NOTE = "The Flow runs page shows the error to users who may read the connection."
RUN_NOT_FOUND_NOTE = "The flow run was not found at the service. It may have been deleted."
FOREIGN_RUN_NOTE = (
    "Neither Airflow nor the service has a record that this task started this flow run, "
    "so only its state is shown. The Flow runs page shows it to users who may read the connection."
)
INPUT_ERROR_NOTE = "The task failed before it started a flow run:"
NO_RUN_YET_NOTE = "The task has not started a flow run yet."
START_IN_PROGRESS_NOTE = (
    "The task is running. Its flow run appears here as soon as the service has confirmed the start."
)
TASK_WITHOUT_RUN_NOTE = (
    "This task instance has no flow run. "
    "Only RunFlowOperator, FlowRunSensor and @task.flow tasks have one, once they have started it."
)
UNKNOWN_CONNECTION_NOTE = (
    "The connection of this flow run is no longer known, so its current state cannot be fetched."
)
RETRY_STEP = "If Airflow retries this task, the retry starts a new flow run, which is paid again."
CLEAR_STEP = (
    "To try again, clear the task in Airflow. It then starts a new flow run, which is paid again. "
    "The task's log has the whole error."
)
RESTART_STEP = "This flow run does not continue. A new one has to be started, and is paid again."
TASK_WAITING_STATES = frozenset(
    {None, "none", "scheduled", "queued", "restarting", "up_for_retry", "up_for_reschedule"}
)
TASK_ACTIVE_STATES = frozenset({"running", "deferred", "up_for_reschedule"})


class Ownership(Enum):
    """Whether a flow run is the one of its task instance, by what no XCom can write."""

    CONFIRMED = auto()
    """Airflow or the service has recorded so, or the user may read the connection's runs anyway."""
    UNRECORDED = auto()
    """Airflow has no record of the task's flow runs. The service may have one: the run's stamp."""
    CONTRADICTED = auto()
    """Airflow has a record of other flow runs only. The service may still have one of this run."""
    FOREIGN = auto()
    """Nor has the service."""


class Note(NamedTuple):
    """A message on top of a page."""

    text: str
    is_error: bool = True


@dataclass(frozen=True)
class RunView:
    """One flow run, as far as it is known.

    :param run: the run, None if neither its task nor its service provided it.
    :param output_options: where the task stores files; None for a run without a task.
    :param task_state: the task instance's state in Airflow; empty for a run without a task.
    :param error: why the service could not be polled.
    :param try_number: the task instance's latest try, which had this run; 0 for a run without a task.
    :param previous_runs: ids of the runs of earlier tries, each with the number of the last try that had it.
    :param show_host: whether the user may read the connection, so that error messages may contain its host.
    :param task_key: the task instance, None for a run without a task.
    :param team_name: the team of the task's DAG or of the connection, for which the connection is looked up.
    :param input_error: why the task has started no run, if its arguments were invalid.
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
    task_key: TaskKey | None = None
    ownership: Ownership = Ownership.CONFIRMED
    team_name: str | None = None
    input_error: str | None = None

    def to_page(self, source_title: str = "") -> RunPage:
        """Convert the view to the schema of its page.

        :param source_title: the title of the run's first source, if nothing else was asked for in words.
        """
        note = self._get_note()
        texts = ErrorTexts(self.inputs)  # whether they are shown at all was decided when they were polled
        run, outputs = quote_errors(self.run, texts), quote_errors(list(self.outputs), texts)
        inputs = to_input_schemas(self.inputs)
        flow = None if run is None else to_optional_safe_line(run.flow)
        title = to_title(inputs) or source_title or flow or ""
        return RunPage(
            version=self._get_version(note),
            title=title,
            run=None if run is None else to_run_schema(run, time.time()),
            next_step=self._get_next_step(),
            is_storing=self._is_storing,
            inputs=inputs,
            parameters=to_parameters(self.parameters or (self.run.parameters if self.run else None)),
            outputs=to_output_schemas(outputs, is_at_service=self._has_outputs_at_service, title=title),
            note=note.text if note else None,
            is_error=note is not None and note.is_error,
            task_state=self.task_state,
            try_number=self.try_number,
            previous_runs=[
                PreviousRunSchema(flow_run_id=run, last_try=last) for run, last in self.previous_runs
            ],
            refresh_after=PAGE_POLL_SECONDS if self._can_change else None,
        )

    def to_error_text(self, error: FlowError) -> str:
        """Return an error's message for this user; a message of the service may contain its host."""
        if self.show_host or isinstance(error, FlowInputError | PageWaitError):
            return to_safe_line(ErrorTexts(self.inputs).hide_inputs(str(error)))
        return HIDDEN_ERROR_NOTE

    @property
    def _is_known_at_service(self) -> bool:
        return self.flows_conn_id is not None and not isinstance(self.error, FlowNotFound)

    @property
    def _has_outputs_at_service(self) -> bool:
        is_final = self.run is not None and self.run.is_final
        return self._is_known_at_service and is_final and self.ownership is not Ownership.FOREIGN

    def is_stamped_on(self, run: FlowRun) -> bool:
        """Return whether the stamp of a run, as its service returned it, is that of this task instance."""
        stamp = get_stamp(run)
        if self.task_key is None:
            return False
        expected = self.task_key.to_filters()
        if "region_id" in stamp:  # its map index is the one that Airflow shows: -1 in a loop
            del expected["map_index"]
            expected |= self.task_key.to_region() or {"region_id": None}
        return all(stamp.get(name) == value for name, value in expected.items())

    @property
    def _can_change(self) -> bool:
        # a running task with a final run is still storing its files; a waiting task may start another run
        if self.task_state in TASK_WAITING_STATES | TASK_ACTIVE_STATES:
            return True
        if isinstance(self.error, FlowServiceError) and self.error.is_transient:
            return True
        if self.run is None or not self._is_known_at_service:
            return False
        return not self.run.is_final or _has_pending_outputs(self.outputs)

    def _get_next_step(self) -> str | None:
        """Return what can be done about a run that did not complete, None for any other."""
        if self.run is None or not self.run.is_final or self.run.is_completed:
            return None
        if self.task_key is None:
            return RESTART_STEP
        return RETRY_STEP if self.task_state in TASK_WAITING_STATES | TASK_ACTIVE_STATES else CLEAR_STEP

    @property
    def _is_storing(self) -> bool:
        """Whether the task still stores files that are only at the service so far."""
        options = self.output_options
        has_storage = options is not None and options.output_path is not None
        return has_storage and self.task_state in TASK_ACTIVE_STATES

    def _get_note(self) -> Note | None:
        if self.error is not None:
            return Note(self._get_error_note(self.error))
        if self.run is None and self.flow_run_id is None:
            error = self.input_error and f"{INPUT_ERROR_NOTE} {to_safe_line(self.input_error)}"
            return Note(error or _get_no_run_note(self.task_state), is_error=bool(error))
        if self.run is None or (not self.run.is_final and self.flows_conn_id is None):
            return Note(UNKNOWN_CONNECTION_NOTE)
        if self.ownership is Ownership.FOREIGN:
            return Note(FOREIGN_RUN_NOTE, is_error=False)
        return None

    def _get_error_note(self, error: FlowError) -> str:
        if isinstance(error, FlowNotFound):
            return RUN_NOT_FOUND_NOTE
        if isinstance(error, FlowAuthError):
            return INVALID_KEY_NOTE
        return f"{STALE_RUN_NOTE if self.run else FETCH_FAILED_NOTE} {self.to_error_text(error)}"

    def _get_version(self, note: Note | None) -> str:
        run_parts = self.run and (self.run.raw_state, self.run.started_at)
        parts = (note and note.text, self.task_state, run_parts, self.outputs)
        return sha256(repr(parts).encode()).hexdigest()[:16]


def _get_no_run_note(task_state: str | None) -> str:
    if task_state in TASK_ACTIVE_STATES:
        return START_IN_PROGRESS_NOTE
    return NO_RUN_YET_NOTE if task_state in TASK_WAITING_STATES else TASK_WITHOUT_RUN_NOTE


async def get_task_run_view(ti_data: TaskInstanceData) -> RunView:
    """Return the run of a task instance's latest try.

    The service is polled only for what the task has not returned.
    """
    returned_run = parse_returned_run(ti_data.result)
    candidates = (
        returned_run and returned_run.flow_run_id,
        ti_data.flow_run_id,
        ti_data.fields.get("flow_run_id"),
    )
    flow_run_id = next(
        (text.strip() for text in candidates if isinstance(text, str) and is_run_id(text.strip())), None
    )
    conn_id = get_nonempty_str(ti_data.fields, "flows_conn_id")
    view = RunView(
        flow_run_id,
        conn_id,
        inputs=get_shown_inputs(ti_data),
        parameters=ti_data.fields.get("parameters"),
        output_options=parse_output_options(ti_data.fields),
        task_state=ti_data.state,
        try_number=ti_data.try_number,
        previous_runs=tuple(pair for pair in list_earlier_runs(ti_data) if pair[0] != flow_run_id),
        input_error=ti_data.input_error,
        task_key=ti_data.key,
        ownership=_get_ownership(ti_data, flow_run_id),
        team_name=ti_data.team_name,
    )
    if flow_run_id is None:
        return view
    if returned_run is not None:
        outputs = parse_outputs(ti_data.result.get("outputs"))
        view = replace(view, run=returned_run, outputs=outputs)
        if returned_run.is_final and (outputs or not returned_run.is_completed):
            return view if conn_id is None else await _add_parameters(view, conn_id)
    view = replace(view, outputs=view.outputs or parse_outputs(ti_data.outputs))
    return view if conn_id is None else await get_service_run_view(conn_id, flow_run_id, view)


async def _add_parameters(view: RunView, conn_id: str) -> RunView:
    """Return the view of a sensor's run with the parameters that the service has; the sensor has none."""
    is_known = view.inputs is not None or view.parameters is not None
    if is_known or view.run is None or view.ownership is not Ownership.CONFIRMED:
        return view
    team, flow_run_id = view.team_name, view.run.flow_run_id
    response = await RESPONSE_CACHE.get(
        ("run", conn_id, team, flow_run_id),
        lambda: _load_run(conn_id, team, flow_run_id),
        _get_run_ttl,
        pool=conn_id,
    )
    return view if response.value is None else replace(view, parameters=response.value.parameters)


def _get_ownership(ti_data: TaskInstanceData, flow_run_id: str | None) -> Ownership:
    """Return whether a run is the task instance's, by what Airflow has recorded."""
    recorded_run_ids = get_recorded_run_ids(ti_data)
    if flow_run_id in recorded_run_ids:
        return Ownership.CONFIRMED
    return Ownership.CONTRADICTED if recorded_run_ids else Ownership.UNRECORDED


async def get_previous_run_view(ti_data: TaskInstanceData, flow_run_id: str) -> RunView | None:
    """Return the run of an earlier try, None if no earlier try is known to have had it."""
    if flow_run_id not in dict(list_earlier_runs(ti_data)):
        return None
    conn_id = get_nonempty_str(ti_data.fields, "flows_conn_id")
    view = RunView(
        flow_run_id,
        conn_id,
        task_key=ti_data.key,
        team_name=ti_data.team_name,
        ownership=_get_ownership(ti_data, flow_run_id),
    )
    if conn_id is None:
        return view
    return await get_service_run_view(conn_id, flow_run_id, view)


async def get_service_run_view(conn_id: str, flow_run_id: str, view: RunView | None = None) -> RunView:
    """Return a run as its service reports it, with its outputs once it is final.

    :param view: the view to update, with what is known from the task instance.
    """
    view = view or RunView(flow_run_id, conn_id)
    team = view.team_name
    run_response = await RESPONSE_CACHE.get(
        ("run", conn_id, team, flow_run_id),
        lambda: _load_run(conn_id, team, flow_run_id),
        _get_run_ttl,
        pool=conn_id,
    )
    view = _add_service_run(replace(view, error=run_response.error), run_response.value)
    if view.ownership is Ownership.FOREIGN:
        return view
    if view.run is None or not view.run.is_final or view.error is not None or view.outputs:
        return view
    outputs_response = await RESPONSE_CACHE.get(
        ("outputs", conn_id, team, flow_run_id),
        lambda: _load_outputs(conn_id, team, flow_run_id),
        _get_outputs_ttl,
        pool=conn_id,
    )
    return replace(view, outputs=outputs_response.value or (), error=outputs_response.error)


def _add_service_run(view: RunView, run: FlowRun | None) -> RunView:
    """Return the view with its service's run, with no more than its state if that is another task's."""
    if run is None:
        return view
    if view.ownership is Ownership.CONFIRMED:
        return replace(view, run=run)
    if view.is_stamped_on(run):
        return replace(view, run=run, ownership=Ownership.CONFIRMED)
    known = FlowRun(
        run.flow_run_id,
        run.service,
        state=run.state,
        raw_state=run.state.value,
        progress=run.progress,
        created_at=run.created_at,
        started_at=run.started_at,
        finished_at=run.finished_at,
        expected_end_epoch=run.expected_end_epoch,
    )
    return replace(view, run=known, ownership=Ownership.FOREIGN)


def get_flows_hook(conn_id: str, team_name: str | None) -> FlowsHook:
    """Return the hook of a connection, with the rate limiter of all its requests in this process.

    :param team_name: the team on whose behalf it is looked up, None for none.
    :raises FlowInputError: the connection does not exist, or its type is not one of a flow service.
    """
    try:
        hook = load_hook(conn_id, team_name)
    except AirflowNotFoundException as error:
        raise FlowInputError(f"Connection {conn_id!r} does not exist.") from error
    hook.limit_requests(max_wait=PAGE_TIMEOUT_SECONDS)
    return hook


def run_for_page(hook: FlowsHook, conversation: Conversation[T]) -> T:
    """Run a conversation without retries, because a page is loaded again anyway.

    :raises FlowServiceError: a request failed.
    """
    return hook.run(conversation, retry=NO_RETRY, timeout=PAGE_TIMEOUT_SECONDS)


def _load_run(conn_id: str, team_name: str | None, flow_run_id: str) -> FlowRun:
    with closing(get_flows_hook(conn_id, team_name)) as hook:
        run = run_for_page(hook, hook.service.get_run(flow_run_id))
    run = replace(
        to_small_run(run),
        parameters=to_parameters(drop_large_parameters(run.parameters)),
        additional=get_small_stamp(run),
    )
    return run if run.is_final else replace(run, expected_end_epoch=expected_end(run, time.time()))


def get_small_stamp(run: FlowRun) -> dict[str, Any] | None:
    """Return a run's metadata with nothing but the stamp, which says whose run it is."""
    stamp = run.additional.get(STAMP_KEY) if isinstance(run.additional, Mapping) else None
    return None if stamp is None or estimate_size(stamp) > MAX_STAMP_BYTES else {STAMP_KEY: stamp}


def _load_outputs(conn_id: str, team_name: str | None, flow_run_id: str) -> tuple[FlowOutput, ...]:
    with closing(get_flows_hook(conn_id, team_name)) as hook:
        if not hook.service.supports("list_outputs") and not hook.service.supports("get_run"):
            return ()
        outputs = run_for_page(hook, list_outputs(hook.service, flow_run_id))
    return tuple(map(_to_small_output, outputs[:MAX_OUTPUTS_PER_PAGE]))


def _to_small_output(output: FlowOutput) -> FlowOutput:
    """Return an output with only what pages show of it; a long text is downloaded like a file."""
    is_long = output.value is not None and len(output.value) > MAX_CACHED_TEXT_LENGTH
    return replace(
        output,
        value=None if is_long and output.asset_id is not None and not output.is_url else output.value,
        error=output.error and to_safe_line(output.error),
        warning=output.warning and to_safe_line(output.warning),
        additional=None,
    )


def _get_run_ttl(run: FlowRun) -> float:
    return FINAL_TTL_SECONDS if run.is_final else PAGE_POLL_SECONDS


def _get_outputs_ttl(outputs: tuple[FlowOutput, ...]) -> float:
    return PAGE_POLL_SECONDS if _has_pending_outputs(outputs) else FINAL_TTL_SECONDS


def _has_pending_outputs(outputs: tuple[FlowOutput, ...]) -> bool:
    return any(output.status == PENDING for output in outputs)

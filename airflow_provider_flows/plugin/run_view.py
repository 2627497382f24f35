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
from airflow_provider_flows.core.run import PENDING, FlowOutput, FlowRun
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.plugin.airflow_internals import Left
from airflow_provider_flows.plugin.cache import Answers
from airflow_provider_flows.plugin.schemas import (
    BeforeShown,
    Look,
    inputs_shown,
    line,
    outputs_recorded,
    outputs_shown,
    parameters_shown,
    run_shown,
)
from airflow_provider_flows.storage.output_options import Delivery
from airflow_provider_flows.worker.task_state import MOST_BEFORE

LOOK_SECONDS = 2.5  # between two looks at a run that is not final, however many look
FINAL_SECONDS = 60.0  # for which what is final is kept
HURRY_SECONDS = 8.0  # that a service may take: somebody sits before the page

WRONG_KEY = "The service refuses the key of this connection. Put the right one into its password field (Admin, Connections)."
AWAY = "The service cannot be reached, or does not answer as it should; this is what was known before."
NOT_ASKED = "The service could not be asked."
ELSEWHERE = "The page Flow runs tells more to who may read the connection."
GONE = "The service does not know this flow run any more: it may have been deleted there."
NOT_YET = "No flow run yet: the task has not come so far."
NO_RUN = "This task has no flow run. Tasks of RunFlowOperator, FlowRunSensor and @task.flow have one, once they have started it."
WORKING = "The task is at work; its flow run shows as soon as the service has answered its start."
UNREACHED = "Which connection this flow run belongs to is not known any more, so its service cannot be asked."
BEFORE = frozenset({None, "none", "scheduled", "queued", "restarting", "up_for_retry", "up_for_reschedule"})
AT_WORK = frozenset({"running", "deferred", "up_for_reschedule"})

ANSWERS = Answers()


@dataclass(frozen=True)
class Sight:
    """One run as far as it is known; `error` tells why its service could not be asked.

    :param delivery: where its task put its files; None where no task is known.
    :param task_state: Airflow's word for it, empty where no task is known.
    :param try_number: the task's last try, which had this run; 0 where no task is known.
    :param frank: whether whoever looks may read the connection, so that errors may name its host.
    :param before: ids of the runs that tries before had, each with the number of the last of them.
    """

    flow_run_id: str | None = None
    flows_conn_id: str | None = None
    run: FlowRun | None = None
    outputs: tuple[FlowOutput, ...] = ()
    inputs: Any = None
    parameters: Any = None
    delivery: Delivery | None = None
    task_state: str | None = ""
    error: FlowError | None = None
    try_number: int = 0
    before: tuple[tuple[str, int], ...] = ()
    frank: bool = False

    @property
    def at_service(self) -> bool:
        """Whether the service has what this run made, for all that is known."""
        return (
            self.flows_conn_id is not None
            and not isinstance(self.error, FlowNotFound)
            and bool(self.run and self.run.final)
        )

    @property
    def _goes_on(self) -> bool:
        """Whether the run is under way, or its outputs are, and its service can tell more of it."""
        asked = self.flows_conn_id is not None and not isinstance(self.error, FlowNotFound)
        return asked and self.run is not None and (not self.run.final or _pending(self.outputs))

    def words_of(self, error: FlowError) -> str:
        """Word an error for whoever looks; only errors of the service name where it is."""
        return line(str(error)) if self.frank or isinstance(error, FlowInputError) else ELSEWHERE

    def look(self) -> Look:
        """Put it into its shape."""
        note, trouble = self._note()
        # a task that is at work although its run is final brings the files home; one that is tried again may have another run
        passing = isinstance(self.error, FlowServiceError) and self.error.passing
        waiting = self.task_state in BEFORE | AT_WORK or passing or self._goes_on
        marks = (note, self.task_state, self.run and (self.run.state_word, self.run.started_at), self.outputs)
        return Look(
            mark=sha256(repr(marks).encode()).hexdigest()[:16],
            run=None if self.run is None else run_shown(self.run, time.time()),
            inputs=inputs_shown(self.inputs),
            parameters=parameters_shown(self.parameters or (self.run.parameters if self.run else None)),
            outputs=outputs_shown(self.outputs, at_service=self.at_service),
            note=note,
            trouble=trouble,
            task_state=self.task_state,
            try_number=self.try_number,
            before=[BeforeShown(flow_run_id=run, last_try=last) for run, last in self.before],
            again=LOOK_SECONDS if waiting else None,
        )

    def _note(self) -> tuple[str | None, bool]:
        if isinstance(self.error, FlowNotFound):
            return GONE, True
        if isinstance(self.error, FlowAuthError):
            return WRONG_KEY, True
        if self.error is not None:
            return f"{AWAY if self.run else NOT_ASKED} {self.words_of(self.error)}", True
        if self.run is None and self.flow_run_id is None:
            return (
                WORKING if self.task_state in AT_WORK else NOT_YET if self.task_state in BEFORE else NO_RUN
            ), False
        if self.run is None or (not self.run.final and self.flows_conn_id is None):
            return UNREACHED, True
        return None, False


async def run_of_task(left: Left) -> Sight:
    """Put together what is known of a task instance's run; its service is asked only for what the task has not returned."""
    returned = _returned(left.result)
    known = (returned and returned.flow_run_id, left.flow_run_id, left.fields.get("flow_run_id"))
    named = next((text for text in known if isinstance(text, str) and text.strip()), None)
    conn_id = _text(left.fields, "flows_conn_id")
    inputs, parameters = left.fields.get("inputs"), left.fields.get("parameters")
    sight = Sight(named, conn_id, None, (), inputs, parameters, _delivery(left.fields), left.state)
    sight = replace(
        sight, try_number=left.try_number, before=tuple(one for one in _before(left) if one[0] != named)
    )
    if named is None:
        return sight
    if returned is not None:
        outputs = outputs_recorded(left.result.get("outputs"))
        sight = replace(sight, run=returned, outputs=outputs)
        if returned.final and (outputs or not returned.completed):
            return sight
    sight = replace(sight, outputs=sight.outputs or outputs_recorded(left.outputs))
    return sight if conn_id is None else await run_at_service(conn_id, named, sight)


async def run_before(left: Left, flow_run_id: str) -> Sight | None:
    """Put together what is known of a run that a try before the last one had, None if none is known to have had it."""
    if flow_run_id not in dict(_before(left)):
        return None
    conn_id = _text(left.fields, "flows_conn_id")
    return Sight(flow_run_id) if conn_id is None else await run_at_service(conn_id, flow_run_id)


def _returned(result: Any) -> FlowRun | None:
    """Read the run that a task returned, None if it is something else: any task may return anything."""
    if not isinstance(result, Mapping) or not all(
        isinstance(result.get(name), str) for name in ("flow_run_id", "service")
    ):
        return None
    return FlowRun.from_event(result)


def _before(left: Left) -> list[tuple[str, int]]:
    """Read what is remembered of the tries before, newest first; whoever may write it may have written anything."""
    rows = [row for row in left.before if isinstance(row, Mapping)] if isinstance(left.before, list) else []
    told = [(row.get("flow_run_id"), row.get("last_try")) for row in reversed(rows[-MOST_BEFORE:])]
    return [(run, last) for run, last in told if isinstance(run, str) and run.strip() and type(last) is int]


async def run_at_service(conn_id: str, flow_run_id: str, sight: Sight | None = None) -> Sight:
    """Ask a run's service how it is and, once it is final, what it made.

    :param sight: what is known of it from elsewhere.
    """
    sight = sight or Sight(flow_run_id, conn_id)
    told = await ANSWERS.get(("run", conn_id, flow_run_id), lambda: _looked(conn_id, flow_run_id), _fresh)
    sight = replace(sight, run=told.value or sight.run, error=told.error)
    if sight.run is None or not sight.run.final or sight.error is not None or sight.outputs:
        return sight
    made = await ANSWERS.get(
        ("outputs", conn_id, flow_run_id), lambda: _made(conn_id, flow_run_id), _fresh_outputs
    )
    return replace(sight, outputs=made.value or (), error=made.error)


def hook_of(conn_id: str) -> FlowsHook:
    """Give the hook of a connection.

    :raises FlowInputError: there is none of this id, or it runs no flows.
    """
    try:
        return FlowsHook.get_hook(conn_id)
    except AirflowNotFoundException as error:
        message = f"There is no connection {conn_id!r}"
        raise FlowInputError(message) from error


def _looked(conn_id: str, flow_run_id: str) -> FlowRun:
    hook = hook_of(conn_id)
    try:
        run = hook.hurried(hook.service.get_run(flow_run_id), HURRY_SECONDS)
    finally:
        hook.close()
    run = replace(run, raw={})  # it may be large, and many are kept
    return run if run.final else replace(run, expected_at=expected_end(run, time.time()))


def _made(conn_id: str, flow_run_id: str) -> tuple[FlowOutput, ...]:
    hook = hook_of(conn_id)
    if not hook.service.offers("list_outputs"):
        return ()
    try:
        return tuple(hook.hurried(hook.service.list_outputs(flow_run_id), HURRY_SECONDS))
    finally:
        hook.close()


def _fresh(run: FlowRun) -> float:
    return FINAL_SECONDS if run.final else LOOK_SECONDS


def _fresh_outputs(outputs: tuple[FlowOutput, ...]) -> float:
    return LOOK_SECONDS if _pending(outputs) else FINAL_SECONDS


def _pending(outputs: tuple[FlowOutput, ...]) -> bool:
    """Whether some of a final run's outputs are on their way still."""
    return any(output.status == PENDING for output in outputs)


def _delivery(fields: Mapping[str, Any]) -> Delivery:
    try:
        return Delivery(_text(fields, "output_path"), _text(fields, "output_conn_id"))
    except FlowInputError:
        return Delivery()


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    return value if isinstance(value, str) and value.strip() else None

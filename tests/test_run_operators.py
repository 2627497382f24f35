"""Tests of the operators for a flow run that exists, in real DAG runs against the emulator."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator, task
from airflow.serialization.serialized_objects import LazyDeserializedDAG

from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowConflict,
    FlowInputError,
    FlowNotFound,
    FlowRunAborted,
    FlowRunFailed,
    FlowTimeout,
)
from airflow_provider_flows.emulator import Emulator, Fault, Plan
from airflow_provider_flows.hooks import GenerioHook
from airflow_provider_flows.operators import (
    AbortFlowRunOperator,
    DeleteFlowRunOperator,
    FetchFlowRunOperator,
    RunFlowOperator,
)
from tests.support.airflow_run import DagResult, run_dag
from tests.support.modes import FAST_POLLING, FLOW, start_external_run
from tests.support.versions import needs

OPERATORS: list[type[BaseOperator]] = [FetchFlowRunOperator, AbortFlowRunOperator, DeleteFlowRunOperator]
UNKNOWN_RUN_ID = "0" * 24  # an id that no flow run has
NO_ID = "{{ ti.xcom_pull('no_such_task') }}"

every_operator = pytest.mark.parametrize("operator", OPERATORS, ids=lambda each: each.__name__)
both_modes = pytest.mark.parametrize("deferrable", [False, True])
pytestmark = [
    pytest.mark.emulator(run_seconds=1000),
    pytest.mark.usefixtures("airflow_database"),  # the first DAG run would take longer than a flow run
]


def run_task(operator: type[BaseOperator], flow_run_id: str, **arguments: Any) -> DagResult:
    """Run a DAG with one task of an operator."""
    with DAG(f"one_{operator.__name__}", schedule=None) as dag:
        operator(task_id="task", flow_run_id=flow_run_id, **{"poll_interval": 0.05, **arguments})
    return run_dag(dag)


def returned(result: DagResult, task_id: str = "task") -> dict[str, Any]:
    """Return what a task returned."""
    assert result.states[task_id] == "success", result.log
    value: dict[str, Any] = result.xcoms[task_id]["return_value"]
    return value


def create_run(hook: GenerioHook) -> str:
    """Create a flow run that is not started."""
    return hook.create(FLOW).flow_run_id


def start_run(emulator: Emulator, outcome: Any = "completed", **plan: Any) -> str:
    """Start a flow run that ends at once in this state."""
    emulator.add_plan(Plan(outcome=outcome, run_seconds=0, **plan))
    return start_external_run(emulator)


@pytest.mark.parametrize(
    ("operator", "defaults"),
    [
        (
            FetchFlowRunOperator,
            {
                "flow_run_id": inspect.Parameter.empty,
                "flows_conn_id": "flows_default",
                "wait_for_completion": True,
                "output_path": None,
                "output_conn_id": None,
                "max_xcom_bytes": 48 * 1024,
                "fetch_partial_outputs": False,
            },
        ),
        (
            AbortFlowRunOperator,
            {
                "flow_run_id": inspect.Parameter.empty,
                "flows_conn_id": "flows_default",
                "wait_for_completion": True,
            },
        ),
        (
            DeleteFlowRunOperator,
            {
                "flow_run_id": inspect.Parameter.empty,
                "flows_conn_id": "flows_default",
                "abort_active": False,
            },
        ),
    ],
)
def test_arguments_are_named_as_those_of_the_other_tasks(
    operator: type[BaseOperator], defaults: dict[str, Any]
) -> None:
    """Arguments are keyword-only, and have the names and defaults that they have in `RunFlowOperator`."""
    parameters = inspect.signature(operator.__init__).parameters
    own = {name: value for name, value in parameters.items() if name not in {"self", "kwargs"}}

    assert {parameter.kind for parameter in own.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert defaults.items() <= {name: parameter.default for name, parameter in own.items()}.items()
    run_flow = inspect.signature(RunFlowOperator.__init__).parameters
    assert own.keys() - run_flow.keys() == {"flow_run_id"} | defaults.keys() & {"abort_active"}


# fetch


@both_modes
def test_a_fetched_run_is_returned_as_the_other_modes_return_it(
    emulator: Emulator, tmp_path: Path, deferrable: bool
) -> None:
    """Fetching a completed run returns what `RunFlowOperator` returns, with the files stored."""
    emulator.run_seconds = 0
    with DAG("fetch_equal", schedule=None, default_args={"output_path": str(tmp_path)}) as dag:
        run = RunFlowOperator(task_id="run", flow=FLOW, inputs="A chair", **FAST_POLLING)
        FetchFlowRunOperator(
            task_id="fetch", flow_run_id=run.output["flow_run_id"], deferrable=deferrable, **FAST_POLLING
        )

    result = run_dag(dag)

    fetched = returned(result, "fetch")
    assert fetched == returned(result, "run")
    assert Path(fetched["outputs"][0]["uri"].removeprefix("file://")).is_file()
    assert result.xcoms["fetch"]["flow_run_id"] == result.xcoms["run"]["flow_run_id"]


@both_modes
@pytest.mark.emulator(run_seconds=0.3)
def test_an_active_run_is_waited_for(emulator: Emulator, deferrable: bool) -> None:
    """A run that is still active is waited for, in the worker or deferred, and then fetched."""
    result = run_task(
        FetchFlowRunOperator, start_external_run(emulator), deferrable=deferrable, max_poll_interval=0.1
    )

    assert returned(result)["state"] == "completed"
    assert len(returned(result)["outputs"]) == 1


@both_modes
def test_the_timeout_ends_the_wait_and_not_the_run(emulator: Emulator, deferrable: bool) -> None:
    """A run that is not final in time fails the task with a FlowTimeout, and continues."""
    flow_run_id = start_external_run(emulator)

    result = run_task(FetchFlowRunOperator, flow_run_id, deferrable=deferrable, timeout=0.2)

    assert isinstance(result.errors["task"], FlowTimeout)
    assert flow_run_id in str(result.errors["task"])
    assert not emulator.runs[flow_run_id].current.is_final


def test_an_active_run_fails_a_task_that_does_not_wait(emulator: Emulator, tmp_path: Path) -> None:
    """With `wait_for_completion=False` an active run is an error that says what to do."""
    active, final = start_external_run(emulator), start_run(emulator)

    result = run_task(FetchFlowRunOperator, active, wait_for_completion=False)
    error = result.errors["task"]
    assert isinstance(error, FlowConflict)
    assert active in str(error)
    assert "wait_for_completion=True" in str(error)

    result = run_task(FetchFlowRunOperator, final, wait_for_completion=False, output_path=str(tmp_path))
    assert returned(result)["outputs"][0]["uri"].startswith(f"file://{tmp_path}/{final}/")


@pytest.mark.parametrize("wait_for_completion", [False, True])
@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        ("failed", FlowRunFailed),
        ("aborted", FlowRunAborted),
    ],
)
def test_a_run_that_did_not_complete_fails_the_task(
    emulator: Emulator, outcome: str, error: type[Exception], wait_for_completion: bool
) -> None:
    """A failed or aborted run raises the same error as in every mode."""
    flow_run_id = start_run(emulator, outcome)

    result = run_task(FetchFlowRunOperator, flow_run_id, wait_for_completion=wait_for_completion)

    assert type(result.errors["task"]) is error
    assert flow_run_id in str(result.errors["task"])


def test_partial_outputs_are_fetched_on_request(emulator: Emulator, tmp_path: Path) -> None:
    """With `fetch_partial_outputs` the error of a failed run lists the files that it left."""
    flow_run_id = start_run(emulator, "failed", partial_outputs=True)

    result = run_task(
        FetchFlowRunOperator, flow_run_id, fetch_partial_outputs=True, output_path=str(tmp_path)
    )

    (file,) = tmp_path.rglob("*.glb")
    assert str(file) in str(result.errors["task"])


def test_fetching_again_returns_the_same(emulator: Emulator, tmp_path: Path) -> None:
    """A second task of the same run returns the same dict, and leaves one file."""
    flow_run_id = start_run(emulator)

    first, second = (
        returned(run_task(FetchFlowRunOperator, flow_run_id, output_path=str(tmp_path))) for _ in range(2)
    )

    assert first == second
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


# abort


@pytest.mark.emulator(run_seconds=10)
def test_an_active_run_is_aborted(emulator: Emulator) -> None:
    """An active run is aborted, and the task returns it when it is final."""
    flow_run_id = start_external_run(emulator)

    result = run_task(AbortFlowRunOperator, flow_run_id)

    assert returned(result)["state"] == "aborted"
    assert returned(result)["flow_run_id"] == result.xcoms["task"]["flow_run_id"] == flow_run_id
    assert emulator.runs[flow_run_id].state == "aborted"


def test_the_end_of_an_aborted_run_is_not_waited_for(emulator: Emulator) -> None:
    """With `wait_for_completion=False` the task ends when the service has accepted the request."""
    flow_run_id = start_external_run(emulator)

    result = run_task(AbortFlowRunOperator, flow_run_id, wait_for_completion=False)

    assert returned(result)["state"] == "aborting"


@pytest.mark.emulator(run_seconds=1)
@pytest.mark.parametrize("abort", ["instant", "finishes"])
def test_a_run_may_end_before_it_is_aborted(emulator: Emulator, abort: Any) -> None:
    """Whether the abort takes effect at once or the run completes first: the task succeeds and says which."""
    emulator.switches.abort = abort

    result = run_task(AbortFlowRunOperator, start_external_run(emulator))

    assert returned(result)["state"] == {"instant": "aborted", "finishes": "completed"}[abort]


@pytest.mark.parametrize("outcome", ["completed", "failed", "aborted"])
def test_a_final_run_is_not_aborted(emulator: Emulator, outcome: str) -> None:
    """A run that is final already is returned as it is, without a request to abort it."""
    flow_run_id = start_run(emulator, outcome)

    assert returned(run_task(AbortFlowRunOperator, flow_run_id))["state"] == outcome
    assert not [request for request in emulator.requests if request.method == "PATCH"]


# delete


@pytest.mark.parametrize("outcome", ["completed", "failed", "aborted"])
def test_a_final_run_is_deleted(emulator: Emulator, outcome: str) -> None:
    """A final run is deleted, and returned as it was."""
    flow_run_id = start_run(emulator, outcome)

    assert returned(run_task(DeleteFlowRunOperator, flow_run_id))["state"] == outcome
    assert flow_run_id not in emulator.runs


@pytest.mark.emulator(run_seconds=10)
def test_an_active_run_is_not_deleted(emulator: Emulator) -> None:
    """An active run is an error that says what to do, and continues; on request it is aborted and deleted."""
    flow_run_id = start_external_run(emulator)

    error = run_task(DeleteFlowRunOperator, flow_run_id).errors["task"]
    assert isinstance(error, FlowConflict)
    assert flow_run_id in str(error)
    assert "abort_active=True" in str(error)
    assert {request.method for request in emulator.requests} == {"POST", "GET"}

    assert returned(run_task(DeleteFlowRunOperator, flow_run_id, abort_active=True))["state"] == "aborted"
    assert flow_run_id not in emulator.runs


def test_the_service_has_the_last_word(emulator: Emulator) -> None:
    """If the service refuses to delete a run, the task fails with its reason."""
    flow_run_id = start_run(emulator)
    emulator.add_fault(
        Fault(method="DELETE", path="/flows/*", status=409, body=b'{"detail": "It is shared"}', times=None)
    )

    error = run_task(DeleteFlowRunOperator, flow_run_id).errors["task"]

    assert isinstance(error, FlowConflict)
    assert "It is shared" in str(error)


# abort and delete


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        (AbortFlowRunOperator, {}),
        (DeleteFlowRunOperator, {}),
        (DeleteFlowRunOperator, {"abort_active": True}),
    ],
)
@pytest.mark.parametrize("prepare", ["created", "deleted", "never existed"])
def test_a_run_that_is_gone_is_no_error(
    emulator: Emulator, hook: GenerioHook, operator: type[BaseOperator], arguments: Any, prepare: str
) -> None:
    """A run that was never started is deleted; one that does not exist is left at that. The task succeeds."""
    flow_run_id = UNKNOWN_RUN_ID if prepare == "never existed" else create_run(hook)
    if prepare == "deleted":
        hook.delete(flow_run_id)

    value = returned(run_task(operator, flow_run_id, **arguments))

    assert flow_run_id not in emulator.runs
    assert (value["flow_run_id"], value["service"]) == (flow_run_id, "generio")
    assert value["state"] in {"created", "unknown"}
    assert value.keys() == returned(run_task(AbortFlowRunOperator, start_run(emulator))).keys()


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [(AbortFlowRunOperator, {}), (DeleteFlowRunOperator, {"abort_active": True})],
)
def test_the_wait_for_an_abort_is_bounded(
    emulator: Emulator, operator: type[BaseOperator], arguments: Any
) -> None:
    """If a run remains active although its abort was accepted, the task fails at its timeout."""
    flow_run_id = start_external_run(emulator)
    emulator.add_fault(Fault(method="PATCH", path="/flows/*", status=200, body=b"{}", times=None))

    result = run_task(operator, flow_run_id, timeout=0.2, **arguments)

    assert isinstance(result.errors["task"], FlowTimeout)
    assert flow_run_id in str(result.errors["task"])
    assert flow_run_id in emulator.runs


# all of them


def test_an_unknown_run_cannot_be_fetched(emulator: Emulator) -> None:
    """Fetching a run that does not exist is an error."""
    assert emulator.runs == {}
    assert type(run_task(FetchFlowRunOperator, UNKNOWN_RUN_ID).errors["task"]) is FlowNotFound


@every_operator
def test_a_template_without_a_value_is_rejected(emulator: Emulator, operator: type[BaseOperator]) -> None:
    """A template that renders to no id is rejected by the name of its argument before a request is sent."""
    error = run_task(operator, NO_ID).errors["task"]

    assert isinstance(error, FlowInputError)
    assert "flow_run_id: " in str(error)
    assert not emulator.requests


@every_operator
@pytest.mark.usefixtures("emulator")
def test_a_blank_id_is_rejected(operator: type[BaseOperator]) -> None:
    """An id that is no id is rejected by the name of its argument."""
    error = run_task(operator, "  ").errors["task"]

    assert isinstance(error, FlowInputError)
    assert "flow_run_id" in str(error)


@needs("retry policies")
@every_operator
def test_a_rejected_key_is_not_retried(
    emulator: Emulator, operator: type[BaseOperator], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A permanent error fails the task at once, whatever its retries are."""
    flow_run_id = start_run(emulator)
    monkeypatch.setenv("AIRFLOW_CONN_WRONG", f"generio://http://:wrong-key@{emulator.url[7:]}")

    result = run_task(operator, flow_run_id, flows_conn_id="wrong", retries=3)

    assert isinstance(result.errors["task"], FlowAuthError)
    assert result.states["task"] == "failed"


@pytest.mark.parametrize("operator", [AbortFlowRunOperator, DeleteFlowRunOperator])
@pytest.mark.parametrize(("argument", "value"), [("poll_interval", 0), ("timeout", -1)])
def test_invalid_arguments_are_rejected_at_parse_time(
    operator: type[BaseOperator], argument: str, value: float
) -> None:
    """An invalid number is rejected by its name when the DAG file is parsed."""
    with pytest.raises(FlowInputError, match=argument):
        operator(task_id="task", flow_run_id="x", **{argument: value})


@every_operator
def test_tasks_are_serialized(operator: type[BaseOperator]) -> None:
    """The scheduler's copy of a task has its templated arguments and its links."""
    with DAG("serialized", schedule=None) as dag:
        operator(task_id="task", flow_run_id="{{ params.id }}")

    copy = LazyDeserializedDAG.from_dag(dag).data["dag"]["tasks"][0]["__var"]

    assert copy["task_type"] == operator.__name__
    assert copy["flow_run_id"] == "{{ params.id }}"
    assert "Flow run" in copy["_operator_extra_links"]


@every_operator
def test_tasks_are_mapped(emulator: Emulator, operator: type[BaseOperator]) -> None:
    """Each operator maps over the ids that other tasks return."""
    flow_run_ids = [start_run(emulator) for _ in range(2)]
    with DAG(f"mapped_{operator.__name__}", schedule=None) as dag:

        @task
        def get_ids() -> list[str]:
            """Return the ids."""
            return flow_run_ids

        operator.partial(task_id="task", poll_interval=0.05).expand(flow_run_id=get_ids())

    result = run_dag(dag)

    found = [returned(result, f"task[{index}]")["flow_run_id"] for index in range(2)]
    assert found == flow_run_ids


@pytest.mark.emulator(run_seconds=10)
@pytest.mark.parametrize("outcome", ["success", "failed"])
@pytest.mark.parametrize(
    "end_run",
    [AbortFlowRunOperator, lambda **arguments: DeleteFlowRunOperator(abort_active=True, **arguments)],
    ids=["abort", "delete"],
)
def test_a_teardown_ends_the_run_however_the_work_ended(
    emulator: Emulator, end_run: Callable[..., BaseOperator], outcome: str
) -> None:
    """As a teardown, abort and delete end the run of the setup whether the work between succeeds or fails."""
    with DAG("with_teardown", schedule=None) as dag:
        start = RunFlowOperator(task_id="start", flow=FLOW, inputs="A chair", wait_for_completion=False)

        @task
        def work() -> None:
            """Succeed, or fail."""
            if outcome == "failed":
                raise ValueError(outcome)

        end = end_run(task_id="end", flow_run_id=start.output["flow_run_id"], poll_interval=0.05)
        start >> work() >> end.as_teardown(setups=start)

    result = run_dag(dag)

    assert result.states == {"start": "success", "work": outcome, "end": "success"}
    assert returned(result, "end")["state"] == "aborted"
    assert all(run.current.is_final for run in emulator.runs.values())


def test_services_without_run_ids_are_rejected(emulator: Emulator) -> None:
    """PromptChainer stores no runs, so each operator says what it cannot do."""
    for operator in OPERATORS:
        error = run_task(operator, "an-id", flows_conn_id="promptchainer_default").errors["task"]
        assert isinstance(error, FlowInputError)
        assert "promptchainer" in str(error)
    assert not emulator.requests

"""Tests of RunFlowOperator in real DAG runs: arguments, templates, mapping, chaining and rejections.

That its modes are equal is tested in test_modes.py.
"""

from __future__ import annotations

import inspect
import json
import re
import time
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from airflow.models.xcom import XComModel
from airflow.sdk import DAG
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.start_or_resume import STAMP_KEY
from airflow_provider_flows.emulator import Emulator, Fault, Plan
from airflow_provider_flows.operators import RunFlowOperator
from tests.support.airflow_run import run_dag
from tests.support.modes import FAST_POLLING, FLOW, count_polls, package_log_lines
from tests.support.tries import CHAIN_ARGUMENTS
from tests.support.versions import needs

SAMPLE_FLOW = "clibnwpno000bmc0k9hvv3y7f"  # PromptChainer's sample: variables color and item
LOW = {"quality": "low"}

pytestmark = pytest.mark.emulator(run_seconds=0.3)


def get_bodies(emulator: Emulator, method: str, suffix: str) -> list[Any]:
    """Return the bodies of the requests with this method and end of their path."""
    return [sent.json for sent in emulator.requests if sent.method == method and sent.path.endswith(suffix)]


def test_signature_and_defaults_match_the_design() -> None:
    """The operator has the arguments of the design, as keywords, with its defaults."""
    parameters = inspect.signature(RunFlowOperator.__init__).parameters
    own = {name: parameter for name, parameter in parameters.items() if name not in {"self", "kwargs"}}

    assert {parameter.kind for parameter in own.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert {name: parameter.default for name, parameter in own.items()} == {
        "flow": inspect.Parameter.empty,
        "inputs": None,
        "parameters": None,
        "additional": None,
        "flows_conn_id": "flows_default",
        "input_conn_id": None,
        "wait_for_completion": True,
        "deferrable": False,
        "poll_interval": 5,
        "max_poll_interval": 60,
        "timeout": timedelta(hours=1),
        "output_path": None,
        "output_conn_id": None,
        "output_name": None,
        "reuse": False,
        "reuse_path": None,
        "max_xcom_bytes": 48 * 1024,
        "check_outputs": None,
        "on_rejected": "fail",
        "check_retries": 1,
        "fetch_partial_outputs": False,
        "delete_after_fetch": False,
        "durable": True,
        "abort_on_kill": True,
        "validate": True,
        "retry_policy": None,
    }
    templated = {
        "flow",
        "inputs",
        "parameters",
        "additional",
        "flows_conn_id",
        "input_conn_id",
        "output_path",
        "output_conn_id",
        "output_name",
        "reuse_path",
    }
    assert set(RunFlowOperator.template_fields) == templated


def test_every_templated_argument_is_rendered(emulator: Emulator, tmp_path: Any) -> None:
    """Templates in flow, inputs, parameters, additional, connection and output path are rendered."""
    with DAG(
        "operator_templates", schedule=None, params={"name": FLOW, "what": "gnome", "conn": "generio_default"}
    ) as dag:
        RunFlowOperator(
            task_id="run",
            flow="{{ params.name }}",
            inputs=[
                "A {{ params.what }}",
                {"data": "Another {{ params.what }}", "additional": {"of": "{{ task.task_id }}"}},
            ],
            parameters={"quality": "{{ 'low' }}"},
            additional={"dag": "{{ dag.dag_id }}"},
            flows_conn_id="{{ params.conn }}",
            output_path=str(tmp_path) + "/{{ params.what }}",
            **FAST_POLLING,
        )

    result = run_dag(dag)

    assert result.state == "success", result.log
    (created,) = get_bodies(emulator, "POST", "/flows")
    stamp = created["additional"].pop(STAMP_KEY)
    assert created == {"template": FLOW, "parameters": LOW, "additional": {"dag": "operator_templates"}}
    assert re.fullmatch(r"[0-9a-f]{32}", stamp.pop("token"))
    assert re.fullmatch(r"[0-9a-f]{64}", stamp.pop("fingerprint"))
    assert 0 < stamp.pop("deadline") - time.time() < 3600
    assert stamp == {
        "dag_id": "operator_templates",
        "run_id": result.run_id,
        "task_id": "run",
        "map_index": -1,
        "try_number": 1,
        "generation": 0,
    }
    assert get_bodies(emulator, "POST", "/inputs") == [
        {"data": "A gnome"},
        {"data": "Another gnome", "additional": {"of": "run"}},
    ]
    outputs = result.xcoms["run"]["return_value"]["outputs"]
    assert [output["additional"] for output in outputs] == [None, {"of": "run"}]
    assert all(output["uri"].startswith(f"file://{tmp_path}/gnome/") for output in outputs)


@pytest.mark.parametrize("deferrable", [False, True])
def test_mapped_task_instances_wait_for_their_own_run(emulator: Emulator, *, deferrable: bool) -> None:
    """Mapped over several prompts, each task instance waits for the flow run that it started itself."""
    prompts = ["A chair", "A boat", "A lamp"]
    with DAG(f"operator_mapped_{deferrable}", schedule=None) as dag:
        RunFlowOperator.partial(
            task_id="run", flow=FLOW, parameters=LOW, deferrable=deferrable, **FAST_POLLING
        ).expand(inputs=prompts)

    result = run_dag(dag)

    assert result.states == dict.fromkeys([f"run[{index}]" for index in range(3)], "success")
    ids = [result.xcoms[f"run[{index}]"]["return_value"]["flow_run_id"] for index in range(3)]
    assert [emulator.runs[flow_run_id].inputs[0].media.content.decode() for flow_run_id in ids] == prompts
    assert [result.xcoms[f"run[{index}]"]["flow_run_id"] for index in range(3)] == ids


def test_task_without_wait_returns_started_run(emulator: Emulator) -> None:
    """With wait_for_completion=False the task returns the run as it was started, and the run continues."""
    emulator.run_seconds = 60
    with DAG("operator_not_waiting", schedule=None) as dag:
        RunFlowOperator(task_id="run", flow=FLOW, inputs="A chair", parameters=LOW, wait_for_completion=False)

    result = run_dag(dag)

    assert result.state == "success"
    returned = result.xcoms["run"]["return_value"]
    assert (returned["state"], returned["finished_at"], returned["outputs"]) == ("starting", None, [])
    assert emulator.runs[returned["flow_run_id"]].state in {"starting", "running"}
    assert count_polls(emulator) == 0


@pytest.mark.parametrize("deferrable", [False, True])
def test_flow_run_id_is_in_xcom_before_the_wait(emulator: Emulator, *, deferrable: bool) -> None:
    """The flow run's id is in XCom while the task waits."""
    emulator.add_fault(Fault(method="GET", path="/flows/*", delay=0.5))
    with DAG(f"operator_id_{deferrable}", schedule=None) as dag:
        RunFlowOperator(
            task_id="run", flow=FLOW, inputs="A chair", parameters=LOW, deferrable=deferrable, **FAST_POLLING
        )
    found: list[Any] = []

    def read_xcom() -> None:
        while not count_polls(emulator):
            time.sleep(0.01)
        with create_session() as session:
            is_the_id = (XComModel.dag_id == dag.dag_id, XComModel.key == "flow_run_id")
            found.extend(
                XComModel.deserialize_value(row)
                for row in session.scalars(select(XComModel).where(*is_the_id))
            )

    thread = Thread(target=read_xcom)
    thread.start()
    result = run_dag(dag)
    thread.join()

    assert found == [result.xcoms["run"]["return_value"]["flow_run_id"]]


@pytest.mark.usefixtures("emulator")
def test_outputs_are_accepted_as_inputs_of_next_task(tmp_path: Any) -> None:
    """`first.output["outputs"]` is accepted as the inputs of another task, unchanged."""
    with DAG(
        "operator_chain", schedule=None, default_args={"output_path": str(tmp_path), **FAST_POLLING}
    ) as dag:
        first = RunFlowOperator(task_id="first", flow=FLOW, inputs="A chair", parameters={"quality": "high"})
        RunFlowOperator(
            task_id="second",
            flow="model_optimize",
            inputs=first.output["outputs"],
            parameters={"polygon_count": 50},
        )

    result = run_dag(dag)

    assert result.states == {"first": "success", "second": "success"}, result.log
    sizes = [result.xcoms[name]["return_value"]["outputs"][0]["size"] for name in ("first", "second")]
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("deferrable", [False, True])
def test_promptchainer_accepts_mapping_of_variables(emulator: Emulator, *, deferrable: bool) -> None:
    """A mapping of variables runs a PromptChainer flow in one request and without a trigger."""
    with DAG(f"operator_chainer_{deferrable}", schedule=None) as dag:
        RunFlowOperator(
            task_id="run",
            flow=SAMPLE_FLOW,
            inputs={"color": "red", "item": "ball"},
            flows_conn_id="promptchainer_default",
            deferrable=deferrable,
        )

    result = run_dag(dag)

    assert result.state == "success", result.log
    returned = result.xcoms["run"]["return_value"]
    assert (returned["service"], returned["flow"], returned["state"]) == (
        "promptchainer",
        SAMPLE_FLOW,
        "completed",
    )
    assert {"image", "text"} == {output["name"] for output in returned["outputs"]}
    assert all("red" in output["value"] for output in returned["outputs"] if output["name"] == "text")
    assert get_bodies(emulator, "POST", SAMPLE_FLOW) == [{"variables": {"color": "red", "item": "ball"}}]
    run = f"promptchainer flow run {returned['flow_run_id']} (flow {SAMPLE_FLOW})"
    lines = package_log_lines(result.log)
    if deferrable:
        assert lines.pop(0).startswith("info: This task is not deferred: promptchainer responds when")
    assert lines[:2] == [
        (
            f"info: Starting flow {SAMPLE_FLOW} at promptchainer; it responds when the flow run has ended, "
            "for which this process waits up to 300 s (read_timeout of connection 'promptchainer_default')"
        ),
        f"info: The {run} ended in state 'completed'",
    ]
    assert "running trigger in line" not in result.log


def test_promptchainer_run_without_outputs_fails_the_task(emulator: Emulator) -> None:
    """A PromptChainer run without a single output fails the task, and the log has its final state."""
    emulator.switches.model_failure = "empty"
    with DAG("operator_chainer_failing", schedule=None) as dag:
        RunFlowOperator(
            task_id="run",
            flow=SAMPLE_FLOW,
            inputs={"color": "red", "item": "ball"},
            flows_conn_id="promptchainer_default",
        )

    result = run_dag(dag)

    assert type(result.errors["run"]).__name__ == "FlowRunFailed"
    assert package_log_lines(result.log)[1].endswith(" ended in state 'failed'")


INVALID: dict[str, dict[str, Any]] = {
    "flow": {"flow": "  "},
    "inputs": {"inputs": 42},
    "inputs[1]": {"inputs": ["A chair", None]},
    "parameters": {"parameters": ["low"]},
}
INVALID_TIMES: list[tuple[str, Any]] = [
    ("max_poll_interval", -1),
    *(("timeout", value) for value in (float("nan"), 0, timedelta(0), -1)),
    *(("poll_interval", value) for value in ("often", 0, None, -1)),
]


@pytest.mark.parametrize(("name", "value"), INVALID_TIMES)
def test_invalid_intervals_are_rejected_at_parse_time(name: str, value: Any) -> None:
    """An invalid interval or timeout is rejected by its name when the DAG file is parsed."""
    with pytest.raises(FlowInputError, match=f"^{name} must be a (positive|non-negative) number of seconds"):
        RunFlowOperator(task_id="run", flow=FLOW, **{name: value})


def test_output_path_without_outputs_is_rejected_before_a_run_is_created(
    flow_emulator: Emulator, tmp_path: Path
) -> None:
    """A path of a task that does not wait is an error, unless it is of `default_args` or serves at once."""
    arguments: dict[str, Any] = {"flow": FLOW, "inputs": "A chair", "wait_for_completion": False}
    path = str(tmp_path)
    with DAG("no_wait", schedule=None) as dag:
        RunFlowOperator(task_id="own", output_path=path, **arguments)
    error = run_dag(dag).errors["own"]
    assert "output_path cannot be combined with wait_for_completion=False" in str(error)
    assert flow_emulator.runs == {}

    with DAG("no_wait_default", schedule=None, default_args={"output_path": path}) as dag:
        RunFlowOperator(task_id="default", **arguments)
        RunFlowOperator.partial(task_id="mapped", **arguments).expand(parameters=[LOW])
        RunFlowOperator(task_id="chain", **CHAIN_ARGUMENTS, wait_for_completion=False)
    result = run_dag(dag)
    assert not result.errors, result.log


def test_prompt_that_is_the_id_of_a_task_is_logged(emulator: Emulator) -> None:
    """The id of a task in quotation marks is sent as a prompt, with a warning that says what to write."""
    with DAG("task_ids", schedule=None) as dag:
        first = RunFlowOperator(task_id="first", flow=FLOW, inputs="A chair", **FAST_POLLING)
        first >> RunFlowOperator(task_id="second", flow=FLOW, inputs=["first", "A table"], **FAST_POLLING)
    result = run_dag(dag)
    assert not result.errors, result.log
    assert result.log.count("inputs[0] is the text 'first', which is also the id of a task of this DAG") == 1
    assert len(emulator.runs) == 2


def test_invalid_arguments_are_rejected_before_a_run_is_created(emulator: Emulator) -> None:
    """An argument that cannot be sent is a FlowInputError that names it, and nothing is created."""
    with DAG("operator_invalid", schedule=None) as dag:
        for number, arguments in enumerate(INVALID.values()):
            RunFlowOperator(task_id=f"invalid_{number}", **{"flow": FLOW, "inputs": "A chair", **arguments})

    result = run_dag(dag)

    for number, name in enumerate(INVALID):
        error = result.errors[f"invalid_{number}"]
        assert type(error) is FlowInputError, name
        assert name in str(error)
    assert {request.path for request in emulator.requests} == {"/templates"}


def test_connection_of_another_type_is_rejected(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection of another type is a FlowInputError that names it, its type and the right types."""
    monkeypatch.setenv("AIRFLOW_CONN_FILES", json.dumps({"conn_type": "fs"}))
    monkeypatch.setenv(
        "AIRFLOW_CONN_UNKNOWN_TYPE", json.dumps({"conn_type": "unknown_type", "host": emulator.url})
    )
    monkeypatch.setenv("AIRFLOW_CONN_KEYLESS", json.dumps({"conn_type": "generio", "host": emulator.url}))
    with DAG("operator_connections", schedule=None) as dag:
        for conn_id in ("files", "unknown_type", "keyless", "missing"):
            RunFlowOperator(task_id=conn_id, flow=FLOW, inputs="A chair", flows_conn_id=conn_id)

    errors = run_dag(dag).errors

    for conn_id, kind in {"files": "fs", "unknown_type": "unknown_type"}.items():
        assert type(errors[conn_id]) is FlowInputError
        assert all(word in str(errors[conn_id]) for word in (conn_id, kind, "generio", "promptchainer"))
    assert type(errors["keyless"]) is FlowInputError
    assert "keyless" in str(errors["keyless"])
    assert "password" in str(errors["keyless"])
    assert type(errors["missing"]) is FlowInputError
    assert "Connection 'missing' does not exist, or Airflow cannot read it. Create" in str(errors["missing"])
    assert emulator.requests == ()


@pytest.mark.parametrize("deferrable", [False, True])
def test_persistent_401_ends_the_wait(emulator: Emulator, *, deferrable: bool) -> None:
    """Three 401 responses in a row end the wait, with the same error in both modes."""
    emulator.add_plan(Plan(run_seconds=60))
    emulator.add_fault(
        Fault(method="GET", path="/flows/*", skip=2, times=None, status=401, body=b'{"detail": "expired"}')
    )
    with DAG(f"operator_401_{deferrable}", schedule=None) as dag:
        RunFlowOperator(
            task_id="run", flow=FLOW, inputs="A chair", parameters=LOW, deferrable=deferrable, **FAST_POLLING
        )

    error = run_dag(dag).errors["run"]

    assert type(error).__name__ == "FlowAuthError"
    assert "expired" in str(error)
    assert "check the connection's password" in str(error)
    # the worker confirms what the triggerer reports; the last request is to abort the run
    assert count_polls(emulator) == (9 if deferrable else 6)


@pytest.mark.parametrize("deferrable", [False, True])
def test_two_401_responses_do_not_end_the_wait(emulator: Emulator, *, deferrable: bool) -> None:
    """Two rejections in a row, perhaps one in a worker and one in a triggerer, do not end the wait."""
    emulator.add_fault(Fault(method="GET", path="/flows/*", times=2, status=401))
    with DAG(f"operator_rotated_{deferrable}", schedule=None) as dag:
        RunFlowOperator(
            task_id="run", flow=FLOW, inputs="A chair", parameters=LOW, deferrable=deferrable, **FAST_POLLING
        )

    assert run_dag(dag).state == "success"


@needs("retry policies")
@pytest.mark.parametrize("service", ["generio", "promptchainer"])
def test_invalid_key_fails_at_the_start_without_retry(emulator: Emulator, service: str) -> None:
    """An invalid key is a FlowAuthError of the first request that matters, and is not retried."""
    emulator.add_fault(Fault(times=None, status=401, body=b'{"detail": "expired"}'))
    arguments = (
        {"flow": FLOW, "inputs": "A chair"}
        if service == "generio"
        else {"flow": SAMPLE_FLOW, "inputs": {"color": "red"}}
    )
    with DAG(f"operator_401_{service}", schedule=None) as dag:
        RunFlowOperator(
            task_id="run",
            flows_conn_id=f"{service}_default",
            retries=3,
            retry_delay=timedelta(0),
            **arguments,
        )

    error = run_dag(dag).errors["run"]

    assert type(error).__name__ == "FlowAuthError"
    assert [sent.method for sent in emulator.requests] == [
        "GET",
        "POST",
    ]  # the flow's definition, and the start

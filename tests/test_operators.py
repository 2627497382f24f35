"""Tests of RunFlowOperator in real DAG runs: arguments, templates, mapping, chaining and rejections.

That its modes are equal is tested in test_modes.py.
"""

from __future__ import annotations

import inspect
import json
import re
import time
from datetime import timedelta
from threading import Thread
from typing import Any

import pytest
from airflow.models.xcom import XComModel
from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.sdk import DAG
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.start_or_resume import TOKEN_KEY
from airflow_provider_flows.emulator import Emulator, Fault, Plan
from airflow_provider_flows.operators import RunFlowOperator
from tests.support.airflow_run import run_dag
from tests.support.modes import FAST_POLLING, FLOW, count_polls, package_log_lines
from tests.support.versions import needs

SAMPLE_FLOW = "clibnwpno000bmc0k9hvv3y7f"  # PromptChainer's sample: variables color and item
LOW = {"quality": "low"}

pytestmark = pytest.mark.emulator(run_seconds=0.3)


def bodies(emulator: Emulator, method: str, ending: str) -> list[Any]:
    """Return the bodies of the requests with this method whose path ends so."""
    return [sent.json for sent in emulator.requests if sent.method == method and sent.path.endswith(ending)]


def test_signature_and_defaults_are_those_of_the_design() -> None:
    """The operator has the arguments of the design, as keywords, with its defaults."""
    taken = inspect.signature(RunFlowOperator.__init__).parameters
    own = {name: parameter for name, parameter in taken.items() if name not in {"self", "kwargs"}}

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
        "max_xcom_bytes": 48 * 1024,
        "fetch_partial_outputs": False,
        "delete_after_fetch": False,
        "durable": True,
        "abort_on_kill": True,
        "validate": True,
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
    }
    assert set(RunFlowOperator.template_fields) == templated


def test_every_templated_argument_is_rendered(emulator: Emulator, tmp_path: Any) -> None:
    """Flow, inputs, parameters, additional, connection and output path may all be templates."""
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
    (made,) = bodies(emulator, "POST", "/flows")
    mark = made["additional"].pop(TOKEN_KEY)
    assert made == {"template": FLOW, "parameters": LOW, "additional": {"dag": "operator_templates"}}
    assert re.fullmatch(r"[0-9a-f]{32}", mark)
    assert bodies(emulator, "POST", "/inputs") == [
        {"data": "A gnome"},
        {"data": "Another gnome", "additional": {"of": "run"}},
    ]
    outputs = result.xcoms["run"]["return_value"]["outputs"]
    assert [output["additional"] for output in outputs] == [None, {"of": "run"}]
    assert all(output["uri"].startswith(f"file://{tmp_path}/gnome/") for output in outputs)


@pytest.mark.parametrize("deferrable", [False, True])
def test_mapped(emulator: Emulator, *, deferrable: bool) -> None:
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


def test_not_waiting_gives_the_run_as_it_starts(emulator: Emulator) -> None:
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
            mine = (XComModel.dag_id == dag.dag_id, XComModel.key == "flow_run_id")
            found.extend(
                XComModel.deserialize_value(row) for row in session.scalars(select(XComModel).where(*mine))
            )

    thread = Thread(target=read_xcom)
    thread.start()
    result = run_dag(dag)
    thread.join()

    assert found == [result.xcoms["run"]["return_value"]["flow_run_id"]]


@pytest.mark.usefixtures("emulator")
def test_outputs_are_the_inputs_of_the_next(tmp_path: Any) -> None:
    """`first.output["outputs"]` can be given to the next task as its inputs, as it is."""
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
def test_promptchainer_takes_a_mapping(emulator: Emulator, *, deferrable: bool) -> None:
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
    assert bodies(emulator, "POST", SAMPLE_FLOW) == [{"variables": {"color": "red", "item": "ball"}}]
    run = f"promptchainer flow run {returned['flow_run_id']} (flow {SAMPLE_FLOW})"
    assert package_log_lines(result.log)[:2] == [
        f"info: Started the {run}",
        f"info: The {run} ended in state 'completed'",
    ]
    assert "running trigger in line" not in result.log


def test_promptchainer_flow_that_fails(emulator: Emulator) -> None:
    """A PromptChainer run without a single output fails the task, and the log says how it ended."""
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
INVALID_TIMES = {"poll_interval": "often", "max_poll_interval": -1, "timeout": float("nan")}


@pytest.mark.parametrize("name", INVALID_TIMES)
def test_bad_times_are_named_at_parse_time(name: str) -> None:
    """An invalid interval or timeout is rejected by its name when the DAG file is parsed."""
    with pytest.raises(FlowInputError, match=f"^{name} must be"):
        RunFlowOperator(task_id="run", flow=FLOW, **{name: INVALID_TIMES[name]})


def test_bad_arguments_are_named_and_nothing_is_sent(emulator: Emulator) -> None:
    """An argument that cannot be sent is a FlowInputError that names it, and nothing is created."""
    with DAG("operator_bad", schedule=None) as dag:
        for number, given in enumerate(INVALID.values()):
            RunFlowOperator(task_id=f"bad_{number}", **{"flow": FLOW, "inputs": "A chair", **given})

    result = run_dag(dag)

    for number, name in enumerate(INVALID):
        error = result.errors[f"bad_{number}"]
        assert type(error) is FlowInputError, name
        assert name in str(error)
    assert {request.path for request in emulator.requests} == {"/templates"}


def test_connection_of_another_type_is_refused(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection of another type is a FlowInputError that names it, its type and the right types."""
    monkeypatch.setenv("AIRFLOW_CONN_FILES", json.dumps({"conn_type": "fs"}))
    monkeypatch.setenv(
        "AIRFLOW_CONN_UNHEARD_OF", json.dumps({"conn_type": "unheard_of", "host": emulator.url})
    )
    monkeypatch.setenv("AIRFLOW_CONN_KEYLESS", json.dumps({"conn_type": "generio", "host": emulator.url}))
    with DAG("operator_connections", schedule=None) as dag:
        for conn_id in ("files", "unheard_of", "keyless", "missing"):
            RunFlowOperator(task_id=conn_id, flow=FLOW, inputs="A chair", flows_conn_id=conn_id)

    errors = run_dag(dag).errors

    for conn_id, kind in {"files": "fs", "unheard_of": "unheard_of"}.items():
        assert type(errors[conn_id]) is FlowInputError
        assert all(word in str(errors[conn_id]) for word in (conn_id, kind, "generio", "promptchainer"))
    assert type(errors["keyless"]) is FlowInputError
    assert "keyless" in str(errors["keyless"])
    assert "password" in str(errors["keyless"])
    assert type(errors["missing"]) is AirflowNotFoundException
    assert "missing" in str(errors["missing"])
    assert emulator.requests == ()


@pytest.mark.parametrize("deferrable", [False, True])
def test_wrong_key_ends_the_wait(emulator: Emulator, *, deferrable: bool) -> None:
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
def test_key_that_is_changed_during_the_wait_ends_nothing(emulator: Emulator, *, deferrable: bool) -> None:
    """Two rejections in a row, perhaps one in a worker and one in a triggerer, do not end the wait."""
    emulator.add_fault(Fault(method="GET", path="/flows/*", times=2, status=401))
    with DAG(f"operator_rotated_{deferrable}", schedule=None) as dag:
        RunFlowOperator(
            task_id="run", flow=FLOW, inputs="A chair", parameters=LOW, deferrable=deferrable, **FAST_POLLING
        )

    assert run_dag(dag).state == "success"


@needs("retry policies")
@pytest.mark.parametrize("service", ["generio", "promptchainer"])
def test_wrong_key_at_the_start_is_told_at_once(emulator: Emulator, service: str) -> None:
    """An invalid key is a FlowAuthError of the first request that matters, and is not retried."""
    emulator.add_fault(Fault(times=None, status=401, body=b'{"detail": "expired"}'))
    given = (
        {"flow": FLOW, "inputs": "A chair"}
        if service == "generio"
        else {"flow": SAMPLE_FLOW, "inputs": {"color": "red"}}
    )
    with DAG(f"operator_401_{service}", schedule=None) as dag:
        RunFlowOperator(
            task_id="run", flows_conn_id=f"{service}_default", retries=3, retry_delay=timedelta(0), **given
        )

    error = run_dag(dag).errors["run"]

    assert type(error).__name__ == "FlowAuthError"
    assert [sent.method for sent in emulator.requests] == [
        "GET",
        "POST",
    ]  # what the flow takes, and its start

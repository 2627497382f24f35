"""Test of the tab of a task that has failed before it started a flow run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from airflow.sdk import DAG
from fastapi.testclient import TestClient

from airflow_provider_flows.decorators import task
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.operators import RunFlowOperator
from tests.support.airflow_run import run_dag
from tests.support.plugin_site import airflow_clients, task_path
from tests.support.tries import CHAIR_ARGUMENTS
from tests.support.versions import lacks, needs

pytestmark = pytest.mark.emulator(run_seconds=0, retries=0)

MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "a parameter": ({"parameters": {"qualty": "low"}}, "qualty"),
    "a flow": ({"flow": "model_generate_fromprompts"}, "model_generate_fromprompts"),
    "an input": ({"inputs": "file:///chair.png"}, "inputs[0]"),
    "a template": ({"inputs": "{{ params.get('prompt') }}"}, "inputs"),
    "a path": ({"output_path": "models"}, "output_path"),
    "a line break": ({"parameters": {"qual\nty": "low"}}, "qual"),
}


@pytest.fixture(scope="module")
def viewer(airflow_database: None) -> Iterator[TestClient]:  # noqa: ARG001  # a fixture requests another
    """Yield the client of a user who may read DAGs and XComs, and nothing else."""
    with airflow_clients() as clients:
        yield clients["vera"]


def fail_task(name: str, arguments: dict[str, Any], *, is_decorated: bool) -> str:
    """Run a DAG whose task fails, and return the path of the task's page."""
    dag_id = f"input_error_{'_'.join(name.split())}_{is_decorated}"
    arguments = {**CHAIR_ARGUMENTS, **arguments}
    with DAG(dag_id, schedule=None) as dag:
        if is_decorated:
            inputs = arguments.pop("inputs")
            task.flow(task_id="run", **arguments)(lambda: inputs)()
        else:
            RunFlowOperator(task_id="run", **arguments)
    result = run_dag(dag)
    assert result.errors
    return task_path(dag_id, result.run_id)


@needs("task state store")
@pytest.mark.parametrize("is_decorated", [False, True])
@pytest.mark.parametrize("name", MISTAKES)
def test_tab_says_why_a_task_has_no_flow_run(
    flow_emulator: Emulator, viewer: TestClient, name: str, *, is_decorated: bool
) -> None:
    """The tab of a task with invalid arguments shows the error, as one line, and no flow run was created."""
    arguments, expected = MISTAKES[name]
    if is_decorated and name == "a template":
        pytest.skip("what a function returns is no template")

    page = viewer.get(f"/flows/json/{fail_task(name, arguments, is_decorated=is_decorated)}").json()

    assert page["note"].startswith("The task failed before it started a flow run: ")
    assert expected in page["note"]
    assert page["note"].isprintable()
    assert page["is_error"]
    assert page["run"] is None
    assert not flow_emulator.runs


@lacks("task state store")
def test_tab_says_that_there_is_no_flow_run(flow_emulator: Emulator, viewer: TestClient) -> None:
    """On an Airflow without a task state store, the tab says only that the task has no flow run."""
    path = fail_task("a parameter", MISTAKES["a parameter"][0], is_decorated=False)
    assert viewer.get(f"/flows/json/{path}").json()["note"].startswith("This task instance has no flow run.")
    assert not flow_emulator.runs

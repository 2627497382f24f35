"""Tests of how many requests a task sends to Airflow's API server: each is work for all of an Airflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_provider_flows.operators import RunFlowOperator
from tests.support.airflow_run import DagResult, run_dag
from tests.support.api_requests import record_api_requests
from tests.support.modes import FAST_POLLING, TASK_ID
from tests.support.tries import CHAIR_ARGUMENTS
from tests.support.versions import has

START = ["PATCH run", "PUT rtif"]
END = ["PATCH state"]
RESULT = ["POST return_value", *END]
RECORD = ["PUT flow_run_record"] if has("task state store") else []
FILES = ["PUT flow_file_records"] if has("task state store") else []
RUN_ID = ["POST flow_run_id"]


def record_task(task: Any, dag_id: str, **arguments: Any) -> tuple[list[str], DagResult]:
    """Run a DAG of one task; return the requests and the result."""
    with DAG(dag_id, schedule=None) as dag:
        task(task_id=TASK_ID, **arguments)
    with record_api_requests() as requests:
        result = run_dag(dag)
    assert result.state == "success", result.log
    return requests, result


@pytest.mark.emulator(run_seconds=0.3)
@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("has_files", [False, True])
@pytest.mark.parametrize("deferrable", [False, True])
def test_first_try_sends_few_requests(tmp_path: Path, *, deferrable: bool, has_files: bool) -> None:
    """Beyond Airflow's own requests, a first try saves its record, its id, its files and its result: once."""
    pause = [*END, *START] if deferrable else []
    requests, _ = record_task(
        RunFlowOperator,
        f"requests_{deferrable}_{has_files}",
        **CHAIR_ARGUMENTS,
        **FAST_POLLING,
        deferrable=deferrable,
        output_path=str(tmp_path) if has_files else None,
    )
    assert requests == [*START, *RECORD, *RUN_ID, *pause, *(FILES if has_files else []), *RESULT]


@pytest.mark.emulator(run_seconds=0)
@pytest.mark.usefixtures("emulator")
def test_outputs_are_pushed_only_if_a_task_refers_to_them(tmp_path: Path) -> None:
    """They are in the returned dict; the key `outputs` is for `first.output["outputs"]`, also if mapped."""
    several = {name: value for name, value in CHAIR_ARGUMENTS.items() if name != "inputs"}
    arguments = {**FAST_POLLING, "output_path": str(tmp_path)}
    shrink = {"flow": "model_optimize", "parameters": {"polygon_count": 500}}
    with DAG("requests_outputs", schedule=None, default_args=arguments) as dag:
        first = RunFlowOperator(task_id="first", **CHAIR_ARGUMENTS)
        second = RunFlowOperator(task_id="second", **CHAIR_ARGUMENTS)
        mapped = RunFlowOperator.partial(task_id="mapped", **several).expand(inputs=["A chair"])
        RunFlowOperator(task_id="last", inputs=first.output["outputs"], **shrink) >> mapped
        RunFlowOperator.partial(
            task_id="shrink", flow="model_optimize", inputs=mapped.output["outputs"]
        ).expand(parameters=[{"polygon_count": 500}])
        mapped >> second
    result = run_dag(dag)
    assert result.state == "success", result.log
    assert {task for task, xcoms in result.xcoms.items() if "outputs" in xcoms} == {"first", "mapped[0]"}
    assert result.xcoms["first"]["outputs"] == result.xcoms["first"]["return_value"]["outputs"]

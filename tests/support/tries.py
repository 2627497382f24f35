"""Tasks with retries: run to their end in a DAG run, or prepared so that an earlier try has left a record."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from airflow.models.taskinstance import TaskInstance
from airflow.sdk import DAG
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_provider_flows.core.start_or_resume import RunRecord
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.hooks import GenerioHook
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.worker.task_state import RECORD_KEY
from tests.support.airflow_run import DagResult, run_dag
from tests.support.modes import FLOW, package_log_lines
from tests.support.task_instances import Store
from tests.support.versions import has

CHAIR_ARGUMENTS: dict[str, Any] = {"flow": FLOW, "inputs": "A chair", "parameters": {"quality": "low"}}
CHAIN_ARGUMENTS: dict[str, Any] = {
    "flow": "clibnwpno000bmc0k9hvv3y7f",
    "inputs": {"color": "red", "item": "ball"},
    "flows_conn_id": "promptchainer_default",
}
RETRY_ARGUMENTS: dict[str, Any] = {
    "retries": 1,
    "retry_delay": timedelta(0),
    "poll_interval": 0.1,
    "max_poll_interval": 0.2,
}
BOTH_MODES = pytest.mark.parametrize("deferrable", [False, True])


@dataclass
class TaskResult:
    """How a task with retries ended."""

    result: DagResult
    tries: int
    record: Any

    @property
    def state(self) -> str | None:
        """The task's state."""
        return self.result.states["run"]

    @property
    def error(self) -> BaseException:
        """The error of its last failed try."""
        return self.result.errors["run"]

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """The outputs that it returned."""
        found: list[dict[str, Any]] = self.result.xcoms["run"]["return_value"]["outputs"]
        return found

    def count_log_lines(self, text: str) -> int:
        """Return the number of the package's own log lines that contain a text."""
        return sum(text in line for line in package_log_lines(self.result.log))


def run_with_retries(dag_id: str, **arguments: Any) -> TaskResult:
    """Run one task with retries to its end."""
    with DAG(dag_id, schedule=None) as dag:
        RunFlowOperator(task_id="run", **{**RETRY_ARGUMENTS, **arguments})
    result = run_dag(dag)
    with create_session() as session:
        tries = session.scalar(select(TaskInstance.try_number).where(TaskInstance.run_id == result.run_id))
    return TaskResult(result, tries or 0, _saved_record(result.run_id) if has("task state store") else None)


def _saved_record(run_id: str) -> Any:
    from airflow.models.task_state_store import TaskStateStoreModel

    with create_session() as session:
        conditions = (TaskStateStoreModel.run_id == run_id, TaskStateStoreModel.key == RECORD_KEY)
        record = session.scalar(select(TaskStateStoreModel.value).where(*conditions))
    return record and json.loads(record)


def request_times(emulator: Emulator, method: str, suffix: str = "") -> list[float]:
    """Return the times of the requests with this method whose path ends so."""
    return [
        recorded.at
        for recorded in emulator.requests
        if recorded.method == method and recorded.path.endswith(suffix)
    ]


def run_states(emulator: Emulator) -> list[str]:
    """Return the states of all flow runs at the emulator."""
    return [str(run.state) for run in emulator.runs.values()]


def start_earlier_run(run_request: Any, generation: int) -> Store:
    """Start a flow run as an earlier try, and return the store with its record."""
    records: list[Any] = []
    GenerioHook("generio_default").start_from_request(
        run_request, record=RunRecord(run_request.fingerprint, generation), save=records.append
    )
    return Store({RECORD_KEY: records[-1].to_dict()})


def create_retry(**arguments: Any) -> tuple[RunFlowOperator, Store]:
    """Return the operator of a retry, and the store with the record of the earlier try's active run."""
    run_request = GenerioHook("generio_default").build_request(
        CHAIR_ARGUMENTS["flow"], CHAIR_ARGUMENTS["inputs"], CHAIR_ARGUMENTS["parameters"], None
    )
    return RunFlowOperator(
        task_id="t", **{**CHAIR_ARGUMENTS, "poll_interval": 0.1, **arguments}
    ), start_earlier_run(run_request, 3)

"""One task with retries, run to its end, and what its tries left behind; it asserts nothing.

The state store is read as it lies in Airflow's database.
"""

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

from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.worker.task_state import KEY
from tests.support.airflow_run import DagResult, run_dag
from tests.support.modes import FLOW, own_lines
from tests.support.versions import has

CHAIR: dict[str, Any] = {"flow": FLOW, "inputs": "A chair", "parameters": {"quality": "low"}}
CHAIN: dict[str, Any] = {
    "flow": "clibnwpno000bmc0k9hvv3y7f",
    "inputs": {"color": "red", "item": "ball"},
    "flows_conn_id": "promptchainer_default",
}
AGAIN: dict[str, Any] = {
    "retries": 1,
    "retry_delay": timedelta(0),
    "poll_interval": 0.1,
    "max_poll_interval": 0.2,
}
BOTH = pytest.mark.parametrize("deferrable", [False, True])


@dataclass
class Ended:
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
        """What ended its last failed try."""
        return self.result.errors["run"]

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """What it returned of outputs."""
        found: list[dict[str, Any]] = self.result.xcoms["run"]["return_value"]["outputs"]
        return found

    def told(self, part: str) -> int:
        """Count the lines of our own that hold this."""
        return sum(part in line for line in own_lines(self.result.log))


def tried(dag_id: str, **given: Any) -> Ended:
    """Run one task with retries to its end."""
    with DAG(dag_id, schedule=None) as dag:
        RunFlowOperator(task_id="run", **{**AGAIN, **given})
    result = run_dag(dag)
    with create_session() as session:
        tries = session.scalar(select(TaskInstance.try_number).where(TaskInstance.run_id == result.run_id))
    return Ended(result, tries or 0, _kept(result.run_id) if has("task state store") else None)


def _kept(run_id: str) -> Any:
    from airflow.models.task_state_store import TaskStateStoreModel

    with create_session() as session:
        mine = (TaskStateStoreModel.run_id == run_id, TaskStateStoreModel.key == KEY)
        record = session.scalar(select(TaskStateStoreModel.value).where(*mine))
    return record and json.loads(record)


def request(emulator: Emulator, method: str, ending: str = "") -> list[float]:
    """Give the moments of the requests with this method whose path ends so."""
    return [asked.at for asked in emulator.requests if asked.method == method and asked.path.endswith(ending)]


def set_up(flow_emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """Let runs take no time and aborts happen at once, asked by connections that send nothing twice."""
    flow_emulator.run_seconds = 0
    flow_emulator.switches.abort = "instant"
    for name, connection in flow_emulator.connections.items():
        monkeypatch.setenv(name, json.dumps({**json.loads(connection), "extra": {"retries": 0}}))
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "-1")
    return flow_emulator

"""Tests of what a killed task does to its flow run while Airflow says that the task goes on, and of how Airflow is asked.

What it does when the task is really over needs a real supervisor: test_stack.py.
"""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from airflow.jobs.triggerer_job_runner import ToTriggerSupervisor
from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowTaskTimeout
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import GetTaskStates

from airflow_provider_flows.emulator import Emulator, Plan
from airflow_provider_flows.kills import is_over
from airflow_provider_flows.operators import RunFlowOperator
from tests.airflow_run import run_dag
from tests.modes import FLOW, OFTEN, own_lines


def test_task_that_goes_on_leaves_its_run_alone(flow_emulator: Emulator) -> None:
    """on_kill while Airflow says that the task is running aborts nothing, and the retry goes on with the same flow run."""
    flow_emulator.plan(Plan(run_seconds=3))
    with DAG("kill_running", schedule=None) as dag:
        RunFlowOperator(
            task_id="run",
            flow=FLOW,
            inputs="A chair",
            parameters={"quality": "low"},
            execution_timeout=timedelta(seconds=2),  # Airflow calls on_kill when it is over
            retries=3,
            retry_delay=timedelta(0),
            **OFTEN,
        )

    result = run_dag(dag)

    assert isinstance(result.errors["run"], AirflowTaskTimeout)
    assert result.state == "success"
    flow_run_id = result.xcoms["run"]["return_value"]["flow_run_id"]
    assert f"info: The task is not over for Airflow; flow run {flow_run_id} goes on" in own_lines(result.log)
    assert flow_emulator.started == 1
    assert not any(asked.method == "PATCH" and asked.json == {"action": "abort"} for asked in flow_emulator.requests)


@pytest.mark.usefixtures("airflow_database")
def test_airflow_tells_which_tasks_are_over() -> None:
    """Asked about any task instance of the run, mapped or not, Airflow's answer is read right."""
    with DAG("kill_states", schedule=None) as dag:

        @task
        def divide(by: int) -> float:
            return 1 / by

        @task
        def plain() -> None:
            pass

        @task(trigger_rule="all_done")
        def ask(ti: Any = None) -> dict[str, bool]:
            def over(task_id: str, map_index: int = -1) -> bool:
                place = {"dag_id": ti.dag_id, "run_id": ti.run_id, "task_id": task_id, "map_index": map_index}
                return is_over(SimpleNamespace(**place, get_task_states=ti.get_task_states))

            return {
                "itself": is_over(ti),
                "done": over("plain"),
                "mapped done": over("divide", 0),
                "mapped failed": over("divide", 1),
                "not begun": over("later"),
                "unknown": over("nothing"),
            }

        @task
        def later() -> None:
            pass

        [divide.expand(by=[1, 0]), plain()] >> ask() >> later()

    assert run_dag(dag).xcoms["ask"]["return_value"] == {
        "itself": False,
        "done": True,
        "mapped done": True,
        "mapped failed": True,
        "not begun": False,
        "unknown": False,
    }


def test_airflows_message_is_where_the_trigger_looks_for_it() -> None:
    """Airflow's triggerer still takes the question for a task's state that a trigger sends."""
    known = get_args(get_args(ToTriggerSupervisor)[0])

    assert GetTaskStates in known
    assert {"dag_id", "map_index", "task_ids", "run_ids"} <= set(GetTaskStates.model_fields)
    assert "SUPERVISOR_COMMS" in task_runner.__annotations__

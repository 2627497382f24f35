"""Tests of kills of tasks that are not finished in Airflow, and of the check of a task's state.

Kills of finished tasks need a real supervisor: test_stack.py.
"""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, get_args
from uuid import uuid4

import pytest
from airflow.jobs.triggerer_job_runner import ToTriggerSupervisor
from airflow.providers.common.compat.sdk import AirflowTaskTimeout
from airflow.sdk import DAG, task, task_group
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import GetTaskStates, GetXCom

from airflow_provider_flows.emulator import Emulator, Fault, Plan
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.worker.kill_check import FINISHED_STATES, read_task_state
from tests.support.airflow_run import THREAD_TIMEOUT, run_dag
from tests.support.modes import FAST_POLLING, FLOW, count_polls, package_log_lines
from tests.support.versions import needs

pytestmark = THREAD_TIMEOUT

CHAIR: dict[str, Any] = {"flow": FLOW, "inputs": "A chair", "parameters": {"quality": "low"}}


def aborts(emulator: Emulator) -> int:
    """Return the number of requests that abort a run."""
    return sum(
        request.method == "PATCH" and request.json == {"action": "abort"} for request in emulator.requests
    )


def is_task_finished(ti: Any) -> bool:
    """Return whether a task instance is finished in Airflow."""
    return read_task_state(ti) in FINISHED_STATES


def test_task_that_continues_does_not_abort_its_run(flow_emulator: Emulator) -> None:
    """on_kill after a SIGTERM aborts nothing while the task is running in Airflow."""
    flow_emulator.add_plan(Plan(run_seconds=2))
    before = signal.getsignal(signal.SIGTERM)
    with DAG("kill_running", schedule=None) as dag:
        RunFlowOperator(task_id="run", **CHAIR, **FAST_POLLING)

    def evict() -> None:
        while count_polls(flow_emulator) < 3:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = Thread(target=evict)
    thread.start()
    result = run_dag(dag)
    thread.join()
    signal.signal(signal.SIGTERM, before)

    assert result.state == "success", result.log
    flow_run_id = result.xcoms["run"]["return_value"]["flow_run_id"]
    assert (
        f"info: The task is not finished in Airflow; flow run {flow_run_id} continues"
        in package_log_lines(result.log)
    )
    assert (flow_emulator.started_count, aborts(flow_emulator)) == (1, 0)


@needs("task state store")
def test_kill_during_the_fetch_leaves_the_run_to_the_retry(flow_emulator: Emulator, tmp_path: Path) -> None:
    """An execution_timeout during a download leaves the run to the retry, and no partial file."""
    flow_emulator.run_seconds = 0
    flow_emulator.add_fault(Fault("GET", "*/outputs/*", delay=10))
    given = {"execution_timeout": timedelta(seconds=3), "retries": 1, "retry_delay": timedelta(0)}
    with DAG("kill_fetching", schedule=None) as dag:
        RunFlowOperator(task_id="run", output_path=str(tmp_path), **CHAIR, **FAST_POLLING, **given)

    result = run_dag(dag)

    assert isinstance(result.errors["run"], AirflowTaskTimeout)
    assert result.state == "success", result.log
    (output,) = result.xcoms["run"]["return_value"]["outputs"]
    assert [f"file://{path}" for path in tmp_path.rglob("*") if path.is_file()] == [output["uri"]]
    assert (flow_emulator.started_count, aborts(flow_emulator)) == (1, 0)


@pytest.mark.usefixtures("airflow_database")
def test_finished_tasks_are_distinguished_from_active_ones() -> None:
    """The state of any task instance of the DAG run, mapped or not, is parsed correctly."""
    with DAG("kill_states", schedule=None) as dag:

        @task
        def divide(by: int) -> float:
            return 1 / by

        @task
        def plain() -> None:
            pass

        @task(trigger_rule="all_done")
        def ask(ti: Any = None) -> dict[str, bool]:
            def place(ti: Any) -> dict[str, Any]:
                names = ("dag_id", "run_id", "task_id", "map_index", "get_task_states")
                return {name: getattr(ti, name) for name in names}

            def over(task_id: str, map_index: int = -1) -> bool:
                return is_task_finished(
                    SimpleNamespace(**{**place(ti), "task_id": task_id, "map_index": map_index})
                )

            return {
                "itself": is_task_finished(ti),
                "done": over("plain"),
                "mapped done": over("divide", 0),
                "mapped failed": over("divide", 1),
                "not begun": over("later"),
                "gone": over("nothing"),
                "gone with its DAG run": is_task_finished(
                    SimpleNamespace(**{**place(ti), "run_id": "no such run"})
                ),
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
        "gone": True,
        "gone with its DAG run": True,
    }


@needs("task loops")
@pytest.mark.usefixtures("airflow_database")
def test_iterations_of_a_loop_are_distinguished() -> None:
    """In a task loop the state of a task is that of its own iteration, not of the latest one."""
    with DAG("kill_loop", schedule=None) as dag:

        @task_group
        def again() -> None:
            @task
            def first() -> None:
                pass

            @task
            def ask(ti: Any = None) -> dict[str, bool]:
                def over(name: str, region_index: int, **other: Any) -> bool:
                    names = ("dag_id", "run_id", "map_index", "region_id")
                    names += ("get_task_states", "get_task_breadcrumbs", "get_template_context")
                    same = {name: getattr(ti, name) for name in names}
                    place = {"task_id": f"again.{name}", "region_index": region_index}
                    return is_task_finished(SimpleNamespace(**(same | place | other)))

                return {
                    "itself": is_task_finished(ti),
                    "first": over("first", 1),
                    "later": over("later", 1),
                    "first of the first iteration": over("first", 0),
                    "later of the first iteration": over("later", 0),
                    "first of a replaced region": over("first", 0, region_id=uuid4()),
                    "gone with its DAG run": over("first", 0, run_id="no such run"),
                }

            @task
            def later() -> None:
                pass

            first() >> ask() >> later()

        again.loop(max_iterations=2)

    result = run_dag(dag)

    assert result.state == "success", result.log
    assert result.xcoms["again.ask[1]"]["return_value"] == {
        "itself": False,
        "first": True,
        "later": False,
        "first of the first iteration": True,
        "later of the first iteration": True,
        "first of a replaced region": False,
        "gone with its DAG run": True,
    }


def test_airflow_still_has_the_message_that_a_trigger_sends() -> None:
    """Airflow's triggerer still accepts the message with which a trigger requests a task's state."""
    known = get_args(get_args(ToTriggerSupervisor)[0])

    assert {GetTaskStates, GetXCom} <= set(known)
    assert {"dag_id", "map_index", "task_ids", "run_ids"} <= set(GetTaskStates.model_fields)
    assert "SUPERVISOR_COMMS" in task_runner.__annotations__

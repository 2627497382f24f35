"""Tests of the tab and the links of tasks with several tries, on a real database and through Airflow's API.

Since Airflow 3.4 each try is a row of its own, with XComs of its own, and mapped tasks have a region.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pendulum
import pytest
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import Trigger
from airflow.sdk import DAG, task_group
from airflow.sdk.definitions.dag import _run_task
from airflow.utils.session import create_session
from fastapi.testclient import TestClient
from sqlalchemy import select

from airflow_provider_flows.emulator import Emulator, Plan
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.plugin.airflow_internals import load_task_instance
from airflow_provider_flows.plugin.cache import RESPONSE_CACHE
from airflow_provider_flows.triggers import FlowRunTrigger
from tests.support.airflow_run import run_dag
from tests.support.modes import FAST_POLLING
from tests.support.plugin_site import airflow_clients, task_path
from tests.support.tries import CHAIR_ARGUMENTS
from tests.support.versions import has, needs

pytestmark = pytest.mark.emulator(run_seconds=0, abort="instant", retries=0)

UNMAPPED = {name: value for name, value in CHAIR_ARGUMENTS.items() if name != "inputs"}


@pytest.fixture(scope="module")
def client(airflow_database: None) -> Iterator[TestClient]:  # noqa: ARG001  # a fixture requests another
    """Yield a client of an administrator, who may clear and mark tasks."""
    with airflow_clients() as clients:
        yield clients["anna"]


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    """Clear the responses that the pages have cached."""
    RESPONSE_CACHE.clear()


def get_page(client: TestClient, path: str) -> dict[str, Any]:
    """Return a page of a run as JSON."""
    response = client.get(f"/flows/json/{path}")
    assert response.status_code == 200, response.text
    page: dict[str, Any] = response.json()
    return page


def clear(client: TestClient, dag_id: str, run_id: str, task: Any = "run") -> None:
    """Clear a task as Airflow's UI does, a mapped one by `(task_id, map_index)`."""
    body = {"dry_run": False, "only_failed": False, "dag_run_id": run_id, "task_ids": [task]}
    response = client.post(f"/api/v2/dags/{dag_id}/clearTaskInstances", json=body)
    assert response.status_code == 200, response.text


def run_next_try(dag: DAG, run_id: str, map_index: int = -1) -> None:
    """Start the DAG run of a cleared task, as the scheduler does; run the task as `dag.test()` does."""
    with create_session() as session:
        dag_run = session.scalars(select(DagRun).filter_by(dag_id=dag.dag_id, run_id=run_id)).one()
        dag_run.state, dag_run.start_date = "running", pendulum.now("UTC")
        ti = session.scalars(
            select(TaskInstance).filter_by(dag_id=dag.dag_id, run_id=run_id, map_index=map_index)
        ).one()
        ti.state = "scheduled"
        if not has("attempts"):
            ti.try_number += 1  # as the scheduler does; later, the row of the next try has its number already
    _run_task(ti=ti, task=dag.task_dict["run"])


def test_a_task_that_waits_for_its_retry_shows_the_failed_try(emulator: Emulator) -> None:
    """On Airflow 3.4 the next try has a row already, without any data: the tab shows the failed one."""
    emulator.add_plan(Plan(outcome="failed"))
    with DAG("attempts_retry", schedule=None) as dag:
        RunFlowOperator(task_id="run", **CHAIR_ARGUMENTS, **FAST_POLLING)
    result = run_dag(dag)
    assert result.state == "failed", result.log
    with create_session() as session:  # as Airflow's execution API does when a try fails
        ti = session.scalars(select(TaskInstance).filter_by(run_id=result.run_id)).one()
        ti.state = "up_for_retry"
        if has("attempts"):
            ti.prepare_db_for_next_try(session)
    (first,) = emulator.runs
    waiting = load_task_instance(dag.dag_id, result.run_id, "run", -1)
    assert waiting is not None
    assert (waiting.state, waiting.try_number, waiting.flow_run_id) == ("up_for_retry", 1, first)
    assert waiting.fields["flow"] == CHAIR_ARGUMENTS["flow"]

    run_next_try(dag, result.run_id)
    after = load_task_instance(dag.dag_id, result.run_id, "run", -1)
    second = [*emulator.runs][-1]
    assert second != first
    assert after is not None
    assert (after.state, after.try_number, after.flow_run_id) == ("success", 2, second)
    assert after.result["flow_run_id"] == second
    assert after.earlier_runs == (((first, 1),) if has("attempts") else ())


def test_a_cleared_task_shows_its_latest_run_and_links_to_the_earlier_one(
    client: TestClient, emulator: Emulator
) -> None:
    """The tab shows the old run until the next try starts one, and then both, whatever a Clear deletes."""
    with DAG("attempts_clear", schedule=None) as dag:
        RunFlowOperator(task_id="run", **CHAIR_ARGUMENTS, **FAST_POLLING)
    result = run_dag(dag)
    path = task_path(dag.dag_id, result.run_id)
    (first,) = emulator.runs
    clear(client, dag.dag_id, result.run_id)
    page = get_page(client, path)
    assert (page["task_state"], page["run"]["flow_run_id"], page["run"]["state"]) == (
        None,
        first,
        "completed",
    )
    assert page["outputs"]

    run_next_try(dag, result.run_id)
    page = get_page(client, path)
    second = [*emulator.runs][-1]
    assert (page["task_state"], page["try_number"]) == ("success", 2)
    assert (page["run"]["flow_run_id"], page["run"]["state"]) == (second, "completed")
    if not has("task state store"):
        return
    assert second != first
    assert page["previous_runs"] == [{"flow_run_id": first, "last_try": 1}]
    previous = get_page(client, f"{path}/previous/{first}")
    assert (previous["run"]["flow_run_id"], previous["note"]) == (first, None)
    assert previous["outputs"]


@needs("task state store")
def test_each_mapped_instance_has_its_own_run_and_record(client: TestClient, emulator: Emulator) -> None:
    """A Clear of one mapped instance changes the tab of no other."""
    with DAG("attempts_mapped", schedule=None) as dag:
        RunFlowOperator.partial(task_id="run", **UNMAPPED, **FAST_POLLING).expand(
            inputs=["A chair", "A table"]
        )
    result = run_dag(dag)
    ids = [result.xcoms[f"run[{index}]"]["return_value"]["flow_run_id"] for index in range(2)]
    clear(client, dag.dag_id, result.run_id, ("run", 1))
    run_next_try(dag, result.run_id, 1)
    assert len(emulator.runs) == 3
    pages = [get_page(client, task_path(dag.dag_id, result.run_id, map_index=index)) for index in range(2)]
    assert [page["run"]["flow_run_id"] for page in pages] == [ids[0], [*emulator.runs][-1]]
    assert [page["try_number"] for page in pages] == [1, 2]
    assert [page["previous_runs"] for page in pages] == [[], [{"flow_run_id": ids[1], "last_try": 1}]]
    for index in range(2):
        ti_data = load_task_instance(dag.dag_id, result.run_id, "run", index)
        assert ti_data is not None
        assert ti_data.run_record["flow_run_id"] == ti_data.flow_run_id
        assert load_task_instance(*ti_data.key) == ti_data
        assert (ti_data.key.region_id is not None) is has("attempts")
    assert load_task_instance(dag.dag_id, result.run_id, "run", 2) is None


@needs("attempts")
def test_the_links_of_an_earlier_try_lead_to_its_run(client: TestClient, emulator: Emulator) -> None:
    """Airflow 3.4 asks for the links of the try that a user selects."""
    emulator.add_plan(Plan(outcome="failed"))
    with DAG("attempts_links", schedule=None) as dag:
        RunFlowOperator(task_id="run", **CHAIR_ARGUMENTS, **FAST_POLLING, retries=1, retry_delay=timedelta(0))
    result = run_dag(dag)
    path = task_path(dag.dag_id, result.run_id)
    first, second = emulator.runs
    api = f"/api/v2/dags/{dag.dag_id}/dagRuns/{result.run_id}/taskInstances/run/links"
    links = [client.get(api, params={"try_number": number}).json()["extra_links"] for number in (1, 2)]
    assert [link["Flow run"].partition("/flows/")[2] for link in links] == [f"{path}/previous/{first}", path]
    assert get_page(client, f"{path}/previous/{first}")["run"]["state"] == "failed"
    assert get_page(client, path)["run"]["flow_run_id"] == second


@needs("task loops")
def test_each_iteration_of_a_loop_has_its_own_page(client: TestClient, emulator: Emulator) -> None:
    """The links of an iteration lead to its run; a page without an iteration is that of the last one."""
    with DAG("attempts_loop", schedule=None) as dag:

        @task_group
        def again() -> None:
            RunFlowOperator(task_id="run", **CHAIR_ARGUMENTS, **FAST_POLLING)

        again.loop(max_iterations=2)
    result = run_dag(dag)
    assert result.state == "success", result.log
    task_id = "again.run"
    with create_session() as session:
        instances = session.scalars(
            select(TaskInstance)
            .filter_by(run_id=result.run_id, task_id=task_id)
            .order_by(TaskInstance.region_index)
        ).all()
        regions = [(str(ti.region_id), ti.region_index) for ti in instances]
    api = f"/api/v2/dags/{dag.dag_id}/dagRuns/{result.run_id}/taskInstances/{task_id}/links"
    seen = []
    for region_id, index in regions:
        params = {"region_id": region_id, "region_index": index}
        link = client.get(api, params=params).json()["extra_links"]["Flow run"].partition("/flows/")[2]
        assert link == task_path(dag.dag_id, result.run_id, task_id, f"{index}@{region_id}").replace(
            "%40", "@"
        )
        page = get_page(client, link)
        assert page["note"] is None
        seen.append(page["run"]["flow_run_id"])
        ti_data = load_task_instance(dag.dag_id, result.run_id, task_id, index, region_id)
        assert ti_data is not None
        assert ti_data.run_record["flow_run_id"] == seen[-1]
    assert seen == [*emulator.runs]
    last = get_page(client, task_path(dag.dag_id, result.run_id, task_id, "{MAP_INDEX}"))
    assert last["run"]["flow_run_id"] == seen[-1]
    missing = task_path(dag.dag_id, result.run_id, task_id, f"9@{regions[0][0]}")
    assert client.get(f"/flows/json/{missing}").status_code == 404


@pytest.mark.parametrize("state", ["failed", "success", pytest.param("skipped", marks=needs("teams"))])
def test_a_mark_through_the_api_aborts_the_run_of_the_marked_instance(
    client: TestClient, emulator: Emulator, state: str
) -> None:
    """Airflow calls the listener with the instance and its trigger; another instance's run continues."""
    emulator.run_seconds = 3600
    with DAG(f"attempts_mark_{state}", schedule=None) as dag:
        RunFlowOperator.partial(task_id="run", **UNMAPPED, wait_for_completion=False).expand(
            inputs=["A chair", "A table"]
        )
    result = run_dag(dag)
    ids = [result.xcoms[f"run[{index}]"]["flow_run_id"] for index in range(2)]
    with create_session() as session:
        for ti in session.scalars(select(TaskInstance).filter_by(dag_id=dag.dag_id, run_id=result.run_id)):
            row = Trigger.from_object(
                FlowRunTrigger("generio_default", ids[ti.map_index], abort_on_kill=True)
            )
            session.add(row)
            session.flush()
            ti.trigger_id, ti.state = row.id, "deferred"
    response = client.patch(
        f"/api/v2/dags/{dag.dag_id}/dagRuns/{result.run_id}/taskInstances/run/1", json={"new_state": state}
    )
    assert response.status_code == 200, response.text
    deadline = time.monotonic() + 20
    while emulator.runs[ids[1]].state != "aborted" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [emulator.runs[flow_run_id].state == "aborted" for flow_run_id in ids] == [False, True]

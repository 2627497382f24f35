"""Tests of the links on a task instance, as Airflow's server reads them: the run at the service, and the output files.

Links that a service hands out are tested in test_links.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.taskinstance import TaskInstance
from airflow.sdk import DAG
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_provider_flows.emulator import Emulator, Fault, Plan
from airflow_provider_flows.flow.errors import FlowTimeout
from airflow_provider_flows.flow.run import FlowRun
from airflow_provider_flows.flow.services.generio import Generio
from airflow_provider_flows.hooks import FlowsHook, GenerioHook
from airflow_provider_flows.links import RUN_LINK_KEY
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.places import web_address
from airflow_provider_flows.sensors import FlowRunSensor
from tests.airflow_run import DagResult, run_dag
from tests.bucket import BUCKET, ObjectServer
from tests.modes import MODES, OPERATORS, SENSORS, TASK
from tests.test_bucket import STORE
from tests.tries import CHAIN, CHAIR, tried

OFTEN = {"poll_interval": 0.1, "max_poll_interval": 0.2}


@pytest.fixture
def emulator(flow_emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """Give an emulator whose runs are short, and triggers that need not wait before their event goes."""
    flow_emulator.run_seconds = 0.3
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "-1")
    return flow_emulator


def links(dag: DAG, result: DagResult) -> dict[str, dict[str, str | None]]:
    """Give each task instance's links as Airflow's API does: from the serialised DAG, which knows none of our classes."""
    found: dict[str, dict[str, str | None]] = {}
    with create_session() as session:
        served = SerializedDagModel.get_dag(dag.dag_id, session=session)
        assert served is not None
        for ti in session.scalars(select(TaskInstance).where(TaskInstance.run_id == result.run_id)):
            task = served.get_task(ti.task_id)
            name = ti.task_id if ti.map_index < 0 else f"{ti.task_id}[{ti.map_index}]"
            found[name] = {link: task.get_extra_links(ti, link) or None for link in task.extra_links}
    return found


@pytest.mark.parametrize("mode", MODES)
def test_run_is_linked_in_every_mode(emulator: Emulator, mode: str) -> None:
    """The link leads to the run at the API, whichever way it was waited for; files that stayed there have none."""
    dag_id = "links_" + "".join(filter(str.isalpha, mode))
    with DAG(dag_id, schedule=None) as dag:
        if mode in OPERATORS:
            OPERATORS[mode](task_id=TASK, **OFTEN)
        else:
            run = FlowsHook.get_hook("flows_default").start(CHAIR["flow"], CHAIR["inputs"])
            SENSORS[mode](task_id=TASK, flow_run_id=run.flow_run_id, **OFTEN)
    result = run_dag(dag)
    assert result.state == "success", result.log
    (flow_run_id,) = emulator.runs
    assert links(dag, result) == {TASK: {"Flow run": f"{emulator.url}/flows/{flow_run_id}", "Outputs": None}}
    assert emulator.key not in json.dumps(result.xcoms)


def test_link_is_there_while_the_run_is_waited_for(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link is pushed before the first look, under the key that Airflow's server reads it by."""
    from airflow.models.xcom import XComModel

    emulator.run_seconds = 1
    seen: list[Any] = []

    def progress(_: dict[str, Any]) -> None:
        with create_session() as session:
            seen.extend(session.scalars(select(XComModel.value).where(XComModel.key == RUN_LINK_KEY, XComModel.dag_id == "early")))

    with DAG("early", schedule=None) as dag:
        RunFlowOperator(task_id=TASK, **CHAIR, **OFTEN)
    monkeypatch.setattr(emulator, "_on_look", progress, raising=False)
    result = run_dag(dag)
    assert result.state == "success"

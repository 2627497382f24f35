"""Tests of what the tab shows if Airflow's backends put XComs and states elsewhere than in its database."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from airflow.models.xcom import XComModel
from airflow.sdk import DAG
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.plugin.airflow_internals import (
    TaskInstanceData,
    load_file_records,
    load_task_instance,
)
from airflow_provider_flows.plugin.run_view import Ownership, RunView, get_task_run_view
from tests.support.airflow_run import run_dag
from tests.support.modes import FAST_POLLING
from tests.support.tries import BOTH_MODES, CHAIR_ARGUMENTS
from tests.support.versions import has, needs
from tests.support.xcom_backends import use_referenced_states

pytestmark = [pytest.mark.emulator(run_seconds=0.2), pytest.mark.usefixtures("airflow_database")]


def run_task(dag_id: str, **arguments: Any) -> TaskInstanceData:
    """Run a task, and return what is stored of it."""
    with DAG(dag_id, schedule=None) as dag:
        RunFlowOperator(task_id="run", **CHAIR_ARGUMENTS, **FAST_POLLING, **arguments)
    result = run_dag(dag)
    assert result.state == "success", result.log
    ti_data = load_task_instance(dag_id, result.run_id, "run", -1)
    assert ti_data is not None
    return ti_data


def get_view(ti_data: TaskInstanceData) -> RunView:
    """Return the view of a task's flow run."""
    return asyncio.run(get_task_run_view(ti_data))


@BOTH_MODES
def test_xcoms_are_read_as_their_backend_does(
    emulator: Emulator, object_storage_xcoms: Path, tmp_path: Path, *, deferrable: bool
) -> None:
    """With an object storage for XComs, the tab shows the run and its outputs."""
    ti_data = run_task(f"backend_{deferrable}", deferrable=deferrable, output_path=str(tmp_path / "out"))
    with create_session() as session:
        stored = list(
            session.scalars(select(XComModel.value).where(XComModel.dag_id == f"backend_{deferrable}"))
        )
    assert stored
    assert all(str(value).startswith(object_storage_xcoms.as_uri()) for value in stored)
    (flow_run_id,) = emulator.runs
    view = get_view(ti_data)
    ownership = Ownership.CONFIRMED if has("task state store") else Ownership.UNRECORDED
    assert (view.flow_run_id, view.error, view.ownership) == (flow_run_id, None, ownership)
    assert view.run is not None
    assert view.run.is_completed
    (output,) = view.outputs
    assert Path(str(output.uri).removeprefix("file://")).is_file()


@needs("task state store")
def test_xcoms_out_of_reach_leave_the_recorded_run(emulator: Emulator, object_storage_xcoms: Path) -> None:
    """If the API server cannot read the object storage, the tab shows the run of the task's own record."""
    before = run_task("backend_gone")
    shutil.rmtree(object_storage_xcoms)
    assert before.key is not None
    ti_data = load_task_instance(*before.key)
    assert ti_data is not None
    assert ti_data.result is None
    view = get_view(ti_data)
    assert (view.flow_run_id, view.error) == (next(iter(emulator.runs)), None)
    assert view.run is not None
    assert view.run.is_completed


@needs("task state store")
@pytest.mark.usefixtures("emulator")
def test_states_are_read_as_the_backend_of_the_workers_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """References of a worker's backend are followed; those that cannot be are no records."""
    with use_referenced_states(monkeypatch, tmp_path / "states") as folder:
        ti_data = run_task("state_backend", output_path=str(tmp_path / "out"))
        assert ti_data.key is not None
        assert len(list(folder.iterdir())) >= 2
        assert json.loads(json.dumps(ti_data.run_record))["flow_run_id"] == ti_data.flow_run_id
        assert get_view(ti_data).ownership is Ownership.CONFIRMED
        (record,) = load_file_records(ti_data.key, ti_data.flow_run_id).values()
        assert record["uri"].startswith(f"file://{tmp_path}/out/")
        shutil.rmtree(folder)
        unreadable = load_task_instance(*ti_data.key)
        assert unreadable is not None
        assert (unreadable.run_record, load_file_records(ti_data.key, ti_data.flow_run_id)) == (None, {})
    without_backend = load_task_instance(*ti_data.key)
    assert without_backend is not None
    assert without_backend.run_record is None

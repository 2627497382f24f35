"""Tests of the listener for finished tasks, called by Airflow's listener manager.

tests/system/chaos tests it with marks in a running Airflow.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from airflow.listeners.listener import get_listener_manager
from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import Trigger
from airflow.sdk import DAG
from airflow.triggers.base import BaseTrigger
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.triggers import FlowRunTrigger
from tests.support.airflow_run import run_dag
from tests.support.tries import CHAIN_ARGUMENTS, CHAIR_ARGUMENTS, run_with_retries
from tests.support.versions import needs

MAX_WAIT_SECONDS = 10.0

pytestmark = pytest.mark.emulator(run_seconds=3600, abort="instant", retries=0)


def mark_task(
    state: str, dag_id: str, create_trigger: Callable[[str], BaseTrigger | None], previous: str | None = None
) -> None:
    """Start a flow run, defer its task without a triggerer, and call Airflow's listeners as a mark does."""
    with DAG(dag_id, schedule=None) as dag:
        RunFlowOperator(task_id="run", **CHAIR_ARGUMENTS, wait_for_completion=False)
    result = run_dag(dag)
    trigger = create_trigger(result.xcoms["run"]["flow_run_id"])
    with create_session() as session:
        ti = session.scalar(
            select(TaskInstance).where(TaskInstance.run_id == result.run_id, TaskInstance.dag_id == dag_id)
        )
        assert ti is not None
        if trigger is not None:
            row = Trigger.from_object(trigger)
            session.add(row)
            session.flush()
            ti.trigger_id, ti.state = row.id, "deferred"
            session.flush()
        error: dict[str, Any] = {"error": "marked"} if state == "failed" else {}
        hook = getattr(get_listener_manager().hook, f"on_task_instance_{state}")
        hook(previous_state=previous, task_instance=ti, **error)
        session.rollback()


def wait_for_state(emulator: Emulator, state: str) -> list[str]:
    """Wait until a run has this state; return the states of all runs."""
    deadline = time.monotonic() + MAX_WAIT_SECONDS
    while True:
        states = [run.state for run in emulator.runs.values()]
        if state in states or time.monotonic() >= deadline:
            return states
        time.sleep(0.05)


@pytest.mark.parametrize("state", ["failed", "success", "skipped"])
def test_a_mark_before_a_triggerer_has_the_task_aborts_the_run(emulator: Emulator, state: str) -> None:
    """The run of a deferred task that no triggerer has picked up is aborted when the task is marked."""
    mark_task(
        state, f"listener_{state}", lambda run: FlowRunTrigger("generio_default", run, abort_on_kill=True)
    )
    assert wait_for_state(emulator, "aborted") == ["aborted"]


@pytest.mark.parametrize(
    "create_trigger",
    [lambda run: FlowRunTrigger("generio_default", run), lambda _: None],
    ids=["abort_on_kill=False", "not deferred"],
)
def test_a_mark_without_abort_on_kill_aborts_nothing(
    emulator: Emulator, create_trigger: Callable[[str], BaseTrigger | None]
) -> None:
    """A run continues without abort_on_kill, and so does one whose task does not wait for it."""
    mark_task("failed", "listener_alone", create_trigger)
    time.sleep(0.5)
    assert "aborted" not in [run.state for run in emulator.runs.values()]
    assert [request.method for request in emulator.requests].count("PATCH") == 1  # the start's


def test_a_failure_that_the_scheduler_finds_aborts_nothing(emulator: Emulator) -> None:
    """A task that the scheduler finds to have failed may be retried, so its run continues."""
    mark_task(
        "failed",
        "listener_found",
        lambda run: FlowRunTrigger("generio_default", run, abort_on_kill=True),
        "running",
    )
    time.sleep(0.5)
    assert "aborted" not in [run.state for run in emulator.runs.values()]


@needs("task state store")
def test_a_saved_response_is_deleted_when_the_task_has_succeeded(emulator: Emulator) -> None:
    """PromptChainer's response is deleted from Airflow's task state store when the task has succeeded."""
    emulator.run_seconds = 0
    result = run_with_retries("listener_kept", **CHAIN_ARGUMENTS)
    assert result.state == "success"
    assert result.record is None


@needs("task state store")
def test_the_record_of_a_run_with_an_id_is_not_deleted(emulator: Emulator) -> None:
    """The record of a Generio run, which a Clear needs, is not deleted."""
    emulator.run_seconds = 0
    result = run_with_retries("listener_stays", **CHAIR_ARGUMENTS)
    assert result.state == "success"
    assert result.record["flow_run_id"] in emulator.runs

"""Tests of what is done when a task is over and nothing of ours runs any more: Airflow's own listeners, called by Airflow.

That a click in a whole Airflow comes to this is shown in tests/system/chaos.
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
from tests.support.tries import CHAIN_ARGUMENTS, CHAIR_ARGUMENTS, run_with_retries, set_up
from tests.support.versions import needs

SOON = 10.0


@pytest.fixture
def emulator(flow_emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """Give an emulator whose runs go on until they are stopped."""
    set_up(flow_emulator, monkeypatch).run_seconds = 3600
    return flow_emulator


def marked(
    word: str, dag_id: str, trigger: Callable[[str], BaseTrigger | None], previous: str | None = None
) -> None:
    """Start a flow run, let its task be deferred to no triggerer, and tell Airflow's listeners that somebody marked it."""
    with DAG(dag_id, schedule=None) as dag:
        RunFlowOperator(task_id="run", **CHAIR_ARGUMENTS, wait_for_completion=False)
    result = run_dag(dag)
    made = trigger(result.xcoms["run"]["flow_run_id"])
    with create_session() as session:
        ti = session.scalar(
            select(TaskInstance).where(TaskInstance.run_id == result.run_id, TaskInstance.dag_id == dag_id)
        )
        assert ti is not None
        if made is not None:
            row = Trigger.from_object(made)
            session.add(row)
            session.flush()
            ti.trigger_id, ti.state = row.id, "deferred"
            session.flush()
        error: dict[str, Any] = {"error": "marked"} if word == "failed" else {}
        hook = getattr(get_listener_manager().hook, f"on_task_instance_{word}")
        hook(previous_state=previous, task_instance=ti, **error)
        session.rollback()


def states(emulator: Emulator, wanted: str) -> list[str]:
    """Give the states of all runs as soon as one is as wanted, or when the time is over."""
    until = time.monotonic() + SOON
    while wanted not in (told := [run.state for run in emulator.runs.values()]) and time.monotonic() < until:
        time.sleep(0.05)
    return told


@pytest.mark.parametrize("word", ["failed", "success", "skipped"])
def test_marked_before_a_triggerer_had_it(emulator: Emulator, word: str) -> None:
    """The run of a deferred task that no triggerer knows of is aborted when the task is marked."""
    marked(word, f"listener_{word}", lambda run: FlowRunTrigger("generio_default", run, abort_on_kill=True))
    assert states(emulator, "aborted") == ["aborted"]


@pytest.mark.parametrize(
    "trigger",
    [lambda run: FlowRunTrigger("generio_default", run), lambda _: None],
    ids=["abort_on_kill=False", "not deferred"],
)
def test_left_alone(emulator: Emulator, trigger: Callable[[str], BaseTrigger | None]) -> None:
    """A run that is not to be aborted goes on, and so does one whose task does not wait for it."""
    marked("failed", "listener_alone", trigger)
    time.sleep(0.5)
    assert "aborted" not in [run.state for run in emulator.runs.values()]
    assert [asked.method for asked in emulator.requests].count("PATCH") == 1  # the start's


def test_failure_that_the_scheduler_finds_stops_nothing(emulator: Emulator) -> None:
    """A task that nobody marked, but Airflow itself found to have failed, may be tried again: its run goes on."""
    marked(
        "failed",
        "listener_found",
        lambda run: FlowRunTrigger("generio_default", run, abort_on_kill=True),
        "running",
    )
    time.sleep(0.5)
    assert "aborted" not in [run.state for run in emulator.runs.values()]


@needs("task state store")
def test_answer_is_kept_until_the_task_has_succeeded(emulator: Emulator) -> None:
    """PromptChainer's answer, content and all, is gone from Airflow's state store when the task is green."""
    emulator.run_seconds = 0
    ended = run_with_retries("listener_kept", **CHAIN_ARGUMENTS)
    assert ended.state == "success"
    assert ended.record is None


@needs("task state store")
def test_record_of_a_run_with_an_id_stays(emulator: Emulator) -> None:
    """What a Clear must know of a Generio run is not forgotten."""
    emulator.run_seconds = 0
    ended = run_with_retries("listener_stays", **CHAIR_ARGUMENTS)
    assert ended.state == "success"
    assert ended.record["flow_run_id"] in emulator.runs

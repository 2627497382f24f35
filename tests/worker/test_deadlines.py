"""Tests of deadlines: `timeout` is one deadline for all tries, `execution_timeout` one for each try.

Killed processes are tested in tests/system/chaos.
"""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import pytest
from airflow.sdk import DAG

from airflow_provider_flows.core import exceptions
from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.sensors import FlowRunSensor
from tests.support.airflow_run import THREAD_TIMEOUT, run_dag
from tests.support.modes import FLOW, compat_notices
from tests.support.task_instances import Store, context
from tests.support.tries import BOTH_MODES, CHAIR_ARGUMENTS, request_times, run_with_retries
from tests.support.versions import lacks, needs

pytestmark = [THREAD_TIMEOUT, pytest.mark.emulator(run_seconds=0, abort="instant", retries=0)]


@needs("task state store")
@BOTH_MODES
def test_timeout_is_one_deadline_for_all_tries(emulator: Emulator, *, deferrable: bool) -> None:
    """The first start sets the deadline: a second try has the time that is left, and there is no third."""
    emulator.run_seconds = 60
    emulator.add_fault(Fault("GET", "/flows/*", status=402, times=3))
    start = time.time()
    task_result = run_with_retries(
        f"retries_timeout_{deferrable}", **CHAIR_ARGUMENTS, timeout=6, retries=3, deferrable=deferrable
    )
    assert (task_result.tries, task_result.state, emulator.started_count) == (2, "failed", 1)
    assert type(task_result.error) is exceptions.FlowTimeout
    (created_at,), (aborted_at,) = (
        request_times(emulator, "POST", "/flows"),
        request_times(emulator, "PATCH")[1:],
    )
    assert start + 6 < task_result.record["deadline"] < created_at + 6
    assert task_result.record["deadline"] <= aborted_at < task_result.record["deadline"] + 5


@needs("task state store")
def test_try_after_deadline_starts_no_run(emulator: Emulator) -> None:
    """A second try after the deadline starts nothing, and there is no third."""
    emulator.add_fault(Fault("POST", "/flows", status=503))
    task_result = run_with_retries(
        "retries_over", **CHAIR_ARGUMENTS, timeout=1, retries=3, retry_delay=timedelta(seconds=2)
    )
    assert (task_result.tries, task_result.state, emulator.started_count) == (2, "failed", 0)
    assert type(task_result.error) is exceptions.FlowTimeout
    assert "was not started, because its timeout had already passed" in str(task_result.error)
    assert len(request_times(emulator, "POST", "/flows")) == 1


@lacks("task state store")
def test_without_store_the_stamp_has_the_deadline(emulator: Emulator) -> None:
    """Without a store, and without retry policies, a try after the deadline starts nothing."""
    emulator.run_seconds = 60
    task_result = run_with_retries("retries_stamped_timeout", **CHAIR_ARGUMENTS, timeout=1)
    assert (task_result.tries, task_result.state, emulator.started_count) == (2, "failed", 1)
    assert type(task_result.error) is exceptions.FlowTimeout
    assert "was not started, because its timeout had already passed" in str(task_result.error)
    assert compat_notices(task_result.result.log).count("The task state store") == 1
    assert [run.state for run in emulator.runs.values()] == ["aborted"]


OUTCOMES = {
    "aborted": ({}, None, "The flow run ended in state 'aborted'."),
    "not aborted": ({"abort_on_kill": False}, None, "The flow run continues (abort_on_kill=False)."),
    "abort rejected": (
        {},
        Fault("PATCH", skip=1, times=None, status=403),
        "may still be active; check it at the service: PATCH",
    ),
    "still running": (
        {},
        Fault("PATCH", skip=1, times=None, status=200),
        "This task asked the service to abort the flow run, which is still 'running'. Check it there.",
    ),
    "deleted": (
        {"poll_interval": 30},
        Fault("GET", skip=2, times=None, status=404),
        "The flow run no longer exists at the service.",
    ),
}


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_timeout_message_names_the_outcome_of_the_run(emulator: Emulator, outcome: str) -> None:
    """FlowTimeout says whether the flow run was aborted, and if not, why."""
    emulator.run_seconds = 60
    arguments, fault, message = OUTCOMES[outcome]
    if fault is not None:
        emulator.add_fault(fault)
    task_result = run_with_retries(
        f"retries_outcome_{len(outcome)}", **CHAIR_ARGUMENTS, timeout=1, retries=0, **arguments
    )
    assert (task_result.tries, type(task_result.error)) == (1, exceptions.FlowTimeout)
    assert message in str(task_result.error)
    (run,) = emulator.runs.values()
    assert (run.state == "aborted") is (outcome == "aborted")


@needs("task state store")
@BOTH_MODES
def test_execution_timeout_applies_to_each_try(emulator: Emulator, *, deferrable: bool) -> None:
    """After execution_timeout the next try resumes the flow run; after the last try it is aborted."""
    emulator.run_seconds = 60
    start = time.time()
    arguments = {"execution_timeout": timedelta(seconds=3), "deferrable": deferrable}
    task_result = run_with_retries(f"retries_execution_timeouts_{deferrable}", **CHAIR_ARGUMENTS, **arguments)
    assert (task_result.tries, task_result.state, emulator.started_count) == (2, "failed", 1)
    assert type(task_result.error) is exceptions.FlowTimeout
    assert "The flow run ended in state 'aborted'." in str(task_result.error)
    assert task_result.count_log_lines("Resuming the generio flow run") == 1
    (run,) = emulator.runs.values()
    assert run.state == "aborted"
    assert len(request_times(emulator, "PATCH")) == 2
    assert request_times(emulator, "PATCH")[1] - start > 6


@BOTH_MODES
def test_execution_timeout_of_last_try_aborts_the_run(emulator: Emulator, *, deferrable: bool) -> None:
    """In a worker and while deferred, execution_timeout raises a FlowTimeout and aborts the run."""
    emulator.run_seconds = 60
    arguments = {"execution_timeout": timedelta(seconds=3), "deferrable": deferrable, "retries": 0}
    task_result = run_with_retries(f"retries_execution_timeout_{deferrable}", **CHAIR_ARGUMENTS, **arguments)
    assert (task_result.tries, task_result.state, emulator.started_count) == (1, "failed", 1)
    assert type(task_result.error) is exceptions.FlowTimeout
    assert "The flow run ended in state 'aborted'." in str(task_result.error)


def test_execution_timeout_during_upload_deletes_the_run(emulator: Emulator) -> None:
    """A run that was created and not started at the last try's execution_timeout is deleted."""
    emulator.add_fault(Fault("POST", "/flows/*", delay=5))
    task_result = run_with_retries(
        "retries_execution_timeout_inputs",
        **CHAIR_ARGUMENTS,
        execution_timeout=timedelta(seconds=2),
        retries=0,
    )
    assert (task_result.tries, task_result.state, emulator.started_count) == (1, "failed", 0)
    assert type(task_result.error) is exceptions.FlowTimeout
    assert "The flow run no longer exists at the service." in str(task_result.error)
    assert not emulator.runs


def test_run_completed_just_after_deadline_succeeds(
    flow_emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deferred task whose run completed right after its deadline succeeds, with the files."""
    monkeypatch.setenv(
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "1"
    )  # the trigger delays its event by this and a second
    flow_emulator.run_seconds = 0.6
    with DAG("deadline_completed", schedule=None) as dag:
        RunFlowOperator(
            task_id="run",
            flow=FLOW,
            inputs="a chair",
            parameters={"quality": "low"},
            deferrable=True,
            poll_interval=5,
            timeout=0.3,
            output_path=tmp_path.as_uri(),
        )
    result = run_dag(dag)
    assert result.states == {"run": "success"}, result.errors
    assert result.xcoms["run"]["return_value"]["state"] == "completed"
    assert list(tmp_path.glob("*/*.glb"))


@pytest.mark.usefixtures("emulator")
def test_timeout_limits_the_files_of_a_task() -> None:
    """The hook of a task knows its `timeout`, which limits each file; the sensor's is Airflow's."""
    operator = RunFlowOperator(task_id="t", flow=FLOW, inputs="a chair", timeout=timedelta(minutes=5))
    task_try = operator._create_task_try(context(Store()))
    assert task_try.hook.max_transfer_seconds == task_try.create_hook().max_transfer_seconds == 300
    operator = RunFlowOperator(task_id="t", flow=FLOW, inputs="a chair", timeout=None)
    assert operator._create_task_try(context(Store())).hook.max_transfer_seconds is None
    assert FlowRunSensor(task_id="s", flow_run_id="r", timeout=60)._get_hook().max_transfer_seconds == 60

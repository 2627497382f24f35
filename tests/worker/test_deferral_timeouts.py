"""Tests of the limits of a deferred task: `execution_timeout`, and what happens without a triggerer."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
from airflow.models.trigger import TRIGGER_FAIL_REPR, TriggerFailureReason
from airflow.providers.common.compat.sdk import AirflowSkipException, AirflowTaskTimeout, TaskDeferred
from airflow.sdk import DAG

from airflow_provider_flows.core.exceptions import FlowTimeout
from airflow_provider_flows.core.polling.schedule import Schedule
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.sensors import FlowRunSensor, FlowSensorTimeout
from airflow_provider_flows.triggers import deferral_timeout, min_event_delay
from tests.support.airflow_run import run_dag
from tests.support.modes import FAST_POLLING, start_external_run
from tests.support.task_instances import Store, context
from tests.support.tries import CHAIR_ARGUMENTS
from tests.support.versions import needs

pytestmark = pytest.mark.emulator(run_seconds=3600, abort="instant", retries=0)

# as Airflow resumes a task after `defer(timeout=)`
NO_EVENT = (TRIGGER_FAIL_REPR, {"error": TriggerFailureReason.TRIGGER_TIMEOUT.value})


def test_deferred_sensor_observes_execution_timeout(emulator: Emulator) -> None:
    """Each try ends at its `execution_timeout`, with the error that Airflow raises in the other modes."""
    with DAG("deferral_sensor_execution_timeout", schedule=None) as dag:
        FlowRunSensor(
            task_id="wait",
            flow_run_id=start_external_run(emulator),
            deferrable=True,
            execution_timeout=timedelta(seconds=2),
            retries=1,
            retry_delay=timedelta(0),
            **FAST_POLLING,
        )
    started_at = time.monotonic()
    result = run_dag(dag)

    assert result.state == "failed"
    assert 4 <= time.monotonic() - started_at < 40
    error = result.errors["wait"]
    assert isinstance(error, AirflowTaskTimeout)
    assert isinstance(error, FlowTimeout)
    assert "execution_timeout of 2.0 s passed" in str(error)
    assert result.log.count("running trigger in line") == 2
    assert {run.state for run in emulator.runs.values()} <= {"starting", "running"}


def test_shorter_limit_of_a_sensor_wins(emulator: Emulator) -> None:
    """The trigger's deadline is the earlier one of `timeout` and `execution_timeout`."""
    for timeout, execution_timeout in ((50, 500), (500, 50), (50, None)):
        sensor = FlowRunSensor(
            task_id="wait",
            flow_run_id=start_external_run(emulator),
            deferrable=True,
            timeout=timeout,
            execution_timeout=None if execution_timeout is None else timedelta(seconds=execution_timeout),
        )
        deferred = defer(sensor, context(Store()))
        assert abs(deferred.trigger.deadline - time.time() - 50) < 5


def defer(task: Any, task_context: Any) -> Any:
    """Execute a deferrable task, and return its deferral."""
    with pytest.raises(TaskDeferred) as caught:
        task.execute(task_context | {"task": task})
    return caught.value


def create_operator(**more: Any) -> RunFlowOperator:
    """Return a deferrable operator."""
    return RunFlowOperator(task_id="t", deferrable=True, **{**CHAIR_ARGUMENTS, **FAST_POLLING, **more})


@pytest.mark.parametrize("kind", ["operator", "sensor"])
@pytest.mark.parametrize("timeout", [10, 100, 7 * 86_400])
def test_deferral_ends_soon_after_the_deadline(emulator: Emulator, kind: str, timeout: float) -> None:
    """Airflow ends a deferral two poll intervals after the deadline, if no triggerer does."""
    given = {"poll_interval": 7, "timeout": timeout}
    task: Any = create_operator(**given)
    if kind == "sensor":
        task = FlowRunSensor(task_id="t", flow_run_id=start_external_run(emulator), deferrable=True, **given)
    deferred = defer(task, context(Store()))
    ends_at = time.time() + deferred.timeout.total_seconds()
    assert deferred.trigger.deadline < ends_at < deferred.trigger.deadline + 2 * 7 + 1


@pytest.mark.usefixtures("emulator")
def test_deferral_without_a_deadline_has_no_end() -> None:
    """Without a timeout, and with one of more years than a date can have, Airflow ends no deferral."""
    assert defer(create_operator(timeout=None), context(Store())).timeout is None
    assert deferral_timeout(Schedule(5, 60, time.time() + 1e13)) is None


@pytest.mark.usefixtures("flow_emulator")
def test_deferral_lasts_until_its_event_can_arrive() -> None:
    """A deadline within the first seconds does not end the deferral before the trigger may emit."""
    timeout = deferral_timeout(Schedule(0.1, 60, time.time() + 1))
    assert timeout is not None
    assert timeout.total_seconds() > min_event_delay() == 6.0


@needs("task state store")
@pytest.mark.parametrize(("try_number", "state"), [(1, "starting"), (4, "aborted")])
def test_operator_without_an_event_ends_as_at_its_deadline(
    emulator: Emulator, try_number: int, state: str
) -> None:
    """Without a triggerer a task times out: the next try resumes the run, or the last one aborts it."""
    operator, store = create_operator(timeout=3600), Store()
    defer(operator, context(store, 1, 3))
    with pytest.raises(FlowTimeout, match=r"deadline passed before the flow run .* no triggerer") as caught:
        operator.resume_execution(*NO_EVENT, context(store, try_number, 3) | {"task": operator})
    assert caught.value.is_permanent is (state == "aborted")
    assert [run.state for run in emulator.runs.values()] == [state]


def test_operator_without_an_event_returns_a_completed_run(emulator: Emulator) -> None:
    """A run that completed while no triggerer was there is fetched; without a store XCom has its id."""
    operator, store = create_operator(), Store()
    defer(operator, context(store))
    emulator.advance(3600)
    (flow_run_id,) = emulator.runs
    resumed = context(Store()) | {"task": operator}
    resumed["ti"].xcom_pull = lambda *_, **__: flow_run_id
    assert operator.resume_execution(*NO_EVENT, resumed)["state"] == "completed"


def test_sensor_without_an_event_ends_as_at_its_timeout(emulator: Emulator) -> None:
    """Without a triggerer a sensor times out, or is skipped with `soft_fail`; its run is left alone."""
    flow_run_id = start_external_run(emulator)
    given = {"task_id": "wait", "flow_run_id": flow_run_id, "deferrable": True}
    with pytest.raises(FlowSensorTimeout, match=r"deadline passed before the flow run .* no triggerer"):
        FlowRunSensor(**given).resume_execution(*NO_EVENT, context(Store()))
    with pytest.raises(AirflowSkipException, match="no triggerer"):
        FlowRunSensor(soft_fail=True, **given).resume_execution(*NO_EVENT, context(Store()))
    with pytest.raises(AirflowTaskTimeout, match=r"execution_timeout of 5\.0 s"):
        FlowRunSensor(execution_timeout=timedelta(seconds=5), **given).resume_execution(
            *NO_EVENT, context(Store())
        )
    assert emulator.runs[flow_run_id].state in {"starting", "running"}
    emulator.advance(3600)
    assert FlowRunSensor(**given).resume_execution(*NO_EVENT, context(Store()))["state"] == "completed"

"""Tests of FlowRunSensor in real DAG runs against the emulator: when it polls, and Airflow's arguments."""

from __future__ import annotations

import inspect
import json
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from airflow.models.taskinstance import TaskInstance
from airflow.models.taskreschedule import TaskReschedule
from airflow.providers.common.compat.sdk import AirflowException, AirflowSensorTimeout
from airflow.sdk import DAG, BaseOperator, BaseSensorOperator
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_provider_flows.core.exceptions import FlowInputError, FlowNotFound, FlowRunFailed, FlowTimeout
from airflow_provider_flows.emulator import Emulator, Fault, Plan
from airflow_provider_flows.operators import AbortFlowRunOperator, FetchFlowRunOperator, RunFlowOperator
from airflow_provider_flows.sensors import FlowRunSensor, FlowSensorTimeout
from tests.support.airflow_run import run_dag
from tests.support.modes import (
    FAST_POLLING,
    SENSORS,
    TASK_ID,
    advance_on_poll,
    count_polls,
    start_external_run,
)

UNKNOWN_RUN_ID = "0" * 24  # an id that no flow run has

pytestmark = pytest.mark.emulator(run_seconds=1000)


def test_signature_and_defaults_match_the_design() -> None:
    """The sensor has the promised arguments, keyword-only, and reschedule mode by default."""
    parameters = inspect.signature(FlowRunSensor.__init__).parameters
    own = {name: parameter for name, parameter in parameters.items() if name not in {"self", "kwargs"}}

    assert {parameter.kind for parameter in own.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert {name: parameter.default for name, parameter in own.items()} == {
        "flow_run_id": inspect.Parameter.empty,
        "flows_conn_id": "flows_default",
        "poll_interval": None,
        "max_poll_interval": None,
        "mode": "reschedule",
        "deferrable": False,
        "output_path": None,
        "output_conn_id": None,
        "output_name": None,
        "max_xcom_bytes": 48 * 1024,
        "fetch_partial_outputs": False,
        "check_outputs": None,
        "poke_interval": None,
        "exponential_backoff": False,
        "max_wait": None,
        "silent_fail": False,
        "retry_policy": None,
    }
    assert set(FlowRunSensor.template_fields) == {
        "flow_run_id",
        "flows_conn_id",
        "output_path",
        "output_conn_id",
        "output_name",
    }


@pytest.mark.parametrize(
    ("arguments", "intervals"),
    [
        ({}, (60, 300)),
        ({"mode": "poke"}, (5, 60)),
        ({"deferrable": True}, (5, 60)),
        ({"poke_interval": 20}, (20, 300)),
        ({"poke_interval": timedelta(minutes=10)}, (600, 600)),
        ({"poll_interval": timedelta(seconds=30), "max_poll_interval": 40}, (30, 40)),
    ],
)
def test_default_intervals_depend_on_the_mode(
    arguments: dict[str, Any], intervals: tuple[float, float]
) -> None:
    """The sensor polls every 60 s in reschedule mode and every 5 s otherwise, unless an argument sets it."""
    sensor = FlowRunSensor(task_id="wait", flow_run_id=UNKNOWN_RUN_ID, **arguments)

    assert (sensor.poll_interval, sensor.max_poll_interval) == intervals
    assert sensor.poke_interval == sensor.poll_interval


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"poll_interval": 0}, "poll_interval"),
        ({"poll_interval": "often"}, "poll_interval"),
        ({"poke_interval": 0}, "^poke_interval must be a positive number of seconds"),
        ({"poke_interval": 20, "poll_interval": 30}, "two names of the same time"),
        ({"exponential_backoff": True}, "exponential_backoff"),
        ({"max_wait": 60}, "max_wait"),
        ({"deferrable": True, "silent_fail": True}, "silent_fail"),
        ({"max_poll_interval": float("inf")}, "max_poll_interval"),
        ({"timeout": -1}, "timeout"),
        ({"mode": "sleep"}, "mode"),
        ({"soft_fail": True, "never_fail": True}, "soft_fail"),
    ],
)
def test_invalid_arguments_are_rejected_at_parse_time(arguments: dict[str, Any], named: str) -> None:
    """An invalid or unsupported argument is rejected by its name when the DAG file is parsed."""
    with pytest.raises((FlowInputError, ValueError, AirflowException), match=named):
        FlowRunSensor(task_id="wait", flow_run_id=UNKNOWN_RUN_ID, **arguments)


def test_misspelt_arguments_are_named_with_the_closest_ones() -> None:
    """Airflow's error about an unknown argument has the closest one of the class, where there is one."""
    cases: list[tuple[type[BaseOperator], dict[str, Any], str]] = [
        (RunFlowOperator, {"flow": "f", "output_pth": "/x"}, "output_pth (did you mean 'output_path'"),
        (RunFlowOperator, {"flow": "f", "conn_id": "x"}, "conn_id (did you mean 'input_conn_id' or"),
        (FlowRunSensor, {"flow_run_id": "f", "poll_intervall": 5}, "(did you mean 'poll_interval'"),
        (FetchFlowRunOperator, {"flow_run_id": "f", "output_pth": "/x"}, "(did you mean 'output_path'"),
        (AbortFlowRunOperator, {"flow_run_id": "f", "flow_conn_id": "x"}, "(did you mean 'flows_conn_id'"),
        (RunFlowOperator, {"flow": "f", "zzzzz": 1}, "Invalid arguments"),
    ]
    for operator, arguments, message in cases:
        with pytest.raises(TypeError) as caught:
            operator(task_id="t", **arguments)
        assert message in str(caught.value)
    # Airflow names the task's own arguments as before
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("mode", SENSORS)
def test_timeout_without_a_successful_poll_has_its_reason(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """The error says why the last poll failed, once, and does not advise to wait for longer."""
    connection = {"conn_type": "generio", "host": "http://127.0.0.1:9", "password": "key"}
    monkeypatch.setenv("AIRFLOW_CONN_DOWN", json.dumps(connection))
    with DAG("down", schedule=None) as dag:
        arguments: dict[str, Any] = {"flow_run_id": UNKNOWN_RUN_ID, "timeout": 0.3, **FAST_POLLING}
        SENSORS[mode](task_id=TASK_ID, flows_conn_id="down", **arguments)
    result = run_dag(dag)
    error = str(result.errors[TASK_ID])
    assert "No poll succeeded; the last" in error
    assert "nothing listens there" in error
    assert "increase timeout" not in error
    assert ".." not in error
    assert result.log.count("Traceback (most recent call last)") == 1


def test_short_interval_in_reschedule_mode_logs_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    """The sensor warns of an interval at which Airflow may fail the task, in reschedule mode only."""
    for number, arguments in enumerate(({}, {"mode": "poke"}, {"deferrable": True})):
        FlowRunSensor(task_id=f"short_{number}", flow_run_id=UNKNOWN_RUN_ID, poll_interval=5, **arguments)

    warnings = [line for line in "".join(capfd.readouterr()).splitlines() if "in reschedule mode" in line]
    assert len(warnings) == 1
    assert "short_0" in warnings[0]


def test_overridden_private_method_exists_in_airflow() -> None:
    """Airflow's sensor has `_get_next_poke_interval`, with the parameters of the method that overrides it."""
    overridden = inspect.signature(BaseSensorOperator._get_next_poke_interval)
    overriding = inspect.signature(FlowRunSensor._get_next_poke_interval)

    assert (
        list(overriding.parameters)
        == list(overridden.parameters)
        == ["self", "started_at", "run_duration", "poke_count"]
    )


def test_reschedule_date_follows_the_schedule(emulator: Emulator) -> None:
    """In reschedule mode the date of the next poll depends on the run's age, and the worker ends at once."""
    with DAG("sensor_reschedule", schedule=None) as dag:
        FlowRunSensor(
            task_id="wait", flow_run_id=start_old_run(emulator), poll_interval=0.1, max_poll_interval=2
        )

    with advance_on_poll(emulator, [1000]):
        result = run_dag(dag)

    assert result.state == "success"
    with create_session() as session:
        is_this_run = (TaskInstance.dag_id == dag.dag_id, TaskInstance.run_id == result.run_id)
        (row,) = session.scalars(
            select(TaskReschedule)
            .join(TaskInstance, TaskReschedule.ti_id == TaskInstance.id)
            .where(*is_this_run)
        )
    assert (
        1.7 < (row.reschedule_date - row.end_date).total_seconds() <= 2.0
    )  # 0.1 with Airflow's own interval
    assert row.duration < 1.0
    assert count_polls(emulator) == 2


def test_poke_interval_follows_the_schedule(emulator: Emulator) -> None:
    """In poke mode the same schedule sets the interval between two polls."""
    with DAG("sensor_poke", schedule=None) as dag:
        FlowRunSensor(
            task_id="wait",
            flow_run_id=start_old_run(emulator),
            poll_interval=0.1,
            max_poll_interval=1,
            mode="poke",
        )

    with advance_on_poll(emulator, [1000]):
        assert run_dag(dag).state == "success"

    first, second = (
        request.at
        for request in emulator.requests
        if request.method == "GET" and not request.path.endswith("outputs")
    )
    assert 0.9 <= second - first < 1.4


def start_old_run(emulator: Emulator) -> str:
    """Start a flow run whose `started_at` is 200 s ago, and return its id."""
    flow_run_id = start_external_run(emulator)
    run = emulator.runs[flow_run_id]
    run.timeline = replace(run.timeline, started_at=time.time() - 200)
    return flow_run_id


@pytest.mark.parametrize("mode", SENSORS)
def test_soft_fail_and_never_fail_skip_the_task(emulator: Emulator, mode: str) -> None:
    """`soft_fail` skips on a timeout and on a run that failed, `never_fail` on every error, in every mode."""
    emulator.add_plan(Plan(outcome="failed", run_seconds=0, times=2))
    failed = [start_external_run(emulator), start_external_run(emulator)]
    running = start_external_run(emulator)
    with DAG("sensor_skips", schedule=None, default_args=FAST_POLLING) as dag:
        SENSORS[mode](task_id="soft_failed", flow_run_id=failed[0], soft_fail=True)
        SENSORS[mode](task_id="soft_timeout", flow_run_id=running, soft_fail=True, timeout=0.2)
        SENSORS[mode](task_id="soft_unknown", flow_run_id=UNKNOWN_RUN_ID, soft_fail=True)
        SENSORS[mode](task_id="never_failed", flow_run_id=failed[1], never_fail=True)
        SENSORS[mode](task_id="never_timeout", flow_run_id=running, never_fail=True, timeout=0.2)
        SENSORS[mode](task_id="never_unknown", flow_run_id=UNKNOWN_RUN_ID, never_fail=True)

    result = run_dag(dag)

    skipped = ["soft_failed", "soft_timeout", "never_failed", "never_timeout", "never_unknown"]
    assert result.states == {**dict.fromkeys(skipped, "skipped"), "soft_unknown": "failed"}
    assert type(result.errors["soft_unknown"]) is FlowNotFound


@pytest.mark.parametrize("mode", ["sensor, reschedule", "sensor, poke"])
def test_silent_fail_continues_polling(emulator: Emulator, mode: str) -> None:
    """With `silent_fail` an error that would have ended the wait is logged, and polling continues."""
    emulator.add_fault(Fault(method="GET", path="/flows/*", times=4, status=404))
    emulator.add_plan(Plan(run_seconds=0))
    with DAG("sensor_silent", schedule=None) as dag:
        SENSORS[mode](
            task_id="wait", flow_run_id=start_external_run(emulator), silent_fail=True, **FAST_POLLING
        )

    result = run_dag(dag)

    assert result.state == "success"
    assert "Sensor poke failed" in result.log


@pytest.mark.parametrize("mode", SENSORS)
def test_failed_run_is_retried_and_timeout_is_not(emulator: Emulator, mode: str) -> None:
    """A sensor's timeout is an AirflowSensorTimeout, which is not retried; a failed run is retried."""
    emulator.add_plan(Plan(outcome="failed", run_seconds=0))
    failed, running = start_external_run(emulator), start_external_run(emulator)
    with DAG(
        "sensor_retries",
        schedule=None,
        default_args={"retries": 1, "retry_delay": timedelta(0), **FAST_POLLING},
    ) as dag:
        SENSORS[mode](task_id="timed_out", flow_run_id=running, timeout=0.2)
        SENSORS[mode](task_id="failed", flow_run_id=failed)

    result = run_dag(dag)

    assert result.states == {"timed_out": "failed", "failed": "failed"}
    assert type(result.errors["timed_out"]) is FlowSensorTimeout
    assert isinstance(result.errors["timed_out"], FlowTimeout)
    assert isinstance(result.errors["timed_out"], AirflowSensorTimeout)
    assert type(result.errors["failed"]) is FlowRunFailed
    assert sum(request.path.endswith(failed) for request in emulator.requests) == 2
    assert emulator.runs[running].state in {"starting", "running"}


@pytest.mark.parametrize("mode", SENSORS)
def test_flow_run_id_is_templated_and_mapped(emulator: Emulator, mode: str) -> None:
    """A template in the flow run's id is rendered, and the sensor can be mapped over ids."""
    emulator.run_seconds = 0
    ids = [start_external_run(emulator) for _ in range(3)]
    with DAG("sensor_mapped", schedule=None) as dag:
        SENSORS[mode](
            task_id=TASK_ID,
            flow_run_id="{{ dag_run.conf['id'] }}",
            flows_conn_id="{{ 'generio' }}_default",
            **FAST_POLLING,
        )
        arguments = getattr(SENSORS[mode], "keywords", {})
        FlowRunSensor.partial(task_id="mapped", **arguments, **FAST_POLLING).expand(flow_run_id=ids[1:])

    result = run_dag(dag, conf={"id": ids[0]})

    assert result.state == "success"
    returned = [
        result.xcoms[name]["return_value"]["flow_run_id"] for name in (TASK_ID, "mapped[0]", "mapped[1]")
    ]
    assert returned == ids


@pytest.mark.parametrize("mode", SENSORS)
def test_flow_run_id_of_none_is_rejected(emulator: Emulator, mode: str) -> None:
    """A flow run id that no task pushed raises a FlowInputError, and no request is sent."""
    with DAG("sensor_no_id", schedule=None, render_template_as_native_obj=True) as dag:
        SENSORS[mode](task_id="wait", flow_run_id="{{ ti.xcom_pull('no_such_task') }}", **FAST_POLLING)

    error = run_dag(dag).errors["wait"]

    assert type(error) is FlowInputError
    assert "flow_run_id must be the id of a flow run, not None" in str(error)
    assert emulator.requests == ()

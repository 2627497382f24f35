"""Tests that an argument in `default_args` means the same as on the task itself, wherever a task takes both.

Each case is a real DAG. The arguments are those of Airflow's operator and sensor, and the provider's own.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator, BaseSensorOperator, TaskGroup

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.decorators import task
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.sensors import FlowRunSensor
from tests.support.versions import has
from tools.airflow_settings import own_environment

FLOW_ARGUMENTS = {"flow": "a_flow"}
RUN_ARGUMENTS = {"flow_run_id": "6b0203c3fbcc98b1a4059427"}


def create_operator(**arguments: Any) -> BaseOperator:
    """Return a RunFlowOperator of the current DAG."""
    return RunFlowOperator(task_id="run", **{**FLOW_ARGUMENTS, **arguments})


def create_sensor(**arguments: Any) -> BaseOperator:
    """Return a FlowRunSensor of the current DAG."""
    return FlowRunSensor(task_id="run", **{**RUN_ARGUMENTS, **arguments})


def create_decorated(**arguments: Any) -> BaseOperator:
    """Return the task of `@task.flow` in the current DAG."""

    @task.flow(**{**FLOW_ARGUMENTS, **arguments})
    def run() -> str:
        return "A chair"

    return run().operator


def create_mapped_operator(**arguments: Any) -> BaseOperator:
    """Return one task instance's operator of a mapped RunFlowOperator."""
    mapped = RunFlowOperator.partial(task_id="run", **{**FLOW_ARGUMENTS, **arguments}).expand(
        inputs=["A chair"]
    )
    return mapped.unmap({"inputs": "A chair"})


def create_mapped_sensor(**arguments: Any) -> BaseOperator:
    """Return one task instance's operator of a mapped FlowRunSensor."""
    mapped = FlowRunSensor.partial(task_id="run", **arguments).expand(flow_run_id=["a"])
    return mapped.unmap({"flow_run_id": "a"})


Create = Callable[..., BaseOperator]
OPERATORS: dict[str, Create] = {
    "operator": create_operator,
    "decorator": create_decorated,
    "mapped operator": create_mapped_operator,
}
SENSORS: dict[str, Create] = {"sensor": create_sensor, "mapped sensor": create_mapped_sensor}

# a value for arguments whose default has no other value of the same kind
VALUES: dict[str, Any] = {
    "mode": "poke",
    "output_path": "/tmp/there",  # noqa: S108  # nothing is written
    "parameters": {"quality": "low"},
    "weight_rule": "upstream",
    "trigger_rule": "all_done",
    "timeout": 77.0,
    "executor_config": {"a": 1},
    "poll_interval": 7.0,
    "max_poll_interval": 77.0,
    "poke_interval": 600.0,
}
SECONDS = ("retry_delay", "max_retry_delay", "execution_timeout")
# those that each case sets, that Airflow deprecates, that are no attribute of the task, and dates
EXCLUDED = {
    "self", "kwargs", "task_id", "dag", "task_group", "default_args", "params", "start_date", "end_date",
    "flow", "flow_run_id", "inputs", "email", "email_on_retry", "email_on_failure", "resources", "sla",
    "pre_execute", "post_execute", "logger_name", "exponential_backoff", "max_wait",
    "multiple_outputs",  # @task.flow sets it, as @task does
}  # fmt: skip


def list_arguments(*classes: type[BaseOperator]) -> dict[str, Any]:
    """Return a value other than the default for each argument of these classes' constructors."""
    arguments: dict[str, Any] = {}
    for one in classes:
        for name, parameter in inspect.signature(one.__init__).parameters.items():
            if name in EXCLUDED or name.endswith("_callback"):
                continue
            if name != "retry_policy" or has("retry policies"):
                arguments[name] = VALUES.get(name, _other_value(name, parameter.default))
    return arguments


def _other_value(name: str, default: Any) -> Any:
    if name in SECONDS:
        return timedelta(seconds=77)
    if isinstance(default, bool):
        return not default
    if isinstance(default, (int, float)):
        return default + 7
    if name == "retry_policy":
        from airflow.sdk import ExceptionRetryPolicy

        return ExceptionRetryPolicy(rules=[])
    if name in {"inlets", "outlets"}:
        return []
    return 3 if name.startswith("max_") else f"another {name}"


def get_outcome(create: Create, name: str, *, arguments: dict[str, Any], defaults: dict[str, Any]) -> Any:
    """Return a task's attribute, or the type and text of the error when the task is created."""
    with DAG("default_args", schedule=None, default_args=defaults):
        try:
            return getattr(create(**arguments), name, None)
        except (FlowInputError, ValueError, TypeError) as error:
            return type(error), str(error)


def list_cases() -> list[Any]:
    """Return every argument with each way to create a task that takes it."""
    cases = [
        (kind, create, name, value)
        for table, classes in (
            (OPERATORS, (BaseOperator, RunFlowOperator)),
            (SENSORS, (BaseOperator, BaseSensorOperator, FlowRunSensor)),
        )
        for kind, create in table.items()
        for name, value in list_arguments(*classes).items()
    ]
    return [pytest.param(create, name, value, id=f"{kind}: {name}") for kind, create, name, value in cases]


@pytest.mark.parametrize(("create", "name", "value"), list_cases())
def test_default_argument_is_the_tasks_argument(create: Create, name: str, value: Any) -> None:
    """An argument has the same result in `default_args` as on the task, and the task's own one precedes."""
    direct = get_outcome(create, name, arguments={name: value}, defaults={})
    unset = get_outcome(create, name, arguments={}, defaults={})

    assert get_outcome(create, name, arguments={}, defaults={name: value}) == direct
    assert get_outcome(create, name, arguments={name: value}, defaults={name: unset}) == direct
    assert name in {"pool", "inlets", "outlets"} or direct != unset


GROUP_ARGUMENTS = {"poke_interval": 600, "silent_fail": True}


def test_default_arguments_of_a_task_group_apply() -> None:
    """The `default_args` of a task group apply as those of the DAG do, and precede them."""
    with (
        DAG("default_args_group", schedule=None, default_args={"poke_interval": 20}),
        TaskGroup("group", default_args=GROUP_ARGUMENTS),
    ):
        sensor = create_sensor()

    assert {name: getattr(sensor, name) for name in GROUP_ARGUMENTS} == GROUP_ARGUMENTS
    assert isinstance(sensor, FlowRunSensor)
    assert (sensor.poll_interval, sensor.max_poll_interval) == (600, 600)


INTERVALS: list[tuple[dict[str, Any], dict[str, Any], float]] = [
    # the default arguments, the task's own ones, and the interval
    ({"poke_interval": 600}, {}, 600),
    ({"poke_interval": 600}, {"poll_interval": 20}, 20),
    ({"poll_interval": 600}, {"poke_interval": 20}, 20),
    ({"poll_interval": 600, "poke_interval": 700}, {"poke_interval": 20}, 20),
    ({"poll_interval": 600, "poke_interval": 700}, {}, 600),
    ({}, {"poll_interval": 600, "poke_interval": 600}, 600),
]


@pytest.mark.parametrize("create", SENSORS.values(), ids=SENSORS)
@pytest.mark.parametrize(("defaults", "arguments", "interval"), INTERVALS)
def test_own_interval_precedes_that_of_default_args(
    create: Create, defaults: dict[str, Any], arguments: dict[str, Any], interval: float
) -> None:
    """A sensor's own interval precedes that of `default_args`, by either of its two names."""
    for name in ("poll_interval", "poke_interval"):
        assert get_outcome(create, name, arguments=arguments, defaults=defaults) == interval


REJECTED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    # arguments that a sensor rejects, and the task's own ones that put this right
    ({"exponential_backoff": True}, {"exponential_backoff": False}),
    ({"max_wait": 60}, {"max_wait": None}),
    ({"max_wait": timedelta(minutes=1)}, {"max_wait": None}),
    ({"deferrable": True, "silent_fail": True}, {"silent_fail": False}),
]


@pytest.mark.parametrize("create", SENSORS.values(), ids=SENSORS)
@pytest.mark.parametrize(("rejected", "remedy"), REJECTED, ids=repr)
def test_unsupported_argument_is_rejected_in_default_args(
    create: Create, rejected: dict[str, Any], remedy: dict[str, Any]
) -> None:
    """An argument that the sensor rejects is rejected in `default_args` as well, and a task can undo it."""
    name = next(iter(remedy))
    outcome = get_outcome(create, name, arguments=rejected, defaults={})

    assert outcome[0] is FlowInputError
    assert name in outcome[1]
    assert get_outcome(create, name, arguments={}, defaults=rejected) == outcome
    assert get_outcome(create, name, arguments={name: rejected[name]}, defaults=rejected) == outcome
    assert get_outcome(create, name, arguments=remedy, defaults=rejected) == remedy[name]


def test_inputs_in_default_args_are_for_other_tasks() -> None:
    """A task of `@task.flow`, which has no argument `inputs`, ignores them in `default_args`."""
    with DAG("default_args_inputs", schedule=None, default_args={"inputs": "A chair"}):
        assert getattr(create_operator(), "inputs", None) == "A chair"
        decorated = create_decorated()

    assert isinstance(decorated, RunFlowOperator)
    assert decorated.inputs is None


DEFERRABLE_DAG = """
from airflow.sdk import DAG
from airflow_provider_flows.exceptions import FlowInputError
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.sensors import FlowRunSensor
with DAG("deferrable_by_default", schedule=None):
    tasks = [
        FlowRunSensor(task_id="silent", flow_run_id="a", silent_fail=True),
        FlowRunSensor(task_id="sensor", flow_run_id="a"),
        FlowRunSensor(task_id="poke", flow_run_id="a", deferrable=False),
        RunFlowOperator(task_id="operator", flow="a"),
        RunFlowOperator(task_id="started", flow="a", wait_for_completion=False),
    ]
print([(task.task_id, task.deferrable) for task in tasks], tasks[0].poll_interval)
"""


def test_dag_is_imported_with_deferrable_as_the_default(tmp_path: Path) -> None:
    """With `[operators] default_deferrable`, a sensor with `silent_fail` waits in its `mode`."""
    environment = {
        **own_environment(tmp_path, tmp_path),
        "AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE": "True",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-c", DEFERRABLE_DAG], env=environment, text=True, capture_output=True, check=False
    )

    assert done.returncode == 0, done.stderr
    deferrable = {"silent": False, "sensor": True, "poke": False, "operator": True, "started": True}
    assert done.stdout.splitlines()[-1] == f"{list(deferrable.items())} 60.0"

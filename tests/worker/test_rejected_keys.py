"""Tests of keys that are rejected during a wait, in the triggerer, in the worker or in both.

In a DAG run of `dag.test()` a deferrable task polls once in the worker, and then in the triggerer.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator
from airflow.triggers.base import TriggerEvent

from airflow_provider_flows.core.exceptions import FlowAuthError
from airflow_provider_flows.emulator import Emulator, Fault, RecordedRequest
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.sensors import FlowRunSensor
from airflow_provider_flows.triggers import FlowRunTrigger
from tests.support.airflow_run import run_dag
from tests.support.modes import (
    FAST_POLLING,
    advance_on_poll,
    count_polls,
    is_poll,
    package_log_lines,
    start_external_run,
)
from tests.support.tries import BOTH_MODES, CHAIR_ARGUMENTS

pytestmark = pytest.mark.emulator(run_seconds=1000, abort="instant", retries=0)

DEFERRABLE: dict[str, Callable[[Emulator], BaseOperator]] = {
    "operator": lambda _: RunFlowOperator(task_id="run", deferrable=True, **CHAIR_ARGUMENTS, **FAST_POLLING),
    "sensor": lambda emulator: FlowRunSensor(
        task_id="run", flow_run_id=start_external_run(emulator), deferrable=True, **FAST_POLLING
    ),
}


def run_deferrable(emulator: Emulator, kind: str, name: str, steps: list[float]) -> Any:
    """Run a deferrable task, at an emulator whose clock advances by a step before each poll but the first."""
    with DAG(f"rejected_{name}_{kind}", schedule=None) as dag:
        DEFERRABLE[kind](emulator)
    with advance_on_poll(emulator, steps):
        return run_dag(dag)


@pytest.mark.parametrize("kind", DEFERRABLE)
def test_key_that_is_wrong_in_the_triggerer_ends_no_wait(emulator: Emulator, kind: str) -> None:
    """If the worker's key is accepted, the task is deferred again; the run is not aborted."""
    emulator.add_fault(Fault("GET", "/flows/*", skip=1, times=3, status=401))
    result = run_deferrable(emulator, kind, "once", [0.0] * 4 + [1000.0])

    assert result.state == "success"
    assert count_polls(emulator) == 1 + 3 + 1 + 1
    assert result.log.count("running trigger in line") == 2
    assert "The triggerer cannot poll flow run" in result.log


@pytest.mark.parametrize("kind", DEFERRABLE)
def test_worker_waits_after_repeated_rejections_in_the_triggerer(emulator: Emulator, kind: str) -> None:
    """After the third trigger whose key was rejected, the task waits in the worker to the run's end."""
    for number in range(1, 4):
        emulator.add_fault(Fault("GET", "/flows/*", skip=number, times=3, status=401))
    result = run_deferrable(emulator, kind, "always", [0.0] * 12 + [1000.0])

    assert result.state == "success"
    assert count_polls(emulator) == 3 * (1 + 3) + 2
    assert result.log.count("running trigger in line") == 3


@pytest.mark.parametrize("kind", DEFERRABLE)
@pytest.mark.parametrize("connection", [None, '{"conn_type": "http", "host": "x"}'])
def test_connection_that_is_wrong_in_the_triggerer_ends_no_wait(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, kind: str, connection: str | None
) -> None:
    """A connection that the triggerer does not have, or has as another type, is no reason to abort a run."""
    name = "AIRFLOW_CONN_FLOWS_DEFAULT"
    right, run_in_worker = os.environ[name], FlowRunTrigger.run

    async def run_in_triggerer(trigger: FlowRunTrigger) -> AsyncIterator[TriggerEvent]:
        with monkeypatch.context() as environment:
            if not trigger.rejections:
                environment.delenv(name)
                if connection is not None:
                    environment.setenv(name, connection)
            async for event in run_in_worker(trigger):
                yield event

    monkeypatch.setattr(FlowRunTrigger, "run", run_in_triggerer)  # in the environment of another host
    result = run_deferrable(emulator, kind, f"connection_{connection is None}", [0.0, 0.0, 1000.0])

    assert result.state == "success", result.log
    assert os.environ[name] == right
    assert result.log.count("running trigger in line") == 2
    assert "The triggerer cannot poll flow run" in result.log


@BOTH_MODES
def test_error_of_a_rejected_key_names_the_run_that_continues(
    emulator: Emulator, *, deferrable: bool
) -> None:
    """Without a valid key the task fails; its error says that the run continues, and what to do."""
    emulator.add_fault(Fault("GET", "/flows/*", skip=1, times=None, status=401))
    with DAG(f"rejected_everywhere_{deferrable}", schedule=None) as dag:
        RunFlowOperator(task_id="run", deferrable=deferrable, **CHAIR_ARGUMENTS, **FAST_POLLING)
    error = run_dag(dag).errors["run"]

    (run,) = emulator.runs.values()
    assert type(error) is FlowAuthError
    assert f"Flow run {run.flow_run_id} continues, because there is no valid key to abort it" in str(error)
    assert run.state in {"starting", "running"}


ALL_TASKS: dict[str, Callable[[Emulator], BaseOperator]] = {
    **DEFERRABLE,
    "blocking operator": lambda _: RunFlowOperator(
        task_id="run", deferrable=False, **CHAIR_ARGUMENTS, **FAST_POLLING
    ),
    "poking sensor": lambda emulator: FlowRunSensor(
        task_id="run", flow_run_id=start_external_run(emulator), mode="poke", deferrable=False, **FAST_POLLING
    ),
}


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("kind", ALL_TASKS)
def test_rejected_key_is_explained_once(emulator: Emulator, kind: str, status: int) -> None:
    """Only the error says all: the connection, its type and what to do. Each process warns once, briefly."""
    emulator.add_fault(Fault("GET", "/flows/*", skip=1, times=None, status=status))
    with DAG(f"explained_{status}_{'_'.join(kind.split())}", schedule=None) as dag:
        ALL_TASKS[kind](emulator)
    result = run_dag(dag)

    error = str(result.errors["run"])
    assert f"returned HTTP {status}" in error
    assert "check the" in error
    assert f"(Connection 'flows_default' of type 'generio', {emulator.url})" in error
    warnings = [line for line in package_log_lines(result.log) if line.startswith("warning: ")]
    brief = (
        f"the service rejected the API key of connection 'flows_default' of type 'generio' (HTTP {status})"
    )
    assert [line for line in warnings if not line.endswith(brief)] == []
    assert len(warnings) == (2 if kind in DEFERRABLE else 1)


WAITING_IN_WORKER: dict[str, Callable[[str], BaseOperator]] = {
    "operator": lambda _: RunFlowOperator(task_id="run", deferrable=False, **CHAIR_ARGUMENTS, **FAST_POLLING),
    "sensor, poke": lambda run: FlowRunSensor(
        task_id="run", flow_run_id=run, mode="poke", deferrable=False, **FAST_POLLING
    ),
    # whose triggers' keys are rejected so often that it waits in the worker
    "sensor, deferrable": lambda run: FlowRunSensor(
        task_id="run", flow_run_id=run, deferrable=True, **FAST_POLLING
    ),
}


@pytest.mark.parametrize("kind", WAITING_IN_WORKER)
def test_worker_reads_a_key_that_was_changed_during_its_wait(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """At the third rejection a waiting worker looks its connection up again, and uses the new key."""
    name = "AIRFLOW_CONN_FLOWS_DEFAULT"
    run_id = "" if kind == "operator" else start_external_run(emulator)
    polls, first = 0, 1
    if kind == "sensor, deferrable":
        for number in range(1, 4):
            emulator.add_fault(Fault("GET", "/flows/*", skip=number, times=3, status=401))
        first = 3 * (1 + 3) + 1

    def replace_key(request: RecordedRequest) -> None:
        nonlocal polls
        polls += is_poll(request)
        if polls == first + 1:
            monkeypatch.setattr(emulator._state, "key", "new")
        elif polls == first + 3:
            connection = json.loads(emulator.connections[name]) | {"password": "new"}
            monkeypatch.setenv(name, json.dumps(connection))
        elif polls == first + 4:
            emulator.advance(1000)

    with DAG(f"rejected_changed_{len(kind)}", schedule=None) as dag:
        WAITING_IN_WORKER[kind](run_id)
    emulator.set_request_listener(replace_key)
    result = run_dag(dag)
    emulator.set_request_listener(None)

    assert result.state == "success", result.log
    (run,) = emulator.runs.values()
    assert run.state == "completed"
    # in mode poke, each poke looks the connection up
    assert kind == "sensor, poke" or "have changed; the wait continues with the new ones" in result.log


@pytest.mark.parametrize("path", ["/outputs", "/outputs/"], ids=["list", "download"])
@pytest.mark.parametrize("kind", WAITING_IN_WORKER)
def test_worker_reads_a_key_that_was_changed_before_its_downloads(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, path: str
) -> None:
    """The outputs of a paid run are fetched with the new key, if the old one is rejected only then."""
    name = "AIRFLOW_CONN_FLOWS_DEFAULT"
    emulator.run_seconds = 0
    run_id = "" if kind == "operator" else start_external_run(emulator)

    def replace_key(request: RecordedRequest) -> None:
        if path in request.path and emulator._state.key != "new":
            monkeypatch.setattr(emulator._state, "key", "new")
            connection = json.loads(emulator.connections[name]) | {"password": "new"}
            monkeypatch.setenv(name, json.dumps(connection))

    with DAG(f"rejected_fetch_{len(kind)}_{len(path)}", schedule=None) as dag:
        WAITING_IN_WORKER[kind](run_id).output_path = str(tmp_path)
    emulator.set_request_listener(replace_key)
    result = run_dag(dag)
    emulator.set_request_listener(None)

    assert result.state == "success", result.log
    assert all(output["uri"] for output in result.xcoms["run"]["return_value"]["outputs"])

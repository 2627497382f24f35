"""Tests of the listener for finished tasks, called by Airflow's listener manager.

tests/system/chaos tests it with marks in a running Airflow.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.listeners.listener import get_listener_manager
from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import Trigger
from airflow.sdk import DAG
from airflow.triggers.base import BaseTrigger
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_provider_flows.core.limits import MAX_ABORT_THREADS
from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.triggers import FlowRunTrigger
from tests.support.airflow_run import run_dag
from tests.support.flow_server import ApiResponse, StubFlowServer
from tests.support.hostile import HostileServer
from tests.support.modes import start_external_run
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


# many marks at once -----------------------------------------------------------------------------------------

MARKED_RUNS = 40


def mark_deferred(flow_run_ids: list[str], conn_id: str = "generio_default") -> None:
    """Call Airflow's listeners as a mark of a DAG run does: for each of its deferred tasks, one by one."""
    for flow_run_id in flow_run_ids:
        trigger = Trigger.from_object(FlowRunTrigger(conn_id, flow_run_id, abort_on_kill=True))
        get_listener_manager().hook.on_task_instance_failed(
            previous_state=None, task_instance=SimpleNamespace(task=None, trigger=trigger), error="marked"
        )


def wait_until(condition: Callable[[], Any], seconds: float = 20.0) -> bool:
    """Wait until a condition is true; return whether it was in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def abort_threads() -> list[threading.Thread]:
    """Return the listener's threads."""
    return [thread for thread in threading.enumerate() if thread.name == "flows-abort"]


def connect(emulator: Emulator, monkeypatch: pytest.MonkeyPatch, conn_id: str, **more: Any) -> str:
    """Set a connection to the emulator, or to another host, and return its id."""
    connection = {"conn_type": "generio", "host": emulator.url, "password": emulator.key} | more
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))
    return conn_id


def test_many_marks_observe_the_connections_rate_limit(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A marked DAG run of many tasks: a few threads, `max_requests_per_second`, and every run is aborted."""
    extra = {"max_requests_per_second": 25}
    conn_id = connect(emulator, monkeypatch, "listener_bounded", extra=extra)
    ids = [start_external_run(emulator) for _ in range(MARKED_RUNS)]
    before = len(emulator.requests)

    mark_deferred(ids, conn_id)

    assert 1 <= len(abort_threads()) <= MAX_ABORT_THREADS
    assert wait_until(lambda: all(run.state == "aborted" for run in emulator.runs.values()))
    times = [request.at for request in emulator.requests[before:]]
    assert len(times) == 2 * MARKED_RUNS
    assert max(sum(at <= other < at + 0.4 for other in times) for at in times) <= 14
    assert wait_until(lambda: not abort_threads())


def test_a_rejected_request_stops_all_threads(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 429 with Retry-After stops every request of the connection for that long; all runs are aborted."""
    conn_id = connect(emulator, monkeypatch, "listener_429")
    ids = [start_external_run(emulator) for _ in range(MARKED_RUNS)]
    emulator.add_fault(
        Fault("GET", "/flows/*", skip=8, times=MAX_ABORT_THREADS, status=429, headers={"Retry-After": "1"})
    )

    mark_deferred(ids, conn_id)

    assert wait_until(lambda: all(run.state == "aborted" for run in emulator.runs.values()))
    first, *_, last = [request.at for request in emulator.requests if request.status == 429]
    if last < first + 0.5:  # no thread was so slow that its request came after the block
        assert not [request for request in emulator.requests if last + 0.1 < request.at < first + 0.95]


@pytest.mark.parametrize("trouble", ["no way", "wrong key"])
def test_a_connection_that_does_not_work_is_tried_few_times(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    """An API server without a way to the service gives up the runs of the connection, and logs their ids."""
    monkeypatch.setattr("airflow_provider_flows.base_hook.MIN_ABORT_ATTEMPTS", 1)  # no seconds of backoff
    more = {"host": "http://127.0.0.1:9"} if trouble == "no way" else {"password": "another"}
    conn_id = connect(emulator, monkeypatch, f"listener_{trouble[:2]}", extra={"retries": 0}, **more)
    ids = [f"{number:024x}" for number in range(MARKED_RUNS)]

    mark_deferred(ids, conn_id)

    assert wait_until(lambda: not abort_threads() and "does not try" in caplog.text)
    assert all(flow_run_id in caplog.text for flow_run_id in ids)
    assert len([record for record in caplog.records if "could not be aborted" in record.message]) <= 30
    assert not [record for record in caplog.records if record.exc_info]


def test_a_key_that_was_changed_is_looked_up_again(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Runs marked just after the connection's key was changed are aborted with the new key."""
    conn_id = connect(emulator, monkeypatch, "listener_changed")
    first, *others = [start_external_run(emulator) for _ in range(MARKED_RUNS)]
    mark_deferred([first], conn_id)
    assert wait_until(lambda: emulator.runs[first].state == "aborted")

    monkeypatch.setattr(emulator._state, "key", "new")
    connect(emulator, monkeypatch, conn_id, password="new")
    mark_deferred(others, conn_id)

    assert wait_until(lambda: all(run.state == "aborted" for run in emulator.runs.values())), caplog.text
    assert len([asked for asked in emulator.requests if asked.status == 401]) <= MAX_ABORT_THREADS


@pytest.mark.parametrize(
    "behaviour", ["no response to any request", "a run of which one byte arrives per second"]
)
def test_aborts_at_a_slow_service_delay_no_other_connection(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, behaviour: str
) -> None:
    """Runs of another connection are aborted while many aborts wait for a slow service, in few threads."""
    monkeypatch.setattr("airflow_provider_flows.base_hook.MIN_ABORT_ATTEMPTS", 1)  # no seconds of backoff
    conn_id = connect(emulator, monkeypatch, "listener_healthy")
    ids = [start_external_run(emulator) for _ in range(MARKED_RUNS)]
    with HostileServer(behaviour) as server:
        connect(emulator, monkeypatch, "listener_slow", host=server.url, extra={"retries": 0})
        mark_deferred([f"{number:024x}" for number in range(MARKED_RUNS)], "listener_slow")
        assert wait_until(lambda: server.open_connections == MAX_ABORT_THREADS)

        mark_deferred(ids, conn_id)

        assert wait_until(lambda: all(run.state == "aborted" for run in emulator.runs.values()))
        assert server.open_connections == MAX_ABORT_THREADS
    assert wait_until(lambda: not abort_threads())


def test_the_queue_of_aborts_is_bounded(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that finds the queue of its connection full is logged, and is not aborted here."""
    monkeypatch.setattr("airflow_provider_flows.plugin.abort_queue.MAX_QUEUED_ABORTS", 5)
    monkeypatch.setattr("airflow_provider_flows.base_hook.MIN_ABORT_ATTEMPTS", 1)  # no seconds of backoff
    with HostileServer("no response to any request") as server:
        conn_id = connect(emulator, monkeypatch, "listener_full", host=server.url, extra={"retries": 0})
        mark_deferred([f"{number:024x}" for number in range(MAX_ABORT_THREADS)], conn_id)
        assert wait_until(lambda: server.open_connections == MAX_ABORT_THREADS)
        mark_deferred([f"{number:024x}" for number in range(100, 106)], conn_id)
        assert f"does not try to abort flow run {105:024x}" in caplog.text
        assert f"{104:024x}" not in caplog.text
    assert wait_until(lambda: not abort_threads())


EXIT_WHILE_ABORTING = """
import sys, time
from airflow_provider_flows.plugin.abort_queue import ABORT_QUEUE

ABORT_QUEUE.submit("mute", "0" * 24)
time.sleep(0.3)
print(time.monotonic())
"""


def test_a_slow_service_does_not_delay_the_exit(flow_server: StubFlowServer) -> None:
    """The process ends while a request is waiting for its response."""
    flow_server.create_runs(1, 60)
    connection = {"conn_type": "generio", "host": flow_server.url, "password": "key"}
    flow_server.run_response = lambda *_: ApiResponse({}, delay=60)
    environment = {**os.environ, "AIRFLOW_CONN_MUTE": json.dumps(connection)}

    done = subprocess.run(
        [sys.executable, "-c", EXIT_WHILE_ABORTING],
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )

    assert time.monotonic() - float(done.stdout.splitlines()[-1]) < 20

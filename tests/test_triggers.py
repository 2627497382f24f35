"""Tests of FlowRunTrigger: what Airflow stores of it, its use of the loop, and when its event is sent."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import subprocess
import sys
import time
from typing import Any

import pytest
from airflow.models.trigger import Trigger
from airflow.sdk import DAG

from airflow_provider_flows.core.exceptions import FlowError, FlowNotFound
from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.triggers import FlowRunTrigger, min_event_delay, run_from_event
from tests.support.airflow_run import run_dag
from tests.support.modes import FLOW, start_external_run
from tests.support.versions import deserialize, serialize

LONGEST_GAP = 0.2  # seconds; at more, Airflow's triggerer says that its loop is blocked
# all that a trigger has: names that tell nothing, and numbers
GIVEN: dict[str, Any] = {
    "flows_conn_id": "other",
    "flow_run_id": "6b0203c3fbcc98b1a4059427",
    "poll_interval": 7.5,
    "max_poll_interval": 77.0,
    "deadline": 1893456000.25,
    "abort_on_kill": True,
    "wait_state": {
        "waiting_since": 1793456000.5,
        "failed_polls": 3,
        "raw_state": "polishing",
        "tenths": 4,
        "is_failing": True,
    },
}


def test_signature_is_that_of_the_design() -> None:
    """The trigger takes connection, run, both intervals and the deadline, in this order."""
    taken = list(inspect.signature(FlowRunTrigger.__init__).parameters.values())[1:]

    positional = [
        parameter.name for parameter in taken if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    assert positional == ["flows_conn_id", "flow_run_id", "poll_interval", "max_poll_interval", "deadline"]


def test_trigger_survives_airflows_database() -> None:
    """Stored as a row of Airflow's and read back, every argument that is no default is what it was."""
    row = Trigger.from_object(FlowRunTrigger(**GIVEN))
    stored = row.encrypted_kwargs
    read = Trigger(classpath=row.classpath, kwargs={})
    read.encrypted_kwargs = stored

    assert row.classpath == "airflow_provider_flows.triggers.FlowRunTrigger"
    assert read.kwargs == GIVEN
    assert FlowRunTrigger(**read.kwargs).serialize() == FlowRunTrigger(**GIVEN).serialize()


def test_trigger_survives_the_way_from_the_worker() -> None:
    """All arguments survive the way from the worker, as plain JSON of a few hundred bytes."""
    _, arguments = FlowRunTrigger(**GIVEN).serialize()

    sent = json.dumps(serialize(arguments))

    assert deserialize(json.loads(sent)) == GIVEN
    assert len(sent) < 600


def test_triggers_of_other_versions_can_be_made() -> None:
    """Missing arguments of an older version have defaults; new ones of a later version are ignored."""
    _, arguments = FlowRunTrigger("flows_default", "1", deadline=None, of_a_later_version=1).serialize()

    assert arguments == {
        "flows_conn_id": "flows_default",
        "flow_run_id": "1",
        "poll_interval": 5.0,
        "max_poll_interval": 60.0,
        "deadline": None,
        "abort_on_kill": False,
    }


# In a new process, as in a triggerer: it imports the class, and then runs it on its one event loop.
BESIDE_A_TICKER = """
import asyncio, gc, json, sys, time
from airflow.models.connection import Connection
from airflow_provider_flows.triggers import FlowRunTrigger, run_from_event

Connection()  # loads all tables, which a triggerer has; Airflow 3.1 reads connections with them
gc.freeze()  # nor is it ours how long Airflow's own modules are searched for garbage

async def main():
    gaps, over = [], False
    async def tick():
        last = time.monotonic()
        while not over:
            await asyncio.sleep(0.005)
            now = time.monotonic()
            gaps.append(now - last)
            last = now
    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0.1)
    waits = [FlowRunTrigger("flows_default", flow_run_id, 0.05, 0.1) for flow_run_id in sys.argv[1:]]
    events = await asyncio.gather(*(anext(wait.run()) for wait in waits))
    over = True
    await ticker
    states = [run_from_event(event.payload).state for event in events]
    print(json.dumps({"gap": max(gaps), "ticks": len(gaps), "states": states}))

asyncio.run(main())
"""


def test_triggerer_loop_is_never_blocked(flow_emulator: Emulator) -> None:
    """While triggers start cold and wait for slow responses, other tasks get their turn in time."""
    flow_emulator.run_seconds = 1
    # what blocks the loop does so each time; a machine that has no time for us does not
    gaps = (gap_beside_triggers(flow_emulator) for _ in range(3))
    assert any(gap < LONGEST_GAP for gap in gaps)


def gap_beside_triggers(flow_emulator: Emulator) -> float:
    """Start three triggers in a new process; return the longest gap of its loop in seconds."""
    flow_emulator.clear_faults()
    flow_emulator.add_fault(Fault(method="GET", path="/flows/*", times=6, delay=0.3))
    ids = [start_external_run(flow_emulator) for _ in range(3)]
    environment = {**os.environ, "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "-1"}

    done = subprocess.run(
        [sys.executable, "-c", BESIDE_A_TICKER, *ids],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["states"] == ["completed"] * 3
    assert told["ticks"] > 50
    gap: float = told["gap"]
    return gap


async def test_event_does_not_go_at_once(flow_emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even for a run that is final at the first poll, the event waits for the executor's report."""
    assert min_event_delay() == 6.0  # at Airflow's default settings
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "0")
    min_event_delay.cache_clear()
    flow_emulator.run_seconds = 0
    flow_run_id = start_external_run(flow_emulator)
    began = time.monotonic()

    event = await anext(FlowRunTrigger("flows_default", flow_run_id).run())

    assert run_from_event(event.payload).is_final
    assert 1.0 <= time.monotonic() - began < 3.0


async def test_cancelled_trigger_leaves_no_session_open(flow_emulator: Emulator) -> None:
    """A trigger that is cancelled in the middle of a wait ends at once and closes what it opened."""
    flow_emulator.run_seconds = 60
    task = asyncio.create_task(
        anext(FlowRunTrigger("flows_default", start_external_run(flow_emulator), 0.05, 0.1).run())
    )
    await asyncio.sleep(0.5)
    assert any(asked.method == "GET" for asked in flow_emulator.requests)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_error_travels_as_it_is(flow_emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    """An error in the triggerer is raised in the worker as the very same type, with message and status."""
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "-1")

    event = await anext(FlowRunTrigger("flows_default", "0" * 24, poll_interval=0.1).run())
    payload = deserialize(json.loads(json.dumps(serialize(event.payload))))  # as Airflow stores it

    with pytest.raises(FlowNotFound, match="returned HTTP 404") as caught:
        run_from_event(payload)
    assert caught.value.status == 404


@pytest.mark.parametrize("event", [None, {}, "done", {"run": "6b02"}, {"error": None}])
def test_foreign_events_are_refused(event: Any) -> None:
    """An event that no FlowRunTrigger makes is a clear error, whatever it is."""
    with pytest.raises(FlowError, match="no FlowRunTrigger emits"):
        run_from_event(event)


def test_missed_deadline_aborts_from_the_triggerer(
    flow_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deadline in the triggerer aborts the run, unless `abort_on_kill=False`; the error says which."""
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "-1")
    flow_emulator.run_seconds = 60
    flow_emulator.switches.abort = "instant"
    given = {
        "flow": FLOW,
        "inputs": "A chair",
        "parameters": {"quality": "low"},
        "deferrable": True,
        "timeout": 0.3,
    }
    with DAG("trigger_deadline", schedule=None, default_args={"poll_interval": 0.1}) as dag:
        RunFlowOperator(task_id="aborted", **given)
        RunFlowOperator(task_id="going_on", abort_on_kill=False, **given)

    result = run_dag(dag)

    assert str(result.errors["aborted"]).endswith("The flow run ended in state 'aborted'.")
    assert str(result.errors["going_on"]).endswith("The flow run continues (abort_on_kill=False).")
    runs = {name: flow_emulator.runs[result.xcoms[name]["flow_run_id"]] for name in result.states}
    assert runs["aborted"].state == "aborted"
    assert runs["going_on"].state in {"starting", "running"}

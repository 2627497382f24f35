"""Tests of FlowRunTrigger: what Airflow stores of it, its use of the loop, and when its event is sent."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from airflow.models.trigger import Trigger
from airflow.sdk import DAG
from airflow.triggers.base import BaseTrigger

from airflow_provider_flows.core.exceptions import FlowError, FlowInputError, FlowNotFound
from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.triggers import (
    FlowRunFinishedTrigger,
    FlowRunTrigger,
    min_event_delay,
    run_from_event,
)
from tests.support.airflow_run import run_dag
from tests.support.modes import FLOW, start_external_run
from tests.support.versions import deserialize, serialize

MAX_LOOP_GAP_SECONDS = 0.2  # after a longer one Airflow's triggerer logs that its loop is blocked
# all arguments of a trigger: ids and numbers only
ARGUMENTS: dict[str, Any] = {
    "is_stored": True,
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


def test_signature_is_stable() -> None:
    """The trigger takes connection, run, both intervals and the deadline, in this order."""
    parameters = list(inspect.signature(FlowRunTrigger.__init__).parameters.values())[1:]

    positional = [
        parameter.name
        for parameter in parameters
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    assert positional == ["flows_conn_id", "flow_run_id", "poll_interval", "max_poll_interval", "deadline"]


def test_trigger_is_restored_from_airflows_database() -> None:
    """Each argument is the same after Airflow has stored and loaded the trigger."""
    row = Trigger.from_object(FlowRunTrigger(**ARGUMENTS))
    stored = row.encrypted_kwargs
    loaded = Trigger(classpath=row.classpath, kwargs={})
    loaded.encrypted_kwargs = stored

    assert row.classpath == "airflow_provider_flows.triggers.FlowRunTrigger"
    assert loaded.kwargs == ARGUMENTS
    assert FlowRunTrigger(**loaded.kwargs).serialize() == FlowRunTrigger(**ARGUMENTS).serialize()


def test_arguments_from_the_worker_are_small_json() -> None:
    """A worker sends all arguments as plain JSON of a few hundred bytes."""
    _, arguments = FlowRunTrigger(**ARGUMENTS).serialize()

    sent = json.dumps(serialize(arguments))

    assert deserialize(json.loads(sent)) == ARGUMENTS
    assert len(sent) < 600


def test_triggers_of_other_versions_can_be_created() -> None:
    """Missing arguments of an older version have defaults; new ones of a later version are ignored."""
    stored = {"is_stored": True, "of_a_later_version": 1}
    _, arguments = FlowRunTrigger("flows_default", "1", deadline=None, **stored).serialize()

    assert arguments == {
        "is_stored": True,
        "flows_conn_id": "flows_default",
        "flow_run_id": "1",
        "poll_interval": 5.0,
        "max_poll_interval": 60.0,
        "deadline": None,
        "abort_on_kill": False,
    }


MISSPELT: list[tuple[type[BaseTrigger], str, str]] = [
    # a trigger, an argument that it does not have, and the closest one
    (FlowRunFinishedTrigger, "flows", "flow"),
    (FlowRunFinishedTrigger, "Flow", "flow"),
    (FlowRunFinishedTrigger, "state", "states"),
    (FlowRunFinishedTrigger, "flow_conn_id", "flows_conn_id"),
    (FlowRunFinishedTrigger, "poll_intervall", "poll_interval"),
    (FlowRunFinishedTrigger, "max_poll_interval", "poll_interval"),
    (FlowRunFinishedTrigger, "is_store", ""),
    (FlowRunFinishedTrigger, "zzz", ""),
    (FlowRunTrigger, "dead_line", "deadline"),
    (FlowRunTrigger, "abort_on_kil", "abort_on_kill"),
    (FlowRunTrigger, "flow_run", "flow_run_id"),
    (FlowRunTrigger, "zzz", ""),
]


@pytest.mark.parametrize(("trigger_class", "misspelt", "closest"), MISSPELT)
def test_unknown_argument_of_a_dag_author_is_an_error(
    trigger_class: type[BaseTrigger], misspelt: str, closest: str
) -> None:
    """An unknown argument is an error that names it, the closest one and all others."""
    required = {"flows_conn_id": "other", "flow_run_id": "a"} if trigger_class is FlowRunTrigger else {}
    create: Any = trigger_class
    with pytest.raises(FlowInputError) as caught:
        create(**required, **{misspelt: "x"})

    message = str(caught.value)
    suggestion = f" (did you mean {closest!r}?)" if closest else ""
    assert message.startswith(f"{trigger_class.__name__} has no argument {misspelt!r}{suggestion}. Its ")
    assert "Its arguments are flows_conn_id, flow" in message
    assert "is_stored" not in message.partition("Its arguments")[2]


@pytest.mark.parametrize("create", [partial(FlowRunTrigger, "other", "a"), FlowRunFinishedTrigger])
def test_unknown_argument_of_a_newer_version_is_logged(
    create: Callable[..., BaseTrigger], caplog: pytest.LogCaptureFixture
) -> None:
    """A stored trigger of a newer version is loaded without its new arguments, which are logged."""
    trigger = create()
    path, stored = trigger.serialize()
    stored_again = deserialize(
        json.loads(json.dumps(serialize({**stored, "of_later": 1, "and_another": [2]})))
    )

    loaded = type(trigger)(**stored_again)

    assert loaded.serialize() == (path, stored)
    assert "has stored: 'and_another', 'of_later'. Upgrade the triggerer's provider" in caplog.text


# In a new process, as in a triggerer: it imports the class, and then runs it on its one event loop.
MEASURE_LOOP_GAPS = """
import asyncio, gc, json, sys, time
from airflow.models.connection import Connection
from airflow_provider_flows.triggers import FlowRunTrigger, run_from_event

Connection()  # loads all tables, which a triggerer has; Airflow 3.1 reads connections with them
gc.freeze()  # the garbage collector takes long for Airflow's own modules

async def main():
    gaps, is_done = [], False
    async def tick():
        last = time.monotonic()
        while not is_done:
            await asyncio.sleep(0.005)
            now = time.monotonic()
            gaps.append(now - last)
            last = now
    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0.1)
    waits = [FlowRunTrigger("flows_default", flow_run_id, 0.05, 0.1) for flow_run_id in sys.argv[1:]]
    events = await asyncio.gather(*(anext(wait.run()) for wait in waits))
    is_done = True
    await ticker
    states = [run_from_event(event.payload).state for event in events]
    print(json.dumps({"gap": max(gaps), "ticks": len(gaps), "states": states}))

asyncio.run(main())
"""


def test_triggerer_loop_is_never_blocked(flow_emulator: Emulator) -> None:
    """While triggers start cold and wait for slow responses, other tasks get their turn in time."""
    flow_emulator.run_seconds = 1
    # code that blocks the loop does so each time, a busy machine does not
    gaps = (measure_loop_gap(flow_emulator) for _ in range(3))
    assert any(gap < MAX_LOOP_GAP_SECONDS for gap in gaps)


def measure_loop_gap(flow_emulator: Emulator) -> float:
    """Start three triggers in a new process; return the longest gap of its loop in seconds."""
    flow_emulator.clear_faults()
    flow_emulator.add_fault(Fault(method="GET", path="/flows/*", times=6, delay=0.3))
    ids = [start_external_run(flow_emulator) for _ in range(3)]
    environment = {**os.environ, "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "-1"}

    process = subprocess.run(
        [sys.executable, "-c", MEASURE_LOOP_GAPS, *ids],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    assert result["states"] == ["completed"] * 3
    assert result["ticks"] > 50
    gap: float = result["gap"]
    return gap


async def test_event_is_delayed(flow_emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even for a run that is final at the first poll, the event waits for the executor's report."""
    assert min_event_delay() == 6.0  # at Airflow's default settings
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "0")
    min_event_delay.cache_clear()
    flow_emulator.run_seconds = 0
    flow_run_id = start_external_run(flow_emulator)
    started_at = time.monotonic()

    event = await anext(FlowRunTrigger("flows_default", flow_run_id).run())

    assert run_from_event(event.payload).is_final
    assert 1.0 <= time.monotonic() - started_at < 3.0


async def test_cancelled_trigger_closes_its_session(flow_emulator: Emulator) -> None:
    """A trigger that is cancelled in the middle of a wait ends at once and closes what it opened."""
    flow_emulator.run_seconds = 60
    task = asyncio.create_task(
        anext(FlowRunTrigger("flows_default", start_external_run(flow_emulator), 0.05, 0.1).run())
    )
    await asyncio.sleep(0.5)
    assert any(request.method == "GET" for request in flow_emulator.requests)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.usefixtures("flow_emulator")
async def test_error_is_raised_in_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in the triggerer is raised in the worker as the very same type, with message and status."""
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "-1")

    event = await anext(FlowRunTrigger("flows_default", "0" * 24, poll_interval=0.1).run())
    payload = deserialize(json.loads(json.dumps(serialize(event.payload))))  # as Airflow stores it

    with pytest.raises(FlowNotFound, match="returned HTTP 404") as caught:
        run_from_event(payload)
    assert caught.value.status == 404


@pytest.mark.parametrize("event", [None, {}, "done", {"run": "6b02"}, {"error": None}])
def test_foreign_events_are_rejected(event: Any) -> None:
    """An event that no FlowRunTrigger emits raises an error that says so."""
    with pytest.raises(FlowError, match="no FlowRunTrigger emits"):
        run_from_event(event)


def test_deadline_in_the_triggerer_aborts_the_run(
    flow_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deadline in the triggerer aborts the run, unless `abort_on_kill=False`; the error says which."""
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "-1")
    flow_emulator.run_seconds = 60
    flow_emulator.switches.abort = "instant"
    arguments = {
        "flow": FLOW,
        "inputs": "A chair",
        "parameters": {"quality": "low"},
        "deferrable": True,
        "timeout": 0.3,
    }
    with DAG("trigger_deadline", schedule=None, default_args={"poll_interval": 0.1}) as dag:
        RunFlowOperator(task_id="aborted", **arguments)
        RunFlowOperator(task_id="continued", abort_on_kill=False, **arguments)

    result = run_dag(dag)

    assert str(result.errors["aborted"]).endswith("The flow run ended in state 'aborted'.")
    assert str(result.errors["continued"]).endswith("The flow run continues (abort_on_kill=False).")
    runs = {name: flow_emulator.runs[result.xcoms[name]["flow_run_id"]] for name in result.states}
    assert runs["aborted"].state == "aborted"
    assert runs["continued"].state in {"starting", "running"}

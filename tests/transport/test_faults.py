"""Tests of every fault at every operation over both transports, against the emulator: one outcome table.

The table stands in faults_table.py. Requests go over real sockets with real connections; only the pauses between them are
made on a clock of the test's own.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

import pytest

from airflow_provider_flows.core import exceptions
from airflow_provider_flows.core.http import Conversation
from airflow_provider_flows.core.polling.schedule import Schedule
from airflow_provider_flows.core.polling.wait import Wait
from airflow_provider_flows.core.retry import NO_RETRY, Retry, with_retries
from airflow_provider_flows.core.run import FlowInput
from airflow_provider_flows.core.start import RunRecord, RunRequest, start
from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.hooks import FlowsHook, GenerioHook, PromptChainerHook
from tests.support.drivers import DRIVERS
from tests.support.faults_table import OPERATIONS, OUTCOME_NAMES, OUTCOMES
from tests.support.scripted_transport import NOON, ScriptedTransport

FLOW, CHAIN = "model_generate_fromprompt", "clibnwpno000bmc0k9hvv3y7f"
ID = "0" * 24
LONGEST = 2000  # characters of an error's message
DEEP = "[" * 5000 + "]" * 5000
NO = b'{"detail": "No."}'


def served(state: str = '"completed"', row: str = "", more: str = "") -> str:
    """Word an answer that any operation finds its own fields in."""
    run = f'"flow_id": "ID", "state": {state}, "progress": 1.0{more}'
    output = f'{{"asset_id": "ID", "status": "ready", "name": "model_generate_fromprompt"{row}}}'
    lists = ", ".join(f'"{name}": [{output}, {output}]' for name in ("outputs", "templates"))
    return f'{{{run}, "flows": [{{{run}}}, {{{run}}}], {lists}}}'


NAMES = ("flow_id", "state", "outputs", "flows", "templates", "data", "progress", "asset_id")
NUMBERS = (
    ', "created_at": NaN, "started_at": 1e999, "finished_at": -1'
    + "0" * 400
    + ', "additional": [NaN, -Infinity, 1e999]'
)
FAULTS: dict[str, Callable[[], dict[str, Any]]] = {
    **{
        str(code): lambda code=code: {"status": code, "body": NO}
        for code in (*range(400, 406), 408, 409, 413, 415, 422, 425)
    },  # type: ignore[misc]
    **{str(code): lambda code=code: {"status": code, "body": NO} for code in (429, 500, 502, 503, 504)},  # type: ignore[misc]
    "429 after seconds": lambda: {"status": 429, "headers": {"Retry-After": "120"}},
    "503 after a date": lambda: {
        "status": 503,
        "headers": {"Retry-After": formatdate(time.time() + 120, usegmt=True)},
    },
    "503 after nonsense": lambda: {"status": 503, "headers": {"Retry-After": "soon"}},
    "reset before": lambda: {"reset": "before"},
    "reset after": lambda: {"reset": "after"},
    "truncated": lambda: {"truncate": 3},
    "slow": lambda: {"delay": 0.6},
    "HTML": lambda: {"headers": {"Content-Type": "text/html"}, "body": b"<html>Bad Gateway</html>"},
    "empty": lambda: {"body": b""},
    "wrong types": lambda: {
        "body": json.dumps({name: 5 if name.endswith("s") else [name] for name in NAMES}).encode()
    },
    "missing": lambda: {"body": b"{}"},
    "nulls": lambda: {"body": json.dumps(dict.fromkeys(NAMES)).encode()},
    "duplicates": lambda: {"body": served(more=', "state": "completed"').encode()},
    "numbers": lambda: {"body": served(row=', "additional": NaN', more=NUMBERS).encode()},
    "unknown states": lambda: {"body": served('"polishing"').replace('"ready"', '"polishing"').encode()},
    "deep": lambda: {
        "body": f'{{"flow_id": "ID", "state": "completed", "outputs": {DEEP}, "flows": {DEEP}}}'.encode()
    },
}


@dataclass(frozen=True)
class Operation:
    """What is asked for, which of its requests goes wrong, and what must be there before."""

    method: str
    path: str
    hold: Callable[[FlowsHook, str, ScriptedTransport], Conversation[Any]]
    prepared: float | None = None
    """Seconds that the run takes which is there before, None if there is none."""


def started(hook: FlowsHook, _: str, __: ScriptedTransport) -> Conversation[Any]:
    """Start a run in the way that keeps."""
    chain = isinstance(hook, PromptChainerHook)
    order = (
        RunRequest(CHAIN, {"color": "red", "item": "ball"})
        if chain
        else RunRequest(FLOW, [FlowInput("p")], {"quality": "low"})
    )
    return start(hook.service, order, RunRecord("", 0), lambda _: None)


def waited(hook: FlowsHook, run: str, script: ScriptedTransport) -> Conversation[Any]:
    """Wait for a run, for a minute at the most."""
    schedule = Schedule(5, 60, NOON + 60)
    return Wait(
        run, hook.service.get_run, schedule=schedule, clock=script.clock, log=lambda *_: None
    ).poll_until_final()


def downloaded(hook: FlowsHook, run: str, _: ScriptedTransport) -> Conversation[Any]:
    """List the outputs and download the first."""
    outputs = yield from hook.service.list_outputs(run)
    return (yield from hook.service.download_output(run, str(outputs[0].asset_id)))


HELD: dict[str, Operation] = {
    "create": Operation("POST", "/flows", started),
    "input": Operation("POST", "*/inputs", started),
    "begin": Operation("PATCH", "/flows/*", started),
    "wait": Operation("GET", "/flows/*", waited, prepared=0),
    "abort": Operation("PATCH", "/flows/*", lambda hook, run, _: hook.service.abort(run), prepared=60),
    "delete": Operation("DELETE", "/flows/*", lambda hook, run, _: hook.service.delete(run), prepared=0),
    "outputs": Operation("GET", "*/outputs", lambda hook, run, _: hook.service.list_outputs(run), prepared=0),
    "download": Operation("GET", "*/outputs/*", downloaded, prepared=0),
    "runs": Operation("GET", "/flows", lambda hook, *_: hook.service.list_runs(), prepared=0),
    "definition": Operation("GET", "/templates", lambda hook, *_: hook.service.get_definition(FLOW)),
    "chain": Operation("POST", "/api/flows/run/*", started),
}
STARTS = {"create", "input", "begin", "chain"}


def outcome(emulator: Emulator, name: str, fault: str, door: str) -> str:
    """Hold an operation at which a fault strikes, and word what came of it as the table does."""
    operation, (kind, _, times) = HELD[name], fault.partition(", ")
    emulator.reset()
    emulator.run_seconds = operation.prepared or 0
    hook: FlowsHook = (
        PromptChainerHook("promptchainer_default") if name == "chain" else GenerioHook("generio_default")
    )
    run = ID if operation.prepared is None else hook.start(FLOW, "A chair", {"quality": "low"}).flow_run_id
    paid_before = emulator.started_count
    hook.connection.extra = json.dumps({"read_timeout": 0.3 if kind == "slow" else 20})
    given = FAULTS[kind]()
    if "body" in given:
        given["body"] = given["body"].replace(b"ID", run.encode())
    emulator.add_fault(Fault(operation.method, operation.path, times=1 if times else None, **given))
    script = ScriptedTransport()
    conversation = operation.hold(hook, run, script)
    patient = (
        with_retries(conversation, NO_RETRY)
        if name == "wait"
        else with_retries(conversation, Retry(attempts=2, now=script.clock))
    )
    try:
        DRIVERS[door](hook.settings, patient, script.sleep)
        ended = "ok"
    except exceptions.FlowError as error:
        ended = (
            OUTCOME_NAMES[type(error).__name__]
            if len(str(error)) < LONGEST
            else f"a message of {len(str(error))} characters"
        )
    paid = emulator.started_count - paid_before
    assert paid <= 1
    return f"{ended} {paid}" if name in STARTS else ended


@pytest.mark.parametrize("door", DRIVERS)
@pytest.mark.parametrize(
    ("kind", "asked"), [("429 after seconds", 120), ("503 after a date", 120), ("503 after nonsense", None)]
)
def test_retry_after_is_told_and_kept(
    flow_emulator: Emulator, kind: str, asked: float | None, door: str
) -> None:
    """The error tells in seconds for how long the service wants peace, and a wait gives it; nonsense is as good as nothing."""
    flow_emulator.run_seconds = 0
    hook, script = GenerioHook("generio_default"), ScriptedTransport()
    run = hook.start(FLOW, "A chair", {"quality": "low"}).flow_run_id
    flow_emulator.add_fault(Fault("GET", times=2, **FAULTS[kind]()))
    with pytest.raises(exceptions.FlowServiceError) as caught:
        DRIVERS[door](hook.settings, with_retries(hook.service.get_run(run), Retry(attempts=1)))
    assert caught.value.retry_after == (None if asked is None else pytest.approx(asked, abs=10))
    schedule = Schedule(5, 60, NOON + 600)
    wait = Wait(run, hook.service.get_run, schedule=schedule, clock=script.clock, log=lambda *_: None)
    assert DRIVERS[door](
        hook.settings, with_retries(wait.poll_until_final(), NO_RETRY), script.sleep
    ).is_final
    assert script.sleeps == [pytest.approx(asked or 5, abs=10)]


def cells() -> Iterator[tuple[str, str, str]]:
    """Read the table: fault, operation, outcome."""
    for line in OUTCOMES.strip().splitlines():
        fault, *outcomes = (cell.strip() for cell in line.split("|"))
        yield from ((fault, operation, told) for operation, told in zip(OPERATIONS, outcomes, strict=True))


EXPECTED = list(cells())


@contextmanager
def no_collection() -> Iterator[None]:
    """Collect no garbage meanwhile: what other tests left would be ended while the stack is full of a deep answer."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("door", DRIVERS)
@pytest.mark.parametrize(
    ("fault", "operation", "expected"), EXPECTED, ids=lambda told: str(told).replace(" ", "-")
)
def test_outcome(flow_emulator: Emulator, fault: str, operation: str, expected: str, door: str) -> None:
    """Each fault at each operation ends as the table says, and in none of them is a second run paid."""
    with no_collection():
        assert outcome(flow_emulator, operation, fault, door) == expected


def test_table_is_whole() -> None:
    """Every fault has a row, and every operation a column."""
    assert {fault.partition(",")[0] for fault, _, _ in EXPECTED} == set(FAULTS)
    assert set(OPERATIONS) == set(HELD)

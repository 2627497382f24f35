"""Tests of every fault in every operation over both transports, against the emulator: one table of outcomes.

The table is in tests/support/faults_table.py. Requests go over real sockets; only the delays between them run
on a scripted clock.
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
from airflow_provider_flows.core.flow_run import FlowInput
from airflow_provider_flows.core.http import Conversation
from airflow_provider_flows.core.polling.schedule import Schedule
from airflow_provider_flows.core.polling.wait import Wait
from airflow_provider_flows.core.retry import NO_RETRY, Retry, with_retries
from airflow_provider_flows.core.start_or_resume import RunRecord, RunRequest, start
from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.hooks import FlowsHook, GenerioHook, PromptChainerHook
from tests.support.drivers import DRIVERS
from tests.support.faults_table import OPERATIONS, OUTCOME_NAMES, OUTCOMES
from tests.support.scripted_transport import NOON, ScriptedTransport

FLOW, CHAIN = "model_generate_fromprompt", "clibnwpno000bmc0k9hvv3y7f"
ID = "0" * 24
MAX_MESSAGE_CHARS = 2000  # characters of an error's message
DEEP = "[" * 5000 + "]" * 5000
NO = b'{"detail": "No."}'


def list_body(state: str = '"completed"', row: str = "", more: str = "") -> str:
    """Return a JSON body in which any operation finds the fields that it reads."""
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
    },
    **{str(code): lambda code=code: {"status": code, "body": NO} for code in (429, 500, 502, 503, 504)},
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
    "duplicates": lambda: {"body": list_body(more=', "state": "completed"').encode()},
    "numbers": lambda: {"body": list_body(row=', "additional": NaN', more=NUMBERS).encode()},
    "unknown states": lambda: {"body": list_body('"polishing"').replace('"ready"', '"polishing"').encode()},
    "deep": lambda: {
        "body": f'{{"flow_id": "ID", "state": "completed", "outputs": {DEEP}, "flows": {DEEP}}}'.encode()
    },
}


@dataclass(frozen=True)
class Operation:
    """An operation, which of its requests fails, and what must exist before."""

    method: str
    path: str
    create: Callable[[FlowsHook, str, ScriptedTransport], Conversation[Any]]
    prepared: float | None = None
    """Seconds that the run takes which is there before, None if there is none."""


def start_run(hook: FlowsHook, _: str, __: ScriptedTransport) -> Conversation[Any]:
    """Start a run with a saved record."""
    chain = isinstance(hook, PromptChainerHook)
    run_request = (
        RunRequest(CHAIN, {"color": "red", "item": "ball"})
        if chain
        else RunRequest(FLOW, [FlowInput("p")], {"quality": "low"})
    )
    return start(hook.service, run_request, RunRecord("", 0), lambda _: None)


def wait_for_run(hook: FlowsHook, run: str, script: ScriptedTransport) -> Conversation[Any]:
    """Wait for a run, for at most a minute."""
    schedule = Schedule(5, 60, NOON + 60)
    return Wait(
        run, hook.service.get_run, schedule=schedule, clock=script.clock, log=lambda *_: None
    ).poll_until_final()


def download_first(hook: FlowsHook, run: str, _: ScriptedTransport) -> Conversation[Any]:
    """List the outputs and download the first."""
    outputs = yield from hook.service.list_outputs(run)
    return (yield from hook.service.download_output(run, str(outputs[0].asset_id)))


CONVERSATIONS: dict[str, Operation] = {
    "create": Operation("POST", "/flows", start_run),
    "input": Operation("POST", "*/inputs", start_run),
    "begin": Operation("PATCH", "/flows/*", start_run),
    "wait": Operation("GET", "/flows/*", wait_for_run, prepared=0),
    "abort": Operation("PATCH", "/flows/*", lambda hook, run, _: hook.service.abort(run), prepared=60),
    "delete": Operation("DELETE", "/flows/*", lambda hook, run, _: hook.service.delete(run), prepared=0),
    "outputs": Operation("GET", "*/outputs", lambda hook, run, _: hook.service.list_outputs(run), prepared=0),
    "download": Operation("GET", "*/outputs/*", download_first, prepared=0),
    "runs": Operation("GET", "/flows", lambda hook, *_: hook.service.list_runs(), prepared=0),
    "definition": Operation("GET", "/templates", lambda hook, *_: hook.service.get_definition(FLOW)),
    "chain": Operation("POST", "/api/flows/run/*", start_run),
}
STARTS = {"create", "input", "begin", "chain"}


def get_outcome(emulator: Emulator, name: str, fault: str, driver: str) -> str:
    """Run an operation with a fault, and return its outcome in the words of the table."""
    operation, (kind, _, times) = CONVERSATIONS[name], fault.partition(", ")
    emulator.reset()
    emulator.run_seconds = operation.prepared or 0
    hook: FlowsHook = (
        PromptChainerHook("promptchainer_default") if name == "chain" else GenerioHook("generio_default")
    )
    run = ID if operation.prepared is None else hook.start(FLOW, "A chair", {"quality": "low"}).flow_run_id
    paid_before = emulator.started_count
    hook.connection.extra = json.dumps({"read_timeout": 0.3 if kind == "slow" else 20})
    arguments = FAULTS[kind]()
    if "body" in arguments:
        arguments["body"] = arguments["body"].replace(b"ID", run.encode())
    emulator.add_fault(Fault(operation.method, operation.path, times=1 if times else None, **arguments))
    script = ScriptedTransport()
    conversation = operation.create(hook, run, script)
    retried = (
        with_retries(conversation, NO_RETRY)
        if name == "wait"
        else with_retries(conversation, Retry(attempts=2, now=script.clock))
    )
    try:
        DRIVERS[driver](hook.settings, retried, script.sleep)
        ended = "ok"
    except exceptions.FlowError as error:
        ended = (
            OUTCOME_NAMES[type(error).__name__]
            if len(str(error)) < MAX_MESSAGE_CHARS
            else f"a message of {len(str(error))} characters"
        )
    paid = emulator.started_count - paid_before
    assert paid <= 1
    return f"{ended} {paid}" if name in STARTS else ended


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    ("kind", "seconds"), [("429 after seconds", 120), ("503 after a date", 120), ("503 after nonsense", None)]
)
def test_retry_after_is_in_the_error(
    flow_emulator: Emulator, kind: str, seconds: float | None, driver: str
) -> None:
    """The error has the seconds of Retry-After, and a wait honours them; an invalid value counts as none."""
    flow_emulator.run_seconds = 0
    hook, script = GenerioHook("generio_default"), ScriptedTransport()
    run = hook.start(FLOW, "A chair", {"quality": "low"}).flow_run_id
    flow_emulator.add_fault(Fault("GET", times=2, **FAULTS[kind]()))
    with pytest.raises(exceptions.FlowServiceError) as caught:
        DRIVERS[driver](hook.settings, with_retries(hook.service.get_run(run), Retry(attempts=1)))
    assert caught.value.retry_after == (None if seconds is None else pytest.approx(seconds, abs=10))
    schedule = Schedule(5, 60, NOON + 600)
    wait = Wait(run, hook.service.get_run, schedule=schedule, clock=script.clock, log=lambda *_: None)
    assert DRIVERS[driver](
        hook.settings, with_retries(wait.poll_until_final(), NO_RETRY), script.sleep
    ).is_final
    assert script.sleeps == [pytest.approx(seconds or 5, abs=10)]


def iter_cells() -> Iterator[tuple[str, str, str]]:
    """Yield the cells of the table: fault, operation, outcome."""
    for line in OUTCOMES.strip().splitlines():
        fault, *outcomes = (cell.strip() for cell in line.split("|"))
        yield from (
            (fault, operation, expected) for operation, expected in zip(OPERATIONS, outcomes, strict=True)
        )


EXPECTED = list(iter_cells())


@contextmanager
def no_collection() -> Iterator[None]:
    """Disable garbage collection: it could run objects of other tests while deep JSON fills the stack."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    ("fault", "operation", "expected"), EXPECTED, ids=lambda value: str(value).replace(" ", "-")
)
def test_each_fault_has_the_outcome_of_the_table(
    flow_emulator: Emulator, fault: str, operation: str, expected: str, driver: str
) -> None:
    """Each fault in each operation has the outcome of the table, and never pays for a second run."""
    with no_collection():
        assert get_outcome(flow_emulator, operation, fault, driver) == expected


def test_table_has_every_fault_and_operation() -> None:
    """Every fault has a row, and every operation a column."""
    assert {fault.partition(",")[0] for fault, _, _ in EXPECTED} == set(FAULTS)
    assert set(OPERATIONS) == set(CONVERSATIONS)

"""Tests of killed triggers: which flow runs are aborted, in what time, and with how many messages."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import ErrorResponse, GetTaskStates, OKResponse, TaskStatesResult

from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.triggerer.kill_check import MAX_CONCURRENT_ABORTS, TaskStateReader
from airflow_provider_flows.triggerer.per_loop import get_cached_hook
from airflow_provider_flows.worker.kill_check import on_kill_timeout
from tests.support.kills import StubSupervisor, create_trigger, kill_all, run_until_killed, task_instance
from tests.support.modes import start_external_run
from tests.support.triggers import age_hook_cache, wait_for_condition, wait_for_idle_loop
from tests.support.versions import needs

MANY = 500
HTTPX_MAX_URL_CHARACTERS = 65_536
ACTIVE_STATES = {"starting", "running"}

pytestmark = [
    pytest.mark.emulator(run_seconds=3600, abort="instant"),
    needs("on_kill of triggers"),
]


def start_runs(emulator: Emulator, count: int) -> list[str]:
    """Start flow runs, and return their ids."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda _: start_external_run(emulator), range(count)))


def states(emulator: Emulator) -> dict[str, int]:
    """Return how many runs are in each state."""
    return dict(Counter(run.state for run in emulator.runs.values()))


def is_waiting(emulator: Emulator) -> bool:
    """Return whether a trigger has polled its run."""
    return any(request.method == "GET" for request in emulator.requests)


async def kill_one(
    emulator: Emulator, supervisor: StubSupervisor, state: str | None = "failed", **region: Any
) -> str:
    """Let a trigger wait, set its task's state, and kill it; return the id of its flow run."""
    flow_run_id = start_external_run(emulator)
    ti = task_instance("run", **region)
    supervisor.states[ti.dag_id, ti.run_id, ti.task_id, ti.map_index] = "deferred"
    trigger = create_trigger(flow_run_id, ti, poll_interval=60)
    task = asyncio.create_task(run_until_killed(trigger))
    assert await wait_for_condition(lambda: is_waiting(emulator) and len(supervisor.messages) == 1)
    assert await wait_for_condition(lambda: TaskStateReader.for_loop()._task is None)
    supervisor.states[ti.dag_id, ti.run_id, ti.task_id, ti.map_index] = state
    await kill_all([task])
    return flow_run_id


def kill_lines(caplog: pytest.LogCaptureFixture, flow_run_id: str) -> list[tuple[str, str]]:
    """Return level and text of the lines about the kill of a run."""
    return [
        (record.levelname, record.getMessage())
        for record in caplog.records
        if flow_run_id in record.getMessage() and "poll" not in record.getMessage()
    ]


async def test_500_killed_at_once_are_all_aborted(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A triggerer that has just started aborts the runs of 500 tasks that are killed in the same moment.

    Its first response takes seconds, each other one 50 ms: one message for each task would take too long.
    """
    supervisor = StubSupervisor(first_seconds=3.0, seconds=0.05).install(monkeypatch)
    ids = start_runs(emulator, MANY)
    tis = [task_instance("run", number) for number in range(MANY)]
    triggers = [create_trigger(key, ti, poll_interval=60) for key, ti in zip(ids, tis, strict=True)]
    tasks = [asyncio.create_task(run_until_killed(one)) for one in triggers]
    assert await wait_for_condition(lambda: supervisor.messages, 30)
    supervisor.set_state(tis, "failed")

    killed_at = time.monotonic()
    await kill_all(tasks)
    seconds = time.monotonic() - killed_at

    assert states(emulator) == {"aborted": MANY}
    assert seconds < on_kill_timeout()
    assert len(supervisor.messages) <= 4


async def test_the_abort_has_its_own_time(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A late response from Airflow leaves the abort all the time that it needs.

    `on_kill` itself ends within `[triggerer] on_kill_timeout`, and the abort continues.
    """
    monkeypatch.setenv("AIRFLOW__TRIGGERER__ON_KILL_TIMEOUT", "2")
    supervisor = StubSupervisor(seconds=1.2).install(monkeypatch)
    emulator.add_fault(Fault("GET", "/flows/*", skip=1, delay=1.5))

    await kill_one(emulator, supervisor)

    assert states(emulator) != {"aborted": 1}
    assert await wait_for_condition(lambda: states(emulator) == {"aborted": 1})
    assert await wait_for_idle_loop()


@pytest.mark.parametrize(
    ("latest_state", "xcom_status", "run_states", "line"),
    [
        ("failed", None, {"aborted"}, "The task was killed, so flow run %s was aborted"),
        ("success", 403, ACTIVE_STATES, "(UnknownIterationError), so flow run %s is left to the next try"),
        ("success", 500, ACTIVE_STATES, "(AirflowRuntimeError), so flow run %s is left to the next try"),
        (None, None, ACTIVE_STATES, "(UnknownIterationError), so flow run %s is left to the next try"),
        ("deferred", None, ACTIVE_STATES, "(UnknownIterationError), so flow run %s is left to the next try"),
    ],
)
async def test_iteration_of_a_loop(  # noqa: PLR0917
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    latest_state: str | None,
    xcom_status: int | None,
    run_states: set[str],
    line: str,
) -> None:
    """In a task loop a run is aborted if the latest iteration is finished, and its task was not replaced.

    Airflow rejects the XCom request of a trigger whose task instance was replaced.
    """
    caplog.set_level(logging.INFO)
    supervisor = StubSupervisor(xcom_status=xcom_status).install(monkeypatch)

    flow_run_id = await kill_one(emulator, supervisor, latest_state, region_id=uuid4(), region_index=1)

    assert await wait_for_condition(
        lambda: any(line % flow_run_id in text for _, text in kill_lines(caplog, flow_run_id))
    )
    assert emulator.runs[flow_run_id].state in run_states


def reject(_: GetTaskStates) -> Any:
    """Raise what Airflow raises for an error of its API."""
    raise AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"why": "down"}))


def close(_: GetTaskStates) -> Any:
    """Cancel the wait, as Airflow does when the connection to the supervisor is closed."""
    raise asyncio.CancelledError


DOUBTS = {
    "an error": reject,
    "closed": close,
    "another response": lambda _: OKResponse(ok=True),
    "no response": None,
}


@pytest.mark.parametrize("doubt", DOUBTS)
async def test_unavailable_task_state_is_logged_in_one_line_at_info(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, doubt: str
) -> None:
    """If Airflow does not report the task's state, the run continues, and one line says so, no traceback."""
    monkeypatch.setenv("AIRFLOW__TRIGGERER__ON_KILL_TIMEOUT", "1")
    supervisor = StubSupervisor(respond=DOUBTS[doubt]).install(monkeypatch)
    supervisor.seconds = 60.0 if doubt == "no response" else 0.0
    caplog.set_level(logging.INFO, "airflow_provider_flows.triggers")

    flow_run_id = await kill_one(emulator, supervisor)

    ((level, line),) = [one for one in kill_lines(caplog, flow_run_id) if "next try" in one[1]]
    assert level == "INFO"
    assert "\n" not in line
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.WARNING]
    assert "aborted" not in states(emulator)


async def test_kill_without_a_supervisor_aborts_nothing(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no supervisor is, a kill aborts nothing and raises nothing."""
    monkeypatch.delattr(task_runner, "SUPERVISOR_COMMS", raising=False)
    caplog.set_level(logging.INFO, "airflow_provider_flows.triggers")
    flow_run_id = start_external_run(emulator)

    await create_trigger(flow_run_id).on_kill()

    assert [level for level, _ in kill_lines(caplog, flow_run_id)] == ["INFO"]
    assert "aborted" not in states(emulator)


@pytest.mark.parametrize("state", ["deferred", "queued", "running", "scheduled", None])
async def test_trigger_of_a_task_that_continues_does_not_abort_its_run(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, state: str | None
) -> None:
    """A trigger that moved to another triggerer, or whose task was cleared (no state), aborts nothing."""
    supervisor = StubSupervisor().install(monkeypatch)

    await kill_one(emulator, supervisor, state)

    assert "aborted" not in states(emulator)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_trigger_of_a_task_that_was_replaced_aborts_its_run(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task instance that no longer exists has no next try, as after a Clear of its expansion."""
    supervisor = StubSupervisor().install(monkeypatch)
    supervisor.respond = lambda _: TaskStatesResult(task_states={})

    await kill_one(emulator, supervisor)

    assert states(emulator) == {"aborted": 1}


async def test_failed_abort_of_a_finished_task_is_a_warning(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A finished task whose run cannot be aborted logs one warning with the reason, and no traceback."""
    supervisor = StubSupervisor().install(monkeypatch)
    emulator.add_fault(Fault("PATCH", "/flows/*", times=None, status=403, body=b'{"detail": "not yours"}'))

    flow_run_id = await kill_one(emulator, supervisor)

    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.levelname for record in warnings] == ["WARNING"]
    assert f"Flow run {flow_run_id} could not be aborted" in warnings[0].getMessage()
    assert "HTTP 403" in warnings[0].getMessage()
    assert not warnings[0].exc_info


async def test_a_changed_key_is_reloaded_for_the_abort(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the service rejects the key, the connection is looked up again, as during the wait."""
    conn_id = "changing"
    connection = {"conn_type": "generio", "host": emulator.url, "password": "old"}
    monkeypatch.setenv("AIRFLOW_CONN_CHANGING", json.dumps(connection))
    await get_cached_hook(conn_id)
    monkeypatch.setenv("AIRFLOW_CONN_CHANGING", json.dumps(connection | {"password": emulator.key}))
    age_hook_cache(conn_id)
    supervisor = StubSupervisor().install(monkeypatch)
    ti = task_instance("run")
    supervisor.set_state([ti], "failed")

    await create_trigger(start_external_run(emulator), ti, conn_id).on_kill()

    assert states(emulator) == {"aborted": 1}


async def test_a_final_run_is_not_called_aborted(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says that a run was aborted only if it was."""
    supervisor = StubSupervisor().install(monkeypatch)
    caplog.set_level(logging.INFO, "airflow_provider_flows.triggers")

    aborted = await kill_one(emulator, supervisor)
    emulator.reset()
    emulator.run_seconds = 3600
    supervisor.messages.clear()
    supervisor.respond = lambda message: (emulator.advance(7200), supervisor.result(message))[1]
    TaskStateReader.for_loop()._is_warm = False
    final = await kill_one(emulator, supervisor)

    assert any(f"run {aborted} was aborted" in line for _, line in kill_lines(caplog, aborted))
    assert any(f"run {final} had already ended" in line for _, line in kill_lines(caplog, final))
    assert not any("was aborted" in line for _, line in kill_lines(caplog, final))


@pytest.mark.parametrize(("abort_on_kill", "messages"), [(True, 1), (False, 0)])
async def test_the_first_trigger_sends_one_message_early(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, *, abort_on_kill: bool, messages: int
) -> None:
    """Of all triggers with `abort_on_kill` one sends a message at its start; an error disturbs none."""
    supervisor = StubSupervisor(respond=reject).install(monkeypatch)
    ids = start_runs(emulator, 20)
    emulator.run_seconds = 0
    triggers = [create_trigger(key, poll_interval=0.1, abort_on_kill=abort_on_kill) for key in ids]
    waits = [asyncio.create_task(anext(trigger.run())) for trigger in triggers]
    assert await wait_for_condition(lambda: is_waiting(emulator))
    await asyncio.sleep(0.3)
    emulator.advance(7200)

    events = await asyncio.gather(*waits)

    assert all("run" in event.payload for event in events)
    assert len(supervisor.messages) == messages
    assert await wait_for_idle_loop()


async def test_aborts_observe_the_rate_limit(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 429 with Retry-After stops all aborts for that long, and at the end every run is aborted."""
    supervisor = StubSupervisor().install(monkeypatch)
    ids = start_runs(emulator, 60)
    tis = [task_instance(f"task_{number}") for number in range(60)]
    supervisor.set_state(tis, "failed")
    triggers = [create_trigger(key, ti) for key, ti in zip(ids, tis, strict=True)]
    emulator.add_fault(
        Fault(
            "GET", "/flows/*", skip=20, times=MAX_CONCURRENT_ABORTS, status=429, headers={"Retry-After": "1"}
        )
    )

    await asyncio.gather(*(trigger.on_kill() for trigger in triggers))

    assert states(emulator) == {"aborted": 60}
    rejected = [request.at for request in emulator.requests if request.status == 429]
    assert rejected
    assert not [
        request for request in emulator.requests if rejected[-1] + 0.1 < request.at < rejected[0] + 0.95
    ]
    assert len(supervisor.messages) == 1


# the messages to Airflow ------------------------------------------------------------------------------------

TASKS = [
    *(("plain", f"step_{number}", -1) for number in range(30)),
    *(("plain", "a", number) for number in range(12)),
    *(("plain", "a_1", number) for number in (-1, 3)),
    *(("other", f"{'x' * 200}_{number}", -1) for number in range(30)),
    *(("other", "Stuhl für Zoë", number) for number in range(5)),
]
NAMES_OF_RUNS = ["scheduled__2026-11-30T08:00:00+00:00", "manual é " + "r" * 200, "third"]


@pytest.mark.parametrize("count", [1, 2, len(TASKS) * len(NAMES_OF_RUNS)])
async def test_each_task_gets_its_own_state(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """However tasks are named, mapped and collected into messages, each trigger gets its task's state."""
    supervisor = StubSupervisor().install(monkeypatch)
    tis = [
        task_instance(task_id, map_index, run_id, dag_id)
        for (dag_id, task_id, map_index), run_id in itertools.product(TASKS, NAMES_OF_RUNS)
    ][:count]
    expected = [number % 3 == 0 for number in range(count)]
    for ti, is_failed in zip(tis, expected, strict=True):
        supervisor.set_state([ti], "failed" if is_failed else "deferred")

    found = await asyncio.gather(*(TaskStateReader.for_loop().is_finished(ti) for ti in tis))

    assert found == expected
    assert len(supervisor.messages) <= 6
    assert max(map(url_characters, supervisor.messages)) < HTTPX_MAX_URL_CHARACTERS


def url_characters(message: GetTaskStates) -> int:
    """Return the length of the URL that Airflow makes of a message."""
    values = message.model_dump(exclude_none=True, exclude={"type"})
    return len(str(httpx.URL("http://in-process.invalid./task-instances/states", params=values)))


async def test_long_names_are_sent_in_several_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of 250 characters that a URL quotes do not make a URL that Airflow's client rejects."""
    supervisor = StubSupervisor().install(monkeypatch)
    tis = [task_instance(f"{number:03}" + "ü" * 247) for number in range(200)]
    assert len(quote(tis[0].task_id)) * len(tis) > HTTPX_MAX_URL_CHARACTERS
    supervisor.set_state(tis, "failed")

    assert all(await asyncio.gather(*(TaskStateReader.for_loop().is_finished(ti) for ti in tis)))

    assert max(map(url_characters, supervisor.messages)) < HTTPX_MAX_URL_CHARACTERS


async def test_a_state_from_before_the_kill_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A kill waits for a message of its own while an earlier one is outstanding."""
    supervisor = StubSupervisor(first_seconds=0.3).install(monkeypatch)
    before, killed = task_instance("before"), task_instance("killed")
    supervisor.set_state([before, killed], "deferred")
    reader = TaskStateReader.for_loop()
    reader.warm_up(before)
    assert await wait_for_condition(lambda: supervisor.messages)
    supervisor.set_state([killed], "failed")

    assert await reader.is_finished(killed)

    assert [message.task_ids for message in supervisor.messages] == [["before"], ["killed"]]

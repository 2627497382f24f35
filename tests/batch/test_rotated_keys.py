"""Tests of batches whose connection gets another key while they run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_flows.core.exceptions import FlowAuthError
from airflow_provider_flows.emulator import Emulator, RecordedRequest
from airflow_provider_flows.triggers import FlowBatchTrigger
from tests.support.batches import (
    count_paid_runs,
    create_batch,
    create_chain_batch,
    create_chain_items,
    create_items,
    read_manifest_states,
    run_try,
)
from tests.support.modes import is_poll, start_external_run
from tests.support.task_instances import Store

pytestmark = pytest.mark.emulator(run_seconds=0.3, abort="instant", retries=0)

ITEMS = 4
CONNECTIONS = ("AIRFLOW_CONN_GENERIO_DEFAULT", "AIRFLOW_CONN_PROMPTCHAINER_DEFAULT")


def rotate_at(
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    matches: Callable[[RecordedRequest], bool],
    *,
    is_stored: bool = True,
) -> None:
    """Let the service accept another key only, from the second request of a kind on.

    :param is_stored: whether the connection has that key then.
    """
    count = 0

    def on_request(request: RecordedRequest) -> None:
        nonlocal count
        count += matches(request)
        if count == 2 and emulator._state.key != "rotated":
            monkeypatch.setattr(emulator._state, "key", "rotated")
            for name in CONNECTIONS if is_stored else ():
                connection = json.loads(emulator.connections[name]) | {"extra": {"retries": 0}}
                monkeypatch.setenv(name, json.dumps(connection))

    emulator.set_request_listener(on_request)


REQUESTS: dict[str, Callable[[RecordedRequest], bool]] = {
    "create": lambda one: (one.method, one.path) == ("POST", "/flows"),
    "add input": lambda one: one.method == "POST" and one.path.endswith("/inputs"),
    "start": lambda one: one.method == "PATCH",
    "poll": is_poll,
    "list outputs": lambda one: one.path.endswith("/outputs"),
    "download": lambda one: "/outputs/" in one.path,
}


@pytest.mark.parametrize("request_kind", REQUESTS)
def test_a_batch_continues_with_the_new_key(
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    request_kind: str,
) -> None:
    """Whichever request is rejected first, the batch reads the connection again, and pays nothing twice."""
    rotate_at(emulator, monkeypatch, REQUESTS[request_kind])
    caplog.set_level("INFO")
    result = run_try(create_batch(tmp_path, create_items(ITEMS), max_active_runs=2))
    assert (result["completed"], result["failed"]) == (ITEMS, 0)
    assert count_paid_runs(emulator) == {f"item-{number}": 1 for number in range(1, ITEMS + 1)}
    assert not [run for run in emulator.runs.values() if not run.has_started]
    assert caplog.text.count("have changed; the wait continues with the new ones") == 1


def test_a_batch_of_a_service_without_ids(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """At PromptChainer a rejected request ran nothing, and is sent with the new key."""
    emulator.run_seconds = 0
    rotate_at(emulator, monkeypatch, lambda one: one.method == "POST")
    result = run_try(create_chain_batch(tmp_path, create_chain_items(ITEMS), max_active_runs=1))
    assert result["completed"] == ITEMS
    assert set(count_paid_runs(emulator).values()) == {1}


def test_a_key_that_is_rejected_everywhere_ends_the_batch(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without another key in the connection the batch ends; a retry with one resumes what is missing."""
    rotate_at(emulator, monkeypatch, REQUESTS["add input"], is_stored=False)
    store = Store()
    with pytest.raises(FlowAuthError):
        run_try(create_batch(tmp_path, create_items(ITEMS), max_active_runs=1), store)
    emulator.set_request_listener(None)
    for name in CONNECTIONS:
        monkeypatch.setenv(name, emulator.connections[name])
    assert run_try(create_batch(tmp_path, create_items(ITEMS)), store, 2)["completed"] == ITEMS
    assert set(count_paid_runs(emulator).values()) == {1}
    assert set(read_manifest_states(tmp_path).values()) == {"completed"}
    assert not [run for run in emulator.runs.values() if not run.has_started]


def test_the_trigger_of_a_batch_reads_the_new_key(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deferred batch continues its wait with the new key; its worker is not needed for that."""
    ids = [start_external_run(emulator) for _ in range(2)]
    rotate_at(emulator, monkeypatch, is_poll)
    trigger = FlowBatchTrigger("generio_default", ids, 2, 0.1, 0.2)

    async def run() -> Any:
        return (await anext(trigger.run())).payload

    assert asyncio.run(run()) == {"final_run_ids": sorted(ids)}

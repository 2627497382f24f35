"""Tests of batches whose process ends at any moment, or whose task is run again: no item is paid twice."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_flows.core.exceptions import FlowError, FlowQuotaExceeded, FlowRunFailed
from airflow_provider_flows.emulator import Emulator, Fault, Plan
from tests.support.batches import (
    CountingStore,
    Death,
    count_paid_runs,
    create_batch,
    create_chain_batch,
    create_chain_items,
    create_items,
    die_at_request,
    get_item_key,
    read_lines,
    read_manifest_states,
    run_try,
)
from tests.support.task_instances import AIRFLOW_KINDS, AirflowKind, Store

pytestmark = [
    pytest.mark.emulator(run_seconds=0.2, abort="instant", retries=0),
    pytest.mark.usefixtures("short_search"),
]

ITEMS = 4


def assert_paid_once(emulator: Emulator, output_path: Path, items: int = ITEMS) -> None:
    """Assert that each item has completed, and that one run was started for it."""
    assert count_paid_runs(emulator) == {f"item-{number}": 1 for number in range(1, items + 1)}
    assert set(read_manifest_states(output_path).values()) == {"completed"}
    assert [run.state for run in emulator.runs.values() if not run.has_started] == []


@pytest.mark.parametrize("is_written", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("dies_at", range(1, 9))
def test_death_at_each_write_to_the_store(
    emulator: Emulator, tmp_path: Path, dies_at: int, *, is_written: bool
) -> None:
    """A worker that dies before or after a write, twice, starts no item a second time."""
    values: dict[str, Any] = {}
    for try_number in (1, 2):
        store = CountingStore(values, dies_at, is_written=is_written)
        with suppress(Death):
            run_try(create_batch(tmp_path, create_items(ITEMS), max_active_runs=2), store, try_number)
        values = dict(store)
    result = run_try(create_batch(tmp_path, create_items(ITEMS), max_active_runs=2), Store(values), 3)
    assert result["completed"] == ITEMS
    assert_paid_once(emulator, tmp_path)


@pytest.mark.parametrize("dies_at", [2, 3, 4, 5, 7, 9, 11, 14, 18, 23])
def test_death_at_each_request(emulator: Emulator, tmp_path: Path, dies_at: int) -> None:
    """A worker that dies at a request, twice, starts no item a second time."""
    store = Store()
    for try_number in (1, 2):
        with die_at_request(emulator, dies_at), suppress(Death):
            run_try(create_batch(tmp_path, create_items(ITEMS), max_active_runs=2), store, try_number)
    result = run_try(create_batch(tmp_path, create_items(ITEMS), max_active_runs=2), store, 3)
    assert result["completed"] == ITEMS
    assert_paid_once(emulator, tmp_path)


@pytest.mark.parametrize("is_written", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("dies_at", range(1, 9))
def test_death_of_a_service_without_ids(
    emulator: Emulator, tmp_path: Path, dies_at: int, *, is_written: bool
) -> None:
    """At PromptChainer only an item whose request was saved and whose response was not may run again."""
    emulator.run_seconds = 0
    store = CountingStore({}, dies_at, is_written=is_written)
    items = create_chain_items(ITEMS)
    with suppress(Death):
        run_try(create_chain_batch(tmp_path, items, max_active_runs=1), store)
    before = count_paid_runs(emulator)
    has_response = {path.parent.name for path in tmp_path.glob("*/.flow_run_*.json")}
    result = run_try(create_chain_batch(tmp_path, items, max_active_runs=1), Store(store), 2)
    assert result["completed"] == ITEMS
    for key, count in count_paid_runs(emulator).items():
        assert count == 1 or (before[key] == 1 and key not in has_response), key
    assert not list(tmp_path.glob("*/.flow_run_*.json"))


def test_retry_runs_again_what_failed_only(emulator: Emulator, tmp_path: Path) -> None:
    """A retry runs the failed item again, and sends no request for the others."""
    emulator.add_plan(Plan("failed", error="Out of memory"))
    store = Store()
    with pytest.raises(FlowRunFailed, match="3 of 4 items have completed, less than min"):
        run_try(create_batch(tmp_path, create_items(ITEMS), max_active_runs=1), store)
    (failed,) = read_lines(tmp_path / "failed.jsonl")
    assert failed["key"] == "item-1"
    sent = len(emulator.requests)
    result = run_try(create_batch(tmp_path, create_items(ITEMS), max_active_runs=1), store, 2)
    assert result["completed"] == ITEMS
    assert count_paid_runs(emulator) == {"item-1": 2, "item-2": 1, "item-3": 1, "item-4": 1}
    ids = {run.flow_run_id for run in emulator.paid_runs[:ITEMS]}
    assert not [one.path for one in emulator.requests[sent:] if ids & {*one.path.split("/")}]
    assert read_lines(tmp_path / "manifest.jsonl")[0]["attempts"] == 2


@pytest.mark.parametrize("kind", AIRFLOW_KINDS.values(), ids=AIRFLOW_KINDS)
def test_used_up_quota_stops_the_batch(emulator: Emulator, tmp_path: Path, kind: AirflowKind) -> None:
    """402 in the middle: active runs end, the task fails, and after it a Clear runs what is missing."""
    emulator.run_seconds = 0.5

    def use_up(_: Any) -> None:
        if emulator.started_count == 2:
            emulator.switches.quota = 402

    emulator.set_request_listener(use_up)
    store = Store()
    with pytest.raises(FlowQuotaExceeded):
        run_try(create_batch(tmp_path, create_items(ITEMS), max_active_runs=2), store, kind=kind)
    if kind.clear_deletes_state:
        store = Store()
    states = read_manifest_states(tmp_path)
    assert sorted(states.values()) == ["completed", "completed", "skipped", "skipped"]
    emulator.set_request_listener(None)
    emulator.switches.quota = "plenty"
    clear_quota_markers()
    result = run_try(create_batch(tmp_path, create_items(ITEMS)), store, 2, 4, kind=kind)  # cleared
    assert result["completed"] == ITEMS
    assert_paid_once(emulator, tmp_path)
    # The batch has ended, so that another Clear starts all items again.
    result = run_try(create_batch(tmp_path, create_items(ITEMS)), Store(), 3, 5, kind=kind)
    assert result["completed"] == ITEMS
    assert set(count_paid_runs(emulator).values()) == {2}


def clear_quota_markers() -> None:
    """Delete the markers, as they expire after some minutes."""
    from airflow_provider_flows.storage import quota_marker

    for path in quota_marker.FOLDER.iterdir():
        path.unlink()


def test_clear_aborts_active_runs_and_starts_all_items_again(emulator: Emulator, tmp_path: Path) -> None:
    """After a Clear, the active runs of the earlier tries are aborted, and each item is run again."""
    emulator.run_seconds = 3600
    store = leave_active_runs(emulator, tmp_path, create_items(ITEMS))
    emulator.run_seconds = 0.2
    result = run_try(create_batch(tmp_path, create_items(ITEMS)), store, 2, 5)
    assert result["completed"] == ITEMS
    assert [run.state for run in emulator.paid_runs] == ["aborted"] * ITEMS + ["completed"] * ITEMS


def leave_active_runs(emulator: Emulator, output_path: Path, items: Any, **arguments: Any) -> Store:
    """Run a try that dies when all runs are active, and return its store."""
    store = Store()

    def die(*_: Any) -> None:
        raise Death

    def on_request(_: Any) -> None:
        if emulator.started_count == len(items):
            emulator.set_request_listener(None)
            os.kill(os.getpid(), signal.SIGUSR1)

    previous = signal.signal(signal.SIGUSR1, die)
    emulator.set_request_listener(on_request)
    with pytest.raises(Death):
        run_try(create_batch(output_path, items, max_active_runs=len(items), **arguments), store)
    signal.signal(signal.SIGUSR1, previous)
    return store


def test_items_that_changed_between_tries(emulator: Emulator, tmp_path: Path) -> None:
    """Unchanged keys resume, new and changed ones start, and the runs that are not needed are aborted."""
    emulator.run_seconds = 3600
    first, second, third = create_items(3)
    store = leave_active_runs(emulator, tmp_path, [first, second, third])
    runs = {get_item_key(run): run for run in emulator.paid_runs}
    emulator.run_seconds = 0.2
    changed = {**second, "inputs": "Another chair"}
    new = {"key": "item-9", "inputs": "Chair 9"}
    items = [first, changed, new]

    def finish(_: Any) -> None:
        if emulator.started_count == 5:
            emulator.set_request_listener(None)
            emulator.advance(3600)

    emulator.set_request_listener(finish)
    assert run_try(create_batch(tmp_path, items), store, 2)["completed"] == 3
    assert count_paid_runs(emulator) == {"item-1": 1, "item-2": 2, "item-3": 1, "item-9": 1}
    assert {key: run.state for key, run in runs.items()} == {
        "item-1": "completed",
        "item-2": "aborted",
        "item-3": "aborted",
    }


def test_records_that_cannot_be_read_are_an_error(emulator: Emulator, tmp_path: Path) -> None:
    """A part that is damaged or missing never leads to a new start."""
    store = Store()
    run_try(create_batch(tmp_path, create_items(ITEMS)), store)
    token = store["flow_batch"]["token"]
    for damaged in ("gone", None, {"token": 1}, {"token": token, "items": {"item-1": [1]}}):
        broken = Store({**store, "flow_batch_part_1": damaged})
        with pytest.raises(FlowError, match="cannot be read"):
            run_try(create_batch(tmp_path, create_items(ITEMS)), broken, 2)
    assert emulator.started_count == ITEMS


def test_failed_download_is_repeated_without_a_new_run(emulator: Emulator, tmp_path: Path) -> None:
    """An item whose outputs cannot be fetched has failed, and a retry fetches them."""
    emulator.add_fault(Fault("GET", "*/outputs/*", times=None, status=500))
    store = Store()
    with pytest.raises(FlowRunFailed):
        run_try(create_batch(tmp_path, create_items(1)), store)
    emulator.clear_faults()
    assert run_try(create_batch(tmp_path, create_items(1)), store, 2)["completed"] == 1
    assert emulator.started_count == 1


@pytest.mark.parametrize(("max_tries", "started", "aborted"), [(3, ITEMS, 0), (5, 2 * ITEMS, ITEMS)])
def test_runs_without_records_are_found_by_their_stamps(
    emulator: Emulator, tmp_path: Path, max_tries: int, started: int, aborted: int
) -> None:
    """Without records a retry resumes the listed runs; after a Clear, it aborts them."""
    emulator.run_seconds = 3600
    leave_active_runs(emulator, tmp_path, create_items(ITEMS))
    emulator.run_seconds = 0.2
    if not aborted:
        emulator.advance(3600)
    result = run_try(create_batch(tmp_path, create_items(ITEMS)), Store(), 2, max_tries)
    assert result["completed"] == ITEMS
    assert emulator.started_count == started
    assert [run.state for run in emulator.paid_runs].count("aborted") == aborted

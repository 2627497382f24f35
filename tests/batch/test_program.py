"""Tests of a batch in one try: what it starts, how many at a time, what it logs, and what it leaves."""

from __future__ import annotations

import logging
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowInputError,
    FlowNotFound,
    FlowRunFailed,
)
from airflow_provider_flows.emulator import Emulator, Fault, Plan
from tests.support.airflow_run import capture_log
from tests.support.batches import (
    CountingStore,
    count_paid_runs,
    create_batch,
    create_chain_batch,
    create_chain_items,
    create_items,
    get_max_active,
    read_lines,
    read_manifest_states,
    run_try,
)

pytestmark = pytest.mark.emulator(run_seconds=0.5, abort="instant", retries=0)

COUNTS = ("total", "completed", "failed", "aborted", "reused")


def get_counts(result: dict[str, Any]) -> tuple[int, ...]:
    """Return the counts of a result."""
    return tuple(result[name] for name in COUNTS)


def test_each_item_is_run_once_and_its_files_are_in_its_folder(emulator: Emulator, tmp_path: Path) -> None:
    """A batch runs each item once, and leaves files, a manifest and a small dict."""
    result = run_try(create_batch(tmp_path, create_items(12), max_active_runs=5))
    assert set(count_paid_runs(emulator).values()) == {1}
    assert len(emulator.paid_runs) == 12
    assert get_max_active(emulator) <= 5
    assert get_counts(result) == (12, 12, 0, 0, 0)
    assert {*result} == {*COUNTS, "manifest", "failed_items", "duration", "flow", "service"}
    lines = read_lines(tmp_path / "manifest.jsonl")
    assert [line["key"] for line in lines] == [f"item-{number}" for number in range(1, 13)]
    for line in lines:
        (output,) = line["outputs"]
        file = Path(output["uri"].removeprefix("file://"))
        assert file.parent == tmp_path / line["key"]
        assert file.stat().st_size == output["size"]
        assert (line["state"], line["attempts"], line["error"]) == ("completed", 1, None)
    assert read_lines(tmp_path / "failed.jsonl") == []


def test_requests_and_writes_for_each_item(emulator: Emulator, tmp_path: Path) -> None:
    """Beside its polls, a batch sends 5 requests an item, and its store gets about one write an item."""
    store, items = CountingStore(), 40
    run_try(create_batch(tmp_path, create_items(items), max_active_runs=20), store)
    polls = [
        request
        for request in emulator.requests
        if request.method == "GET" and re.fullmatch(r"/flows(?:/\w+)?", request.path)
    ]  # how many these are depends on the load of the machine
    assert len(emulator.requests) - len(polls) <= 5 * items + 5
    assert len(store.writes) <= items + 10


@pytest.mark.parametrize(
    ("arguments", "plans", "expected"),
    [
        pytest.param({}, [Plan("failed", error="Bad")], (4, 3, 1, 0), id="one fails"),
        pytest.param({"item_retries": 1}, [Plan("failed")], (5, 4, 0, 0), id="one fails once"),
        pytest.param({"item_retries": 1}, [Plan("failed", times=2)], (5, 3, 1, 0), id="one fails twice"),
        pytest.param({}, [Plan("aborted")], (4, 3, 0, 1), id="one is aborted by another client"),
        pytest.param({"stop_after_failures": 2}, [Plan("failed", times=9)], (2, 0, 2, 0), id="in a row"),
    ],
)
def test_failures(
    emulator: Emulator,
    tmp_path: Path,
    arguments: dict[str, Any],
    plans: list[Plan],
    expected: tuple[int, ...],
) -> None:
    """What is started, and what the manifest and the failed items contain, for each kind of failure."""
    for plan in plans:
        emulator.add_plan(plan)
    started, completed, failed, aborted = expected
    operator = create_batch(tmp_path, create_items(4), max_active_runs=1, min_success_ratio=0, **arguments)
    has_stopped = completed + failed + aborted < 4
    if has_stopped:
        with pytest.raises(FlowRunFailed, match="2 flow runs have failed in a row"):
            run_try(operator)
    else:
        assert get_counts(run_try(operator)) == (4, completed, failed, aborted, 0)
    assert len(emulator.paid_runs) == started
    states = list(read_manifest_states(tmp_path).values())
    assert states.count("completed") == completed
    assert states.count("failed") == failed
    assert states.count("aborted") == aborted
    assert states.count("skipped") == 4 - completed - failed - aborted
    lines = read_lines(tmp_path / "failed.jsonl")
    assert len(lines) == failed + aborted
    emulator.reset()
    emulator.run_seconds = 0
    if lines:  # which can be the items of another batch
        again = run_try(create_batch(tmp_path / "again", str(tmp_path / "failed.jsonl")))
        assert get_counts(again)[:2] == (len(lines), len(lines))


@pytest.mark.parametrize(
    ("fault", "error", "started"),
    [
        (Fault("POST", "/flows", times=None, status=401), FlowAuthError, 0),
        (Fault("POST", "/flows", times=None, status=404), FlowNotFound, 0),
        (Fault("GET", "*/outputs", times=None, status=401), FlowAuthError, 2),  # the next one runs meanwhile
    ],
)
def test_error_of_all_items_ends_the_batch(
    emulator: Emulator, tmp_path: Path, fault: Fault, error: type[Exception], started: int
) -> None:
    """An error that every other item would have as well ends the batch with that error."""
    emulator.add_fault(fault)
    with pytest.raises(error):
        run_try(create_batch(tmp_path, create_items(6), max_active_runs=1))
    assert len(emulator.paid_runs) <= started
    created = [one for one in emulator.requests if (one.method, one.path) == ("POST", "/flows")]
    assert len(created) == max(1, len(emulator.paid_runs))


def test_item_that_cannot_be_sent_is_found_before_anything_is_paid(
    emulator: Emulator, tmp_path: Path
) -> None:
    """All items are checked first, also against the flow's definition; "skip" runs the others."""
    items = [*create_items(3), {"key": "bad", "inputs": "Chair", "parameters": {"quality": "odd"}}, "/etc/x"]
    with pytest.raises(FlowInputError, match=r"2 items that cannot be sent: item 4: .*quality.*; item 5: "):
        run_try(create_batch(tmp_path, items))
    assert emulator.started_count == 0
    result = run_try(create_batch(tmp_path, items, validate="skip"))
    assert get_counts(result) == (5, 3, 2, 0, 0)
    states = read_manifest_states(tmp_path)
    assert [*states.values()] == ["completed"] * 3 + ["invalid"] * 2
    assert read_lines(tmp_path / "failed.jsonl")[0]["key"] == "bad"


def test_missing_definition_is_requested_once(emulator: Emulator, tmp_path: Path) -> None:
    """A service without definitions gets one request for the definition, not one for each item."""
    fault = emulator.add_fault(Fault(path="/templates", times=None, status=404))
    with capture_log() as lines:
        result = run_try(create_batch(tmp_path, create_items(20)))
    assert result["completed"] == 20
    assert fault.hits == 1
    assert sum("The definition of flow" in line for line in lines) == 1


def test_parameters_of_an_item_take_precedence(emulator: Emulator, tmp_path: Path) -> None:
    """The parameters of the batch are those of each item, unless it has its own."""
    items = [{"inputs": "A"}, {"inputs": "B", "parameters": {"quality": "high"}}]
    run_try(create_batch(tmp_path, items))
    assert sorted(run.parameters["quality"] for run in emulator.paid_runs) == ["high", "low"]


def test_log_has_a_line_for_each_failure_and_no_prompt(
    emulator: Emulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names failed items, up to a number, and no line for each run; never a prompt."""
    emulator.run_seconds = 0
    emulator.add_plan(Plan("failed", error="Cannot draw 'A secret chair number 7'", times=60))
    items = [{"key": f"k{number}", "inputs": f"A secret chair number {number}"} for number in range(60)]
    operator = create_batch(tmp_path, items, min_success_ratio=0, stop_after_failures=None)
    with caplog.at_level(logging.INFO):
        run_try(operator)
    lines = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith("Item k") for line in lines) == 50
    assert any("60 items have failed" in line for line in lines)
    assert "0 of 60 completed, 60 failed" in lines
    assert len(lines) < 80
    assert not [line for line in lines if "secret chair" in line]
    assert "secret chair" not in (tmp_path / "manifest.jsonl").read_text()


def test_promptchainer_runs_concurrently_and_stores_texts(emulator: Emulator, tmp_path: Path) -> None:
    """The synchronous requests run `max_active_runs` at a time; texts are in the manifest."""
    emulator.run_seconds = 0.5
    in_flight: list[int] = []

    def on_request(_: Any) -> None:
        posts = [one for one in emulator.requests if one.method == "POST"]
        in_flight.append(sum(one.status is None for one in posts))

    emulator.set_request_listener(on_request)
    result = run_try(create_chain_batch(tmp_path, create_chain_items(9), max_active_runs=3))
    assert get_counts(result) == (9, 9, 0, 0, 0)
    assert set(count_paid_runs(emulator).values()) == {1}
    assert max(in_flight) <= 3
    assert max(in_flight) > 1
    lines = read_lines(tmp_path / "manifest.jsonl")
    assert all(line["outputs"][0]["value"] for line in lines)


@pytest.mark.timeout(300)  # tracing the memory takes most of it
def test_memory_of_many_items(emulator: Emulator, tmp_path: Path) -> None:
    """The items in progress are in memory, and not the others: 2,000 items of 60 MB take less than 30 MiB.

    `benchmarks/batch.py` measures the memory for 10,000 items.
    """
    emulator.run_seconds = 0
    emulator.add_fault(Fault("POST", "/flows", times=None, status=402))
    path = tmp_path / "items.jsonl"
    with path.open("w") as file:
        for number in range(2_000):
            file.write(f'{{"key": "chair-{number}", "inputs": "{"Chair " * 5_000}{number}"}}\n')
    tracemalloc.start()
    try:
        with pytest.raises(Exception, match=r"402|quota"):
            run_try(create_batch(tmp_path, str(path), validate=False))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 30 * 1024 * 1024
    assert len(read_lines(tmp_path / "manifest.jsonl")) == 2_000


def test_empty_batch(emulator: Emulator, tmp_path: Path) -> None:
    """A batch without items succeeds, and leaves an empty manifest."""
    assert get_counts(run_try(create_batch(tmp_path, []))) == (0, 0, 0, 0, 0)
    assert read_lines(tmp_path / "manifest.jsonl") == []
    assert emulator.started_count == 0

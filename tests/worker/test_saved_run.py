"""Tests of paid runs that are saved for a retry: complete at any size, wherever the store fails.

Tasks run in Airflow's `dag.test()` with its own task state store, or as in a worker with one that fails.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_provider_flows.core.exceptions import FlowError, FlowServiceError
from airflow_provider_flows.core.flow_run import FlowOutput, FlowRun, FlowState
from airflow_provider_flows.core.start_or_resume import RunRecord
from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.storage.output_options import OutputOptions
from airflow_provider_flows.worker.task_state import FILES_KEY, RECORD_KEY, FileState, TaskState
from tests.support.downloads import KilledError, list_files
from tests.support.task_instances import Store, context
from tests.support.tries import (
    CHAIN_ARGUMENTS,
    CHAIR_ARGUMENTS,
    request_times,
    run_states,
    run_with_retries,
)
from tests.support.versions import needs

pytestmark = [
    pytest.mark.emulator(run_seconds=0, abort="instant", retries=0),
    needs("task state store"),
]

IMAGE_FAULT = Fault("GET", "*.png", status=500)
LIMIT = 65_535  # Airflow's default
LIMIT_VARIABLE = "AIRFLOW__STATE_STORE__MAX_VALUE_STORAGE_BYTES"


def text_of(size: int) -> str:
    """Return a text of this size that cannot be compressed to less than about half."""
    return hashlib.shake_256(b"text").hexdigest(size // 2)


def chain_arguments(size: int, folder: Path | None) -> dict[str, Any]:
    """Return the arguments of a chain whose response is at least this size."""
    inputs = {"color": text_of(size), "item": "ball"}
    path = {} if folder is None else {"output_path": str(folder)}
    return {**CHAIN_ARGUMENTS, "inputs": inputs, **path}


def read_outputs(result: dict[str, Any]) -> dict[str, bytes]:
    """Return the content of the stored files, by the outputs' names."""
    return {
        output["name"]: Path(output["uri"].removeprefix("file://")).read_bytes()
        for output in result["outputs"]
        if "uri" in output
    }


class FailingStore(Store):
    """A store that rejects some values, as a backend does or an API server that goes away.

    :param rejects: called with key, value and the number of `set` calls so far.
    """

    def __init__(self, rejects: Callable[[str, str, int], bool]) -> None:
        super().__init__()
        self.rejects = rejects
        self.calls = 0

    def set(self, key: str, value: Any) -> None:
        """Store a value, or raise."""
        self.calls += 1
        if self.rejects(key, json.dumps(value), self.calls):
            raise RuntimeError("the API server is away")
        super().set(key, value)


REJECTIONS: dict[str, Callable[[str, str, int], bool]] = {
    "every part": lambda key, _value, _calls: "_part_" in key,
    "the second part": lambda key, _value, _calls: key.endswith("_2"),
    "the last part": lambda key, value, _calls: "_part_" in key and len(value) < LIMIT,
    "the record after the parts": lambda key, value, _: key == RECORD_KEY and "part_key_prefix" in value,
    "values over 10 kB": lambda _key, value, _calls: len(value) > 10_000,
    "everything after the request": lambda _key, _value, calls: calls > 1,
}


# The sizes
# --------------------------------------------------------------------------------------------------


def stored_keys(run_id: str) -> list[str]:
    """Return the keys in Airflow's task state store."""
    from airflow.models.task_state_store import TaskStateStoreModel

    with create_session() as session:
        keys = session.scalars(select(TaskStateStoreModel.key).filter_by(run_id=run_id))
        return sorted(keys)


@needs("task state store")
@pytest.mark.parametrize("size", [1_000, 100_000, 1_000_000])
def test_retry_has_the_complete_response(emulator: Emulator, tmp_path: Path, size: int) -> None:
    """A retry after a failed output has every output of the paid response, and deletes it at the end."""
    emulator.add_fault(IMAGE_FAULT)
    arguments = chain_arguments(size, tmp_path)
    task_result = run_with_retries(f"saved_{size}", **arguments, max_xcom_bytes=100)
    assert type(task_result.error) is FlowServiceError
    assert (task_result.tries, task_result.state, emulator.started_count) == (2, "success", 1)
    assert len(request_times(emulator, "POST")) == 1
    returned = task_result.result.xcoms["run"]["return_value"]
    assert [output["status"] for output in returned["outputs"]] == ["ready", "ready"]
    assert arguments["inputs"]["color"].encode() in read_outputs(returned)["text"]
    assert [key for key in stored_keys(task_result.result.run_id) if RECORD_KEY in key] == []


def task_state_with(store: Store, **arguments: Any) -> TaskState:
    """Return the state of a try with this store."""
    return TaskState(context(store, 1, 3), durable=True, **arguments)


def chain_record(size: int) -> RunRecord:
    """Return a record whose JSON, with its complete run, has this size."""
    run = FlowRun("r", "promptchainer", state=FlowState.COMPLETED, outputs=(FlowOutput("text", value=""),))
    record = RunRecord("f", 3, flow_run_id="r", saved_run=run.to_record())
    assert record.saved_run is not None
    record.saved_run["outputs"][0]["value"] = "x" * (size - len(json.dumps(record.to_dict())))
    assert len(json.dumps(record.to_dict())) == size
    return record


@pytest.mark.parametrize("limit", [LIMIT, 4_000, 0])
@pytest.mark.parametrize("excess", [-1, 0, 1, 300_000])
def test_no_value_exceeds_the_limit(monkeypatch: pytest.MonkeyPatch, limit: int, excess: int) -> None:
    """A record up to the limit is one value, a larger one is split; none is larger than the limit."""
    monkeypatch.setenv(LIMIT_VARIABLE, str(limit))
    largest = limit or 1024 * 1024
    store, record = Store(), chain_record(largest + excess)
    task_state_with(store).save(record)
    assert (len(store) == 1) == (excess <= 0)
    assert max(len(json.dumps(value)) for value in store.values()) <= largest
    assert task_state_with(store).record == record


# A store that fails
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REJECTIONS)
def test_response_that_the_store_rejects_is_saved_below_output_path(
    emulator: Emulator, tmp_path: Path, name: str
) -> None:
    """The retry finds the complete response there, and the file is removed when the task has succeeded."""
    arguments, store = chain_arguments(200_000, tmp_path), FailingStore(REJECTIONS[name])
    emulator.add_fault(IMAGE_FAULT)
    with pytest.raises(FlowServiceError):
        RunFlowOperator(task_id="t", **arguments).execute(context(store, 1, 3))
    (saved,) = [path for path in tmp_path.iterdir() if path.is_file()]
    assert (saved.name[0], saved.suffix) == (".", ".json")
    assert not [key for key in store if "_part_" in key]

    retry = RunFlowOperator(task_id="t", **arguments)
    returned = retry.execute(context(store, 2, 3))
    assert emulator.started_count == 1
    assert [output["status"] for output in returned["outputs"]] == ["ready", "ready"]
    assert arguments["inputs"]["color"].encode() in read_outputs(returned)["text"]
    retry.delete_saved_run()
    assert not saved.exists()
    assert RECORD_KEY not in store


@pytest.mark.parametrize("name", REJECTIONS)
def test_response_that_cannot_be_saved_is_still_returned(
    emulator: Emulator, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Without an output_path the try continues with the response, and an error says what a retry would do."""
    store = FailingStore(REJECTIONS[name])
    arguments = chain_arguments(200_000, None)
    with caplog.at_level(logging.ERROR):
        returned = RunFlowOperator(task_id="t", **arguments, max_xcom_bytes=None).execute(
            context(store, 1, 3)
        )
    (text,) = [output["value"] for output in returned["outputs"] if output["name"] == "text"]
    assert arguments["inputs"]["color"] in text
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert f"Flow run {returned['flow_run_id']} is paid for, and could not be saved" in line
    assert "the API server is away" in line
    assert "with an output_path it could be saved there" in line
    assert emulator.started_count == 1


def test_failures_of_store_and_folder_are_logged(
    emulator: Emulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If the folder is gone as well, the try continues, and both reasons are logged."""
    folder = tmp_path / "files"

    def reject(_key: str, _value: str, calls: int) -> bool:
        if calls > 1:
            folder.rmdir()
            folder.write_text("no folder any more")
        return calls > 1

    with pytest.raises(OSError, match="files"):  # no output can be stored either
        RunFlowOperator(task_id="t", **chain_arguments(1_000, folder)).execute(
            context(FailingStore(reject), 1, 3)
        )
    assert "task state store failed (RuntimeError: the API server is away)" in caplog.text
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "could not be saved for a retry (FileExistsError: " in line
    assert emulator.started_count == 1


def test_parts_without_their_record_are_no_response(emulator: Emulator) -> None:
    """A worker that dies between the parts and the record leaves nothing that a retry takes for complete."""

    class DyingStore(Store):
        def set(self, key: str, value: Any) -> None:
            if key.endswith("_2"):
                raise KilledError
            super().set(key, value)

    store, arguments = DyingStore(), chain_arguments(200_000, None)
    with pytest.raises(KilledError):
        RunFlowOperator(task_id="t", **arguments).execute(context(store, 1, 3))
    assert (store[RECORD_KEY]["flow_run_id"], store[RECORD_KEY]["saved_run"]) == (None, None)
    retry_store = Store(store)
    RunFlowOperator(task_id="t", **arguments).execute(context(retry_store, 2, 3))
    assert emulator.started_count == 2


def remove_part(store: Store, _folder: Path) -> None:
    """Remove a part, as a database's clean-up does."""
    store.delete(next(key for key in store if "_part_" in key))


def change_part(store: Store, _folder: Path) -> None:
    """Replace a part."""
    store[next(key for key in store if "_part_" in key)] = "AAAA"


def remove_file(_store: Store, folder: Path) -> None:
    """Remove the file."""
    next(folder.glob(".flow_run_*")).unlink()


def truncate_file(_store: Store, folder: Path) -> None:
    """Truncate the file."""
    path = next(folder.glob(".flow_run_*"))
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [remove_part, change_part, remove_file, truncate_file])
def test_saved_response_that_cannot_be_read_is_an_error(
    emulator: Emulator, tmp_path: Path, damage: Callable[[Store, Path], None]
) -> None:
    """The retry does not pay again: it raises an error that says so, until the task is cleared."""
    is_file = damage in (remove_file, truncate_file)
    store = FailingStore(REJECTIONS["every part"]) if is_file else Store()
    arguments = chain_arguments(200_000, tmp_path)
    emulator.add_fault(IMAGE_FAULT)
    with pytest.raises(FlowServiceError):
        RunFlowOperator(task_id="t", **arguments).execute(context(store, 1, 3))
    damage(store, tmp_path)
    for _ in range(2):
        with pytest.raises(FlowError, match=r"is paid for, was saved in .*clear the task"):
            RunFlowOperator(task_id="t", **arguments).execute(context(store, 2, 3))
    assert emulator.started_count == 1
    RunFlowOperator(task_id="t", **arguments).execute(context(store, 5, 7))
    assert emulator.started_count == 2


def test_parts_of_an_earlier_response_are_deleted() -> None:
    """When another response replaces a response, the parts of the old one are deleted."""
    store = Store()
    task_state_with(store).save(chain_record(300_000))
    first = set(store)
    second = chain_record(200_000)
    task_state_with(store).save(second)
    assert set(store) & first == {RECORD_KEY}
    assert task_state_with(store).record == second
    task_state_with(store).delete_saved_run()
    assert dict(store) == {}


@pytest.mark.parametrize("rejects", ["nothing", "every part"])
def test_run_that_is_saved_again_stays_readable(tmp_path: Path, rejects: str) -> None:
    """A retry that saves its run again, the same or with other outputs, never loses it on the way."""
    store, options = FailingStore(REJECTIONS.get(rejects, lambda *_: False)), OutputOptions(str(tmp_path))
    first = chain_record(300_000)
    assert first.saved_run is not None
    task_state_with(store, options=options).save(first)
    second = replace(first, saved_run={**first.saved_run, "raw_state": "other"})
    for record in (first, second):
        task_state = task_state_with(store, options=options)
        task_state.save(record)
        assert task_state_with(store, options=options).record == record

    store.rejects = lambda *_: True
    task_state = task_state_with(store, options=options)
    with pytest.raises(RuntimeError):
        task_state.save(second)
    assert task_state_with(store, options=options).record == second


# A run that is deleted at its service, and files
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rejects", ["nothing", "every part"])
def test_deleted_run_of_any_size_is_saved(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rejects: str
) -> None:
    """A run that is too large for one value is deleted at its service; a retry returns it all the same."""
    monkeypatch.setenv(LIMIT_VARIABLE, "900")
    store = FailingStore(REJECTIONS.get(rejects, lambda *_: False))
    arguments = {
        **CHAIR_ARGUMENTS,
        "inputs": [f"A chair {number}" for number in range(5)],
        "output_path": str(tmp_path),
        "delete_after_fetch": True,
        "poll_interval": 0.1,
    }
    first = RunFlowOperator(task_id="t", **arguments).execute(context(store, 1, 3))
    assert (len(request_times(emulator, "DELETE")), list(emulator.runs)) == (1, [])
    retry = RunFlowOperator(task_id="t", **arguments)
    assert retry.execute(context(store, 2, 3)) == first
    assert emulator.started_count == 1
    retry.delete_saved_run()
    assert not [path for path in list_files(tmp_path) if path.startswith(".")]
    assert not [key for key in store if RECORD_KEY in key]


@pytest.mark.usefixtures("short_search")
@pytest.mark.parametrize("is_deleted", [True, False])
def test_saved_run_that_cannot_be_read_is_looked_up_at_its_service(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_deleted: bool
) -> None:
    """The retry resumes the run if its service still has it; otherwise it raises, and pays for no other."""
    monkeypatch.setenv(LIMIT_VARIABLE, "900")
    inputs = [f"A chair {number}" for number in range(5)]
    arguments = {**CHAIR_ARGUMENTS, "inputs": inputs, "output_path": str(tmp_path), "poll_interval": 0.1}
    if not is_deleted:
        emulator.add_fault(Fault("DELETE", "*", status=500))
    store = Store()
    first = RunFlowOperator(task_id="t", **arguments, delete_after_fetch=True).execute(context(store, 1, 3))
    store.delete(next(key for key in store if f"{RECORD_KEY}_part_" in key))
    retry = RunFlowOperator(task_id="t", **arguments, delete_after_fetch=True)
    if is_deleted:
        with pytest.raises(FlowError, match=r"is paid for, was saved in .*clear the task"):
            retry.execute(context(store, 2, 3))
    else:
        assert retry.execute(context(store, 2, 3)) == first
        retry.delete_saved_run()
        assert not [key for key in store if RECORD_KEY in key]
    assert (emulator.started_count, list(emulator.runs)) == (1, [])


def test_run_that_cannot_be_saved_is_not_deleted(
    emulator: Emulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that could not be saved anywhere stays at its service, and a retry resumes it like any other."""
    store = FailingStore(lambda key, value, _: key == RECORD_KEY and '"saved_run": {' in value)
    arguments = {**CHAIR_ARGUMENTS, "output_path": str(tmp_path), "delete_after_fetch": True}
    first = RunFlowOperator(task_id="t", **arguments, poll_interval=0.1).execute(context(store, 1, 3))
    assert (request_times(emulator, "DELETE"), store[RECORD_KEY]["saved_run"]) == ([], None)
    assert "could not be saved for a retry" in caplog.text
    assert not [path for path in list_files(tmp_path) if path.startswith(".")]
    second = RunFlowOperator(task_id="t", **arguments, poll_interval=0.1)
    assert second.execute(context(store, 2, 3)) == first
    assert (emulator.started_count, run_states(emulator)) == (1, ["completed"])


@pytest.mark.parametrize("rejected", [None, 3])
def test_file_records_beyond_the_limit_are_saved(
    monkeypatch: pytest.MonkeyPatch, rejected: int | None
) -> None:
    """Every file is known to the retry, also if a value was rejected once; no value exceeds the limit."""
    monkeypatch.setenv(LIMIT_VARIABLE, "2000")
    store = FailingStore(lambda _key, _value, calls: calls == rejected)
    records = {
        f"a{number}": {"uri": f"file:///x/{number}", "size": number, "sha256": "0" * 64, "media_type": "t/x"}
        for number in range(50)
    }
    try_context = context(store, 2, 3)
    with FileState(try_context, "r") as state:
        for asset_id, record in records.items():
            state.save_file_record(asset_id, record)
    assert len([key for key in store if key.startswith(FILES_KEY)]) > 3
    assert max(len(json.dumps(value)) for value in store.values()) <= 2000

    retry = FileState(try_context, "r")
    assert {asset_id: retry.get_file_record(asset_id) for asset_id in records} == records
    retry.save_file_record("a0", {**records["a0"], "size": 4711})
    again = FileState(try_context, "r")
    assert (again.get_file_record("a0") or {})["size"] == 4711
    other = FileState(try_context, "other")
    other.save_file_record("a1", records["a1"])
    other = FileState(try_context, "other")
    assert [asset_id for asset_id in records if other.get_file_record(asset_id)] == ["a1"]

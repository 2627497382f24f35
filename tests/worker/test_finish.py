"""Tests of a task's end: large texts, images, partial outputs, deleting a run, and what a retry downloads.

Tasks run in Airflow's `dag.test()` or as in a worker, against the emulator; files are real.
"""

from __future__ import annotations

import hashlib
import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_flows.core.exceptions import FlowInputError, FlowNotFound, FlowRunFailed
from airflow_provider_flows.emulator import Emulator, Fault, Plan
from airflow_provider_flows.hooks import GenerioHook
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.sensors import WAIT_STATE_KEY, FlowRunSensor
from airflow_provider_flows.worker.task_state import FILES_KEY, RECORD_KEY
from tests.support.task_instances import Store, context
from tests.support.tries import (
    BOTH_MODES,
    CHAIN_ARGUMENTS,
    CHAIR_ARGUMENTS,
    request_times,
    run_with_retries,
)
from tests.support.versions import AirflowRescheduleException, has, needs

LONG = "größer " * 9000  # more than 48 KiB
TWO: dict[str, Any] = {**CHAIR_ARGUMENTS, "inputs": ["A chair", "A table"]}

pytestmark = pytest.mark.emulator(run_seconds=0, abort="instant", retries=0)


def files(folder: Path) -> list[Path]:
    """Return all files below a folder, also hidden ones."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.usefixtures("emulator")
def test_text_too_large_for_xcom_becomes_a_file(tmp_path: Path) -> None:
    """A text beyond max_xcom_bytes is a complete file; XCom has its start and its URI."""
    ended = run_with_retries(
        "large_text",
        **{**CHAIN_ARGUMENTS, "inputs": {"color": LONG, "item": "ball"}},
        output_path=str(tmp_path),
    )
    text = next(output for output in ended.outputs if output["media_type"] == "text/plain")
    path = Path(text["uri"].removeprefix("file://"))
    whole = path.read_text()
    assert (path.suffix, LONG[:-1] in whole) == (".txt", True)
    assert whole.startswith(text["value"])
    assert 48 * 1024 - 4 < len(text["value"].encode()) <= 48 * 1024
    assert (text["size"], text["sha256"]) == (
        path.stat().st_size,
        hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    assert ended.result.xcoms["run"]["outputs"] == ended.outputs


@pytest.mark.usefixtures("emulator")
def test_text_too_large_for_xcom_is_never_lost_without_a_path() -> None:
    """Without output_path the complete text is pushed, with a warning that says what to set."""
    ended = run_with_retries(
        "large_text_no_path", **{**CHAIN_ARGUMENTS, "inputs": {"color": LONG, "item": "ball"}}
    )
    text = next(output for output in ended.outputs if output["media_type"] == "text/plain")
    assert LONG[:-1] in text["value"]
    assert "uri" not in text
    assert ended.count_log_lines("Set output_path") >= 1
    assert ended.count_log_lines("max_xcom_bytes") == 1


@pytest.mark.usefixtures("emulator")
def test_bound_on_texts_is_the_users(tmp_path: Path) -> None:
    """Any limit may be set, or none; a text within it is not changed."""
    small = run_with_retries(
        "small_text", **CHAIN_ARGUMENTS, output_path=str(tmp_path / "small"), max_xcom_bytes=10
    )
    none = run_with_retries(
        "any_text", **CHAIN_ARGUMENTS, output_path=str(tmp_path / "none"), max_xcom_bytes=None
    )
    cut, whole = (
        next(output for output in ended.outputs if output["media_type"] == "text/plain")
        for ended in (small, none)
    )
    assert len(cut["value"].encode()) <= 10
    assert whole["value"].startswith(cut["value"])
    assert "uri" not in whole
    assert sum(path.suffix == ".txt" for path in files(tmp_path)) == 1


@pytest.mark.usefixtures("emulator")
def test_picture_that_is_saved_keeps_its_address_without_the_signature(tmp_path: Path) -> None:
    """A linked image is stored as a file, and its URL loses its signature."""
    ended = run_with_retries("picture", **CHAIN_ARGUMENTS, output_path=str(tmp_path))
    picture = next(output for output in ended.outputs if output["media_type"].startswith("image/"))
    assert Path(picture["uri"].removeprefix("file://")).read_bytes()[:4] == b"\x89PNG"
    assert picture["value"].startswith("http")
    assert "?" not in picture["value"]
    assert "sig=" not in str(ended.result.xcoms) + ended.result.log


@BOTH_MODES
def test_partial_outputs_are_fetched_when_asked(
    emulator: Emulator, tmp_path: Path, *, deferrable: bool
) -> None:
    """A failed run's outputs are files, listed in the error and in XCom; the task still fails."""
    emulator.add_plan(Plan(outcome="failed", error="out of glue", partial_outputs=True))
    asked = {
        "output_path": str(tmp_path),
        "fetch_partial_outputs": True,
        "retries": 0,
        "deferrable": deferrable,
    }
    ended = run_with_retries(f"partial_{deferrable}", **{**TWO, **asked})
    assert ended.state == "failed"
    (path,) = files(tmp_path)
    assert path.read_bytes()[:4] == b"glTF"
    assert isinstance(ended.error, FlowRunFailed)
    assert "out of glue" in str(ended.error)
    assert f"file://{path}" in str(ended.error)
    assert [output.uri for output in ended.error.run.outputs if output.uri] == [f"file://{path}"]
    assert f"file://{path}" in [output.get("uri") for output in ended.result.xcoms["run"]["outputs"]]


@pytest.mark.parametrize("status", [None, 409, 404, 500])
def test_partial_outputs_that_cannot_be_had_hide_nothing(
    emulator: Emulator, tmp_path: Path, status: int | None
) -> None:
    """Whatever the service responds about a failed run's outputs, the error is that the run failed."""
    emulator.add_plan(Plan(outcome="failed", error="out of glue"))
    if status is not None:
        emulator.add_fault(Fault("GET", "*/outputs", status=status, times=None))
    ended = run_with_retries(
        f"no_partial_{status}",
        **CHAIR_ARGUMENTS,
        output_path=str(tmp_path),
        fetch_partial_outputs=True,
        retries=0,
    )
    assert isinstance(ended.error, FlowRunFailed)
    assert "out of glue" in str(ended.error)
    assert files(tmp_path) == []


def test_partial_outputs_are_left_alone_unless_asked(emulator: Emulator, tmp_path: Path) -> None:
    """By default no output of a failed run is fetched."""
    emulator.add_plan(Plan(outcome="failed", partial_outputs=True))
    ended = run_with_retries("not_partial", **TWO, output_path=str(tmp_path), retries=0)
    assert (ended.state, files(tmp_path)) == ("failed", [])
    assert request_times(emulator, "GET", "/outputs") == []


def test_sensor_fetches_partial_outputs_too(emulator: Emulator, tmp_path: Path) -> None:
    """The sensor ends in the same way."""
    emulator.add_plan(Plan(outcome="failed", partial_outputs=True))
    run = GenerioHook("generio_default").start(TWO["flow"], TWO["inputs"], TWO["parameters"])
    sensor = FlowRunSensor(
        task_id="s",
        flow_run_id=run.flow_run_id,
        mode="poke",
        output_path=str(tmp_path),
        fetch_partial_outputs=True,
    )
    sensor.flows_conn_id = "generio_default"
    with pytest.raises(FlowRunFailed, match="file://"):
        sensor.execute(context(Store()))
    assert len(files(tmp_path)) == 1


@BOTH_MODES
def test_run_is_deleted_when_its_files_are_in_place(
    emulator: Emulator, tmp_path: Path, *, deferrable: bool
) -> None:
    """After the last file the run is deleted, and the task returns the same dict as otherwise."""
    ended = run_with_retries(
        f"deleted_{deferrable}",
        **TWO,
        output_path=str(tmp_path),
        delete_after_fetch=True,
        deferrable=deferrable,
    )
    assert (ended.state, ended.tries) == ("success", 1)
    assert [Path(output["uri"].removeprefix("file://")) for output in ended.outputs] == sorted(
        files(tmp_path), key=lambda path: [output["uri"] for output in ended.outputs].index(f"file://{path}")
    )
    assert len(request_times(emulator, "DELETE")) == 1
    assert (emulator.started_count, list(emulator.runs)) == (1, [])


def test_try_after_the_deletion_pays_nothing(emulator: Emulator, tmp_path: Path) -> None:
    """After a worker died and its run was deleted, the retry returns the same, and starts nothing."""
    store = Store()
    made = RunFlowOperator(
        task_id="t", **TWO, output_path=str(tmp_path), delete_after_fetch=True, poll_interval=0.1
    )
    first = made.execute(context(store, 1, 3))
    again = RunFlowOperator(
        task_id="t", **TWO, output_path=str(tmp_path), delete_after_fetch=True, poll_interval=0.1
    )
    assert again.execute(context(store, 2, 3)) == first
    assert emulator.started_count == 1
    again.delete_saved_run()
    assert RECORD_KEY not in store


def test_run_with_an_output_that_is_no_file_is_not_deleted(emulator: Emulator, tmp_path: Path) -> None:
    """If an output is not stored, the run stays at the service, with a warning that names the output."""
    emulator.add_fault(
        Fault(
            "GET",
            "*/outputs",
            body=b'{"outputs": [{"asset_id": "gone", "status": "error", "error": "glue"}]}',
        )
    )
    ended = run_with_retries(
        "not_deleted", **CHAIR_ARGUMENTS, output_path=str(tmp_path), delete_after_fetch=True
    )
    assert ended.state == "success"
    assert ended.count_log_lines("is not deleted") == 1
    assert request_times(emulator, "DELETE") == []


def test_deletion_that_fails_fails_no_task(emulator: Emulator, tmp_path: Path) -> None:
    """A service that cannot delete a run does not fail the task."""
    emulator.add_fault(Fault("DELETE", "*", status=500, times=None))
    ended = run_with_retries(
        "delete_fails", **CHAIR_ARGUMENTS, output_path=str(tmp_path), delete_after_fetch=True
    )
    assert ended.state == "success"
    assert ended.count_log_lines("could not be deleted") == 1


def test_what_cannot_be_done_is_refused_before_anything_is_paid(emulator: Emulator, tmp_path: Path) -> None:
    """Invalid arguments are rejected when the DAG is parsed, or before the start."""
    with pytest.raises(FlowInputError, match="delete_after_fetch=True needs an output_path"):
        RunFlowOperator(task_id="t", **CHAIR_ARGUMENTS, delete_after_fetch=True)
    for wrong in (-1, True, "48", 1.5):
        with pytest.raises(FlowInputError, match="max_xcom_bytes must be"):
            RunFlowOperator(task_id="t", **CHAIR_ARGUMENTS, max_xcom_bytes=wrong)
    ended = run_with_retries(
        "delete_chain", **CHAIN_ARGUMENTS, output_path=str(tmp_path), delete_after_fetch=True
    )
    assert isinstance(ended.error, FlowInputError)
    assert "is not supported by promptchainer" in str(ended.error)
    assert emulator.started_count == 0


@needs("task state store")
@BOTH_MODES
def test_retry_fetches_only_what_is_missing(emulator: Emulator, tmp_path: Path, *, deferrable: bool) -> None:
    """A complete file of an earlier try is not downloaded again."""
    emulator.add_fault(Fault("GET", "*/outputs/*", skip=1, times=4, status=503))
    ended = run_with_retries(f"missing_{deferrable}", **TWO, output_path=str(tmp_path), deferrable=deferrable)
    assert (ended.state, ended.tries, emulator.started_count) == ("success", 2, 1)
    assert len(files(tmp_path)) == 2
    assert ended.count_log_lines("already") == 1
    assert all(path.read_bytes()[:4] == b"glTF" for path in files(tmp_path))


def task(folder: Path, **given: Any) -> RunFlowOperator:
    """Return a task that stores its two models below a folder."""
    return RunFlowOperator(task_id="t", **{**TWO, **given}, output_path=str(folder), poll_interval=0.1)


def leave_undeleted_run(emulator: Emulator, folder: Path) -> tuple[Store, dict[str, Any]]:
    """Return the store of a try that ended before the deletion of its run, and what it returned."""
    store = Store()
    emulator.add_fault(Fault("DELETE", "*", status=500))
    return store, task(folder, delete_after_fetch=True).execute(context(store, 1, 3))


@pytest.mark.parametrize("rows", [b"[]", b'[{"output_id": "x", "status": "ready"}]'])
def test_run_without_outputs_is_not_deleted(emulator: Emulator, tmp_path: Path, rows: bytes) -> None:
    """An empty or unreadable list is no proof that a run has no outputs."""
    emulator.add_fault(Fault("GET", "*/outputs", body=b'{"outputs": ' + rows + b"}", times=None))
    store = Store()
    outputs = task(tmp_path, delete_after_fetch=True).execute(context(store, 1, 3))["outputs"]
    assert not any("uri" in output for output in outputs)
    assert (request_times(emulator, "DELETE"), store[RECORD_KEY]["saved_run"]) == ([], None)


@pytest.mark.parametrize("damage", ["gone", "changed", "whole"])
def test_kept_run_is_fetched_again_only_where_a_file_is_not_whole(
    emulator: Emulator, tmp_path: Path, damage: str
) -> None:
    """After a death before the deletion the retry downloads bad files again, and deletes the run."""
    store, first = leave_undeleted_run(emulator, tmp_path)
    path = Path(first["outputs"][1]["uri"].removeprefix("file://"))
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "changed":
        path.write_bytes(bytes(len(whole)))
    before = len(emulator.requests)
    assert task(tmp_path, delete_after_fetch=True).execute(context(store, 2, 3)) == first
    assert path.read_bytes() == whole
    asked = [asked.path.rpartition("/")[2] for asked in emulator.requests[before:] if asked.method == "GET"]
    assert asked == ([] if damage == "whole" else [first["outputs"][1]["asset_id"]])
    assert (emulator.started_count, list(emulator.runs)) == (1, [])


def test_kept_run_that_is_gone_with_its_file_says_so(emulator: Emulator, tmp_path: Path) -> None:
    """If file and run are both gone, the error says so, nothing is started, and the other file remains."""
    store = Store()
    first = task(tmp_path, delete_after_fetch=True).execute(context(store, 1, 3))
    Path(first["outputs"][0]["uri"].removeprefix("file://")).unlink()
    with pytest.raises(FlowNotFound, match=r"is gone at the service.*clear the task"):
        task(tmp_path, delete_after_fetch=True).execute(context(store, 2, 3))
    assert (emulator.started_count, len(files(tmp_path))) == (1, 1)


def test_run_that_cannot_be_kept_whole_is_not_deleted(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that is too large for the store stays at the service, and a retry resumes it like any other."""
    monkeypatch.setenv("AIRFLOW__STATE_STORE__MAX_VALUE_STORAGE_BYTES", "900")
    store = Store()
    first = task(tmp_path, delete_after_fetch=True).execute(context(store, 1, 3))
    assert (request_times(emulator, "DELETE"), store[RECORD_KEY]["saved_run"]) == ([], None)
    assert "was not deleted, because a retry may still need it" in caplog.text
    assert task(tmp_path, delete_after_fetch=True).execute(context(store, 2, 3)) == first
    assert emulator.started_count == 1


def test_file_of_the_same_size_that_is_another_is_fetched_again(emulator: Emulator, tmp_path: Path) -> None:
    """Files are compared by digest: a damaged one of the same size is downloaded again."""
    store = Store()
    first = task(tmp_path).execute(context(store, 1, 3))
    path = Path(first["outputs"][0]["uri"].removeprefix("file://"))
    path.write_bytes(bytes(path.stat().st_size))
    assert task(tmp_path, delete_after_fetch=True).execute(context(store, 2, 3)) == first
    assert hashlib.sha256(path.read_bytes()).hexdigest() == first["outputs"][0]["sha256"]
    assert list(emulator.runs) == []


def test_task_that_does_not_wait_promises_nothing_for_the_end(emulator: Emulator, tmp_path: Path) -> None:
    """Options that need the end are rejected; otherwise the task returns the run as known at the start."""
    for name in ("delete_after_fetch", "fetch_partial_outputs"):
        with pytest.raises(
            FlowInputError, match=rf"{name}=True cannot be combined with wait_for_completion=False"
        ):
            task(tmp_path, wait_for_completion=False, **{name: True})
    store = Store()
    first = task(tmp_path, wait_for_completion=False).execute(context(store, 1, 3))
    emulator.advance(10)
    second = task(tmp_path, wait_for_completion=False).execute(context(store, 2, 3))
    assert (first["flow_run_id"], second["state"]) == (second["flow_run_id"], "completed")
    assert (first["outputs"], second["outputs"], files(tmp_path)) == ([], [], [])
    chain = task(tmp_path, **CHAIN_ARGUMENTS, parameters=None, wait_for_completion=False).execute(
        context(Store())
    )
    assert len(files(tmp_path)) == 1
    assert [output["status"] for output in chain["outputs"]] == ["ready", "ready"]


def create_pushing_context(store: Store, *numbers: int) -> tuple[Any, dict[str, Any]]:
    """Return a try's context, and the dict of its XComs."""
    given, pushed = context(store, *numbers), dict[str, Any]()
    given["ti"].xcom_push = pushed.__setitem__
    return given, pushed


def test_picture_that_is_lost_loses_no_text(emulator: Emulator, tmp_path: Path) -> None:
    """An expired link fails the task; the chain's texts, large ones as files, are in XCom all the same."""
    chain: dict[str, Any] = {**CHAIN_ARGUMENTS, "inputs": {"color": LONG, "item": "ball"}, "parameters": None}
    emulator.add_fault(Fault("GET", "*.png", status=403, times=None))
    given, pushed = create_pushing_context(Store(), 1, 3)
    with pytest.raises(FlowNotFound, match="not valid any more"):
        task(tmp_path, **chain).execute(given)
    picture, text = pushed["outputs"]
    assert (picture["status"], "not valid any more" in picture["error"]) == ("error", True)
    assert "sig=" not in json.dumps(pushed)
    (path,) = files(tmp_path)
    assert (text["status"], text["uri"]) == ("ready", f"file://{path}")


@pytest.mark.parametrize("broken", ["the first download", "the last download", "the push"])
def test_partial_outputs_tell_what_there_is(emulator: Emulator, tmp_path: Path, broken: str) -> None:
    """Each stored file of a failed run is named, whatever else fails; and the error is the run's."""
    emulator.add_plan(Plan(outcome="failed", error="out of glue", partial_outputs=True))
    skip = {"the first download": 0, "the last download": 1}.get(broken)
    if skip is not None:
        emulator.add_fault(Fault("GET", "*/outputs/*", skip=skip, status=500))
    given, pushed = create_pushing_context(Store())
    if skip is None:
        given["ti"].xcom_push = lambda key, _: 1 / 0 if key == "outputs" else None
    with pytest.raises(FlowRunFailed, match="out of glue") as caught:
        task(tmp_path, inputs=["a", "b", "c", "d"], fetch_partial_outputs=True).execute(given)
    there = {f"file://{path}" for path in files(tmp_path)}
    assert len(there) == (2 if skip is None else 1)
    assert caught.value.run is not None
    assert {output.uri for output in caught.value.run.outputs if output.uri} == there
    assert all(uri in str(caught.value) for uri in there)
    if skip is not None:
        assert {output["uri"] for output in pushed["outputs"] if "uri" in output} == there


@pytest.mark.parametrize("times", [1, None])
def test_output_that_is_not_visible_yet_is_looked_for_again(
    emulator: Emulator, tmp_path: Path, times: int | None
) -> None:
    """A 404 for a ready output is retried; if it persists, the paid run is still left to the next try."""
    emulator.add_fault(Fault("GET", "*/outputs/*", status=404, times=times))
    given = context(Store(), 1, 3)
    if times:
        assert len(task(tmp_path).execute(given)["outputs"]) == len(files(tmp_path)) == 2
        return
    with pytest.raises(FlowNotFound) as caught:
        task(tmp_path, inputs=["A chair"]).execute(given)
    assert len(request_times(emulator, "GET")) - len(request_times(emulator, "GET", "/outputs")) >= 3
    assert not caught.value.is_permanent
    if not has("retry policies"):
        return
    from airflow_provider_flows.retry_policy import FlowsRetryPolicy

    given["ti"].task = task(tmp_path, retry_delay=timedelta(0))
    assert FlowsRetryPolicy().evaluate(caught.value, 1, 3, given).action.name != "FAIL"


class StoreFailingForFiles(Store):
    """A store that fails for files."""

    def get(self, key: str, default: Any = None) -> Any:
        """Fail for files."""
        if key == FILES_KEY:
            raise RuntimeError("the API server is away")
        return super().get(key, default)

    def set(self, key: str, value: Any) -> None:
        """Fail for files."""
        if key == FILES_KEY:
            raise RuntimeError("the API server is away")
        super().set(key, value)


@pytest.mark.usefixtures("emulator")
def test_store_that_cannot_note_files_fails_no_task(tmp_path: Path) -> None:
    """A store that only saves work in a retry does not fail the task."""
    assert (
        len(task(tmp_path).execute(context(StoreFailingForFiles()))["outputs"]) == len(files(tmp_path)) == 2
    )


@pytest.mark.usefixtures("emulator")
def test_metadata_too_large_for_xcom_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Metadata beyond max_xcom_bytes stays at the service, with a warning; smaller ones are returned."""
    inputs = [
        {"data": "A chair", "additional": {"note": "x" * 60_000}},
        {"data": "A table", "additional": {"n": 1}},
    ]
    told = task(tmp_path, inputs=inputs).execute(context(Store()))["outputs"]
    assert sorted(str(output["additional"]) for output in told) == ["None", "{'n': 1}"]
    assert "metadata (`additional`) is omitted" in caplog.text


@pytest.mark.parametrize("mode", ["poke", "reschedule"])
def test_sensor_refuses_a_path_that_cannot_be_written_to_before_it_waits(
    emulator: Emulator, tmp_path: Path, mode: str
) -> None:
    """An invalid output_path is an error before the first poll."""
    (tmp_path / "taken").write_text("mine")
    sensor = FlowRunSensor(
        task_id="s", flow_run_id="0" * 24, mode=mode, output_path=str(tmp_path / "taken" / "x")
    )
    sensor.flows_conn_id = "generio_default"
    with pytest.raises(FlowInputError, match="cannot be written to"):
        sensor.execute(context(Store()))
    assert emulator.requests == ()


def test_sensor_that_looks_again_does_not_look_at_its_path_again(emulator: Emulator, tmp_path: Path) -> None:
    """In reschedule mode, where each poll is a process, the path is validated once in a try."""
    emulator.run_seconds = 1000
    run = GenerioHook("generio_default").start(TWO["flow"], TWO["inputs"], TWO["parameters"])
    (tmp_path / "taken").write_text("mine")
    sensor = FlowRunSensor(
        task_id="s", flow_run_id=run.flow_run_id, output_path=str(tmp_path / "taken" / "x")
    )
    sensor.flows_conn_id = "generio_default"
    given = context(
        Store({WAIT_STATE_KEY: {"waiting_since": time.time(), "failed_polls": 0, "try_number": 1}})
    )
    given["ti"].get_first_reschedule_date = lambda _: given["ti"].start_date
    with pytest.raises(AirflowRescheduleException):
        sensor.execute(given)
    given["ti"].try_number = 2
    with pytest.raises(FlowInputError, match="cannot be written to"):
        sensor.execute(given)

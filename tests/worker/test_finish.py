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

from airflow_provider_flows.core.exceptions import (
    FlowInputError,
    FlowNotFound,
    FlowRunAborted,
    FlowRunFailed,
    FlowServiceError,
)
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
    """Return all files below a folder, including hidden ones."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.usefixtures("emulator")
def test_text_too_large_for_xcom_is_stored_in_a_file(tmp_path: Path) -> None:
    """A text beyond max_xcom_bytes is a complete file; XCom has its start and its URI."""
    task_result = run_with_retries(
        "large_text",
        **{**CHAIN_ARGUMENTS, "inputs": {"color": LONG, "item": "ball"}},
        output_path=str(tmp_path),
    )
    text = next(output for output in task_result.outputs if output["media_type"] == "text/plain")
    path = Path(text["uri"].removeprefix("file://"))
    complete = path.read_text()
    assert (path.suffix, LONG[:-1] in complete) == (".txt", True)
    assert complete.startswith(text["value"])
    assert 40 * 1024 < len(json.dumps(text["value"])) < 48 * 1024
    assert len(json.dumps(task_result.result.xcoms["run"]["return_value"])) <= 48 * 1024
    assert (text["size"], text["sha256"]) == (
        path.stat().st_size,
        hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    assert "outputs" not in task_result.result.xcoms["run"]


@pytest.mark.usefixtures("emulator")
def test_text_too_large_for_xcom_is_pushed_without_output_path() -> None:
    """Without output_path the complete text is pushed, with a warning that says what to set."""
    task_result = run_with_retries(
        "large_text_no_path", **{**CHAIN_ARGUMENTS, "inputs": {"color": LONG, "item": "ball"}}
    )
    text = next(output for output in task_result.outputs if output["media_type"] == "text/plain")
    assert LONG[:-1] in text["value"]
    assert "uri" not in text
    assert task_result.count_log_lines("Set output_path") >= 1
    assert task_result.count_log_lines("max_xcom_bytes") == 1


@pytest.mark.usefixtures("emulator")
def test_max_xcom_bytes_is_respected(tmp_path: Path) -> None:
    """Any limit may be set, or none; a text within it is not changed."""
    limited = run_with_retries(
        "small_text", **CHAIN_ARGUMENTS, output_path=str(tmp_path / "small"), max_xcom_bytes=10
    )
    unlimited = run_with_retries(
        "any_text", **CHAIN_ARGUMENTS, output_path=str(tmp_path / "none"), max_xcom_bytes=None
    )
    truncated, complete = (
        next(output for output in task_result.outputs if output["media_type"] == "text/plain")
        for task_result in (limited, unlimited)
    )
    assert len(truncated["value"].encode()) <= 10
    assert complete["value"].startswith(truncated["value"])
    assert "uri" not in complete
    assert sum(path.suffix == ".txt" for path in files(tmp_path)) == 1


@pytest.mark.usefixtures("emulator")
def test_stored_image_has_url_without_signature(tmp_path: Path) -> None:
    """A linked image is stored as a file, and its URL loses its signature."""
    task_result = run_with_retries("picture", **CHAIN_ARGUMENTS, output_path=str(tmp_path))
    picture = next(output for output in task_result.outputs if output["media_type"].startswith("image/"))
    assert Path(picture["uri"].removeprefix("file://")).read_bytes()[:4] == b"\x89PNG"
    assert picture["value"].startswith("http")
    assert "?" not in picture["value"]
    assert "sig=" not in str(task_result.result.xcoms) + task_result.result.log


@BOTH_MODES
def test_partial_outputs_are_fetched_if_requested(
    emulator: Emulator, tmp_path: Path, *, deferrable: bool
) -> None:
    """A failed run's outputs are files, listed in the error and in XCom; the task still fails."""
    emulator.add_plan(Plan(outcome="failed", error="out of glue", partial_outputs=True))
    arguments = {
        "output_path": str(tmp_path),
        "fetch_partial_outputs": True,
        "retries": 0,
        "deferrable": deferrable,
    }
    task_result = run_with_retries(f"partial_{deferrable}", **{**TWO, **arguments})
    assert task_result.state == "failed"
    (path,) = files(tmp_path)
    assert path.read_bytes()[:4] == b"glTF"
    assert isinstance(task_result.error, FlowRunFailed)
    assert "out of glue" in str(task_result.error)
    assert f"file://{path}" in str(task_result.error)
    assert [output.uri for output in task_result.error.run.outputs if output.uri] == [f"file://{path}"]
    assert f"file://{path}" in [output.get("uri") for output in task_result.result.xcoms["run"]["outputs"]]


@pytest.mark.parametrize("status", [None, 409, 404, 500])
def test_unavailable_partial_outputs_do_not_hide_the_failure(
    emulator: Emulator, tmp_path: Path, status: int | None
) -> None:
    """If a failed run's outputs cannot be fetched, the error is still that the run failed."""
    emulator.add_plan(Plan(outcome="failed", error="out of glue"))
    if status is not None:
        emulator.add_fault(Fault("GET", "*/outputs", status=status, times=None))
    task_result = run_with_retries(
        f"no_partial_{status}",
        **CHAIR_ARGUMENTS,
        output_path=str(tmp_path),
        fetch_partial_outputs=True,
        retries=0,
    )
    assert isinstance(task_result.error, FlowRunFailed)
    assert "out of glue" in str(task_result.error)
    assert files(tmp_path) == []


def test_partial_outputs_are_not_fetched_by_default(emulator: Emulator, tmp_path: Path) -> None:
    """By default no output of a failed run is fetched."""
    emulator.add_plan(Plan(outcome="failed", partial_outputs=True))
    task_result = run_with_retries("not_partial", **TWO, output_path=str(tmp_path), retries=0)
    assert (task_result.state, files(tmp_path)) == ("failed", [])
    assert request_times(emulator, "GET", "/outputs") == []


def test_sensor_fetches_partial_outputs(emulator: Emulator, tmp_path: Path) -> None:
    """The sensor stores a failed run's outputs too, and its error lists them."""
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
def test_run_is_deleted_after_its_files_are_stored(
    emulator: Emulator, tmp_path: Path, *, deferrable: bool
) -> None:
    """After the last file the run is deleted, and the task returns the same dict as without the deletion."""
    task_result = run_with_retries(
        f"deleted_{deferrable}",
        **TWO,
        output_path=str(tmp_path),
        delete_after_fetch=True,
        deferrable=deferrable,
    )
    assert (task_result.state, task_result.tries) == ("success", 1)
    assert [Path(output["uri"].removeprefix("file://")) for output in task_result.outputs] == sorted(
        files(tmp_path),
        key=lambda path: [output["uri"] for output in task_result.outputs].index(f"file://{path}"),
    )
    assert len(request_times(emulator, "DELETE")) == 1
    assert (emulator.started_count, list(emulator.runs)) == (1, [])


def test_retry_after_deletion_starts_no_run(emulator: Emulator, tmp_path: Path) -> None:
    """After a worker died and its run was deleted, the retry returns the same, and starts nothing."""
    store = Store()
    operator = RunFlowOperator(
        task_id="t", **TWO, output_path=str(tmp_path), delete_after_fetch=True, poll_interval=0.1
    )
    first = operator.execute(context(store, 1, 3))
    retry = RunFlowOperator(
        task_id="t", **TWO, output_path=str(tmp_path), delete_after_fetch=True, poll_interval=0.1
    )
    assert retry.execute(context(store, 2, 3)) == first
    assert emulator.started_count == 1
    retry.delete_saved_run()
    assert RECORD_KEY not in store


def test_run_with_missing_output_is_not_deleted(emulator: Emulator, tmp_path: Path) -> None:
    """If an output is not stored, the run stays at the service, with a warning that names the output."""
    emulator.add_fault(
        Fault(
            "GET",
            "*/outputs",
            body=b'{"outputs": [{"asset_id": "gone", "status": "error", "error": "glue"}]}',
        )
    )
    task_result = run_with_retries(
        "not_deleted", **CHAIR_ARGUMENTS, output_path=str(tmp_path), delete_after_fetch=True
    )
    assert task_result.state == "success"
    assert task_result.count_log_lines("is not deleted") == 1
    assert request_times(emulator, "DELETE") == []


def test_failed_deletion_does_not_fail_the_task(emulator: Emulator, tmp_path: Path) -> None:
    """A service that cannot delete a run does not fail the task."""
    emulator.add_fault(Fault("DELETE", "*", status=500, times=None))
    task_result = run_with_retries(
        "delete_fails", **CHAIR_ARGUMENTS, output_path=str(tmp_path), delete_after_fetch=True
    )
    assert task_result.state == "success"
    assert task_result.count_log_lines("could not be deleted") == 1


def test_invalid_options_are_rejected_before_the_start(emulator: Emulator, tmp_path: Path) -> None:
    """Invalid arguments are rejected when the DAG is parsed, or before the start."""
    with pytest.raises(FlowInputError, match="delete_after_fetch=True needs an output_path"):
        RunFlowOperator(task_id="t", **CHAIR_ARGUMENTS, delete_after_fetch=True)
    for wrong in (-1, True, "48", 1.5):
        with pytest.raises(FlowInputError, match="max_xcom_bytes must be"):
            RunFlowOperator(task_id="t", **CHAIR_ARGUMENTS, max_xcom_bytes=wrong)
    task_result = run_with_retries(
        "delete_chain", **CHAIN_ARGUMENTS, output_path=str(tmp_path), delete_after_fetch=True
    )
    assert isinstance(task_result.error, FlowInputError)
    assert "is not supported by promptchainer" in str(task_result.error)
    assert emulator.started_count == 0


@needs("task state store")
@BOTH_MODES
def test_retry_downloads_only_missing_files(emulator: Emulator, tmp_path: Path, *, deferrable: bool) -> None:
    """A complete file of an earlier try is not downloaded again."""
    emulator.add_fault(Fault("GET", "*/outputs/*", skip=1, times=4, status=503))
    task_result = run_with_retries(
        f"missing_{deferrable}", **TWO, output_path=str(tmp_path), deferrable=deferrable
    )
    assert (task_result.state, task_result.tries, emulator.started_count) == ("success", 2, 1)
    assert len(files(tmp_path)) == 2
    assert task_result.count_log_lines("already") == 1
    assert all(path.read_bytes()[:4] == b"glTF" for path in files(tmp_path))


def task(folder: Path, **arguments: Any) -> RunFlowOperator:
    """Return a task that stores its two models below a folder."""
    return RunFlowOperator(task_id="t", **{"output_path": str(folder), **TWO, **arguments}, poll_interval=0.1)


def run_try_without_deletion(emulator: Emulator, folder: Path) -> tuple[Store, dict[str, Any]]:
    """Return the store of a try that ended before the deletion of its run, and what it returned."""
    store = Store()
    emulator.add_fault(Fault("DELETE", "*", status=500))
    return store, task(folder, delete_after_fetch=True).execute(context(store, 1, 3))


@pytest.mark.parametrize("rows", [b"[]", b'[{"output_id": "x", "status": "ready"}]'])
def test_run_with_empty_list_of_outputs_is_not_deleted(
    emulator: Emulator, tmp_path: Path, rows: bytes
) -> None:
    """A run whose list of outputs is empty or unreadable is not deleted, because outputs may be missing."""
    emulator.add_fault(Fault("GET", "*/outputs", body=b'{"outputs": ' + rows + b"}", times=None))
    store = Store()
    outputs = task(tmp_path, delete_after_fetch=True).execute(context(store, 1, 3))["outputs"]
    assert not any("uri" in output for output in outputs)
    assert (request_times(emulator, "DELETE"), store[RECORD_KEY]["saved_run"]) == ([], None)


@pytest.mark.parametrize("damage", ["deleted", "changed", "none"])
def test_retry_of_saved_run_downloads_only_damaged_files(
    emulator: Emulator, tmp_path: Path, damage: str
) -> None:
    """If a try ends before the deletion, the retry downloads bad files again, and deletes the run."""
    store, first = run_try_without_deletion(emulator, tmp_path)
    path = Path(first["outputs"][1]["uri"].removeprefix("file://"))
    content = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    elif damage == "changed":
        path.write_bytes(bytes(len(content)))
    before = len(emulator.requests)
    assert task(tmp_path, delete_after_fetch=True).execute(context(store, 2, 3)) == first
    assert path.read_bytes() == content
    fetched = [
        request.path.rpartition("/")[2] for request in emulator.requests[before:] if request.method == "GET"
    ]
    assert fetched == ([] if damage == "none" else [first["outputs"][1]["asset_id"]])
    assert (emulator.started_count, list(emulator.runs)) == (1, [])


def test_missing_file_of_deleted_run_raises(emulator: Emulator, tmp_path: Path) -> None:
    """If both file and run were deleted, an error is raised and no run starts; the other file remains."""
    store = Store()
    first = task(tmp_path, delete_after_fetch=True).execute(context(store, 1, 3))
    Path(first["outputs"][0]["uri"].removeprefix("file://")).unlink()
    with pytest.raises(FlowNotFound, match=r"is gone at the service.*clear the task"):
        task(tmp_path, delete_after_fetch=True).execute(context(store, 2, 3))
    assert (emulator.started_count, len(files(tmp_path))) == (1, 1)


def test_damaged_file_of_same_size_is_downloaded_again(emulator: Emulator, tmp_path: Path) -> None:
    """Files are compared by digest: a damaged one of the same size is downloaded again."""
    store = Store()
    first = task(tmp_path).execute(context(store, 1, 3))
    path = Path(first["outputs"][0]["uri"].removeprefix("file://"))
    path.write_bytes(bytes(path.stat().st_size))
    assert task(tmp_path, delete_after_fetch=True).execute(context(store, 2, 3)) == first
    assert hashlib.sha256(path.read_bytes()).hexdigest() == first["outputs"][0]["sha256"]
    assert list(emulator.runs) == []


def test_task_without_wait_fetches_no_outputs(emulator: Emulator, tmp_path: Path) -> None:
    """Options that need the end are rejected; otherwise the task returns the run as known at the start."""
    for name in ("delete_after_fetch", "fetch_partial_outputs"):
        with pytest.raises(
            FlowInputError, match=rf"{name}=True cannot be combined with wait_for_completion=False"
        ):
            task(tmp_path, wait_for_completion=False, **{name: True})
    store = Store()
    with pytest.raises(FlowInputError, match="output_path cannot be combined with wait_for_completion=False"):
        task(tmp_path, wait_for_completion=False).execute(context(store, 1, 3))
    without_wait = {"output_path": None, "wait_for_completion": False}
    first = task(tmp_path, **without_wait).execute(context(store, 1, 3))
    emulator.advance(10)
    second = task(tmp_path, **without_wait).execute(context(store, 2, 3))
    assert (first["flow_run_id"], second["state"]) == (second["flow_run_id"], "completed")
    assert (first["outputs"], second["outputs"], files(tmp_path)) == ([], [], [])
    chain = task(tmp_path, **CHAIN_ARGUMENTS, parameters=None, wait_for_completion=False).execute(
        context(Store())
    )
    assert len(files(tmp_path)) == 1
    assert [output["status"] for output in chain["outputs"]] == ["ready", "ready"]


def failed_response(state: str) -> Fault:
    """Return a response to the start with a run that has ended already."""
    body = json.dumps({"flow_id": "6b01ffb34d3afa91ec0cea9a", "state": state, "error": "out of glue"})
    return Fault("POST", "/flows", body=body.encode())


ONE_REQUEST: dict[str, Any] = {**CHAIR_ARGUMENTS, "durable": False}
ENDED_AT_START: dict[str, tuple[dict[str, Any], Fault | None, type[Exception]]] = {
    "chain without outputs": (CHAIN_ARGUMENTS, None, FlowRunFailed),
    "chain whose image cannot be stored": (
        CHAIN_ARGUMENTS,
        Fault("GET", "*.png", status=500, times=None),
        FlowServiceError,
    ),
    "failed in the response": (
        {**CHAIR_ARGUMENTS, "durable": False},
        failed_response("failed"),
        FlowRunFailed,
    ),
    "aborted in the response": (
        {**CHAIR_ARGUMENTS, "durable": False},
        failed_response("aborted"),
        FlowRunAborted,
    ),
}


@pytest.mark.parametrize("name", ENDED_AT_START)
def test_task_without_wait_fails_with_a_run_that_has_failed(
    emulator: Emulator, tmp_path: Path, name: str
) -> None:
    """With wait_for_completion=False, a run that has failed when the start returns fails the task."""
    arguments, fault, error_type = ENDED_AT_START[name]
    output_path = str(tmp_path) if arguments is CHAIN_ARGUMENTS else None
    if fault is None:
        emulator.switches.model_failure = "empty"
    else:
        emulator.add_fault(fault)
    task_result = run_with_retries(
        f"ended_{name.replace(' ', '_')}",
        **{**arguments, "output_path": output_path, "wait_for_completion": False, "retries": 0},
    )
    assert (task_result.state, type(task_result.error)) == ("failed", error_type)


@needs("task state store")
@pytest.mark.parametrize("outcome", ["failed", "aborted"])
def test_retry_without_wait_does_not_return_a_failed_run(emulator: Emulator, outcome: str) -> None:
    """If the run of an earlier try has failed, the retry starts another one."""
    emulator.add_plan(Plan(outcome=outcome))
    emulator.add_fault(Fault("PATCH", "*", reset="after"))
    emulator.add_fault(Fault("GET", "/flows/*", status=405))
    task_result = run_with_retries(f"ended_{outcome}", **CHAIR_ARGUMENTS, wait_for_completion=False)
    assert (task_result.tries, task_result.state, emulator.started_count) == (2, "success", 2)
    assert task_result.result.xcoms["run"]["return_value"]["state"] == "starting"


def create_pushing_context(store: Store, *numbers: int) -> tuple[Any, dict[str, Any]]:
    """Return a try's context, and the dict of its XComs."""
    try_context, pushed = context(store, *numbers), dict[str, Any]()
    try_context["ti"].xcom_push = pushed.__setitem__
    return try_context, pushed


def test_expired_image_link_does_not_lose_texts(emulator: Emulator, tmp_path: Path) -> None:
    """An expired link fails the task; the chain's texts, large ones as files, are in XCom all the same."""
    chain: dict[str, Any] = {**CHAIN_ARGUMENTS, "inputs": {"color": LONG, "item": "ball"}, "parameters": None}
    emulator.add_fault(Fault("GET", "*.png", status=403, times=None))
    try_context, pushed = create_pushing_context(Store(), 1, 3)
    with pytest.raises(FlowNotFound, match="not valid any more"):
        task(tmp_path, **chain).execute(try_context)
    picture, text = pushed["outputs"]
    assert (picture["status"], "not valid any more" in picture["error"]) == ("error", True)
    assert "sig=" not in json.dumps(pushed)
    (path,) = files(tmp_path)
    assert (text["status"], text["uri"]) == ("ready", f"file://{path}")


@pytest.mark.parametrize("broken", ["the first download", "the last download", "the push"])
def test_failure_lists_stored_partial_outputs(emulator: Emulator, tmp_path: Path, broken: str) -> None:
    """The error of a failed run lists each stored file, even if other requests fail."""
    emulator.add_plan(Plan(outcome="failed", error="out of glue", partial_outputs=True))
    skip = {"the first download": 0, "the last download": 1}.get(broken)
    if skip is not None:
        emulator.add_fault(Fault("GET", "*/outputs/*", skip=skip, status=500))
    try_context, pushed = create_pushing_context(Store())
    if skip is None:
        try_context["ti"].xcom_push = lambda key, _: 1 / 0 if key == "outputs" else None
    with pytest.raises(FlowRunFailed, match="out of glue") as caught:
        task(tmp_path, inputs=["a", "b", "c", "d"], fetch_partial_outputs=True).execute(try_context)
    stored = {f"file://{path}" for path in files(tmp_path)}
    assert len(stored) == (2 if skip is None else 1)
    assert caught.value.run is not None
    assert {output.uri for output in caught.value.run.outputs if output.uri} == stored
    assert all(uri in str(caught.value) for uri in stored)
    if skip is not None:
        assert {output["uri"] for output in pushed["outputs"] if "uri" in output} == stored


@pytest.mark.parametrize("times", [1, None])
def test_output_that_is_not_visible_yet_is_requested_again(
    emulator: Emulator, tmp_path: Path, times: int | None
) -> None:
    """A 404 for a ready output is retried; if it persists, the paid run is still left to the next try."""
    emulator.add_fault(Fault("GET", "*/outputs/*", status=404, times=times))
    try_context = context(Store(), 1, 3)
    if times:
        assert len(task(tmp_path).execute(try_context)["outputs"]) == len(files(tmp_path)) == 2
        return
    with pytest.raises(FlowNotFound) as caught:
        task(tmp_path, inputs=["A chair"]).execute(try_context)
    assert len(request_times(emulator, "GET")) - len(request_times(emulator, "GET", "/outputs")) >= 3
    assert not caught.value.is_permanent
    if not has("retry policies"):
        return
    from airflow_provider_flows.retry_policy import FlowsRetryPolicy

    try_context["ti"].task = task(tmp_path, retry_delay=timedelta(0))
    assert FlowsRetryPolicy().evaluate(caught.value, 1, 3, try_context).action.name != "FAIL"


class StoreFailingForFiles(Store):
    """A store that fails for file records."""

    def get(self, key: str, default: Any = None) -> Any:
        """Raise for the key of file records."""
        if key == FILES_KEY:
            raise RuntimeError("the API server is away")
        return super().get(key, default)

    def set(self, key: str, value: Any) -> None:
        """Raise for the key of file records."""
        if key == FILES_KEY:
            raise RuntimeError("the API server is away")
        super().set(key, value)


@BOTH_MODES
def test_run_with_an_unconfirmed_file_succeeds_and_is_not_deleted(
    emulator: Emulator, tmp_path: Path, *, deferrable: bool
) -> None:
    """A model that is longer than its header says is a success with a warning, and remains at the service."""
    model = b"glTF\x02\x00\x00\x00" + (20).to_bytes(4, "little") + bytes(9)
    emulator.add_fault(Fault("GET", "*/outputs/*", times=None, body=model))
    result = run_with_retries(
        f"doubtful_{deferrable}",
        **CHAIR_ARGUMENTS,
        output_path=str(tmp_path),
        delete_after_fetch=True,
        deferrable=deferrable,
    )
    (output,) = result.outputs
    assert (output["status"], output["size"]) == ("ready", 21)
    assert "longer than its header says" in output["warning"]
    assert Path(output["uri"].removeprefix("file://")).read_bytes() == model
    assert result.count_log_lines("but it may be unusable") == 1
    assert result.count_log_lines("is not deleted, because these outputs may be unusable") == 1
    assert list(emulator.runs) == [result.result.xcoms["run"]["flow_run_id"]]
    assert sum("/outputs/" in request.path for request in emulator.requests) == 2


@pytest.mark.usefixtures("emulator")
def test_failing_store_of_file_records_does_not_fail_the_task(tmp_path: Path) -> None:
    """A store that only saves work in a retry does not fail the task."""
    assert (
        len(task(tmp_path).execute(context(StoreFailingForFiles()))["outputs"]) == len(files(tmp_path)) == 2
    )


@pytest.mark.usefixtures("emulator")
def test_metadata_too_large_for_xcom_is_omitted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Metadata beyond max_xcom_bytes stays at the service, with a warning; smaller ones are returned."""
    inputs = [
        {"data": "A chair", "additional": {"note": "x" * 60_000}},
        {"data": "A table", "additional": {"n": 1}},
    ]
    outputs = task(tmp_path, inputs=inputs).execute(context(Store()))["outputs"]
    assert sorted(str(output["additional"]) for output in outputs) == ["None", "{'n': 1}"]
    assert "metadata (`additional`) is omitted" in caplog.text


@pytest.mark.parametrize("mode", ["poke", "reschedule"])
def test_sensor_rejects_unwritable_output_path_before_polling(
    emulator: Emulator, tmp_path: Path, mode: str
) -> None:
    """An invalid output_path is an error before the first poll."""
    (tmp_path / "file").write_text("content")
    sensor = FlowRunSensor(
        task_id="s", flow_run_id="0" * 24, mode=mode, output_path=str(tmp_path / "file" / "x")
    )
    sensor.flows_conn_id = "generio_default"
    with pytest.raises(FlowInputError, match="cannot be written to"):
        sensor.execute(context(Store()))
    assert emulator.requests == ()


def test_sensor_validates_output_path_once_in_a_try(emulator: Emulator, tmp_path: Path) -> None:
    """In reschedule mode, where each poll is a process, the path is validated once in a try."""
    emulator.run_seconds = 1000
    run = GenerioHook("generio_default").start(TWO["flow"], TWO["inputs"], TWO["parameters"])
    (tmp_path / "file").write_text("content")
    sensor = FlowRunSensor(task_id="s", flow_run_id=run.flow_run_id, output_path=str(tmp_path / "file" / "x"))
    sensor.flows_conn_id = "generio_default"
    try_context = context(
        Store({WAIT_STATE_KEY: {"waiting_since": time.time(), "failed_polls": 0, "try_number": 1}})
    )
    try_context["ti"].get_first_reschedule_date = lambda _: try_context["ti"].start_date
    with pytest.raises(AirflowRescheduleException):
        sensor.execute(try_context)
    try_context["ti"].try_number = 2
    with pytest.raises(FlowInputError, match="cannot be written to"):
        sensor.execute(try_context)

"""Tests of a task's end: large texts, pictures, partial outputs, deleting a run, and what a retry does not fetch again.

Tasks run through Airflow's `dag.test()` or as a worker runs them, against the emulator; files are real.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_flows.emulator import Emulator, Fault, Plan
from airflow_provider_flows.flow.errors import FlowInputError, FlowRunFailed
from airflow_provider_flows.memory import KEY
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.sensors import FlowRunSensor
from tests.test_killed import Store, context
from tests.tries import BOTH, CHAIN, CHAIR, request, set_up, tried

LONG = "größer " * 9000  # more than 48 KiB
TWO: dict[str, Any] = {**CHAIR, "inputs": ["A chair", "A table"]}


@pytest.fixture
def emulator(flow_emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """Give an emulator whose runs take no time."""
    return set_up(flow_emulator, monkeypatch)


def files(folder: Path) -> list[Path]:
    """List all files below a folder, hidden ones too."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.usefixtures("emulator")
def test_text_too_large_for_xcom_becomes_a_file(tmp_path: Path) -> None:
    """A text beyond max_xcom_bytes lies whole in a file; XCom has its beginning and where the rest is."""
    ended = tried("large_text", **{**CHAIN, "inputs": {"color": LONG, "item": "ball"}}, output_path=str(tmp_path))
    text = next(output for output in ended.outputs if output["media_type"] == "text/plain")
    path = Path(text["uri"].removeprefix("file://"))
    whole = path.read_text()
    assert (path.suffix, LONG[:-1] in whole) == (".txt", True)
    assert whole.startswith(text["value"])
    assert 48 * 1024 - 4 < len(text["value"].encode()) <= 48 * 1024
    assert (text["size"], text["sha256"]) == (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    assert ended.result.xcoms["run"]["outputs"] == ended.outputs


@pytest.mark.usefixtures("emulator")
def test_text_too_large_for_xcom_is_never_lost_without_a_path() -> None:
    """Without output_path the text is pushed whole, with a warning that says what would help."""
    ended = tried("large_text_no_path", **{**CHAIN, "inputs": {"color": LONG, "item": "ball"}})
    text = next(output for output in ended.outputs if output["media_type"] == "text/plain")
    assert LONG[:-1] in text["value"]
    assert "uri" not in text
    assert ended.told("Set output_path") >= 1
    assert ended.told("max_xcom_bytes") == 1


@pytest.mark.usefixtures("emulator")
def test_bound_on_texts_is_the_users(tmp_path: Path) -> None:
    """Any bound may be given, none too; a text within it stays as it is."""
    small = tried("small_text", **CHAIN, output_path=str(tmp_path / "small"), max_xcom_bytes=10)
    none = tried("any_text", **CHAIN, output_path=str(tmp_path / "none"), max_xcom_bytes=None)
    cut, whole = (next(output for output in ended.outputs if output["media_type"] == "text/plain") for ended in (small, none))
    assert len(cut["value"].encode()) <= 10
    assert whole["value"].startswith(cut["value"])
    assert "uri" not in whole
    assert sum(path.suffix == ".txt" for path in files(tmp_path)) == 1


@pytest.mark.usefixtures("emulator")
def test_picture_that_is_saved_keeps_its_address_without_the_signature(tmp_path: Path) -> None:
    """A picture's link is a file at once; what stays of the link opens nothing."""
    ended = tried("picture", **CHAIN, output_path=str(tmp_path))
    picture = next(output for output in ended.outputs if output["media_type"].startswith("image/"))
    assert Path(picture["uri"].removeprefix("file://")).read_bytes()[:4] == b"\x89PNG"
    assert picture["value"].startswith("http")
    assert "?" not in picture["value"]
    assert "sig=" not in str(ended.result.xcoms) + ended.result.log


@BOTH
def test_partial_outputs_are_fetched_when_asked(emulator: Emulator, tmp_path: Path, *, deferrable: bool) -> None:
    """A failed run's outputs are files, listed on the error and in XCom; the task fails all the same."""
    emulator.plan(Plan(outcome="failed", error="out of glue", partial_outputs=True))
    asked = {"output_path": str(tmp_path), "fetch_partial_outputs": True, "retries": 0, "deferrable": deferrable}
    ended = tried(f"partial_{deferrable}", **{**TWO, **asked})
    assert ended.state == "failed"
    (path,) = files(tmp_path)
    assert path.read_bytes()[:4] == b"glTF"
    assert isinstance(ended.error, FlowRunFailed)
    assert "out of glue" in str(ended.error)
    assert f"file://{path}" in str(ended.error)
    assert [output.uri for output in ended.error.run.outputs if output.uri] == [f"file://{path}"]
    assert f"file://{path}" in [output.get("uri") for output in ended.result.xcoms["run"]["outputs"]]


@pytest.mark.parametrize("status", [None, 409, 404, 500])
def test_partial_outputs_that_cannot_be_had_hide_nothing(emulator: Emulator, tmp_path: Path, status: int | None) -> None:
    """However the service answers for a failed run's outputs, the error is that the run failed."""
    emulator.plan(Plan(outcome="failed", error="out of glue"))
    if status is not None:
        emulator.fault(Fault("GET", "*/outputs", status=status, times=None))
    ended = tried(f"no_partial_{status}", **CHAIR, output_path=str(tmp_path), fetch_partial_outputs=True, retries=0)
    assert isinstance(ended.error, FlowRunFailed)
    assert "out of glue" in str(ended.error)
    assert files(tmp_path) == []


def test_partial_outputs_are_left_alone_unless_asked(emulator: Emulator, tmp_path: Path) -> None:
    """By default nothing of a failed run is fetched."""
    emulator.plan(Plan(outcome="failed", partial_outputs=True))
    ended = tried("not_partial", **TWO, output_path=str(tmp_path), retries=0)
    assert (ended.state, files(tmp_path)) == ("failed", [])
    assert request(emulator, "GET", "/outputs") == []


def test_sensor_fetches_partial_outputs_too(emulator: Emulator, tmp_path: Path) -> None:
    """The sensor has the same ending."""
    from airflow_provider_flows.hooks import GenerioHook

    emulator.plan(Plan(outcome="failed", partial_outputs=True))
    run = GenerioHook("generio_default").start(TWO["flow"], TWO["inputs"], TWO["parameters"])
    sensor = FlowRunSensor(
        task_id="s", flow_run_id=run.flow_run_id, mode="poke", output_path=str(tmp_path), fetch_partial_outputs=True
    )
    sensor.flows_conn_id = "generio_default"
    with pytest.raises(FlowRunFailed, match="file://"):
        sensor.execute(context(Store()))
    assert len(files(tmp_path)) == 1


@BOTH
def test_run_is_deleted_when_its_files_are_in_place(emulator: Emulator, tmp_path: Path, *, deferrable: bool) -> None:
    """After the last file the run is gone at the service, and the task returns what it would have."""
    ended = tried(f"deleted_{deferrable}", **TWO, output_path=str(tmp_path), delete_after_fetch=True, deferrable=deferrable)
    assert (ended.state, ended.tries) == ("success", 1)
    assert [Path(output["uri"].removeprefix("file://")) for output in ended.outputs] == sorted(
        files(tmp_path), key=lambda path: [output["uri"] for output in ended.outputs].index(f"file://{path}")
    )
    assert len(request(emulator, "DELETE")) == 1
    assert (emulator.started, list(emulator.runs)) == (1, [])


def test_try_after_the_deletion_pays_nothing(emulator: Emulator, tmp_path: Path) -> None:
    """A worker that dies after the run was deleted leaves a retry that returns the same, and starts nothing."""
    store = Store()
    made = RunFlowOperator(task_id="t", **TWO, output_path=str(tmp_path), delete_after_fetch=True, poll_interval=0.1)
    first = made.execute(context(store, 1, 3))
    again = RunFlowOperator(task_id="t", **TWO, output_path=str(tmp_path), delete_after_fetch=True, poll_interval=0.1)
    assert again.execute(context(store, 2, 3)) == first
    assert emulator.started == 1
    again.forget()
    assert KEY not in store


def test_run_with_an_output_that_is_no_file_is_not_deleted(emulator: Emulator, tmp_path: Path) -> None:
    """Where anything is not in its place the run stays at the service, with a warning that names the output."""
    emulator.fault(Fault("GET", "*/outputs", body=b'{"outputs": [{"asset_id": "gone", "status": "error", "error": "glue"}]}'))
    ended = tried("not_deleted", **CHAIR, output_path=str(tmp_path), delete_after_fetch=True)
    assert ended.state == "success"
    assert ended.told("is not deleted") == 1
    assert request(emulator, "DELETE") == []


def test_deletion_that_fails_fails_no_task(emulator: Emulator, tmp_path: Path) -> None:
    """All is there, so that a service that cannot delete just now is no reason to fail."""
    emulator.fault(Fault("DELETE", "*", status=500, times=None))
    ended = tried("delete_fails", **CHAIR, output_path=str(tmp_path), delete_after_fetch=True)
    assert ended.state == "success"
    assert ended.told("could not be deleted") == 1


def test_what_cannot_be_done_is_refused_before_anything_is_paid(emulator: Emulator, tmp_path: Path) -> None:
    """Arguments that cannot be kept are refused when the DAG is read, or before the start."""
    with pytest.raises(FlowInputError, match="delete_after_fetch=True needs an output_path"):
        RunFlowOperator(task_id="t", **CHAIR, delete_after_fetch=True)
    for wrong in (-1, True, "48", 1.5):
        with pytest.raises(FlowInputError, match="max_xcom_bytes must be"):
            RunFlowOperator(task_id="t", **CHAIR, max_xcom_bytes=wrong)
    ended = tried("delete_chain", **CHAIN, output_path=str(tmp_path), delete_after_fetch=True)
    assert isinstance(ended.error, FlowInputError)
    assert "promptchainer keeps nothing" in str(ended.error)
    assert emulator.started == 0


@BOTH
def test_retry_fetches_only_what_is_missing(emulator: Emulator, tmp_path: Path, *, deferrable: bool) -> None:
    """A file that an earlier try has written whole is not downloaded again; one that was changed since is."""
    emulator.fault(Fault("GET", "*/outputs/*", skip=1, times=4, status=503))
    ended = tried(f"missing_{deferrable}", **TWO, output_path=str(tmp_path), deferrable=deferrable)
    assert (ended.state, ended.tries, emulator.started) == ("success", 2, 1)
    assert len(files(tmp_path)) == 2
    assert ended.told("already") == 1
    assert all(path.read_bytes()[:4] == b"glTF" for path in files(tmp_path))

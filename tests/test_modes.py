"""Tests that all modes of waiting have the same results and log lines, in DAG runs with the emulator."""

from __future__ import annotations

from base64 import b64decode
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import requests

from airflow_provider_flows.core.exceptions import FlowRunAborted, FlowRunFailed, FlowTimeout
from airflow_provider_flows.emulator import Emulator, Fault, Plan
from airflow_provider_flows.sensors import FlowSensorTimeout
from tests.support.modes import MODES, OPERATORS, auth_headers, compat_notices, run_in_mode
from tests.support.versions import has, lacks, needs

# The duration of a flow run by the emulator's clock, which the polls advance. Real time passes as well,
# so it is much longer than a test takes on a busy machine.
SECONDS = 1000.0
FULL_NAME = "The generio flow run ID (flow model_generate_fromprompt)"
RUN = "The flow run ...ID (model_generate_fromprompt)"
START_LINES = [
    f"info: {RUN} is starting",
    f"info: {RUN} is running",
    f"info: {RUN} is at N% after N s; expected end: T",
]
PROGRESS = f"info: {RUN} is at N% after N s; expected end: T"
# modes in which each poll must know what the poll before has observed and logged
STATEFUL_MODES = [
    pytest.param(mode, marks=needs("task state store") if mode == "sensor, reschedule" else ())
    for mode in MODES
]
TO_THE_END = (200.0, 900.0)  # the run is at 11 % after the first step, and completed after the second

pytestmark = pytest.mark.emulator(run_seconds=SECONDS)


def download_output(emulator: Emulator, flow_run_id: str) -> bytes:
    """Download the run's one output without the package."""
    path = f"{emulator.url}/flows/{flow_run_id}/outputs"
    (output,) = requests.get(path, headers=auth_headers(emulator), timeout=10).json()["outputs"]
    response = requests.get(f"{path}/{output['asset_id']}", headers=auth_headers(emulator), timeout=10).json()
    return b64decode(response["data"].partition(",")[2])


def lines_of(mode: str, *lines: str) -> list[str]:
    """Return the log lines of a wait in this mode: an operator also logs the start, with the full name.

    The first line of a sensor has it, and the first line of each poll of one that cannot save what it has
    logged: the line about progress is the second one of its poll.
    """
    if mode in OPERATORS:
        return [f"info: Started the {FULL_NAME.removeprefix('The ')}", *lines]
    has_state = mode != "sensor, reschedule" or has("task state store")
    short = lines[1:] if has_state else (PROGRESS,)
    return [line if line in short else line.replace(RUN, FULL_NAME) for line in lines]


@lacks("task state store")
@pytest.mark.parametrize("mode", MODES)
def test_missing_features_are_logged_once(emulator: Emulator, mode: str) -> None:
    """Each mode completes, and logs once which features this Airflow does not have."""
    wait = run_in_mode(mode, emulator, TO_THE_END)

    assert wait.state == "success"
    expected = {
        "blocking": ["The task state store"],
        "deferrable": ["The task state store", "The on_kill method of triggers"],
        "sensor, reschedule": ["The task state store"],
    }
    assert compat_notices(wait.result.log) == expected.get(mode, [])


def without_varying_values(returned: dict[str, Any] | None) -> dict[str, Any]:
    """Return a task's result without values that differ between runs: ids, times and the file's location."""
    assert returned is not None
    outputs = [
        {**output, "name": "", "asset_id": "", "uri": output["uri"].rpartition(".")[2]}
        for output in returned["outputs"]
    ]
    timestamps = dict.fromkeys(("created_at", "started_at", "finished_at"), "")
    assert all(returned[key].endswith("+00:00") for key in timestamps)
    return {**returned, "flow_run_id": "", "outputs": outputs, **timestamps}


@pytest.mark.parametrize("mode", MODES)
def test_completed_run_has_same_result_and_log_in_every_mode(
    emulator: Emulator, tmp_path: Path, mode: str
) -> None:
    """A completed run has the same result and the same log lines in every mode, and its file is stored."""
    # the first two polls, possibly of two processes, observe the same
    wait = run_in_mode(mode, emulator, (0.0, *TO_THE_END), output_path=str(tmp_path))

    assert wait.state == "success"
    returned = wait.return_value
    assert returned is not None
    content = download_output(emulator, wait.flow_run_id)
    assert returned["flow_run_id"] == wait.flow_run_id
    assert without_varying_values(returned) == {
        "flow_run_id": "",
        "flow": "model_generate_fromprompt",
        "service": "generio",
        "state": "completed",
        "progress": 1.0,
        "created_at": "",
        "started_at": "",
        "finished_at": "",
        "duration": SECONDS,
        "outputs": [
            {
                "name": "",
                "asset_id": "",
                "status": "ready",
                "media_type": "model/gltf-binary",
                "additional": None,
                "uri": "glb",
                "size": len(content),
                "sha256": sha256(content).hexdigest(),
            }
        ],
    }
    file = Path(returned["outputs"][0]["uri"].removeprefix("file://"))
    assert file.read_bytes() == content
    stored = f"info: Output ID is stored in {tmp_path}/ID/ID.glb (N bytes)"
    lines = [line.replace("file://", "") for line in wait.lines]
    assert lines == [*lines_of(mode, *START_LINES, f"info: {RUN} is completed after 1000.0 s"), stored]


@pytest.mark.parametrize("mode", MODES)
def test_failed_run_raises_with_reason_in_every_mode(emulator: Emulator, mode: str) -> None:
    """A failed run fails the task with FlowRunFailed, the service's reason and the run, in every mode."""
    emulator.add_plan(Plan(outcome="failed", error="The mesh has no faces"))

    wait = run_in_mode(mode, emulator, TO_THE_END)

    assert wait.state == "failed"
    assert type(wait.error) is FlowRunFailed
    assert wait.error.run is not None
    assert wait.error.run.flow_run_id == wait.flow_run_id
    assert wait.normalize(str(wait.error)) == (
        f"{FULL_NAME} failed. Reason given by the service: The mesh has no faces. "
        "Check the run at the service, then run the task again."
    )
    assert wait.lines == lines_of(mode, *START_LINES, f"info: {RUN} is failed after 1000.0 s")
    assert "The mesh has no faces" in wait.result.log


@pytest.mark.parametrize("mode", MODES)
def test_aborted_run_raises_in_every_mode(emulator: Emulator, mode: str) -> None:
    """A run that is aborted at the service fails the task with FlowRunAborted in every mode."""
    emulator.add_plan(Plan(outcome="aborted"))

    wait = run_in_mode(mode, emulator, TO_THE_END)

    assert wait.state == "failed"
    assert type(wait.error) is FlowRunAborted
    assert wait.normalize(str(wait.error)).startswith(f"{FULL_NAME} was aborted at the service.")
    assert wait.lines == lines_of(mode, *START_LINES, f"info: {RUN} is aborted after 1000.0 s")


@pytest.mark.parametrize("mode", STATEFUL_MODES)
def test_unknown_state_logs_one_warning(emulator: Emulator, mode: str) -> None:
    """Every mode warns once of an unknown state, and continues to the end."""
    emulator.add_plan(Plan(unknown_state="polishing"))

    wait = run_in_mode(mode, emulator, (280.0, 200.0, 50.0, 300.0, 300.0))  # polled twice in the middle third

    assert wait.state == "success"
    unknown = f"warning: {RUN} is in state 'polishing', which this provider does not know; polling continues"
    lines = [line for line in wait.lines if line != PROGRESS]
    assert lines == lines_of(
        mode,
        f"info: {RUN} is starting",
        f"info: {RUN} is running",
        unknown,
        f"info: {RUN} is running",
        f"info: {RUN} is completed after 1000.0 s",
    )


@pytest.mark.parametrize("mode", STATEFUL_MODES)
def test_polling_continues_after_failed_polls(emulator: Emulator, mode: str) -> None:
    """Every mode warns of a service that is unreachable for some polls, and continues to the end."""
    emulator.add_fault(Fault(method="GET", path="/flows/*", skip=1, times=1, reset="before"))
    emulator.add_fault(Fault(method="GET", path="/flows/*", skip=1, times=2, status=503))

    wait = run_in_mode(mode, emulator, (200.0, 0.0, 0.0, 0.0, 900.0))

    assert wait.state == "success"
    lines = [line.partition("; polling continues: ")[0] for line in wait.lines]
    assert lines == lines_of(
        mode,
        f"info: {RUN} is starting",
        f"warning: {RUN} could not be polled (1 in a row)",
        f"warning: {RUN} could not be polled (2 in a row)",
        f"info: {RUN} can be polled again",
        f"info: {RUN} is running",
        PROGRESS,
        f"info: {RUN} is completed after 1000.0 s",
    )


@pytest.mark.parametrize("mode", MODES)
def test_passed_deadline_raises_timeout_in_every_mode(emulator: Emulator, mode: str) -> None:
    """A passed deadline raises FlowTimeout in every mode; only the operator aborts its run."""
    emulator.switches.abort = "instant"

    timeout = (
        2.5 if mode == "sensor, reschedule" else 0.5
    )  # each poll is the start of a task, and two are necessary
    wait = run_in_mode(mode, emulator, (200.0,), timeout=timeout)

    assert wait.state == "failed"
    assert isinstance(wait.error, FlowTimeout)
    assert type(wait.error) is (FlowTimeout if mode in OPERATORS else FlowSensorTimeout)
    assert wait.flow_run_id in str(wait.error)
    assert "increase timeout" in str(wait.error)
    is_aborted = emulator.runs[wait.flow_run_id].state in {"aborting", "aborted"}
    assert is_aborted is (mode in OPERATORS)
    assert wait.lines == lines_of(mode, *START_LINES)


@pytest.mark.parametrize("mode", MODES)
def test_run_final_at_first_poll_is_polled_once(emulator: Emulator, mode: str) -> None:
    """A run that is final at the first poll is polled once, and no mode waits."""
    emulator.add_plan(Plan(run_seconds=0.0))

    wait = run_in_mode(mode, emulator)

    assert wait.state == "success"
    assert wait.lines == lines_of(mode, f"info: {RUN} is completed after 0.0 s")
    path = f"/flows/{wait.flow_run_id}"
    paths = [
        request.path for request in emulator.requests if request.method == "GET" and path in request.path
    ]
    assert paths == [path, f"{path}/outputs"]
    assert "running trigger in line" not in wait.result.log

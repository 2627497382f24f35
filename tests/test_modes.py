"""Tests that all modes of waiting agree: scenario by mode, each cell a real DAG run against the emulator.

What only one mode has (reschedule dates, triggers, kills) is tested in that mode's own module.
"""

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
from tests.support.versions import lacks, needs

# Duration of a flow run on the emulator's clock, which each poll advances. The clock also runs by itself,
# so this is long compared with the seconds that a test may take on a busy machine.
SECONDS = 1000.0
RUN = "The generio flow run ID (flow model_generate_fromprompt)"
BEGUN = [
    f"info: {RUN} is starting",
    f"info: {RUN} is running",
    f"info: {RUN} is at N% after N s; expected end: T",
]
PROGRESS = f"info: {RUN} is at N% after N s; expected end: T"
# in these each look must know what the look before it saw and told
REMEMBERED = [
    pytest.param(mode, marks=needs("task state store") if mode == "sensor, reschedule" else ())
    for mode in MODES
]
TO_THE_END = (200.0, 900.0)  # after the first look it is running at 11 %, after the second one it is over

pytestmark = pytest.mark.emulator(run_seconds=SECONDS)


def served(emulator: Emulator, flow_run_id: str) -> bytes:
    """Download the run's one output as anybody would."""
    path = f"{emulator.url}/flows/{flow_run_id}/outputs"
    (output,) = requests.get(path, headers=auth_headers(emulator), timeout=10).json()["outputs"]
    answer = requests.get(f"{path}/{output['asset_id']}", headers=auth_headers(emulator), timeout=10).json()
    return b64decode(answer["data"].partition(",")[2])


def told_by(mode: str, *lines: str) -> list[str]:
    """Give the lines that a wait tells in this mode: an operator also says what it started."""
    return [f"info: Started the {RUN.removeprefix('The ')}", *lines] if mode in OPERATORS else list(lines)


@lacks("task state store")
@pytest.mark.parametrize("mode", MODES)
def test_what_this_airflow_lacks_is_told_once(emulator: Emulator, mode: str) -> None:
    """Each mode completes all the same, and says once what this Airflow cannot do for it."""
    story = run_in_mode(mode, emulator, TO_THE_END)

    assert story.state == "success"
    told = {
        "blocking": ["The task state store"],
        "deferrable": ["The task state store", "The on_kill method of triggers"],
        "sensor, reschedule": ["The task state store"],
    }
    assert compat_notices(story.result.log) == told.get(mode, [])


def same(returned: dict[str, Any] | None) -> dict[str, Any]:
    """Return the result of a task without what differs from run to run: ids, times and file locations."""
    assert returned is not None
    outputs = [
        {**output, "name": "", "asset_id": "", "uri": output["uri"].rpartition(".")[2]}
        for output in returned["outputs"]
    ]
    moments = dict.fromkeys(("created_at", "started_at", "finished_at"), "")
    assert all(returned[key].endswith("+00:00") for key in moments)
    return {**returned, "flow_run_id": "", "outputs": outputs, **moments}


@pytest.mark.parametrize("mode", MODES)
def test_completed(emulator: Emulator, tmp_path: Path, mode: str) -> None:
    """A completed run gives the same dict and the same lines in every mode, and its file is there."""
    # the first two looks see the same, though they may be made by two processes
    story = run_in_mode(mode, emulator, (0.0, *TO_THE_END), output_path=str(tmp_path))

    assert story.state == "success"
    returned = story.return_value
    assert returned is not None
    content = served(emulator, story.flow_run_id)
    assert returned["flow_run_id"] == story.flow_run_id
    assert same(returned) == {
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
    told = [line.replace("file://", "") for line in story.lines]
    assert told == [*told_by(mode, *BEGUN, f"info: {RUN} is completed after 1000.0 s"), stored]


@pytest.mark.parametrize("mode", MODES)
def test_failed_with_a_reason(emulator: Emulator, mode: str) -> None:
    """In every mode, a failed run fails the task with FlowRunFailed, the service's reason and the run."""
    emulator.add_plan(Plan(outcome="failed", error="The mesh has no faces"))

    story = run_in_mode(mode, emulator, TO_THE_END)

    assert story.state == "failed"
    assert type(story.error) is FlowRunFailed
    assert story.error.run is not None
    assert story.error.run.flow_run_id == story.flow_run_id
    assert story.normalize(str(story.error)) == (
        f"{RUN} failed. The service says: The mesh has no faces. "
        "Check the run at the service, then run the task again."
    )
    assert story.lines == told_by(mode, *BEGUN, f"info: {RUN} is failed after 1000.0 s")
    assert "The mesh has no faces" in story.result.log


@pytest.mark.parametrize("mode", MODES)
def test_aborted_by_somebody(emulator: Emulator, mode: str) -> None:
    """A run that somebody aborts at the service fails the task with FlowRunAborted in every mode."""
    emulator.add_plan(Plan(outcome="aborted"))

    story = run_in_mode(mode, emulator, TO_THE_END)

    assert story.state == "failed"
    assert type(story.error) is FlowRunAborted
    assert story.normalize(str(story.error)).startswith(f"{RUN} was aborted at the service.")
    assert story.lines == told_by(mode, *BEGUN, f"info: {RUN} is aborted after 1000.0 s")


@pytest.mark.parametrize("mode", REMEMBERED)
def test_unknown_state_word(emulator: Emulator, mode: str) -> None:
    """A state word that nobody knows is warned of once, and every mode goes on waiting to the good end."""
    emulator.add_plan(Plan(unknown_state="polishing"))

    story = run_in_mode(
        mode, emulator, (280.0, 200.0, 50.0, 300.0, 300.0)
    )  # the middle third is looked at twice

    assert story.state == "success"
    unknown = f"warning: {RUN} is in state 'polishing', which this provider does not know; polling continues"
    lines = [line for line in story.lines if line != PROGRESS]
    assert lines == told_by(
        mode,
        f"info: {RUN} is starting",
        f"info: {RUN} is running",
        unknown,
        f"info: {RUN} is running",
        f"info: {RUN} is completed after 1000.0 s",
    )


@pytest.mark.parametrize("mode", REMEMBERED)
def test_unreachable_for_a_while(emulator: Emulator, mode: str) -> None:
    """A service that is away for some looks is warned of, and every mode goes on waiting to the good end."""
    emulator.add_fault(Fault(method="GET", path="/flows/*", skip=1, times=1, reset="before"))
    emulator.add_fault(Fault(method="GET", path="/flows/*", skip=1, times=2, status=503))

    story = run_in_mode(mode, emulator, (200.0, 0.0, 0.0, 0.0, 900.0))

    assert story.state == "success"
    lines = [line.partition("; polling continues: ")[0] for line in story.lines]
    assert lines == told_by(
        mode,
        f"info: {RUN} is starting",
        "warning: The flow run ID could not be polled (1 in a row)",
        "warning: The flow run ID could not be polled (2 in a row)",
        f"info: {RUN} can be polled again",
        f"info: {RUN} is running",
        PROGRESS,
        f"info: {RUN} is completed after 1000.0 s",
    )


@pytest.mark.parametrize("mode", MODES)
def test_deadline_passed(emulator: Emulator, mode: str) -> None:
    """In every mode, a passed deadline is a FlowTimeout; the operator aborts its run, the sensor does not."""
    emulator.switches.abort = "instant"

    timeout = (
        2.5 if mode == "sensor, reschedule" else 0.5
    )  # each of its looks is a task's start, and two must be made
    story = run_in_mode(mode, emulator, (200.0,), timeout=timeout)

    assert story.state == "failed"
    assert isinstance(story.error, FlowTimeout)
    assert type(story.error) is (FlowTimeout if mode in OPERATORS else FlowSensorTimeout)
    assert story.flow_run_id in str(story.error)
    assert "increase timeout" in str(story.error)
    ended = emulator.runs[story.flow_run_id].state in {"aborting", "aborted"}
    assert ended is (mode in OPERATORS)
    assert story.lines == told_by(mode, *BEGUN)


@pytest.mark.parametrize("mode", MODES)
def test_already_final_when_first_looked_at(emulator: Emulator, mode: str) -> None:
    """A run that is over at the first look is looked at once, and no mode waits for anything."""
    emulator.add_plan(Plan(run_seconds=0.0))

    story = run_in_mode(mode, emulator)

    assert story.state == "success"
    assert story.lines == told_by(mode, f"info: {RUN} is completed after 0.0 s")
    path = f"/flows/{story.flow_run_id}"
    asked = [
        request.path for request in emulator.requests if request.method == "GET" and path in request.path
    ]
    assert asked == [path, f"{path}/outputs"]
    assert "running trigger in line" not in story.result.log

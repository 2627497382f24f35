"""Tests of tasks that are killed during a download or before a deletion: the next try resumes the run.

The first try is a process that gets SIGKILL; its saved state is in a file.
"""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.worker.task_state import FILES_KEY, RECORD_KEY
from tests.support.disk_store import DiskStore, run_try, start_first_try
from tests.support.downloads import kill, list_files
from tests.support.tries import CHAIR_ARGUMENTS

HANG_SECONDS = 8.0  # seconds; longer than the test takes to notice

pytestmark = pytest.mark.emulator(run_seconds=0, abort="instant", retries=0)


def kill_when(process: subprocess.Popen[bytes], is_reached: Callable[[], object]) -> None:
    """Kill a process when a condition is met."""
    until = time.monotonic() + 60
    while not is_reached():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    kill(process)


def request_paths(emulator: Emulator, method: str, part: str) -> list[str]:
    """Return the paths of the requests with this method and part of a path."""
    return [
        request.path for request in emulator.requests if request.method == method and part in request.path
    ]


def is_complete(output: dict[str, Any]) -> bool:
    """Return whether an output's file matches its dict."""
    data = Path(output["uri"].removeprefix("file://")).read_bytes()
    return (len(data), hashlib.sha256(data).hexdigest(), data[:4]) == (
        output["size"],
        output["sha256"],
        b"glTF",
    )


def test_retry_after_kill_during_download_fetches_the_rest(emulator: Emulator, tmp_path: Path) -> None:
    """The next try starts nothing, downloads the second file only, and leaves no temporary file."""
    store, folder = tmp_path / "store.json", tmp_path / "files"
    arguments = {**CHAIR_ARGUMENTS, "inputs": ["A chair", "A table"], "output_path": str(folder)}
    emulator.add_fault(
        Fault("GET", "*/outputs/*", skip=1, truncate=20_000)
    )  # the incomplete file remains while it is requested again
    emulator.add_fault(Fault("GET", "*/outputs/*", skip=1, delay=HANG_SECONDS))
    first = start_first_try(store, arguments)
    kill_when(
        first, lambda: len(request_paths(emulator, "GET", "/outputs/")) == 3 and FILES_KEY in DiskStore(store)
    )
    assert sorted(Path(name).suffix for name in list_files(folder)) == [".glb", ".part"]
    (complete_id,) = DiskStore(store)[FILES_KEY]["files"]

    result = run_try(str(store), 2, arguments)
    assert emulator.started_count == 1
    assert len(result["outputs"]) == 2
    assert all(map(is_complete, result["outputs"]))
    assert [Path(name).suffix for name in list_files(folder)] == [".glb", ".glb"]
    (fetched,) = request_paths(emulator, "GET", "/outputs/")[3:]
    assert not fetched.endswith(complete_id)


def test_retry_after_kill_before_deletion_deletes_the_run(emulator: Emulator, tmp_path: Path) -> None:
    """The next try lists and downloads nothing, deletes the run, and returns the complete files."""
    store, folder = tmp_path / "store.json", tmp_path / "files"
    arguments = {
        **CHAIR_ARGUMENTS,
        "inputs": ["A chair", "A table"],
        "output_path": str(folder),
        "delete_after_fetch": True,
    }
    emulator.add_fault(Fault("DELETE", "*", status=500, delay=HANG_SECONDS))
    first = start_first_try(store, arguments)
    kill_when(first, lambda: request_paths(emulator, "DELETE", "/flows/"))
    assert DiskStore(store)[RECORD_KEY]["saved_run"] is not None
    assert len(emulator.runs) == 1
    before = len(request_paths(emulator, "GET", ""))

    result = run_try(str(store), 2, arguments)
    assert (len(request_paths(emulator, "GET", "")), emulator.started_count, list(emulator.runs)) == (
        before,
        1,
        [],
    )
    assert len(result["outputs"]) == 2
    assert all(map(is_complete, result["outputs"]))
    assert len(list_files(folder)) == 2

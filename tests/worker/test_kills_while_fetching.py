"""Tests of tasks whose process is killed while it fetches, or before it deletes: the next try goes on, nothing is paid twice.

The first try is a process that is killed as the kernel does it; what it kept lies in a file.
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

HANGS = 8.0  # seconds; longer than the test takes to notice

pytestmark = pytest.mark.emulator(run_seconds=0, abort="instant", retries=0)


def killed_when(process: subprocess.Popen[bytes], reached: Callable[[], object]) -> None:
    """Wait until a process has come so far, and kill it."""
    until = time.monotonic() + 60
    while not reached():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    kill(process)


def asked(emulator: Emulator, method: str, part: str) -> list[str]:
    """Give the paths of the requests with this method and part of a path."""
    return [
        request.path for request in emulator.requests if request.method == method and part in request.path
    ]


def whole(output: dict[str, Any]) -> bool:
    """Tell whether an output's file is what its dict says."""
    data = Path(output["uri"].removeprefix("file://")).read_bytes()
    return (len(data), hashlib.sha256(data).hexdigest(), data[:4]) == (
        output["size"],
        output["sha256"],
        b"glTF",
    )


def test_kill_in_the_middle_of_the_second_download(emulator: Emulator, tmp_path: Path) -> None:
    """The next try starts nothing, fetches the second file only, and leaves no temporary one."""
    store, folder = tmp_path / "store.json", tmp_path / "files"
    given = {**CHAIR_ARGUMENTS, "inputs": ["A chair", "A table"], "output_path": str(folder)}
    emulator.add_fault(
        Fault("GET", "*/outputs/*", skip=1, truncate=20_000)
    )  # what came of it stays while it is asked for again
    emulator.add_fault(Fault("GET", "*/outputs/*", skip=1, delay=HANGS))
    first = start_first_try(store, given)
    killed_when(
        first, lambda: len(asked(emulator, "GET", "/outputs/")) == 3 and FILES_KEY in DiskStore(store)
    )
    assert sorted(Path(name).suffix for name in list_files(folder)) == [".glb", ".part"]
    (done,) = DiskStore(store)[FILES_KEY]["files"]

    told = run_try(str(store), 2, given)
    assert emulator.started_count == 1
    assert len(told["outputs"]) == 2
    assert all(map(whole, told["outputs"]))
    assert [Path(name).suffix for name in list_files(folder)] == [".glb", ".glb"]
    (fetched,) = asked(emulator, "GET", "/outputs/")[3:]
    assert not fetched.endswith(done)


def test_kill_between_keeping_and_deleting(emulator: Emulator, tmp_path: Path) -> None:
    """The next try lists and fetches nothing, deletes the run, and returns the files, whole."""
    store, folder = tmp_path / "store.json", tmp_path / "files"
    given = {
        **CHAIR_ARGUMENTS,
        "inputs": ["A chair", "A table"],
        "output_path": str(folder),
        "delete_after_fetch": True,
    }
    emulator.add_fault(Fault("DELETE", "*", status=500, delay=HANGS))
    first = start_first_try(store, given)
    killed_when(first, lambda: asked(emulator, "DELETE", "/flows/"))
    assert DiskStore(store)[RECORD_KEY]["saved_run"] is not None
    assert len(emulator.runs) == 1
    before = len(asked(emulator, "GET", ""))

    told = run_try(str(store), 2, given)
    assert (len(asked(emulator, "GET", "")), emulator.started_count, list(emulator.runs)) == (before, 1, [])
    assert len(told["outputs"]) == 2
    assert all(map(whole, told["outputs"]))
    assert len(list_files(folder)) == 2

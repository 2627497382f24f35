"""Tests of the helpers of the demo and of `make airflow`: GLB files, programs, ports and settings."""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from pathlib import Path

import psutil
import pytest

from tools.airflow_settings import own_environment
from tools.glb import BrokenModelError, count_triangles
from tools.processes import ProcessDied, Program, free_port, wait_until


def _glb(*, magic: bytes = b"glTF", missing: int = 0) -> bytes:
    gltf = {
        "accessors": [{"count": 8}, {"count": 36}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
    }
    chunk = json.dumps(gltf).encode()
    chunk += b" " * (-len(chunk) % 4)
    return struct.pack("<4sIII4s", magic, 2, 20 + len(chunk) + missing, len(chunk), b"JSON") + chunk


def test_triangles_of_a_complete_model_are_counted(tmp_path: Path) -> None:
    """A complete model has a third as many triangles as indices."""
    model = tmp_path / "cube.glb"
    model.write_bytes(_glb())
    assert count_triangles(model) == 12


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"glTF", "too few"), (_glb(magic=b"PK\x03\x04"), "not a GLB file"), (_glb(missing=10), "header says")],
)
def test_a_broken_model_is_rejected(tmp_path: Path, data: bytes, reason: str) -> None:
    """A file that is truncated or is not a GLB is rejected."""
    model = tmp_path / "broken.glb"
    model.write_bytes(data)
    with pytest.raises(BrokenModelError, match=reason):
        count_triangles(model)


def _program(tmp_path: Path, source: str) -> Program:
    return Program("a program", [sys.executable, "-c", source], dict(os.environ), tmp_path / "program.log")


def test_stop_ends_all_child_processes(tmp_path: Path) -> None:
    """Stopping a program that was killed stops the processes that it started, also those in a new session."""
    pid = tmp_path / "pid"
    child = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    parent = (
        "import subprocess, sys, time\n"
        "middle = 'import subprocess, sys; '"
        "'subprocess.run([sys.executable, \"-c\", sys.argv[1]], start_new_session=True)'\n"
        f"subprocess.run([sys.executable, '-c', middle, {child!r}])"
    )
    program = _program(tmp_path, parent)
    program.start()
    try:
        wait_until(lambda: pid.exists() and pid.read_text() != "", [program], 20, "The grandchild's start")
        program.popen.kill()
        program.popen.wait()
    finally:
        program.stop()
    deadline = time.monotonic() + 5
    while psutil.pid_exists(int(pid.read_text())) and time.monotonic() < deadline:
        os.sched_yield()
    assert (
        not psutil.pid_exists(int(pid.read_text()))
        or psutil.Process(int(pid.read_text())).status() == "zombie"
    )


def test_a_dead_program_is_detected_at_once(tmp_path: Path) -> None:
    """Waiting for a program that has died raises an error at once, with the end of its log."""
    program = _program(tmp_path, "print('no such table'); raise SystemExit(3)")
    program.start()
    with pytest.raises(ProcessDied, match=r"exit code 3[\s\S]*no such table"):
        wait_until(lambda: False, [program], 60, "Its start")


def test_waiting_ends_at_the_timeout(tmp_path: Path) -> None:
    """Waiting for a condition that never becomes true raises an error that names it."""
    program = _program(tmp_path, "import time; time.sleep(60)")
    program.start()
    try:
        with pytest.raises(TimeoutError, match=r"Its start took longer than 0 s"):
            wait_until(lambda: False, [program], 0.3, "Its start")
    finally:
        program.stop()


def test_a_preferred_port_in_use_is_not_returned() -> None:
    """A preferred port that is in use is not returned."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = listener.getsockname()[1]
        assert free_port(taken) != taken
    assert free_port(taken) == taken


def test_own_airflow_inherits_no_settings_from_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow settings and connections of the surrounding shell are not inherited."""
    monkeypatch.setenv("AIRFLOW_CONN_FLOWS_DEFAULT", "generio://secret@elsewhere")
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_CMD", "echo elsewhere")
    environment = own_environment(tmp_path, tmp_path / "dags")
    assert "elsewhere" not in " ".join(environment.values())
    assert environment["AIRFLOW_HOME"] == str(tmp_path)

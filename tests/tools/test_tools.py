"""Tests of the helpers of the demo and of `make airflow`: GLB files, programs, ports and settings."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tools.airflow_settings import own_environment
from tools.glb import BrokenModelError, count_triangles
from tools.processes import ProcessDied, Program, free_port, run_command, wait_until


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


@pytest.mark.parametrize("lines", [1, 2])
def test_the_demo_ends_quietly_when_its_reader_stops(tmp_path: Path, lines: int) -> None:
    """`make demo | head` prints no traceback, and leaves no process behind, before and after its start."""
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tools import demo\n"
        f"demo.FOLDER = Path({str(tmp_path / 'demo')!r})\n"
        "sys.exit(demo.run_command(demo.main))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FLOWS_TEST_MARK": str(tmp_path)},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        printed = [process.stdout.readline() for _ in range(lines)]
        process.stdout.close()
        errors = process.stderr.read()
    assert printed[0].startswith("1. ")
    assert errors == ""
    assert process.returncode == 128 + signal.SIGPIPE
    assert not _find_processes("FLOWS_TEST_MARK", str(tmp_path))


def _find_processes(name: str, value: str) -> list[int]:
    """Return the running processes that inherited a variable of the environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(name) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


@pytest.mark.parametrize("lines", [0, 1])
def test_a_command_whose_reader_stops_cleans_up(tmp_path: Path, lines: int) -> None:
    """A command ends at the first line that cannot be written, also one that was only buffered."""
    script = (
        "import sys\n"
        "from tools.processes import run_command\n"
        "def main():\n"
        "    try:\n"
        "        print('first', flush=True)\n"
        "        input()\n"
        "        for _ in range(9): print('next')\n"
        f"    finally: open({str(tmp_path / 'cleaned')!r}, 'w')\n"
        "sys.exit(run_command(main))\n"
    )
    command = [sys.executable, "-c", script]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for _ in range(lines):
            process.stdout.readline()
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write("\n")
            process.stdin.close()
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE
    assert (tmp_path / "cleaned").exists()


def test_a_command_keeps_its_exit_code() -> None:
    """The exit code of a command is what its function returns; None is success."""
    assert [run_command(lambda code=code: code) for code in (None, 0, 3)] == [0, 0, 3]


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

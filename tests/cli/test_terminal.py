"""Tests of `airflow flows` as a child process: at a terminal, with a bar and questions, and without.

Each start of `airflow` takes seconds, so what needs no process is in tests/cli/test_commands.py.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.hooks import GenerioHook
from tests.support.commands import PROMPT_FLOW
from tests.support.terminal import CTRL_C, TERMINAL_TIMEOUT_SECONDS, Terminal
from tests.support.versions import needs

pytestmark = [needs("commands of providers"), pytest.mark.emulator(run_seconds=100)]

AIRFLOW = ("-m", "airflow", "flows")
LONG = 100.0  # seconds


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true."""
    end = time.monotonic() + TERMINAL_TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_ctrl_c_aborts_after_confirmation(emulator: Emulator) -> None:
    """The bar shows state, progress and expected end; after Ctrl-C and a yes the flow run is aborted."""
    with Terminal(*AIRFLOW, "run", PROMPT_FLOW, "-i", "A chair", "--poll-interval", "0.2") as terminal:
        terminal.wait_for(r"is created; sending its inputs")
        wait_until(lambda: bool(emulator.paid_runs))
        (run,) = emulator.runs.values()
        emulator.advance(LONG / 2)
        terminal.wait_for(
            rf"{run.flow_run_id} running ━+[^%]* 5\d% \d:\d\d:\d\d expected end \d\d:\d\d:\d\d UTC"
        )
        terminal.press(CTRL_C)
        terminal.wait_for(rf"Abort the flow run {run.flow_run_id}\? \[y/N\]")
        terminal.press("y\n")
        wait_until(lambda: run.current.state == "aborting")
        emulator.advance(LONG)
        assert terminal.wait_for_exit() == 3
    assert f"The generio flow run {run.flow_run_id} (flow {PROMPT_FLOW}) was aborted." in terminal.output
    assert run.current.state == "aborted"


def test_second_ctrl_c_leaves_the_run_in_progress(emulator: Emulator) -> None:
    """A second Ctrl-C ends the command at once; the run continues, and stderr says how to watch it."""
    flow_run_id = GenerioHook("generio_default").start(PROMPT_FLOW, "a chair").flow_run_id
    with Terminal(*AIRFLOW, "watch", flow_run_id, "--poll-interval", "0.2") as terminal:
        terminal.wait_for(f"{flow_run_id} running")
        terminal.press(CTRL_C)
        terminal.wait_for(r"\[y/N\]")
        terminal.press(CTRL_C)
        assert terminal.wait_for_exit() == 130
    message = (
        f"continues. Watch it: airflow flows watch {flow_run_id}; abort it: airflow flows abort {flow_run_id}"
    )
    assert message in terminal.output
    assert emulator.runs[flow_run_id].current.state == "running"


def test_a_closed_terminal_leaves_the_run_in_progress(emulator: Emulator) -> None:
    """When the terminal is closed during the wait, the command ends with its code and the run continues."""
    flow_run_id = GenerioHook("generio_default").start(PROMPT_FLOW, "a chair").flow_run_id
    with Terminal(*AIRFLOW, "watch", flow_run_id, "--poll-interval", "0.2") as terminal:
        terminal.wait_for(f"{flow_run_id} running")
        assert terminal.close() == -signal.SIGHUP  # a shell reports 129
    assert emulator.runs[flow_run_id].current.state == "running"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_without_a_terminal_there_is_no_question(
    emulator: Emulator, database_connection: str, number: signal.Signals, code: int
) -> None:
    """Ctrl-C and SIGTERM in a script leave the run running; the connection comes from the database."""
    words = [
        sys.executable,
        *AIRFLOW,
        "run",
        PROMPT_FLOW,
        "-i",
        "A chair",
        "--conn-id",
        database_connection,
        "-o",
        "json",
        "--poll-interval",
        "0.2",
    ]
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    line = ""
    while "is starting" not in line:
        line = process.stderr.readline()
        assert line
    process.send_signal(number)
    out, err = process.communicate(timeout=TERMINAL_TIMEOUT_SECONDS)
    (run,) = emulator.runs.values()
    assert (process.returncode, out, run.current.is_final) == (code, "", False)
    assert f"The flow run {run.flow_run_id} continues. Watch it: airflow flows watch {run.flow_run_id}" in err
    assert err.splitlines()[-1].endswith(
        f"abort it: airflow flows abort {run.flow_run_id} --conn-id {database_connection}"
    )


def test_stdout_is_data_only(emulator: Emulator, tmp_path: Path) -> None:
    """`airflow flows run -o json` writes only JSON to stdout, the files to the disk, and no key anywhere."""
    emulator.run_seconds = 0.2
    words = [
        sys.executable,
        *AIRFLOW,
        "run",
        PROMPT_FLOW,
        "-i",
        "A chair",
        "--param",
        "quality=low",
        "-o",
        "json",
    ]
    words += ["--output-path", "a folder", "--poll-interval", "0.1"]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=TERMINAL_TIMEOUT_SECONDS
    )
    assert done.returncode == 0, done.stderr
    (output,) = json.loads(done.stdout)["outputs"]
    (file,) = tmp_path.rglob("*.glb")
    assert file.parent.parent.name == "a folder"
    assert file.stat().st_size == output["size"]
    assert "Traceback" not in done.stderr

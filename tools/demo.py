"""`make demo`: run a DAG that creates and optimizes a 3D model, in a local Airflow with the emulator.

The demo needs no account.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tools.airflow_settings import own_environment
from tools.airflow_stack import AIRFLOW
from tools.emulator_process import EmulatorProcess
from tools.glb import BrokenModelError, count_triangles
from tools.processes import ProcessDied, Program, exit_on_sigterm, run_command, tail

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".demo"
DAG_ID = "flows_demo"
EXPECTED_MODELS = 2
_MAX_LINE_CHARACTERS = 300


def main() -> int:
    """Run the demo and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description=__doc__)
    parser.add_argument(
        "--dags-folder", type=Path, default=ROOT / "example_dags", help=f"folder with the DAG {DAG_ID}"
    )
    dags_folder = parser.parse_args().dags_folder.resolve()
    exit_on_sigterm()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    log = FOLDER / "airflow.log"
    emulator = EmulatorProcess(FOLDER / "emulator.log")
    try:
        return _demo(emulator, dags_folder, log)
    except KeyboardInterrupt:
        _print("Interrupted.")
        return 130
    except (ProcessDied, TimeoutError, BrokenModelError) as error:
        _print(f"The demo failed: {error}")
        return 1
    finally:
        emulator.stop()


def _demo(emulator: EmulatorProcess, dags_folder: Path, log: Path) -> int:
    started = time.monotonic()
    output = FOLDER / "output"
    _print("1. Start the emulator of Generio and PromptChainer")
    emulator.start()
    _print(f"   listening at {emulator.address}")
    environment = {
        **own_environment(FOLDER / "airflow", dags_folder),
        **emulator.environment(),
        "AIRFLOW__LOGGING__JSON_LOGS": "True",  # so that this package's lines can be found
        "FLOWS_DEMO_OUTPUT": str(output),
    }
    _print(f"2. Set up Airflow with an empty database in {_short(FOLDER / 'airflow')}")
    _run_airflow(environment, log, "db", "migrate")
    _print("   connection flows_default: type generio, host " + emulator.address)
    _print(f"3. Run the DAG {DAG_ID} (airflow dags test {DAG_ID}); the complete log is {_short(log)}")
    _run_airflow(environment, log, "dags", "test", DAG_ID)
    _print("4. Check the 3D models")
    models = sorted(output.rglob("*.glb"), key=lambda path: path.stat().st_mtime)
    for model in models:
        _print(f"   {_short(model)}: {model.stat().st_size:,} bytes, {count_triangles(model):,} triangles")
    if len(models) < EXPECTED_MODELS:
        raise BrokenModelError(
            f"{len(models)} models in {output}, expected {EXPECTED_MODELS}. {_log_tail(log)}"
        )
    _print(f"Done in {time.monotonic() - started:.0f} s.")
    return 0


def _run_airflow(environment: Mapping[str, str], log: Path, *arguments: str) -> None:
    """Run an `airflow` command, and print what this package logs while it runs."""
    command = Program(f"airflow {' '.join(arguments)}", (*AIRFLOW, *arguments), environment, log)
    offset = log.stat().st_size if log.exists() else 0
    command.start()
    try:
        with log.open(errors="replace") as lines:
            lines.seek(offset)
            for line in _follow(lines, command.popen):
                _print_event(line)
        if code := command.popen.returncode:
            raise ProcessDied(f"{command.name} ended with exit code {code}. {_log_tail(log)}")
    finally:
        command.stop()


def _follow(lines: Iterator[str], process: subprocess.Popen[bytes]) -> Iterator[str]:
    """Yield each line of a growing file until the process that writes it has ended."""
    line = ""
    while True:
        ended = process.poll() is not None
        for chunk in lines:
            line += chunk
            if line.endswith("\n"):
                yield line
                line = ""
        if ended:
            return
        time.sleep(0.1)


def _print_event(line: str) -> None:
    """Print a line of Airflow's log if it is from this package, starts a task or reports its failure."""
    try:
        entry = json.loads(line)
    except ValueError:
        return
    logger, level = str(entry.get("logger", "")), str(entry.get("level", ""))
    event = str(entry.get("event", ""))
    if event.startswith("[DAG TEST] starting task_id="):
        _print(f"   task {event.partition('=')[2].partition(' ')[0]}")
    elif "airflow_provider_flows" in logger or (logger == "task" and level == "error"):
        _print(f"     {event[:_MAX_LINE_CHARACTERS]}")
        for error in entry.get("error_detail") or entry.get("exception") or ():
            _print(f"     {error.get('exc_type')}: {str(error.get('exc_value'))[:_MAX_LINE_CHARACTERS]}")


def _log_tail(log: Path) -> str:
    """Return the end of a log in readable form."""
    lines = []
    for line in tail(log).splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            lines.append(line)
        else:
            lines.append(f"[{entry.get('level')}] {entry.get('event')}"[:_MAX_LINE_CHARACTERS])
    return f"The end of {_short(log)}:\n  " + "\n  ".join(lines)


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _print(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main))

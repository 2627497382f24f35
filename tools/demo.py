"""`make demo`: a real Airflow makes a 3D model from a prompt and optimizes it, at an emulated service, and shows the files.

It proves that the package works on this machine; it is no benchmark and needs no account.
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
from tools.glb import BrokenModelError, count_triangles
from tools.processes import ProcessDied, Program, exit_on_sigterm, tail
from tools.stand_in import StandIn

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".demo"
DAG_ID = "flows_demo"
MODELS = 2
_LONGEST = 300


def main() -> int:
    """Run the demo and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description=__doc__)
    parser.add_argument(
        "--dags-folder", type=Path, default=ROOT / "example_dags", help=f"where the DAG {DAG_ID} is"
    )
    dags_folder = parser.parse_args().dags_folder.resolve()
    exit_on_sigterm()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    log = FOLDER / "airflow.log"
    emulator = StandIn(FOLDER / "emulator.log")
    try:
        return _demo(emulator, dags_folder, log)
    except KeyboardInterrupt:
        _say("Interrupted.")
        return 130
    except (ProcessDied, TimeoutError, BrokenModelError) as error:
        _say(f"The demo failed: {error}")
        return 1
    finally:
        emulator.stop()


def _demo(emulator: StandIn, dags_folder: Path, log: Path) -> int:
    started = time.monotonic()
    output = FOLDER / "output"
    _say("1. Starting the emulator of Generio and PromptChainer")
    emulator.start()
    _say(f"   it listens at {emulator.address}")
    environment = {
        **own_environment(FOLDER / "airflow", dags_folder),
        **emulator.environment(),
        "AIRFLOW__LOGGING__JSON_LOGS": "True",  # so that our lines can be told from Airflow's
        "FLOWS_DEMO_OUTPUT": str(output),
    }
    _say(f"2. Setting up an Airflow with an empty database in {_short(FOLDER / 'airflow')}")
    _airflow(environment, log, "db", "migrate")
    _say("   connection flows_default: type generio, host " + emulator.address)
    _say(f"3. Running the DAG {DAG_ID} (airflow dags test {DAG_ID}); the whole log is in {_short(log)}")
    _airflow(environment, log, "dags", "test", DAG_ID)
    _say("4. What it made")
    models = sorted(output.rglob("*.glb"), key=lambda path: path.stat().st_mtime)
    for model in models:
        _say(f"   {_short(model)}: {model.stat().st_size:,} bytes, {count_triangles(model):,} triangles")
    if len(models) < MODELS:
        raise BrokenModelError(f"{len(models)} models in {output}, expected {MODELS}. {_end_of(log)}")
    _say(f"Done in {time.monotonic() - started:.0f} s.")
    return 0


def _airflow(environment: Mapping[str, str], log: Path, *arguments: str) -> None:
    """Run one `airflow` command to its end, and show what our own part of it logs meanwhile."""
    command = Program(f"airflow {' '.join(arguments)}", (*AIRFLOW, *arguments), environment, log)
    seen = log.stat().st_size if log.exists() else 0
    command.start()
    try:
        with log.open(errors="replace") as lines:
            lines.seek(seen)
            for line in _follow(lines, command.popen):
                _show(line)
        if code := command.popen.returncode:
            raise ProcessDied(f"{command.name} ended with exit code {code}. {_end_of(log)}")
    finally:
        command.stop()


def _follow(lines: Iterator[str], process: subprocess.Popen[bytes]) -> Iterator[str]:
    """Yield each line of a growing file, until the process that writes it has ended."""
    part = ""
    while True:
        ended = process.poll() is not None
        for chunk in lines:
            part += chunk
            if part.endswith("\n"):
                yield part
                part = ""
        if ended:
            return
        time.sleep(0.1)


def _show(line: str) -> None:
    """Print a line that our operators, or what they use, logged; and any failure of a task."""
    try:
        told = json.loads(line)
    except ValueError:
        return
    logger, level = str(told.get("logger", "")), str(told.get("level", ""))
    event = str(told.get("event", ""))
    if event.startswith("[DAG TEST] starting task_id="):
        _say(f"   task {event.partition('=')[2].partition(' ')[0]}")
    elif "airflow_provider_flows" in logger or (logger == "task" and level == "error"):
        _say(f"     {event[:_LONGEST]}")
        for error in told.get("error_detail") or told.get("exception") or ():
            _say(f"     {error.get('exc_type')}: {str(error.get('exc_value'))[:_LONGEST]}")


def _end_of(log: Path) -> str:
    """Make the end of a log readable for a person."""
    lines = []
    for line in tail(log).splitlines():
        try:
            told = json.loads(line)
        except ValueError:
            lines.append(line)
        else:
            lines.append(f"[{told.get('level')}] {told.get('event')}"[:_LONGEST])
    return f"The end of {_short(log)}:\n  " + "\n  ".join(lines)


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())

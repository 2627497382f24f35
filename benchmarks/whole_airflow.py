"""Benchmark 3: mapped flow runs in a whole Airflow with two worker slots, waited for in four ways.

The ways are the DAGs in airflow_dags/; each has an Airflow and a server of its own, at Airflow's default settings.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.contenders import TOKEN, connection_environment
from benchmarks.reporting import Column, Report, ratio
from benchmarks.serving import FlowServer
from tools.airflow_stack import Stack

DAGS = Path(__file__).parent / "airflow_dags"
WAYS = {
    "deferrable": "RunFlowOperator(deferrable=True)",
    "reschedule": "RunFlowOperator + FlowRunSensor, reschedule",
    "http": "HttpOperator + HttpSensor, reschedule",
    "python": "PythonOperator: while True: get; sleep(5)",
}
PEER = "python"
PARTS = ("scheduler", "triggerer", "api-server")
SLOTS = 2
EXTRA_WAIT_SECONDS = 600.0  # seconds beyond what the slowest way takes by itself
TASK_OVERHEAD_SECONDS = 5.0  # seconds that starting and ending a task takes at most
COLUMNS = (
    Column("way", "title"),
    Column("makespan s", "makespan", ".0f"),
    Column("of python's", "makespan_of_peer", ".3f"),
    Column("CPU s", "cpu", ".1f"),
    Column("of python's", "cpu_of_peer", ".2f"),
    *(Column(part, part, ".1f") for part in PARTS),
    Column("requests", "asked", ",d"),
    Column("a run", "asked_per_run", ".2f"),
    Column("started", "started", ",d"),
    Column("tries", "tries", ",d"),
    Column("state", "state"),
)
NOTES = (
    "CPU: of every process of that Airflow (the scheduler's with its workers and tasks) from the DAG run's begin to its end.",
    "started: flow runs at the service; tries: of all task instances, more than one each where Airflow failed one by itself.",
    "HttpOperator and HttpSensor fetch no outputs; the other ways do. Both sensors poke at the same interval.",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    group = parser.add_argument_group("airflow")
    group.add_argument("--mapped", type=int, help="how many flow runs each DAG run has (default: 100)")
    group.add_argument("--seconds", type=float, help="how long a flow run lasts (default: 30)")
    group.add_argument(
        "--poke", type=float, default=60.0, help="the interval of both sensors, s; 60 is the default of both"
    )
    group.add_argument(
        "--ways", nargs="+", choices=WAYS, default=list(WAYS), help="which to run (default: all)"
    )


def run(options: argparse.Namespace) -> Report:
    """Run each way in an Airflow of its own, one after another."""
    mapped, seconds = (
        options.mapped or (6 if options.quick else 100),
        options.seconds or (10.0 if options.quick else 30.0),
    )
    title = f"Whole Airflow: {mapped} mapped flow runs of {seconds:g} s, LocalExecutor with {SLOTS} slots, poke {options.poke:g} s"
    report = Report("airflow", title, COLUMNS, notes=list(NOTES))
    rows = [_run_way(way, mapped, seconds, options.poke) for way in options.ways]
    peer: Mapping[str, Any] = next((row for row in rows if row["way"] == PEER), {})
    for row in rows:
        parts = {f"{key}_of_peer": ratio(row[key], peer.get(key, 0.0)) for key in ("makespan", "cpu")}
        report.rows.append({**row, **parts})
    return report


def cpu_seconds(pid: int) -> float:
    """Give the CPU seconds of a process, of its living descendants, and of those that have died and were waited for.

    What a descendant has used moves to its parent when that waits for its end, so the sum never falls. (Linux only: other
    systems do not tell of the dead.)
    """
    total = 0.0
    parent = psutil.Process(pid)
    for process in (parent, *parent.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:  # it ended between the two questions, and is with its parent from now on
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _run_way(way: str, mapped: int, seconds: float, poke: float) -> dict[str, Any]:
    """Let one way run to its end and give the figures."""
    print(f"  {WAYS[way]}: {mapped} runs of {seconds:g} s ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        server = FlowServer(home / "server.log", shortest=seconds, longest=seconds)
        server.start()
        try:
            environment = _environment(server.address, mapped, poke)
            with Stack(home / "airflow", DAGS, environment=environment, parallelism=SLOTS) as airflow:
                return _measure(
                    airflow,
                    server,
                    way,
                    mapped,
                    EXTRA_WAIT_SECONDS + mapped * (seconds + poke + TASK_OVERHEAD_SECONDS),
                )
        finally:
            server.stop()


def _measure(airflow: Stack, server: FlowServer, way: str, mapped: int, timeout: float) -> dict[str, Any]:
    before = _cpu_by_part(airflow)
    run_id = airflow.trigger(way)
    state = _wait_for_end(airflow, way, run_id, timeout)
    after = _cpu_by_part(airflow)
    dag_run = airflow.call("GET", f"dags/{way}/dagRuns/{run_id}").json()
    makespan = datetime.fromisoformat(dag_run["end_date"]) - datetime.fromisoformat(dag_run["start_date"])
    report, parts = server.report(), {part: after[part] - before[part] for part in PARTS}
    requests = sum(report["requests"].values())
    return {
        "way": way,
        "title": WAYS[way],
        "makespan": makespan.total_seconds(),
        "cpu": sum(parts.values()),
        **parts,
        "asked": requests,
        "asked_per_run": requests / mapped,
        "requests": report["requests"],
        "started": report["runs"],
        "tries": sum(ti["try_number"] for ti in _task_instances(airflow, way, run_id)),
        "state": state,
    }


def _wait_for_end(airflow: Stack, dag_id: str, run_id: str, timeout: float) -> str:
    """Wait for the DAG run's end; asked rarely, for each question costs the Airflow that is measured."""
    deadline = time.monotonic() + timeout
    while (state := airflow.run_state(dag_id, run_id)) not in {"success", "failed"}:
        airflow.check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"{dag_id} is still {state} after {timeout:.0f} s")
        time.sleep(2)
    return state


def _cpu_by_part(airflow: Stack) -> dict[str, float]:
    return {part: cpu_seconds(airflow.process(part).pid) for part in PARTS}


def _task_instances(airflow: Stack, dag_id: str, run_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances"
        page = airflow.call("GET", path, params={"limit": 100, "offset": len(found)}).json()["task_instances"]
        if not page:
            return found
        found += page


def _environment(address: str, mapped: int, poke: float) -> dict[str, str]:
    return {
        **connection_environment("ours", address),
        "AIRFLOW_CONN_HTTP_BENCH": json.dumps({"conn_type": "http", "host": address}),
        "FLOWS_BENCH_ADDRESS": address,
        "FLOWS_BENCH_TOKEN": TOKEN,
        "FLOWS_BENCH_MAPPED": str(mapped),
        "FLOWS_BENCH_POKE": str(poke),
    }

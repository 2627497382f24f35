"""Benchmark 3: mapped flow runs in a complete Airflow with two worker slots, with four ways to wait.

The ways are the DAGs in airflow_dags/; each runs in a new Airflow with default settings, with a new server.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
EXTRA_WAIT_SECONDS = 600.0  # beyond the time of the slowest way
TASK_OVERHEAD_SECONDS = 5.0  # maximum for the start and the end of a task
COLUMNS = (
    Column("way", "title"),
    Column("makespan s", "makespan", ".0f"),
    Column("of python's", "makespan_of_peer", ".3f"),
    Column("CPU s", "cpu", ".1f"),
    Column("of python's", "cpu_of_peer", ".2f"),
    *(Column(part, part, ".1f") for part in PARTS),
    Column("requests", "request_count", ",d"),
    Column("per run", "requests_per_run", ".2f"),
    Column("started", "started", ",d"),
    Column("tries", "tries", ",d"),
    Column("state", "state"),
)
NOTES = (
    "CPU: of all processes of the Airflow (the scheduler with its workers and tasks) during the DAG run.",
    "started: flow runs at the service; tries: of all task instances, with those that Airflow failed itself.",
    "HttpOperator and HttpSensor fetch no outputs; the other ways do. Both sensors have the same interval.",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    group = parser.add_argument_group("airflow")
    group.add_argument("--mapped", type=int, help="flow runs in each DAG run (default: 100)")
    group.add_argument("--seconds", type=float, help="duration of a flow run (default: 30)")
    group.add_argument(
        "--poke",
        type=float,
        default=60.0,
        help="interval of both sensors in seconds (default: 60, as of both)",
    )
    group.add_argument(
        "--ways", nargs="+", choices=WAYS, default=list(WAYS), help="the ways to run (default: all)"
    )


def run(options: argparse.Namespace) -> Report:
    """Run each way in a new Airflow, one after another."""
    mapped = options.mapped or (6 if options.quick else 100)
    seconds = options.seconds or (10.0 if options.quick else 30.0)
    title = (
        f"Complete Airflow: {mapped} mapped flow runs of {seconds:g} s, "
        f"LocalExecutor with {SLOTS} slots, poke {options.poke:g} s"
    )
    report = Report("airflow", title, COLUMNS, notes=list(NOTES))
    rows = [_run_way(way, mapped, seconds, options.poke) for way in options.ways]
    peer: Mapping[str, Any] = next((row for row in rows if row["way"] == PEER), {})
    for row in rows:
        parts = {f"{key}_of_peer": ratio(row[key], peer.get(key, 0.0)) for key in ("makespan", "cpu")}
        report.rows.append({**row, **parts})
    return report


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process, its descendants, and ended descendants that were waited for.

    When a parent waits for an ended process, the CPU time is added to the parent's, so the sum never
    decreases. Only Linux reports the time of ended processes.
    """
    total = 0.0
    parent = psutil.Process(pid)
    for process in (parent, *parent.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:  # it has ended, and its time is now its parent's
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _run_way(way: str, mapped: int, seconds: float, poke: float) -> dict[str, Any]:
    """Run one way to its end, and return the figures."""
    print(f"  {WAYS[way]}: {mapped} runs of {seconds:g} s ...", file=sys.stderr, flush=True)
    timeout = EXTRA_WAIT_SECONDS + mapped * (seconds + poke + TASK_OVERHEAD_SECONDS)
    with start_airflow(seconds, mapped, poke) as (airflow, server):
        return {"title": WAYS[way], **measure(airflow, server, way, mapped, timeout)}


@contextmanager
def start_airflow(
    seconds: float, mapped: int, poke: float, environment: Mapping[str, str] | None = None, **arguments: Any
) -> Iterator[tuple[Stack, FlowServer]]:
    """Start a server and an Airflow with default settings and two worker slots, and stop them at the end.

    :param seconds: the duration of a flow run.
    :param mapped: the number of flow runs of the mapped ways.
    :param poke: the interval of both sensors in seconds.
    :param environment: more environment variables.
    :param arguments: more arguments of the server.
    """
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        server = FlowServer(home / "server.log", shortest=seconds, longest=seconds, **arguments)
        server.start()
        try:
            variables = {**_environment(server.address, mapped, poke), **(environment or {})}
            with Stack(home / "airflow", DAGS, environment=variables, parallelism=SLOTS) as airflow:
                yield airflow, server
        finally:
            server.stop()


def measure(  # noqa: PLR0917  # of one way
    airflow: Stack,
    server: FlowServer,
    way: str,
    count: int,
    timeout: float,
    conf: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run the DAG of a way in a running Airflow, and return the figures.

    :param count: the number of its flow runs.
    :param timeout: seconds until it must have ended.
    :param conf: the configuration of the DAG run.
    """
    before, earlier = _cpu_by_part(airflow), server.report()
    run_id = airflow.trigger(way, conf)
    state = _wait_for_end(airflow, way, run_id, timeout)
    after, report = _cpu_by_part(airflow), server.report()
    dag_run = airflow.call("GET", f"dags/{way}/dagRuns/{run_id}").json()
    makespan = datetime.fromisoformat(dag_run["end_date"]) - datetime.fromisoformat(dag_run["start_date"])
    parts = {part: after[part] - before[part] for part in PARTS}
    counted = Counter(report["requests"])
    counted.subtract(earlier["requests"])
    return {
        "way": way,
        "makespan": makespan.total_seconds(),
        "cpu": sum(parts.values()),
        **parts,
        "request_count": counted.total(),
        "requests_per_run": counted.total() / count,
        "requests": dict(counted),
        "started": report["runs"] - earlier["runs"],
        "tries": sum(ti["try_number"] for ti in _task_instances(airflow, way, run_id)),
        "state": state,
    }


def _wait_for_end(airflow: Stack, dag_id: str, run_id: str, timeout: float) -> str:
    """Wait for the DAG run's end, with few calls, because each uses CPU of the measured Airflow."""
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
        **connection_environment("provider", address),
        "AIRFLOW_CONN_HTTP_BENCH": json.dumps({"conn_type": "http", "host": address}),
        "FLOWS_BENCH_ADDRESS": address,
        "FLOWS_BENCH_TOKEN": TOKEN,
        "FLOWS_BENCH_MAPPED": str(mapped),
        "FLOWS_BENCH_POKE": str(poke),
    }

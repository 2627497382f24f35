"""Benchmark 1: thousands of flow runs waited for in one event loop, by us, by dbt Cloud's trigger, and by a plain loop.

Each contender gets a process and a server of its own, with the same seed; what is measured in it stands in waiting_process.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from compileall import compile_dir
from dataclasses import asdict
from pathlib import Path
from typing import Any

import airflow_provider_flows
from benchmarks.contenders import BASELINE, connection_environment
from benchmarks.flow_server import LIST_MODES
from benchmarks.reporting import Column, Report, Target, ratio
from benchmarks.scripted_runs import PROGRESS, RunScript
from benchmarks.serving import FlowServer
from tools.airflow_settings import own_environment
from tools.processes import Program, wait_until

RUNS = (100, 1_000, 4_000, 10_000)
QUICK_RUNS = (100, 1_000)
CONTENDERS = (BASELINE, "ours", "ours:absent", "dbt", "plain")
PEER = "dbt"
BASELINE_FIGURES = (
    "runs",
    "cpu",
    "wall",
    "lag_max",
    "lag_p99",
    "lag_steady_max",
    "memory",
)  # the only figures of it
TIMEOUT_SECONDS = 900  # seconds for one contender
COLUMNS = (
    Column("runs", "runs", ",d"),
    Column("contender", "contender"),
    Column("CPU s", "cpu", ".2f"),
    Column("of dbt's", "cpu_of_peer", ".3f"),
    Column("core", "core", ".0%"),
    Column("requests", "request_count", ",d"),
    Column("a run", "requests_per_run", ".2f"),
    Column("CPU ms each", "cpu_per_request", ".2f"),
    Column("lists", "lists", ",d"),
    Column("late mean", "delay_mean", ".2f"),
    Column("p99", "delay_p99", ".2f"),
    Column("max", "delay_max", ".2f"),
    Column("lag max", "lag_max", ".3f"),
    Column("p99", "lag_p99", ".3f"),
    Column("steady max", "lag_steady_max", ".3f"),
    Column("MiB", "memory", ".0f"),
    Column("lost", "lost", ",d"),
    Column("wall s", "wall", ".0f"),
    Column("server CPU", "server_cpu", ".1f"),
)
NOTES = (
    "CPU: of the waiting process, all its threads, from before the contender is imported; core: that, a second of wall time.",
    "nobody: what measuring costs, above all the lag's ticks; 'of dbt's' is without it if it was measured, the targets never.",
    "Our package is compiled first, as an installer does with the others.",
    "late: from the run's true end at the server to the trigger's event, s.",
    "lag: of the event loop, s, with imports and first look-ups; steady: after all runs have begun.",
    "ours:absent: the list endpoint answers 404. dbt's https is replaced by http, and no contender logs its polls.",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    group = parser.add_argument_group("triggers")
    group.add_argument(
        "--runs", type=int, nargs="+", help=f"how many flow runs wait at once (default: {RUNS})"
    )
    group.add_argument(
        "--contenders",
        nargs="+",
        default=CONTENDERS,
        help=f"nobody, ours, dbt, plain; ours:LIST for a list endpoint that is one of {LIST_MODES} (default: {' '.join(CONTENDERS)})",
    )
    group.add_argument("--interval", type=float, default=5.0, help="seconds between two looks")
    group.add_argument(
        "--lasting", type=float, nargs=2, metavar=("FROM", "TO"), help="seconds that runs last (20 60)"
    )
    group.add_argument(
        "--progress", choices=PROGRESS, default="linear", help="what the service tells of progress"
    )
    group.add_argument(
        "--latency", type=float, default=0.0, help="seconds that the service takes for each answer"
    )
    group.add_argument("--seed", type=int, default=1)


def run(options: argparse.Namespace) -> Report:
    """Measure every contender at every number of runs."""
    title = f"Triggers: {options.progress} progress, interval {options.interval:g} s, latency {options.latency:g} s, seed {options.seed}"
    report = Report("triggers", title, COLUMNS, notes=list(NOTES))
    compile_dir(
        next(iter(airflow_provider_flows.__path__)), quiet=1
    )  # as pip has compiled the other contenders' packages
    shortest, longest = options.lasting or ((5.0, 15.0) if options.quick else (20.0, 60.0))
    for count in options.runs or (QUICK_RUNS if options.quick else RUNS):
        script = RunScript(count, options.seed, shortest, longest, spread=3.0)
        rows = [_measure_contender(contender, script, options) for contender in options.contenders]
        spent = {row["contender"]: row["cpu"] for row in rows}
        idle = spent.get(BASELINE, 0.0)
        report.rows += [
            {**row, "cpu_of_peer": ratio(row["cpu"] - idle, spent.get(PEER, idle) - idle)} for row in rows
        ]
    report.targets += _targets(report.rows, options.interval)
    return report


def _measure_contender(contender: str, script: RunScript, options: argparse.Namespace) -> dict[str, Any]:
    """Let one contender wait for all runs, beside a server that is only its own."""
    print(f"  {script.count} runs, {contender} ...", file=sys.stderr, flush=True)
    name, _, listing = contender.partition(":")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        settings = {"progress": options.progress, "list": listing or "states", "latency": options.latency}
        scripted = {
            "runs": script.count,
            **{key: value for key, value in asdict(script).items() if key != "count"},
        }
        server = FlowServer(home / "server.log", **scripted, **settings)
        try:
            server.start()
            figures = _run_waiting_process(name, server, script, options.interval, home)
        finally:
            server.stop()
    whose = {"contender": contender, "core": figures["cpu"] / figures["wall"]}
    if contender == BASELINE:
        return {**whose, **{key: figures[key] for key in BASELINE_FIGURES}}
    request_count = sum(figures["requests"].values())
    return {
        **figures,
        **whose,
        "asked": request_count,
        "requests_per_run": request_count / script.count,
        "cpu_per_request": ratio(1000 * figures["cpu"], request_count),
        "lists": figures["requests"].get("list", 0),
    }


def _run_waiting_process(
    name: str, server: FlowServer, script: RunScript, interval: float, home: Path
) -> dict[str, Any]:
    output_file = home / "figures.json"
    options = {
        "contender": name,
        "address": server.address,
        "interval": interval,
        "script": json.dumps(asdict(script)),
    }
    arguments = [argument for option, value in options.items() for argument in (f"--{option}", str(value))]
    environment = {
        **own_environment(home, home / "dags"),
        **connection_environment(name, server.address),
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
    }
    command = [sys.executable, "-m", "benchmarks.waiting_process", *arguments, "--into", str(output_file)]
    process = Program(f"the waiting process of {name}", command, environment, home / "waiting.log")
    process.start()
    try:
        wait_until(lambda: process.popen.poll() is not None, [server], TIMEOUT_SECONDS, f"The wait of {name}")
    finally:
        process.stop()
    if not output_file.exists():
        process.check()
    return dict(json.loads(output_file.read_text()))


def _targets(rows: list[dict[str, Any]], interval: float) -> Iterator[Target]:
    """Put what the issue asks for beside what was reached."""
    by = {(row["runs"], row["contender"]): row for row in rows}
    ours, peer, absent = by.get((4_000, "ours")), by.get((4_000, PEER)), by.get((4_000, "ours:absent"))
    if ours:
        yield Target("4,000 runs, requests a run", ours["requests_per_run"], "<= 1.3")
        yield Target("4,000 runs, event-loop lag, s", ours["lag_max"], "< 0.25")
        yield Target("4,000 runs, lost", ours["lost"], "0")
    if ours and peer:
        yield Target("4,000 runs, CPU of dbt's", ours["cpu"] / peer["cpu"], "<= 0.1")
        yield Target("4,000 runs, mean lateness of dbt's", ours["delay_mean"] / peer["delay_mean"], "<= 1")
    if absent and peer:
        yield Target("4,000 runs, list absent, CPU of dbt's", absent["cpu"] / peer["cpu"], "<= 0.2")
    if many := by.get((10_000, "ours")):
        yield Target("10,000 runs, p99 lateness, s", many["delay_p99"], f"<= {interval + 0.5:g}")
        yield Target("10,000 runs, part of a core", many["core"], "<= 0.5")
        yield Target("10,000 runs, lost", many["lost"], "0")

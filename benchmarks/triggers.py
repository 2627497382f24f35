"""Benchmark 1: waits for thousands of flow runs in one event loop, with the provider and with others.

Each contender has a new process and a new server, with the same seed.
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
CONTENDERS = (BASELINE, "provider", "provider:absent", "dbt", "plain")
PEER = "dbt"
# the only figures of the baseline
BASELINE_FIGURES = ("runs", "cpu", "wall", "lag_max", "lag_p99", "lag_steady_max", "memory")
TIMEOUT_SECONDS = 900  # for one contender
COLUMNS = (
    Column("runs", "runs", ",d"),
    Column("contender", "contender"),
    Column("CPU s", "cpu", ".2f"),
    Column("of dbt's", "cpu_of_peer", ".3f"),
    Column("core", "core", ".0%"),
    Column("requests", "request_count", ",d"),
    Column("per run", "requests_per_run", ".2f"),
    Column("CPU ms each", "cpu_per_request", ".2f"),
    Column("lists", "lists", ",d"),
    Column("delay mean", "delay_mean", ".2f"),
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
    "CPU: of the waiting process with all threads and imports; core: CPU per second of wall time.",
    "baseline: no waiter, so the cost of measuring; 'of dbt's' is without it, targets are not.",
    "The provider's package is compiled first, as an installer does with the others.",
    "delay: from the run's true end at the server to the trigger's event, in seconds.",
    "lag: of the event loop, in seconds, with imports and lookups; steady: after all runs have started.",
    "provider:absent: the list responds 404. dbt uses http in place of https. No contender logs polls.",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    group = parser.add_argument_group("triggers")
    group.add_argument("--runs", type=int, nargs="+", help=f"numbers of flow runs (default: {RUNS})")
    group.add_argument(
        "--contenders",
        nargs="+",
        default=CONTENDERS,
        help=f"{BASELINE}, provider, dbt, plain; provider:LIST with a behavior of the list, one of "
        f"{LIST_MODES} (default: {' '.join(CONTENDERS)})",
    )
    group.add_argument("--interval", type=float, default=5.0, help="seconds between two polls")
    group.add_argument(
        "--lasting",
        type=float,
        nargs=2,
        metavar=("FROM", "TO"),
        help="shortest and longest duration of runs in seconds (default: 20 60)",
    )
    group.add_argument(
        "--progress", choices=PROGRESS, default="linear", help="the progress that the service reports"
    )
    group.add_argument(
        "--latency", type=float, default=0.0, help="seconds before each response of the service"
    )
    group.add_argument("--seed", type=int, default=1)


def run(options: argparse.Namespace) -> Report:
    """Measure every contender with every number of runs."""
    title = (
        f"Triggers: {options.progress} progress, interval {options.interval:g} s, "
        f"latency {options.latency:g} s, seed {options.seed}"
    )
    report = Report("triggers", title, COLUMNS, notes=list(NOTES))
    # pip has compiled the other contenders' packages
    compile_dir(next(iter(airflow_provider_flows.__path__)), quiet=1)
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
    """Let one contender wait for all runs of a new server, and return the figures."""
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
    base = {"contender": contender, "core": figures["cpu"] / figures["wall"]}
    if contender == BASELINE:
        return {**base, **{key: figures[key] for key in BASELINE_FIGURES}}
    request_count = sum(figures["requests"].values())
    return {
        **figures,
        **base,
        "request_count": request_count,
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
    """Yield the targets and the reached figures."""
    by = {(row["runs"], row["contender"]): row for row in rows}
    own, peer = by.get((4_000, "provider")), by.get((4_000, PEER))
    absent = by.get((4_000, "provider:absent"))
    if own:
        yield Target("4,000 runs, requests per run", own["requests_per_run"], "<= 1.3")
        yield Target("4,000 runs, event-loop lag, s", own["lag_max"], "< 0.25")
        yield Target("4,000 runs, lost", own["lost"], "0")
    if own and peer:
        yield Target("4,000 runs, CPU, of dbt's", own["cpu"] / peer["cpu"], "<= 0.1")
        yield Target("4,000 runs, mean delay, of dbt's", own["delay_mean"] / peer["delay_mean"], "<= 1")
    if absent and peer:
        yield Target("4,000 runs, list absent, CPU, of dbt's", absent["cpu"] / peer["cpu"], "<= 0.2")
    if many := by.get((10_000, "provider")):
        yield Target("10,000 runs, p99 delay, s", many["delay_p99"], f"<= {interval + 0.5:g}")
        yield Target("10,000 runs, part of a core", many["core"], "<= 0.5")
        yield Target("10,000 runs, lost", many["lost"], "0")

"""Benchmark 4: the cost of importing operators on top of `airflow.sdk`, compared with other providers.

Each import is measured in a new process; providers that are not installed are skipped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.reporting import Column, Report, ratio
from tools.airflow_settings import own_environment

OPERATORS = "airflow_provider_flows.operators"
PROVIDERS = "airflow.providers"
MODULES = {
    "flows": OPERATORS,
    "flows, with the sensor": f"{OPERATORS}, airflow_provider_flows.sensors",
    "http": f"{PROVIDERS}.http.operators.http",
    "http, with the sensor": f"{PROVIDERS}.http.operators.http, {PROVIDERS}.http.sensors.http",
    "dbt Cloud": f"{PROVIDERS}.dbt.cloud.operators.dbt",
    "airbyte": f"{PROVIDERS}.airbyte.operators.airbyte",
    "openai": f"{PROVIDERS}.openai.operators.openai",
}
# The lazy names of `airflow.sdk` that any DAG file uses are loaded first, so that no provider is charged.
MEASURE = """
import json, sys, time
from airflow.sdk import DAG, BaseHook, BaseOperator, BaseSensorOperator, task
before, cpu, wall = len(sys.modules), time.process_time(), time.perf_counter()
import {modules}
cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
print(json.dumps({{"cpu": cpu * 1000, "wall": wall * 1000, "modules": len(sys.modules) - before}}))
"""
COLUMNS = (
    Column("operators of", "provider"),
    Column("CPU ms", "cpu", ".1f"),
    Column("min", "cpu_min", ".1f"),
    Column("max", "cpu_max", ".1f"),
    Column("wall ms", "wall", ".1f"),
    Column("modules", "modules", ",.0f"),
    Column("of flows'", "of_flows", ".1f"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument_group("imports").add_argument(
        "--repeat", type=int, help="repetitions of each import (default: 15)"
    )


def run(options: argparse.Namespace) -> Report:
    """Import everything several times, in turns, so that disturbances of the machine affect all."""
    repeat = options.repeat or (3 if options.quick else 15)
    report = Report(
        "imports",
        f"Import of the operators, on top of airflow.sdk: median of {repeat} new processes",
        COLUMNS,
    )
    known = {name: modules for name, modules in MODULES.items() if _is_installed(modules)}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in known}
    with tempfile.TemporaryDirectory() as folder:
        environment = own_environment(Path(folder), Path(folder))
        for turn in range(repeat + 1):
            for name, modules in known.items():
                figures = _measure_import(modules, environment)
                if turn:  # the first turn fills the machine's file cache, and writes Airflow's configuration
                    found[name].append(figures)
    report.rows = [_row(name, figures) for name, figures in found.items()]
    own = next(row["cpu"] for row in report.rows if row["provider"] == "flows")
    report.rows = [{**row, "of_flows": ratio(row["cpu"], own)} for row in report.rows]
    return report


def _row(name: str, figures: list[dict[str, float]]) -> dict[str, Any]:
    cpu = [each["cpu"] for each in figures]
    middle = {key: statistics.median(each[key] for each in figures) for key in ("cpu", "wall", "modules")}
    return {"provider": name, **middle, "cpu_min": min(cpu), "cpu_max": max(cpu)}


def _is_installed(modules: str) -> bool:
    try:
        return all(find_spec(module) for module in modules.split(", "))
    except ModuleNotFoundError:  # its parent package is not installed
        return False


def _measure_import(modules: str, environment: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, "-c", MEASURE.format(modules=modules)]
    done = subprocess.run(  # noqa: S603  # a fixed command
        command, env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))

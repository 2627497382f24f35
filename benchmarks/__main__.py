"""The command line of the benchmarks: run them, print their tables, and write all figures as JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from os import getloadavg
from pathlib import Path
from typing import Any

from benchmarks.reporting import Report, machine
from tools.processes import exit_on_sigterm, run_command

# the modules by their names on the command line
BENCHMARKS = {
    "triggers": "triggers",
    "schedule": "schedule",
    "airflow": "complete_airflow",
    "imports": "import_time",
    "files": "files",
    "batch": "batch",
}


def main() -> None:
    """Run benchmarks, print a table for each, and write all figures as JSON."""
    exit_on_sigterm()
    modules: dict[str, Any] = {
        name: importlib.import_module(f"benchmarks.{module}") for name, module in BENCHMARKS.items()
    }
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="benchmark", help=f"any of {' '.join(BENCHMARKS)} (default: all)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs, to check that it works")
    parser.add_argument(
        "--json", type=Path, default=Path("bench.json"), help="file of the figures (default: bench.json)"
    )
    for module in modules.values():
        module.add_arguments(parser)
    options = parser.parse_intermixed_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    on = machine()
    print(", ".join(f"{key} {value}" for key, value in on.items() if key != "packages"))
    print(", ".join(f"{key} {value}" for key, value in on["packages"].items()), flush=True)
    results: dict[str, Any] = {"machine": on, "command": vars(options) | {"json": str(options.json)}}
    for name in options.names or BENCHMARKS:
        report: Report = modules[name].run(options)
        report.notes.append(
            f"load average at the end: {getloadavg()[0]:.1f}; other programs make figures worse."
        )
        print(report.to_text(), flush=True)
        results[report.name] = report.to_dict()
        # after each benchmark, because a later one may be interrupted
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(run_command(main))

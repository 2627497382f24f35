"""The command `python -m tests.system.chaos`: run scenarios, and print expected and actual results.

The exit code is 1 if a result is not as expected.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.system.chaos.case import Scenario
from tests.system.chaos.component_failures import MANY
from tests.system.chaos.report import Row, markdown_table, run_all, skipped_row, write_report
from tests.system.chaos.scenarios import all_scenarios, quick_scenarios
from tests.system.chaos.services import EmulatorService, ExternalService, IndependentService, ServiceFactory
from tests.system.chaos.stage import Stage
from tools.processes import exit_on_sigterm, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run scenarios, print the results, and return the exit code."""
    options = _parser().parse_args(argv)
    exit_on_sigterm()
    selected, skipped = _select_scenarios(options)
    if options.list or not selected:
        names = [one.name for one in selected] + [f"{row.scenario} ({row.actual})" for row in skipped]
        _print("\n".join(names) or "No scenario has this name.")
        return 0 if selected else 2
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        home = options.home or Path(folder)
        with Stage(
            home, selected, parallelism=options.parallelism, outage=options.outage, many=options.many
        ) as stage:
            where = options.url or f"the server {options.server!r}"
            _print(
                f"Airflow started in {time.monotonic() - started:.0f} s; {len(selected)} scenarios, {where}"
            )
            rows = run_all(stage, _print_row)
            _save_logs(stage, rows)
    _print("\n" + markdown_table(rows + skipped))
    good = sum(row.ok is True for row in rows)
    _print(f"\n{good} of {len(rows)} with {where} as expected, in {time.monotonic() - started:.0f} s")
    for path in options.report:
        write_report(rows + skipped, path)
    return 0 if good == len(rows) else 1


def _select_scenarios(options: argparse.Namespace) -> tuple[list[Scenario], list[Row]]:
    """Return the selected scenarios, and the rows of those that the server or the machine cannot run."""
    server = _service_factory(options)
    scenarios = quick_scenarios() if options.quick else all_scenarios(options.many)
    selected = [
        one for one in scenarios if not options.only or any(part in one.name for part in options.only)
    ]
    reasons = {one.name: _reason_to_skip(one, options) for one in selected}
    skipped = [skipped_row(one, reason) for one in selected if (reason := reasons[one.name])]
    return [replace(one, server=server) for one in selected if not reasons[one.name]], skipped


def _reason_to_skip(scenario: Scenario, options: argparse.Namespace) -> str | None:
    if options.url and scenario.service_requirement:
        return f"it needs {scenario.service_requirement}"
    return scenario.find_missing()


def _service_factory(options: argparse.Namespace) -> ServiceFactory:
    """Return the factory of the selected service."""
    if options.url:
        return lambda _log, _seconds: ExternalService(options.url, options.key, options.flow)
    return {"emulator": EmulatorService, "other": IndependentService}[options.server]


def _print_row(row: Row) -> None:
    _print(
        f"{'ok ' if row.ok else 'NOT'} {row.seconds:6.1f} s  {row.scenario}"
        + ("" if row.ok else f"  [{row.actual}]")
    )


def _save_logs(stage: Stage, rows: Sequence[Row]) -> None:
    """Write requests and logs of each row that is not as expected into the stage's folder."""
    cases = {scenario.name: stage.case(scenario) for scenario in stage.scenarios}
    for row in rows:
        if not row.ok:
            case = cases[row.scenario]
            text = "\n".join([row.actual, *row.requests, case.all_logs()])
            (stage.home / f"{case.tag}.txt").write_text(text)


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.system.chaos", description="Kill processes of a real Airflow."
    )
    parser.add_argument("--quick", action="store_true", help="run only the scenarios of `make test`")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="TEXT",
        help="run only scenarios whose name contains this",
    )
    parser.add_argument("--list", action="store_true", help="list the scenarios without running them")
    parser.add_argument(
        "--report", type=Path, action="append", default=[], metavar="FILE",
        help="write the table to this file, as JSON or as Markdown by its suffix; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--home",
        type=Path,
        metavar="FOLDER",
        help="folder of all logs and files (default: a temporary folder)",
    )
    parser.add_argument(
        "--outage",
        type=float,
        default=60.0,
        help="duration of an outage of the service in seconds (default: %(default)s)",
    )
    parser.add_argument(
        "--many",
        type=int,
        default=MANY,
        help="number of deferred tasks in the scenarios of the triggerer (default: %(default)s)",
    )
    parser.add_argument(
        "--server",
        choices=("emulator", "other"),
        default="emulator",
        help="the service: the emulator or tests/support/other_server.py (default: %(default)s)",
    )
    running = parser.add_argument_group(
        "an external server with Generio's API; its flow runs should take 5 to 60 s"
    )
    running.add_argument("--url", help="its URL; scenarios that it cannot run are skipped")
    running.add_argument("--key", default="", help="its key")
    running.add_argument(
        "--flow", default=EmulatorService.flow, help="a flow whose inputs are prompts (default: %(default)s)"
    )
    parser.add_argument(
        "--parallelism", type=int, default=6, help="tasks at the same time (default: %(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))

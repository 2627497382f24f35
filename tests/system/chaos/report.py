"""Run scenarios on a stage, in parallel where possible, and report the results in a table."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.system.chaos.case import Scenario
from tests.system.chaos.stage import Stage

MAX_PARALLEL = 8


@dataclass(frozen=True)
class Row:
    """A scenario with its expected and its actual result."""

    scenario: str
    expected: str
    actual: str
    ok: bool | None
    """None for a skipped scenario."""
    seconds: float
    requests: tuple[str, ...] = ()


def run_all(stage: Stage, on_row: Callable[[Row], None] = lambda _: None) -> list[Row]:
    """Run all scenarios of a stage: in parallel, then the exclusive ones one after the other."""
    parallel = [scenario for scenario in stage.scenarios if not scenario.is_exclusive]
    exclusive = [scenario for scenario in stage.scenarios if scenario.is_exclusive]

    def run_and_report(scenario: Scenario) -> Row:
        row = run(stage, scenario)
        on_row(row)
        return row

    pool = ThreadPoolExecutor(MAX_PARALLEL)
    try:
        rows = list(pool.map(run_and_report, parallel))
        return rows + [run_and_report(scenario) for scenario in exclusive]
    finally:
        stage.stop_event.set()
        pool.shutdown(cancel_futures=True)


def run(stage: Stage, scenario: Scenario) -> Row:
    """Run one scenario; an exception becomes the result of its row."""
    started = time.monotonic()
    case = stage.case(scenario)
    try:
        facts = scenario.run(case)
    except Exception:  # noqa: BLE001  # the other scenarios run anyway
        facts = {"error": traceback.format_exc().strip().splitlines()[-1]}
    ok = all(facts.get(key) == value for key, value in scenario.expected.items())
    requests = tuple(
        f"{one.method} {one.path} {one.status or 'no response'}" for one in case.traffic.requests
    )
    seconds = round(time.monotonic() - started, 1)
    relevant = facts if "error" in facts else {key: facts.get(key) for key in scenario.expected}
    return Row(
        scenario.name, _format_facts(scenario.expected), _format_facts(relevant), ok, seconds, requests
    )


def skipped_row(scenario: Scenario, reason: str) -> Row:
    """Return the row of a scenario that the service or the machine cannot run."""
    return Row(
        scenario.name,
        _format_facts(scenario.expected),
        f"not run: {reason}",
        None,
        0.0,
    )


def _format_facts(facts: dict[str, Any]) -> str:
    return "; ".join(f"{key}: {value}" for key, value in facts.items())


def markdown_table(rows: Sequence[Row]) -> str:
    """Return the rows as a table in Markdown."""
    head = ("scenario", "expected", "actual", "ok")
    verdicts = {True: "yes", False: "NO", None: "-"}
    lines = [
        (row.scenario, row.expected, "as expected" if row.ok else row.actual, verdicts[row.ok])
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    ruled = [head, tuple("-" * width for width in widths), *lines]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in ruled
    )


def write_report(rows: Iterable[Row], path: Path) -> None:
    """Write the rows to a file: as JSON if it ends in `.json`, as Markdown otherwise."""
    listed = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    as_json = json.dumps([asdict(row) for row in listed], indent=1) + "\n"
    path.write_text(as_json if path.suffix == ".json" else markdown_table(listed) + "\n")

"""Plays scenarios on a stage, side by side where they allow it, and puts what was seen into a table.

What the scenarios are stands in scenarios.py and upheavals.py.
"""

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

AT_ONCE = 8


@dataclass(frozen=True)
class Row:
    """One scenario, what was expected of it and what was seen."""

    scenario: str
    expected: str
    seen: str
    ok: bool | None
    """None for a scenario that was not played."""
    seconds: float
    requests: tuple[str, ...] = ()


def play_all(stage: Stage, tell: Callable[[Row], None] = lambda _: None) -> list[Row]:
    """Play all scenarios of a stage: first those that can be together, then one after the other those that cannot."""
    together = [scenario for scenario in stage.scenarios if not scenario.alone]
    alone = [scenario for scenario in stage.scenarios if scenario.alone]

    def played(scenario: Scenario) -> Row:
        row = play(stage, scenario)
        tell(row)
        return row

    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        rows = list(pool.map(played, together))
        return rows + [played(scenario) for scenario in alone]
    finally:
        stage.over.set()
        pool.shutdown(cancel_futures=True)


def play(stage: Stage, scenario: Scenario) -> Row:
    """Play one scenario; whatever goes wrong in it is its row's affair."""
    began = time.monotonic()
    case = stage.case(scenario)
    try:
        seen = scenario.play(case)
    except Exception:  # noqa: BLE001  # the others are to be played all the same
        seen = {"trouble": traceback.format_exc().strip().splitlines()[-1]}
    ok = all(seen.get(key) == value for key, value in scenario.expected.items())
    requests = tuple(f"{one.method} {one.path} {one.status or 'no answer'}" for one in case.book.requests)
    lasted = round(time.monotonic() - began, 1)
    shown = seen if "trouble" in seen else {key: seen.get(key) for key in scenario.expected}
    return Row(scenario.name, _words(scenario.expected), _words(shown), ok, lasted, requests)


def not_played(scenario: Scenario) -> Row:
    """Give the row of a scenario that the service cannot be told what it needs for."""
    return Row(
        scenario.name,
        _words(scenario.expected),
        f"not played: the service cannot be told {scenario.order}",
        None,
        0.0,
    )


def _words(facts: dict[str, Any]) -> str:
    return "; ".join(f"{key}: {value}" for key, value in facts.items())


def table(rows: Sequence[Row]) -> str:
    """Write the rows as a table in Markdown."""
    head = ("scenario", "expected", "seen", "ok")
    verdicts = {True: "yes", False: "NO", None: "-"}
    lines = [
        (row.scenario, row.expected, "as expected" if row.ok else row.seen, verdicts[row.ok]) for row in rows
    ]
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    ruled = [head, tuple("-" * width for width in widths), *lines]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in ruled
    )


def write(rows: Iterable[Row], path: Path) -> None:
    """Write the rows to a file: as JSON if its name says so, as Markdown otherwise."""
    listed = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    as_json = json.dumps([asdict(row) for row in listed], indent=1) + "\n"
    path.write_text(as_json if path.suffix == ".json" else table(listed) + "\n")

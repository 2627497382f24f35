"""The scenarios in which the service is away for a while: no task fails, and nothing is started twice.

The proxy plays the absence: every connection is broken off, and the service behind it knows nothing of that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.system.chaos.case import RUN, Case, Scenario
from tests.system.chaos.deaths import MODES
from tests.system.chaos.services import Plan

EXPECTED = {"starts": 1, "task": "success", "runs": "1 completed"}


def outages() -> Iterator[Scenario]:
    """Give the absences during the wait, at the start, and before the downloads."""
    for mode in MODES:

        def waiting(case: Case, mode: str = mode) -> dict[str, Any]:
            run_id = case.trigger(mode)
            case.until(lambda: case.waits(mode, run_id))
            case.proxy.away = True
            return _back_later(case, mode, run_id)

        def starting(case: Case, mode: str = f"{mode}_patient") -> dict[str, Any]:
            case.proxy.away = True
            run_id = case.trigger(mode)
            case.until(lambda: case.book.requests)
            return _back_later(case, mode, run_id)

        def fetching(case: Case, mode: str = f"{mode}_patient") -> dict[str, Any]:
            case.arm(case.go_away, "GET", rf"{RUN}/outputs", "after")
            run_id = case.trigger(mode)
            case.until(lambda: case.proxy.away)
            return _back_later(case, mode, run_id)

        expected = EXPECTED | {"files": "all of 1 run"}
        yield Scenario(f"the service is away during the wait, {mode}", expected, waiting, plans=(Plan(30.0),))
        yield Scenario(f"the service is away at the start, {mode}", expected, starting)
        yield Scenario(f"the service is away at the downloads, {mode}", expected, fetching)

    def sensor(case: Case) -> dict[str, Any]:
        run_id = case.trigger("sensor", flow_run_id=case.started_elsewhere())
        case.proxy.away = True
        case.until(lambda: case.book.requests)
        return _back_later(case, "sensor", run_id)

    expected = EXPECTED | {"files": "all of 1 run"}
    yield Scenario("the service is away during the wait, reschedule sensor", expected, sensor)


def _back_later(case: Case, dag: str, run_id: str) -> dict[str, Any]:
    """Let the absence last, end it, and see what has come of the task."""
    case.stage.over.wait(case.stage.outage)
    case.proxy.away = False
    case.ended(dag, run_id)
    return case.facts(dag, run_id)

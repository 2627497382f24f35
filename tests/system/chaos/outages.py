"""Scenarios with an outage of the service: no task fails, and no flow run is started twice.

During an outage the proxy resets every connection, or responds with 404; the service itself continues.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.system.chaos.case import RUN_PATH, Case, Scenario
from tests.system.chaos.services import Plan
from tests.system.chaos.worker_kills import MODES

FAILOVER_SECONDS = 12.0
EXPECTED = {"starts": 1, "task": "success", "runs": "1 completed"}


def outage_scenarios() -> Iterator[Scenario]:
    """Yield the outages during the wait, at the start, and before the downloads."""
    for mode in MODES:

        def during_wait(case: Case, mode: str = mode) -> dict[str, Any]:
            run_id = case.trigger(mode)
            case.wait_until(lambda: case.is_waiting(mode, run_id))
            case.proxy.is_down = True
            return _end_outage(case, mode, run_id)

        def at_start(case: Case, mode: str = f"{mode}_slow_retries") -> dict[str, Any]:
            case.proxy.is_down = True
            run_id = case.trigger(mode)
            case.wait_until(lambda: case.traffic.requests)
            return _end_outage(case, mode, run_id)

        def at_downloads(case: Case, mode: str = f"{mode}_slow_retries") -> dict[str, Any]:
            case.arm(case.take_service_down, "GET", rf"{RUN_PATH}/outputs", "after")
            run_id = case.trigger(mode)
            case.wait_until(lambda: case.proxy.is_down)
            return _end_outage(case, mode, run_id)

        expected = EXPECTED | {"files": "all of 1 run"}
        yield Scenario(
            f"the service is down during the wait, {mode}", expected, during_wait, plans=(Plan(30.0),)
        )
        yield Scenario(f"the service is down at the start, {mode}", expected, at_start)
        yield Scenario(f"the service is down at the downloads, {mode}", expected, at_downloads)

    def sensor(case: Case) -> dict[str, Any]:
        run_id = case.trigger("sensor", flow_run_id=case.start_external_run())
        case.proxy.is_down = True
        case.wait_until(lambda: case.traffic.requests)
        return _end_outage(case, "sensor", run_id)

    expected = EXPECTED | {"files": "all of 1 run"}
    yield Scenario("the service is down during the wait, reschedule sensor", expected, sensor)


def failover_scenarios() -> Iterator[Scenario]:
    """Yield a gateway's failover while a retry looks for the flow run of a killed try: no run is found."""
    for mode in MODES:

        def at_resume(case: Case, mode: str = mode) -> dict[str, Any]:
            def kill_and_fail_over(port: int) -> bool:
                case.proxy.is_failing_over = case.kill_task(port)
                return case.proxy.is_failing_over

            case.arm(kill_and_fail_over, "PATCH", RUN_PATH, "after")
            run_id = case.trigger(mode)
            case.wait_until(lambda: case.proxy.not_found_count)
            case.stage.stop_event.wait(FAILOVER_SECONDS)
            case.proxy.is_failing_over = False
            case.wait_for_end(mode, run_id)
            return case.facts(mode, run_id) | {"not found": case.proxy.not_found_count > 3}

        expected = EXPECTED | {"killed": 1, "not found": True, "files": "all of 1 run"}
        yield Scenario(
            f"kill after PATCH start, then 404 for {FAILOVER_SECONDS:.0f} s, {mode}", expected, at_resume
        )


def _end_outage(case: Case, dag: str, run_id: str) -> dict[str, Any]:
    """Wait, end the outage, and return the facts after the task's end."""
    case.stage.stop_event.wait(case.stage.outage)
    case.proxy.is_down = False
    case.wait_for_end(dag, run_id)
    return case.facts(dag, run_id)

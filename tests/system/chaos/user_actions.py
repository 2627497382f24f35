"""Scenarios in which a user marks a task through Airflow's API: only its flow run is aborted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

from tests.system.chaos import processes
from tests.system.chaos.case import MAX_WAIT_SECONDS, Case, Scenario
from tests.system.chaos.services import Plan
from tests.system.chaos.worker_kills import BODY, MODES, START_POINTS, RequestPoint

MAX_ABORT_SECONDS = 30.0  # after a mark, for the abort
OBSERVATION_SECONDS = 20.0  # after a mark that must not abort
ENDLESS_PLANS = (Plan(3600.0),)
# longer than the scenario; the emulator's runs are in `starting` for a tenth of it
LONG_PLANS = (Plan(200.0),)
WAITING_STATES = {"blocking": "running", "deferrable": "deferred"}


def mark_scenarios() -> Iterator[Scenario]:
    """Yield the marks of a waiting task as failed and as success, with and without `abort_on_kill`."""
    for mode in MODES:
        for state in ("failed", "success"):

            def waiting(case: Case, mode: str = mode, state: str = state) -> dict[str, Any]:
                return mark_while_waiting(case, mode, state)

            expected = {"starts": 1, "task": state, "runs": "1 aborted", "within 30 s": True}
            yield Scenario(
                f"mark {state} while {WAITING_STATES[mode]}", expected, waiting, plans=ENDLESS_PLANS
            )

        def left_alone(case: Case, mode: str = mode) -> dict[str, Any]:
            dag = f"{mode}_left_alone"
            run_id = start_waiting_task(case, dag)
            case.mark(dag, run_id, "failed")
            time.sleep(OBSERVATION_SECONDS)
            return case.facts(dag, run_id)

        expected = {"starts": 1, "task": "failed", "runs": "1 running"}
        yield Scenario(
            f"mark failed while {WAITING_STATES[mode]}, abort_on_kill=False",
            expected,
            left_alone,
            plans=LONG_PLANS,
        )


def mark_while_waiting(case: Case, dag: str, state: str) -> dict[str, Any]:
    """Start a task, and mark it while it waits."""
    return mark_and_check(case, dag, start_waiting_task(case, dag), state)


def mark_and_check(case: Case, dag: str, run_id: str, state: str) -> dict[str, Any]:
    """Mark a task, and return the facts, also whether its flow run is aborted in time."""
    case.mark(dag, run_id, state)
    aborted = case.wait_until(
        lambda: case.service.states(case.traffic.created_ids) == "1 aborted", MAX_ABORT_SECONDS
    )
    return case.facts(dag, run_id) | {"within 30 s": aborted}


def partial_transfer_scenarios() -> Iterator[Scenario]:
    """Yield the marks as failed during the inputs and during a download."""
    second_input = START_POINTS[2]
    expected = {"starts": 0, "task": "failed", "runs": "none"}
    yield Scenario(
        "mark failed during the inputs", expected, lambda case: _mark_during_request(case, second_input)
    )
    expected = {"starts": 1, "task": "failed", "runs": "1 completed", "files": "none"}
    yield Scenario("mark failed during a download", expected, lambda case: _mark_during_request(case, BODY))


def _mark_during_request(case: Case, point: RequestPoint) -> dict[str, Any]:
    """Block a request, mark the task, and continue the request when the task's process has ended."""
    blocked, task_ended = threading.Event(), threading.Event()

    def block_request(port: int) -> bool:
        case.record_task(port)
        blocked.set()
        task_ended.wait(MAX_WAIT_SECONDS)
        return False

    case.arm(block_request, point.method, point.path, "midway" if point is BODY else "before", point.nth)
    run_id = case.trigger("blocking")
    if not blocked.wait(MAX_WAIT_SECONDS):
        return {"error": "the request did not arrive"}
    case.mark("blocking", run_id, "failed")
    case.wait_until(lambda: not processes.is_alive(case.task_pids[0]), MAX_ABORT_SECONDS)
    task_ended.set()
    time.sleep(1)
    return case.facts("blocking", run_id)


def start_waiting_task(case: Case, dag: str) -> str:
    """Start a task, wait until its flow run is in progress, and return the DAG run's id."""
    run_id = case.trigger(dag)
    if not case.wait_until(lambda: case.is_waiting(dag, run_id)):
        raise TimeoutError(f"the task does not wait; its state is {case.state(dag, run_id)}")
    starts_slowly = case.scenario.slow or case.scenario.plans == ENDLESS_PLANS
    case.wait_until(lambda: starts_slowly or "running" in case.service.states(case.traffic.created_ids), 60)
    time.sleep(3)
    return run_id

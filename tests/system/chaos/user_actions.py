"""The scenarios in which somebody clears or marks a task, or the machine evicts it: what is over is stopped, nothing else.

What a person does is done through Airflow's public API.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from tests.system.chaos import processes
from tests.system.chaos.case import MAX_WAIT_SECONDS, RUN_PATH, Case, Scenario
from tests.system.chaos.services import Plan
from tests.system.chaos.worker_kills import BODY, MODES, START_POINTS, RequestPoint

MAX_ABORT_SECONDS = 30.0  # seconds in which a kill must have come to the service
OBSERVATION_SECONDS = 20.0  # seconds in which nothing must have come of it
ENDLESS_PLANS = (Plan(3600.0),)
LONG_PLANS = (
    Plan(200.0),
)  # long enough for all that is done meanwhile; at the emulator a tenth of it is spent in `starting`
WAITING_STATES = {"blocking": "running", "deferrable": "deferred"}


def clear_scenarios() -> Iterator[Scenario]:
    """Give the clears of a green, a red and a waiting task."""
    for mode in MODES:

        def green(case: Case, mode: str = mode) -> dict[str, Any]:
            run_id = case.trigger(mode)
            case.wait_for_end(mode, run_id)
            case.clear(mode, run_id)
            case.wait_until(lambda: len(case.traffic.started_ids) == 2)
            case.wait_for_end(mode, run_id)
            return case.facts(mode, run_id)

        def waiting(case: Case, mode: str = mode) -> dict[str, Any]:
            run_id = _start_waiting_task(case, mode)
            case.clear(mode, run_id)
            case.wait_until(lambda: len(case.traffic.started_ids) == 2)
            case.wait_for_end(mode, run_id)
            return case.facts(mode, run_id)

        def red(case: Case, mode: str = mode) -> dict[str, Any]:
            mark_while_waiting(case, mode, "failed")
            ((_, run_id),) = case.dag_runs
            case.clear(mode, run_id)
            case.wait_until(lambda: len(case.traffic.started_ids) == 2)
            case.wait_for_end(mode, run_id)
            return case.facts(mode, run_id)

        again = {"starts": 2, "task": "success", "runs": "2 completed", "files": "all of 2 runs"}
        instead = {"starts": 2, "task": "success", "runs": "1 aborted, 1 completed", "files": "all of 1 run"}
        yield Scenario(f"clear after success, {mode}", again, green)
        yield Scenario(f"clear while it waits, {mode}", instead, waiting, plans=ENDLESS_PLANS)
        yield Scenario(f"clear after mark failed, {mode}", instead, red, plans=ENDLESS_PLANS)


def mark_scenarios() -> Iterator[Scenario]:
    """Give the marks as failed and as success of a waiting task, with and without `abort_on_kill`."""
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
            run_id = _start_waiting_task(case, dag)
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
    """Mark a task as soon as it waits."""
    return mark_and_check(case, dag, _start_waiting_task(case, dag), state)


def mark_and_check(case: Case, dag: str, run_id: str, state: str) -> dict[str, Any]:
    """Mark a task, and see whether its flow run is aborted soon."""
    case.mark(dag, run_id, state)
    aborted = case.wait_until(
        lambda: case.service.states(case.traffic.created_ids) == "1 aborted", MAX_ABORT_SECONDS
    )
    return case.facts(dag, run_id) | {"within 30 s": aborted}


def partial_transfer_scenarios() -> Iterator[Scenario]:
    """Give the marks as failed in the middle of the inputs and of a download."""
    second_input = START_POINTS[2]
    expected = {"starts": 0, "task": "failed", "runs": "none"}
    yield Scenario(
        "mark failed during the inputs", expected, lambda case: _mark_during_request(case, second_input)
    )
    expected = {"starts": 1, "task": "failed", "runs": "1 completed", "files": "none"}
    yield Scenario("mark failed during a download", expected, lambda case: _mark_during_request(case, BODY))


def _mark_during_request(case: Case, point: RequestPoint) -> dict[str, Any]:
    """Hold a request up, mark the task meanwhile, and let it go on when the task's process is gone."""
    blocked, task_ended = threading.Event(), threading.Event()

    def block_request(port: int) -> bool:
        case.record_task(port)
        blocked.set()
        task_ended.wait(MAX_WAIT_SECONDS)
        return False

    case.arm(block_request, point.method, point.path, "midway" if point is BODY else "before", point.nth)
    run_id = case.trigger("blocking")
    if not blocked.wait(MAX_WAIT_SECONDS):
        return {"error": "the request never came"}
    case.mark("blocking", run_id, "failed")
    case.wait_until(lambda: not processes.is_alive(case.task_pids[0]), MAX_ABORT_SECONDS)
    task_ended.set()
    time.sleep(1)
    return case.facts("blocking", run_id)


def eviction_scenarios() -> Iterator[Scenario]:
    """Give the signals to a task's process and to the worker above it."""
    expected = {
        "signalled": 1,
        "starts": 1,
        "task": "success",
        "runs": "1 completed",
        "files": "all of 1 run",
    }
    plans = (Plan(30.0),)

    def evict(case: Case, *, worker: bool, number: signal.Signals) -> dict[str, Any]:
        case.arm(case.record_task, "GET", RUN_PATH)
        run_id = case.trigger("blocking")
        if not case.wait_until(lambda: case.task_pids):
            return {"error": "no task was seen"}
        task = case.task_pids[0]
        both = (
            [processes.parent_pid(task), task] if number == signal.SIGKILL else [processes.parent_pid(task)]
        )
        processes.kill(*(both if worker else [task]), number=number)
        signalled = case.wait_until(lambda: not processes.is_alive(task), 60)
        case.wait_for_end("blocking", run_id)
        return case.facts("blocking", run_id) | {"signalled": int(signalled)}

    def evict_task(case: Case) -> dict[str, Any]:
        return evict(case, worker=False, number=signal.SIGTERM)

    def evict_worker(case: Case) -> dict[str, Any]:
        return evict(case, worker=True, number=signal.SIGTERM)

    def kill_worker(case: Case) -> dict[str, Any]:
        return evict(case, worker=True, number=signal.SIGKILL)

    yield Scenario("SIGTERM to the task's process", expected, evict_task, plans=plans)
    yield Scenario("SIGTERM to the worker above the task", expected, evict_worker, plans=plans)
    yield Scenario("SIGKILL to the worker and its task", expected, kill_worker, plans=plans)


def _start_waiting_task(case: Case, dag: str) -> str:
    """Start a task and give its run's id when its flow run is under way and it waits."""
    run_id = case.trigger(dag)
    if not case.wait_until(lambda: case.is_waiting(dag, run_id)):
        raise TimeoutError(f"the task does not wait; it is {case.state(dag, run_id)}")
    case.wait_until(
        lambda: (
            "running" in case.service.states(case.traffic.created_ids) or case.scenario.plans == ENDLESS_PLANS
        ),
        60,
    )
    time.sleep(3)
    return run_id

"""Scenarios in which the triggerer or the scheduler is killed or suspended, or cannot store a text.

They run one after the other.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any
from urllib.parse import quote

from tests.support.postgresql import PostgreSQL, missing_requirement
from tests.system.chaos import processes
from tests.system.chaos.case import FINAL_TASK_STATES, Case, Scenario
from tests.system.chaos.services import Plan
from tests.system.chaos.stage import DAGS, LONG_SECONDS, SETTINGS
from tests.system.chaos.user_actions import ENDLESS_PLANS, mark_and_check, mark_while_waiting
from tests.system.chaos.worker_kills import MODES
from tools.airflow_stack import Stack

MANY = 50
EIGHTY = 80
MAX_ABORTS_SECONDS = 60.0  # for the aborts of a marked DAG run
SECONDS_PER_TASK = 8.0  # maximum for one of many tasks, on a machine with few cores
PAGE_SIZE = 100
SETTLE_SECONDS = 25.0  # after which a wrong abort would have happened


def infrastructure_scenarios(many: int) -> Iterator[Scenario]:
    """Yield all of them.

    :param many: the number of deferred tasks in the scenarios of the triggerer.
    """
    expected = {"starts": many, "twice": 0, "tasks": f"{many} success", "runs": f"{many} completed"}
    killed_triggerer = partial(_kill_triggerer, many=many)
    yield Scenario(
        f"kill -9 of the triggerer, {many} deferred", expected, killed_triggerer, is_exclusive=True, slow=True
    )
    yield Scenario(
        f"triggerer stopped until its triggers are elsewhere, then continued, {many} deferred",
        expected | {"moved": True, "aborted": 0},
        partial(_suspend_triggerer, many=many),
        is_exclusive=True,
        slow=True,
    )
    aborted = {"starts": 1, "task": "failed", "runs": "1 aborted", "within 30 s": True}
    yield Scenario(
        "mark failed while deferred, triggerer just started",
        aborted,
        _mark_after_restart,
        is_exclusive=True,
        plans=ENDLESS_PLANS,
    )
    yield Scenario(
        "mark failed while deferred, no triggerer",
        aborted,
        _mark_without_triggerer,
        is_exclusive=True,
        plans=ENDLESS_PLANS,
    )
    yield Scenario(
        f"DAG run marked failed, {EIGHTY} deferred, triggerer just started, API server without a way",
        {"starts": EIGHTY, "tasks": f"{EIGHTY} failed", "runs": f"{EIGHTY} aborted", "API server": "no way"},
        _mark_dag_run_after_restart,
        is_exclusive=True,
        slow=True,
        has_backend=True,
    )
    once = {"starts": 1, "task": "success", "runs": "1 completed", "files": "all of 1 run"}
    for mode in MODES:

        def kill_scheduler(case: Case, mode: str = mode) -> dict[str, Any]:
            return _kill_scheduler(case, mode)

        yield Scenario(
            f"kill -9 of the scheduler, {mode}", once, kill_scheduler, is_exclusive=True, plans=(Plan(60.0),)
        )
    yield Scenario(
        "NUL in the reason of a failure, deferrable, PostgreSQL",
        {"starts": 2, "task": "success", "runs": "1 completed, 1 failed", "triggerer alive": True},
        _fail_with_nul,
        is_exclusive=True,
        plans=(Plan(error="boom \0 end"),),
        find_missing=missing_requirement,
    )


def _kill_triggerer(case: Case, many: int) -> dict[str, Any]:
    run_id = _start_all_deferred(case, many)
    airflow = case.stage.airflow
    processes.kill(*processes.process_tree(airflow.process("triggerer").pid))
    airflow.restart("triggerer")
    return _finish_runs(case, run_id)


def _suspend_triggerer(case: Case, many: int) -> dict[str, Any]:
    run_id = _start_all_deferred(case, many)
    airflow = case.stage.airflow
    first = processes.process_tree(airflow.process("triggerer").pid)
    first_triggerers = set(_triggerers(case, run_id))
    second = airflow.second_program("triggerer")
    second.start()

    def is_moved() -> bool:
        second.check()
        current = _triggerers(case, run_id)
        return len(current) == many and first_triggerers.isdisjoint(current)

    try:
        processes.kill(*first, number=signal.SIGSTOP)
        moved = case.wait_until(is_moved, _max_wait(many))
        time.sleep(3)
        processes.kill(*first, number=signal.SIGCONT)
        time.sleep(SETTLE_SECONDS)
        states = case.service.states(case.traffic.created_ids)
        facts = _finish_runs(case, run_id)
    finally:
        processes.kill(*first, number=signal.SIGCONT)
        second.stop()
    return facts | {"moved": moved, "aborted": states if "aborted" in states else 0}


def _mark_after_restart(case: Case) -> dict[str, Any]:
    """Mark a task right after the triggerer's start: its first call to Airflow delays the kill by seconds."""
    case.stage.airflow.restart("triggerer")
    return mark_while_waiting(case, "deferrable", "failed")


def _mark_dag_run_after_restart(case: Case) -> dict[str, Any]:
    """Mark a DAG run of many deferred tasks right after the triggerer's start; only it can abort the runs."""
    run_id = _start_all_deferred(case, EIGHTY, "eighty")
    airflow, earlier = case.stage.airflow, set(_triggerers(case, run_id))
    airflow.restart("triggerer")

    def is_taken_over() -> bool:
        current = _triggerers(case, run_id)
        return len(current) == EIGHTY and earlier.isdisjoint(current)

    if not case.wait_until(is_taken_over, _max_wait(EIGHTY)):
        raise TimeoutError("the new triggerer does not take over the triggers")
    time.sleep(3)  # the triggers start; the first message to Airflow takes longer
    path = f"dags/{_dag_id(case, run_id)}/dagRuns/{quote(run_id, safe='')}"
    case.run_exclusively(lambda: airflow.call("PATCH", path, json={"state": "failed"}))
    all_aborted = f"{EIGHTY} aborted"
    case.wait_until(lambda: case.service.states(case.traffic.created_ids) == all_aborted, MAX_ABORTS_SECONDS)
    facts = {
        "starts": len(case.traffic.started_ids),
        "tasks": _states(case, run_id),
        "runs": case.service.states(case.traffic.created_ids),
    }
    message = "could not be aborted by the API server"  # after its last attempt
    has_failed = case.wait_until(lambda: message in airflow.process_log("api-server", 5000))
    return facts | {"API server": "no way" if has_failed else "not tried"}


def _mark_without_triggerer(case: Case) -> dict[str, Any]:
    """Mark a task while no triggerer runs, so that none calls `on_kill`."""
    airflow = case.stage.airflow
    processes.kill(*processes.process_tree(airflow.process("triggerer").pid))
    try:
        run_id = case.trigger("deferrable")
        case.wait_until(lambda: case.state("deferrable", run_id) == "deferred")
        return mark_and_check(case, "deferrable", run_id, "failed")
    finally:
        airflow.restart("triggerer")


def _kill_scheduler(case: Case, mode: str) -> dict[str, Any]:
    run_id = case.trigger(mode)
    case.wait_until(lambda: case.is_waiting(mode, run_id))
    stage = case.stage
    processes.kill(stage.airflow.process("scheduler").pid)
    stage.airflow.restart("scheduler")
    stage.schedulers.add(stage.airflow.process("scheduler").pid)
    case.wait_for_end(mode, run_id)
    return case.facts(mode, run_id)


def _fail_with_nul(case: Case) -> dict[str, Any]:
    """Let a flow run fail with a text that PostgreSQL does not store, in an Airflow of its own."""
    with ExitStack() as exits:
        server = exits.enter_context(PostgreSQL())
        airflow = Stack(
            case.stage.home / "postgresql",
            DAGS,
            environment=SETTINGS | case.connections | {"CHAOS_MANY": "1"},
            tuned=True,
            start_timeout=240,
            database_url=server.create_database(),
        )
        case.airflow = exits.enter_context(airflow)
        facts = case.run_to_end("deferrable")
        return facts | {"triggerer alive": airflow.process("triggerer").poll() is None}


def _max_wait(many: int) -> float:
    return max(400.0, SECONDS_PER_TASK * many)


def _start_all_deferred(case: Case, many: int, dag: str = "many") -> str:
    """Start all tasks, wait until all of them are in the triggerer, and return the DAG run's id."""
    run_id = case.trigger(dag)
    if not case.wait_until(lambda: len(_triggerers(case, run_id)) == many, _max_wait(many)):
        raise TimeoutError(f"not all tasks are deferred: {_states(case, run_id)}")
    time.sleep(5)
    return run_id


def _instances(case: Case, run_id: str) -> list[dict[str, Any]]:
    """Return all task instances; a page of Airflow's API has at most a hundred."""
    path = f"dags/{_dag_id(case, run_id)}/dagRuns/{quote(run_id, safe='')}/taskInstances"
    found: list[dict[str, Any]] = []
    while True:
        params = {"limit": PAGE_SIZE, "offset": len(found), "order_by": "map_index"}
        page = case.retry_when_locked(partial(case.stage.airflow.call, "GET", path, params=params)).json()
        found += page["task_instances"]
        if len(page["task_instances"]) < PAGE_SIZE:
            return found


def _dag_id(case: Case, run_id: str) -> str:
    return next(f"chaos_{dag}" for dag, started in case.dag_runs if started == run_id)


def _triggerers(case: Case, run_id: str) -> list[int]:
    """Return the ids of the triggerers of the deferred tasks."""
    deferred = [
        one for one in _instances(case, run_id) if one["state"] == "deferred" and one.get("triggerer_job")
    ]
    return [one["triggerer_job"]["id"] for one in deferred]


def _states(case: Case, run_id: str) -> str:
    counted = Counter(one["state"] for one in _instances(case, run_id))
    return ", ".join(f"{number} {state}" for state, number in sorted(counted.items(), key=str))


def _finish_runs(case: Case, run_id: str) -> dict[str, Any]:
    """Complete all flow runs, wait for the tasks, and return the facts."""
    case.service.advance(2 * LONG_SECONDS)
    starts = case.traffic.started_ids
    case.wait_until(
        lambda: all(one["state"] in FINAL_TASK_STATES for one in _instances(case, run_id)),
        _max_wait(len(starts)),
    )
    return {
        "starts": len(starts),
        "twice": len(starts) - len(set(starts)),
        "tasks": _states(case, run_id),
        "runs": case.service.states(case.traffic.created_ids),
    }
